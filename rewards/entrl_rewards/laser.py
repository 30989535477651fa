"""LASER-D: a bonus for correct completions within a length limit that follows difficulty and the policy.

    r(y) = 1 + bonus * 1[n <= L_d]  if correct,  wrong  otherwise          n = the model's own tokens
    d    = easy, medium, hard by the solve rate of the prompt's group of G: >= 2/3, >= 1/3, below
    L_d  = smallest grid length l with  C_d * coverage_d(l) >= 1,  the largest one where none has

    published   C_d = floor(2 G / 3), floor(G / 3), 1: right answers that such a group has at least
                coverage_d(l) = share of all completions of that bucket, right or wrong, with n <= l
    measured    C_d = mean number of correct completions of such a group, coverage_d(l) = share of those with n <= l

With G = 8 `published` is a quantile: the limit covers 1/5 of the lengths of an easy bucket, 1/2 of a medium one, all of
a hard one. `measured` asks whether a group still expects one correct completion within the limit.

State: for each bucket the limit in force and the histograms of lengths since the last refresh, over all ranks.
The first call sets the limits from its own rollouts; after that they are set anew from everything seen since, once
`refresh_steps` optimiser steps have passed. A bucket nothing was seen of keeps its limit (at first the longest one).

Source:  arXiv 2505.15612; hkust-nlp/Laser at 78b09dd, `verl/utils/reward_score/length_penalty.py`
    (`compute_length_reward_larse_d`, `_choose_target_length` with round_method floor) and
    `verl/trainer/ppo/ray_trainer.py` (`_count_accuracy_bands_metrics`)
Differs: the limits come from the training rollouts since the last refresh rather than from 500 training problems that
    are sampled anew every 20 steps (no extra generation), and there is no stage before them with one fixed target.
    Wrong answers earn 0; the source's verifier gives -0.5, and -1 where the box or a thinking tag is missing. Groups at
    1/3 and 2/3 exactly count as medium and easy here throughout; the source's monitoring puts them one bucket lower,
    which no group of 8 meets. A bucket nothing was seen of keeps its limit; the source's has none. `measured` is ours
Needs:   EntropyGRPOTrainer (group_index, gather), whole groups on one rank, and what the verifier needs
"""

import math
from bisect import bisect_left
from collections import Counter
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from entrl.maths.difficulty import BUCKETS, group_buckets
from entrl_rewards.correctness import ACCURACY, Gated, Verifier, judge
from entrl_rewards.options import check_choices, check_ranges
from entrl_rewards.trainer_signals import Gather, LogMetric, optimiser_step, own_lengths

ROUND_OFF = 1e-6  # sums of 1/group size depend on the order in which ranks arrive; must not move a limit


def length_limit(counts: list[float], groups: float, grid: list[int]) -> int:
    """Smallest grid length within which a group expects one of the completions that are counted.

    counts: completions with length in (grid[i-1], grid[i]], one per grid length; longer ones in none.
    groups: what they are shared among. `measured`: the correct ones, among their groups, since C_d * coverage_d(l) is
    the count up to l divided by that; `published`: all of them, among their number divided by C_d.
    """
    within = 0.0
    for length, count in zip(grid, counts, strict=True):
        within += count
        if groups > 0 and within / groups >= 1 - ROUND_OFF:
            return length
    return grid[-1]


def least_correct(bucket: int, size: float) -> int:
    """Right answers that a group of `size` completions has at least in that bucket, as the source counts: 1 or more."""
    lowest = (2 / 3, 1 / 3, 0.0)[bucket]
    return max(1, math.floor(size * lowest + ROUND_OFF))


@dataclass
class LaserState:
    """What a checkpoint holds; one entry per bucket."""

    limits: list[int] = field(default_factory=list)  # L_d in force, tokens
    refreshed: int | None = None  # optimiser step of the last refresh
    groups: list[float] = field(default_factory=list)  # since then
    counts: list[list[float]] = field(default_factory=list)  # correct completions by grid length, since then
    completions: list[float] = field(default_factory=list)  # right or wrong, of any length, since then
    lengths: list[list[float]] = field(default_factory=list)  # the same by grid length

    def empty_pool(self, grid: list[int]) -> None:
        self.groups, self.completions = [0.0] * len(BUCKETS), [0.0] * len(BUCKETS)
        self.counts, self.lengths = ([[0.0] * len(grid) for _ in BUCKETS] for _ in range(2))

    def refresh(self, step: int, grid: list[int], rule: str) -> None:
        """A bucket nothing was seen of keeps its limit."""
        for d, groups in enumerate(self.groups):
            if groups > 0:
                self.limits[d] = (
                    self._limit(d, grid) if rule == "published" else length_limit(self.counts[d], groups, grid)
                )
        self.refreshed = step
        self.empty_pool(grid)

    def _limit(self, d: int, grid: list[int]) -> int:
        seen = self.completions[d]
        return length_limit(self.lengths[d], seen / least_correct(d, seen / self.groups[d]), grid)


@dataclass(frozen=True, kw_only=True)
class LaserD(Gated):
    """Correctness and length bonus in one number, as EntropyGRPOTrainer calls it; None where the verdict is unknown."""

    __name__: ClassVar[str] = "laser_d"
    needs: ClassVar[tuple[str, ...]] = ("group_index", "token_mask", "gather")
    needs_whole_groups: ClassVar[bool] = True

    bonus: float = 0.5  # the source's
    max_length: int = 8192  # tokens, longest limit; set it to the trainer's max_completion_length
    grid_step: int = 128  # tokens between grid lengths
    refresh_steps: int = 20  # optimiser steps
    rule: Literal["published", "measured"] = "published"  # how a limit is found
    wrong: float = 0.0  # what a wrong completion earns; the source's verifier gives -0.5
    correctness: Verifier = ACCURACY

    _state: LaserState = field(default_factory=LaserState, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        rules = {
            "wrong": (self.wrong < 1, "< 1, what a correct completion earns"),
            "bonus": (self.bonus >= 0, ">= 0; a negative one would pay for length"),
            "grid_step": (1 <= self.grid_step <= self.max_length, f"in [1, max_length={self.max_length}] tokens"),
            "refresh_steps": (self.refresh_steps >= 1, ">= 1 optimiser step"),
        }
        check_ranges(self, rules)
        self._state.limits = [self.max_length] * len(BUCKETS)
        self._state.empty_pool(self.grid)

    @property
    def grid(self) -> list[int]:
        """grid_step, 2 grid_step, ... and max_length itself."""
        return [*range(self.grid_step, self.max_length, self.grid_step), self.max_length]

    @property
    def limits(self) -> dict[str, int]:
        """L_d in force, tokens."""
        return dict(zip(BUCKETS, self._state.limits, strict=True))

    def __call__(
        self,
        *,
        completions: list[Any],
        completion_ids: list[list[int]],
        group_index: list[int] | None = None,
        token_mask: Any = None,
        gather: Gather | None = None,
        trainer_state: Any = None,
        log_metric: LogMetric | None = None,
        training: bool = True,
        **columns: Any,
    ) -> list[float | None]:
        if group_index is None:
            raise TypeError("laser_d needs group_index, which stock TRL does not pass; use EntropyGRPOTrainer")
        columns |= {"completion_ids": completion_ids, "log_metric": log_metric, "trainer_state": trainer_state}
        verdicts = judge(self.correctness, completions=completions, **columns)
        lengths, groups = own_lengths(completion_ids, token_mask), [int(g) for g in group_index]
        bucket_of = group_buckets(groups, verdicts)
        buckets = [bucket_of[g] for g in groups]  # a group without any verdict is in the last: it is paid nothing
        if training:
            known = Counter(g for g, v in zip(groups, verdicts, strict=True) if v is not None)
            facts = self._facts(verdicts, lengths, buckets, [known[g] for g in groups])
            self._learn(gather(facts) if gather else facts, optimiser_step(trainer_state))
        within = [n <= self._state.limits[b] for n, b in zip(lengths, buckets, strict=True)]
        if log_metric is not None:
            self._log(log_metric, within, verdicts)
        paid = [1.0 + self.bonus * w if v else self.wrong for v, w in zip(verdicts, within, strict=True)]
        return [None if v is None else r for v, r in zip(verdicts, paid, strict=True)]

    @staticmethod
    def _facts(verdicts: list[bool | None], lengths: list[int], buckets: list[int], known: list[int]) -> list[float]:
        """Four floats per completion, so that every rank gathers equally many: bucket, share of a group, right, length.

        An unknown verdict has share 0 and teaches nothing.
        """
        rows = zip(buckets, verdicts, known, lengths, strict=True)
        facts = [(b, 0.0 if v is None else 1 / of, v is True, n) for b, v, of, n in rows]
        return [float(x) for fact in facts for x in fact]

    def _learn(self, facts: list[float], step: int) -> None:
        state, grid = self._state, self.grid
        for bucket, share, right, length in zip(*(facts[i::4] for i in range(4)), strict=True):
            if share == 0:
                continue
            d, at = int(bucket), bisect_left(grid, length)
            state.groups[d] += share
            state.completions[d] += 1.0
            if at < len(grid):
                state.lengths[d][at] += 1.0
                state.counts[d][at] += right
        if state.refreshed is None or step - state.refreshed >= self.refresh_steps:
            state.refresh(step, grid, self.rule)

    def _log(self, log_metric: LogMetric, within: list[bool], verdicts: list[bool | None]) -> None:
        for name, limit in self.limits.items():
            log_metric(f"laser_d/limit_{name}", float(limit))
        fits = [w for w, v in zip(within, verdicts, strict=True) if v]
        if fits:
            log_metric("laser_d/correct_within_limit", sum(fits) / len(fits))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["counts"][0]) != len(self.grid):
            raise ValueError(
                f"the saved state has {len(state['counts'][0])} grid lengths, these options {len(self.grid)}; resume "
                "with the max_length and grid_step of the run that saved it"
            )
        vars(self._state).update(deepcopy(state))


laser_d = LaserD()
reward = laser_d
