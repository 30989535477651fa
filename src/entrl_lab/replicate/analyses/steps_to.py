"""How many optimiser steps an arm takes to a given accuracy, against a reference, paired over seeds.

    steps = the first evaluated step at which accuracy >= target; `never` where none is

Evaluations are those made while training (`eval.at`), so steps are known to the gap between two. A run that does
not get there counts as `never` in the mean, and how many did is said. A difference is an answer only where its interval
leaves 0 out:

    sooner     the 95 % interval of the steps' difference lies below 0      later   above 0

Accuracy at every evaluated step is reported too, with the same intervals.

Source:  Student's t over paired seeds
Needs:   numbers of runs (`at/STEP/accuracy`), not their folders
"""

from collections.abc import Mapping
from typing import Any

from entrl.stats.intervals import interval_entry
from entrl.stats.pairing import seed_differences
from entrl_lab.replicate.folders import NotMeasured, TaskRuns

TITLE = "Steps to a given accuracy"
PAPER = "Sampling rules are said to reach an accuracy in fewer steps than uniform draws."
Numbers = Mapping[int, Mapping[str, float]]  # seed -> the numbers of a run


def analyse(
    runs: TaskRuns, *, target: float, never: int, arms: list[str] | None = None, reference: str | None = None
) -> dict[str, Any]:
    """target: an accuracy in (0, 1). never: steps that a run counts with which does not get there."""
    if not 0 < target < 1:
        raise ValueError(f"steps_to: target is an accuracy between 0 and 1, got {target}")
    reference = reference or runs.reference
    curves = {name: {seed: _curve(row) for seed, row in own.items()} for name, own in runs.numbers.items()}
    if not any(curve for own in curves.values() for curve in own.values()):
        raise NotMeasured("the runs evaluated nothing while training; set eval.at")
    steps = {name: {s: reached(curve, target, never) for s, curve in own.items()} for name, own in curves.items()}
    base = steps.get(reference, {})
    names = [n for n in (arms or steps) if n != reference and len(base.keys() & steps.get(n, {}).keys()) > 1]
    if not names:
        raise NotMeasured("no arm shares two finished seeds with the reference")
    found = {name: _arm(steps[name], curves[name], target) for name in (reference, *names)}
    gaps = {name: _gap(base, steps[name]) for name in names}
    return {
        "reference": reference,
        "target": target,
        "arms": found,
        "differences": gaps,
        "saw": "; ".join(_told(name, found[name], gaps.get(name)) for name in found),
        "verdict": "; ".join(f"{name}: {_word(gap)} than {reference}" for name, gap in gaps.items()),
    }


def _curve(row: Mapping[str, float]) -> dict[int, float]:
    """Step -> accuracy."""
    found = {int(k.split("/")[1]): v for k, v in row.items() if k.startswith("at/") and k.endswith("/accuracy")}
    return dict(sorted(found.items()))


def reached(curve: Mapping[int, float], target: float, never: int) -> int:
    """The first step at which the target is reached, `never` where it is not."""
    return next((step for step, accuracy in curve.items() if accuracy >= target), never)


def _arm(steps: Mapping[int, int], curves: Mapping[int, Mapping[int, float]], target: float) -> dict[str, Any]:
    shared = [s for s in next(iter(curves.values())) if all(s in curve for curve in curves.values())]
    return {
        "steps": interval_entry([float(s) for s in steps.values()]),
        "by_seed": {str(seed): s for seed, s in steps.items()},
        "there": sum(any(a >= target for a in curve.values()) for curve in curves.values()),
        "accuracy": {str(s): interval_entry([curve[s] for curve in curves.values()]) for s in shared},
    }


def _gap(base: Mapping[int, int], own: Mapping[int, int]) -> dict[str, float]:
    common = [seed for seed in base if seed in own]
    return dict(seed_differences([base[s] for s in common], [own[s] for s in common])._asdict())


def _told(name: str, arm: Mapping[str, Any], gap: Mapping[str, float] | None) -> str:
    text = f"{name}: {arm['steps']['mean']:.0f} steps, {arm['there']} of {len(arm['by_seed'])} seeds get there"
    return text + (f", {gap['mean']:+.1f} [{gap['lo']:+.1f}, {gap['hi']:+.1f}]" if gap else "")


def _word(gap: Mapping[str, float]) -> str:
    return "sooner" if gap["hi"] < 0 else "later" if gap["lo"] > 0 else "not told apart, neither sooner nor later"
