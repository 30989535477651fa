"""Accuracy on each level of difficulty, arm by arm, and its difference from a reference, paired over seeds.

    level/N/sampled_accuracy, level/N/greedy_accuracy      means over the seeds with Student's 95 % interval
    gained     the interval of the difference lies above 0; lost: below 0; else not told apart

Unlike `by_level`, which pairs problem by problem and asks about lengths, this needs numbers of runs alone, so a fresh
checkout has it from the lines of a study. Intervals cover the luck of seeds on one set of problems; nothing is adjusted
for the number of levels.

Source:  Student's t over paired seeds
Needs:   numbers of runs, not their folders
"""

import math
from collections.abc import Mapping
from typing import Any

from entrl.stats.intervals import interval_entry
from entrl.stats.pairing import seed_differences
from entrl_lab.replicate.folders import NotMeasured, TaskRuns

TITLE = "Accuracy against the level of difficulty"
PAPER = (
    "The Illusion of Thinking: accuracy falls to nothing beyond a size of the puzzle, and reasoning models move that "
    "size rather than remove it."
)
METRICS = ("sampled_accuracy", "greedy_accuracy")
Numbers = Mapping[int, Mapping[str, float]]  # seed -> the numbers of a run


def analyse(runs: TaskRuns, *, arms: list[str] | None = None, reference: str | None = None) -> dict[str, Any]:
    """arms: None = all but the reference. reference: None = the study's."""
    reference = reference or runs.reference
    base = runs.numbers.get(reference, {})
    names = [name for name in (arms or runs.numbers) if name != reference and len(_common(runs, name, base)) > 1]
    levels = _levels(base)
    if not names or len(levels) < 2:
        raise NotMeasured("no arm shares two finished seeds with the reference, on problems of several levels")
    metrics = {}
    for metric in METRICS:
        keys = {level: f"level/{level}/{metric}" for level in levels}
        metrics[metric] = {
            "means": {n: {lv: _mean(runs.numbers[n], k) for lv, k in keys.items()} for n in (reference, *names)},
            "differences": {n: {lv: _gap(runs, n, base, k) for lv, k in keys.items()} for n in names},
        }
    sampled = metrics["sampled_accuracy"]
    return {
        "reference": reference,
        "levels": levels,
        "metrics": metrics,
        "saw": "; ".join(_told(name, sampled, reference, levels) for name in names),
        "verdict": "; ".join(_verdict(name, sampled["differences"][name], reference) for name in names),
    }


def _common(runs: TaskRuns, name: str, base: Numbers) -> list[int]:
    return [seed for seed in base if seed in runs.numbers.get(name, {})]


def _levels(own: Numbers) -> list[str]:
    found = {key.split("/")[1] for row in own.values() for key in row if key.startswith("level/")}
    return sorted(found, key=lambda level: (float(level) if level.replace(".", "", 1).isdigit() else math.inf, level))


def _mean(own: Numbers, key: str) -> dict[str, float | None]:
    return interval_entry([row[key] for row in own.values() if key in row])


def _gap(runs: TaskRuns, name: str, base: Numbers, key: str) -> dict[str, float]:
    own, seeds = runs.numbers[name], _common(runs, name, base)
    return dict(seed_differences([base[s][key] for s in seeds], [own[s][key] for s in seeds])._asdict())


def _told(name: str, sampled: Mapping[str, Any], reference: str, levels: list[str]) -> str:
    cells = []
    for level in levels:
        before, after = (sampled["means"][arm][level]["mean"] for arm in (reference, name))
        gap = sampled["differences"][name][level]
        cells.append(
            f"{level}: {100 * before:.1f} to {100 * after:.1f} "
            f"({100 * gap['mean']:+.1f} [{100 * gap['lo']:+.1f}, {100 * gap['hi']:+.1f}])"
        )
    return f"{name} against {reference}, sampled accuracy in per cent by level: {', '.join(cells)}"


def _verdict(name: str, gaps: Mapping[str, Mapping[str, float]], reference: str) -> str:
    gained = [level for level, gap in gaps.items() if gap["lo"] > 0]
    lost = [level for level, gap in gaps.items() if gap["hi"] < 0]
    same = [level for level in gaps if level not in (*gained, *lost)]
    parts = (("gained", gained), ("lost", lost), ("not told apart", same))
    words = ", ".join(f"{word} on {', '.join(found)}" for word, found in parts if found)
    return f"{name} against {reference}: {words}"
