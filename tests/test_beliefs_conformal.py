"""Conformal thresholds, sets and bounds: exact ranks, coverage within its own error, bounds that hold, and a case where
coverage is not promised. n calibration scores, K labels."""

import math
import warnings
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entrl.beliefs import (
    AnswerModel,
    CalibrationTooSmall,
    ConformalSize,
    EmptyCalibration,
    ExactBayes,
    InvalidAlpha,
    InvalidScore,
    ShapeMismatch,
    Threshold,
    conformal_rank,
    coverage,
    entropy_bits,
    fit_lengths,
    fit_threshold,
    prediction_sets,
    random_histories,
)
from entrl.beliefs.conformal import cip_bound, cip_code_threshold, entropy_bound, exact_alpha, log2_sizes

few = settings(max_examples=60, deadline=None)
ALPHA_GRID = [f"0.{i:02d}" for i in range(1, 46)]  # C-IP's: 0.01 to 0.45


# ranks


@pytest.mark.parametrize(("n", "alpha", "rank"), [(99, "0.45", 55), (199, "0.45", 110), (249, "0.18", 205)])
def test_ranks_where_floats_are_wrong_by_one(n, alpha, rank):
    """(n + 1)(1 - alpha) is a whole number here: 100 * 0.55, 200 * 0.55, 250 * 0.82."""
    assert conformal_rank(n, alpha) == conformal_rank(n, float(alpha)) == rank
    assert math.ceil((n + 1) * (1 - float(alpha))) == rank + 1


@few
@given(n=st.integers(1, 500), hundredths=st.integers(1, 99))
def test_the_rank_is_the_smallest_that_covers(n, hundredths):
    alpha = f"0.{hundredths:02d}"
    rank = conformal_rank(n, alpha)
    assert Fraction(rank, n + 1) >= 1 - Fraction(hundredths, 100) > Fraction(rank - 1, n + 1)


def test_the_threshold_is_an_order_statistic_or_infinite():
    scores = np.random.default_rng(0).permutation(19) / 19
    assert fit_threshold(scores, "0.05") == Threshold(rank=19, n=19, alpha="0.05", value=18 / 19)
    with pytest.warns(CalibrationTooSmall, match="18 calibration scores are too few for alpha 0.05.*at least 19"):
        threshold = fit_threshold(scores[:18], 0.05)
    assert (threshold.rank, threshold.value) == (19, math.inf)
    assert threshold.keep([0.0, 1e300]).all()


@pytest.mark.parametrize("n", [100, 200])
def test_the_cip_code_is_exact_at_the_sizes_it_uses(n):
    scores = np.random.default_rng(n).random(n)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationTooSmall)
        assert all(fit_threshold(scores, a).value == cip_code_threshold(scores, a) for a in ALPHA_GRID)


def test_the_cip_code_is_a_rank_low_at_others():
    """Method card: in 53 % of (n, alpha) pairs for n in 5..399, and it never gives an infinite threshold."""
    low = total = 0
    for n in range(5, 400, 6):
        ordered = np.arange(n, dtype=float)
        for alpha in ALPHA_GRID:
            off = conformal_rank(n, alpha) - 1 - cip_code_threshold(ordered, alpha)
            assert off in (0, 1)
            low, total = low + off, total + 1
    assert low / total == pytest.approx(0.53, abs=0.02)


# coverage


@pytest.mark.parametrize(("n", "alpha", "expected"), [(99, "0.1", 0.9), (50, "0.2", 41 / 51), (19, "0.05", 0.95)])
def test_coverage_on_exchangeable_scores(n, alpha, expected):
    """400 calibration sets, 200 test points each; uniform scores, so the threshold *is* the coverage given its set."""
    rng = np.random.default_rng([n, 1])
    rank = conformal_rank(n, alpha)
    assert rank / (n + 1) == pytest.approx(expected)
    assert 1 - float(alpha) <= rank / (n + 1) + 1e-12 < 1 - float(alpha) + 1 / (n + 1) + 2e-12
    thresholds = [fit_threshold(rng.random(n), alpha) for _ in range(400)]
    measured = np.array([threshold.keep(rng.random(200)).mean() for threshold in thresholds])
    error = measured.std(ddof=1) / math.sqrt(len(measured))
    assert abs(measured.mean() - expected) < 4 * error
    assert error < 0.004, "or the comparison says little"
    # given the calibration set, coverage is Beta(k, n + 1 - k)
    given_set = np.array([threshold.value for threshold in thresholds])
    variance = rank * (n + 1 - rank) / ((n + 1) ** 2 * (n + 2))
    assert abs(given_set.mean() - expected) < 4 * math.sqrt(variance / 400)
    assert given_set.var(ddof=1) == pytest.approx(variance, rel=0.35)  # 5 standard errors of a variance of 400


@few
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), K=st.integers(1, 6))
def test_sets_are_nested_and_only_ranks_matter(seed, n, K):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(K), n)
    scores, test = -probs[np.arange(n), rng.integers(0, K, n)], -rng.dirichlet(np.ones(K), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationTooSmall)
        kept = [fit_threshold(scores, alpha).keep(test) for alpha in ("0.05", "0.2", "0.5", "0.9")]
        for wide, narrow in pairwise(kept):
            assert (wide | ~narrow).all(), "a larger alpha keeps no more"
        for rising in (np.exp, lambda s: s**3, lambda s: 5 * s - 2):
            assert (fit_threshold(rising(scores), "0.2").keep(rising(test)) == kept[1]).all()


def test_sets_are_closed_and_may_be_empty():
    probs = np.array([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.4, 0.4, 0.2]])
    assert prediction_sets(probs, -0.3).tolist() == [[True, True, False], [True] * 3, [True, True, False]]
    assert prediction_sets(probs, -0.5).sum(1).tolist() == [1, 0, 0]
    assert log2_sizes([0, 1, 4]).tolist() == [0, 0, 2]
    filled = prediction_sets(probs, -0.5, nonempty=True)
    assert filled.tolist() == [[True, False, False]] * 3, "the first of equals"
    assert prediction_sets(probs[0], -0.3, nonempty=True).tolist() == [True, True, False]
    assert coverage(filled, [0, 1, 0]) == pytest.approx(2 / 3)


# bounds on the entropy


@few
@given(seed=st.integers(0, 100_000), X=st.integers(1, 5), K=st.integers(2, 5), sharp=st.booleans())
def test_the_entropy_of_a_known_toy_is_below_both_bounds(seed, X, K, sharp):
    """Exact expectations over p(x) p(y|x); sets by thresholding a wrong model, alpha the miss rate it really has."""
    rng = np.random.default_rng(seed)
    p_x, p_y = rng.dirichlet(np.ones(X)), rng.dirichlet(np.full(K, 0.3 if sharp else 2.0), X)
    model = p_y ** rng.uniform(0.3, 2)
    held = prediction_sets(model / model.sum(1, keepdims=True), -rng.uniform(0.02, 0.4))
    miss = float((p_x[:, None] * p_y * ~held).sum())
    assume(1e-6 < miss < 0.5)
    N = 50
    sizes, covered = np.repeat(held.sum(1), K), held.ravel()
    weights = (p_x[:, None] * p_y).ravel()
    truth = float(p_x @ entropy_bits(p_y))
    sharper = entropy_bound(sizes, covered, alpha=miss, alpha_n=miss, num_labels=K, weights=weights)
    # the paper's alpha_n is smaller than the miss rate, which coverage <= 1 - alpha_n allows
    paper_n = entropy_bound(sizes, covered, alpha=miss, alpha_n=miss - 1 / (N + 1), num_labels=K, weights=weights)
    assert truth <= sharper + 1e-9
    assert sharper <= paper_n + 1e-12
    if held.any(1).all():
        assert paper_n <= cip_bound(sizes, alpha=miss, calibration_n=N, num_labels=K, weights=weights) + 1e-9
    assert truth <= cip_bound(sizes, alpha=miss, calibration_n=N, num_labels=K, weights=weights) + 1e-9


def test_bounds_by_hand():
    """Two covered rows of 1 and 4 labels, one uncovered of 2 of 6: h_b(.25) + .75 (0 + 2)/2 + .25 * 2."""
    h = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    got = entropy_bound([1, 4, 2], [True, True, False], alpha=0.25, alpha_n=0.25, num_labels=6)
    assert got == pytest.approx(h + 0.75 * 1 + 0.25 * 2)
    loose = cip_bound([1, 4, 1], alpha=0.25, calibration_n=3, num_labels=6)  # alpha_n = 0
    assert loose == pytest.approx(h + 0.25 * math.log2(6) - math.log2(0.75) + math.log2(2))
    assert cip_bound([0, 0], alpha=0.25, calibration_n=3, num_labels=6) == -math.inf


# bad input


def test_errors():
    for alpha in ("0", "1", 1.5, -0.1, "nan", "a tenth", "1/0", float("nan")):
        with pytest.raises(InvalidAlpha, match="between 0 and 1"):
            exact_alpha(alpha)
    assert exact_alpha(0.1) == exact_alpha("0.1") == Fraction(1, 10)
    with pytest.raises(EmptyCalibration, match="no calibration scores"):
        fit_threshold([], "0.1")
    with pytest.raises(InvalidScore, match="a score is NaN"):
        fit_threshold([0.1, math.nan], "0.1")
    with pytest.raises(InvalidScore):
        prediction_sets([[0.5, math.nan]], -0.1)
    with pytest.raises(ShapeMismatch, match="one number for each example"):
        fit_threshold([[0.1]], "0.1")
    with pytest.raises(ShapeMismatch, match="one row for each label"):
        coverage(np.ones((2, 3), dtype=bool), [0])
    with pytest.raises(EmptyCalibration, match="no prediction sets"):
        cip_bound([], alpha=0.1, calibration_n=5, num_labels=3)
    with pytest.raises(ShapeMismatch, match=r"must be in 0..3 \(num_labels\), got 4 to 4"):
        cip_bound([4], alpha=0.1, calibration_n=5, num_labels=3)
    with pytest.raises(ShapeMismatch, match="one number and one bool per row"):
        entropy_bound([1], [True, False], alpha=0.1, alpha_n=0.1, num_labels=3)


def test_lengths_are_calibrated_apart_and_warn_once():
    examples = {1: [([0.9, 0.1], 0)] * 20, 2: [([0.9, 0.1], 1)] * 20, 3: [([0.9, 0.1], 1)] * 4, 4: [([0.5, 0.5], 0)]}
    with pytest.warns(CalibrationTooSmall) as caught:
        table = fit_lengths(examples.__getitem__, [1, 2, 3, 4], "0.1")
    assert [str(w.message)[:58] for w in caught] == ["calibration examples at history length 3, 4 are too few fo"]
    assert [table.at(k).value for k in (1, 2, 3)] == [-0.9, -0.1, math.inf]
    assert 2 in table
    assert 0 not in table
    with pytest.raises(EmptyCalibration, match="length 7 were not calibrated; calibrated lengths: 1, 2, 3, 4"):
        table.at(7)
    with pytest.raises(EmptyCalibration, match="histories of length 9: no calibration scores"):
        fit_lengths(lambda _: [], [9], "0.1")


# sets from a model, and the negative control


class Trap:
    """Four animals, twenty questions. The model is right about nineteen of them, which tell little (60 : 40). The first
    it takes for nearly certain (99 : 1), and in truth its answers are a coin: the best question there is, if one
    believes the model."""

    def __init__(self) -> None:
        self.hypotheses = tuple("abcd")
        self.questions = tuple(str(i) for i in range(20))
        self.prior = None
        self.sides = np.array([[i % 2 if q == 0 else (i >> 1) % 2 for i in range(4)] for q in range(20)])

    def likelihood(self, question: str) -> np.ndarray:
        return self._table(question, 0.5 if question == "0" else 0.6)

    def believed(self, question: str) -> np.ndarray:
        return self._table(question, 0.99 if question == "0" else 0.6)

    def _table(self, question: str, right: float) -> np.ndarray:
        yes = self.sides[int(question)] == 1
        return np.stack([np.where(yes, 1 - right, right), np.where(yes, right, 1 - right)], 1)

    def score(self, history, hypotheses):
        return sum((np.log(self.believed(q)[:, int(a)]) for q, a in history), np.zeros(len(hypotheses)))


def test_greedy_histories_may_undercover():
    """Negative control: coverage holds on random histories and fails on those that the model's own gains choose."""
    trap = Trap()
    model = AnswerModel(trap.score, trap.hypotheses)
    sizes = ConformalSize.calibrated(model, random_histories(trap, count=400, seed=0), [1], "0.1")
    random = random_histories(trap, count=1000, seed=1)(1)
    covered = np.mean([sizes.kept(history)[truth] for history, truth in random])
    assert covered > 0.9 - 4 * math.sqrt(0.09 / 1000 + 0.09 / 400)
    greedy = ExactBayes(trap.hypotheses, trap.questions, trap.believed).best_question()
    assert greedy == "0"
    # every truth and answer of the chosen question, as likely as they really are
    exact = sum(
        0.25 * trap.likelihood(greedy)[truth, a] * sizes.kept([(greedy, str(a))])[truth]
        for truth in range(4)
        for a in range(2)
    )
    assert exact == pytest.approx(0.5), "not 0.9: the histories that are chosen are not those of the calibration"


def test_a_table_without_a_trap_is_covered_at_every_length():
    rng = np.random.default_rng(5)
    answers = rng.random((12, 8)) < 0.4

    def likelihood(question):
        yes = np.where(answers[:, int(question)], 0.8, 0.2)
        return np.stack([1 - yes, yes], 1)

    table = SimpleNamespace(
        hypotheses=[str(i) for i in range(12)],
        questions=[str(i) for i in range(8)],
        prior=rng.dirichlet(np.ones(12)),
        likelihood=likelihood,
    )
    log_prior = np.log(table.prior)
    model = AnswerModel(
        lambda history, _: log_prior + sum((np.log(table.likelihood(q)[:, int(a)]) for q, a in history), np.zeros(12)),
        table.hypotheses,
    )
    sizes = ConformalSize.calibrated(model, random_histories(table, count=150, seed=2), [1, 4], "0.2")
    for length in (1, 4):
        test = random_histories(table, count=300, seed=3)(length)
        hit = np.mean([sizes.kept(history)[truth] for history, truth in test])
        assert hit > 0.8 - 4 * math.sqrt(0.16 / 150 + 0.16 / 300)
        assert np.mean([sizes.size(history) for history, _ in test]) < 12
