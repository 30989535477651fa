"""Every arm against a reference on each level of difficulty: accuracy, length; and what training generated.

A level is the `level` of the evaluated problems (for sums: the number of terms), easiest first. Differences are taken
problem by problem, clustered by seed and by problem, as in `comparison`. The question a difficulty-aware reward is
asked: does it shorten the easiest level and not the hardest, with accuracy held on all? Words of the answer, from each
difference's own 95 % interval, which is not adjusted for the number of arms:

    shorter     the interval of the length difference lies below 0         longer   above 0
    held        the interval of sampled accuracy lies above -margin

"Hard not shorter" is said where the hardest level's interval lies above the easiest's: not telling the two apart is not
enough. In the tables p is adjusted by Holm over the arms.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entrl.report.metrics import named
from entrl_lab.replicate.analyses.comparison import by_problem_difference, by_seed_difference, judged, score_of
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, evaluation, rows

TITLE = "By difficulty"
PAPER = (
    "ARES answers easy problems shorter and hard ones longer at higher accuracy than its cold start (Table 4); against "
    "GRPO its entropy shaping gains 1.8 points on average, with dynamic KL 2.3 (Table 5; no seeds or intervals)."
)
SCORES = {
    "greedy_accuracy": named("greedy_accuracy"),
    "sampled_accuracy": named("sampled_accuracy"),
    "length": named("mean_length_sampled"),
}


def analyse(
    runs: TaskRuns, *, arms: list[str] | None = None, reference: str | None = None, margin: float | None = None
) -> dict[str, Any]:
    """arms: None = all but the reference. reference: None = the study's. margin: of accuracy on one level."""
    runs = dataclasses.replace(
        runs, reference=reference or runs.reference, margin=runs.margin if margin is None else margin
    )
    names = [a for a in (arms or runs.folders) if a != runs.reference]
    if not names:
        raise NotMeasured("no arm beside the reference")
    levels = _levels(next(iter(runs.arm(runs.reference).values())))
    metrics: dict[str, dict[str, Any]] = {}
    for metric, number in SCORES.items():
        margin = runs.margin if number.more_is_better else None
        for level in levels:
            found = {n: by_problem_difference(runs, n, _on(level, score_of(number))) for n in names}
            metrics[f"{metric}, level {level}"] = judged(found, margin, number.unit)
    spent = {n: by_seed_difference(runs, n, _tokens) for n in names}
    metrics["tokens generated"] = judged(spent, None, "tokens")
    metrics = {name: block for name, block in metrics.items() if block["arms"]}
    answers = {n: _answer(metrics, n, levels, runs.margin) for n in names}
    return {
        "reference": runs.reference,
        "margin": runs.margin,
        "levels": levels,
        "metrics": metrics,
        "answers": answers,
        "saw": "; ".join(f"{n}: {_lengths(metrics, n, levels)}" for n in names),
        "verdict": "; ".join(f"{n}: {answer}" for n, answer in answers.items()),
    }


def _levels(folder: Path) -> list[str]:
    found = {str(p.get("level", "")) for p in evaluation(folder)["problems"]} - {""}
    if len(found) < 2:
        raise NotMeasured(f"the evaluated problems have {len(found)} level(s); evaluate a task with several")
    return sorted(found, key=lambda level: (float(level) if level.replace(".", "", 1).isdigit() else math.inf, level))


def _on(level: str, score: Any) -> Any:
    return lambda p: score(p) if str(p.get("level", "")) == level else math.nan


def _tokens(folder: Path) -> float | None:
    """Completion tokens written in training, a prefix that several completions share once."""
    train = rows(folder)
    return float(train[-1]["tokens"]) if train and "tokens" in train[-1] else None


def _of(metrics: Mapping[str, Any], metric: str, level: str, arm: str) -> dict[str, Any] | None:
    return metrics.get(f"{metric}, level {level}", {}).get("arms", {}).get(arm)


def _lengths(metrics: Mapping[str, Any], arm: str, levels: Sequence[str]) -> str:
    cells = [
        f"{d['diff']:+.1f} [{d['lo']:+.1f}, {d['hi']:+.1f}]" if (d := _of(metrics, "length", level, arm)) else "?"
        for level in levels
    ]
    return f"tokens on levels {', '.join(levels)}: {', '.join(cells)}"


def _answer(metrics: Mapping[str, Any], arm: str, levels: Sequence[str], margin: float) -> str:
    """What became of length and accuracy, level by level, in words."""
    lengths = {level: _of(metrics, "length", level, arm) for level in levels}
    if any(d is None for d in lengths.values()):
        return "not measured on every level"
    shorter = [level for level, d in lengths.items() if d and d["hi"] < 0]
    longer = [level for level, d in lengths.items() if d and d["lo"] > 0]
    held = [lv for lv in levels if (d := _of(metrics, "sampled_accuracy", lv, arm)) and d["lo"] > -margin]
    parts = [f"shorter on {', '.join(shorter)}" if shorter else "", f"longer on {', '.join(longer)}" if longer else ""]
    words = " and ".join(p for p in parts if p) or "no length told apart"
    kept = "accuracy held" if len(held) == len(levels) else f"accuracy held on {', '.join(held) or 'no level'}"
    easy, hard = lengths[levels[0]], lengths[levels[-1]]
    assert easy is not None
    assert hard is not None
    asked = levels[0] in shorter and hard["lo"] > easy["hi"] and len(held) == len(levels)
    return f"{words}, {kept}" + (" (easy shorter, hard not, at equal accuracy)" if asked else "")
