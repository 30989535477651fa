"""Three small curves beside the verdict: accuracy or reward, length by phase, entropy by phase.

The numbers under a curve are of the evaluations before and after training where both have them, else of the first and
last tenth of the curve; the caption says which. Every axis begins at 0, so that a height can be compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from markupsafe import Markup

from entrl.diagnosis.curves import end_mean, start_mean
from entrl.report.drawing import short
from entrl.report.metrics import by_task, named
from entrl.report.read import RunRecord, series
from entrl.settings.json_lines import is_number

WIDTH, HEIGHT, LEFT, TOP = 300, 64, 34, 6  # of a drawing, CSS pixels at full size
THINK, ANSWER, ALL = "var(--think)", "var(--answer)", "var(--ink)"
Curve = tuple[list[float], list[float]]


class Line(NamedTuple):
    """One curve, and the name and the numbers under it."""

    name: str
    colour: str
    before: str
    after: str
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class Spark:
    title: str
    unit: str
    lines: list[Line]
    source: str  # of the numbers
    svg: Markup


class _Way(NamedTuple):
    """A line's name, its metric in training, the number of an evaluation."""

    name: str
    colour: str
    metric: str
    number: str = ""


ACCURACY = tuple(
    (_Way("accuracy", ALL, metric, "sampled_accuracy"),)
    for metric in ("rewards/accuracy/mean", "rewards/Accuracy/mean", "pear/correct", "information_gain/success")
)
REWARD = ((_Way("reward", ALL, "reward"),),)
LENGTH = (
    (
        _Way("thinking", THINK, "pear/think_tokens", "length/think"),
        _Way("answer", ANSWER, "pear/answer_tokens", "length/answer"),
    ),
    (
        _Way("thinking", THINK, "recorded/think", "length/think"),
        _Way("answer", ANSWER, "recorded/answer", "length/answer"),
    ),
    (_Way("completion", ALL, "completions/mean_length", "mean_length_sampled"),),
)
ENTROPY = (
    (
        _Way("thinking", THINK, "policy_entropy/think", "entropy/think"),
        _Way("answer", ANSWER, "policy_entropy/answer", "entropy/answer"),
    ),
    (
        _Way("thinking", THINK, "pear/h_think", "entropy/think"),
        _Way("answer", ANSWER, "pear/h_answer", "entropy/answer"),
    ),
    (_Way("all tokens", ALL, "policy_entropy/token_mean", "entropy/all"),),
    (_Way("all tokens", ALL, "entropy", "entropy/all"),),
)


def sparklines(run: RunRecord) -> list[Spark]:
    """Those that the run can fill, of the three."""
    wanted = (
        ("Accuracy, sampled", "%", ACCURACY),
        ("Reward", "", REWARD),
        ("Length", "tokens", LENGTH),
        ("Entropy", "nats", ENTROPY),
    )
    found = [spark for title, unit, ways in wanted if (spark := _spark(run, title, unit, ways)) is not None]
    accurate = found and found[0].unit == "%"
    return [spark for spark in found if not (accurate and spark.title == "Reward")]


def _spark(run: RunRecord, title: str, unit: str, ways: Sequence[Sequence[_Way]]) -> Spark | None:
    recorded = lengths_recorded(run.completions)
    for way in ways:
        curves = [recorded.get(w.metric) or series(run.train, w.metric) for w in way]
        if any(ys for _, ys in curves):
            break
    else:
        return None
    scale = 100 if unit == "%" else 1
    curves = [(xs, [scale * y for y in ys]) for xs, ys in curves]
    tested = [_evaluated(run, w.number) for w in way]
    own = all(pair is None for pair in tested)
    lines = []
    for w, curve, pair in zip(way, curves, tested, strict=True):
        ends = pair or ((start_mean(curve[1]), end_mean(curve[1])) if own else (None, None))
        before, after = (_text(v, unit) if pair is None or v is None else named(w.number).text(v) for v in ends)
        lines.append(Line(w.name, w.colour, before, after, curve))
    source = "training, first → last tenth of the steps" if own else "test, before → after; curve: training samples"
    return Spark(title=title, unit=unit, lines=lines, source=source, svg=_draw(f"{title} over training", lines))


def lengths_recorded(completions: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Mean tokens of thinking and answer by step, of the completions that a run recorded with their phases."""
    by_step: dict[float, list[Sequence[str]]] = {}
    for completion in completions:
        if is_number(step := completion.get("step")) and isinstance(phases := completion.get("phases"), list):
            by_step.setdefault(step, []).append(phases)
    if not any("close" in phases for rows in by_step.values() for phases in rows):
        return {}  # nothing tells thinking from answer
    counted = {"recorded/think": ("think", "open"), "recorded/answer": ("answer",)}
    steps = sorted(by_step)
    return {
        name: (
            [float(step) for step in steps],
            [sum(p in kinds for row in by_step[step] for p in row) / len(by_step[step]) for step in steps],
        )
        for name, kinds in counted.items()
    }


def _evaluated(run: RunRecord, name: str) -> tuple[float, float] | None:
    """Before and after, where one task was evaluated both times."""
    before, after = by_task(run.eval_before), by_task(run.eval_after)
    if not name or len(before) != 1 or before.keys() != after.keys():
        return None
    found = [named(name).read(result) for results in (before, after) for result in results.values()]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:.{ {'%': 1, 'tokens': 1, 'nats': 4}.get(unit, 2) }f}".replace("-", "−")


def _draw(label: str, lines: Sequence[Line]) -> Markup:
    """Raw points faint and their running mean, as the large curves have them."""
    xs = [x for line in lines for x in line.curve[0]]
    ys = [y for line in lines for y in line.curve[1]] + [0.0]
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    wide, high = x1 - x0 or 1.0, y1 - y0 or 1.0

    def path(points: Curve, kind: str, colour: str) -> str:
        at = [
            f"{LEFT + (x - x0) / wide * (WIDTH - LEFT - 4):.1f} {TOP + (y1 - y) / high * (HEIGHT - 2 * TOP):.1f}"
            for x, y in zip(*points, strict=True)
        ]
        return f'<path class="{kind}" d="M{"L".join(at if len(at) > 1 else at * 2)}" style="stroke:{colour}"/>'

    marks = [f'<path class="axis" d="M{LEFT} {HEIGHT - TOP}H{WIDTH - 4}"/>']
    for value, y in ((y1, TOP), (y0, HEIGHT - TOP)):
        marks.append(
            f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{escape(short(float(f"{value:.2g}")))}</text>'
        )
    for line in lines:
        if line.curve[1]:
            marks.append(path(line.curve, "raw", line.colour))
            marks.append(path(smoothed(line.curve), "line", line.colour))
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}"'
    return Markup(f'<svg class="spark" {box}>{"".join(marks)}</svg>')


def smoothed(curve: Curve) -> Curve:
    """Centred mean over about a tenth of the curve, narrower towards both ends."""
    xs, ys = curve
    half = max(1, math.ceil(len(ys) / 20))
    reach = [min(half, i, len(ys) - 1 - i) for i in range(len(ys))]
    return xs, [sum(ys[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]
