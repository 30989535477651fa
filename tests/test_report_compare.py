"""Paired differences over problems and seeds, and two runs at equal steps, tokens and seconds."""

import io
import json
import math
import random
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from entrl.report.compare import (
    at_equal,
    compare_runs,
    comparison_json,
    print_comparison,
)
from entrl.stats.intervals import mean_interval
from entrl.stats.pairing import non_inferior, paired_difference, paired_p, seed_differences

make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]


def evaluation(correct, **fields):
    problems = [
        {"id": i, "prompt": f"q{i}", "greedy_correct": c, "n_correct": 2, "n_samples": 8, "greedy_length": 10 + i}
        for i, c in enumerate(correct)
    ]
    return {"task": "sums", "split": "test", "seed": 7, "problems": problems} | fields


def test_by_hand():
    # d = b - a = 1, 0, 0, -1, 1 -> mean 0.2
    found = paired_difference(
        evaluation([False, True, False, True, False]), evaluation([True, True, False, False, True])
    )
    assert found.diff == pytest.approx(0.2)
    assert found.lo < 0.2 < found.hi
    assert (found.n, found.unverified) == (5, 0)


def test_unverified_on_either_side_is_left_out_and_counted():
    # pairs left: (False, True), (True, True) -> 1/2; None read as wrong would give 1/4 or 2/4 over 4
    found = paired_difference(evaluation([False, True, None, True]), evaluation([True, True, True, None]))
    assert found.diff == 0.5
    assert (found.n, found.unverified) == (2, 2)


def test_order_of_problems_does_not_matter_and_the_seed_is_fixed():
    rng = random.Random(0)
    a, b = (evaluation([rng.random() < p for _ in range(60)]) for p in (0.4, 0.6))
    shuffled = b | {"problems": list(reversed(b["problems"]))}
    assert paired_difference(a, b) == paired_difference(a, shuffled) == paired_difference(a, b)
    assert paired_difference(b, a).diff == pytest.approx(-paired_difference(a, b).diff)


def test_bootstrap_agrees_with_the_normal_interval_for_many_problems():
    rng = random.Random(1)
    a, b = (evaluation([rng.random() < p for _ in range(800)]) for p in (0.3, 0.5))
    d = [pb["greedy_correct"] - pa["greedy_correct"] for pa, pb in zip(a["problems"], b["problems"], strict=True)]
    mean = sum(d) / len(d)
    half = 1.96 * math.sqrt(sum((x - mean) ** 2 for x in d) / len(d) / len(d))
    found = paired_difference(a, b)
    assert found.lo == pytest.approx(mean - half, abs=0.003)
    assert found.hi == pytest.approx(mean + half, abs=0.003)


def test_other_metrics():
    a, b = evaluation([True, True]), evaluation([True, True])
    for problem in b["problems"]:
        problem.update(n_correct=4, greedy_length=problem["greedy_length"] - 3)
    assert paired_difference(a, b, "sampled_accuracy").diff == 0.25
    assert paired_difference(a, b, "greedy_length")[:3] == (-3, -3, -3)


@pytest.mark.parametrize(
    ("b", "metric", "message"),
    [
        (
            evaluation([True, True], task="gsm8k"),
            "greedy_correct",
            "different task cannot be paired: 'sums' and 'gsm8k'",
        ),
        (evaluation([True, True], seed=8), "greedy_correct", "different seed cannot be paired: 7 and 8"),
        (evaluation([True, True], split="train"), "greedy_correct", "different split"),
        (evaluation([True, True], max_new_tokens=64), "greedy_correct", "different max_new_tokens"),
        (evaluation([True, True], temperature=0.5), "sampled_accuracy", "different temperature"),
        (evaluation([True, True, True]), "greedy_correct", r"0 only in the first \[\], 1 only in the second \['2'\]"),
        (evaluation([None, None]), "greedy_correct", "all unverified"),
        (evaluation([]), "greedy_correct", "second evaluation lists no problems"),
        (evaluation([True, True]), "greedy", "metric must be one of"),
    ],
)
def test_refusals(b, metric, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(evaluation([True, False]), b, metric)


def test_same_ids_with_other_questions_are_refused():
    b = evaluation([True, False])
    b["problems"][1]["prompt"] = "another question"
    with pytest.raises(ValueError, match="two different prompts"):
        paired_difference(evaluation([True, False]), b)


def test_repeated_ids_are_refused():
    b = evaluation([True, False])
    b["problems"][1]["id"] = 0
    with pytest.raises(ValueError, match="repeats a problem id"):
        paired_difference(evaluation([True, False]), b)


def of_unit_error(df):
    """df + 1 values of mean 0 and standard error 1: the half-width of their interval is the t quantile."""
    values = [float(i) for i in range(df + 1)]
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / df / len(values))
    return [(v - mean) / error for v in values]


# two-sided 95 % quantiles from printed tables
@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042)]
)
def test_the_t_interval_matches_the_printed_table(df, t):
    found = mean_interval(of_unit_error(df))
    assert (found.hi, found.lo) == (pytest.approx(t, abs=6e-4), pytest.approx(-t, abs=6e-4))


@pytest.mark.parametrize("df", range(1, 31))
def test_the_t_test_against_numerical_integration(df):
    def density(x):
        log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        return math.exp(log_scale - (df + 1) / 2 * math.log1p(x * x / df))

    steps, end = 400, 1.7
    simpson = sum(
        (1, 4, 2)[(i > 0 and i < steps) * (1 + (i % 2 == 0))] * density(end * i / steps) for i in range(steps + 1)
    )
    values = of_unit_error(df)  # moved by 1.7, t is 1.7
    p = paired_p([0.0] * len(values), [v + end for v in values])
    assert 1 - p / 2 == pytest.approx(0.5 + simpson * end / steps / 3, abs=1e-8)
    assert paired_p([v + end for v in values], [0.0] * len(values)) == pytest.approx(p, abs=1e-12)


def test_seed_differences_by_hand():
    # d = 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.30265, half = 4.30265 / sqrt(3) = 2.48414
    mean, lo, hi = seed_differences([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    assert (mean, lo, hi) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0], [1.0], "at least 2 seeds"),
        ([1.0, 2.0], [1.0], "paired one to one"),
        ([1.0, 2.0], [1.0, math.nan], "NaN"),
    ],
)
def test_seed_refusals(a, b, message):
    with pytest.raises(ValueError, match=message):
        seed_differences(a, b)


def test_non_inferior():
    assert non_inferior(0.0, -0.019, 0.02)
    assert not non_inferior(0.0, -0.02, 0.02)  # the margin itself is not inside
    with pytest.raises(ValueError, match="margin must be >= 0"):
        non_inferior(0.0, -0.01, -0.02)
    with pytest.raises(ValueError, match="lo must be <= diff"):
        non_inferior(0.0, 0.01, 0.02)


def test_at_equal_interpolates_and_never_extrapolates():
    # b has no point at x = 10: between (8, 16) and (12, 24) it is 20
    found = at_equal(([0, 10], [0, 5]), ([0, 8, 12], [0, 16, 24]))
    assert (found.x, found.a, found.b, found.diff) == (10, 5, 20, 15)
    assert (found.recent_a, found.recent_b) == (5, 20)  # no point of b in [9, 10]
    assert at_equal(([0, 1], [0, 1]), ([5, 6], [0, 1])) is None
    assert at_equal(([], []), ([5, 6], [0, 1])) is None


def test_compare_runs(tmp_path):
    a = make_run(tmp_path / "a", steps=40, controller=None, gain=0.3)
    b = make_run(tmp_path / "b[red]", steps=20, seed=1, gain=0.5)
    rows = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    (b / "metrics.jsonl").write_text("".join(json.dumps(row | {"seconds": 9.0 * row["step"]}) + "\n" for row in rows))
    found = json.loads(comparison_json(compare_runs(a, b)))
    assert (found["curves"]["step"]["x"], found["curves"]["step"]["limited_by"]) == (20, "b[red]")
    # by time the other run is the shorter one: 40 * 1.75 = 70 s against 180 s
    assert (found["curves"]["seconds"]["x"], found["curves"]["seconds"]["limited_by"]) == (70, "a")
    reward = found["curves"]["step"]["metrics"]["reward"]
    assert reward["b"] == pytest.approx(rows[-1]["reward"])
    assert "kl_cov/selected" in found["only_b"]
    assert not found["only_a"]
    assert found["evaluation"]["metrics"]["greedy_correct"]["n"] == 200
    console = Console(record=True, width=120, file=io.StringIO())
    print_comparison(compare_runs(a, b), console)
    text = console.export_text()
    assert "At 20 steps, where b[red] ends" in text
    assert "greedy_correct" in text
    assert "logged only by b[red]: kl_cov/selected" in text


def test_dialogues_are_compared_by_their_questions_too(tmp_path):
    runs = [make_run(tmp_path / name, steps=10) for name in ("a", "b")]
    assert "mean_questions" not in compare_runs(*runs)["evaluation"]["metrics"]
    for asked, run in zip((5.0, 3.5), runs, strict=True):
        file = run / "eval_after.json"
        found = json.loads(file.read_text())
        for problem in found["problems"]:
            problem |= {"greedy_questions": asked, "mean_questions": asked - 1, "greedy_score": 1.0, "mean_score": 0.5}
        file.write_text(json.dumps(found | {"inquiry": {"greedy": {}, "sampled": {}}}))
    metrics = compare_runs(*runs)["evaluation"]["metrics"]
    assert metrics["greedy_questions"]["diff"] == metrics["mean_questions"]["hi"] == -1.5
    assert metrics["mean_score"]["diff"] == 0


def test_compare_without_evaluations_or_seconds(tmp_path, capsys):
    a, b = (make_run(tmp_path / name, steps=5, with_eval=name == "a") for name in "ab")
    (b / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "reward": 0.5}\n')
    found = compare_runs(a, b)
    assert found["evaluation"]["why"] == "eval_after.json is missing in b"
    assert found["curves"]["seconds"]["why"] == "seconds not recorded by b"
    print_comparison(found)
    assert "seconds not recorded by b" in capsys.readouterr().out


def test_a_run_is_not_compared_with_itself(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    with pytest.raises(ValueError, match="named twice"):
        compare_runs(run, run)
