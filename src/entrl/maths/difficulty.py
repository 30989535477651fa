"""How hard a prompt is for the policy right now, and how many high-entropy windows its difficulty is used to.

    easy  3 c >= 2 G      medium  3 c >= G      hard  otherwise        c right answers of G whose verdict is known
    target_d <- decay target_d + (1 - decay) mean over the prompts of bucket d of the prompt's mean count

Whole integers decide the bucket, so no rounding can move a group across a border. The targets are kept across steps,
because a batch of 8 to 32 prompts holds few of each difficulty; a bucket that a batch lacks keeps its target, and one
seen for the first time starts with its own mean.

Every function takes the rows of *all* ranks in any order: sums are exact (`math.fsum`) and groups may lie on several
ranks, so the answer does not depend on how rows were dealt out.

Source:  ARES, arXiv 2510.08457, App. G (buckets of 8); the authors' `update_difficulty_and_skip_gid_set`
Differs: the published targets are the rounded means of one batch and so never disagree with it by more than rounding;
    the EMA is ours
Needs:   nothing
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BUCKETS = ("easy", "medium", "hard")
UNKNOWN = -1  # bucket of a group without a single known verdict


def bucket_of(correct: int, known: int) -> int:
    """Index into `BUCKETS`, from the number of right answers among those with a verdict; UNKNOWN without any."""
    if not 0 <= correct <= known:
        raise ValueError(f"a group has {correct} right answers of {known} known ones; 0 <= right <= known")
    if known == 0:
        return UNKNOWN
    return 0 if 3 * correct >= 2 * known else 1 if 3 * correct >= known else 2


def group_buckets(groups: Sequence[int], verdicts: Sequence[bool | None]) -> dict[int, int]:
    """Group -> bucket, from the verdicts of all its rows; None = verdict not known."""
    right: dict[int, int] = {}
    known: dict[int, int] = {}
    for group, verdict in zip(groups, verdicts, strict=True):
        right[group] = right.get(group, 0) + (verdict is True)
        known[group] = known.get(group, 0) + (verdict is not None)
    return {group: bucket_of(right[group], known[group]) for group in known}


def bucket_means(groups: Sequence[int], values: Sequence[float], buckets: Mapping[int, int]) -> list[float | None]:
    """For each bucket the mean over its prompts of the prompt's mean value; None where no prompt is in it."""
    of_group: dict[int, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        of_group.setdefault(group, []).append(value)
    prompt_means = {group: math.fsum(of) / len(of) for group, of in of_group.items()}
    return [_mean(m for group, m in prompt_means.items() if buckets[group] == d) for d in range(len(BUCKETS))]


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


@dataclass(kw_only=True)
class Targets:
    """target_d in windows per completion, one per bucket; None until the bucket was seen."""

    decay: float = 0.9
    rounded: bool = False  # the published rule: round half to even, no memory
    values: list[float | None] = field(default_factory=lambda: [None] * len(BUCKETS))

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}; 0 forgets every batch but the last")

    def after(self, means: Sequence[float | None]) -> list[float | None]:
        """The targets once a batch with these means was seen; changes nothing."""
        return [self._next(old, new) for old, new in zip(self.values, means, strict=True)]

    def update(self, means: Sequence[float | None]) -> None:
        self.values = self.after(means)

    def _next(self, old: float | None, new: float | None) -> float | None:
        if new is None:
            return old
        if self.rounded:
            return float(round(new))
        return new if old is None else self.decay * old + (1 - self.decay) * new

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = list(state["values"])
