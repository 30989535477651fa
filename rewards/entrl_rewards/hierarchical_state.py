"""What the ARES reward carries from batch to batch: threshold, targets, and where asked alpha and lambda.

One `Facts` per completion of all ranks goes in; what holds for this batch comes out. Rows may come in any order and
groups may lie on several ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from entrl.maths.difficulty import BUCKETS, Targets, bucket_means, group_buckets
from entrl.maths.windows import ThresholdEMA
from entrl_rewards.hierarchical_formulas import HARD, paper_lambda
from entrl_rewards.hierarchical_options import Rules
from entrl_rewards.trainer_signals import Gather

DUAL_MINIMUM = 8  # completions of a bucket before its lambda moves, as published


class Facts(NamedTuple):
    """One completion, in numbers that every rank can gather."""

    group: int
    verdict: float  # 1, 0, or -1: not known
    count: int  # high-entropy windows
    soft_cost: float  # nats
    tokens: int

    @property
    def known(self) -> bool | None:
        return None if self.verdict < 0 else self.verdict > 0


def gathered(facts: Sequence[Facts], gather: Gather | None) -> list[Facts]:
    """The facts of every rank; as they are without a `gather`."""
    if gather is None:
        return list(facts)
    flat = gather([float(x) for fact in facts for x in fact])
    rows = zip(*(flat[i :: len(Facts._fields)] for i in range(len(Facts._fields))), strict=True)
    return [Facts(int(g), v, int(n), c, int(t)) for g, v, n, c, t in rows]


class Standing(NamedTuple):
    """What one batch is judged by."""

    bucket: dict[int, int]  # of each group
    target: list[float | None]  # of each bucket; None = never seen
    alpha: list[float]
    weight: list[float]  # lambda


@dataclass(kw_only=True)
class State:
    """Everything that a checkpoint must hold. alpha and lambda: one per bucket."""

    threshold: ThresholdEMA = field(default_factory=ThresholdEMA)
    targets: Targets = field(default_factory=Targets)
    alpha: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=lambda: [0.0] * len(BUCKETS))
    budget: list[float | None] = field(default_factory=lambda: [None] * len(BUCKETS))
    word_ids: dict[int, frozenset[int]] = field(default_factory=dict)  # of triggers by tokenizer; not in a checkpoint

    def start(self, rules: Rules, *, threshold_decay: float) -> None:
        """As before the first batch."""
        self.threshold = ThresholdEMA(decay=threshold_decay)
        self.targets = Targets(decay=rules.target_decay, rounded=rules.rounded_target)
        self.alpha = [rules.alpha] * len(BUCKETS)

    def see(self, facts: Sequence[Facts], rules: Rules, *, alpha_range: tuple[float, float], keep: bool) -> Standing:
        """Learn from a batch, then say what it is judged by; `keep=False` (evaluation) leaves the state as it was."""
        groups = [f.group for f in facts]
        bucket = group_buckets(groups, [f.known for f in facts])
        means = bucket_means(groups, [f.count for f in facts], bucket)
        target = self.targets.after(means)
        if not keep:
            return self.standing(bucket)._replace(target=target)
        if rules.lambda_mode == "external":  # against the targets before this batch; against its own the numerator is 0
            self.weight = [self._external(facts, bucket, d) for d in range(len(BUCKETS))]
        self.targets.update(means)
        if rules.lambda_mode == "dual_ascent":
            self._ascend(facts, bucket, target)
        for d, (mean, goal) in enumerate(zip(means, target, strict=True)):
            if rules.alpha_rate and mean is not None and goal is not None:
                lack = goal - mean if d == HARD else mean - goal
                self.alpha[d] = min(max(self.alpha[d] + rules.alpha_rate * lack, alpha_range[0]), alpha_range[1])
        return self.standing(bucket)

    def standing(self, bucket: dict[int, int] | None = None) -> Standing:
        """What the state says now."""
        return Standing(bucket or {}, list(self.targets.values), list(self.alpha), list(self.weight))

    def _external(self, facts: Sequence[Facts], bucket: dict[int, int], d: int) -> float:
        counts = sorted(f.count for f in facts if bucket[f.group] == d)
        goal = self.targets.values[d]
        return self.weight[d] if not counts or goal is None else paper_lambda(counts, goal)

    def _ascend(self, facts: Sequence[Facts], bucket: dict[int, int], target: Sequence[float | None]) -> None:
        """Published dual ascent; the budget of a bucket is its target when it was first seen."""
        for d, goal in enumerate(target):
            self.budget[d] = goal if self.budget[d] is None else self.budget[d]
            costs = [f.soft_cost for f in facts if bucket[f.group] == d]
            limit = self.budget[d]
            if limit is not None and len(costs) >= DUAL_MINIMUM:
                step = 0.01 * (math.fsum(costs) / len(costs) - limit)
                self.weight[d] = min(max(self.weight[d] + step, 0.0), 10.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold.state_dict(),
            "targets": self.targets.state_dict(),
            "alpha": list(self.alpha),
            "weight": list(self.weight),
            "budget": list(self.budget),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self.targets.load_state_dict(state["targets"])
        self.alpha, self.weight, self.budget = (list(state[k]) for k in ("alpha", "weight", "budget"))


def bucket_metrics(facts: Sequence[Facts], standing: Standing, prefix: str) -> dict[str, float]:
    """prefix/easy/prompts, /accuracy, /length, /windows, /target, /alpha, and the same for medium and hard."""
    out: dict[str, float] = {}
    for d, name in enumerate(BUCKETS):
        mine = [f for f in facts if standing.bucket[f.group] == d]
        out[f"{prefix}/{name}/prompts"] = float(sum(b == d for b in standing.bucket.values()))
        out[f"{prefix}/{name}/alpha"] = standing.alpha[d]
        goal = standing.target[d]
        if goal is not None:
            out[f"{prefix}/{name}/target"] = goal
        if not mine:
            continue
        out[f"{prefix}/{name}/accuracy"] = fmean(f.known is True for f in mine if f.known is not None)
        out[f"{prefix}/{name}/length"] = fmean(f.tokens for f in mine)
        out[f"{prefix}/{name}/windows"] = fmean(f.count for f in mine)
    return out


def inversions(groups: Sequence[int], verdicts: Sequence[bool | None], rewards: Sequence[float]) -> float | None:
    """Share of the wrong answers, in groups that also have right ones, that earn more than the worst right one."""
    worst_right: dict[int, float] = {}
    for group, verdict, reward in zip(groups, verdicts, rewards, strict=True):
        if verdict:
            worst_right[group] = min(reward, worst_right.get(group, math.inf))
    rivals = [
        reward > worst_right[group]
        for group, verdict, reward in zip(groups, verdicts, rewards, strict=True)
        if verdict is False and group in worst_right
    ]
    return fmean(rivals) if rivals else None
