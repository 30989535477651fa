"""Saturating curves: what made the data is found, bounds, slow twin of the levels."""

import math

import numpy as np
import pytest

from entrl.stats.learning_curves import LONGEST, POWERS, CurveRefused, _levels, fit_curve


def test_curves_find_what_made_the_data():
    times = np.arange(1, 80, dtype=float)
    made = fit_curve("saturation", times, 0.6 - 0.4 * np.exp(-times / 20))
    assert (made.start, made.end, made.scale) == pytest.approx((0.2, 0.6, 20), rel=1e-3)
    made = fit_curve("sigmoid", times, 0.1 + 0.6 / (1 + (25 / times) ** 2.5))
    assert (made.start, made.end, made.scale, made.power) == pytest.approx((0.1, 0.7, 25, 2.5), rel=1e-2)
    assert made.predict(0.0) == pytest.approx(0.1, abs=1e-2)
    assert made.r2 > 0.999999


@pytest.mark.parametrize("kind", ["saturation", "sigmoid"])
def test_curves_keep_the_end_inside_the_bounds_and_refuse_few_points(kind):
    times = np.arange(1, 10, dtype=float)
    made = fit_curve(kind, times, 0.1 * times)  # a straight line would end far above 1
    assert made.end == 1.0
    assert fit_curve(kind, times, np.full(9, 0.4)).predict(1e6) == pytest.approx(0.4)
    few = {"saturation": 4, "sigmoid": 5}[kind]
    with pytest.raises(CurveRefused, match=rf"at least {few} points in time, got 3.*eval.at: early"):
        fit_curve(kind, np.array([1, 1, 2, 3]), np.zeros(4))


def slow_levels(rise, values, bounds):
    """Levels of one shape by scanning the end and solving for the start."""
    best = (math.inf, 0.0, 0.0)
    for end in np.linspace(bounds[0], bounds[1], 2001):
        rest = 1 - rise
        start = float(rest @ (values - end * rise) / (rest @ rest))
        best = min(best, (float(((start * rest + end * rise - values) ** 2).sum()), start, end))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_levels_equal_the_slow_twin(seed):
    draw = np.random.default_rng(seed)
    rise, values = 1 - np.exp(-np.arange(1, 9) / draw.uniform(1, 20)), draw.uniform(0, 1, 8)
    start, end = _levels(rise, values, (0.0, 1.0))
    slow_error, _, slow_end = slow_levels(rise, values, (0.0, 1.0))
    assert float(((start + (end - start) * rise - values) ** 2).sum()) == pytest.approx(slow_error, rel=1e-3)
    assert end == pytest.approx(slow_end, abs=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_shape_of_a_fine_grid_lies_closer(seed):
    """A short, almost straight stretch: the valley over scale and power is long and flat."""
    draw = np.random.default_rng(seed)
    times = np.array([1.0, 2, 3, 4, 6, 8, 12])
    values = 0.1 + 0.004 * times + draw.normal(0, 0.003, 7)
    made = fit_curve("sigmoid", times, values)
    error = float(((made.predict(times) - values) ** 2).sum())
    for scale in np.geomspace(0.5, LONGEST * 12, 80):
        for power in np.geomspace(*POWERS, 80):
            rise = 1 / (1 + (scale / times) ** power)
            start, end = _levels(rise, values, (0.0, 1.0))
            assert error <= float(((start + (end - start) * rise - values) ** 2).sum()) * (1 + 1e-6)
