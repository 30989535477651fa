"""Two runs against each other: curves at equal steps, tokens and seconds, and evaluations problem by problem.

    at equal x    x = the smaller of the two last values, so that nothing is extrapolated; each curve is interpolated
                  linearly at x, and averaged over the tenth of the axis before x, since one step is one noisy batch
    evaluations   the paired differences of `entrl.stats.pairing`, after training

Every difference is b - a. Differences of curves have no interval: the steps of one run are not independent, and
two runs are one seed each; `entrl.stats.pairing.seed_differences` is for several.

Source:  own design
Needs:   run folders (entrl.report.read); a metric that only one run logged is listed, not compared
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entrl.report.control import control_words
from entrl.report.metrics import by_task, numbers_of, of_problem
from entrl.report.read import RunRecord, metric_names, read_runs, series
from entrl.report.words import words
from entrl.stats.pairing import paired_difference

EQUAL_AXES = {"step": "steps", "tokens": "tokens generated", "seconds": "seconds"}
RECENT_SHARE = 0.1  # of the axis up to x, averaged beside the interpolated value
SHOWN = (  # printed, where both runs have them; the JSON holds every shared metric
    "reward",
    "rewards/*/mean",
    "completions/mean_length",
    "completions/clipped_ratio",
    "policy_entropy/*",
    "entropy",
    "pear/h_think",
    "pear/h_answer",
    "*/cov_mean",
    "*/selected",
    "grad_norm",
)


@dataclass(frozen=True, kw_only=True)
class AtEqual:
    """One metric of both runs at the same x; `recent` is the mean over the tenth of the axis before x."""

    x: float
    a: float
    b: float
    diff: float
    recent_a: float
    recent_b: float
    recent_diff: float


def compare_runs(run_a: str | Path, run_b: str | Path) -> dict[str, Any]:
    """Everything that can be said about b against a, as plain values that go into JSON."""
    a, b = read_runs([run_a, run_b])
    names_a, names_b = metric_names(a.train), metric_names(b.train)
    shared = [name for name in names_a if name in set(names_b)]
    return {
        "a": a.name,
        "b": b.name,
        "difference": "b - a",
        "curves": {axis: _at_equal_axis(a, b, axis, shared) for axis in EQUAL_AXES},
        "evaluation": (evaluation := _evaluations(a, b)),
        "control": control_words(a, b, evaluation),
        "only_a": [name for name in names_a if name not in set(names_b)],
        "only_b": [name for name in names_b if name not in set(names_a)],
        "notes": [f"{run.name}: {note}" for run in (a, b) for note in run.notes],
    }


def _at_equal_axis(a: RunRecord, b: RunRecord, axis: str, metrics: list[str]) -> dict[str, Any]:
    """All shared metrics at the largest x both runs reached, and which run limits it."""
    reached = [series(run.train, axis, axis)[0] for run in (a, b)]
    if not all(reached):
        lacking = ", ".join(run.name for run, xs in zip((a, b), reached, strict=True) if not xs)
        return {"x": None, "limited_by": None, "why": f"{axis} not recorded by {lacking}", "metrics": {}}
    ends = [max(xs) for xs in reached]
    limited_by = None if ends[0] == ends[1] else (a if ends[0] < ends[1] else b).name
    found = {m: at_equal(series(a.train, m, axis), series(b.train, m, axis)) for m in metrics}
    return {
        "x": min(ends),
        "limited_by": limited_by,
        "why": None,
        "metrics": {metric: vars(value) for metric, value in found.items() if value is not None},
    }


def at_equal(curve_a: tuple[list[float], list[float]], curve_b: tuple[list[float], list[float]]) -> AtEqual | None:
    """Two curves at the largest x both have; None where their ranges do not meet."""
    (x_a, y_a), (x_b, y_b) = curve_a, curve_b
    if not x_a or not x_b:
        return None
    x = min(x_a[-1], x_b[-1])
    if x < max(x_a[0], x_b[0]):
        return None
    a, b = float(np.interp(x, x_a, y_a)), float(np.interp(x, x_b, y_b))
    recent_a, recent_b = _recent(x_a, y_a, x, a), _recent(x_b, y_b, x, b)
    return AtEqual(x=x, a=a, b=b, diff=b - a, recent_a=recent_a, recent_b=recent_b, recent_diff=recent_b - recent_a)


def _recent(xs: list[float], ys: list[float], x: float, at_x: float) -> float:
    """Mean of the points in the last tenth before x; the interpolated value where there are none."""
    recent = [value for position, value in zip(xs, ys, strict=True) if (1 - RECENT_SHARE) * x <= position <= x]
    return float(np.mean(recent)) if recent else at_x


def _evaluations(a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """Paired differences after training, per metric; or the reason why there are none."""
    lacking = [run.name for run in (a, b) if run.eval_after is None]
    if a.eval_after is None or b.eval_after is None:
        return {"why": f"eval_after.json is missing in {', '.join(lacking)}", "metrics": {}}
    results_a, results_b = by_task(a.eval_after), by_task(b.eval_after)
    shared = [task for task in results_a if task in results_b]
    if not shared:
        return {"why": "the two were evaluated on different tasks", "metrics": {}}
    metrics: dict[str, Any] = {}
    for task in shared:
        found = _paired(results_a[task], results_b[task])
        metrics |= {f"{task}: {metric}" if task else metric: value for metric, value in found.items()}
    return {"why": None, "metrics": metrics}


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The differences of one task's results."""
    metrics: dict[str, Any] = {}
    asked = all("inquiry" in found for found in (a, b))
    recorded = {key for found in (a, b) for problem in found["problems"] for key in problem}
    recorded |= {"sampled_accuracy"}  # of n_correct and n_samples, which every evaluation has
    for metric in [n.problem for n in numbers_of([a, b]) if n.problem and (asked or not n.of_dialogues)]:
        if metric not in recorded:
            continue  # both are older than the number
        try:
            metrics[metric] = paired_difference(a, b, metric)._asdict()
        except ValueError as reason:
            metrics[metric] = {"why": str(reason)}
    return metrics


def comparison_json(comparison: Mapping[str, Any]) -> str:
    return json.dumps(comparison, indent=2, allow_nan=False)


def print_comparison(comparison: Mapping[str, Any], console: Console | None = None) -> None:
    """The comparison as tables on a terminal."""
    console = console or Console()
    # Text and markup=False: a run folder may be called [red]
    console.print(Text(f"a = {comparison['a']}    b = {comparison['b']}    every difference is b - a"))
    _print_evaluation(comparison["evaluation"], console)
    for sentence in comparison["control"]:
        console.print(sentence, markup=False, style="bold")
    for axis, title in EQUAL_AXES.items():
        _print_curves(comparison["curves"][axis], title, console)
    for key, name in (("only_a", comparison["a"]), ("only_b", comparison["b"])):
        if comparison[key]:
            titles = ", ".join(dict.fromkeys(words(metric).title for metric in comparison[key]))
            console.print(f"logged only by {name}: {titles}", markup=False, style="dim")
    for note in comparison["notes"]:
        console.print(f"note: {note}", markup=False, style="yellow")


def _print_evaluation(evaluation: Mapping[str, Any], console: Console) -> None:
    if evaluation["why"]:
        console.print(f"no paired evaluation: {evaluation['why']}", markup=False, style="yellow")
        return
    table = Table("after training", title="Same problems, b - a", title_justify="left")
    for heading in ("difference", "95 % interval", "problems", "unverified"):
        table.add_column(heading, justify="right")
    for key, found in evaluation["metrics"].items():
        task, _, metric = key.rpartition(": ")
        number = of_problem(metric)
        label = f"{task}: {number.label}" if task else number.label
        if "why" in found:
            console.print(f"{label}: {found['why']}", markup=False, style="yellow")
            continue
        diff, lo, hi = (number.text(found[name], sign=True) for name in ("diff", "lo", "hi"))
        table.add_row(*map(Text, (label, diff, f"[{lo}, {hi}]", str(found["n"]), str(found["unverified"]))))
    if table.row_count:
        console.print(table)


def _print_curves(curves: Mapping[str, Any], title: str, console: Console) -> None:
    if curves["why"]:
        console.print(f"equal {title}: {curves['why']}", markup=False, style="yellow")
        return
    shown = [m for m in curves["metrics"] if any(fnmatchcase(m, pattern) for pattern in SHOWN)]
    limit = f"where {curves['limited_by']} ends" if curves["limited_by"] else "where both end"
    table = Table(title=Text(f"At {curves['x']:,.6g} {title}, {limit}"), title_justify="left")
    table.add_column("in training")
    for heading in ("a", "b", "b - a", "b - a, mean of last tenth"):
        table.add_column(heading, justify="right")
    for metric in shown:
        value = curves["metrics"][metric]
        numbers = (f"{value['a']:.4g}", f"{value['b']:.4g}", f"{value['diff']:+.4g}", f"{value['recent_diff']:+.4g}")
        short = f" (at {value['x']:,.6g})" if value["x"] != curves["x"] else ""
        title, unit = words(metric)
        table.add_row(Text((f"{title}, {unit}" if unit not in ("", "reward") else title) + short), *numbers)
    if table.row_count:
        console.print(table)
