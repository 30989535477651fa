"""Beliefs, factored beliefs and information: the identities of the method card (section 9, 1 to 10), against plain
loops, on random and on degenerate distributions. K hypotheses, A answers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.beliefs import (
    Belief,
    BeliefError,
    Contradiction,
    DuplicateHypothesis,
    EmptyHypothesisSpace,
    FactoredBelief,
    InvalidDistribution,
    ShapeMismatch,
    UnknownAnswer,
    UnknownHypothesis,
    dependence_bits,
    entropy_bits,
    kl_bits,
    marginals,
    one_hot,
)
from entrl.beliefs.information import expected_gain_bits, not_negative

TOLERANCE = 1e-10  # bits, of the identities
few = settings(max_examples=60, deadline=None)


def names(count):
    return [f"h{i}" for i in range(count)]


def draw_prior(rng, K, kind):
    """Smooth, spiked over many orders of magnitude, uniform, or with zeros."""
    if kind == "uniform":
        return np.full(K, 1 / K)
    p = rng.dirichlet(np.ones(K)) if kind != "spiked" else rng.dirichlet(np.full(K, 0.05))
    if kind == "zeros" and K > 1:
        p[rng.integers(K)] = 0.0
    return p / p.sum()


def draw_likelihood(rng, K, A, kind):
    if kind == "certain":
        return one_hot(rng.integers(0, A, K), count=A)
    table = rng.dirichlet(np.full(A, 0.2 if kind == "zeros" else 1.0), K)
    if kind == "zeros":
        table[table < 0.05] = 0.0
    return table / table.sum(1, keepdims=True)


@st.composite
def questions(draw, prior=("smooth", "spiked", "uniform", "zeros"), likelihood=("smooth", "zeros", "certain")):
    """(rng, prior (K,), likelihood (K, A))"""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    K, A = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    return rng, draw_prior(rng, K, draw(st.sampled_from(prior))), draw_likelihood(
        rng, K, A, draw(st.sampled_from(likelihood))
    )  # fmt: skip


def possible(prior, likelihood):
    return [a for a, m in enumerate(np.asarray(prior) @ likelihood) if m > 1e-12]


def after_each(prior, likelihood):
    """answer -> (step, posterior), for every answer that can come"""
    found = {}
    for a in possible(prior, likelihood):
        belief = Belief(names(len(prior)), prior)
        found[a] = (belief.update(likelihood, a), belief.probs)
    return found


def plain_entropy(p):
    return -sum(x * math.log2(x) for x in p if x > 0)


@few
@given(questions())
def test_an_update_equals_plain_bayes(question):
    rng, prior, likelihood = question
    truth = int(rng.integers(len(prior)))
    for a in possible(prior, likelihood):
        belief = Belief(names(len(prior)), prior)
        step = belief.update(likelihood, a, target=truth)
        m = sum(prior[h] * likelihood[h, a] for h in range(len(prior)))
        after = [prior[h] * likelihood[h, a] / m for h in range(len(prior))]
        assert belief.probs == pytest.approx(after, abs=1e-12)
        assert step.h_before == pytest.approx(plain_entropy(prior), abs=TOLERANCE)
        assert step.h_after == belief.entropy() == pytest.approx(plain_entropy(after), abs=TOLERANCE)
        assert step.realised == step.h_before - step.h_after
        kl = sum(q * math.log2(q / p) for p, q in zip(prior, after, strict=True) if q > 0)
        assert step.kl == pytest.approx(kl, abs=TOLERANCE)
        assert step.kl == pytest.approx(kl_bits(after, prior), abs=TOLERANCE)
        assert step.evidence_bits == pytest.approx(-math.log2(m), abs=TOLERANCE)
        told = likelihood[truth, a] / m
        assert step.target_log_gain == (pytest.approx(math.log2(told), abs=TOLERANCE) if told else -math.inf)


# 1, 2, 10: what a question is expected to tell


@few
@given(questions())
def test_expected_gain_bounds_and_its_other_form(question):
    _, prior, likelihood = question
    belief = Belief(names(len(prior)), prior)
    gain, m = belief.expected_gain(likelihood), belief.predictive(likelihood)
    assert 0 <= gain <= min(belief.entropy(), float(entropy_bits(m)), math.log2(likelihood.shape[1])) + 1e-12
    left = sum(m[a] * step.h_after for a, (step, _) in after_each(prior, likelihood).items())
    assert gain == pytest.approx(belief.entropy() - left, abs=TOLERANCE)


@few
@given(questions(prior=("smooth", "uniform")))
def test_expected_gain_is_the_answers_entropy_iff_answers_are_certain(question):
    """Here every hypothesis is possible, so one uncertain answer is enough to lose something."""
    _, prior, likelihood = question
    belief = Belief(names(len(prior)), prior)
    lost = float(entropy_bits(belief.predictive(likelihood))) - belief.expected_gain(likelihood)
    noise = float(prior @ entropy_bits(likelihood))
    assert lost == pytest.approx(noise, abs=TOLERANCE)
    certain = bool((likelihood.max(1) > 1 - 1e-12).all())
    assert lost == pytest.approx(0, abs=1e-12) if certain else lost > 1e-9


@few
@given(questions())
def test_the_means_of_three_gains_are_the_expected_gain(question):
    _, prior, likelihood = question
    belief = Belief(names(len(prior)), prior)
    m, gain = belief.predictive(likelihood), belief.expected_gain(likelihood)
    steps = after_each(prior, likelihood)
    assert sum(m[a] * step.realised for a, (step, _) in steps.items()) == pytest.approx(gain, abs=TOLERANCE)
    assert sum(m[a] * step.kl for a, (step, _) in steps.items()) == pytest.approx(gain, abs=TOLERANCE)
    assert all(step.kl >= 0 for step, _ in steps.values())
    told = 0.0  # over truths and answers
    for h, a in itertools.product(range(len(prior)), steps):
        weight = prior[h] * likelihood[h, a]
        if weight > 0:
            step = Belief(names(len(prior)), prior).update(likelihood, a, target=h)
            told += weight * step.target_log_gain
    assert told == pytest.approx(gain, abs=TOLERANCE)


def test_sampled_realised_gains_average_to_the_expected_gain():
    rng = np.random.default_rng(3)
    prior, likelihood = draw_prior(rng, 6, "smooth"), draw_likelihood(rng, 6, 3, "smooth")
    gains = {a: step.realised for a, (step, _) in after_each(prior, likelihood).items()}
    truths = rng.choice(6, size=20_000, p=prior)
    uniform = rng.random(20_000)
    answers = (uniform[:, None] > likelihood.cumsum(1)[truths]).sum(1)
    sampled = np.array([gains[a] for a in answers])
    off = sampled.mean() - Belief(names(6), prior).expected_gain(likelihood)
    assert abs(off) < 4 * sampled.std(ddof=1) / math.sqrt(len(sampled))
    assert sampled.std() > 0.1, "or the comparison says nothing"


# 3, 5: episodes


@few
@given(seed=st.integers(0, 10_000), K=st.integers(1, 6), turns=st.integers(1, 5))
def test_gains_telescope_and_order_does_not_matter(seed, K, turns):
    rng = np.random.default_rng(seed)
    prior, truth = draw_prior(rng, K, "smooth"), int(rng.integers(K))
    asked = [(draw_likelihood(rng, K, 3, "smooth"), int(rng.integers(3))) for _ in range(turns)]

    def play(order):
        belief = Belief(names(K), prior)
        return belief, [belief.update(*asked[i], target=truth) for i in order]

    belief, steps = play(range(turns))
    other, shuffled = play(rng.permutation(turns))
    h0, log_b0 = Belief(names(K), prior).entropy(), math.log2(prior[truth])
    assert sum(step.realised for step in steps) == pytest.approx(h0 - belief.entropy(), abs=TOLERANCE)
    told = belief.log2_prob(truth) - log_b0
    assert sum(step.target_log_gain for step in steps) == pytest.approx(told, abs=TOLERANCE)
    assert other.probs == pytest.approx(belief.probs, abs=1e-12)
    assert sum(s.realised for s in shuffled) == pytest.approx(sum(s.realised for s in steps), abs=TOLERANCE)
    batch = prior * np.prod([likelihood[:, a] for likelihood, a in asked], axis=0)
    assert belief.probs == pytest.approx(batch / batch.sum(), abs=1e-12)


# 4, 6: names and answers


@few
@given(questions(likelihood=("smooth", "zeros")))
def test_permuting_hypotheses_or_answers_changes_no_gain(question):
    rng, prior, likelihood = question
    rows, columns = rng.permutation(len(prior)), rng.permutation(likelihood.shape[1])
    for a in possible(prior, likelihood):
        straight = Belief(names(len(prior)), prior).update(likelihood, a, target=0)
        turned = Belief(names(len(prior)), prior[rows]).update(
            likelihood[rows][:, columns], int(np.argsort(columns)[a]), target=int(np.argsort(rows)[0])
        )
        for field in ("h_before", "h_after", "realised", "kl", "expected", "evidence_bits", "answer_entropy"):
            assert getattr(turned, field) == pytest.approx(getattr(straight, field), abs=TOLERANCE)
        assert turned.target_log_gain == pytest.approx(straight.target_log_gain, abs=TOLERANCE)


@few
@given(questions())
def test_merging_answers_never_raises_the_expected_gain(question):
    rng, prior, likelihood = question
    groups = rng.integers(0, likelihood.shape[1], likelihood.shape[1])
    merged = likelihood @ one_hot(groups, count=likelihood.shape[1])
    belief = Belief(names(len(prior)), prior)
    assert belief.expected_gain(merged) <= belief.expected_gain(likelihood) + 1e-12


# 7, 8: where the gains agree, and where they must not be clipped


@few
@given(seed=st.integers(0, 10_000), K=st.integers(1, 12), A=st.integers(1, 4))
def test_uniform_and_certain_all_gains_are_the_log_of_the_share_left(seed, K, A):
    answers = np.random.default_rng(seed).integers(0, A, K)
    truth = int(answers[0])
    belief = Belief(names(K))
    step = belief.update(one_hot(answers, count=A), truth, target=0)
    bits = math.log2(K / int((answers == truth).sum()))
    for gain in (step.realised, step.kl, step.target_log_gain, step.evidence_bits):
        assert gain == pytest.approx(bits, abs=1e-12)
    assert belief.effective_size() == pytest.approx((answers == truth).sum())


def test_a_lucky_guess_realises_more_than_log2_of_the_answers():
    """One of eight animals, and it was it: 3 bits from a question of two answers, expected to tell 0.54."""
    guess = one_hot([1] + [0] * 7, count=2)
    step = Belief(names(8)).update(guess, 1)
    assert step.realised == pytest.approx(3.0)
    assert step.expected == pytest.approx(0.5435644431995964)
    assert step.expected <= 1 < step.realised


def test_a_surprising_noisy_answer_realises_less_than_nothing():
    """90 % sure of the first of three, then the noise speaks against it: nearly as unsure as one can be of three."""
    likelihood = [[0.95, 0.05], [0.05, 0.95], [0.05, 0.95]]
    step = Belief(names(3), [0.9, 0.05, 0.05]).update(likelihood, 1)
    assert step.realised == pytest.approx(-1.0155040510251465, abs=TOLERANCE)
    assert step.kl > 1
    assert step.expected > 0


def test_only_round_off_is_clamped():
    assert not_negative(-1e-13) == 0.0
    assert not_negative(-1e-11) == -1e-11, "a mistake must show"
    assert math.copysign(1, not_negative(-0.0)) == 1


# precision and size


def test_what_underflows_as_a_probability_comes_back():
    """1e-300 times 1e-300 is 0 as a float64; two answers later the hypothesis is as likely as the other."""
    tiny = 1e-300
    belief = Belief(["a", "b"])
    for _ in range(2):
        belief.update([[1 - tiny, tiny], [tiny, 1 - tiny]], 0)
    assert belief.probs[1] == 0.0
    assert belief.log2_prob("b") == pytest.approx(2 * math.log2(tiny))
    for _ in range(2):
        belief.update([[1 - tiny, tiny], [tiny, 1 - tiny]], 1)
    assert belief.probs == pytest.approx([0.5, 0.5])


def test_an_improbable_answer_is_no_contradiction():
    belief = Belief(["a", "b"], [1 - 1e-300, 1e-300])
    step = belief.update([[1.0, 0.0], [1 - 1e-300, 1e-300]], 1)
    assert belief.probs.tolist() == [0.0, 1.0]
    assert step.evidence_bits == pytest.approx(600 * math.log2(10))


def test_a_hundred_thousand_hypotheses():
    rng = np.random.default_rng(0)
    K = 100_000
    prior = rng.dirichlet(np.full(K, 0.1))
    belief = Belief(names(K), prior)
    answers = rng.integers(0, 3, K)
    step = belief.update(one_hot(answers, count=3), 1, target=int(np.flatnonzero(answers == 1)[0]))
    kept = prior[answers == 1]
    assert step.evidence_bits == pytest.approx(-math.log2(math.fsum(kept)), abs=TOLERANCE)
    assert step.h_after == pytest.approx(float(entropy_bits(kept / kept.sum())), abs=1e-9)
    assert step.expected == pytest.approx(step.answer_entropy, abs=1e-12)


def test_a_single_hypothesis_has_nothing_to_learn():
    belief = Belief(["only"])
    step = belief.update([[0.3, 0.7]], 1, target="only")
    assert (step.h_before, step.h_after, step.realised, step.kl) == (0, 0, 0, 0)
    assert step.expected == 0
    assert step.target_log_gain == pytest.approx(0, abs=1e-15)
    assert belief.effective_size() == 1


def test_dont_know_tells_nothing_when_all_say_it_alike():
    """The last column is "don't know": first equally likely for all, then likelier for one."""
    prior = [0.2, 0.5, 0.3]
    alike = Belief(names(3), prior)
    step = alike.update([[0.6, 0.1, 0.3], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3]], 2)
    assert alike.probs == pytest.approx(prior)
    assert step.realised == pytest.approx(0, abs=1e-15)
    assert step.kl == pytest.approx(0, abs=1e-15)
    telling = Belief(names(3), prior).update([[0.6, 0.1, 0.3], [0.1, 0.6, 0.3], [0.1, 0.1, 0.8]], 2)
    assert telling.kl > 0.1


# bad input


LIKELIHOOD = [[0.9, 0.1], [0.2, 0.8]]
WRONG_LIKELIHOODS = [
    ([[0.9, 0.1]], ShapeMismatch, r"shape \(1, 2\); it needs a row for each of the 2 hypotheses"),
    ([0.5, 0.5], ShapeMismatch, r"shape \(2,\)"),
    ([[0.9, 0.1], [1.0]], ShapeMismatch, "no array of numbers"),
    ([[], []], ShapeMismatch, "no columns"),
    ([[0.9, 0.2], [0.2, 0.8]], InvalidDistribution, "row 0 of the likelihood sums to 1.1"),
    ([[0.9, 0.1], [math.nan, 0.8]], InvalidDistribution, "the value nan"),
    ([[0.9, 0.1], [0.0, 0.0]], InvalidDistribution, "row 1 of the likelihood sums to 0"),
]


@pytest.mark.parametrize(("likelihood", "error", "message"), WRONG_LIKELIHOODS)
def test_a_wrong_likelihood_moves_nothing(likelihood, error, message):
    belief = Belief(["a", "b"], [0.3, 0.7])
    for attempt in (lambda: belief.update(likelihood, 0), lambda: belief.expected_gain(likelihood)):
        with pytest.raises(error, match=message):
            attempt()
    assert belief.probs == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize(
    ("prior", "error"),
    [
        ([0.7, 0.7], InvalidDistribution),
        ([-0.1, 1.1], InvalidDistribution),
        ([math.nan, 1.0], InvalidDistribution),
        ([math.inf, 0.0], InvalidDistribution),
        ([0.0, 0.0], InvalidDistribution),
        ([0.5], ShapeMismatch),
        ([[0.5, 0.5]], ShapeMismatch),
        (["x", "y"], ShapeMismatch),
    ],
)
def test_a_wrong_prior(prior, error):
    with pytest.raises(error):
        Belief(["a", "b"], prior)


def test_normalise_is_the_explicit_way_in():
    assert Belief(["a", "b"], [3, 1], normalise=True).probs == pytest.approx([0.75, 0.25])
    assert Belief(["a", "b"], [0.5, 0.5 + 9e-7]).probs.sum() == pytest.approx(1, abs=1e-15)
    with pytest.raises(InvalidDistribution, match="pass normalise=True"):
        Belief(["a", "b"], [0.5, 0.5 + 2e-6])
    with pytest.raises(InvalidDistribution, match="sums to 0"):
        Belief(["a", "b"], [0, 0], normalise=True)
    step = Belief(["a", "b"]).update([[9, 1], [1, 9]], 0, normalise=True)
    assert step.realised == pytest.approx(Belief(["a", "b"]).update([[0.9, 0.1], [0.1, 0.9]], 0).realised)


def test_names_and_positions():
    with pytest.raises(EmptyHypothesisSpace, match="no hypotheses"):
        Belief([])
    with pytest.raises(DuplicateHypothesis, match="'a' is named twice"):
        Belief(["a", "b", "a"])
    belief = Belief(["a", "b"], [0.3, 0.7])
    for answer in (2, -1, 1.0, "perhaps"):
        with pytest.raises(UnknownAnswer):
            belief.update(LIKELIHOOD, answer, answers=["no", "yes"])
    with pytest.raises(UnknownAnswer, match="give its index, below 2"):
        belief.update(LIKELIHOOD, "yes")
    with pytest.raises(ShapeMismatch, match="3 answer names for 2 columns"):
        belief.update(LIKELIHOOD, "yes", answers=["no", "yes", "perhaps"])
    with pytest.raises(UnknownHypothesis, match="unknown hypothesis 'c'; known: 'a', 'b'"):
        belief.update(LIKELIHOOD, 0, target="c")
    assert belief.probs == pytest.approx([0.3, 0.7])
    by_name = belief.copy().update(LIKELIHOOD, "yes", answers=["no", "yes"], target="b")
    assert by_name == belief.copy().update(LIKELIHOOD, np.int64(1), target=1)


def test_a_contradiction_leaves_the_belief_alone():
    belief = Belief(["a", "b"], [0.3, 0.7])
    belief.update([[1.0, 0.0], [0.5, 0.5]], 1)
    with pytest.raises(Contradiction, match="answer 0 has probability 0"):
        belief.update([[1.0, 0.0], [0.0, 1.0]], 0)
    assert belief.probs.tolist() == [0.0, 1.0]


def test_every_error_is_a_value_error():
    assert issubclass(BeliefError, ValueError)
    for error in (Contradiction, DuplicateHypothesis, EmptyHypothesisSpace, ShapeMismatch, UnknownAnswer):
        assert issubclass(error, BeliefError)


def test_log_weights():
    belief = Belief.from_log_weights(["a", "b", "c"], [1000.0, 1000.0 + math.log(3), -math.inf])
    assert belief.probs == pytest.approx([0.25, 0.75, 0])
    with pytest.raises(InvalidDistribution, match="only -inf"):
        Belief.from_log_weights(["a"], [-math.inf])
    with pytest.raises(ShapeMismatch, match="2 hypotheses need one each"):
        Belief.from_log_weights(["a", "b"], [0.0])


def test_copies_are_apart():
    belief = Belief(["a", "b"])
    other = belief.copy()
    other.update(LIKELIHOOD, 0)
    belief.probs[0] = 5.0
    assert belief.probs.tolist() == [0.5, 0.5]
    assert "2 hypotheses, 1 bits" in repr(belief)


def test_kl_of_what_was_impossible():
    assert kl_bits([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert kl_bits([1.0, 0.0], [0.5, 0.5]) == 1.0
    with pytest.raises(ShapeMismatch, match="both need the same hypotheses"):
        kl_bits([1.0], [0.5, 0.5])
    with pytest.raises(ShapeMismatch, match=r"one index in 0..1"):
        one_hot([0, 2], count=2)


# 9: independent slots


def draw_slots(rng, sizes):
    return {f"s{i}": Belief(names(k), draw_prior(rng, k, "smooth")) for i, k in enumerate(sizes)}


@few
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_independent_slots_equal_their_enumerated_joint(seed, sizes):
    """Soft and hard answers, slot by slot, on the sum of entropies and on every combination."""
    rng = np.random.default_rng(seed)
    factored = FactoredBelief(draw_slots(rng, sizes))
    joint = factored.joint()
    combinations = list(itertools.product(*(range(k) for k in sizes)))
    assert len(joint) == len(combinations)
    for _ in range(3):
        i = int(rng.integers(len(sizes)))
        of_slot = [c[i] for c in combinations]
        if rng.random() < 0.5:
            likelihood, answer = draw_likelihood(rng, sizes[i], 3, "smooth"), int(rng.integers(3))
            step = factored.update(f"s{i}", likelihood=likelihood, answer=answer)
        else:
            keep = [int(np.argmax(factored.slots[f"s{i}"].probs)), int(rng.integers(sizes[i]))]
            likelihood, answer = factored.restriction(f"s{i}", keep), 1
            step = factored.update(f"s{i}", allowed=keep)
        whole = joint.update(likelihood[of_slot], answer)
        for field in ("h_before", "h_after", "realised", "kl", "expected", "evidence_bits", "answer_entropy"):
            assert getattr(step, field) == pytest.approx(getattr(whole, field), abs=1e-9), field
        assert factored.joint().probs == pytest.approx(joint.probs, abs=1e-12)


@few
@given(seed=st.integers(0, 10_000), shape=st.lists(st.integers(1, 4), min_size=2, max_size=3))
def test_what_independence_costs_is_the_dependence(seed, shape):
    """Revealing all variables one by one: both beliefs end at 0, and the factored one paid the dependence too much."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(math.prod(shape), 0.5)).reshape(shape)
    factored = FactoredBelief({str(i): Belief(names(len(p)), p) for i, p in enumerate(marginals(table))})
    exact = Belief(names(table.size), table.ravel())
    gap = factored.entropy() - exact.entropy()
    assert gap == pytest.approx(dependence_bits(table), abs=TOLERANCE)
    assert gap >= -1e-12
    if len(shape) == 2:  # mutual information, from its own definition
        p, q = marginals(table)
        assert gap == pytest.approx(kl_bits(table.ravel(), np.outer(p, q).ravel()), abs=TOLERANCE)
    truth = np.unravel_index(int(rng.choice(table.size, p=table.ravel())), tuple(shape))
    paid_factored = paid_exact = 0.0
    for i, value in enumerate(truth):
        reveal = one_hot(np.indices(shape)[i].ravel(), count=shape[i])
        paid_exact += exact.update(reveal, int(value)).realised
        paid_factored += factored.update(str(i), allowed=[int(value)]).realised
    assert paid_factored - paid_exact == pytest.approx(gap, abs=1e-9)


def test_ruling_out_the_dominant_value_raises_the_entropy():
    belief = FactoredBelief({"layout": Belief(["radial", "grid", "flow"], [0.9, 0.05, 0.05])})
    step = belief.update("layout", allowed=["grid", "flow"])
    assert step.realised == pytest.approx(0.5689955935892812 - 1.0)
    assert step.kl > 0


def test_weights_scale_what_a_slot_is_worth():
    slots = {"a": Belief(names(4)), "b": Belief(names(2))}
    belief = FactoredBelief(slots, {"a": 0.5, "b": 0.0})
    assert belief.entropy() == 1.0
    step = belief.update("a", allowed=[0, 1], target=1)
    assert (step.h_before, step.h_after, step.realised, step.kl, step.expected) == (1.0, 0.5, 0.5, 0.5, 0.5)
    assert step.target_log_gain == 0.5
    assert (step.evidence_bits, step.answer_entropy) == (1.0, 1.0)
    nothing = belief.update("b", allowed=[0], target=1)
    assert (nothing.realised, nothing.target_log_gain) == (0.0, 0.0)
    assert slots["a"].entropy() == 2.0, "the slots are the belief's own copies"


def test_errors_of_factored_beliefs():
    belief = FactoredBelief({"a": Belief(["x", "y"]), "b": Belief(["z"])})
    with pytest.raises(UnknownHypothesis, match="unknown slot 'c'; known are 'a', 'b'"):
        belief.update("c", allowed=[0])
    with pytest.raises(UnknownHypothesis, match="unknown slot 'c'"):
        belief.expected_gain("c", [[1.0]])
    with pytest.raises(UnknownHypothesis, match="unknown value of 'a' 'z'"):
        belief.update("a", allowed=["z"])
    with pytest.raises(ValueError, match="either `allowed`, or `likelihood` with `answer`"):
        belief.update("a")
    with pytest.raises(ValueError, match="either `allowed`"):
        belief.update("a", likelihood=[[1.0], [1.0]])
    with pytest.raises(Contradiction):
        belief.update("a", allowed=[])
    with pytest.raises(EmptyHypothesisSpace, match="no slots"):
        FactoredBelief({})
    with pytest.raises(UnknownHypothesis, match="unknown slot 'c'"):
        FactoredBelief({"a": Belief(["x"])}, {"c": 1.0})
    with pytest.raises(InvalidDistribution, match="weight -1 of slot 'a'"):
        FactoredBelief({"a": Belief(["x"])}, {"a": -1})
    with pytest.raises(ShapeMismatch, match="2 combinations, more than max_size 1"):
        belief.joint(max_size=1)
    assert belief.joint().hypotheses == ("x | z", "y | z")
    assert belief.entropy() == 1.0


def test_dependence_of_a_known_table():
    """Two coins that always agree: each 1 bit alone, 1 bit together."""
    assert dependence_bits([[0.5, 0.0], [0.0, 0.5]]) == pytest.approx(1.0)
    assert dependence_bits(np.outer([0.3, 0.7], [0.6, 0.4])) == pytest.approx(0.0, abs=1e-15)
    assert expected_gain_bits([0.5, 0.5], np.eye(2)) == 1.0
