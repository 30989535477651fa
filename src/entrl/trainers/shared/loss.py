"""One micro-batch's loss with controllers: their weights and penalties combined, and the sums they report.

Plain tensors in and out; which entry of TRL's input dict is which, `row_columns.py` and the trainers know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import Controller, LossView, Rows
from entrl.maths.diversity import group_means
from entrl.maths.signals import masked_mean


def aggregate(
    per_token_BT: Tensor,
    mask_BT: Tensor,
    *,
    loss_type: str,
    accumulation: int,
    steps_per_generation: int,
    world_size: int,
    max_completion_length: int,
    num_items: Tensor,
) -> Tensor:
    """Reduce a per-token loss exactly as TRL 1.16 `GRPOTrainer._compute_loss` reduces its policy term in training.

    num_items: loss tokens of the whole rollout over all ranks. A test compares each loss type with TRL's own number.
    """
    total_B = torch.where(mask_BT, per_token_BT, 0.0).sum(-1)
    count_B = mask_BT.sum(-1).clamp(min=1.0)
    if loss_type == "grpo":
        return (total_B / count_B).mean() / accumulation
    if loss_type == "bnpo":
        return total_B.sum() / mask_BT.sum().clamp(min=1.0) / accumulation
    if loss_type == "dr_grpo":
        return total_B.sum() / (mask_BT.size(0) * max_completion_length) / accumulation
    if loss_type == "dapo":
        return total_B.sum() / (num_items.clamp(min=1.0) / world_size * accumulation / steps_per_generation)
    raise ValueError(f"no penalty is defined for loss_type={loss_type!r}; use grpo, bnpo, dr_grpo or dapo")


@dataclass(kw_only=True)
class LossPass:
    """State of one micro-batch between the forward pass and the loss.

    policy_weight_BT collects what TRL multiplies the policy term with after the ratio (importance-sampling weight,
    high-entropy mask, off-policy mask); the penalty gets the same. The KL term to the reference model carries none of
    them, and so does what is added to it.
    beta: coefficient of that term
    corrected_kl: that term is under the token's ratio, with its graph (TRL's `use_bias_correction_kl`, on by default)
    """

    rows: Rows
    old_log_probs_BT: Tensor | None
    ref_log_probs_BT: Tensor | None
    controllers: Sequence[Controller] = ()
    selections: Sequence[Any] = ()
    eps_low: float = 0.2
    eps_high: float = 0.2
    beta: float = 0.0
    corrected_kl: bool = False
    fresh: bool = False
    log_probs_BT: Tensor | None = None  # of the pass, detached; set once it has been made
    entropies_BT: Tensor | None = None
    policy_weight_BT: Tensor | None = None
    penalty_BT: Tensor | None = None
    reference_penalty_BT: Tensor | None = None  # in units of beta, under the ratio where TRL's term is
    sums: dict[str, Tensor] = field(default_factory=dict)

    def run(self, log_probs_BT: Tensor, entropies_BT: Tensor) -> Tensor | None:
        """Call the controllers; keeps the penalties and the sums, returns the combined weight or None for 1."""
        self._entropy_sums(entropies_BT)
        weight_BT: Tensor | None = None
        old_BT = log_probs_BT.detach() if self.old_log_probs_BT is None else self.old_log_probs_BT
        view = LossView(
            log_probs_BT=log_probs_BT,
            old_log_probs_BT=old_BT,
            ref_log_probs_BT=self.ref_log_probs_BT,
            entropies_BT=entropies_BT.detach(),
            eps_low=self.eps_low,
            eps_high=self.eps_high,
            fresh=self.fresh,
        )
        for controller, selection in zip(self.controllers, self.selections, strict=True):
            terms = controller.on_loss(self.rows, selection, view)
            if terms.weight_BT is not None:
                weight_BT = terms.weight_BT if weight_BT is None else weight_BT * terms.weight_BT
            self.penalty_BT = _sum(self.penalty_BT, terms.penalty_BT)
            if terms.reference_penalty_BT is not None and self.beta == 0:
                raise ValueError(
                    f"{controller.name} adds to the KL term, which this loss does not have (beta=0); set beta above 0"
                )
            self.reference_penalty_BT = _sum(self.reference_penalty_BT, terms.reference_penalty_BT)
            self.sums.update({f"{controller.name}/{key}": value for key, value in terms.sums.items()})
        if self.reference_penalty_BT is not None and self.corrected_kl:
            x_BT = torch.where(self.rows.mask_BT, log_probs_BT - old_BT, 0.0)
            self.reference_penalty_BT = self.reference_penalty_BT * x_BT.exp()
        return weight_BT

    def weigh_policy(self, weight: Tensor) -> None:
        """Note a factor of TRL's policy term, so that the penalty carries it too."""
        self.policy_weight_BT = weight if self.policy_weight_BT is None else self.policy_weight_BT * weight

    @property
    def penalised(self) -> bool:
        """Whether some controller adds a term to the loss."""
        return self.penalty_BT is not None or self.reference_penalty_BT is not None

    def weighted_penalty(self) -> Tensor | None:
        """(B, T) what controllers add to the per-token loss, or None.

        The penalty comes under the policy term's own weight, the reference penalty under beta alone.
        """
        policy_BT, reference_BT = self.penalty_BT, self.reference_penalty_BT
        if policy_BT is not None and self.policy_weight_BT is not None:
            policy_BT = policy_BT * self.policy_weight_BT
        return _sum(policy_BT, None if reference_BT is None else self.beta * reference_BT)

    def _entropy_sums(self, entropies_BT: Tensor) -> None:
        mask_BT, entropies_BT = self.rows.mask_BT, entropies_BT.detach()
        filled_B = mask_BT.any(-1)
        self.sums["entropy/token_sum"] = torch.where(mask_BT, entropies_BT, 0.0).sum()
        self.sums["entropy/tokens"] = mask_BT.sum()
        self.sums["entropy/response_sum"] = torch.where(filled_B, masked_mean(entropies_BT, mask_BT), 0.0).sum()
        self.sums["entropy/responses"] = filled_B.sum()


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None is 0."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


class Tally:
    """Named sums of one optimiser step, over its micro-batches."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()

    def take(self) -> dict[str, Tensor]:
        """The sums, and start again from nothing."""
        out, self.sums = self.sums, {}
        return out


def step_metrics(totals: dict[str, float], controllers: Sequence[Controller]) -> dict[str, float]:
    """Metrics of an optimiser step from sums over its micro-batches and all ranks.

    diversity/* are means over the groups of a rollout, in the step that generated it.
    policy_entropy/token_mean weighs every loss token alike; policy_entropy/response_mean is the mean over responses
    of each one's mean (Eq. 5 of arXiv 2505.22617). Both in nats, under the current policy, on the loss's token set.
    """
    out = {}
    if totals["entropy/tokens"]:  # a step without loss tokens has no entropy; 0 would read as collapse
        out["policy_entropy/token_mean"] = totals["entropy/token_sum"] / totals["entropy/tokens"]
        out["policy_entropy/response_mean"] = totals["entropy/response_sum"] / totals["entropy/responses"]
    out |= group_means(totals)  # NaN in a step without a rollout
    for controller in controllers:
        prefix = f"{controller.name}/"
        own = {k.removeprefix(prefix): v for k, v in totals.items() if k.startswith(prefix)}
        out |= {prefix + k: v for k, v in controller.summarise(own).items()}
    return out
