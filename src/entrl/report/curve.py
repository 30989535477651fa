"""Evaluations of several models along training: one JSON and one page of curves, with their intervals.

    {"points": [{"model", "name", "step", "numbers": {task: {number: {"value", "lo", "hi"}}}}, ...]}

A point without a step (a model that lies in no run) stands behind the others, in the order it was named. Intervals are
those of each evaluation, over its problems; all points share the problems, so neighbours move together, and the
difference of two is told more sharply by pairing them (`entrl compare`, `entrl.paired_difference`).

Needs: evaluations as `entrl.evaluation` writes them
"""

import json
import math
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from entrl.report.drawing import Frame, chart, colour, span
from entrl.report.metrics import Number, by_task, named, numbers_of
from entrl.report.summary import with_interval
from entrl.settings.json_lines import is_number


def step_of(model: str | Path) -> int | None:
    """The optimiser step of a checkpoint or of a trained model's folder; None where nothing tells."""
    path = Path(model).expanduser()
    if found := re.fullmatch(r"checkpoint-(\d+)", path.name):
        return int(found[1])
    for file, key in ((path / "trainer_state.json", "global_step"), (path.parent / "manifest.json", "steps")):
        try:
            step = json.loads(file.read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(step, int):
            return step
    return None


def curve_of(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Name -> evaluation of its model (`model` in it says where that lies) as the points of a curve."""
    points = []
    for name, evaluation in evaluations.items():
        model = str(next(iter(by_task(evaluation).values()))["model"])
        numbers = {task: _numbers(result) for task, result in by_task(evaluation).items()}
        points.append({"model": model, "name": name, "step": step_of(model), "numbers": numbers})
    points.sort(key=lambda p: math.inf if p["step"] is None else p["step"])  # stable: others keep their order
    return {"points": points}


def _numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for number in numbers_of([result]):
        value = number.read(result)
        if value is not None:
            ends = result.get(number.interval) if number.interval else None
            lo, hi = ends if isinstance(ends, list) and all(map(is_number, ends)) else (None, None)
            found[number.name] = {"value": value, "lo": lo, "hi": hi}
    return found


def rows_of(curve: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(headings, a line for each point) of the numbers a study would show, as text."""
    columns = _columns(curve, main=True)
    headings = ["model", "step", *(f"{task}: {n.label}" if task else n.label for task, n in columns)]
    lines = []
    for point in curve["points"]:
        cells = [_text(number, point["numbers"].get(task, {}).get(number.name)) for task, number in columns]
        lines.append([point["name"], "–" if point["step"] is None else f"{point['step']:,}", *cells])
    return headings, lines


def _columns(curve: Mapping[str, Any], *, main: bool = False) -> list[tuple[str, Number]]:
    held = [(task, name) for p in curve["points"] for task, found in p["numbers"].items() for name in found]
    numbers = [(task, named(name)) for task, name in dict.fromkeys(held)]
    return [(task, number) for task, number in numbers if number.main or not main]


def _text(number: Number, point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "–"
    ends = {number.interval: [point["lo"], point["hi"]]} if point["lo"] is not None else None
    return with_interval(number, ends, point["value"])


def render(curve: Mapping[str, Any]) -> str:
    """The page: a curve for each number, its intervals upright, and the table."""
    css = (files("entrl.report") / "page.css").read_text(encoding="utf-8")
    charts = "".join(_chart(curve, task, number) for task, number in _columns(curve))
    headings, lines = rows_of(curve)
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    note = "Upright lines: 95 % intervals over the problems, which all points share."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluations along training</title>'
        f'<style>{css}</style></head><body><main><h1>Evaluations along training</h1><p class="note">{note}</p>'
        f'<div class="charts">{charts}</div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</main></body></html>\n"
    )


def _chart(curve: Mapping[str, Any], task: str, number: Number) -> str:
    scale = 100 if number.unit == "%" else 1
    steps = [point["step"] for point in curve["points"]]
    known = all(step is not None for step in steps)
    points = []
    for place, point in enumerate(curve["points"]):
        if found := point["numbers"].get(task, {}).get(number.name):
            x = float(point["step"] if known else place)
            ends = [None if found[end] is None else scale * found[end] for end in ("lo", "hi")]
            points.append((x, scale * found["value"], *ends, point["name"]))
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    reached = [*ys, *(end for p in points for end in p[2:4] if end is not None)]
    label = f"{task}: {number.label}" if task else number.label
    frame = Frame(x=span(xs), y=span(reached), x_label="step" if known else "model", label=label)
    frame.line(xs, ys, colour(0))
    for x, y, lo, hi, name in points:
        if lo is not None and hi is not None:
            frame.rise(x, lo, hi, colour(0))
        frame.dot(x, y, colour(0), title=f"{name}: {number.text(y / scale)}")
    return chart(label, frame.svg())


def write_curve(evaluations: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """curve.json and curve.html in the folder; returns the page."""
    curve, page = curve_of(evaluations), folder / "curve.html"
    (folder / "curve.json").write_text(json.dumps(curve, indent=2) + "\n", encoding="utf-8")
    page.write_text(render(curve), encoding="utf-8")
    return page
