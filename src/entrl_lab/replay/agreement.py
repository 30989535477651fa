"""How well predictions agree with measurements: rank correlations, a line through the origin, intervals over windows.

    spearman  Pearson correlation of ranks, ties sharing their mean rank
    kendall   tau-b = (concordant - discordant) / sqrt((n0 - ties_x)(n0 - ties_y)),  n0 = n (n - 1) / 2
    scale     sum x y / sum x^2, the least-squares slope of y = scale x
    r2        1 - sum (y - scale x)^2 / sum (y - mean y)^2: what the line explains beyond y's own mean; may be negative

Intervals are percentile bootstraps over windows: the settings of one window share its rows and its parameters, so
windows are what is independent (nearly: those of one run follow one another). A resample repeats some windows and
misses others, which only adds noise to an order, so the interval of a rank correlation near 1 may lie below its value.

Source:  textbook; scipy's `spearmanr` and `kendalltau` give the same numbers with a p each, at ten times the cost,
         which the resamples would pay
Needs:   plain lists of floats
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import scipy

from entrl.stats.intervals import tails

RESAMPLES = 2000
LEAST_WINDOWS = 3  # below it a bootstrap over windows says nothing

Item = TypeVar("Item")


class Interval(NamedTuple):
    """value with its 95 % interval; lo and hi are NaN where there were too few windows to resample."""

    value: float
    lo: float
    hi: float


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """In [-1, 1]; NaN where one side is constant or there are fewer than two values."""
    ranks_2N = scipy.stats.rankdata(_paired(x, y), axis=1)
    return _cosine(ranks_2N - ranks_2N.mean(1, keepdims=True))


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """tau-b in [-1, 1]; NaN where one side is constant or there are fewer than two values."""
    pairs_2N, (i, j) = _paired(x, y), np.triu_indices(len(x), 1)
    return _cosine(np.sign(pairs_2N[:, i] - pairs_2N[:, j]))


def _paired(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    if len(x) != len(y):
        raise ValueError(f"values are paired one to one, got {len(x)} and {len(y)}; drop the unmatched ones")
    return np.array([x, y], dtype=np.float64)


def _cosine(pairs_2N: np.ndarray) -> float:
    (xx, xy), (_, yy) = (pairs_2N @ pairs_2N.T).tolist()
    return xy / math.sqrt(xx * yy) if xx * yy > 0 else math.nan


def scale_through_origin(x: Sequence[float], y: Sequence[float]) -> float:
    """NaN where every x is 0."""
    return scale_of_moments([moments_of(x, y)])


def moments_of(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(sum x y, sum x^2), which add over windows."""
    return sum(a * b for a, b in zip(x, y, strict=True)), sum(a * a for a in x)


def scale_of_moments(moments: Sequence[tuple[float, float]]) -> float:
    """`scale_through_origin` out of added moments; NaN where every x is 0."""
    square = sum(m[1] for m in moments)
    return sum(m[0] for m in moments) / square if square > 0 else math.nan


def r_squared(x: Sequence[float], y: Sequence[float], scale: float) -> float:
    """NaN where every y is the same."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    spread = float(((b - b.mean()) ** 2).sum()) if len(b) else 0.0
    return 1 - float(((b - scale * a) ** 2).sum()) / spread if spread > 0 else math.nan


def over_windows(
    windows: Sequence[Item], statistic: Callable[[Sequence[Item]], float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """`statistic` of all windows, with its interval when windows are drawn with replacement.

    A resample on which the statistic is not defined is left out; with more than a tenth of them there is no interval.
    """
    value = statistic(windows)
    if len(windows) < LEAST_WINDOWS:
        return Interval(value, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(windows), (resamples, len(windows)))
    found = np.array([statistic([windows[i] for i in draw]) for draw in draws])
    found = found[np.isfinite(found)]
    if len(found) < 0.9 * resamples:
        return Interval(value, math.nan, math.nan)
    lo, hi = np.quantile(found, tails())
    return Interval(value, float(lo), float(hi))


class Pairs(NamedTuple):
    """One window: predicted and measured change of each setting, in one order of settings for all windows."""

    predicted: tuple[float, ...]
    measured: tuple[float, ...]


def setting_means(windows: Sequence[Pairs]) -> Pairs:
    """Means over windows, setting by setting."""
    predicted = np.array([w.predicted for w in windows]).mean(0)
    measured = np.array([w.measured for w in windows]).mean(0)
    return Pairs(tuple(predicted.tolist()), tuple(measured.tolist()))


class Agreement(NamedTuple):
    """Rank correlations and, for the calibrated reading, the line through the origin.

    spearman_of_means, kendall_of_means: settings ranked by their means over windows ("the same order as training")
    spearman_within, kendall_within: mean over windows of each window's own correlation
    spearman_per_window: those, in the order of the windows
    scale, r2: measured difference from the first setting against the predicted one, all windows and settings
    """

    spearman_of_means: Interval
    kendall_of_means: Interval
    spearman_within: Interval
    kendall_within: Interval
    spearman_per_window: list[float]
    scale: Interval
    r2: float


def agreement(windows: Sequence[Pairs]) -> Agreement:
    """Predicted against measured changes; the first setting is the reference of the differences."""

    def of_means(rank: Callable[[Sequence[float], Sequence[float]], float]) -> Callable[[Sequence[Pairs]], float]:
        return lambda some: rank(*setting_means(some))

    def within(rank: Callable[[Sequence[float], Sequence[float]], float]) -> Interval:
        found = [r for r in (rank(*w) for w in windows) if not math.isnan(r)]
        return over_windows(found, lambda some: sum(some) / len(some)) if found else Interval(*[math.nan] * 3)

    x, y = differences(windows)
    moments = [moments_of(*differences([w])) for w in windows]
    scale = over_windows(moments, scale_of_moments)
    return Agreement(
        spearman_of_means=over_windows(windows, of_means(spearman)),
        kendall_of_means=over_windows(windows, of_means(kendall)),
        spearman_within=within(spearman),
        kendall_within=within(kendall),
        spearman_per_window=[spearman(*w) for w in windows],
        scale=scale,
        r2=r_squared(x, y, scale.value),
    )


def differences(windows: Sequence[Pairs]) -> tuple[list[float], list[float]]:
    """Every setting's change minus the first setting's in the same window: what all settings share (the optimiser's
    momentum, the rows) drops out."""
    x = [p - w.predicted[0] for w in windows for p in w.predicted[1:]]
    y = [m - w.measured[0] for w in windows for m in w.measured[1:]]
    return x, y
