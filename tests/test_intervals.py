"""entrl.stats.pairing: two-way clusters, Holm, paired p; by hand, against loops, and by coverage in simulation."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from entrl.stats.pairing import clustered_difference, holm, paired_p, seed_differences, verdict


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


def test_verdict_words():
    assert verdict(0.1, 0.05, 0.01) == "higher"
    assert verdict(-0.1, -0.2, 0.01, 0.5) == "lower"
    assert verdict(-0.001, -0.01, 0.6, 0.02) == "non-inferior"
    assert verdict(-0.001, -0.03, 0.6, 0.02) == "not distinguishable"
    assert verdict(-0.001, -0.01, 0.6) == "not distinguishable"
