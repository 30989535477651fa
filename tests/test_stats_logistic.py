"""Firth's slope: by hand where it has a closed form, near maximum likelihood with many errors, finite with none."""

import math

import numpy as np
import pytest
import scipy

from entrl.stats.logistic import logistic_slope


def test_two_values_by_hand() -> None:
    # Two values and two parameters: Firth adds half a success and half a failure to each, so the odds are
    # 10.5 / 2.5 at x = 1 and 6.5 / 6.5 at x = 0, and the slope is ln(4.2).
    x = [0.0] * 12 + [1.0] * 12
    right = [True] * 6 + [False] * 6 + [True] * 10 + [False] * 2
    found = logistic_slope(x, right)
    assert found.slope == pytest.approx(math.log(4.2), abs=1e-4)
    assert found.p == pytest.approx(1 / (1 + math.exp(-math.log(4.2) / 2)), abs=1e-4)
    assert found.lo < found.slope < found.hi
    scale = 100 * found.p * (1 - found.p)
    assert found.points == pytest.approx((found.slope * scale, found.lo * scale, found.hi * scale))


def test_many_trials_agree_with_maximum_likelihood() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 20_000).astype(float)
    right = rng.random(20_000) < scipy.special.expit(0.4 - 0.25 * x)
    found = logistic_slope(x, right)
    centred = x - x.mean()

    def loss(ab: np.ndarray) -> float:
        eta = ab[0] + ab[1] * centred
        return float(np.logaddexp(0, np.where(right, -eta, eta)).sum())

    best = scipy.optimize.minimize(loss, np.zeros(2))
    error = math.sqrt(best.hess_inv[1, 1])
    assert found.slope == pytest.approx(best.x[1], abs=0.02 * error)
    assert found.lo == pytest.approx(best.x[1] - 1.96 * error, abs=0.1 * error)
    assert found.hi == pytest.approx(best.x[1] + 1.96 * error, abs=0.1 * error)
    assert found.lo < -0.25 < found.hi


def test_no_error_at_all_has_a_finite_interval_of_points() -> None:
    found = logistic_slope([0, 1, 2, 3] * 1000, [True] * 4000)
    assert found.slope == pytest.approx(0.0, abs=1e-3)
    points, lo, hi = found.points
    assert -0.5 < lo < points < hi < 0.5


def test_a_slope_that_is_there_is_not_within_half_a_point() -> None:
    right = [i % 100 >= 3 * x for x in range(4) for i in range(1000)]  # 3 points lost with each unit
    _, lo, hi = logistic_slope([x for x in range(4) for _ in range(1000)], right).points
    assert lo < hi < -0.5


def test_no_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="x has 1 different values; a slope needs at least 2"):
        logistic_slope([2, 2, 2], [True, False, True])
