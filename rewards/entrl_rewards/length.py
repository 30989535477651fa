"""Length rewards: the baselines an entropy reward must beat, since both make completions shorter.

    SoftOverlong   0 up to L_max - L_cache, then linear to -1 at L_max, -1 beyond            added to another reward
    L1Exact        1[correct] - a |n_target - n|
    L1Max          1[correct] * (clip(a (n_max - n), -1, 1) + 1) / 2      or 1[correct] + the same, combine="add"
    LaserD         see `entrl_rewards.laser`: 1[correct] + 0.5 for a correct completion within its difficulty's limit

n counts the model's own tokens: a tool's tokens are left out where the trainer says which they are (`token_mask`).

Source:  SoftOverlong: DAPO, arXiv 2503.14476, Eq. 13. L1: LCPO, arXiv 2503.04697; cmu-l3/l1 `math_reward.py` and
    `run_l1_exact.sh` (a = 3e-4), read through a written summary of them
Differs: SoftOverlong equals TRL's `get_soft_overlong_punishment` (a test compares them) except that it leaves out tool
    tokens and takes its two lengths as checked options; it is written again because rewards here do not import trl.
    L1Max: a = 3e-4 is the exact form's constant; public copies of the authors' function have 1/500
Needs:   L1: the target column (`target_length`, tokens) or a fixed `target`, and what the verifier needs
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from entrl_rewards.correctness import ACCURACY, Gated, Verifier, judge
from entrl_rewards.laser import LaserD, laser_d
from entrl_rewards.options import check_choices, check_ranges
from entrl_rewards.trainer_signals import own_lengths

__all__ = ["L1Exact", "L1Max", "LaserD", "SoftOverlong", "l1_exact", "l1_max", "laser_d", "reward", "soft_overlong"]


def overlong_punishment(length: int, *, max_length: int, cache: int) -> float:
    """DAPO Eq. 13: in [-1, 0]."""
    if length > max_length:
        return -1.0
    return min(0.0, (max_length - cache - length) / cache) if cache else 0.0


def l1_exact_reward(correct: bool, length: int, target: int, *, a: float) -> float:
    """Correctness minus the distance to the length asked for."""
    return float(correct) - a * abs(target - length)


def l1_max_reward(correct: bool, length: int, limit: int, *, a: float, combine: str) -> float:
    """In [0, 1] for "multiply", [0, 2] for "add"."""
    room = (min(1.0, max(-1.0, a * (limit - length))) + 1) / 2
    return float(correct) * room if combine == "multiply" else float(correct) + room


@dataclass(frozen=True, kw_only=True)
class SoftOverlong:
    """`overlong_punishment` as TRL calls it; for any trainer, beside an accuracy reward."""

    __name__: ClassVar[str] = "soft_overlong"
    needs: ClassVar[tuple[str, ...]] = ("token_mask",)

    max_length: int = 20480  # L_max in tokens, DAPO's: its 16384 expected plus the cache
    cache: int = 4096  # L_cache in tokens, DAPO's

    def __post_init__(self) -> None:
        if not 0 <= self.cache <= self.max_length:
            raise ValueError(f"cache must be between 0 and max_length={self.max_length} tokens, got {self.cache}")

    def __call__(self, *, completion_ids: list[list[int]], token_mask: Any = None, **_: object) -> list[float]:
        lengths = own_lengths(completion_ids, token_mask)
        return [overlong_punishment(n, max_length=self.max_length, cache=self.cache) for n in lengths]


@dataclass(frozen=True, kw_only=True)
class L1Options(Gated):
    """What both forms of L1 take."""

    needs: ClassVar[tuple[str, ...]] = ("token_mask",)

    a: float = 3e-4  # reward per token of distance (exact), of room (max, see Differs)
    target: int | None = None  # tokens, n_target or n_max; None: the dataset column
    column: str = "target_length"
    correctness: Verifier = ACCURACY

    def __post_init__(self) -> None:
        check_choices(self)
        rules = {
            "a": (self.a > 0, "> 0 reward per token"),
            "target": (self.target is None or self.target >= 1, ">= 1 token, or null for the dataset column"),
        }
        check_ranges(self, rules)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data set columns training cannot do without."""
        return (*super().columns, *([self.column] if self.target is None else []))

    def rows(self, completions: list[Any], signals: dict[str, Any]) -> list[tuple[bool | None, int, int]]:
        """(verdict, length, target) of each completion."""
        if self.target is None and self.column not in signals:
            raise ValueError(f"no target length: the dataset has no column {self.column!r}; add it, or set target")
        goals: Sequence[int] = signals[self.column] if self.target is None else [self.target] * len(completions)
        lengths = own_lengths(signals["completion_ids"], signals.get("token_mask"))
        return list(zip(judge(self.correctness, completions=completions, **signals), lengths, goals, strict=True))


@dataclass(frozen=True, kw_only=True)
class L1Exact(L1Options):
    """`l1_exact_reward` as TRL calls it; None where the verifier does not know."""

    __name__: ClassVar[str] = "l1_exact"

    def __call__(self, *, completions: list[Any], **signals: Any) -> list[float | None]:
        rows = self.rows(completions, signals)
        return [None if c is None else l1_exact_reward(c, n, goal, a=self.a) for c, n, goal in rows]


@dataclass(frozen=True, kw_only=True)
class L1Max(L1Options):
    """`l1_max_reward` as TRL calls it; None where the verifier does not know."""

    __name__: ClassVar[str] = "l1_max"

    combine: Literal["multiply", "add"] = "multiply"

    def __call__(self, *, completions: list[Any], **signals: Any) -> list[float | None]:
        rows = self.rows(completions, signals)
        return [None if c is None else l1_max_reward(c, n, m, a=self.a, combine=self.combine) for c, n, m in rows]


soft_overlong = SoftOverlong()
l1_exact = L1Exact()
l1_max = L1Max()
reward = soft_overlong
