"""Of sampled answers to puzzles (docs/puzzles.md): which errors they have, and how much of each plan was legal.

    errors         error -> share of all sampled answers
    legal_share    index of the first move at fault / moves of the plan, 1 where none is; mean over a problem's answers
                   that have a plan, then over problems
    plans          level -> `entrl.puzzles.summary`

Source:  The Illusion of Thinking: where in a plan the first illegal move stands, by size
Needs:   rows whose verifier is a puzzle's or a graph's; other rows have none of this
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from entrl.puzzles import KINDS, Judged, summary
from entrl.verify.judge import judged_plan

KEPT = ("solved", "error", "index", "length")


def judged_answers(row: Mapping[str, Any], answers: Sequence[str]) -> list[dict[str, Any]] | None:
    """What a problem's record keeps of its sampled answers; None for a row of another kind."""
    verifier = row.get("verifier")
    spec = json.loads(verifier) if isinstance(verifier, str) and verifier else verifier or {}
    if spec.get("kind") not in KINDS:
        return None
    return [{key: getattr(judged_plan(answer, spec), key) for key in KEPT} for answer in answers]


def legal_share(judged: Sequence[Mapping[str, Any]]) -> float | None:
    """Of one problem; None where no answer has a plan."""
    shares = [share for one in judged if (share := Judged(**one).legal) is not None]
    return fmean(shares) if shares else None


def plan_numbers(kept: Sequence[Sequence[Mapping[str, Any]] | None], levels: Sequence[str]) -> dict[str, Any]:
    """The keys of the result, of what the records keep; {} where no row is a puzzle's."""
    pairs = [(judged, level) for judged, level in zip(kept, levels, strict=True) if judged is not None]
    if not pairs:
        return {}
    drawn = [Judged(**one) for judged, _ in pairs for one in judged]
    errors = Counter(one.error for one in drawn if one.error is not None)
    shares = [share for judged, _ in pairs if (share := legal_share(judged)) is not None]
    return {
        "errors": {error: count / len(drawn) for error, count in sorted(errors.items())},
        "legal_share": fmean(shares) if shares else None,
        "plans": summary(drawn, [level for judged, level in pairs for _ in judged]),
    }
