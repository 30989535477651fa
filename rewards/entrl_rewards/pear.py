"""PEAR, Phase Entropy Aware Reward: a correct completion pays for thinking with more entropy than it answers with.

    H_think  = mean_{t < k} H_t        k = first token of the closing think tag
    H_answer = mean_{t > tag} H_t      the tag itself is in neither phase
    P        = max(0, H_think - alpha * H_answer)
    r        = min(1, s - P)  if correct,  r_fmt  otherwise

H_t in nats, over the full vocabulary, under the policy that generated the completion. An empty phase has
entropy 0.

Source:  Huang, Lu, Zhang, arXiv 2510.08026, Eq. 5-7 and the reward equation. The official code was not
    available, so this follows the paper's equations, not the authors' program.
Differs: `floor="r_fmt"` never ranks a correct completion below a wrong one (P is unbounded); inactive while
    P <= s - r_fmt, and `floor=None` gives the paper's formula. Everything from `weight` down is off by
    default.
Needs:   EntropyGRPOTrainer: token_entropies (or token_logprobs, token_topk_logprobs), token_mask, think_tags,
    prompt_ids

Documented answers. Verdict not known: None. Empty completion: r_fmt. Truncated: judged like any other (its
rate is logged). No closing tag: `missing_close`; a prompt that closed the thinking leaves none to pay for. Tool
tokens are in no phase. Several turns: phases are cut per turn (`entrl.maths.phases`) and pooled, so every token weighs
the same; the tag is missing when the last turn ends in thinking.

Groups whose completions are all correct have P as their only spread, and dividing by its standard deviation
gives any P full strength, whatever `weight` is: use `scale_rewards="batch"` or the `StdFloor` controller.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl.maths.phases import ThinkTags, Which
from entrl.maths.signals import masked_mean
from entrl_rewards.correctness import ACCURACY, Gated, Verifier, columns_of, judge
from entrl_rewards.entropy_source import SIGNAL_OF, EntropySource, TopKEstimate, token_entropy_rows
from entrl_rewards.groups import group_mean, shuffle_within
from entrl_rewards.pear_options import check_options
from entrl_rewards.phase_statistics import Phases, mean_where, phase_metrics, read_phases

MissingClose = Literal["paper", "all_tokens", "format", "skip"]
AnswerBaseline = Literal["sample", "group", "ema", "none"]
Gather = Callable[[list[float]], list[float]]  # the floats of every rank, in one list

NO_TOKEN = -1  # no tokenizer hands it out


class PhaseRewards(NamedTuple):
    """(B,) each; entropies and penalty in nats."""

    h_think: Tensor
    h_answer: Tensor
    penalty: Tensor
    reward: Tensor


def phase_rewards(
    entropy_BT: Tensor,
    mask_BT: Tensor,
    *,
    close_index: Sequence[int | None],
    correct_B: Tensor,
    alpha: float = 1.0,
    s: float = 1.0,
    r_fmt: float = 0.0,
    floor: float | None = None,
    span_len: int = 1,
    missing_close: Literal["paper", "all_tokens"] = "paper",
) -> PhaseRewards:
    """The paper's formula, whole: 1-based `close_index` of the tag's first token among the masked ones, None
    = no tag.
    """
    length_B = mask_BT.sum(-1)
    position_BT = mask_BT.cumsum(-1)
    k_B = torch.tensor([0 if k is None else k for k in close_index], device=mask_BT.device)
    absent_B = torch.tensor([k is None for k in close_index], device=mask_BT.device)
    k_B = torch.where(absent_B, length_B + (missing_close == "all_tokens"), k_B)
    think_BT = mask_BT & (position_BT < k_B[:, None])
    answer_BT = mask_BT & (position_BT >= k_B[:, None] + span_len) & ~absent_B[:, None]
    h_think_B, h_answer_B = masked_mean(entropy_BT, think_BT), masked_mean(entropy_BT, answer_BT)
    penalty_B = penalty(h_think_B, h_answer_B, alpha=alpha)
    reward_B = gated_reward(penalty_B, correct_B, s=s, r_fmt=r_fmt, floor=floor)
    return PhaseRewards(h_think_B, h_answer_B, penalty_B, reward_B)


def penalty(h_think_B: Tensor, h_answer_B: Tensor, *, alpha: float) -> Tensor:
    """Eq. 7, (B,) nats: how far thinking entropy exceeds alpha times answer entropy."""
    return (h_think_B - alpha * h_answer_B).clamp(min=0.0)


def gated_reward(cost_B: Tensor, correct_B: Tensor, *, s: float, r_fmt: float, floor: float | None) -> Tensor:
    """min(1, s - cost), not below `floor`, where correct; r_fmt elsewhere."""
    paid_B = (s - cost_B).clamp(max=1.0)
    if floor is not None:
        paid_B = paid_B.clamp(min=floor)
    return torch.where(correct_B, paid_B, r_fmt)


@dataclass(frozen=True, kw_only=True)
class Pear(Gated):
    """`phase_rewards` as EntropyGRPOTrainer calls it, with the guards and variants the paper leaves open."""

    __name__: ClassVar[str] = "pear"

    alpha: float = 1.0  # paper's default; smaller presses harder, negative presses both phases
    s: float = 1.0  # (0, 1], what a correct completion is worth before the penalty
    r_fmt: float = 0.0  # [0, 1), what a wrong one gets
    missing_close: MissingClose = "paper"  # mean over T-1 tokens | over all T | r_fmt even if correct | no penalty
    which_close: Which = "first"
    floor: float | str | None = "r_fmt"  # lowest reward of a correct completion: number, "r_fmt", or None (paper)
    min_think_tokens: int = 0  # a correct completion that thinks less gets r_fmt; closes "stop thinking at once"
    entropy_source: EntropySource = "exact"
    correctness: Verifier = ACCURACY  # see entrl_rewards.correctness

    weight: float = 1.0  # on P; cancels in all-correct groups under std-normalised advantages
    max_answer_tokens: int | None = None  # answer tokens beyond it count as thinking; closes "think behind the tag"
    answer_baseline: AnswerBaseline = "sample"  # whose H_answer is the yardstick; "group", "ema": vagueness unpaid
    ema_decay: float = 0.9  # per generation batch, for answer_baseline="ema"
    length_weight: float = 0.0  # a correct completion also pays length_weight * tokens / length_scale
    length_scale: int = 1000  # tokens
    alpha_start: float | None = None  # alpha moves linearly from here to `alpha` ...
    alpha_steps: int = 0  # ... over this many optimiser steps
    gate_solve_rate: float | None = None  # P only in groups solved at least this often: hard prompts may search
    count_open: bool = True  # whether an opening tag the model wrote counts as thinking
    exclude_ids: tuple[int, ...] = ()  # token ids in neither phase, e.g. EOS (default: EOS counts)
    close_ids: tuple[int, ...] | None = None  # closing tag, where the trainer's own tag is not the one meant
    topk_estimate: TopKEstimate = "mid"  # for entropy_source="topk"
    topk_k: int | None = None  # how many log-probs the engine was asked for
    vocab_size: int | None = None  # tokens in the vocabulary, for entropy_source="topk"
    # NEGATIVE CONTROL, not a method: each completion is charged the phase entropies of another one of its group with
    # the same verdict, so a group's rewards are the same numbers with the link between text and entropy cut.
    shuffle_entropies_in_group: bool = False
    shuffle_seed: int = 0

    _state: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("exclude_ids", "close_ids"):  # YAML brings lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_options(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals the trainer must deliver; top-k log-probs are not among them, they come as a key of the rows."""
        source = () if self.entropy_source == "topk" else (SIGNAL_OF[self.entropy_source],)
        grouped = ("group_index",) if self.needs_whole_groups else ()
        shared = ("gather",) if self.answer_baseline == "ema" else ()
        return (*source, "token_mask", "think_tags", "prompt_ids", "truncated", *grouped, *shared)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data set columns training cannot do without; a run that lacks one stops before it starts."""
        return columns_of(self.correctness)

    @property
    def needs_whole_groups(self) -> bool:
        gated = self.gate_solve_rate is not None
        return gated or self.answer_baseline == "group" or self.shuffle_entropies_in_group

    @property
    def floor_value(self) -> float | None:
        return self.r_fmt if isinstance(self.floor, str) else self.floor

    def __call__(
        self,
        *,
        completions: list[Any],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: Any = None,
        training: bool = True,
        **signals: Any,
    ) -> list[float | None]:
        """One reward per completion, None where the verifier does not know."""
        verdicts = judge(
            self.correctness,
            completions=completions,
            completion_ids=completion_ids,
            log_metric=log_metric,
            trainer_state=trainer_state,
            **signals,
        )
        step = int(getattr(trainer_state, "global_step", 0) or 0)
        known_B = torch.tensor([v is not None for v in verdicts])
        phases = self.phases(completion_ids, signals)
        correct_B = torch.tensor([v is True for v in verdicts]) & (phases.tokens > 0)
        group_B = self._groups(signals, len(completions))

        penalty_B = self._penalty(phases, known_B, correct_B, group_B, step, signals.get("gather"), training)
        cost_B = self.weight * penalty_B + self.length_weight * phases.tokens / self.length_scale
        paid_B = correct_B & ~self._refused(phases)
        reward_B = gated_reward(cost_B, paid_B, s=self.s, r_fmt=self.r_fmt, floor=self.floor_value)

        if log_metric is not None:
            metrics = phase_metrics(phases, signals.get("truncated"), prefix="pear")
            metrics |= self._reward_metrics(known_B, correct_B, paid_B, penalty_B, cost_B)
            for name, value in metrics.items():
                if value is not None:
                    log_metric(name, value)
            log_metric("pear/alpha", self.alpha_at(step))
        return [r if known else None for r, known in zip(reward_B.tolist(), known_B.tolist(), strict=True)]

    def alpha_at(self, step: int) -> float:
        """alpha of the schedule at an optimiser step."""
        if self.alpha_start is None:
            return self.alpha
        done = min(1.0, step / self.alpha_steps)
        return self.alpha_start + (self.alpha - self.alpha_start) * done

    def phases(self, completion_ids: list[list[int]], signals: dict[str, Any]) -> Phases:
        """Phase means and lengths of each completion, by these options."""
        rows = token_entropy_rows(
            self.entropy_source,
            completion_ids,
            signals,
            estimate=self.topk_estimate,
            k=self.topk_k,
            vocab_size=self.vocab_size,
        )
        return read_phases(
            rows,
            completion_ids,
            self._tags(signals.get("think_tags")),
            signals.get("token_mask"),
            prompt_ids=signals.get("prompt_ids"),
            which=self.which_close,
            count_open=self.count_open,
            exclude_ids=self.exclude_ids,
            drop_last_unclosed=self.missing_close == "paper",
            max_answer_tokens=self.max_answer_tokens,
        )

    def _tags(self, tags: ThinkTags | None) -> ThinkTags:
        if self.close_ids is not None:
            if tags is None:
                return ThinkTags(open_ids=(NO_TOKEN,), close_ids=self.close_ids)
            return replace(tags, close_ids=self.close_ids, close_text="", close_pieces={})
        if tags is None:
            raise TypeError(
                "pear got no think_tags; use EntropyGRPOTrainer with a think_close that its tokenizer can encode, "
                "or set close_ids"
            )
        return tags

    def _groups(self, signals: dict[str, Any], rows: int) -> Tensor:
        if not self.needs_whole_groups:
            return torch.arange(rows)
        if signals.get("group_index") is None:
            raise TypeError("these pear options compare a prompt's completions: use EntropyGRPOTrainer (group_index)")
        return torch.as_tensor(signals["group_index"])

    def _penalty(
        self,
        phases: Phases,
        known_B: Tensor,
        correct_B: Tensor,
        group_B: Tensor,
        step: int,
        gather: Gather | None,
        training: bool,
    ) -> Tensor:
        """P of each completion in nats, after the yardstick, the control's shuffle and the exemptions."""
        h_think_B, h_answer_B = phases.h_think, self._yardstick(phases, group_B, gather, training)
        if self.shuffle_entropies_in_group:
            class_BN = torch.stack([group_B, correct_B.long()], -1)
            source_B = shuffle_within(class_BN, seeds=(self.shuffle_seed, step))
            h_think_B, h_answer_B = h_think_B[source_B], h_answer_B[source_B]
        penalty_B = penalty(h_think_B, h_answer_B, alpha=self.alpha_at(step))
        if self.missing_close == "skip":
            penalty_B = torch.where(phases.closed, penalty_B, 0.0)
        if self.gate_solve_rate is not None:
            solve_rate_B = group_mean(correct_B.float(), group_B, known_B)
            penalty_B = torch.where(solve_rate_B >= self.gate_solve_rate, penalty_B, 0.0)
        return penalty_B

    def _yardstick(self, phases: Phases, group_B: Tensor, gather: Gather | None, training: bool) -> Tensor:
        """H_answer to subtract: a completion without an answer gets 0, whatever the baseline."""
        has_B = phases.answer_tokens > 0
        if self.answer_baseline == "group":
            return torch.where(has_B, group_mean(phases.h_answer, group_B, has_B), 0.0)
        if self.answer_baseline == "ema":
            h_answer_B = torch.where(has_B, phases.h_answer, torch.nan)  # same length on every rank, as gather wants
            return torch.where(has_B, self._ema(h_answer_B.tolist(), gather, training), 0.0)
        return phases.h_answer if self.answer_baseline == "sample" else torch.zeros_like(phases.h_answer)

    def _ema(self, h_answers: list[float], gather: Gather | None, training: bool) -> float:
        """The average as it stood before this batch (first batch: its own mean), over the completions of all ranks."""
        values = [h for h in (gather(h_answers) if gather else h_answers) if not math.isnan(h)]
        if not values:
            return self._state.get("ema", 0.0)
        mean = math.fsum(values) / len(values)  # exact sum: the same however the rows are spread over ranks
        before = self._state.get("ema", mean)
        if training:
            self._state["ema"] = self.ema_decay * before + (1 - self.ema_decay) * mean
        return before

    def _refused(self, phases: Phases) -> Tensor:
        """Completions paid as wrong even when correct."""
        short_B = phases.think_tokens < self.min_think_tokens
        return short_B | ~phases.closed if self.missing_close == "format" else short_B

    def _reward_metrics(
        self, known_B: Tensor, correct_B: Tensor, paid_B: Tensor, penalty_B: Tensor, cost_B: Tensor
    ) -> dict[str, float | None]:
        floored_B = torch.zeros_like(paid_B) if self.floor_value is None else self.s - cost_B < self.floor_value
        return {
            "pear/correct": mean_where(correct_B, known_B),  # of the completions whose verdict is known
            "pear/unknown": mean_where(~known_B),
            "pear/refused": mean_where(~paid_B, correct_B),  # correct but paid r_fmt: min_think_tokens, "format"
            "pear/penalty": mean_where(penalty_B, paid_B),  # nats, of those paid
            "pear/penalty_zero": mean_where(penalty_B == 0, paid_B),
            "pear/floored": mean_where(floored_B, paid_B),
        }

    def state_dict(self) -> dict[str, float]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._state.clear()
        self._state.update(state)


reward = Pear()
