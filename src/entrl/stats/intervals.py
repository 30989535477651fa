"""Intervals of one mean or one share: Student's t, Wilson, the percentile bootstrap.

    Student    mean -+ t_{0.975, n-1} * sd / sqrt(n)               few values, such as one a seed
    Wilson     of k right among n                                  stays in [0, 1], has a width even at 0 of n
    bootstrap  2.5 % and 97.5 % points of the means of resamples   values drawn with replacement, fixed seed

Source:  textbook; Wilson 1927. Distributions, Wilson's interval and the resampling are scipy's
Needs:   scipy, whose `stats` (half a second) is loaded by the first interval, not by the import of this file
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

RESAMPLES = 10_000  # percentile noise of about 1 % of the interval's width
CONFIDENCE = 0.95


class MeanInterval(NamedTuple):
    mean: float
    lo: float
    hi: float


def tails(confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two probabilities between which an interval lies."""
    return (1 - confidence) / 2, (1 + confidence) / 2


def mean_interval(values: Sequence[float] | np.ndarray, *, confidence: float = CONFIDENCE) -> MeanInterval:
    """Mean over seeds with Student's t interval."""
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, got {len(values)}; run more seeds")
    values_N = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values_N).all():
        raise ValueError("a seed's value is NaN or infinite; an arm that failed must be reported, not averaged")
    n = len(values_N)
    standard_error = float(values_N.std(ddof=1)) / math.sqrt(n)
    return student_interval(float(values_N.mean()), standard_error, n - 1, confidence=confidence)


def student_interval(mean: float, standard_error: float, df: int, *, confidence: float = CONFIDENCE) -> MeanInterval:
    """mean -+ t_{df} * standard error."""
    half = float(scipy.stats.t.ppf(tails(confidence)[1], df)) * standard_error
    return MeanInterval(mean, mean - half, mean + half)


def interval_entry(values: Sequence[float]) -> dict[str, float | None]:
    """`mean_interval` as results hold it: lo and hi None for one value, all None for none."""
    if len(values) < 2:
        return {"mean": values[0] if values else None, "lo": None, "hi": None}
    return dict(mean_interval(values)._asdict())


def wilson_interval(right: int, n: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Of a proportion, `right` of `n`."""
    found = scipy.stats.binomtest(int(right), n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_interval(
    values_N: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Percentile interval of the mean; the same numbers for the same seed on every machine. One value is its own."""
    if len(values_N) == 1:
        return float(values_N[0]), float(values_N[0])
    found = scipy.stats.bootstrap(
        (values_N,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(values_N)),  # 16 MB of indices at a time
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
