"""entrl.stats.pairing: over problems, over seeds, two-way clusters, Holm; by hand, against loops, and by coverage."""

import math
import random

import numpy as np
import pytest
from scipy.stats import t as student
from unit_error import of_unit_error

from entrl.stats.pairing import (
    clustered_difference,
    holm,
    non_inferior,
    paired_difference,
    paired_p,
    seed_differences,
    seed_ratio,
    verdict,
)


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


def slow_clustered(d):
    """Cameron, Gelbach and Miller with loops over the cells of a complete table; no floor."""
    seeds, problems = len(d), len(d[0])
    n = seeds * problems
    mean = sum(map(sum, d)) / n
    e = [[x - mean for x in row] for row in d]
    v_seed = seeds / (seeds - 1) * sum(sum(row) ** 2 for row in e) / n**2
    columns = [sum(e[s][p] for s in range(seeds)) for p in range(problems)]
    v_problem = problems / (problems - 1) * sum(c**2 for c in columns) / n**2
    v_cell = n / (n - 1) * sum(x * x for row in e for x in row) / n**2
    return mean, v_seed, v_problem, v_cell


@pytest.mark.parametrize("seed", range(5))
def test_two_way_clusters_equal_the_formula(seed):
    generator = np.random.default_rng(seed)
    d = generator.normal(size=(4, 1)) + generator.normal(size=(1, 30)) + generator.normal(size=(4, 30))
    a = generator.normal(size=d.shape)
    found = clustered_difference(a, a + d)
    mean, *v = slow_clustered(d.tolist())
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(math.sqrt(max(v[0] + v[1] - v[2], v[0], v[1])))
    assert found.hi - found.mean == pytest.approx(student.ppf(0.975, 3) * found.standard_error)
    assert found.p == pytest.approx(2 * (1 - student.cdf(abs(found.mean) / found.standard_error, 3)))
    assert (found.seeds, found.problems, found.cells) == (4, 30, 120)


def test_two_way_clusters_by_hand():
    # d = [[1, 1], [0, 0]]: mean 1/2, e = +-1/2; seed sums +-1: V_seed = 2/1 * 2/16 = 1/4; problem sums 0: V_problem = 0
    # cells: 4/3 * 1/16 = 1/12; 1/4 - 1/12 = 1/6 is below V_seed, so the floor holds: se = 1/2, df = 1, t = 1, p = 1/2
    found = clustered_difference(np.zeros((2, 2)), np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert (found.mean, found.standard_error) == (0.5, 0.5)
    assert found.p == pytest.approx(0.5)


def test_unverified_cells_are_left_out_and_empty_rows_are_no_cluster():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3, 6)), generator.normal(size=(3, 6))
    wider_a, wider_b = (np.vstack([np.column_stack([x, np.full(3, np.nan)]), np.full((1, 7), np.nan)]) for x in (a, b))
    assert clustered_difference(wider_a, wider_b) == clustered_difference(a, b)
    a[1, 2] = np.nan
    assert clustered_difference(a, b).cells == 17


@pytest.mark.parametrize(("seed_sd", "problem_sd"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.2, 0.5)])
def test_coverage_of_the_clustered_interval(seed_sd, problem_sd):
    """8 seeds x 60 problems, 1500 studies each: 95 % intervals hold the truth at least 93.5 times in 100."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(1500):
        d = 0.1 + seed_sd * generator.normal(size=(8, 1)) + problem_sd * generator.normal(size=(1, 60))
        found = clustered_difference(np.zeros((8, 60)), d + generator.normal(size=(8, 60)))
        hits += found.lo <= 0.1 <= found.hi
    assert 0.935 <= hits / 1500 <= 1.0


def test_ignoring_either_cluster_would_not_cover():
    """The reason for two ways: with both effects, seeds alone and problems alone are too sure of themselves."""
    generator = np.random.default_rng(2)
    alone = both = 0
    for _ in range(800):
        d = 0.2 * generator.normal(size=(8, 1)) + generator.normal(size=(1, 60)) + generator.normal(size=(8, 60))
        over_seeds = seed_differences([0.0] * 8, d.mean(1).tolist())
        alone += over_seeds.lo <= 0 <= over_seeds.hi
        found = clustered_difference(np.zeros((8, 60)), d)
        both += found.lo <= 0 <= found.hi
    assert alone / 800 < 0.85 < 0.93 < both / 800


def test_clustered_shapes_are_checked():
    with pytest.raises(ValueError, match=r"one \(seeds, problems\) table each, got \(2, 3\) and \(3, 2\)"):
        clustered_difference(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"at least 2 seeds and 2 problems .* got 1 and 3"):
        clustered_difference(np.zeros((1, 3)), np.ones((1, 3)))


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04, 0.5 times 4, 3, 2, 1 = 0.04, 0.06, 0.08, 0.5
    found = holm({"d": 0.5, "a": 0.01, "c": 0.04, "b": 0.02})
    assert list(found) == ["d", "a", "c", "b"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.08, "d": 0.5})
    # a later one is never below an earlier one: 2 * 0.03 = 0.06, then 0.04 is lifted to 0.06
    assert holm({"a": 0.03, "b": 0.04}) == pytest.approx({"a": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(ValueError, match=r"p of 'a' must be in \[0, 1\], got nan"):
        holm({"a": math.nan})


def test_holm_keeps_the_family_wise_error():
    generator = np.random.default_rng(3)
    families = generator.uniform(size=(4000, 6))
    wrong = sum(min(holm(dict(zip("abcdef", p, strict=True))).values()) < 0.05 for p in families.tolist())
    assert wrong / 4000 < 0.06


def test_paired_p_agrees_with_its_interval():
    generator = np.random.default_rng(4)
    for _ in range(50):
        a, b = generator.normal(size=5).tolist(), generator.normal(0.8, 1, size=5).tolist()
        found = seed_differences(a, b)
        assert (paired_p(a, b) < 0.05) == (found.lo > 0 or found.hi < 0)
    # two differences 1 and 3: mean 2, sd sqrt 2, se 1, t = 2 with df 1: p = 1 - 2 atan(2) / pi
    assert paired_p([0, 0], [1, 3]) == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    assert paired_p([1, 2], [1, 2]) == 1.0
    assert paired_p([1, 2], [2, 3]) == 0.0


def test_ratio_of_seeds_by_hand():
    # b / a = 2 and 8: logarithms ln 2 and 3 ln 2, mean 2 ln 2, se ln 2, t(0.975, 1) = 12.7062
    found = seed_ratio([1.0, 3.0], [2.0, 24.0])
    assert found.mean == pytest.approx(4)
    assert (math.log2(found.lo), math.log2(found.hi)) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)


def test_verdict_words():
    assert verdict(0.1, 0.05, 0.01) == "higher"
    assert verdict(-0.1, -0.2, 0.01, 0.5) == "lower"
    assert verdict(-0.001, -0.01, 0.6, 0.02) == "non-inferior"
    assert verdict(-0.001, -0.03, 0.6, 0.02) == "not distinguishable"
    assert verdict(-0.001, -0.01, 0.6) == "not distinguishable"
