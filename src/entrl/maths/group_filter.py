"""Group filter: which prompts of a rollout are worth training on, by their completions' accuracy or reward spread.

    accuracy   low < mean score of the group's completions < high
    reward     std of the group's rewards > min_std

Scores and rewards are the group's own, all of its completions, after everything that shapes rewards has run: what is
filtered are finished groups, and state that rewards keep (difficulties, targets, thresholds) has seen all of them. The
accuracy bounds are compared in exact arithmetic, 0.01 being 1/100, so no rounding decides for a group at the border.
A completion without a verdict is left out of the mean, one without a reward out of the spread.

Source:  DAPO (arXiv 2503.14476) 3.2, dynamic sampling: prompts with accuracy 0 or 1 are drawn again; the bounds and the
    limit of 20 generations are those of ARES' released config (shawn0728/ARES at 146620e)
Differs: ARES filters on the mean of the shaped reward, computed before the difficulty that shapes it is known (methods
    card, section 7). Accuracy here is accuracy, and `reward` looks at the spread, which is what a group trains with
Needs:   nothing; `entrl.trainers.grpo.group_filter` draws the new prompts

On `accuracy` a group of right answers goes although a reward may rank them (PEAR does nothing else there): where that
is meant to train, filter on `reward`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import stdev
from typing import Literal

On = Literal["accuracy", "reward"]
Verdict = Literal["kept", "too_hard", "too_easy", "unknown", "flat"]
VERDICTS: tuple[Verdict, ...] = ("kept", "too_hard", "too_easy", "unknown", "flat")


def accuracy_verdict(scores: Sequence[float | None], *, low: float, high: float) -> Verdict:
    """Where the mean of the known scores lies; `unknown` without a single one."""
    known = [Fraction(s) for s in scores if s is not None]
    if not known:
        return "unknown"
    mean = sum(known) / len(known)
    if mean <= _exact(low):
        return "too_hard"
    return "too_easy" if mean >= _exact(high) else "kept"


def spread_verdict(rewards: Sequence[float | None], *, min_std: float) -> Verdict:
    """`flat` where the sample standard deviation (n - 1) of the rewards is at most `min_std`, or fewer than two are."""
    given = [r for r in rewards if r is not None]
    if not given:
        return "unknown"
    return "kept" if len(given) > 1 and stdev(given) > min_std else "flat"


def _exact(bound: float) -> Fraction:
    """The number as it was written: 0.01 is 1/100, not the nearest binary fraction."""
    return Fraction(repr(float(bound)))


@dataclass(frozen=True, kw_only=True)
class GroupFilter:
    """The rule, and how long to look for groups that pass it."""

    on: On
    low: float = 0.01  # mean score; both bounds are outside
    high: float = 0.99
    min_std: float = 0.0  # reward units
    max_tries: int = 20  # generations per rollout, the first included
    on_exhausted: Literal["keep", "error"] = "keep"  # keep: the places left are trained with what was rejected there

    def __post_init__(self) -> None:
        if self.on not in ("accuracy", "reward"):
            raise ValueError(f"filter_on must be accuracy, reward or null, got {self.on!r}")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"0 <= filter_low < filter_high <= 1 is needed, got {self.low} and {self.high}")
        if not 0 <= self.min_std < math.inf:
            raise ValueError(f"filter_min_std must be finite and >= 0, got {self.min_std}")
        if isinstance(self.max_tries, bool) or self.max_tries < 1:
            raise ValueError(f"filter_max_tries counts generations, the first included: >= 1, got {self.max_tries}")
        if self.on_exhausted not in ("keep", "error"):
            raise ValueError(f"on_exhausted must be keep or error, got {self.on_exhausted!r}")

    def verdict(self, scores: Sequence[float | None], rewards: Sequence[float | None]) -> Verdict:
        """What becomes of a group with these scores (accuracy) and rewards, one each per completion."""
        if self.on == "accuracy":
            return accuracy_verdict(scores, low=self.low, high=self.high)
        return spread_verdict(rewards, min_std=self.min_std)

    def groups_to_draw(self, missing: int, *, kept: int, seen: int, most: int) -> int:
        """How many prompts a rank draws next, so that at the pass rate so far the `missing` of one rank are found.

        kept, seen: groups of this rollout over all ranks. At least 1, at most `most`, a whole rollout's.
        """
        return max(1, min(most, math.ceil(missing * seen / kept) if kept else most))
