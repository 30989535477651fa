"""The law section of the report: accuracy against e^H, the fitted line and its ceiling, and how forecasts did.

Drawn here as SVG rather than by the page's script: the picture is one scatter with a band, and it must also be there
in a printed or saved page. Colours are classes of page.css, so they follow the reader's light or dark setting.

Needs: `entrl.stats.law` and `entrl.stats.forecasts`; the rows of `entrl.report.read`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from entrl.report.read import RunFolder
from entrl.settings.json_lines import is_number
from entrl.stats.forecasts import judge
from entrl.stats.law import LawFit, LawIntervals, LawRefused, Series, bootstrap_law, fit_law, held_by, law_series

WIDTH, HEIGHT = 560, 320  # of the drawing, CSS pixels at full width
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 40  # margins for ticks and titles
MAX_DOTS = 400
LINE_POINTS = 40
SHARED_NOISE = 0.3  # correlation above which rollout luck is worth a sentence
FORECASTS = {  # in the order of the table; what each is told of the future
    "law_given_entropy": ("Law, told the later entropies", True),
    "law_given_trend": ("Law, told their trend", True),
    "law_forecast": ("Law, entropy forecast too", False),
    "last_value": ("Last value", False),
    "recent_mean": ("Mean of the last third", False),
    "saturation": ("Saturating curve of time", False),
    "sigmoid": ("ScaleRL sigmoid of time", False),
}
IN_SAMPLE = {"law_given_entropy": "law", "saturation": "saturation", "sigmoid": "sigmoid"}


class ForecastRow(NamedTuple):
    """One line of the table as text; numbers in points of accuracy."""

    label: str
    told: bool
    rmse: str
    mae: str
    final: str
    r2: str
    refused: str


@dataclass(frozen=True, kw_only=True)
class LawCard:
    """One run's part of the section; `svg` is empty where there is no point to draw."""

    name: str
    svg: Markup
    facts: dict[str, str]
    refused: str  # why there is no fit, or ""
    interventions: list[str]
    forecasts: list[ForecastRow] = field(default_factory=list)
    caption: str = ""  # of the table, or why there is none
    notes: list[str] = field(default_factory=list)


def law_card(run: RunFolder) -> LawCard:
    """Fit, intervals, drawing and judgement of one run."""
    series, tested = law_series(run.train, run.evals)
    fit, ends, refused = _fit(series)
    caption, rows, noise = _forecasts(series)
    facts = {"Points used": f"{len(series.times)}, accuracy of {'evaluations' if tested else 'rollouts'}"}
    if fit is not None:
        low, high = fit.entropy_range
        facts["Entropy, nats"] = f"{low:.3f} to {high:.3f} (e^H {fit.exp_range[0]:.3f} to {fit.exp_range[1]:.3f})"
        facts |= _coefficients(fit, ends)
    return LawCard(
        name=run.name,
        svg=_drawing(series, fit, ends) if len(series.times) else Markup(),
        facts=facts,
        refused=refused,
        interventions=interventions_of(run),
        forecasts=rows,
        caption=caption,
        notes=_notes(tested, noise),
    )


def interventions_of(run: RunFolder) -> list[str]:
    """What the recipe holds entropy with; a logged flag without a name comes from a reward that reads entropies."""
    entries = run.recipe.get("controllers") or []
    found = [f"controller {e.get('use', e) if isinstance(e, dict) else e}" for e in entries]
    options = run.recipe.get("trainer")
    found += held_by(options) if isinstance(options, dict) else []
    flagged = any(row.get("law/intervention") for row in run.train)
    return found or (["a reward that reads entropies"] if flagged else [])


def _fit(series: Series) -> tuple[LawFit | None, LawIntervals | None, str]:
    try:
        fit = fit_law(series.entropy, series.accuracy, times_N=series.times)
    except LawRefused as refused:
        return None, None, str(refused)
    try:
        return fit, bootstrap_law(series.entropy, series.accuracy, seed=0), ""
    except LawRefused:  # a handful of points: a line, but no interval
        return fit, None, ""


def _coefficients(fit: LawFit, ends: LawIntervals | None) -> dict[str, str]:
    def text(value: float, interval: tuple[float, float] | None, scale: float, digits: int) -> str:
        around = "" if interval is None else f" [{interval[0] * scale:.{digits}f}, {interval[1] * scale:.{digits}f}]"
        return f"{value * scale:.{digits}f}{around}".replace("-", "−")

    return {
        "Ceiling at H = 0, %": text(fit.ceiling, None if ends is None else ends.ceiling, 100, 1),
        "a": text(fit.a, None if ends is None else ends.a, 1, 3),
        "b": text(fit.b, None if ends is None else ends.b, 1, 3),
        "R² in sample": f"{fit.r2:.3f}",
        "Residual, points": f"{100 * fit.rmse:.1f}",
        "Trend in e^H": f"{fit.reliability:.0%} of its variance",
    }


def _forecasts(series: Series) -> tuple[str, list[ForecastRow], float | None]:
    """(caption, rows, shared noise); without late points there is a reason in place of a table."""
    if not len(series.times):
        return "", [], None
    try:
        out = judge(series.times, series.entropy, series.accuracy)
    except ValueError as reason:  # not an accuracy: outside [0, 1]
        return f"Not judged out of sample: {reason}", [], None
    if not out["late_points"] or out["early_points"] < 2:
        return f"Not judged out of sample: {out['early_points']} points in the first 15 %.", [], out["shared_noise"]
    rows = [_row(name, out) for name in FORECASTS]
    floor = "" if out["noise_floor"] is None else f"; a perfect forecast would err by {100 * out['noise_floor']:.1f}"
    caption = (
        f"Fitted on the first 15 % of the run ({out['early_points']} points), scored on the last 60 % "
        f"({out['late_points']} points); errors in points of accuracy{floor}."
    )
    return caption, rows, out["shared_noise"]


def _row(name: str, out: dict[str, Any]) -> ForecastRow:
    label, told = FORECASTS[name]
    found = out["forecasts"][name]
    r2 = out["in_sample_r2"].get(IN_SAMPLE.get(name, ""))
    shown = "" if r2 is None else f"{r2:.2f}".replace("-", "−")
    if "refused" in found:
        return ForecastRow(label, told, "", "", "", shown, found["refused"])
    final = f"{100 * found['final_error']:+.1f}".replace("-", "−")
    return ForecastRow(label, told, f"{100 * found['rmse']:.1f}", f"{100 * found['mae']:.1f}", final, shown, "")


def _notes(tested: bool, noise: float | None) -> list[str]:
    if tested or noise is None or abs(noise) < SHARED_NOISE:
        return []
    size = f"{noise:+.2f}".replace("-", "−")
    return [
        f"Entropy and accuracy come from the same rollouts and share their luck (correlation of the noise {size}): "
        "a law told the later entropies is told part of the answer. Measure accuracy on held-out problems instead "
        "(eval.at: early)."
    ]


# --- drawing ----------------------------------------------------------------------------------------------------


class _Axes(NamedTuple):
    """Data limits, and where a point lies in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _drawing(series: Series, fit: LawFit | None, ends: LawIntervals | None) -> Markup:
    exp_N, share_N = np.exp(series.entropy), 100 * series.accuracy
    xs, ys = [exp_N.min(), exp_N.max()], [share_N.min(), share_N.max()]
    if fit is not None:  # the ceiling belongs on the picture, at e^H = 1
        xs.append(1.0)
        ys += [100 * fit.ceiling] if ends is None else [100 * v for v in ends.ceiling]
    axes = _Axes(_widened(xs), _widened(ys))
    parts = [_grid(axes)]
    if fit is not None:
        parts.append(_line(axes, fit, ends))
    parts.append(_dots(axes, series))
    label = f"Accuracy against e to the entropy, {len(exp_N)} points" + ("" if fit is None else ", with the fitted law")
    return Markup('<svg class="law" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def _widened(values: Sequence[float]) -> tuple[float, float]:
    lo, hi = float(min(values)), float(max(values))
    margin = 0.04 * (hi - lo) or 0.05 * abs(hi) or 1.0
    return lo - margin, hi + margin


def _grid(axes: _Axes) -> Markup:
    out = []
    for value in ticks(*axes.x):
        x, _ = axes.at(value, axes.y[0])
        out.append(
            Markup('<path class="grid" d="M{0:.1f} {1}V{2}"/><text x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>')
            .format(x, TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 15, _number(value))
        )  # fmt: skip
    for value in ticks(*axes.y):
        _, y = axes.at(axes.x[0], value)
        out.append(
            Markup('<path class="grid" d="M{0} {1:.1f}H{2}"/><text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>')
            .format(LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, _number(value))
        )  # fmt: skip
    titles = Markup(
        '<text x="{}" y="{}" text-anchor="middle">e^H, H in nats per token (falling entropy: to the left)</text>'
        '<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">accuracy, %</text>'
    ).format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, (TOP + HEIGHT - BOTTOM) / 2)
    return Markup("").join([*out, titles])


def _line(axes: _Axes, fit: LawFit, ends: LawIntervals | None) -> Markup:
    """Band, line and ceiling; dashed where the line leaves the measured entropies."""
    exp_M = np.linspace(1.0, fit.exp_range[1], LINE_POINTS)
    out = []
    if ends is not None:
        lo_M, hi_M = (100 * v for v in ends.predict(np.log(exp_M)))
        around = [*zip(exp_M, hi_M, strict=True), *zip(exp_M[::-1], lo_M[::-1], strict=True)]
        out.append(Markup('<path class="band" d="{}Z"/>').format(_path(axes, around)))
    inside = [(x, 100 * float(fit.predict(math.log(x)))) for x in fit.exp_range]
    beyond = [(1.0, 100 * fit.ceiling), inside[0]]
    out.append(Markup('<path class="fit" d="{}"/>').format(_path(axes, inside)))
    out.append(Markup('<path class="fit beyond" d="{}"/>').format(_path(axes, beyond)))
    x, y = axes.at(1.0, 100 * fit.ceiling)
    if ends is not None:
        (_, low), (_, high) = (axes.at(1.0, 100 * v) for v in ends.ceiling)
        out.append(
            Markup('<path class="fit" d="M{0:.1f} {2:.1f}V{3:.1f}M{1:.1f} {2:.1f}h8M{1:.1f} {3:.1f}h8"/>')
            .format(x, x - 4, low, high)
        )  # fmt: skip
    dot = '<circle class="ceiling" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>ceiling {:.1f} %</title></circle>'
    out.append(Markup(dot).format(x, y, 100 * fit.ceiling))
    return Markup("").join(out)


def _path(axes: _Axes, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join("{:.1f} {:.1f}".format(*axes.at(x, y)) for x, y in points)


def _dots(axes: _Axes, series: Series) -> Markup:
    """Points of the run, faint at the start and full at the end; long runs thinned evenly."""
    stride = max(1, math.ceil(len(series.times) / MAX_DOTS))
    last = max(float(series.times[-1]), 1.0)
    out = []
    for time, entropy, accuracy in list(zip(*series, strict=True))[::stride]:
        x, y = axes.at(math.exp(entropy), 100 * accuracy)
        out.append(
            Markup(
                '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.2" style="opacity:{:.2f}">'
                "<title>after {:.0f} steps: H {:.3f} nats, accuracy {:.1f} %</title></circle>"
            ).format(x, y, 0.25 + 0.75 * time / last, time, entropy, 100 * accuracy)
        )
    return Markup("").join(out)


def ticks(lo: float, hi: float, count: int = 6) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) inside [lo, hi]."""
    raw = (hi - lo) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float) -> str:
    return str(escape(f"{value:g}".replace("-", "−"))) if is_number(value) else ""
