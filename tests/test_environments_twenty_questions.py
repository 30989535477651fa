"""Twenty questions as a model plays it: answers, budget, repeats, noise, contradictions, and every way to misuse it."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.beliefs import Contradiction, ExactBayes
from entrl.environments import (
    ScoredTwentyQuestions,
    TwentyQuestions,
    TwentyQuestionsAny,
    find_table,
)
from entrl.environments.events import draw, pick
from entrl.tasks import load_task

TABLE = "procedural:rows=8,columns=8,seed=17"
GAMES = load_task({"task": "twenty_questions", "rows": 8, "columns": 8, "user_noise": 0.2}, size=30)


def row(**changes):
    table = find_table(TABLE)
    fields = {"table_id": TABLE, "target": table.hypotheses[3], "user_noise": 0.0, "max_questions": 20, "seed": 5}
    return fields | {"prompt": [{"role": "user", "content": "x"}], "answer": "", "level": "8x8"} | changes


def started(cls=TwentyQuestions, *, options=None, **changes):
    env = cls(**(options or {}))
    assert env.reset(**row(**changes)) is None
    return env


STATE = (
    "_events", "_target", "_done", "_budget", "_asked", "_correct", "_score", "_invalid", "_refused", "_seed", "_noise",
)  # fmt: skip


def state(env):
    """Everything an episode can change."""
    return {name: copy.deepcopy(getattr(env, name)) for name in STATE} | {
        "belief": env._estimator.belief.probs.tolist(),
        "asked": env._estimator.asked,
    }


def played(env, questions):
    return [env.ask(question) for question in questions]


def test_a_game_by_hand():
    table = find_table(TABLE)
    env = started()
    for number, question in enumerate(table.questions[:3], 1):
        answer = table.answers[table.values[3, table.questions.index(question)]]
        assert env.ask(question) == f"Question {number} of 20: {answer}"
    assert env.submit(table.hypotheses[3]) == "Correct."
    assert env._correct is True
    assert env._done
    assert env._asked == 3
    assert [event.number for event in env._events] == [1, 2, 3, 4]
    assert [event.tool for event in env._events] == ["ask", "ask", "ask", "submit"]
    assert env._events[3].correct is True
    assert env._events[3].step is None
    assert all(event.valid and not event.repeated and not event.contradiction for event in env._events)


def test_gains_are_those_of_exact_bayes_and_sum_to_the_entropy_lost():
    env, table = started(user_noise=0.1), find_table(TABLE)
    bayes = ExactBayes(table.hypotheses, table.questions, lambda q: table.likelihood(q, noise=0.1), prior=table.prior)
    for question in table.questions:
        gains = bayes.expected_gains()
        env.ask(question)
        event = env._events[-1]
        observation = bayes.observe(question, table.answers.index(event.answer), target=env._target)
        assert event.step == observation.step
        assert event.best_expected == pytest.approx(max(gains.values()), abs=1e-12)
        np.testing.assert_allclose(env._open_gains(), list(bayes.expected_gains().values()), atol=1e-12)
    assert env._prior_entropy() == pytest.approx(3.0)
    assert sum(env._gains("realised")) == pytest.approx(3.0 - bayes.entropy())
    truth = bayes.belief.log2_prob(env._target)
    assert sum(env._gains("target")) == pytest.approx(truth + 3.0)


def test_resolved_marks_the_answer_that_settles_it():
    env = started()
    marks = []
    while (question := env._estimator.best_question()) is not None:
        env.ask(question)
        marks.append(env._events[-1].resolved)
    assert marks == [0] * (len(marks) - 1) + [1]
    env.ask(next(q for q in env._table.questions if q not in env._estimator.asked))
    assert env._events[-1].resolved == 0, "already settled before"


def test_a_repeated_question_costs_a_question_and_tells_nothing():
    env = started(user_noise=0.3)
    question = env._estimator.best_question()
    first = env.ask(question)
    before = env._estimator.entropy()
    texts = [env.ask(f" {question.upper()} ") for _ in range(19)]
    assert all(text.split(": ")[1] == first.split(": ")[1] + " (asked before)" for text in texts)
    assert len({first, *texts}) == 20, "the counter makes observations unique"
    assert env._estimator.entropy() == before
    assert all(event.repeated and event.step.realised == 0 == event.step.expected for event in env._events[1:])
    assert env._asked == 20
    assert env.ask(question) == "No questions left after 20; submit your answer."


def test_budget():
    env = started(max_questions=2)
    played(env, env._table.questions[:2])
    before = state(env)
    assert env.ask(env._table.questions[2]) == "No questions left after 2; submit your answer."
    assert env.ask("nonsense") == "No questions left after 2; submit your answer."
    after = state(env)
    assert after.pop("_refused") == 2
    assert before.pop("_refused") == 0
    assert before == after, "no event, no gain, no change"
    assert env.submit(env._target) == "Correct."


def test_nothing_changes_after_submit():
    env = started()
    env.submit(env._table.hypotheses[0])
    before = state(env)
    assert [env.ask(env._table.questions[0]), env.submit(env._target), env.submit(3)] == ["The inquiry is over."] * 3
    after = state(env)
    assert after.pop("_refused") == 3
    before.pop("_refused")
    assert before == after
    assert env._correct is False


def test_submit_at_once():
    env = started()
    wrong = next(name for name in env._table.hypotheses if name != env._target)
    assert env.submit(wrong) == f"Wrong, it is {env._target}."
    assert (env._correct, env._score, env._asked, env._gains()) == (False, 0.0, 0, [])


BAD = ["", "  ", "no such", None, 3, 3.5, True, [], ["fur"], {"attribute": "fur"}, "x" * 10_000, "Question 1 of 20: no"]


@pytest.mark.parametrize("argument", BAD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("tool", ["ask", "submit"])
def test_bad_arguments_are_told_and_change_nothing(tool, argument):
    env = started()
    before = state(env)
    text = getattr(env, tool)(argument)
    assert text.startswith("Error: unknown ")
    assert len(text) < 300
    after = state(env)
    assert (before.pop("_invalid"), after.pop("_invalid")) == (0, 1)
    assert before == after


def test_the_target_is_not_said_before_submit():
    """In any observation of a game in which everything is asked, also with bad arguments."""
    for game in GAMES:
        env = TwentyQuestions()
        env.reset(**game)
        texts = played(env, [*env._table.questions, "nonsense", env._table.questions[0]])
        assert not any(env._target in text for text in texts)


@given(game=st.integers(0, 29), order=st.permutations(range(8)))
@settings(max_examples=30, deadline=None)
def test_the_same_row_gives_the_same_answers_in_any_order(game, order):
    """Noise belongs to (row, question), not to when it is asked."""
    answers = []
    for sequence in (range(8), order):
        env = TwentyQuestions()
        env.reset(**GAMES[game])
        played(env, [env._table.questions[i] for i in sequence])
        answers.append({event.key: event.answer for event in env._events})
    assert answers[0] == answers[1]


def test_reset_after_an_episode_equals_a_fresh_instance():
    used, fresh = TwentyQuestions(), TwentyQuestions()
    used.reset(**GAMES[0])
    played(used, ["bad", *used._table.questions, used._table.questions[0]])
    used.submit(used._target)
    used.submit("again")
    for env in (used, fresh):
        env.reset(**GAMES[1])
    assert state(used) == state(fresh)
    assert played(used, used._table.questions) == played(fresh, fresh._table.questions)
    assert state(used) == state(fresh)


def test_interleaved_instances_share_nothing():
    alone, together = [], []
    for game in (0, 1):
        env = TwentyQuestions()
        env.reset(**GAMES[game])
        played(env, env._table.questions[:4])
        alone.append(state(env))
    pair = [TwentyQuestions(), TwentyQuestions()]
    for env, game in zip(pair, (0, 1), strict=True):
        env.reset(**GAMES[game])
    for i in range(4):
        for env in pair:
            env.ask(env._table.questions[i])
    together = [state(env) for env in pair]
    assert together == alone


def test_noise_turns_over_the_share_it_should():
    """1600 answers at noise 0.2; 4 standard errors are 0.04."""
    table, wrong = find_table(TABLE), 0
    for seed in range(200):
        env = started(user_noise=0.2, seed=seed)
        played(env, table.questions)
        truth = [table.answers[value] for value in table.values[3]]
        wrong += sum(event.answer != true for event, true in zip(env._events, truth, strict=True))
    assert wrong / 1600 == pytest.approx(0.2, abs=0.04)


def test_draws_are_uniform_and_depend_on_every_key():
    numbers = np.array([draw(seed, "a") for seed in range(4000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.02)
    assert len({draw(1, "a"), draw(2, "a"), draw(1, "b"), draw("1a"), draw(1, "a", "")}) == 5
    assert [pick([0, 0.25, 0, 0.75, 0], u) for u in (0.0, 0.2499, 0.25, 0.999999)] == [1, 1, 3, 3]
    assert pick([0.5, 0.5, 0], 1 - 2**-53) == 1, "never an answer of probability 0"


def noisy_game(on_contradiction):
    """The user errs, and the belief takes every answer for the truth: it contradicts itself sooner or later."""
    return started(options={"assumed_noise": 0.0, "on_contradiction": on_contradiction}, user_noise=0.5, seed=1)


def test_ignored_contradictions_are_flagged_and_tell_nothing():
    env = noisy_game("ignore")
    played(env, env._table.questions)
    odd = [event for event in env._events if event.contradiction]
    assert odd
    assert all(event.step.realised == 0 and event.step.kl == 0 and event.step.expected == 0 for event in odd)
    assert sum(env._gains("realised")) == pytest.approx(env._prior_entropy() - env._estimator.entropy())


def test_reset_contradictions_take_back_what_was_paid():
    env = noisy_game("reset")
    played(env, env._table.questions)
    odd = [event for event in env._events if event.contradiction]
    assert odd
    assert all(event.step.realised == pytest.approx(event.step.h_before - 3.0) for event in odd)
    assert min(event.step.realised for event in odd) < 0
    assert sum(env._gains("realised")) == pytest.approx(env._prior_entropy() - env._estimator.entropy())


def test_raised_contradictions_leave_the_episode_as_it_was():
    env = noisy_game("raise")
    for question in env._table.questions:
        before = state(env)
        try:
            env.ask(question)
        except Contradiction:
            assert state(env) == before
            return
    pytest.fail("no contradiction")


def test_a_table_of_one_row_is_worth_nothing(tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{"hypotheses": ["a"], "questions": ["q"], "values": [[1]]}')
    find_table(f"loaded:{path}")
    env = ScoredTwentyQuestions()
    env.reset(table_id=f"loaded:{path}", target="a")
    assert env.ask("q") == "Question 1 of 20: yes"
    env.submit("a")
    assert env._prior_entropy() == 0
    assert env._gains() == [0.0]
    assert env.get_reward() == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table_id": None}, "no column 'table_id'"),
        ({"table_id": "nowhere"}, "unknown table 'nowhere'"),
        ({"target": "nobody"}, "target 'nobody' is not in table"),
        ({"target": None}, "target None is not in table"),
        ({"max_questions": 0}, "'max_questions' must be a whole number >= 1, got 0"),
        ({"max_questions": 2.5}, "'max_questions' must be a whole number"),
        ({"seed": -1}, "'seed' must be a whole number >= 0"),
        ({"user_noise": 1.5}, r"'user_noise' must be in \[0, 1\]"),
        ({"user_noise": float("nan")}, r"'user_noise' must be in \[0, 1\]"),
        ({"user_noise": "0.1"}, "'user_noise'"),
    ],
)
def test_rows_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        started(**changes)


def test_options_that_make_no_sense():
    with pytest.raises(ValueError, match="on_contradiction must be one of ignore, raise, reset"):
        TwentyQuestions(on_contradiction="forget")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="assumed_noise"):
        TwentyQuestions(assumed_noise=-0.1)
    with pytest.raises(ValueError, match="credit must be one of"):
        ScoredTwentyQuestions(credit="all")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="reset"):
        TwentyQuestions().ask("fur")


# Disjunctions


def test_ask_any_is_yes_when_one_of_them_is():
    env = started(TwentyQuestionsAny)
    table = env._table
    pair = list(table.questions[:2])
    truth = bool(table.values[3, :2].any())
    assert env.ask_any(pair) == f"Question 1 of 20: {'yes' if truth else 'no'}"
    left = [i for i in range(8) if bool(table.values[i, :2].any()) == truth]
    assert env._estimator.entropy() == pytest.approx(np.log2(len(left)))
    assert env._events[0].step.expected <= env._events[0].best_expected + 1e-12


def test_ask_any_knows_repeats_in_any_order_and_one_attribute_is_ask():
    env = started(TwentyQuestionsAny, user_noise=0.3)
    first, second, third = env._table.questions[:3]
    env.ask_any([first, second])
    env.ask_any([second, first, second])
    env.ask_any(f"{first}, {second}")
    env.ask(third)
    env.ask_any([third])
    assert [event.repeated for event in env._events] == [False, True, True, False, True]
    assert env._gains()[1:3] == [0, 0]


@pytest.mark.parametrize("argument", [[], None, 5, [None], ["nothing"], "", {}])
def test_ask_any_with_bad_arguments(argument):
    env = started(TwentyQuestionsAny)
    assert env.ask_any(argument).startswith("Error: ")
    assert (env._invalid, env._asked, env._events) == (1, 0, [])


def test_ask_any_forgets_the_disjunctions_of_the_episode_before():
    env = started(TwentyQuestionsAny)
    env.ask_any(list(env._table.questions[:2]))
    env.reset(**row())
    assert env._parts == {}
    assert env._estimator.asked == ()


def test_ask_any_needs_yes_and_no(tmp_path):
    path = tmp_path / "three.csv"
    path.write_text("name,q\na,no\nb,yes\nc,maybe\n")
    find_table(f"loaded:{path}")
    with pytest.raises(ValueError, match="ask_any needs a table answered no or yes"):
        TwentyQuestionsAny().reset(table_id=f"loaded:{path}", target="a")


# The reward of its own


def test_own_reward_by_hand():
    """Two questions with gains g of 3 bits, then right: 1 + 2 g / 3 - 2 * 0.1."""
    options = {"gain_weight": 2.0, "question_cost": 0.1}
    env = started(ScoredTwentyQuestions, options=options)
    played(env, env._table.questions[:2])
    gain = sum(event.step.expected for event in env._events)
    assert env.get_reward() == pytest.approx(2 * gain / 3 - 0.2), "nothing submitted yet"
    env.submit(env._target)
    assert env.get_reward() == pytest.approx(1 + 2 * gain / 3 - 0.2)
    assert not hasattr(TwentyQuestions, "get_reward")


def test_what_is_ruled_out_is_named_once_and_is_never_the_target():
    rows = load_task({"task": "twenty_questions", "rows": 8, "columns": 8}, split="test", size=20)
    for row in rows:
        env = TwentyQuestions(name_ruled_out=True)
        env.reset(**row)
        named: list[str] = []
        for question in env._table.questions:
            text = env.ask(attribute=question)
            assert row["target"] not in text.replace(",", " ").split()
            named += text.partition("; not ")[2].split(", ") if "; not " in text else []
        possible = [n for n, p in zip(env._table.hypotheses, env._estimator.belief.probs, strict=True) if p > 0]
        assert sorted([*named, *possible]) == sorted(env._table.hypotheses)


def test_a_noisy_user_rules_nothing_out():
    (row,) = load_task({"task": "twenty_questions", "rows": 8, "columns": 8, "user_noise": 0.1}, size=1)
    env = TwentyQuestions(name_ruled_out=True)
    env.reset(**row)
    assert not any("not" in env.ask(attribute=q) for q in env._table.questions)
    with pytest.raises(ValueError, match="could rule out the target aloud"):
        TwentyQuestions(name_ruled_out=True, assumed_noise=0.1)
