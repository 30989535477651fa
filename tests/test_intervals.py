"""entrl.stats.intervals: Student's t, Wilson and the bootstrap against printed tables, by hand and loops."""

import numpy as np
import pytest
from unit_error import of_unit_error

from entrl.stats.intervals import bootstrap_interval, interval_entry, mean_interval, wilson_interval


# two-sided 95 % quantiles from printed tables
@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042)]
)
def test_the_t_interval_matches_the_printed_table(df, t):
    found = mean_interval(of_unit_error(df))
    assert (found.hi, found.lo) == (pytest.approx(t, abs=6e-4), pytest.approx(-t, abs=6e-4))


def test_an_entry_of_few_values():
    assert interval_entry([]) == {"mean": None, "lo": None, "hi": None}
    assert interval_entry([0.5]) == {"mean": 0.5, "lo": None, "hi": None}
    assert interval_entry([0.0, 1.0]) == mean_interval([0.0, 1.0])._asdict()


def test_wilson_interval_by_hand():
    # 0 of 10: (z^2 / 2 +- z^2 / 2) / (n + z^2) = 0 and 3.8415 / 13.8415
    assert wilson_interval(0, 10) == pytest.approx([0.0, 0.27753], abs=1e-4)
    # 5 of 10: centre 1/2, half width z / (n + z^2) * sqrt(n / 4 + z^2 / 4) = 0.14160 * 1.86023
    assert wilson_interval(5, 10) == pytest.approx([0.23659, 0.76341], abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 30, 700])
def test_the_bootstrap_equals_its_slow_twin_draw_for_draw(n):
    """Published intervals depend on the random stream: numpy's `integers` of the seed, in chunks of 2 million."""
    values = np.random.default_rng(n).integers(0, 2, n).astype(float)
    draw, chunk = np.random.default_rng(3), 2_000_000 // n
    means = [
        values[row].mean()
        for at in range(0, 10_000, chunk)
        for row in draw.integers(0, n, (min(chunk, 10_000 - at), n))
    ]
    assert bootstrap_interval(values, seed=3) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)


def test_the_bootstrap_of_one_value_and_of_equal_ones():
    assert bootstrap_interval(np.array([0.3])) == (0.3, 0.3)
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)
