"""The law of entropy and accuracy, R = -a e^H + b, and the comparisons that can prove it wrong.

    R   accuracy on held-out problems, as a share          H   policy entropy on training prompts, nats per token
    ceiling = b - a, the accuracy at H = 0                  dR/dH = -a e^H

Given e^H the law is linear in (a, b): ordinary least squares. Almost any saturating curve fits it in sample, because
entropy falls and accuracy rises on the same clock; only forecasts of points that were not fitted say anything
(`judge`), against the last value, a time-only saturation curve and ScaleRL's sigmoid.

Source:  arXiv 2505.22617, Eq. 6 and section 2.4 (forecast of the later run from the first 15 %). The paper names no
         fitting routine. Pseudo-residuals for the noise of an unevenly sampled series: Gasser, Sroka and
         Jennen-Steinmetz 1986. Moving blocks: Kuensch 1989.
Differs: the fit is refused where it would mean nothing (`LawRefused`), intervals are given, and the law is scored in
         three forms that must not be mixed: told the later entropies (the paper's way, information no baseline has),
         told only their smooth trend, and told nothing of the future.
Needs:   numpy

H and R measured on the *same* rollouts share their luck: a batch of hard prompts has high entropy and low accuracy
whatever the policy does. `Judgement["shared_noise"]` measures that; above 0 in size, a law told later entropies is told
part of the answer. Measure R on fixed held-out problems (`eval.at`) to be free of it.

Letters: N points in time order, M predicted points, S resamples.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entrl.stats.intervals import CONFIDENCE, seed_differences
from entrl.stats.learning_curves import CurveRefused, fit_curve

MIN_POINTS = 3  # two coefficients and one residual
MIN_SERIES = 6  # for an interval or a forecast: three blocks of two
# Range of e^H. The steepest a read off the paper's figures is 0.25: over a range of 0.02 even that moves accuracy by
# half a point, which no validation set of a few hundred problems can see.
MIN_RANGE = 0.02
# Share of the variance of e^H that is trend rather than noise from point to point. Noise in a regressor shrinks its
# slope by this factor; below 0.5 more than half of a, and of the climb to the ceiling, is lost to noise.
MIN_RELIABILITY = 0.5
# A short noisy series often looks like a trend: from MIN_SERIES points on, it must also beat its own shuffles.
MAX_CHANCE = 0.05
SHUFFLES = 999
ENTROPY = "policy_entropy/token_mean"
ACCURACY = "rewards/accuracy/mean"
LAW_FORMS = ("law_given_entropy", "law_given_trend", "law_forecast")
BASELINES = ("last_value", "recent_mean", "saturation", "sigmoid")


class LawRefused(ValueError):
    """The points cannot carry the law; the message names the values, the rule and the next move."""


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """a, b in accuracy (share); entropies in nats. `reliability` is the share of trend in the variance of e^H."""

    a: float
    b: float
    ceiling: float  # b - a
    r2: float  # in sample, hence weak evidence; 0 where the accuracy does not vary
    rmse: float
    n: int
    dropped: int  # points left out because entropy, accuracy or weight was not finite
    entropy_range: tuple[float, float]
    exp_range: tuple[float, float]  # of e^H
    reliability: float

    def predict(self, entropy: ArrayLike) -> np.ndarray:
        """Accuracy at each entropy (nats, any shape)."""
        return self.b - self.a * np.exp(np.asarray(entropy, dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class LawIntervals:
    """Bootstrap intervals of a fit; `a_S`, `b_S` are the resampled coefficients."""

    a: tuple[float, float]
    b: tuple[float, float]
    ceiling: tuple[float, float]
    block: int
    confidence: float
    a_S: np.ndarray
    b_S: np.ndarray

    def predict(self, entropy_M: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval of the fitted *line* at each entropy; a new measurement scatters more."""
        line_SM = self.b_S[:, None] - self.a_S[:, None] * np.exp(np.asarray(entropy_M, dtype=np.float64))
        lo_M, hi_M = np.quantile(line_SM, _tails(self.confidence), axis=0)
        return lo_M, hi_M


class Series(NamedTuple):
    """One run: times in steps counted from 0, ascending; entropy in nats; accuracy as a share."""

    times: np.ndarray
    entropy: np.ndarray
    accuracy: np.ndarray


# --- fit --------------------------------------------------------------------------------------------------------


def fit_law(
    entropy_N: ArrayLike,
    accuracy_N: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    times_N: ArrayLike | None = None,
    min_points: int = MIN_POINTS,
    refuse: bool = True,
) -> LawFit:
    """Least squares of R on -e^H and 1, over the points where everything is finite.

    weights: >= 0, such as the number of problems behind each accuracy
    times_N: when the points were measured, for the noise of e^H; None takes them as evenly spaced in the given order
    refuse: False fits whatever can be solved (for arithmetic and for showing what a refused fit would have said)
    Raises LawRefused: fewer than `min_points`, a range of e^H below MIN_RANGE, a trend of e^H lost in noise.
    """
    columns = [entropy_N, accuracy_N] if weights is None else [entropy_N, accuracy_N, weights]
    columns += [] if times_N is None else [times_N]
    (entropy_N, accuracy_N, *rest), dropped = _finite(*columns)
    weight_N = np.ones(len(entropy_N)) if weights is None else rest.pop(0)
    if (weight_N < 0).any():
        raise ValueError(f"weights must be >= 0, got {weight_N.min():g}; weigh by problems or rows behind the accuracy")
    exp_N = np.exp(entropy_N)
    reliability = trend_share(exp_N, rest[0] if rest else None)
    if refuse:
        _check_points(exp_N, rest[0] if rest else None, reliability, min_points, dropped)
    a, b = _least_squares(exp_N, accuracy_N, weight_N)
    error_N = accuracy_N - (b - a * exp_N)
    total = weight_N.sum()
    centred_N = accuracy_N - (weight_N @ accuracy_N) / total
    spread, missed = float(weight_N @ centred_N**2), float(weight_N @ error_N**2)
    return LawFit(
        a=a,
        b=b,
        ceiling=b - a,
        r2=1 - missed / spread if spread > 0 else 0.0,
        rmse=math.sqrt(missed / total),
        n=len(exp_N),
        dropped=dropped,
        entropy_range=(float(entropy_N.min()), float(entropy_N.max())),
        exp_range=(float(exp_N.min()), float(exp_N.max())),
        reliability=reliability,
    )


def trend_share(x_N: np.ndarray, times_N: np.ndarray | None = None) -> float:
    """1 - noise variance / variance of a series, in [0, 1]; 0 where it cannot be told (fewer than 3 points).

    The noise of a point is what is left of it after a straight line between its two neighbours in time. A trend that
    bends within three points counts as noise, noise that lasts over neighbours counts as trend.
    """
    spread = float(np.var(x_N, ddof=1)) if len(x_N) > 2 else 0.0
    return 0.0 if spread <= 0 else min(1.0, max(0.0, 1 - float(np.mean(_bumps(x_N, times_N) ** 2)) / spread))


def _bumps(x_N: np.ndarray, times_N: np.ndarray | None = None) -> np.ndarray:
    """Pseudo-residuals of the inner points, scaled so that independent noise of variance v has mean square v.

    x_N may have leading dimensions; points lie along the last one.
    """
    times_N = np.arange(x_N.shape[-1], dtype=np.float64) if times_N is None else times_N
    width = np.where(times_N[2:] > times_N[:-2], times_N[2:] - times_N[:-2], 1.0)  # equal times: the later neighbour
    left = np.where(times_N[2:] > times_N[:-2], (times_N[2:] - times_N[1:-1]) / width, 0.5)
    right = 1 - left
    return (left * x_N[..., :-2] + right * x_N[..., 2:] - x_N[..., 1:-1]) / np.sqrt(left**2 + right**2 + 1)


def trend_by_chance(x_N: np.ndarray, times_N: np.ndarray | None = None) -> float:
    """Share of random orders of the values (this one counted) whose trend share is at least as large."""
    draw = np.random.default_rng(0)  # fixed: the same series is always refused, or never
    shuffled_SN = draw.permuted(np.tile(x_N, (SHUFFLES, 1)), axis=1)
    rough_S = np.mean(_bumps(shuffled_SN, times_N) ** 2, axis=-1)
    return float(1 + (rough_S <= np.mean(_bumps(x_N, times_N) ** 2)).sum()) / (1 + SHUFFLES)


def _check_points(
    exp_N: np.ndarray, times_N: np.ndarray | None, reliability: float, min_points: int, dropped: int
) -> None:
    if len(exp_N) < min_points:
        lost = f" ({dropped} more were not finite)" if dropped else ""
        raise LawRefused(
            f"the law needs at least {min_points} points, got {len(exp_N)}{lost}; "
            "train longer, or evaluate more often early on (eval.at: early)"
        )
    width = float(exp_N.max() - exp_N.min())
    if width < MIN_RANGE:
        raise LawRefused(
            f"e^H runs from {exp_N.min():.4f} to {exp_N.max():.4f}, a range of {width:.4f}; below {MIN_RANGE} the "
            "slope a is not determined; fit a stretch of the run over which entropy falls further"
        )
    if reliability < MIN_RELIABILITY:
        raise LawRefused(
            f"only {reliability:.0%} of the variance of e^H is trend, the rest is noise from point to point; below "
            f"{MIN_RELIABILITY:.0%} the fitted a is less than half of the true one; average the entropy over more "
            "rows or several steps, or fit a longer stretch of the run"
        )
    chance = trend_by_chance(exp_N, times_N) if len(exp_N) >= MIN_SERIES else 0.0
    if chance > MAX_CHANCE:
        raise LawRefused(
            f"the trend of e^H over {len(exp_N)} points is no clearer than in {chance:.0%} of shuffled series; above "
            f"{MAX_CHANCE:.0%} it may be noise; average the entropy over more rows or several steps, or fit a longer "
            "stretch of the run"
        )


def _least_squares(exp_N: np.ndarray, accuracy_N: np.ndarray, weight_N: np.ndarray) -> tuple[float, float]:
    total = float(weight_N.sum())
    if total <= 0 or len(exp_N) < 2:
        raise LawRefused(f"no line through {len(exp_N)} points of total weight {total:g}; give at least 2 points")
    mean_x, mean_y = float(weight_N @ exp_N) / total, float(weight_N @ accuracy_N) / total
    spread = float(weight_N @ (exp_N - mean_x) ** 2)
    if spread <= total * (1e-12 * abs(mean_x)) ** 2:
        raise LawRefused(
            f"e^H is {mean_x:.6g} at every point, so a is not determined; fit points at different entropies"
        )
    a = -float(weight_N @ ((exp_N - mean_x) * (accuracy_N - mean_y))) / spread
    return a, mean_y + a * mean_x


def _finite(*columns: ArrayLike) -> tuple[list[np.ndarray], int]:
    """The rows in which every column is finite, and how many were left out."""
    arrays = [np.asarray(c, dtype=np.float64) for c in columns]
    if len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"the series must be 1-D and of one length, got {', '.join(str(a.shape) for a in arrays)}")
    good_N = np.logical_and.reduce([np.isfinite(a) for a in arrays])
    return [a[good_N] for a in arrays], int((~good_N).sum())


# --- intervals --------------------------------------------------------------------------------------------------


def default_block(n: int) -> int:
    """Points per block: n^(1/3) rounded up, at least 2. Fits noise that is forgotten within a few points."""
    return max(2, math.ceil(n ** (1 / 3) - 1e-9))


def bootstrap_law(
    entropy_N: ArrayLike,
    accuracy_N: ArrayLike,
    *,
    block: int | None = None,
    resamples: int = 2000,
    seed: int,
    confidence: float = CONFIDENCE,
) -> LawIntervals:
    """Percentile intervals from a moving-block bootstrap of the residuals; points in time order.

    Blocks of neighbours (default `default_block`) keep the autocorrelation that single points would lose; residuals
    are drawn rather than points because entropy falls over time and a draw of late points alone has no slope. They
    are centred, and widened by sqrt(n / (n - 2)) for the two fitted coefficients. Conditional on the entropies: noise
    of H itself is not in the interval (`LawFit.reliability` speaks of it). Short blocks leave the interval somewhat
    too narrow: measured with 60 points at 95 %, 93 % for independent noise, 85 % for AR(1) noise of 0.5 (73 % if single
    points were drawn).
    """
    (entropy_N, accuracy_N), dropped = _finite(entropy_N, accuracy_N)
    n = len(entropy_N)
    if n < MIN_SERIES:
        raise LawRefused(
            f"an interval needs at least {MIN_SERIES} points, got {n} ({dropped} more were not finite); "
            "evaluate more often, or fit a longer stretch of the run"
        )
    block = default_block(n) if block is None else block
    if not 1 <= block <= n // 2:
        raise ValueError(
            f"block must lie in 1..n/2 = {n // 2} points, got {block}; leave it out for {default_block(n)}"
        )
    exp_N = np.exp(entropy_N)
    a, b = _least_squares(exp_N, accuracy_N, np.ones(n))
    error_N = accuracy_N - (b - a * exp_N)
    starts = np.arange(n - block + 1)
    # Points near the ends are in fewer blocks, so the mean over all blocks is not 0 although the residuals' is.
    offset = error_N[starts[:, None] + np.arange(block)].mean()
    count = -(-n // block)
    first = np.random.default_rng(seed).choice(starts, size=(resamples, count))
    draw_SN = (first[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :n]
    noise_SN = (error_N[draw_SN] - offset) * math.sqrt(n / (n - 2))
    centred_N = exp_N - exp_N.mean()
    a_S = a - noise_SN @ centred_N / float(centred_N @ centred_N)
    b_S = (b - a * exp_N.mean()) + noise_SN.mean(1) + a_S * exp_N.mean()

    def ends(values_S: np.ndarray) -> tuple[float, float]:
        lo, hi = np.quantile(values_S, _tails(confidence))
        return float(lo), float(hi)

    return LawIntervals(
        a=ends(a_S), b=ends(b_S), ceiling=ends(b_S - a_S), block=block, confidence=confidence, a_S=a_S, b_S=b_S
    )


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


# --- out of sample ----------------------------------------------------------------------------------------------


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
    (times_N, entropy_N, accuracy_N), dropped = _finite(times, entropy, accuracy)
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
    floor_N = _bumps(future.accuracy, future.times) if len(future.times) > 2 else np.array([])
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
    x, y = _bumps(np.exp(series.entropy), series.times), _bumps(series.accuracy, series.times)
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
            differences[form][baseline] = _difference(pairs)
    refused = {form: sum("refused" in j["forecasts"][form] for j in judged) for form in LAW_FORMS}
    return {"runs": judged, "refused": refused, "differences": differences}


def _difference(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    if len(pairs) < 2:
        only = pairs[0][1] - pairs[0][0] if pairs else None
        return {"mean": only, "lo": None, "hi": None, "n": len(pairs)}
    found = seed_differences([p[0] for p in pairs], [p[1] for p in pairs])
    return {"mean": found.mean, "lo": found.lo, "hi": found.hi, "n": len(pairs)}


# --- interventions ----------------------------------------------------------------------------------------------


def held_by(options: Mapping[str, Any]) -> list[str]:
    """What among GRPOConfig options holds or shifts entropy, in words; missing ones count as TRL's defaults (off)."""
    found = []
    if coefficient := options.get("entropy_coef"):
        found.append(f"entropy_coef={coefficient:g}")
    if options.get("use_adaptive_entropy"):
        found.append("use_adaptive_entropy")
    if beta := options.get("beta"):
        found.append(f"beta={beta:g} (KL to the reference)")
    low, high = options.get("epsilon", 0.2), options.get("epsilon_high")
    if high is not None and high != low:
        found.append(f"epsilon_high={high:g} differs from epsilon={low:g}")
    if (share := options.get("top_entropy_quantile", 1.0)) != 1.0:
        found.append(f"top_entropy_quantile={share:g}")
    return found


# --- the series of a run ----------------------------------------------------------------------------------------


def law_series(
    train: Sequence[Mapping[str, Any]],
    evals: Sequence[Mapping[str, Any]],
    *,
    entropy: str = ENTROPY,
    accuracy: str = ACCURACY,
) -> tuple[Series, bool]:
    """(series, R is from evaluations) of a run, from rows as metrics.jsonl holds them, by ascending step.

    With at least MIN_SERIES evaluations R is theirs, paired with the training entropy nearest in time; otherwise R is
    the accuracy of the rollouts. A training row of step s was generated by the policy after s - 1 updates, and its
    time says so.
    """
    known = [(row["step"] - 1, row[entropy]) for row in train if _is_number(row.get(entropy))]
    tested = [(row["step"], row[accuracy]) for row in evals if _is_number(row.get(accuracy))]
    if known and len(tested) >= MIN_SERIES:
        times_M, entropy_M = np.array(known, dtype=np.float64).T
        times_N, accuracy_N = np.array(tested, dtype=np.float64).T
        nearest_N = np.abs(times_N[:, None] - times_M).argmin(1)
        return Series(times_N, entropy_M[nearest_N], accuracy_N), True
    both = [
        (row["step"] - 1, row[entropy], row[accuracy])
        for row in train
        if _is_number(row.get(entropy)) and _is_number(row.get(accuracy))
    ]
    columns = np.array(both, dtype=np.float64).reshape(-1, 3).T
    return Series(*columns), False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
