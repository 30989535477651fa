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
    P <= s - r_fmt, and `floor=None` gives the paper's formula. `weight`, `min_think_tokens`, `max_answer_tokens`
    and everything in `expert` are ours and off by default.
Needs:   EntropyGRPOTrainer: token_entropies (or token_logprobs, token_topk_logprobs), token_mask, think_tags,
    prompt_ids; group_index for the options that compare a prompt's completions, and for pear/length_correlation

Documented answers. Verdict not known: None. Empty completion: r_fmt. Truncated: judged like any other (its
rate is logged). No closing tag: `missing_close`; a prompt that closed the thinking leaves none to pay for. Tool
tokens are in no phase. Several turns: phases are cut per turn (`entrl.maths.phases`) and pooled, so every token weighs
the same; the tag is missing when the last turn ends in thinking.

Groups whose completions are all correct have P as their only spread, and dividing by its standard deviation
gives any P full strength, whatever `weight` is: use `scale_rewards="batch"` or the `StdFloor` controller.
"""

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl_rewards.correctness import ACCURACY, Gated, Verifier, judge
from entrl_rewards.groups import group_mean, rank_correlations, shuffle_within
from entrl_rewards.options import check_choices, check_ranges
from entrl_rewards.pear_options import PearExpert
from entrl_rewards.phase_statistics import Phases, mean_where, phase_metrics, read_phases
from entrl_rewards.trainer_signals import Gather, LogMetric, optimiser_step


class PhaseRewards(NamedTuple):
    """(B,) each."""

    penalty: Tensor  # P, nats
    cost: Tensor  # what a correct completion pays
    reward: Tensor


def phase_rewards(
    h_think_B: Tensor,
    h_answer_B: Tensor,
    correct_B: Tensor,
    *,
    alpha: float = 1.0,
    s: float = 1.0,
    r_fmt: float = 0.0,
    floor: float | None = None,
    weight: float = 1.0,
    charged_B: Tensor | None = None,
    extra_B: Tensor | float = 0.0,
) -> PhaseRewards:
    """The reward equation, from phase means (Eq. 5-6: `read_phases`) in nats.

    charged_B: the completions P is asked of; None = all. extra_B: further cost of each correct completion.
    """
    penalty_B = (h_think_B - alpha * h_answer_B).clamp(min=0.0)  # Eq. 7
    if charged_B is not None:
        penalty_B = torch.where(charged_B, penalty_B, 0.0)
    cost_B = weight * penalty_B + extra_B
    paid_B = (s - cost_B).clamp(max=1.0)
    if floor is not None:
        paid_B = paid_B.clamp(min=floor)
    return PhaseRewards(penalty_B, cost_B, torch.where(correct_B, paid_B, r_fmt))


@dataclass
class PearState:
    """What a checkpoint holds: with answer_baseline="ema" the running mean of H_answer in nats, None before any."""

    ema: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pear(Gated):
    """`phase_rewards` as EntropyGRPOTrainer calls it, with the guards and variants the paper leaves open."""

    __name__: ClassVar[str] = "pear"

    alpha: float = 1.0  # paper's default; smaller presses harder, negative presses both phases
    weight: float = 1.0  # on P; cancels in all-correct groups under std-normalised advantages
    s: float = 1.0  # (0, 1], what a correct completion is worth before the penalty
    r_fmt: float = 0.0  # [0, 1), what a wrong one gets
    floor: float | str | None = "r_fmt"  # lowest reward of a correct completion: number, "r_fmt", or None (paper)
    # mean over T-1 tokens | over all T | r_fmt even if correct | no penalty
    missing_close: Literal["paper", "all_tokens", "format", "skip"] = "paper"
    min_think_tokens: int = 0  # a correct completion that thinks less gets r_fmt; closes "stop thinking at once"
    max_answer_tokens: int | None = None  # answer tokens beyond it count as thinking; closes "think behind the tag"
    correctness: Verifier = ACCURACY  # see entrl_rewards.correctness
    expert: PearExpert = field(default_factory=PearExpert)

    _state: PearState = field(default_factory=PearState, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        rules = {
            "s": (self.s > 0, "> 0 (the paper: at most 1)"),
            "r_fmt": (0 <= self.r_fmt < 1, "in [0, 1)"),
            "weight": (self.weight >= 0, ">= 0; a negative one would pay for thinking entropy"),
            "min_think_tokens": (self.min_think_tokens >= 0, ">= 0 tokens"),
            "max_answer_tokens": (self.max_answer_tokens is None or self.max_answer_tokens >= 1, ">= 1 token, or null"),
        }
        check_ranges(self, rules)
        if isinstance(self.floor, str) and self.floor != "r_fmt":
            raise ValueError(f"floor must be a number, 'r_fmt' or null, got {self.floor!r}")
        if self.s <= self.r_fmt:
            raise ValueError(
                f"s must be above r_fmt, got s={self.s} and r_fmt={self.r_fmt}; a correct answer must pay more"
            )
        if not isinstance(self.floor, str) and self.floor is not None and self.floor > self.s:
            raise ValueError(
                f"floor must be at most s={self.s}, got {self.floor}; above it the penalty could never act"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals the trainer must deliver."""
        shared = ("gather",) if self.expert.answer_baseline == "ema" else ()
        told = ("token_mask", "think_tags", "prompt_ids", "truncated", "group_index")
        return (*self.expert.entropy_needs, *told, *shared)

    @property
    def needs_whole_groups(self) -> bool:
        return self.expert.needs_whole_groups

    @property
    def floor_value(self) -> float | None:
        return self.r_fmt if isinstance(self.floor, str) else self.floor

    def __call__(
        self,
        *,
        completions: list[Any],
        completion_ids: list[list[int]],
        log_metric: LogMetric | None = None,
        trainer_state: Any = None,
        training: bool = True,
        **signals: Any,
    ) -> list[float | None]:
        """One reward per completion, None where the verifier does not know."""
        judged = {"completion_ids": completion_ids, "log_metric": log_metric, "trainer_state": trainer_state}
        verdicts = judge(self.correctness, completions=completions, **judged, **signals)
        step = optimiser_step(trainer_state)
        known_B = torch.tensor([v is not None for v in verdicts])
        phases = self.phases(completion_ids, signals)
        correct_B = torch.tensor([v is True for v in verdicts]) & (phases.tokens > 0)
        group_B = self._groups(signals, len(completions))

        h_think_B, h_answer_B = phases.h_think, self._yardstick(phases, group_B, signals.get("gather"), training)
        if self.expert.shuffle_entropies_in_group:
            class_BN = torch.stack([group_B, correct_B.long()], -1)
            source_B = shuffle_within(class_BN, seeds=(self.expert.shuffle_seed, step))
            h_think_B, h_answer_B = h_think_B[source_B], h_answer_B[source_B]
        paid_B = correct_B & ~self._refused(phases)
        out = phase_rewards(
            h_think_B,
            h_answer_B,
            paid_B,
            alpha=self.alpha_at(step),
            s=self.s,
            r_fmt=self.r_fmt,
            floor=self.floor_value,
            weight=self.weight,
            charged_B=self._charged(phases, correct_B, known_B, group_B),
            extra_B=self.expert.length_weight * phases.tokens / self.expert.length_scale,
        )
        if log_metric is not None:
            metrics = phase_metrics(phases, signals.get("truncated"), prefix="pear")
            metrics |= self._reward_metrics(out, known_B, correct_B, paid_B) | {"pear/alpha": self.alpha_at(step)}
            rho = rank_correlations(phases.tokens, out.penalty, group_B, paid_B)
            metrics["pear/length_correlation"] = fmean(rho) if rho else None
            for name, value in metrics.items():
                if value is not None:
                    log_metric(name, value)
        return [r if known else None for r, known in zip(out.reward.tolist(), known_B.tolist(), strict=True)]

    def alpha_at(self, step: int) -> float:
        """alpha of the schedule at an optimiser step."""
        start = self.expert.alpha_start
        if start is None:
            return self.alpha
        return start + (self.alpha - start) * min(1.0, step / self.expert.alpha_steps)

    def phases(self, completion_ids: list[list[int]], signals: dict[str, Any]) -> Phases:
        """Phase means and lengths of each completion, by these options."""
        return read_phases(
            self.expert.entropy_rows(completion_ids, signals),
            completion_ids,
            self.expert.tags(signals.get("think_tags")),
            signals.get("token_mask"),
            prompt_ids=signals.get("prompt_ids"),
            which=self.expert.which_close,
            count_open=self.expert.count_open,
            exclude_ids=self.expert.exclude_ids,
            drop_last_unclosed=self.missing_close == "paper",
            max_answer_tokens=self.max_answer_tokens,
        )

    def _groups(self, signals: dict[str, Any], rows: int) -> Tensor:
        """(B,) the prompt of each row; each its own where nobody says and no option asks."""
        if signals.get("group_index") is not None:
            return torch.as_tensor(signals["group_index"])
        if self.needs_whole_groups:
            raise TypeError("these pear options compare a prompt's completions: use EntropyGRPOTrainer (group_index)")
        return torch.arange(rows)

    def _yardstick(self, phases: Phases, group_B: Tensor, gather: Gather | None, training: bool) -> Tensor:
        """H_answer to subtract: a completion without an answer gets 0, whatever the baseline."""
        has_B, whose = phases.answer_tokens > 0, self.expert.answer_baseline
        if whose == "group":
            return torch.where(has_B, group_mean(phases.h_answer, group_B, has_B), 0.0)
        if whose == "ema":
            h_answer_B = torch.where(has_B, phases.h_answer, torch.nan)  # same length on every rank, as gather wants
            return torch.where(has_B, self._average(h_answer_B.tolist(), gather, training), 0.0)
        return phases.h_answer if whose == "sample" else torch.zeros_like(phases.h_answer)

    def _average(self, h_answers: list[float], gather: Gather | None, training: bool) -> float:
        """The average as it stood before this batch (first batch: its own mean), over the completions of all ranks."""
        values = [h for h in (gather(h_answers) if gather else h_answers) if not math.isnan(h)]
        if not values:
            return self._state.ema or 0.0
        mean = math.fsum(values) / len(values)  # exact sum: the same however the rows are spread over ranks
        before = mean if self._state.ema is None else self._state.ema
        if training:
            self._state.ema = self.expert.ema_decay * before + (1 - self.expert.ema_decay) * mean
        return before

    def _refused(self, phases: Phases) -> Tensor:
        """Completions paid as wrong even when correct."""
        short_B = phases.think_tokens < self.min_think_tokens
        return short_B | ~phases.closed if self.missing_close == "format" else short_B

    def _charged(self, phases: Phases, correct_B: Tensor, known_B: Tensor, group_B: Tensor) -> Tensor:
        """Completions that P is asked of."""
        charged_B = phases.closed if self.missing_close == "skip" else torch.ones_like(phases.closed)
        if self.expert.gate_solve_rate is None:
            return charged_B
        return charged_B & (group_mean(correct_B.float(), group_B, known_B) >= self.expert.gate_solve_rate)

    def _reward_metrics(
        self, out: PhaseRewards, known_B: Tensor, correct_B: Tensor, paid_B: Tensor
    ) -> dict[str, float | None]:
        floored_B = torch.zeros_like(paid_B) if self.floor_value is None else self.s - out.cost < self.floor_value
        return {
            "pear/correct": mean_where(correct_B, known_B),  # of the completions whose verdict is known
            "pear/unknown": mean_where(~known_B),
            "pear/refused": mean_where(~paid_B, correct_B),  # correct but paid r_fmt: min_think_tokens, "format"
            "pear/penalty": mean_where(out.penalty, paid_B),  # nats, of those paid
            "pear/penalty_zero": mean_where(out.penalty == 0, paid_B),
            "pear/floored": mean_where(floored_B, paid_B),
        }

    def state_dict(self) -> dict[str, float]:
        return {} if self._state.ema is None else {"ema": self._state.ema}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._state.ema = state.get("ema")


reward = Pear()
