"""The plots of a study's page, from results or run folders; each function returns HTML, "" where there is nothing."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from entrl.report.drawing import Frame, chart, colour, keys, span
from entrl.report.metrics import find
from entrl.stats.intervals import mean_interval
from entrl_lab.replicate.folders import ACCURACY, ENTROPY, TaskRuns, series

CURVES = ((ENTROPY, "Entropy, nats"), (ACCURACY, "Accuracy on training problems"))
SMOOTH = 0.06  # share of a run over which curves are averaged
POINTS = 120  # of a curve
VERDICT_COLOUR = {"higher": "var(--run2)", "lower": "var(--run1)", "non-inferior": "var(--run0)"}
ROW = 20  # height of a forest plot's row


def curves(runs: TaskRuns) -> str:
    """Entropy and accuracy of every arm against the reference: means over seeds, bands their 95 % t intervals."""
    html = ""
    for metric, title in CURVES:
        bands = {arm: _band(list(folders.values()), metric) for arm, folders in runs.folders.items()}
        known = {arm: band for arm, band in bands.items() if band is not None}
        if runs.reference not in known:
            continue
        x, y = _range([b[0] for b in known.values()]), _range([v for b in known.values() for v in b[1:]])
        panels = "".join(
            _curve(arm, title, known, runs.reference, x, y) for arm in known if arm != runs.reference or len(known) == 1
        )
        html += f'<h3>{title}</h3><div class="charts small">{panels}</div>'
    return html


def _range(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    return span([float(v) for a in arrays for v in a if math.isfinite(v)], share=0.03)


def _band(folders: Sequence[Path], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """(steps, mean, lo, hi) over seeds of smoothed curves; None where a run did not log the metric."""
    found = [series(f, metric) for f in folders]
    if not found or any(len(steps) < 2 for steps, _ in found):
        return None
    at = np.linspace(max(s[0] for s, _ in found), min(s[-1] for s, _ in found), POINTS)
    smooth_SN = np.array([_smoothed(steps, values, at) for steps, values in found])
    if len(found) < 2:
        return at, *[smooth_SN.mean(0)] * 3
    mean, lo, hi = np.array([mean_interval(values_S) for values_S in smooth_SN.T]).T
    return at, mean, lo, hi


def _smoothed(steps: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Mean of the values within half a window of each place; the nearest value where there is none."""
    near = np.abs(steps[None] - at[:, None]) <= SMOOTH / 2 * (steps[-1] - steps[0]) + 1e-9
    near |= np.abs(steps[None] - at[:, None]) == np.abs(steps[None] - at[:, None]).min(1, keepdims=True)
    return (near * values[None]).sum(1) / near.sum(1)


def _curve(
    arm: str,
    title: str,
    known: Mapping[str, Any],
    reference: str,
    x: tuple[float, float],
    y: tuple[float, float],
) -> str:
    frame = Frame(x=x, y=y, x_label="optimiser step", label=f"{title}: {arm} against {reference}", height=150)
    for name, shade in ((reference, "var(--quiet)"), (arm, colour(0))):
        steps, mean, lo, hi = (v.tolist() for v in known[name])
        frame.band(steps, lo, hi, shade)
        frame.line(steps, mean, shade)
    return chart(arm, frame.svg())


def forest(found: Mapping[str, Any]) -> str:
    """Differences of every arm from the reference, one plot per metric."""
    html = ""
    for metric, block in found["metrics"].items():
        arms, number = block["arms"], find(metric)
        unit, scale = ("points", 100) if block["unit"] == "%" else (block["unit"], 1)
        title = metric.replace("_", " ") if number is None else number.title
        names = list(reversed(arms))
        ends = [scale * arms[n][k] for n in names for k in ("lo", "hi")]
        frame = Frame(
            x=span(ends, zero=True),
            y=(-0.7, len(names) - 0.3),
            rows=names,
            left=150,
            height=ROW * len(names) + 44,
            x_label=f"difference from {found['reference']} ({block['reference'] * scale:.4g})",
            label=f"Differences in {title} with 95 % intervals",
        )
        frame.upright(0)
        if scale == 100:
            frame.upright(-100 * found["margin"], kind="margin")
        for row, name in enumerate(names):
            d = arms[name]
            shade = VERDICT_COLOUR.get(d["verdict"], "var(--quiet)")
            text = f"{name}: {scale * d['diff']:+.3g} [{scale * d['lo']:+.3g}, {scale * d['hi']:+.3g}], "
            frame.reach(row, scale * d["lo"], scale * d["hi"], shade)
            frame.dot(scale * d["diff"], row, shade, radius=4, title=f"{text}p {d['p_holm']:.3g}, {d['verdict']}")
        html += chart(f"{title}, {unit}" if unit else title, frame.svg())
    legend = keys([*VERDICT_COLOUR, "not distinguishable"], [*VERDICT_COLOUR.values(), "var(--quiet)"])
    return f'{legend}<div class="charts">{html}</div>' if html else ""


def law(found: Mapping[str, Any]) -> str:
    """Where each run went in the plane of entropy and accuracy, and how far off each forecast was."""
    every = found["series"]
    frame = Frame(
        x=span([v for s in every for v in s["entropy"]]),
        y=span([v for s in every for v in s["accuracy"]]),
        x_label="entropy, nats",
        y_label="accuracy",
        label="Accuracy against entropy, early and late points, with the law fitted on the early ones",
    )
    for one, judged in zip(every, found["judged"]["runs"], strict=True):
        for t, h, r in zip(one["times"], one["entropy"], one["accuracy"], strict=True):
            early = t <= judged["early_until"]
            frame.dot(h, r, colour(1) if early else colour(0), radius=2, kind="faint")
        if judged["law"] is not None:
            at = np.linspace(*frame.x, 40)
            ys = judged["law"]["b"] - judged["law"]["a"] * np.exp(at)
            inside = (ys > frame.y[0]) & (ys < frame.y[1])
            frame.line(at[inside].tolist(), ys[inside].tolist(), colour(1), kind="thin")
    legend = keys(
        [f"first {found['early']:.0%} of the steps, and the law fitted on them", "later"], [colour(1), colour(0)]
    )
    return f'<div class="charts">{chart("Accuracy and entropy", frame.svg(), legend=legend)}{_errors(found)}</div>'


def _errors(found: Mapping[str, Any]) -> str:
    runs = found["judged"]["runs"]
    names = [n for n in runs[0]["forecasts"] if any("rmse" in r["forecasts"][n] for r in runs)]
    if not names:
        return ""
    names.reverse()
    errors = {n: [100 * r["forecasts"][n]["rmse"] for r in runs if "rmse" in r["forecasts"][n]] for n in names}
    frame = Frame(
        x=span([e for own in errors.values() for e in own], zero=True),
        y=(-0.7, len(names) - 0.3),
        rows=[n.replace("_", " ") for n in names],
        left=120,
        x_label="error on the later points, accuracy points (RMSE)",
        label="Forecast errors by method, one dot a run",
    )
    for row, name in enumerate(names):
        shade = colour(1) if name.startswith("law") else colour(6)
        for error in errors[name]:
            frame.dot(error, row, shade, kind="faint")
        frame.dot(
            sum(errors[name]) / len(errors[name]), row, shade, radius=5, title=f"mean of {len(errors[name])} runs"
        )
    floors = [100 * r["noise_floor"] for r in runs if r["noise_floor"] is not None]
    if floors:
        frame.upright(sum(floors) / len(floors), kind="margin")
    note = (
        f"fitted on the first {found['early']:.0%}, scored on the last {found['late']:.0%}; dashed: noise of the points"
    )
    return chart("Error of each forecast", frame.svg(), note=note)


def predicted(found: Mapping[str, Any]) -> str:
    """Predicted against measured change of entropy: logged windows by estimator, and metrics against the probe."""
    html = ""
    names = {"natural": "Theorem 2, state-centred", "policy_gradient": "Theorem 1", "pooled": "pooled covariance"}
    for estimator, title in names.items():
        points = [(p["predicted"][estimator], p["measured"]) for p in found["pairs"]]
        html += _scatter(f"Windows: {title}", [points], "predicted, first order (own unit)") if points else ""
    for metric, block in found["metrics"].items():
        points = [list(zip(p["predicted"], p["measured"], strict=True)) for p in block["points"]]
        html += _scatter(f"Probe: {metric}", points, f"−{metric}, summed between probes")
    return f'<div class="charts">{html}</div>' if html else ""


def _scatter(title: str, groups: Sequence[Sequence[tuple[float, float]]], x_label: str) -> str:
    every = [p for group in groups for p in group]
    frame = Frame(
        x=span([x for x, _ in every], zero=True),
        y=span([y for _, y in every], zero=True),
        x_label=x_label,
        y_label="measured, nats",
        label=f"{title}: predicted against measured change of entropy",
        left=56,
    )
    frame.upright(0)
    frame.level(0)
    for i, group in enumerate(groups):
        for x, y in group:
            frame.dot(x, y, colour(i if len(groups) > 1 else 0), kind="faint")
    return chart(title, frame.svg())


def dose(found: Mapping[str, Any]) -> str:
    """Outcomes against selected tokens per step on a doubling axis; dots are seeds, lines their means."""
    groups, html = found["groups"], ""
    outcomes = next(iter(groups.values()))["values"]
    for outcome in outcomes:
        doses = [d for g in groups.values() for own in g["selected"].values() for d in own["values"]]
        values = [v for g in groups.values() for own in g["values"][outcome].values() for v in own]
        top = math.ceil(math.log2(1 + max(doses)))
        frame = Frame(
            x=(-0.3, top + 0.3),
            y=span(values),
            x_ticks=list(range(0, top + 1, max(1, top // 5))),
            x_text=lambda x: str(round(2**x - 1)),
            x_label="selected tokens per optimiser step",
            y_label="nats" if outcome == "entropy" else "share",
            label=f"{outcome} against selected tokens per step",
        )
        for i, group in enumerate(groups.values()):
            for arm in group["arms"]:
                for d, v in zip(group["selected"][arm]["values"], group["values"][outcome][arm], strict=True):
                    frame.dot(math.log2(1 + d), v, colour(i), kind="faint", title=arm)
            at = [math.log2(1 + group["selected"][a]["mean"]) for a in group["arms"]]
            frame.line(at, [group["means"][outcome][a] for a in group["arms"]], colour(i))
        html += chart(outcome.replace("_", " "), frame.svg())
    return f'{keys(list(groups), [colour(i) for i in range(len(groups))])}<div class="charts">{html}</div>'


def micro_batch(found: Mapping[str, Any]) -> str:
    """Each outcome against the rows of a micro-batch, published selection and ours."""
    html = ""
    sides = found["sides"]
    for outcome in next(iter(sides["ours"]["means"].values())):
        sizes = [math.log2(v) for s in sides.values() for v in s["rows_per_micro_batch"].values()]
        values = [v for s in sides.values() for own in s["values"].values() for v in own[outcome]]
        frame = Frame(
            x=span(sizes, share=0.1),
            y=span(values),
            x_ticks=sorted(set(sizes)),
            x_text=lambda x: str(round(2**x)),
            x_label="rows per micro-batch",
            label=f"{outcome} against the rows of a micro-batch",
        )
        for i, side in enumerate(sides.values()):
            arms = sorted(side["means"], key=lambda a, s=side: s["rows_per_micro_batch"][a])
            at = [math.log2(side["rows_per_micro_batch"][a]) for a in arms]
            for x, arm in zip(at, arms, strict=True):
                for v in side["values"][arm][outcome]:
                    frame.dot(x, v, colour(1 - i), kind="faint", title=arm)
            frame.line(at, [side["means"][a][outcome] for a in arms], colour(1 - i))
        html += chart("selected tokens per step" if outcome == "selected" else outcome.replace("_", " "), frame.svg())
    return f'{keys(list(sides), [colour(1), colour(0)])}<div class="charts">{html}</div>'


def players(found: Mapping[str, Any]) -> str:
    """What every player reached, and the arms against the greedy exact policy."""
    return _reached(found["players"], ("success", "score", "questions", "gain_per_question", "repeat_rate")) + forest(
        found
    )


def independence(found: Mapping[str, Any]) -> str:
    """Both beliefs at each budget."""
    html = ""
    for world, costs in found["worlds"].items():
        lines = {
            f"{cost['budget']} questions, {what}": {
                "factored": {"mean": cost[what]["factored"]},
                "joint": {"mean": cost[what]["exact"]},
                "difference": {"mean": cost[what]["diff"], **{k: cost[what][k] for k in ("lo", "hi")}},
            }
            for cost in costs
            for what in ("slots right", "exact match", "overpaid bits")
        }
        html += f"<h3>{escape(world)}</h3>" + _reached(lines, ("factored", "joint", "difference"))
    return html


def pursuit(found: Mapping[str, Any]) -> str:
    """Each policy with each model, means over tables."""
    return _reached(found["means"], tuple(next(iter(found["means"].values()))))


def _reached(lines: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table of means with their intervals where there is one."""

    def cell(value: Mapping[str, Any] | None) -> str:
        if value is None or value.get("mean") is None:
            return "<td>-</td>"
        gap = f'<span class="gap">[{value["lo"]:.3g}, {value["hi"]:.3g}]</span>' if "lo" in value else ""
        return f"<td>{value['mean']:.3g}{gap}</td>"

    head = "".join(f'<th scope="col">{escape(c.replace("_", " "))}</th>' for c in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(own.get(c)) for c in columns)}</tr>'
        for name, own in lines.items()
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


BY_ANALYSIS = {
    "law_forecast": law,
    "predicted_change": predicted,
    "dose_response": dose,
    "by_level": forest,
    "asking": forest,
    "comparison": forest,
    "micro_batch": micro_batch,
    "policies": players,
    "independence": independence,
    "pursuit": pursuit,
}
