"""What a controller sees and what it answers: the three hooks a trainer calls, as plain tensors.

A controller is a keyword-only dataclass that subclasses `Controller` and overrides the hooks it needs:

    on_rollout   once per generation: may replace the sequence advantages
    select       once per optimiser step, over every row of the accumulation window on all ranks
    on_loss      once per micro-batch, with the graph: a weight on the policy term and a per-token penalty

A controller that steers by what came of its work also overrides `on_step`, called once after every optimiser step.

Nothing here imports trl, accelerate or a model. A controller never gathers by itself: it asks `Ranks`, which the
trainer backs with its process group and which `OneRank` answers for a single process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

Scope = Literal["step", "exact", "micro_batch"]
# What a controller changes. Two that share a role would each undo what the other's source assumes, so they are refused
# together; different roles act on different factors of the loss and compose (`conflicts` has the few exceptions).
# A new role also needs its line in `ROLE_CLASHES` (trainers/refusals/conflicts.py).
#   advantage     replaces sequence advantages after a rollout
#   weight        scales the policy term token by token
#   penalty       adds a term that holds tokens near the policy that sampled them
#   outside_clip  gives tokens beyond the ratio clip a gradient again
#   reference_kl  sets the coefficient of the trainer's KL term to the reference model, token by token
Role = Literal["advantage", "weight", "penalty", "outside_clip", "reference_kl"]

# Losses whose policy term is -min(r A, clip(r) A) with one ratio per token; they differ in what divides the sum.
TOKEN_RATIO_LOSSES = frozenset({"grpo", "bnpo", "dr_grpo", "dapo"})


class Ranks(Protocol):
    """The collectives a controller may ask for. Every rank must make the same calls in the same order."""

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum of `x` over the ranks; same shape on every rank."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate `x` over the ranks along dim 0; `x` must have the same shape on every rank."""
        ...

    def max(self, x: int) -> int:
        """Largest `x` over the ranks (used to agree on a shape before `gather`)."""
        ...


class OneRank:
    """`Ranks` of a single process."""

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: int) -> int:
        return x


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of one accumulation window: a micro-batch, or everything one rank holds of the window.

    advantages_BT: float32, the final advantages TRL's loss uses, broadcast over tokens
    mask_BT: bool, True where a token counts in the loss (completion, not padding, not a tool's token)
    row_id_B: int64, the row's index in the generation batch over all ranks, before any shuffle: does not depend on
        micro-batch size or on the number of ranks, so seeded choices and tie-breaks are keyed by it
    informative_B: bool, False where the row's prompt group had rewards without spread (its advantages are all 0)
    columns: what rewards publish of each row under a name, (B,) or (B, T); only what some controller names in
        `needs_columns`
    """

    advantages_BT: Tensor
    mask_BT: Tensor
    row_id_B: Tensor
    informative_B: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """The same rows with every tensor put through `change`: cut, reordered, moved to a device."""
        return Rows(
            advantages_BT=change(self.advantages_BT),
            mask_BT=change(self.mask_BT),
            row_id_B=change(self.row_id_B),
            informative_B=change(self.informative_B),
            columns={name: change(column) for name, column in self.columns.items()},
        )


ROW_TENSORS = tuple(f.name for f in fields(Rows) if f.name != "columns")  # those that every row has


@dataclass(frozen=True, kw_only=True)
class Window:
    """All rows this rank holds of one optimiser step, known before the first backward.

    log_probs_BT: float32, of the sampled tokens. Scope `step`: under the policy that generated the rows. Scope
        `exact`: under the policy as it is before this optimiser step.
    old_log_probs_BT: float32, under the policy that generated the rows (the denominator of the ratio).
    entropies_BT: float32, nats, full vocabulary, under the same policy as `log_probs_BT`; None where nobody scored
        them (a window put together by hand). A trainer always brings them.
    step: the optimiser step; with the controller's seed and `row_id_B` it fixes every random choice.
    """

    rows: Rows
    log_probs_BT: Tensor
    old_log_probs_BT: Tensor
    step: int
    entropies_BT: Tensor | None = None
    ranks: Ranks = field(default_factory=OneRank)


@dataclass(frozen=True, kw_only=True)
class LossView:
    """What the loss pass knows of the rows of one micro-batch, while the graph is there.

    log_probs_BT: of the sampled tokens, under the policy as it is now, with its graph.
    old_log_probs_BT: detached, under the policy that generated the rows (the denominator of the ratio); equals
        `log_probs_BT.detach()` on a fully on-policy schedule.
    ref_log_probs_BT: detached, under the reference model; None where the loss has no KL term to one.
    entropies_BT: nats, detached, full vocabulary, of the same pass as `log_probs_BT`.
    eps_low, eps_high: the ratio range [1 - eps_low, 1 + eps_high] of this loss; inf = no clip.
    fresh: the policy is still the one that generated the rows, so a ratio other than 1 is round-off or dropout.
    """

    log_probs_BT: Tensor
    old_log_probs_BT: Tensor
    ref_log_probs_BT: Tensor | None = None
    entropies_BT: Tensor
    eps_low: float
    eps_high: float
    fresh: bool = False

    def window(self, rows: Rows, *, step: int = 0) -> Window:
        """The micro-batch as a window of one rank, which is what scope `micro_batch` selects over."""
        return Window(
            rows=rows,
            log_probs_BT=self.log_probs_BT.detach(),
            old_log_probs_BT=self.old_log_probs_BT,
            entropies_BT=self.entropies_BT,
            step=step,
        )


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What a controller wants of one micro-batch.

    weight_BT: multiplies the advantages, hence the policy term, token by token; detached; None = 1 everywhere
    penalty_BT: nats-scaled loss per token, with its graph, added under the policy term's own normaliser and its own
        importance-sampling weight; None = 0. Must be finite everywhere, padding included.
    reference_penalty_BT: what to add per token to the trainer's KL term, with its graph and in units of its
        coefficient (TRL's `beta`): under the same normaliser, without the policy term's weights, and under the ratio
        where that term is (`use_bias_correction_kl`), all of which the trainer sees to; None = 0. Must be finite
        everywhere, padding included.
    sums: scalars outside the graph. The trainer adds them over the micro-batches of the step and over the ranks,
        then hands the totals to `Controller.summarise`.
    """

    weight_BT: Tensor | None = None
    penalty_BT: Tensor | None = None
    reference_penalty_BT: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The loss a controller would act in, as a run's options have it; known before training.

    others: the controllers beside it.
    eps_low, eps_high: the ratio range [1 - eps_low, 1 + eps_high] in force; inf = no clip.
    clip_owner: whose range it is, the name of a controller or "the trainer".
    delta: TRL's upper bound on the ratio itself; None = none.
    sampler_ratio: the ratio is to another engine's log-probs, whose round-off alone moves it.
    """

    others: Sequence["Controller"]
    eps_low: float
    eps_high: float
    clip_owner: str
    delta: float | None
    sampler_ratio: bool


@dataclass(frozen=True, kw_only=True)
class StepFeedback:
    """What one optimiser step was like; the same on every rank.

    step: the step these rows were trained in, counted from 0
    entropy: nats, mean over the loss tokens of all ranks under the policy before the step; None without loss tokens
    metrics: everything logged of the step, by its full name
    """

    step: int
    entropy: float | None
    metrics: Mapping[str, float]


@dataclass(kw_only=True)
class Controller:
    """Base class: every hook answers 'nothing to do'."""

    name: ClassVar[str] = "controller"  # prefix of the metrics
    role: ClassVar[Role | None] = None  # None: an observer, or a method that says nothing of what it acts on
    # Options a guard may move while training -> +1 where raising the option raises entropy, -1 where it lowers it.
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({})
    needs_feedback: ClassVar[bool] = False  # True: `on_step` is called, at the price of one device sync per step
    supported_losses: ClassVar[frozenset[str]] = TOKEN_RATIO_LOSSES
    needs_stale_policy: ClassVar[bool] = False  # True: a no-op while the ratio is exactly 1 (KL-Cov)
    uses_loss_hook: ClassVar[bool] = True  # False: only `on_rollout`, so any loss type will do
    required_scaling: ClassVar[str | None] = None  # value of TRL's `scale_rewards` it is defined for; None = any
    needs_reference: ClassVar[bool] = False  # True: acts on the KL term, so the trainer's `beta` must be above 0

    @property
    def needs_columns(self) -> tuple[str, ...]:
        """Names of `Rows.columns` that some reward must publish."""
        return ()

    @property
    def scope(self) -> Scope | None:
        """When the controller selects; None: it never selects."""
        return None

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """(eps_low, eps_high) of the ratio range [1 - eps_low, 1 + eps_high]; inf = no clip; None = trainer's own."""
        return None

    def conflicts(self, loss: LossSettings) -> list[str]:
        """What it cannot stand beside and why, each with the next move, beyond what roles and attributes say already.

        The trainer refuses to start on any.
        """
        return []

    def on_rollout(self, rewards_N: Tensor, groups_N: Tensor, advantages_N: Tensor) -> Tensor | None:
        """New advantages for the N rows of the generation batch on all ranks, or None to leave them.

        rewards_N: float32, weighted sum over reward functions, NaN where no reward applied
        groups_N: int64, prompt group of the row
        advantages_N: float32, as TRL computed them
        """
        return None

    def select(self, window: Window) -> Any:
        """The step's selection, handed back to every `on_loss` of the step. Called where `scope` asks for it."""
        return None

    def on_loss(self, rows: Rows, selection: Any, view: LossView) -> LossTerms:
        """Weight and penalty for one micro-batch; `selection` is None under scope `micro_batch`."""
        return LossTerms()

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics of one optimiser step from the totals of `LossTerms.sums`; keys get the prefix `name/`."""
        return {}

    def window_metrics(self, selection: Any) -> dict[str, Tensor | float]:
        """Metrics known once the step's selection is made; same on every rank. Keys get the prefix `name/`.

        Scalar tensors may stay on the device: the trainer reads them when it logs.
        """
        return {}

    def on_step(self, feedback: StepFeedback) -> dict[str, float]:
        """Called after an optimiser step where `needs_feedback`; returns metrics, which get the prefix `name/`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the options."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""

    def options(self) -> dict[str, Any]:
        """The dataclass fields, for the manifest."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
