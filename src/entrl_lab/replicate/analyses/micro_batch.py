"""Does the size of a micro-batch change the algorithm? Published selection (per micro-batch) against ours (per step).

Within each side the arms differ in rows per micro-batch and in nothing else: accumulation makes up for it, so the rows
of a step are the same. Before the first update that is exact, so `selected_first_step` compares the same rows.
Differences are against the first arm of a side, paired over seeds; p adjusted by Holm over everything of one outcome.
"""

from pathlib import Path
from typing import Any

import numpy as np

from entrl.stats.pairing import paired_p, seed_differences
from entrl_lab.replicate.analyses.comparison import add_verdicts
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, outcome, recipe_value, rows, selected

TITLE = "Micro-batch size: published selection and ours"
PAPER = (
    "Selection happens per micro-batch and rank; the maintainers call that an approximation (issues 14 and 20 of the "
    "authors' repository). Each micro-batch has its own means and selects at least one token, so memory settings "
    "change the algorithm. Ours selects once per optimiser step."
)
OUTCOMES = ("selected", "entropy", "sampled_accuracy")
ROUND_OFF = 1e-5  # relative; float32 sums in another order, after some dozens of updates


def analyse(runs: TaskRuns, *, published: list[str], ours: list[str]) -> dict[str, Any]:
    """published, ours: arms that differ in trainer.per_device_train_batch_size alone; the first is compared with."""
    sides = {"published": _side(runs, published), "ours": _side(runs, ours)}
    for name in OUTCOMES:
        flat = {f"{side}/{arm}": d[name] for side, found in sides.items() for arm, d in found["differences"].items()}
        add_verdicts(flat, "mean")
    return {
        "sides": sides,
        "saw": "; ".join(_saw(name, side) for name, side in sides.items()),
        "verdict": "; ".join(_verdict(name, side) for name, side in sides.items()),
    }


def _side(runs: TaskRuns, arms: list[str]) -> dict[str, Any]:
    if len(arms) < 2:
        raise NotMeasured(f"micro-batch sizes are compared between two arms or more, got {arms}")
    seeds = runs.common_seeds(arms)
    folders = {arm: [runs.arm(arm)[s] for s in seeds] for arm in arms}
    for arm, own in folders.items():
        if not len(selected(own[0])[0]):
            raise NotMeasured(f"arm {arm!r} logged no selected tokens; it has no selecting controller")
    values = {arm: {o: [outcome(f, o) for f in own] for o in OUTCOMES} for arm, own in folders.items()}
    first_steps = {arm: [_first_step(f) for f in own] for arm, own in folders.items()}
    base, *others = arms
    same_rows = all(first_steps[a][i][1:] == first_steps[base][i][1:] for a in others for i in range(len(seeds)))
    return {
        "seeds": seeds,
        "rows_per_micro_batch": {a: recipe_value(folders[a][0], "trainer.per_device_train_batch_size") for a in arms},
        "means": {arm: {o: float(np.mean(v)) for o, v in own.items()} for arm, own in values.items()},
        "values": values,
        "same_rows_first_step": same_rows,
        "selected_first_step": {arm: [s[0] for s in own] for arm, own in first_steps.items()},
        "differences": {arm: {o: _difference(values[base][o], values[arm][o]) for o in OUTCOMES} for arm in others},
    }


def _first_step(folder: Path) -> tuple[float, Any, Any]:
    """(selected tokens, mean length, reward) of the first optimiser step; the last two tell whether rows were alike."""
    row = rows(folder)[0]
    return float(selected(folder)[1][0]), row.get("completions/mean_length"), row.get("reward")


def _difference(base: list[float], own: list[float]) -> dict[str, float]:
    found = seed_differences(base, own)
    return {"mean": found.mean, "lo": found.lo, "hi": found.hi, "p": paired_p(base, own)}


def _identical(side: dict[str, Any]) -> bool:
    """Every number of every seed the same up to round-off: the cut changed nothing but the order of sums."""
    base, *others = side["values"].values()
    return all(np.allclose(o[name], base[name], rtol=ROUND_OFF, atol=0) for o in others for name in OUTCOMES)


def _first_alike(side: dict[str, Any]) -> bool:
    base, *others = side["selected_first_step"].values()
    return all(o == base for o in others)


def _saw(name: str, side: dict[str, Any]) -> str:
    sizes, means = side["rows_per_micro_batch"], side["means"]
    parts = [f"{sizes[a]} rows: {means[a]['selected']:.1f} selected, {means[a]['entropy']:.3f} nats" for a in means]
    alike = "the same" if _first_alike(side) else "different"
    note = "" if side["same_rows_first_step"] else " (the rows themselves differed)"
    return f"{name}: {', '.join(parts)}; first step selected {alike} numbers{note}"


def _verdict(name: str, side: dict[str, Any]) -> str:
    if _identical(side):
        return f"{name} identical for every micro-batch size, in every number of every seed, up to round-off"
    moved = sorted(
        {o for d in side["differences"].values() for o in OUTCOMES if d[o]["verdict"] in ("higher", "lower")},
        key=OUTCOMES.index,
    )
    if moved:
        return f"{name} changes with the micro-batch size in {', '.join(moved).replace('_', ' ')}"
    first = "identical" if _first_alike(side) else "not identical"
    return f"{name} not distinguishable between micro-batch sizes, selection of the same first rows {first} in number"
