"""LASER-D: a bonus for correct completions within a length limit that follows difficulty and the policy.

    r(y) = 1[correct] + bonus * 1[correct and n <= L_d]          n = the model's own tokens
    d    = easy, medium, hard by the solve rate of the prompt's group: >= 2/3, >= 1/3, below
    L_d  = smallest grid length l with  C_d * coverage_d(l) >= 1,  the largest one where none has

C_d is the mean number of correct completions in a group of bucket d, coverage_d(l) the share of that bucket's correct
completions with n <= l: at L_d a group still expects one correct completion within the limit.

State: for each bucket the limit in force and the histogram of correct lengths since the last refresh, over all ranks.
The first call sets the limits from its own rollouts; after that they are set anew from everything seen since, once
`refresh_steps` optimiser steps have passed. A bucket nothing was seen of keeps its limit (at first the longest one).

Source:  arXiv 2505.15612; hkust-nlp/Laser `length_penalty.py`, read through a written summary of it
Differs: the limits come from the training rollouts since the last refresh rather than from a monitoring set that is
    sampled for the purpose (no extra generation); grid and refresh interval are ours, the source's were not established
Needs:   EntropyGRPOTrainer (group_index, gather), whole groups on one rank, and what the verifier needs
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from entrl.maths.difficulty import BUCKETS
from entrl_rewards.correctness import ACCURACY, Gated, Verifier, columns_of, judge
from entrl_rewards.groups import group_mean
from entrl_rewards.model_length import model_lengths

SOLVE_RATES = (2 / 3, 1 / 3)  # from here up easy, from here up medium
ROUND_OFF = 1e-6  # sums of 1/group size depend on the order in which ranks arrive; must not move a limit


def bucket_of(solve_rate: float) -> int:
    """Index into `BUCKETS`."""
    return sum(solve_rate < rate - ROUND_OFF for rate in SOLVE_RATES)


def length_limit(counts: list[float], groups: float, grid: list[int]) -> int:
    """Smallest grid length within which a group expects one correct completion.

    counts: correct completions with length in (grid[i-1], grid[i]], one per grid length; longer ones in none.
    groups: how many groups they came from. C_d * coverage_d(l) is the count up to l divided by `groups`.
    """
    within = 0.0
    for length, count in zip(grid, counts, strict=True):
        within += count
        if groups > 0 and within / groups >= 1 - ROUND_OFF:
            return length
    return grid[-1]


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
    correctness: Verifier = ACCURACY

    _state: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bonus < 0:
            raise ValueError(f"bonus must be >= 0, got {self.bonus}; a negative one would pay for length")
        if not 1 <= self.grid_step <= self.max_length:
            raise ValueError(f"grid_step must be in [1, max_length={self.max_length}] tokens, got {self.grid_step}")
        if self.refresh_steps < 1:
            raise ValueError(f"refresh_steps must be >= 1 optimiser step, got {self.refresh_steps}")
        self._state.update(limits=[self.max_length] * 3, refreshed=None, **self._empty_pool())

    @property
    def columns(self) -> tuple[str, ...]:
        """Data set columns training cannot do without."""
        return columns_of(self.correctness)

    @property
    def grid(self) -> list[int]:
        """grid_step, 2 grid_step, ... and max_length itself."""
        return [*range(self.grid_step, self.max_length, self.grid_step), self.max_length]

    @property
    def limits(self) -> dict[str, int]:
        """L_d in force, tokens."""
        return dict(zip(BUCKETS, self._state["limits"], strict=True))

    def __call__(
        self,
        *,
        completions: list[Any],
        completion_ids: list[list[int]],
        group_index: list[int] | None = None,
        token_mask: Any = None,
        gather: Callable[[list[float]], list[float]] | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        training: bool = True,
        **columns: Any,
    ) -> list[float | None]:
        if group_index is None:
            raise TypeError("laser_d needs group_index, which stock TRL does not pass; use EntropyGRPOTrainer")
        columns |= {"completion_ids": completion_ids, "log_metric": log_metric, "trainer_state": trainer_state}
        verdicts = judge(self.correctness, completions=completions, **columns)
        lengths = model_lengths(completion_ids, token_mask)
        buckets, shares = self._buckets(verdicts, torch.as_tensor(group_index))
        if training:
            facts = self._facts(verdicts, lengths, buckets, shares)
            self._learn(gather(facts) if gather else facts, trainer_state)
        within = [n <= self._state["limits"][b] for n, b in zip(lengths, buckets, strict=True)]
        if log_metric is not None:
            self._log(log_metric, within, verdicts)
        paid = [1.0 + self.bonus * fits for fits in within]
        return [None if v is None else r * v for v, r in zip(verdicts, paid, strict=True)]

    def _buckets(self, verdicts: list[bool | None], group_B: torch.Tensor) -> tuple[list[int], list[float]]:
        """Bucket of each completion, and the share of its group it stands for (1 / verdicts known in the group)."""
        known_B = torch.tensor([v is not None for v in verdicts])
        correct_B = torch.tensor([float(v is True) for v in verdicts])
        rate_B = group_mean(correct_B, group_B, known_B)
        known_in_group = [int((known_B & (group_B == g)).sum()) for g in group_B]
        return [bucket_of(rate) for rate in rate_B.tolist()], [1.0 / max(1, n) for n in known_in_group]

    @staticmethod
    def _facts(verdicts: list[bool | None], lengths: list[int], buckets: list[int], shares: list[float]) -> list[float]:
        """Three floats per completion, so that every rank gathers equally many: bucket, share, length.

        An unknown verdict has share 0 and teaches nothing; a wrong completion has length -1.
        """
        facts: list[float] = []
        for verdict, length, bucket, share in zip(verdicts, lengths, buckets, shares, strict=True):
            facts += [bucket, 0.0 if verdict is None else share, length if verdict else -1]
        return [float(x) for x in facts]

    def _empty_pool(self) -> dict[str, Any]:
        return {"groups": [0.0] * 3, "counts": [[0.0] * len(self.grid) for _ in BUCKETS]}

    def _learn(self, facts: list[float], trainer_state: Any) -> None:
        state, grid = self._state, torch.tensor(self.grid)
        for bucket, share, length in zip(facts[::3], facts[1::3], facts[2::3], strict=True):
            state["groups"][int(bucket)] += share
            if 0 <= length <= self.max_length:
                state["counts"][int(bucket)][int(torch.searchsorted(grid, int(length)))] += 1.0
        step = int(getattr(trainer_state, "global_step", 0) or 0)
        if state["refreshed"] is None or step - state["refreshed"] >= self.refresh_steps:
            for d in range(3):
                if state["groups"][d] > 0:
                    state["limits"][d] = length_limit(state["counts"][d], state["groups"][d], self.grid)
            state.update(refreshed=step, **self._empty_pool())

    def _log(self, log_metric: Callable[[str, float], None], within: list[bool], verdicts: list[bool | None]) -> None:
        for name, limit in self.limits.items():
            log_metric(f"laser_d/limit_{name}", float(limit))
        fits = [w for w, v in zip(within, verdicts, strict=True) if v]
        if fits:
            log_metric("laser_d/correct_within_limit", sum(fits) / len(fits))

    def state_dict(self) -> dict[str, Any]:
        return {**self._state, "limits": list(self._state["limits"]), "groups": list(self._state["groups"])} | {
            "counts": [list(row) for row in self._state["counts"]]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["counts"][0]) != len(self.grid):
            raise ValueError(
                f"the saved state has {len(state['counts'][0])} grid lengths, these options {len(self.grid)}; resume "
                "with the max_length and grid_step of the run that saved it"
            )
        self._state.update(state, limits=list(state["limits"]), groups=list(state["groups"]))
        self._state["counts"] = [list(row) for row in state["counts"]]


laser_d = LaserD()
reward = laser_d
