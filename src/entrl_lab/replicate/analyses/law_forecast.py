"""Does entropy collapse, and does R = -a e^H + b say early how accurate the run will end?

Everything is fitted on the first `early` share of a run and scored on its last `late` share; the law must beat curves
that know nothing of entropy. Entropy's end is the mean of the last tenth of the steps as a share of the first tenth's.
"""

from pathlib import Path
from typing import Any

import numpy as np

from entrl.stats.forecasts import BASELINES, judge_many
from entrl.stats.intervals import interval_entry
from entrl.stats.law import law_series
from entrl_lab.replicate.folders import (
    ACCURACY,
    EDGE,
    ENTROPY,
    NotMeasured,
    TaskRuns,
    early_mean,
    late_mean,
    rows,
    series,
)

TITLE = "Collapse, and the law's forecast"
PAPER = (
    "Without intervention entropy collapses while accuracy saturates: on average over 11 models the first 8 % of the "
    "steps take 73 % of the entropy drop and 76 % of the gain (section 2). R = -a e^H + b fitted on the first 15 % of "
    "the steps predicts the rest with an error of about one point (section 2.4)."
)
FIRST = 200 / 2400  # the paper's first share of the steps
COLLAPSED = 0.5  # entropy below this share of its start counts as collapse, our choice
FORM = "law_forecast"  # told nothing of the future, like the baselines


def analyse(runs: TaskRuns, *, arm: str | None = None, early: float = 0.15, late: float = 0.6) -> dict[str, Any]:
    arm = arm or runs.reference
    folders = list(runs.arm(arm).values())
    found = [law_series(rows(f), rows(f, "eval"), entropy=ENTROPY, accuracy=ACCURACY) for f in folders]
    if any(len(s.times) == 0 for s, _ in found):
        raise NotMeasured(f"runs of {arm!r} logged no {ENTROPY} together with {ACCURACY}")
    judged = judge_many([s for s, _ in found], early=early, late=late)
    # where the law refuses its early fit, its error is still of interest, as long as it is not sold as a forecast
    regardless = judge_many([s for s, _ in found], early=early, late=late, refuse=False)
    end = _over_seeds([late_mean(f, ENTROPY, EDGE) / early_mean(f, ENTROPY) for f in folders])
    drop, gain = (_early_shares(folders, metric) for metric in (ENTROPY, ACCURACY))
    compared = {b: judged["differences"][FORM][b] for b in BASELINES}
    return {
        "arm": arm,
        "accuracy_from": "evaluations" if all(evals for _, evals in found) else "training rollouts, each seen once",
        "entropy_end_share": end,
        "early_share_of_drop": drop,
        "early_share_of_gain": gain,
        "within_states": _within(folders),
        "refusals": sorted({str(r["forecasts"][FORM].get("refused")) for r in judged["runs"]} - {"None"}),
        "judged": judged,
        "errors_without_refusal": _errors(regardless, (FORM,))[FORM],
        "series": [
            {"times": s.times.tolist(), "entropy": s.entropy.tolist(), "accuracy": s.accuracy.tolist()}
            for s, _ in found
        ],
        "early": early,
        "late": late,
        "saw": _saw(arm, end, drop, gain, judged, _errors(regardless, (FORM,))[FORM]),
        "verdict": f"{_collapse(end)}; {_forecast(compared, judged['refused'][FORM], len(folders))}",
    }


def _within(folders: list[Path]) -> dict[str, Any] | None:
    """Entropy on the fixed probe prefixes at the end, as a share of its start, and both parts of the change in nats."""
    found = [series(f, "probe/entropy")[1] for f in folders]
    if not found or any(len(v) < 2 for v in found):
        return None
    ends = {p: [series(f, f"probe/{p}")[1][-1:].tolist() for f in folders] for p in ("within", "occupancy")}
    parts = {p: [v for one in values for v in one] for p, values in ends.items() if all(values)}
    half = [float((v[0] - v[len(v) // 2]) / (v[0] - v[-1])) for v in found if v[0] != v[-1]]
    return {
        "end_share": _over_seeds([float(v[-1] / v[0]) for v in found]),
        "first_half_of_drop": _over_seeds(half),
        **{p: _over_seeds(v) for p, v in parts.items()},
    }


def _over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean over seeds with its t interval; lo and hi None with fewer than two."""
    return {**interval_entry(values), "values": values}


def _early_shares(folders: list[Path], metric: str) -> dict[str, Any]:
    """Share of the change that is over after the first FIRST of the steps: early changes over the mean change.

    None where the seeds do not agree that there is a change, or where so early there are too few rows to see it.
    """
    early, total = zip(*(_changes(f, metric) for f in folders), strict=True)
    whole = _over_seeds(list(total))
    if None in early or whole["lo"] is None or whole["lo"] <= 0 <= whole["hi"]:
        return {"mean": None, "lo": None, "hi": None, "values": []}
    return _over_seeds([e / whole["mean"] for e in early])


def _changes(folder: Path, metric: str) -> tuple[float | None, float]:
    """(change from the first rows until FIRST of the steps, change until the end)."""
    steps, values = series(folder, metric)
    first, around = steps <= FIRST / 4 * steps[-1], np.abs(steps / steps[-1] - FIRST) <= FIRST / 4
    start = float(values[first].mean()) if first.any() else float(values[0])
    early = float(values[around].mean()) - start if around.sum() >= 3 else None
    return early, late_mean(folder, metric, EDGE) - start


def _collapse(end: dict[str, Any]) -> str:
    if end["hi"] is None:
        return "collapse not judged (one seed)"
    if end["hi"] < COLLAPSED:
        return "entropy collapsed"
    if end["hi"] < 1:
        return "entropy fell without collapsing" if end["lo"] > COLLAPSED else "entropy fell, perhaps to collapse"
    return "entropy rose" if end["lo"] > 1 else "no change of entropy can be told"


def _forecast(compared: dict[str, Any], refused: int, runs: int) -> str:
    judged = {b: d for b, d in compared.items() if d["lo"] is not None}
    if not judged:
        return f"no forecast: the law could not be fitted early in {refused} of {runs} runs"
    better = [b for b, d in judged.items() if d["hi"] < 0]
    worse = [b for b, d in judged.items() if d["lo"] > 0]
    even = [b for b in judged if b not in better and b not in worse]
    parts = [
        f"{word} {', '.join(b.replace('_', ' ') for b in names)}"
        for word, names in (("better than", better), ("worse than", worse), ("not told apart from", even))
        if names
    ]
    return f"the law's forecast is {'; '.join(parts)}"


def _errors(judged: dict[str, Any], names: tuple[str, ...]) -> dict[str, list[float]]:
    """RMSE of each forecast in every run that has it."""
    return {
        name: [r["forecasts"][name]["rmse"] for r in judged["runs"] if "rmse" in r["forecasts"][name]] for name in names
    }


def _saw(arm: str, end: Any, drop: Any, gain: Any, judged: dict[str, Any], regardless: list[float]) -> str:
    text = f"{arm}: entropy ended at {_interval(end)} of its start"
    if drop["mean"] is not None:
        text += f"; the first {FIRST:.0%} of the steps took {_interval(drop)} of its change"
    if gain["mean"] is not None:
        text += f" and {_interval(gain)} of the gain in accuracy"
    errors = _errors(judged, (FORM, *BASELINES))
    told = [f"{name.replace('_', ' ')} {100 * sum(e) / len(e):.1f}" for name, e in errors.items() if e]
    text += f". Error of the forecast in points, mean over runs: {', '.join(told)}" if told else ""
    refused = judged["refused"][FORM]
    if not refused:
        return text
    held = f", {100 * sum(regardless) / len(regardless):.1f} fitted regardless" if regardless else ""
    why = next(r["forecasts"][FORM]["refused"] for r in judged["runs"] if "refused" in r["forecasts"][FORM])
    return f"{text} (law refused in {refused} of {len(judged['runs'])} runs, such as: {why}{held})"


def _interval(x: dict[str, Any]) -> str:
    return f"{x['mean']:.0%}" if x["lo"] is None else f"{x['mean']:.0%} [{x['lo']:.0%}, {x['hi']:.0%}]"
