"""Forecasts of a run from its first part: the law of `entrl.stats.law` against curves that know nothing of entropy.

    law_given_entropy   told the later entropies: the paper's way, information no baseline has
    law_given_trend     told only their smooth trend
    law_forecast        told nothing of the future, like the baselines: the last value, the mean of the last third, a
                        time-only saturation curve and ScaleRL's sigmoid

Almost any saturating curve fits in sample, because entropy falls and accuracy rises on the same clock; only forecasts
of points that were not fitted say anything.

Source:  arXiv 2505.22617, section 2.4 (forecast of the later run from the first 15 %)
Differs: the three forms above, which must not be mixed, and the baselines
Needs:   `entrl.stats.law`, `entrl.stats.learning_curves`

H and R measured on the *same* rollouts share their luck: a batch of hard prompts has high entropy and low accuracy
whatever the policy does. `judge(...)["shared_noise"]` measures that; above 0 in size, a law told later entropies is
told part of the answer. Measure R on fixed held-out problems (`eval.at`) to be free of it.

Letters: N points in time order, M predicted points.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from entrl.stats.intervals import interval_entry
from entrl.stats.law import MIN_SERIES, LawFit, LawRefused, Series, finite_rows, fit_law, noise_of
from entrl.stats.learning_curves import CurveRefused, fit_curve

LAW_FORMS = ("law_given_entropy", "law_given_trend", "law_forecast")
BASELINES = ("last_value", "recent_mean", "saturation", "sigmoid")


def judge(
    times: ArrayLike,
    entropy: ArrayLike,
    accuracy: ArrayLike,
    *,
    early: float = 0.15,
    late: float = 0.6,
    bounds: tuple[float, float] = (0.0, 1.0),
    refuse: bool = True,
) -> dict[str, Any]:
    """Fit everything on the first `early` share of the run, score it on the last `late` share.

    times: steps counted from 0, ascending. Shares are of time up to the last point, not of points: dense early
    evaluation must not move the line between past and future. bounds: of an accuracy; every forecast is clipped to
    them, the law's and the baselines' alike. refuse: False scores the law also where its early fit is refused.

    Returns, ready for JSON:
        forecasts      name -> {rmse, mae, final_error (forecast - measured at the last point)} or {refused: why}
        in_sample_r2   name -> R^2 of the fit to *all* points (None where there is none)
        law            coefficients of the early fit, or None
        noise_floor    RMSE that a perfect forecast of the trend would still have on the late points, or None
        shared_noise   correlation of the point-to-point noise of e^H and accuracy, or None
        n, dropped, early_points, late_points, early_until, late_from
    """
    if not (0 < early < 1 and 0 < late < 1 and early + late <= 1):
        raise ValueError(
            f"early and late must lie in (0, 1) and add up to at most 1, got {early} and {late}; "
            "a forecast is only scored on points that were not fitted"
        )
    (times_N, entropy_N, accuracy_N), dropped = finite_rows(times, entropy, accuracy)
    if not len(times_N) or times_N[0] < 0 or (np.diff(times_N) < 0).any():
        raise ValueError(f"times must be ascending from 0 on, got {times_N[:4].tolist()}...; sort the points by step")
    if accuracy_N.min() < bounds[0] or accuracy_N.max() > bounds[1]:
        raise ValueError(
            f"accuracy runs from {accuracy_N.min():g} to {accuracy_N.max():g}, outside {bounds}; "
            "give shares, or pass bounds=(0, 100) for points"
        )
    past_N, future_N = times_N <= early * times_N[-1], times_N > (1 - late) * times_N[-1]
    past, whole = (Series(times_N[k], entropy_N[k], accuracy_N[k]) for k in (past_N, np.ones_like(past_N)))
    future = Series(times_N[future_N], entropy_N[future_N], accuracy_N[future_N])
    law, forecasts = _forecasts(past, whole, future, bounds, refuse)
    floor_N = noise_of(future.accuracy, future.times) if len(future.times) > 2 else np.array([])
    return {
        "n": len(times_N),
        "dropped": dropped,
        "early_points": len(past.times),
        "late_points": len(future.times),
        "early_until": early * float(times_N[-1]),
        "late_from": (1 - late) * float(times_N[-1]),
        "law": None if law is None else asdict(law),
        "forecasts": {name: _score(made, future, bounds) for name, made in forecasts.items()},
        "in_sample_r2": _in_sample(whole, bounds),
        "noise_floor": float(np.sqrt(np.mean(floor_N**2))) if len(floor_N) else None,
        "shared_noise": shared_noise(whole),
    }


def _forecasts(
    past: Series, whole: Series, future: Series, bounds: tuple[float, float], refuse: bool
) -> tuple[LawFit | None, dict[str, np.ndarray | str]]:
    """(the law on the past, name -> forecast of the future or why there is none)."""
    made: dict[str, np.ndarray | str] = {}
    fit: LawFit | None = None
    try:
        fit = fit_law(past.entropy, past.accuracy, times_N=past.times, min_points=MIN_SERIES, refuse=refuse)
        made["law_given_entropy"] = fit.predict(future.entropy)
    except LawRefused as refused:
        made |= dict.fromkeys(LAW_FORMS, str(refused))
    if fit is not None:
        # The trend of the whole run is known to the one, of the past alone to the other; neither sees single points.
        for name, known in (("law_given_trend", whole), ("law_forecast", past)):
            try:
                decay = fit_curve("saturation", known.times, known.entropy, bounds=(0.0, math.inf))
                made[name] = fit.predict(np.maximum(decay.predict(future.times), 0.0))
            except CurveRefused as refused:
                made[name] = str(refused)
    if len(past.times):
        ones = np.ones(len(future.times))
        made["last_value"] = ones * past.accuracy[-1]
        made["recent_mean"] = ones * past.accuracy[-max(1, len(past.accuracy) // 3) :].mean()
    else:
        made |= dict.fromkeys(("last_value", "recent_mean"), "no point in the early share; evaluate earlier")
    for kind in ("saturation", "sigmoid"):
        try:
            made[kind] = fit_curve(kind, past.times, past.accuracy, bounds=bounds).predict(future.times)
        except CurveRefused as refused:
            made[kind] = str(refused)
    return fit, made


def _score(made: np.ndarray | str, future: Series, bounds: tuple[float, float]) -> dict[str, Any]:
    if isinstance(made, str):
        return {"refused": made}
    if not len(future.times):
        return {"refused": "no point in the late share of the run; evaluate later as well"}
    error_M = np.clip(made, *bounds) - future.accuracy
    return {
        "rmse": float(np.sqrt(np.mean(error_M**2))),
        "mae": float(np.mean(np.abs(error_M))),
        "final_error": float(error_M[-1]),
    }


def _in_sample(whole: Series, bounds: tuple[float, float]) -> dict[str, float | None]:
    """R^2 of each fit to all points: high for nearly everything that saturates, which is the point of showing it."""
    found: dict[str, float | None] = dict.fromkeys(("law", "saturation", "sigmoid"))
    with suppress(LawRefused):  # one entropy only: nothing to show
        found["law"] = fit_law(whole.entropy, whole.accuracy, refuse=False).r2
    for kind in ("saturation", "sigmoid"):
        with suppress(CurveRefused):
            found[kind] = fit_curve(kind, whole.times, whole.accuracy, bounds=bounds).r2
    return found


def shared_noise(series: Series) -> float | None:
    """Correlation of the point-to-point noise of e^H with that of accuracy; None below MIN_SERIES points."""
    if len(series.times) < MIN_SERIES:
        return None
    x, y = noise_of(np.exp(series.entropy), series.times), noise_of(series.accuracy, series.times)
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def judge_many(runs: Sequence[Series | tuple[Any, Any, Any]], **options: Any) -> dict[str, Any]:
    """`judge` for several seeds of one setting, and law minus baseline in RMSE with t intervals over the seeds.

    Returns {"runs": [...], "refused": law form -> number of runs, "differences": law form -> baseline ->
    {mean, lo, hi, n}}; negative means the law forecasts better, lo and hi are None with fewer than two runs. Runs in
    which either side was refused are left out of that difference, so read `refused` beside it.
    """
    judged = [judge(*run, **options) for run in runs]
    differences: dict[str, dict[str, Any]] = {}
    for form in LAW_FORMS:
        differences[form] = {}
        for baseline in BASELINES:
            pairs = [
                (j["forecasts"][baseline]["rmse"], j["forecasts"][form]["rmse"])
                for j in judged
                if "rmse" in j["forecasts"][baseline] and "rmse" in j["forecasts"][form]
            ]
            differences[form][baseline] = {**interval_entry([b - a for a, b in pairs]), "n": len(pairs)}
    refused = {form: sum("refused" in j["forecasts"][form] for j in judged) for form in LAW_FORMS}
    return {"runs": judged, "refused": refused, "differences": differences}
