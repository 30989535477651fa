"""Estimators: repeats, contradictions and greedy questions on tables, beliefs from a model's scores, sizes of conformal
sets, a policy's own probability of the target."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_model

from entrl.beliefs import (
    AnswerModel,
    Belief,
    CandidateScores,
    ConformalSize,
    Contradiction,
    EmptyCalibration,
    ExactBayes,
    Factored,
    InvalidDistribution,
    InvalidScore,
    LengthThresholds,
    ShapeMismatch,
    TargetLogProb,
    Threshold,
    UnknownAnswer,
    UnknownHypothesis,
    logged_histories,
    one_hot,
    random_histories,
)
from entrl.beliefs.policy import continuation_log_probs
from entrl.maths.turn_credit import igpo_turn_rewards

few = settings(max_examples=30, deadline=None)


def table_of(rows, **options):
    table = np.asarray(rows)
    names = [str(i) for i in range(len(table))]
    questions = [str(i) for i in range(table.shape[1])]
    return ExactBayes(names, questions, lambda q: one_hot(table[:, int(q)], count=2), **options)


def noisy(rows, right=0.8, **options):
    table = np.asarray(rows)
    names, questions = [str(i) for i in range(len(table))], [str(i) for i in range(table.shape[1])]

    def likelihood(q):
        yes = table[:, int(q)] == 1
        return np.stack([np.where(yes, 1 - right, right), np.where(yes, right, 1 - right)], 1)

    return ExactBayes(names, questions, likelihood, **options)


ROWS = [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]


# 11: greedy questions


@few
@given(seed=st.integers(0, 10_000), K=st.integers(2, 9), Q=st.integers(4, 6))
def test_greedy_ends_certain_and_needs_at_least_h0_questions(seed, K, Q):
    """Distinct rows, uniform, two answers: no strategy of yes/no questions beats the entropy on average."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(2**Q, size=K, replace=False)
    rows = (codes[:, None] >> np.arange(Q)) & 1
    agent = table_of(rows)
    lengths = []
    for truth in range(K):
        agent.restart()
        gains = []
        while (question := agent.best_question()) is not None:
            expected = agent.expected_gain(question)
            assert expected >= max(agent.expected_gains().values()) - 1e-12
            gains.append(agent.observe(question, int(rows[truth, int(question)]), target=truth).step)
        assert agent.entropy() == 0.0
        assert agent.belief.probs[truth] == 1.0
        assert sum(step.realised for step in gains) == pytest.approx(agent.prior_entropy(), abs=1e-10)
        assert sum(step.target_log_gain for step in gains) == pytest.approx(math.log2(K), abs=1e-10)
        lengths.append(len(gains))
    assert np.mean(lengths) >= agent.prior_entropy() - 1e-12


def test_ties_go_to_the_first_question_and_a_useless_one_is_never_best():
    agent = table_of(ROWS)
    assert agent.best_question() == "0"
    agent.observe("0", 0)
    assert agent.expected_gain("0") == 0.0, "already answered"
    assert agent.best_question() == "1"
    agent.observe("1", 1)
    assert agent.best_question() is None
    assert agent.asked == ("0", "1")


# repeats


def test_a_repeated_question_is_worth_exactly_nothing():
    agent = noisy(ROWS)
    first = agent.observe("0", 1, target=2)
    before = agent.belief.probs
    again = agent.observe("0", 0, target=2)
    assert (again.repeated, again.answer, first.repeated) == (True, 1, False)
    step = again.step
    assert (step.realised, step.kl, step.expected, step.target_log_gain) == (0.0, 0.0, 0.0, 0.0)
    assert step.h_before == step.h_after == first.step.h_after
    assert np.array_equal(agent.belief.probs, before)
    agent.restart()
    assert not agent.observe("0", 0).repeated
    assert agent.observe("0", 0).step.target_log_gain is None


# contradictions


def contradicted(on_contradiction):
    """Answer 0 to question 0 leaves rows 0 and 1; to question 2 it is impossible."""
    agent = table_of(ROWS, on_contradiction=on_contradiction)
    gains = [agent.observe("0", 0, target=2).step]  # the truth is row 2: the answer was wrong, and rules it out
    return agent, gains


def test_a_contradiction_is_ignored_by_default():
    agent, gains = contradicted("ignore")
    assert gains[0].target_log_gain == -math.inf
    observation = agent.observe("2", 0, target=2)
    assert observation.contradiction
    assert (observation.step.realised, observation.step.expected, observation.step.target_log_gain) == (0, 0, 0)
    assert agent.entropy() == 1.0
    assert agent.observe("2", 0).repeated


def test_a_contradiction_may_raise():
    agent, _ = contradicted("raise")
    with pytest.raises(Contradiction):
        agent.observe("2", 0)
    assert agent.asked == ("0",)
    assert agent.entropy() == 1.0


def test_a_contradiction_may_reset_and_the_gains_still_telescope():
    agent, gains = contradicted("reset")
    observation = agent.observe("2", 0, target=0)
    assert observation.contradiction
    assert observation.step.realised == 1.0 - 2.0, "H before minus H0"
    assert (observation.step.kl, observation.step.expected) == (0.0, 0.0)
    assert observation.step.target_log_gain == -1.0, "row 0 was as likely as one other, now as three"
    gains += [observation.step, agent.observe("1", 1).step]
    assert sum(step.realised for step in gains) == agent.prior_entropy() - agent.entropy()
    assert agent.observe("0", 1).repeated, "noise is drawn once, so the answer stays what it was"


def test_a_reset_finds_a_ruled_out_target_again():
    agent, _ = contradicted("reset")
    assert agent.observe("2", 0, target=2).step.target_log_gain == math.inf
    agent = table_of(ROWS, on_contradiction="reset", prior=[0.5, 0.5, 0.0, 0.0])
    assert agent.observe("2", 0, target=3).step.target_log_gain == 0.0, "impossible before and after"


def test_wrong_input_of_tables():
    with pytest.raises(ValueError, match="on_contradiction must be ignore, raise or reset"):
        table_of(ROWS, on_contradiction="shrug")
    agent = table_of(ROWS, answers=lambda _: ["no", "yes"])
    with pytest.raises(UnknownAnswer, match="unknown question '7'"):
        agent.observe("7", 0)
    with pytest.raises(UnknownAnswer, match="unknown answer 'maybe'; known: 'no', 'yes'"):
        agent.observe("0", "maybe")
    with pytest.raises(UnknownHypothesis):
        agent.observe("0", "yes", target="9")
    assert agent.asked == ()
    assert agent.observe("0", "yes").step.realised == 1.0


def test_a_table_is_all_that_exact_bayes_needs():
    table = SimpleNamespace(
        hypotheses=["a", "b"], questions=["q"], prior=[0.25, 0.75], likelihood=lambda _: [[0.9, 0.1], [0.2, 0.8]]
    )
    agent = ExactBayes.from_table(table)
    want = Belief(["a", "b"], [0.25, 0.75])
    assert agent.expected_gain("q") == want.expected_gain([[0.9, 0.1], [0.2, 0.8]])
    assert agent.observe("q", 1).step == want.update([[0.9, 0.1], [0.2, 0.8]], 1)


def test_a_single_hypothesis_leaves_nothing_to_ask():
    agent = table_of([[0, 1]])
    assert agent.prior_entropy() == 0.0
    assert agent.best_question() is None
    assert agent.observe("0", 0).step.realised == 0.0


# slots


def test_slots_with_counts():
    slots = {"layout": ["radial", "grid"], "size": ["small", "large", "huge"]}
    agent = Factored(slots, {"layout": [3, 1]})
    assert agent.belief.slots["layout"].probs == pytest.approx([0.75, 0.25])
    assert agent.belief.slots["size"].probs == pytest.approx([1 / 3] * 3)
    assert agent.prior_entropy() == pytest.approx(0.8112781244591328 + math.log2(3))
    smoothed = Factored(slots, {"size": [2, 0, 0]}, pseudocount=1.0)
    assert smoothed.belief.slots["size"].probs == pytest.approx([0.6, 0.2, 0.2])
    with pytest.raises(InvalidDistribution, match="pseudocount must be finite and >= 0"):
        Factored(slots, pseudocount=-1.0)
    with pytest.raises(ShapeMismatch, match="'colour', which are no slots"):
        Factored(slots, {"colour": [1]})


def test_slots_know_repeats_and_contradictions():
    agent = Factored({"layout": ["radial", "grid", "flow"], "size": ["small", "large"]}, on_contradiction="reset")
    told = agent.observe("layout", allowed=["radial", "grid"], target="grid")
    assert told.step.realised == pytest.approx(math.log2(3) - 1)
    assert told.step.target_log_gain == pytest.approx(math.log2(3 / 2))
    again = agent.observe("layout", allowed=["flow"])
    assert (again.repeated, again.answer, again.step.realised) == (True, ["radial", "grid"], 0.0)
    other = agent.observe("layout", question="is it a grid?", allowed=["grid"])
    assert not other.repeated
    size = agent.observe("size", likelihood=[[0.9, 0.1], [0.1, 0.9]], answer=0)
    total = told.step.realised + other.step.realised + size.step.realised
    wrong = agent.observe("layout", question="is it a flow?", allowed=["flow"], target="grid")
    assert wrong.contradiction
    assert wrong.step.target_log_gain is None
    assert total + wrong.step.realised == pytest.approx(0, abs=1e-12), "all slots are back at the prior"
    assert agent.entropy() == agent.prior_entropy()


# a model's scores


def scores_of(history, hypotheses):
    """Two candidates; every answer "yes" adds ln 3 to the first."""
    return torch.tensor([math.log(3.0) * sum(a == "yes" for _, a in history), 0.0])


def test_an_answer_model_is_a_softmax_of_scores():
    model = AnswerModel(scores_of, ["a", "b"])
    assert model.belief([("q", "yes")]).probs == pytest.approx([0.75, 0.25], abs=1e-7)
    assert model.belief([]).entropy() == 1.0
    tamed = AnswerModel(scores_of, ["a", "b"], temperature=2.0)
    assert tamed.belief([("q", "yes")]).probs[0] == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)), abs=1e-7)
    step = model.step([], "q", "yes", target="b")
    assert step.realised == pytest.approx(1 - 0.8112781244591328, abs=1e-6)
    assert step.kl == pytest.approx(0.75 * math.log2(1.5) + 0.25 * math.log2(0.5), abs=1e-6)
    assert step.target_log_gain == pytest.approx(-1.0, abs=1e-6)
    assert (step.expected, step.evidence_bits, step.answer_entropy) == (None, None, None)


def test_an_answer_models_gain_may_be_expected_to_be_negative():
    """Sure at first, unsure after either answer: no Bayesian would be."""
    model = AnswerModel(lambda history, _: [0.0, 0.0 if history else -3.0], ["a", "b"])
    step = model.step([], "q", "yes", answer_probs={"yes": 0.5, "no": 0.5, "never": 0.0})
    assert step.expected == step.realised == pytest.approx(model.belief([]).entropy() - 1)
    assert step.expected < -0.5
    assert (step.evidence_bits, step.answer_entropy) == (1.0, 1.0)
    with pytest.raises(UnknownAnswer, match="unknown answer 'perhaps'"):
        model.step([], "q", "perhaps", answer_probs={"yes": 1.0})


def test_an_answer_model_from_a_table_is_exact_bayes():
    rows = np.array(ROWS)
    agent = noisy(rows)
    model = AnswerModel(
        lambda history, _: sum((np.log(agent.likelihood(q)[:, int(a)]) for q, a in history), np.zeros(4)),
        agent.belief.hypotheses,
    )
    predictive = dict(zip("01", agent.belief.predictive(agent.likelihood("0")), strict=True))
    step = model.step([], "0", "1", answer_probs=predictive, target=3)
    exact = agent.observe("0", 1, target=3).step
    for field in ("h_before", "h_after", "realised", "kl", "expected", "evidence_bits", "answer_entropy"):
        assert getattr(step, field) == pytest.approx(getattr(exact, field), abs=1e-12), field
    assert step.target_log_gain == pytest.approx(exact.target_log_gain)


def test_errors_of_answer_models():
    with pytest.raises(ValueError, match="temperature must be finite and > 0, got 0"):
        AnswerModel(scores_of, ["a", "b"], temperature=0)
    with pytest.raises(InvalidScore, match="NaN score after 1 answers"):
        AnswerModel(lambda *_: [math.nan, 0.0], ["a", "b"]).belief([("q", "no")])
    with pytest.raises(ShapeMismatch, match="2 hypotheses need one each"):
        AnswerModel(lambda *_: [0.0], ["a", "b"]).belief([])


# conformal sizes


def threshold(value):
    return Threshold(rank=1, n=9, alpha="0.1", value=value)


def test_set_sizes_telescope_and_may_grow():
    """p = 1/2, 3/4, 9/10, ... for the first candidate."""
    model = AnswerModel(scores_of, ["a", "b"])
    sizes = ConformalSize(model, LengthThresholds({1: threshold(-0.7), 2: threshold(-0.05), 3: threshold(-0.99)}))
    history = [("q1", "yes"), ("q2", "yes"), ("q3", "yes")]
    values = [sizes.value(history[:k]) for k in range(4)]
    assert values == [1.0, 0.0, 1.0, 0.0]
    gains = [sizes.gain(history[:k], *history[k]) for k in range(3)]
    assert gains == [1.0, -1.0, 1.0]
    assert sum(gains) == values[0] - values[-1]
    assert sizes.size(history) == 0, "an empty set is reported as empty"
    assert ConformalSize(model, sizes.thresholds, nonempty=True).size(history) == 1
    with pytest.raises(EmptyCalibration, match="length 4 were not calibrated"):
        sizes.value([*history, ("q4", "no")])
    at_start = ConformalSize(model, LengthThresholds({0: threshold(-0.6)}))
    assert at_start.value([]) == 0.0, "length 0 is calibrated like any other where it is"


def test_samplers():
    table = SimpleNamespace(
        hypotheses=["a", "b"], questions=["0", "1", "2"], prior=[0.0, 1.0], likelihood=lambda q: np.eye(2)
    )
    drawn = random_histories(table, count=30, seed=4)(2)
    assert len(drawn) == 30
    assert drawn == random_histories(table, count=30, seed=4)(2), "the same seed, the same histories"
    for history, truth in drawn:
        assert truth == 1
        assert len({q for q, _ in history}) == 2, "without repetition"
        assert {a for _, a in history} == {"1"}
    assert len({tuple(q for q, _ in history) for history, _ in drawn}) > 3
    with pytest.raises(ShapeMismatch, match="4 different questions of 3"):
        random_histories(table, count=1, seed=0)(4)
    logged = logged_histories([([("q", "a"), ("r", "b")], "x"), ([("q", "c")], "y")])
    assert logged(1) == [([("q", "a")], "x"), ([("q", "c")], "y")]
    assert logged(2) == [([("q", "a"), ("r", "b")], "x")]
    model = AnswerModel(scores_of, ["a", "b"])
    with pytest.raises(ShapeMismatch, match=r"sample\(1\) gave a history of 2 answers"):
        ConformalSize.calibrated(model, lambda _: [([("q", "a")] * 2, 0)], [1], "0.1")
    with pytest.raises(EmptyCalibration, match="histories of length 3"):
        ConformalSize.calibrated(model, logged_histories([]), [3], "0.1")


# a policy's own probability


@pytest.fixture(scope="module")
def policy():
    return tiny_model().double()


def slow_log_probs(model, prefix, continuation):
    """One token at a time, no batch and no padding."""
    ids, told = list(prefix), []
    for token in continuation:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        told.append(float(logits.log_softmax(-1)[token]))
        ids.append(token)
    return told


def test_continuations_are_scored_as_one_by_one(policy):
    pairs = [([5, 6, 7], [8, 9]), ([4], [3, 2, 1, 5]), ([9, 9, 9, 9, 9, 8], [7])]
    got = continuation_log_probs(policy, [p for p, _ in pairs], [c for _, c in pairs], batch_size=2)
    for (prefix, continuation), row in zip(pairs, got, strict=True):
        assert row == pytest.approx(slow_log_probs(policy, prefix, continuation), abs=1e-5)
        assert row.dtype == np.float64


def test_a_scored_model_trains_on(policy):
    policy.train()
    try:
        continuation_log_probs(policy, [[1]], [[2]])
        assert policy.training
    finally:
        policy.eval()


def test_the_policys_own_gains_telescope(policy):
    states = [[5, 6], [5, 6, 7], [5, 6, 7, 8, 9]]
    target = TargetLogProb(model=policy, target=[3, 4], wrap=[2])
    rows = [np.array(slow_log_probs(policy, [*state, 2], [3, 4])) for state in states]
    gains = target.gains(states)
    bits = [row.sum() / math.log(2) for row in rows]
    assert gains == pytest.approx(np.diff(bits), abs=1e-5)
    assert gains.sum() == pytest.approx(bits[-1] - bits[0], abs=1e-5)
    igpo = igpo_turn_rewards(target.token_log_probs(states), outcome=1.0)
    assert target.gains(states, of="mean_prob") == pytest.approx(igpo[:-1].numpy(), abs=1e-12)
    with pytest.raises(ValueError, match="of must be log_prob or mean_prob"):
        target.gains(states, of="bits")


@pytest.mark.parametrize("reduce", ["first", "sum", "mean"])
def test_candidate_scores_make_an_answer_model(policy, reduce):
    candidates = {"cat": [3, 4], "dog": [5], "emu": [6, 7, 8]}
    score = CandidateScores(
        model=policy, encode=lambda history: [2, *(9 for _ in history)], candidates=candidates, reduce=reduce
    )
    belief = AnswerModel(score, list(candidates)).belief([("q", "yes")])
    rows = [np.array(slow_log_probs(policy, [2, 9], ids)) for ids in candidates.values()]
    want = np.array([{"first": row[0], "sum": row.sum(), "mean": row.mean()}[reduce] for row in rows])
    assert belief.probs == pytest.approx(np.exp(want) / np.exp(want).sum(), abs=1e-5)


def test_errors_of_policies(policy):
    with pytest.raises(ShapeMismatch, match="1 prefixes for 2 continuations"):
        continuation_log_probs(policy, [[1]], [[1], [2]])
    with pytest.raises(ShapeMismatch, match="pair 1 has an empty prefix or continuation"):
        continuation_log_probs(policy, [[1], [1]], [[1], []])
    with pytest.raises(ShapeMismatch, match="batch_size must be >= 1"):
        continuation_log_probs(policy, [[1]], [[1]], batch_size=0)
    options = {"model": policy, "encode": lambda _: [1]}
    with pytest.raises(ValueError, match="begin with the same token"):
        CandidateScores(**options, candidates={"a": [1, 2], "b": [1, 3]}, reduce="first")
    with pytest.raises(ValueError, match="reduce must be first, sum or mean"):
        CandidateScores(**options, candidates={"a": [1]}, reduce="last")
    with pytest.raises(UnknownHypothesis, match="no tokens for 'b'"):
        CandidateScores(**options, candidates={"a": [1]})([], ["a", "b"])


def test_beliefs_import_no_torch():
    code = "import sys, entrl.beliefs; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
