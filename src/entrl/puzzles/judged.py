"""What became of one answer, and what many of them come to."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

TRUNCATED = "unfinished"  # the one error that is no mistake


@dataclass(frozen=True, kw_only=True)
class Judged:
    solved: bool
    error: str | None = None  # its class (docs/puzzles.md); None where solved
    index: int | None = None  # of the move at fault, or of the path's step, from 0; None where no single one is
    length: int = 0  # moves, or steps of a path, that could be read
    why: str = ""

    @property
    def legal(self) -> float | None:
        """Share of the plan before the move at fault; None where there is no plan, or no path between the ends."""
        if not self.length or self.error == "unusable":
            return None
        return 1.0 if self.index is None else self.index / self.length

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def summary(judged: Sequence[Judged], levels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """level -> answers, share solved, share truncated, mean index of the first illegal move, mean share of a plan that
    is legal, counts of errors.

    The means are over answers that have an index, or a plan (None where none has); `solved` is a share of all answers,
    truncated ones too. Levels stand in the order of their first answer.
    """
    groups: dict[str, list[Judged]] = {}
    for one, level in zip(judged, levels, strict=True):
        groups.setdefault(level, []).append(one)
    return {level: _summary(group) for level, group in groups.items()}


def _summary(group: Sequence[Judged]) -> dict[str, Any]:
    errors = [one.error for one in group if one.error not in (None, TRUNCATED)]
    indices = [one.index for one in group if one.index is not None]
    legal = [one.legal for one in group if one.legal is not None]
    return {
        "answers": len(group),
        "solved": fmean(one.solved for one in group),
        "truncated": fmean(one.error == TRUNCATED for one in group),
        "first_illegal_move": fmean(indices) if indices else None,
        "legal_share": fmean(legal) if legal else None,
        "errors": {error: errors.count(error) for error in sorted(set(errors))},
    }
