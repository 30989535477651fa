"""The slope of a logistic regression on one number, finite also where nearly every trial succeeds.

    p(x) = 1 / (1 + exp(-(a + b (x - mean x))))
    l*(a, b) = log-likelihood + 0.5 ln det I(a, b)          I the Fisher information
    interval: the b with 2 (max l* - max_a l*(a, b)) <= chi2_{0.95, 1}

A slope is also given in points per unit: 100 b p (1 - p) at the mean of x, with p as fitted there.

Source:  Firth 1993 (penalised likelihood); Heinze and Schemper 2002 (its profile interval)
Needs:   scipy
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

SEARCH = 30.0  # largest |slope| and |intercept| looked at: odds of e^30 per unit


class Slope(NamedTuple):
    slope: float  # log odds per unit of x
    lo: float
    hi: float
    p: float  # fitted probability at the mean of x

    @property
    def points(self) -> tuple[float, float, float]:
        """Slope and interval as percentage points per unit at the mean."""
        scale = 100 * self.p * (1 - self.p)
        return self.slope * scale, self.lo * scale, self.hi * scale


def logistic_slope(x: Sequence[float], successes: Sequence[bool], *, confidence: float = 0.95) -> Slope:
    """Fit `successes` on `x`. Raises ValueError where x has no spread: no slope can be told."""
    values_K, where_N = np.unique(np.asarray(x, dtype=np.float64), return_inverse=True)
    if len(values_K) < 2:
        raise ValueError(f"x has {len(values_K)} different values; a slope needs at least 2")
    trials_K = np.bincount(where_N).astype(np.float64)
    right_K = np.bincount(where_N, weights=np.asarray(successes, dtype=np.float64))
    centred_K = values_K - np.average(values_K, weights=trials_K)

    def penalised(a: float, b: float) -> float:
        eta_K = a + b * centred_K
        weight_K = trials_K * scipy.special.expit(eta_K) * scipy.special.expit(-eta_K)
        moments = [(weight_K * centred_K**power).sum() for power in range(3)]
        information = max(moments[0] * moments[2] - moments[1] ** 2, 1e-300)
        likelihood = -(right_K * np.logaddexp(0, -eta_K) + (trials_K - right_K) * np.logaddexp(0, eta_K)).sum()
        return float(likelihood + 0.5 * np.log(information))

    def profile(b: float) -> tuple[float, float]:
        best = scipy.optimize.minimize_scalar(lambda a: -penalised(a, b), bounds=(-SEARCH, SEARCH), method="bounded")
        return -float(best.fun), float(best.x)

    best = scipy.optimize.minimize_scalar(lambda b: -profile(b)[0], bounds=(-SEARCH, SEARCH), method="bounded")
    slope, top = float(best.x), -float(best.fun)
    drop = float(scipy.stats.chi2.ppf(confidence, 1)) / 2

    def left(b: float) -> float:
        return top - profile(b)[0] - drop

    lo, hi = (_crossing(left, slope, end) for end in (-SEARCH, SEARCH))
    return Slope(slope, lo, hi, float(scipy.special.expit(profile(slope)[1])))


def _crossing(left, inside: float, end: float) -> float:  # type: ignore[no-untyped-def]
    """Where the profile has fallen far enough; the end of the search where it has not."""
    return end if left(end) < 0 else float(scipy.optimize.brentq(left, *sorted((inside, end)), xtol=1e-6))
