"""The law: vectors, slow twins, properties, refusals, coverage of the intervals."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decaying import decay, noisy
from hypothesis import given
from hypothesis import strategies as st

from entrl.stats import law
from entrl.stats.law import LawRefused, bootstrap_law, fit_law, law_series

CASES = json.loads((Path(__file__).parent / "vectors" / "entropy_mechanism.json").read_text())["law"]
CLOSE: dict[str, Any] = {"rel": 1e-7, "abs": 1e-9}  # the file's tolerance


# --- fit ---


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
@pytest.mark.parametrize("part", ["fit_all", "fit_early"])
def test_the_vectors(case, part):
    entropy, accuracy = (np.array(case["inputs"][k]) for k in ("entropy", "performance"))
    k = len(entropy) if part == "fit_all" else case["inputs"]["early_points"]
    fit, expected = fit_law(entropy[:k], accuracy[:k]), case[part]
    assert [fit.a, fit.b, fit.ceiling] == pytest.approx([expected[n] for n in ("a", "b", "ceiling")], **CLOSE)
    if part == "fit_all":
        assert [fit.rmse, fit.r2] == pytest.approx([expected["rmse"], expected["r2"]], **CLOSE)
    else:
        error = fit.predict(entropy[k:]) - accuracy[k:]
        assert float(np.sqrt(np.mean(error**2))) == pytest.approx(expected["prediction_rmse"], **CLOSE)
        assert abs(error[-1]) == pytest.approx(expected["final_abs_error"], **CLOSE)


def test_by_hand():
    # e^H = 3, 2, 1 and R = 0.1, 0.3, 0.5: slope -0.2, so a = 0.2, b = 0.5 + 0.2 = 0.7, ceiling 0.5
    fit = fit_law(np.log([3, 2, 1]), [0.1, 0.3, 0.5])
    assert (fit.a, fit.b, fit.ceiling, fit.r2) == pytest.approx((0.2, 0.7, 0.5, 1.0))
    assert fit.exp_range == pytest.approx((1.0, 3.0))
    assert fit.predict(math.log(1.5)) == pytest.approx(0.4)  # 0.7 - 0.2 * 1.5


def slow_fit(entropy, accuracy, weights):
    """The normal equations, summed term by term."""
    s = sx = sy = sxx = sxy = 0.0
    for h, r, w in zip(entropy, accuracy, weights, strict=True):
        x = -math.exp(h)
        s, sx, sy, sxx, sxy = s + w, sx + w * x, sy + w * r, sxx + w * x * x, sxy + w * x * r
    det = s * sxx - sx * sx
    return (s * sxy - sx * sy) / det, (sxx * sy - sx * sxy) / det


@pytest.mark.parametrize("seed", range(5))
def test_weighted_fit_equals_the_slow_twin(seed):
    draw = np.random.default_rng(seed)
    entropy, accuracy, weights = draw.uniform(0, 1.5, 12), draw.uniform(0, 1, 12), draw.uniform(0, 3, 12)
    fit = fit_law(entropy, accuracy, weights=weights, refuse=False)
    assert (fit.a, fit.b) == pytest.approx(slow_fit(entropy, accuracy, weights), rel=1e-9)


points = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), min_size=4, max_size=20).filter(
    lambda p: max(h for h, _ in p) - min(h for h, _ in p) > 0.1
)


@given(points=points, shift=st.floats(-2, 2), scale=st.floats(-3, 3), seed=st.integers(0, 9))
def test_shift_scale_and_order_of_the_points(points, shift, scale, seed):
    entropy, accuracy = np.array(points).T
    fit = fit_law(entropy, accuracy, refuse=False)
    moved = fit_law(entropy, accuracy + shift, refuse=False)
    assert (moved.a, moved.b) == pytest.approx((fit.a, fit.b + shift), rel=1e-6, abs=1e-7)
    scaled = fit_law(entropy, accuracy * scale, refuse=False)
    assert (scaled.a, scaled.b) == pytest.approx((fit.a * scale, fit.b * scale), rel=1e-6, abs=1e-7)
    order = np.random.default_rng(seed).permutation(len(points))
    mixed = fit_law(entropy[order], accuracy[order], refuse=False)
    assert (mixed.a, mixed.b, mixed.r2) == pytest.approx((fit.a, fit.b, fit.r2), rel=1e-6, abs=1e-7)


def test_points_that_are_not_finite_are_dropped_and_counted():
    _, entropy = decay()
    accuracy = 0.8 - 0.2 * np.exp(entropy)
    whole = fit_law(np.delete(entropy, [3, 9]), np.delete(accuracy, [3, 9]))
    accuracy[3], entropy[9] = math.nan, math.inf
    fit = fit_law(entropy, accuracy)
    assert (fit.a, fit.b, fit.n, fit.dropped) == (whole.a, whole.b, 58, 2)
    assert whole.dropped == 0


def test_accuracy_that_does_not_vary_has_r2_zero():
    assert fit_law(decay()[1], np.full(60, 0.5)).r2 == 0.0


# --- refusals ---


def test_too_few_points_are_refused():
    with pytest.raises(LawRefused, match=r"at least 3 points, got 2 \(1 more were not finite\).*eval.at: early"):
        fit_law([0.9, 0.5, math.nan], [0.1, 0.2, 0.3])


def test_a_small_range_is_refused_unless_asked_for():
    entropy = np.linspace(0.105, 0.1, 20)
    with pytest.raises(LawRefused, match=r"range of 0\.0055; below 0\.02 the slope a is not determined; fit a stretch"):
        fit_law(entropy, 0.5 - entropy)
    assert fit_law(entropy, 0.5 - entropy, refuse=False).a > 0


def test_noise_without_trend_is_refused():
    entropy = 0.3 + noisy(40, sd=0.05)
    with pytest.raises(LawRefused, match=r"only \d+% of the variance of e\^H is trend.*below 50%.*average the entropy"):
        fit_law(entropy, 0.5 - entropy)


def test_a_short_trend_that_chance_makes_is_refused():
    # 8 noisy points: in one case of these, the share of trend passes and only the shuffles tell
    stopped = set()
    for seed in range(200):
        try:
            fit_law(0.3 + noisy(8, sd=0.1, seed=seed), np.linspace(0.2, 0.4, 8))
        except LawRefused as refused:
            stopped.add("shuffled" if "shuffled series; above 5% it may be noise" in str(refused) else "share")
        else:
            stopped.add(seed)
    assert {"shuffled", "share"} <= stopped
    assert len(stopped - {"shuffled", "share"}) <= 20  # 5 % by construction, at most 10 % seen


def test_one_entropy_has_no_slope_even_without_refusals():
    with pytest.raises(LawRefused, match=r"e\^H is 1\.34986 at every point.*different entropies"):
        fit_law([0.3] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], refuse=False)


def test_what_a_caller_passed_wrongly():
    with pytest.raises(ValueError, match=r"1-D and of one length, got \(3,\), \(2,\)"):
        fit_law([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"weights must be >= 0, got -1"):
        fit_law([0.1, 0.5, 0.9], [1, 2, 3], weights=[1, -1, 1])
    with pytest.raises(LawRefused, match=r"3 points of total weight 0"):
        fit_law([0.1, 0.5, 0.9], [1, 2, 3], weights=[0, 0, 0])


def test_trend_share_of_a_line_of_noise_and_of_uneven_times():
    assert law.trend_share(np.arange(9.0)) == 1.0
    assert law.trend_share(noisy(5000, sd=1.0)) < 0.05
    times = np.array([0, 1, 2, 4, 8, 16, 32.0])
    assert law.trend_share(3 * times, times) == pytest.approx(1.0)  # a line in time, though not in position
    assert law.trend_share(3 * times) < 1.0
    assert law.trend_share(np.array([1.0, 2.0])) == 0.0


@pytest.mark.parametrize("uneven", [False, True])
def test_noise_of_independent_noise_has_its_variance(uneven):
    times = np.cumsum(np.random.default_rng(1).exponential(size=20_000)) if uneven else None
    assert np.mean(law.noise_of(noisy(20_000, sd=2.0), times) ** 2) == pytest.approx(4.0, rel=0.05)


# --- intervals ---


def test_intervals_hold_the_fit_repeat_with_the_seed_and_narrow_with_points():
    def made(n):
        _, entropy = decay(n, tau=n / 4)
        accuracy = 0.8 - 0.2 * np.exp(entropy) + noisy(n, sd=0.02)
        return entropy, accuracy, bootstrap_law(entropy, accuracy, seed=3)

    entropy, accuracy, found = made(60)
    fit = fit_law(entropy, accuracy)
    assert found.a[0] < fit.a < found.a[1]
    assert found.ceiling[0] < fit.ceiling < found.ceiling[1]
    lo, hi = found.predict(np.array([0.0, 0.5]))
    assert (lo[0], hi[0]) == pytest.approx(found.ceiling)  # the line at H = 0 is the ceiling
    assert (lo < fit.predict([0.0, 0.5])).all()
    assert (fit.predict([0.0, 0.5]) < hi).all()
    again = bootstrap_law(entropy, accuracy, seed=3)
    assert (again.a, again.b) == (found.a, found.b)
    assert bootstrap_law(entropy, accuracy, seed=4).a != found.a
    wide, narrow = found.ceiling, made(600)[2].ceiling
    assert narrow[1] - narrow[0] < 0.6 * (wide[1] - wide[0])


def test_resampled_noise_has_mean_zero_though_blocks_leave_out_the_ends():
    # 12 points, blocks of 3: the first and the last point are in one block of ten, those in the middle in three, so
    # the mean over all blocks of the residuals below is (2 (1) + 2 (2 (-0.2)) + 8 (3 (-0.2))) / 30 = -0.12
    exp = np.linspace(3.0, 1.0, 12)
    residual = np.array([1.0] + [-0.2] * 10 + [1.0])  # sum 0 and no slope: the fit does not move
    found = bootstrap_law(np.log(exp), 2.0 - 0.5 * exp + residual, block=3, resamples=20_000, seed=0)
    centre_S = found.b_S - found.a_S * exp.mean()  # the line at the mean of e^H, where slope and offset part
    error = centre_S.std() / math.sqrt(len(centre_S))
    assert abs(centre_S.mean() - (2.0 - 0.5 * exp.mean())) < 4 * error < 0.12 / 4
    assert abs(found.a_S.mean() - 0.5) < 4 * found.a_S.std() / math.sqrt(len(centre_S))


def test_block_length_and_its_limits():
    assert [law.default_block(n) for n in (6, 8, 27, 60, 1000)] == [2, 2, 3, 4, 10]
    _, entropy = decay(20)
    with pytest.raises(ValueError, match=r"block must lie in 1\.\.n/2 = 10 points, got 11; leave it out for 3"):
        bootstrap_law(entropy, entropy, block=11, seed=0)
    with pytest.raises(LawRefused, match=r"an interval needs at least 6 points, got 5"):
        bootstrap_law(entropy[:5], entropy[:5], seed=0)


def coverage(rho, block, runs=600):
    """Share of 95 % intervals of the ceiling that hold the true one, 60 points."""
    _, entropy = decay()
    hits = 0
    for seed in range(runs):
        accuracy = 0.8 - 0.2 * np.exp(entropy) + noisy(60, sd=0.03, rho=rho, seed=seed)
        lo, hi = bootstrap_law(entropy, accuracy, block=block, resamples=400, seed=seed).ceiling
        hits += lo <= 0.6 <= hi
    return hits / runs


@pytest.mark.slow
def test_coverage_under_autocorrelation():
    independent, blocks, single = coverage(0.0, None), coverage(0.5, None), coverage(0.5, 1)
    assert independent > 0.90
    assert blocks > 0.84  # short blocks forget part of the autocorrelation: below 95 %, and said so in the docstring
    assert single < blocks - 0.05  # drawing single points is worse by more than chance


# --- the series of a run ---


def test_series_from_rollouts_and_from_evaluations():
    train = [{"step": s, law.ENTROPY: 1 / s, **({law.ACCURACY: s / 100} if s % 2 else {})} for s in range(1, 21)]
    series, tested = law_series(train, [])
    assert not tested
    assert series.times.tolist() == list(range(0, 20, 2))  # the rollout of step 1 came from the untrained policy
    assert series.accuracy[:2].tolist() == [0.01, 0.03]
    evals = [{"step": s, law.ACCURACY: s / 10} for s in (1, 2, 4, 6, 10, 25)] + [{"step": 26, law.ACCURACY: None}]
    series, tested = law_series(train, evals)
    assert tested
    # after 4 updates the policy is the one that generated step 5's row; after 25 the last row is the nearest
    assert series.entropy.tolist() == [1 / 2, 1 / 3, 1 / 5, 1 / 7, 1 / 11, 1 / 20]
    assert not law_series(train, evals[:5])[1]  # too few evaluations to stand alone
    assert len(law_series([], evals)[0].times) == 0
