"""Judgement out of sample: the law against its rivals, blindness to the future, refusals, many runs."""

import json
import math

import numpy as np
import pytest
from decaying import decay, noisy

from entrl.stats.forecasts import BASELINES, LAW_FORMS, judge, judge_many
from entrl.stats.law import Series, fit_law


def test_nearly_any_saturating_curve_has_a_high_r2_in_sample():
    # Accuracy and entropy share nothing but the clock: different shapes, different speeds, independent noise.
    times = np.arange(200, dtype=float)
    rises = {
        "exponential": 1 - np.exp(-times / 30),
        "sigmoid": 1 / (1 + (40 / np.maximum(times, 1e-9)) ** 1.5),
        "square root": np.minimum(1, np.sqrt(times / 100)),
    }
    for tau in (25.0, 60.0):
        entropy = decay(200, tau=tau)[1]
        for name, rise in rises.items():
            accuracy = 0.2 + 0.5 * rise + noisy(200, sd=0.01, seed=7)
            assert fit_law(entropy, accuracy).r2 > 0.83, (tau, name)
    # and out of sample the same law loses to a curve of time where time is all there is
    accuracy = 0.2 + 0.5 * (1 - np.exp(-times / 25)) + noisy(200, sd=0.01, seed=7)
    out = judge(times, decay(200, tau=12.0)[1], accuracy)
    assert out["in_sample_r2"]["law"] > 0.75
    assert out["forecasts"]["law_given_entropy"]["rmse"] > 3 * out["forecasts"]["saturation"]["rmse"]


def test_where_the_law_holds_and_the_clock_does_not_it_wins():
    # Entropy stands still half way, so no curve of time can know when accuracy rises again; the law is told.
    times = np.arange(200, dtype=float)
    entropy = 0.5 + 0.4 * np.exp(-times / 8)
    entropy[120:] = 0.1 + 0.4 * np.exp(-(times[120:] - 120) / 10)
    accuracy = 0.8 - 0.25 * np.exp(entropy) + noisy(200, sd=0.005)
    found = judge(times, entropy, accuracy)["forecasts"]
    told = found["law_given_entropy"]["rmse"]
    assert told < 0.01
    assert all(found[name]["rmse"] > 3 * told for name in BASELINES)
    assert found["law_forecast"]["rmse"] > 3 * told  # told nothing of the future, it cannot know either


def test_forecast_is_blind_to_the_future():
    times, entropy = decay(100)
    accuracy = 0.8 - 0.25 * np.exp(entropy) + noisy(100, sd=0.01)
    changed = entropy.copy()
    changed[16:] += 0.2
    one, two = judge(times, entropy, accuracy), judge(times, changed, accuracy)
    same = ["law_forecast", *BASELINES]
    assert [one["forecasts"][n] for n in same] == [two["forecasts"][n] for n in same]
    assert one["forecasts"]["law_given_entropy"] != two["forecasts"]["law_given_entropy"]
    assert one["forecasts"]["law_given_trend"] != two["forecasts"]["law_given_trend"]


def test_shares_are_of_time_not_of_points():
    times = np.array([0, 1, 2, 3, 4, 6, 8, 12, 15, 16, 30, 40, 50, 60, 70, 80, 90, 100.0])
    entropy = 0.1 + 0.8 * np.exp(-times / 20)
    out = judge(times, entropy, 0.8 - 0.25 * np.exp(entropy))
    assert (out["early_points"], out["late_points"]) == (9, 6)  # up to 15 and after 40
    assert out["forecasts"]["law_given_entropy"]["rmse"] < 1e-9
    assert out["forecasts"]["law_given_entropy"]["final_error"] == pytest.approx(0, abs=1e-9)


def test_scores_by_hand():
    # last value of the early share: 0.4; late points 0.5 and 0.2, so errors -0.1 and +0.2
    times = np.array([1, 2, 10, 12.0])
    found = judge(times, [0.9, 0.8, 0.2, 0.1], [0.3, 0.4, 0.5, 0.2], early=0.2, late=0.3)["forecasts"]
    assert found["last_value"] == pytest.approx({"rmse": math.sqrt(0.05 / 2), "mae": 0.15, "final_error": 0.2})
    assert "at least 6 points, got 2" in found["law_given_entropy"]["refused"]
    assert "needs at least 4 points" in found["saturation"]["refused"]


def test_a_run_of_one_point_has_no_future():
    out = judge([0], [0.5], [0.2])
    assert out["late_points"] == 0
    assert "no point in the late share" in out["forecasts"]["last_value"]["refused"]


def test_refusals_are_recorded_and_can_be_overruled():
    times = np.arange(60, dtype=float)
    entropy, accuracy = 0.1 + noisy(60, sd=0.02), 0.4 + noisy(60, sd=0.02, seed=1)
    out = judge(times, entropy, accuracy)
    assert out["law"] is None
    assert all("average the entropy" in out["forecasts"][form]["refused"] for form in LAW_FORMS)
    assert "rmse" in out["forecasts"]["last_value"]
    forced = judge(times, entropy, accuracy, refuse=False)
    assert all("rmse" in forced["forecasts"][form] for form in LAW_FORMS)
    json.dumps(out, allow_nan=False)
    json.dumps(forced, allow_nan=False)


def test_nan_is_dropped_and_shared_luck_is_measured():
    times, entropy = decay(100)
    luck = noisy(100, sd=0.03)
    accuracy = np.clip(0.7 - 0.15 * np.exp(entropy) - luck, 0, 1)
    accuracy[50] = math.nan
    out = judge(times, entropy + luck, accuracy)
    assert (out["n"], out["dropped"]) == (99, 1)
    assert out["shared_noise"] < -0.9
    alone = judge(times, entropy + luck, np.clip(0.7 - 0.15 * np.exp(entropy) + noisy(100, sd=0.03, seed=5), 0, 1))
    assert abs(alone["shared_noise"]) < 0.35
    assert alone["noise_floor"] == pytest.approx(0.03, rel=0.35)


@pytest.mark.parametrize(
    ("series", "options", "match"),
    [
        (([1, 2], [1, 1], [0, 0]), {"early": 0.5, "late": 0.6}, "add up to at most 1, got 0.5 and 0.6"),
        (([2, 1], [1, 1], [0, 0]), {}, "ascending from 0 on"),
        (([1, 2], [1, 1], [0, 30]), {}, r"accuracy runs from 0 to 30, outside \(0.0, 1.0\)"),
        (([math.nan], [1], [0]), {}, "ascending from 0 on"),
    ],
)
def test_what_judge_refuses(series, options, match):
    with pytest.raises(ValueError, match=match):
        judge(*series, **options)


def test_judging_many_runs_pairs_them_and_counts_refusals():
    runs = []
    for seed in range(4):
        times, entropy = decay(120, tau=30)
        runs.append(Series(times, entropy, 0.8 - 0.2 * np.exp(entropy) + noisy(120, sd=0.01, seed=seed)))
    flat = Series(times, 0.1 + noisy(120, sd=0.01), runs[0].accuracy)
    out = judge_many([*runs, flat])
    assert out["refused"] == dict.fromkeys(LAW_FORMS, 1)
    found = out["differences"]["law_given_entropy"]["last_value"]
    assert found["n"] == 4
    assert found["lo"] < found["mean"] < found["hi"] < 0
    by_hand = [
        r["forecasts"]["law_given_entropy"]["rmse"] - r["forecasts"]["last_value"]["rmse"] for r in out["runs"][:4]
    ]
    assert found["mean"] == pytest.approx(sum(by_hand) / 4)
    single = judge_many(runs[:1])["differences"]["law_forecast"]["sigmoid"]
    assert single["lo"] is None
    assert single["n"] == 1
    assert judge_many([flat])["differences"]["law_forecast"]["sigmoid"] == {
        "mean": None,
        "lo": None,
        "hi": None,
        "n": 0,
    }
