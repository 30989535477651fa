"""Policies that choose questions: the published greedy rollouts, what a pursuit minimises, when it stops, and what
coverage a conformal one has where, with an over-confident model."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_environments_play import chat_model, chat_tokenizer

from entrl.beliefs import Belief, ExactBayes
from entrl.cli.main import parse
from entrl.cli.play import run_play
from entrl.cli.policies import parse_policy
from entrl.environments import DiagramSpecification, TwentyQuestions, find_table, procedural_table
from entrl.environments.play import play, score
from entrl.environments.policies import GreedyExact, GuessOnly, RandomQuestions, open_gains, open_questions
from entrl.environments.pursuit import (
    ConformalPursuit,
    InformationPursuit,
    covered,
    exact_beliefs,
    flat,
    language_beliefs,
    pursuit_coverage,
    smallest_set,
)
from entrl.tasks.inquiries import diagram_rows, twenty_questions_rows

VECTORS = json.loads((Path(__file__).parent / "vectors" / "information_gain.json").read_text())
GREEDY = [case for case in VECTORS["cases"] if case["kind"] == "greedy_rollout"]
OVERCONFIDENT = functools.partial(exact_beliefs, temperature=0.25)


def row(table_id, target, **changes):
    prompt = [{"role": "user", "content": "?"}]
    facts = {"problem_id": target, "max_questions": 20, "seed": 0, "user_noise": 0.0}
    return {"table_id": table_id, "target": target, "prompt": prompt} | facts | changes


@pytest.mark.parametrize("case", GREEDY, ids=lambda case: case["id"])
def test_greedy_plays_the_reference_rollouts(case, tmp_path):
    values = case["input"]["table"]
    names, questions = [f"h{i}" for i in range(len(values))], [f"q{i}" for i in range(len(values[0]))]
    file = tmp_path / f"{case['id']}.json"
    file.write_text(json.dumps({"hypotheses": names, "questions": questions, "values": values}))
    find_table(f"loaded:{file}")
    episodes = play(TwentyQuestions, [row(f"loaded:{file}", name) for name in names], GreedyExact())
    for played, want in zip(episodes, case["expected"]["rollouts"], strict=True):
        assert [question for question, _ in played.history] == [f"q{i}" for i in want["asked"]]
        assert [int(answer) for _, answer in played.history] == want["answers"]
        assert played.gains == pytest.approx(want["gains"])
        assert played.correct
        assert played.entropies[-1] == pytest.approx(0, abs=1e-9)
    mean = score(episodes)["questions"]["mean"]
    assert mean == pytest.approx(case["expected"]["mean_questions"])
    assert mean >= case["expected"]["h0"] - 1e-9


def opened(target=0, *, asked=(), noise=0.1, seed=3, **changes):
    """An environment in the middle of a game."""
    table = procedural_table(seed, rows=8, columns=8)
    env = TwentyQuestions()
    env.reset(**row(table.table_id, table.hypotheses[target], user_noise=noise, **changes))
    for question in asked:
        env.ask(question)
    return env


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 7), st.sets(st.integers(0, 7), max_size=4), st.sampled_from([0.0, 0.05, 0.2]))
def test_information_pursuit_with_the_exact_belief_leaves_what_the_best_question_leaves(target, asked, noise):
    questions = procedural_table(3, rows=8, columns=8).questions
    env = opened(target, asked=[questions[i] for i in sorted(asked)], noise=noise)
    policy = InformationPursuit(beliefs=exact_beliefs, eps=1e-6)
    chosen = policy.choose(env, np.random.default_rng(0))
    gains = dict(zip(open_questions(env), open_gains(env), strict=True))
    best = max(gains.values())
    if chosen is None:
        assert best < 1e-5
    else:
        assert gains[chosen] == pytest.approx(best, abs=1e-6)


def test_estimates_are_the_expected_entropy_and_the_expected_set_size():
    questions = procedural_table(3, rows=8, columns=8).questions
    env = opened(asked=questions[:1])
    history = [(questions[0], str(env._estimator._answers[questions[0]]))]
    policy = ConformalPursuit(beliefs=OVERCONFIDENT, calibration=50)
    sets, table = policy.size(env), env._table
    before = sets.model.belief(history)
    left, sizes = 0.0, 0.0
    for answer in (0, 1):
        m = sum(before.probs[h] * table.likelihood(questions[1], noise=0.1)[h, answer] for h in range(8))
        after = [*history, (questions[1], str(answer))]
        left += m * sets.model.belief(after).entropy()
        sizes += m * (sets.model.belief(after).probs >= -sets.thresholds.at(2).value).sum()
    by_entropy = InformationPursuit(beliefs=OVERCONFIDENT)
    assert by_entropy.estimate(env, history, questions[1]) == pytest.approx(left)
    assert policy.estimate(env, history, questions[1]) == pytest.approx(math.log2(sizes))


def test_exact_beliefs_are_bayes_and_a_temperature_sharpens_them():
    table = procedural_table(3, rows=8, columns=8)
    bayes = ExactBayes(table.hypotheses, table.questions, lambda q: table.likelihood(q, noise=0.1))
    history = []
    for question, answer in zip(table.questions[:4], (1, 0, 1, 1), strict=True):
        bayes.observe(question, answer)
        history.append((question, str(answer)))
    assert exact_beliefs(table, 0.1).belief(history).probs == pytest.approx(bayes.belief.probs)
    sharp = exact_beliefs(table, 0.1, temperature=0.25).belief(history)
    assert sharp.probs == pytest.approx(bayes.belief.probs**4 / (bayes.belief.probs**4).sum())
    assert sharp.entropy() < bayes.entropy()


@pytest.mark.parametrize(
    ("estimates", "now", "stops"),
    [([1.0, 1.0], 1.0, True), ([1.0, 1.0], 2.0, False), ([1.0, 0.5], 1.0, False), ([1.5, 1.5], 1.0, True)],
)
def test_the_stopping_rule_needs_both(estimates, now, stops):
    assert flat(np.array(estimates), now, 0.01) is stops


def test_pursuits_stop_when_nothing_is_left():
    table = "procedural:rows=8,columns=8,seed=3"
    rows = [row(table, name) for name in find_table(table).hypotheses]
    for policy in (InformationPursuit(beliefs=exact_beliefs), ConformalPursuit(beliefs=exact_beliefs, calibration=50)):
        episodes = play(TwentyQuestions, rows, policy)
        assert all(e.correct and e.questions < 8 for e in episodes)


def test_a_conformal_pursuit_that_keeps_every_label_asks_by_entropy():
    env = opened()
    policy = ConformalPursuit(beliefs=exact_beliefs, calibration=3)
    with pytest.warns(UserWarning, match="too few for alpha"):
        chosen = policy.choose(env, np.random.default_rng(0))
    assert policy.size(env).size([(chosen, "0")]) == 8
    assert chosen == InformationPursuit(beliefs=exact_beliefs).choose(env, np.random.default_rng(0))


def test_an_overconfident_model_is_covered_like_its_calibration_and_not_where_it_chose():
    """alpha 0.1, 500 fresh histories a length over one table; fixed seeds. The negative control: by its own
    probabilities, or on its own histories, the same model falls short."""
    rows = twenty_questions_rows(
        split="test", size=80, seed=0, tables="procedural:rows=16,columns=16,seed=5", user_noise=0.1, max_questions=6
    )
    policy = ConformalPursuit(beliefs=OVERCONFIDENT)
    played = play(TwentyQuestions, rows, policy)
    report = pursuit_coverage(policy, TwentyQuestions, rows, played, count=500)
    fresh, chosen = report["calibration-like"], report["self-chosen"]
    # given 200 calibration scores coverage is Beta(181, 20), sd 0.021; 500 histories add 0.013: four of both
    assert all(row["coverage"] > 0.9 - 4 * 0.025 for row in fresh.values())
    assert np.mean([row["coverage"] for row in fresh.values()]) == pytest.approx(0.9, abs=0.03)
    assert min(row["naive"] for row in fresh.values()) < 0.8
    assert min(row["coverage"] for row in chosen.values()) < 0.88
    assert all(row["n"] == 500 for row in fresh.values())
    assert chosen[1]["n"] == 80


def test_the_smallest_set():
    assert smallest_set(np.array([0.5, 0.3, 0.2]), 0.5).tolist() == [True, False, False]
    assert smallest_set(np.array([0.2, 0.3, 0.5]), 0.6).tolist() == [False, True, True]
    assert smallest_set(np.array([0.2, 0.3, 0.5]), 1.0).all()


def test_policies_do_not_look_at_the_target():
    """The first question is the same whatever is hidden, and so is the second after the same answer."""
    for policy in (GreedyExact(), RandomQuestions(), InformationPursuit(beliefs=exact_beliefs), GuessOnly()):
        firsts = {policy.choose(opened(target), np.random.default_rng(0)) for target in range(8)}
        assert len(firsts) == 1
    guesses = {GreedyExact().guess(opened(target))["answer"] for target in range(8)}
    assert len(guesses) == 1


def test_a_pursuit_needs_a_table():
    with pytest.raises(TypeError, match="ip needs an environment over a table"):
        play(
            DiagramSpecification, diagram_rows(split="test", size=1, seed=0), InformationPursuit(beliefs=exact_beliefs)
        )


def test_a_language_model_can_supply_the_belief():
    tokenizer = chat_tokenizer()
    table = procedural_table(3, rows=3, columns=4, flip=0.0)
    beliefs = language_beliefs(chat_model(tokenizer), tokenizer)
    model = beliefs(table, 0.0)
    before, after = model.belief([]), model.belief([(table.questions[0], "1")])
    assert isinstance(before, Belief)
    assert before.hypotheses == table.hypotheses
    assert not np.allclose(before.probs, after.probs, atol=1e-9)  # it reads the answers
    rows = [row(table.table_id, table.hypotheses[0], max_questions=1)]
    (played,) = play(TwentyQuestions, rows, InformationPursuit(beliefs=beliefs, eps=0.0))
    assert played.submitted
    assert played.questions <= 1


def arguments(*words):
    return parse(["play", "twenty_questions", *words])[1]


def test_the_command_plays_scores_and_writes(tmp_path, capsys):
    out = tmp_path / "deep" / "play.json"
    task = "{rows: 8, columns: 8, user_noise: 0.1, max_questions: 4}"
    specs = ("greedy", "guess", "cip:temperature=0.25,calibration=40,alpha=0.2")
    words = [word for spec in specs for word in ("--policy", spec)]
    assert run_play(arguments("--size", "5", "--task-args", task, "--out", str(out), *words)) == 0
    found = json.loads(out.read_text())
    assert found["n_problems"] == 5
    assert len(found["commit"]) == 40
    assert list(found["policies"]) == list(specs)
    greedy, guess, pursuit = found["policies"].values()
    assert len(greedy["episodes"]) == 5
    assert guess["questions"]["mean"] == 0
    want = guess["questions"]["mean"] - greedy["questions"]["mean"]
    assert guess["minus_first"]["questions"]["mean"] == pytest.approx(want)
    assert pursuit["coverage"]["alpha"] == "0.2"
    assert set(pursuit["coverage"]["calibration-like"]) == {"1", "2", "3", "4"}
    assert "greedy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("greedi", r"no policy 'greedi'.*greedy"),
        ("greedy:x=1", "greedy takes no options"),
        ("cip:alhpa=0.2", "unknown option 'alhpa=0.2'.*alpha"),
        ("ip:temperature=hot", "temperature must be a number, got 'hot'"),
        ("model:", "model needs a folder"),
    ],
)
def test_policies_that_do_not_exist(spec, match):
    with pytest.raises(ValueError, match=match):
        parse_policy(spec, arguments("--policy", spec))


def test_the_same_policy_twice_is_a_mistake():
    with pytest.raises(ValueError, match="given twice"):
        run_play(arguments("--policy", "greedy", "--policy", "greedy"))


def test_sets_can_be_calibrated_on_played_dialogues():
    """C-IP's second way: thresholds from logged games, here greedy ones, in place of random histories."""
    rows = [
        dict(r)
        for r in twenty_questions_rows(
            split="test", size=40, seed=0, tables="procedural:rows=16,columns=16,seed=5", user_noise=0.1
        )
    ]
    games = play(TwentyQuestions, rows, GreedyExact())
    logged = [(list(game.history), game.target) for game in games]
    policy = ConformalPursuit(beliefs=OVERCONFIDENT, logged=lambda table: logged)
    env = TwentyQuestions()
    env.reset(**(rows[0] | {"max_questions": 3}))
    sets = policy.size(env)
    assert sets.thresholds.at(2).n == 40
    random_ones = ConformalPursuit(beliefs=OVERCONFIDENT).size(env)
    assert sets.thresholds.at(2).value != random_ones.thresholds.at(2).value
    hits = [covered(sets, game.history[:2], game.target).hit for game in games]
    assert np.mean(hits) >= 0.9  # on the dialogues it was calibrated on, by construction
