"""More selected tokens, more entropy? Outcomes against the number of tokens a controller selects per step.

    slope of one seed = least squares of the outcome on log2(1 + selected tokens per optimiser step), over its arms
    interval over seeds by Student's t; p adjusted by Holm over all groups and outcomes

The reference may head a group: it selects none. The logarithm because doses of a study span powers of two.
"""

from pathlib import Path
from typing import Any

import numpy as np

from entrl.stats.intervals import mean_interval
from entrl.stats.pairing import paired_p
from entrl_lab.replicate.analyses.comparison import add_verdicts
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, outcome, selected

TITLE = "Dose-response: selected tokens and entropy"
PAPER = "More clipped tokens (Clip-Cov) or a larger coefficient (KL-Cov) give higher entropy (section 4.4, Fig. 12)."
OUTCOMES = ("entropy", "sampled_accuracy", "greedy_accuracy")


def analyse(runs: TaskRuns, *, groups: dict[str, list[str]]) -> dict[str, Any]:
    """groups: controller -> its arms in ascending dose."""
    found = {name: _group(runs, arms) for name, arms in groups.items()}
    add_verdicts({f"{g}/{o}": s for g, group in found.items() for o, s in group["slopes"].items()}, "mean")
    return {
        "groups": found,
        "saw": "; ".join(_saw(name, group) for name, group in found.items()),
        "verdict": "; ".join(_verdict(name, group) for name, group in found.items()),
    }


def _group(runs: TaskRuns, arms: list[str]) -> dict[str, Any]:
    if len(arms) < 2:
        raise NotMeasured(f"a dose-response needs two arms or more, got {arms}")
    seeds = runs.common_seeds(arms)
    folders = {arm: [runs.arm(arm)[s] for s in seeds] for arm in arms}
    doses = {arm: [_dose(f) for f in own] for arm, own in folders.items()}
    values = {o: {arm: [outcome(f, o) for f in own] for arm, own in folders.items()} for o in OUTCOMES}
    mean_dose = {arm: float(np.mean(d)) for arm, d in doses.items()}
    if len({round(d, 9) for d in mean_dose.values()}) < 2:
        raise NotMeasured(f"all arms of {arms} selected the same number of tokens ({mean_dose})")
    ordered = sorted(arms, key=lambda arm: mean_dose[arm])
    return {
        "seeds": seeds,
        "arms": ordered,
        "selected": {arm: {"mean": mean_dose[arm], "values": doses[arm]} for arm in ordered},
        "values": {o: {arm: values[o][arm] for arm in ordered} for o in OUTCOMES},
        "means": {o: {arm: float(np.mean(values[o][arm])) for arm in ordered} for o in OUTCOMES},
        "slopes": {o: _slope(doses, values[o], arms) for o in OUTCOMES},
        "monotone": {o: _monotone([float(np.mean(values[o][arm])) for arm in ordered]) for o in OUTCOMES},
    }


def _dose(folder: Path) -> float:
    _, values = selected(folder)
    return float(values.mean()) if len(values) else 0.0


def _slope(doses: dict[str, list[float]], values: dict[str, list[float]], arms: list[str]) -> dict[str, Any]:
    """Per doubling of (1 + selected tokens); one slope a seed."""
    x_SA = np.log2(1 + np.array([doses[a] for a in arms]).T)
    y_SA = np.array([values[a] for a in arms]).T
    centred_SA = x_SA - x_SA.mean(1, keepdims=True)
    slopes = ((centred_SA * y_SA).sum(1) / (centred_SA**2).sum(1)).tolist()
    found = mean_interval(slopes)
    p = paired_p([0.0] * len(slopes), slopes)
    return {"mean": found.mean, "lo": found.lo, "hi": found.hi, "p": p, "values": slopes}


def _monotone(means: list[float]) -> str:
    steps = np.diff(means)
    if (steps >= 0).all():
        return "rising"
    return "falling" if (steps <= 0).all() else "not monotone"


def _saw(name: str, group: dict[str, Any]) -> str:
    doses = ", ".join(f"{group['selected'][a]['mean']:.0f}" for a in group["arms"])
    entropies = ", ".join(f"{group['means']['entropy'][a]:.3f}" for a in group["arms"])
    slope = group["slopes"]["entropy"]
    return (
        f"{name}: {doses} selected tokens a step gave entropies {entropies} nats ({group['monotone']['entropy']}); "
        f"{slope['mean']:+.4f} [{slope['lo']:+.4f}, {slope['hi']:+.4f}] nats per doubling"
    )


def _verdict(name: str, group: dict[str, Any]) -> str:
    words = {"higher": "rises with the dose", "lower": "falls with the dose"}
    parts = [
        f"{o.replace('_', ' ')} {words.get(s['verdict'], 'not told from flat')}" for o, s in group["slopes"].items()
    ]
    return f"{name}: {', '.join(parts)}"
