"""The law section of the report: accuracy against e^H, the fitted line and its ceiling, and how forecasts did.

Needs: `entrl.stats.law` and `entrl.stats.forecasts`; the rows of `entrl.report.read`
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from entrl.report.drawing import Frame, span
from entrl.report.read import RunRecord
from entrl.stats.forecasts import judge
from entrl.stats.law import LawFit, LawIntervals, LawRefused, Series, bootstrap_law, fit_law, held_by, law_series

WIDTH, HEIGHT = 560, 320  # of the drawing, CSS pixels at full width
AIR = 0.04  # share of the points' range around them
INK = "var(--ink)"
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


def law_card(run: RunRecord) -> LawCard:
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


def interventions_of(run: RunRecord) -> list[str]:
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


def _drawing(series: Series, fit: LawFit | None, ends: LawIntervals | None) -> Markup:
    """Points of the run, faint at the start and full at the end, long runs thinned evenly; and the law, if any."""
    exp_N, share_N = np.exp(series.entropy), 100 * series.accuracy
    at_zero: tuple[float, ...] = () if fit is None else (fit.ceiling,) if ends is None else ends.ceiling
    frame = Frame(
        x=span([*exp_N, *([] if fit is None else [1.0])], share=AIR),  # the ceiling belongs on the picture, at e^H = 1
        y=span([*share_N, *(100 * v for v in at_zero)], share=AIR),
        x_label="e^H, H in nats per token (falling entropy: to the left)",
        y_label="accuracy, %",
        label=f"Accuracy against e to the entropy, {len(exp_N)} points"
        + ("" if fit is None else ", with the fitted law"),
        width=WIDTH,
        height=HEIGHT,
    )
    if fit is not None:
        _line(frame, fit, ends)
    stride = max(1, math.ceil(len(exp_N) / MAX_DOTS))
    last = max(float(series.times[-1]), 1.0)
    for time, entropy, accuracy in list(zip(*series, strict=True))[::stride]:
        title = f"after {time:.0f} steps: H {entropy:.3f} nats, accuracy {100 * accuracy:.1f} %"
        look = f"var(--run);opacity:{0.25 + 0.75 * time / last:.2f}"
        frame.dot(math.exp(entropy), 100 * accuracy, look, title=title)
    return Markup(frame.svg())


def _line(frame: Frame, fit: LawFit, ends: LawIntervals | None) -> None:
    """Band, line and ceiling; dashed where the line leaves the measured entropies."""
    low, high = fit.exp_range
    if ends is not None:
        exp_M = np.linspace(1.0, high, LINE_POINTS)
        lo_M, hi_M = (100 * v for v in ends.predict(np.log(exp_M)))
        frame.band(exp_M.tolist(), lo_M.tolist(), hi_M.tolist(), "var(--quiet)")
        frame.rise(1.0, 100 * ends.ceiling[0], 100 * ends.ceiling[1], INK)
    at_low, at_high = (100 * float(fit.predict(math.log(x))) for x in (low, high))
    frame.line([low, high], [at_low, at_high], INK, kind="fit")
    frame.line([1.0, low], [100 * fit.ceiling, at_low], INK, kind="fit beyond")
    title = f"ceiling {100 * fit.ceiling:.1f} %"
    frame.dot(1.0, 100 * fit.ceiling, "var(--panel)", radius=4.5, title=title, kind="ceiling")
