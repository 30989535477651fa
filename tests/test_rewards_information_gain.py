"""The information-gain reward: what each credit pays, that only what was seen is paid, and what each turn gets."""

import dataclasses
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from entrl_rewards.information_gain import PRESETS, InformationGain, reward
from entrl_rewards.information_gain_options import InformationGainExpert
from entrl_rewards.inquiry import follow
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.environments import TwentyQuestions, find_table
from entrl.environments.model_policy import call_tool, tools_of
from entrl.runs.specs import load_reward

TABLE = "procedural:rows=8,columns=8,seed=0"  # its first six questions all tell something about row 2
EXPERT = {f.name for f in dataclasses.fields(InformationGainExpert)}
few = settings(max_examples=40, deadline=None)


def make(**options):
    """Options by name, whichever of them are expert ones."""
    expert = {name: options.pop(name) for name in list(options) if name in EXPERT}
    return InformationGain(**options, expert=InformationGainExpert(**expert))


def row(**changes):
    return {
        "table_id": TABLE,
        "target": find_table(TABLE).hypotheses[2],
        "max_questions": 20,
        "seed": 5,
        "user_noise": 0.0,
    } | changes


def ask(attribute):
    return ("ask", {"attribute": attribute})


def submit(name):
    return ("submit", {"answer": name})


def played(turns, *, drop_last=False, factory=TwentyQuestions, **changes):
    """(environment, completion) of a scripted dialogue; a turn is a list of calls, or a text without any.

    drop_last: the results of the last turn did not fit and were taken back.
    """
    env = factory()
    env.reset(**row(**changes))
    messages = []
    for at, turn in enumerate(turns):
        if isinstance(turn, str):
            messages.append({"role": "assistant", "content": turn})
            continue
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in turn]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        results = [call_tool(call, tools_of(env)) for call in calls]
        messages += [] if drop_last and at == len(turns) - 1 else results
    return env, messages


def rewards_of(dialogues, of=reward, **more):
    environments, completions = zip(*dialogues, strict=True)
    return of(completions=list(completions), environments=list(environments), prompts=[[]] * len(completions), **more)


def turn_rewards(dialogues, **options):
    paying = make(pay="turn", **options)
    returned = rewards_of(dialogues, paying)
    return returned, [t.tolist() for t in paying.row_columns["turn_rewards"]]


def questions(count=None, table_id=TABLE):
    return find_table(table_id).questions[:count]


def expected_by_hand(asked, **changes):
    """Bits of each question from counts of the rows that are still possible, written without `entrl.beliefs`."""
    table = find_table(TABLE)
    truth = list(table.hypotheses).index(row(**changes)["target"])
    left = list(range(len(table.hypotheses)))
    gains, realised = [], []
    for question in asked:
        column = table.values[:, table.questions.index(question)]
        share = sum(column[h] for h in left) / len(left)
        gains.append(-sum(p * math.log2(p) for p in (share, 1 - share) if p > 0))
        kept = [h for h in left if column[h] == column[truth]]
        realised.append(math.log2(len(left) / len(kept)))
        left = kept
    return gains, realised


def test_the_default_pays_expected_gains_over_h0_and_one_for_the_answer():
    asked = questions(4)
    gains, _ = expected_by_hand(asked)
    right = played([[ask(q)] for q in asked] + [[submit(row()["target"])]])
    wrong = played([[ask(q)] for q in asked] + [[submit(find_table(TABLE).hypotheses[0])]])
    silent = played([[ask(q)] for q in asked] + ["I give up"])
    assert rewards_of([right, wrong, silent]) == pytest.approx([1 + sum(gains) / 3, sum(gains) / 3, sum(gains) / 3])


@pytest.mark.parametrize("credit", ["realised", "kl", "target"])
def test_three_credits_agree_on_certain_answers(credit):
    _, realised = expected_by_hand(questions(4))
    dialogue = played([[ask(q)] for q in questions(4)])
    paying = make(credit=credit, normalise="none")
    assert rewards_of([dialogue], paying) == pytest.approx([sum(realised)])


def test_target_probability_telescopes_to_the_belief():
    dialogue = played([[ask(q)] for q in questions(4)])
    after = dialogue[0]._estimator.belief.probs[2]
    assert rewards_of([dialogue], make(credit="target_prob")) == pytest.approx([after - 1 / 8])


def test_regret_is_one_for_the_best_question_and_zero_where_nothing_is_left():
    env = TwentyQuestions()
    env.reset(**row())
    best = env._estimator.best_question()
    paying = make(credit="regret")
    assert rewards_of([played([[ask(best)]])], paying) == pytest.approx([1.0])
    everything = played([[ask(q)] for q in questions()])
    last = everything[0]._events[-1]
    assert last.best_expected == 0
    assert math.isfinite(rewards_of([everything], make(credit="regret", reduce="last"))[0])
    gains = [e.step.expected / e.best_expected for e in everything[0]._events if e.best_expected > 0]
    assert rewards_of([everything], paying) == pytest.approx([sum(gains)])


def test_resolved_counts_the_moment_of_certainty():
    dialogue = played([[ask(q)] for q in questions()])
    assert dialogue[0]._estimator.entropy() == pytest.approx(0)
    assert rewards_of([dialogue], make(preset="resolved_count")) == [1.0]


def test_no_credit_leaves_the_outcome():
    right = played([[ask(questions()[0])], [submit(row()["target"])]])
    assert rewards_of([right], make(credit="none")) == [1.0]


@pytest.mark.parametrize(("reduce", "want"), [("sum", sum), ("mean", np.mean), ("last", lambda g: g[-1])])
def test_reduce(reduce, want):
    gains, _ = expected_by_hand(questions(3))
    paying = make(reduce=reduce, normalise="none")
    assert rewards_of([played([[ask(q)] for q in questions(3)])], paying) == pytest.approx([want(gains)])
    assert rewards_of([played(["nothing asked"])], paying) == [0.0]


def test_a_repeated_question_gains_nothing_and_costs_its_penalty():
    once, again = questions(1) * 1, questions(1) * 3
    plain = rewards_of([played([[ask(q)] for q in asked]) for asked in (once, again)])
    assert plain[0] == plain[1] > 0
    costly = make(question_cost=0.1, repeat_penalty=0.25)
    assert rewards_of([played([[ask(q)] for q in again])], costly) == pytest.approx([plain[0] - 0.3 - 0.5])


def test_a_repeated_noisy_question_gains_nothing():
    dialogue = played([[ask(questions()[0])]] * 4, user_noise=0.2)
    first = played([[ask(questions()[0])]], user_noise=0.2)
    for credit in ("expected", "realised", "kl", "target", "target_prob", "regret"):
        paying = make(credit=credit)
        assert rewards_of([dialogue], paying) == rewards_of([first], paying)


def test_what_was_taken_back_is_not_paid_but_charged():
    asked = questions(3)
    seen = played([[ask(q)] for q in asked[:2]])
    dropped = played([[ask(q)] for q in asked], drop_last=True)
    assert len(dropped[0]._events) == 3
    assert rewards_of([dropped]) == rewards_of([seen])
    all_paid = make(seen_only=False)
    assert rewards_of([dropped], all_paid) == rewards_of([played([[ask(q)] for q in asked])])
    costly = make(question_cost=0.5)
    assert rewards_of([dropped], costly) == pytest.approx([rewards_of([seen])[0] - 1.5])


def test_a_submission_that_was_taken_back_counts():
    dropped = played([[ask(questions()[0])], [submit(row()["target"])]], drop_last=True)
    assert rewards_of([dropped]) == rewards_of([played([[ask(questions()[0])], [submit(row()["target"])]])])


def test_sum_of_realised_gains_is_h0_minus_ht_of_what_was_seen():
    asked = questions(5)
    dropped = played([[ask(q)] for q in asked], user_noise=0.1, drop_last=True)
    upto = played([[ask(q)] for q in asked[:4]], user_noise=0.1)
    paying = make(credit="realised", normalise="none")
    want = 3.0 - upto[0]._estimator.entropy()
    assert rewards_of([dropped], paying) == pytest.approx([want])
    assert dropped[0]._estimator.entropy() != pytest.approx(upto[0]._estimator.entropy())


def test_unknown_tools_bad_arguments_and_refusals():
    turns = [
        [("look", {"at": "it"})],
        [("ask", {"wrong": "name"})],
        [ask("no such attribute")],
        [ask(questions()[0])],
        [submit("nobody")],
        [submit(row()["target"])],
        [ask(questions()[1])],
        [submit(row()["target"])],
    ]
    dialogue = played(turns)
    logged = {}
    costly = make(invalid_penalty=1.0, normalise="none")
    (got,) = rewards_of([dialogue], costly, log_metric=logged.__setitem__)
    (gain,), _ = expected_by_hand(questions(1))
    assert got == pytest.approx(1 + gain - 4)
    assert logged["information_gain/invalid"] == 4
    assert logged["information_gain/refused"] == 2
    assert logged["information_gain/questions"] == 1
    _, (by_turn,) = turn_rewards([dialogue], invalid_penalty=1.0, normalise="none")
    assert by_turn == pytest.approx([-1, -1, -1, gain, -1, 0, 0, 0])


def test_malformed_calls_are_counted_and_charged():
    """TRL reads a call it cannot parse as text, and the dialogue ends: breaking the syntax is no cheap way out."""
    broken = '<tool_call>\n{"name": "ask", "arguments": {"attribute": }\n</tool_call>'
    dialogue = played([[ask(questions()[0])], broken])
    logged = {}
    (got,) = rewards_of([dialogue], make(credit="none", invalid_penalty=0.5), log_metric=logged.__setitem__)
    assert (got, logged["information_gain/invalid"]) == (-0.5, 1)
    _, (by_turn,) = turn_rewards([dialogue], invalid_penalty=0.5, gain_weight=0.0)
    assert by_turn == [0.0, -0.5]
    (published,) = rewards_of([dialogue], make(preset="delta_belief", gain_weight=0.0, question_cost=0.0))
    assert published == -5
    gave_up = played([[ask(questions()[0])], "I give up."])
    assert rewards_of([gave_up], make(credit="none", invalid_penalty=1)) == [0]


def test_invalid_calls_that_were_taken_back_are_charged_to_the_last_turn():
    dialogue = played([[ask(questions()[0])], [ask("nonsense"), ask("rubbish")]], drop_last=True)
    _, (by_turn,) = turn_rewards([dialogue], invalid_penalty=1.0, gain_weight=0.0)
    assert by_turn == [0.0, -2.0]


def test_a_budget_that_is_used_up_pays_nothing_more():
    asked = questions(4)
    short = played([[ask(q)] for q in asked], max_questions=2)
    assert rewards_of([short]) == rewards_of([played([[ask(q)] for q in asked[:2]], max_questions=2)])
    assert short[0]._refused == 2


def test_turns_hold_one_value_for_each_assistant_message():
    asked = questions(4)
    gains, _ = expected_by_hand(asked)
    turns = [
        [ask(asked[0])],
        [ask(asked[1]), ask(asked[2])],
        "let me think",
        [ask(asked[3])],
        [submit(row()["target"])],
    ]
    returned, (by_turn,) = turn_rewards([played(turns)], question_cost=0.1)
    assert returned == [1.0]
    want = [gains[0] / 3 - 0.1, (gains[1] + gains[2]) / 3 - 0.2, 0.0, gains[3] / 3 - 0.1, 0.0]
    assert by_turn == pytest.approx(want)


def test_an_unexecuted_last_call_is_a_turn_of_its_own():
    env, messages = played([[ask(questions()[0])]])
    messages.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]})
    _, (by_turn,) = turn_rewards([(env, messages)])
    assert len(by_turn) == 2
    assert by_turn[1] == 0


def test_turns_and_outcome_add_up_to_the_episode():
    dialogues = [
        played([[ask(q)] for q in questions(n)] + [[submit(row()["target"])]], user_noise=0.1) for n in (1, 3, 6)
    ]
    options = {"question_cost": 0.05, "gain_weight": 0.7}
    returned, by_turn = turn_rewards(dialogues, **options)
    want = rewards_of(dialogues, make(**options))
    assert [r + sum(t) for r, t in zip(returned, by_turn, strict=True)] == pytest.approx(want, abs=1e-6)


def test_only_turns_are_published():
    assert make().published_columns == ()
    assert make(pay="turn").published_columns == ("turn_rewards",)
    paying = make()
    rewards_of([played(["no"])], paying)
    assert paying.row_columns == {}


def test_target_gains_are_bounded_where_the_truth_was_ruled_out():
    factory = functools.partial(TwentyQuestions, assumed_noise=0.0)
    lying = played([[ask(q)] for q in questions()], factory=factory, user_noise=1.0)
    gains = [e.step.target_log_gain for e in lying[0]._events]
    assert -math.inf in gains
    paid = rewards_of([lying], make(credit="target", normalise="none"))
    assert paid == pytest.approx([sum(max(g, -3.0) for g in gains)])
    assert rewards_of([lying], make(credit="target_prob")) == pytest.approx([-1 / 8])


def test_a_contradiction_that_is_ignored_pays_nothing_and_a_reset_pays_back():
    for policy in ("ignore", "reset"):
        factory = functools.partial(TwentyQuestions, assumed_noise=0.0, on_contradiction=policy)
        lying = played([[ask(q)] for q in questions()], factory=factory, user_noise=0.5, seed=1)
        assert any(e.contradiction for e in lying[0]._events)
        paid = rewards_of([lying], make(credit="realised", normalise="none"))
        assert paid == pytest.approx([3.0 - lying[0]._estimator.entropy()])
        belief = lying[0]._estimator.belief.probs[2]
        assert rewards_of([lying], make(credit="target_prob")) == pytest.approx([belief - 1 / 8])


def test_nothing_to_find_out_pays_nothing():
    table = "procedural:rows=1,columns=8,seed=3"
    (name,) = find_table(table).hypotheses
    dialogue = played([[ask(questions(1, table)[0])], [submit(name)]], table_id=table, target=name)
    for credit in ("expected", "realised", "kl", "target", "target_prob", "regret", "resolved", "none"):
        assert rewards_of([dialogue], make(credit=credit)) == [1.0]


def test_preset_delta_belief_is_its_published_reward_on_the_environments_belief():
    asked = [*questions(3), questions(1)[0]]
    dialogue = played(
        [[ask(q)] for q in asked] + [[ask("nonsense")], [submit(row()["target"])]], user_noise=0.2, seed=1
    )
    belief = [1 / 8, *(2.0 ** (-3 + np.cumsum([e.step.target_log_gain for e in dialogue[0]._events[:3]])))]
    nats = np.diff(np.log(belief))
    assert nats.min() < 0 < nats.max()  # the clip matters
    want = 2 + 0.1 * np.maximum(nats, 0).sum() - 0.05 * 4 - 1 - 5
    assert rewards_of([dialogue], make(preset="delta_belief")) == pytest.approx([want])


def test_preset_nous_is_the_entropy_drop_in_bits():
    dialogue = played([[ask(q)] for q in questions(3)] + [[submit(row()["target"])]])
    want = 3.0 - dialogue[0]._estimator.entropy()
    assert rewards_of([dialogue], make(preset="nous")) == pytest.approx([want])


def test_preset_igpo_is_the_answer_plus_the_rise_of_the_targets_probability():
    dialogue = played([[ask(q)] for q in questions(3)] + [[submit(row()["target"])]])
    want = 1 + dialogue[0]._estimator.belief.probs[2] - 1 / 8
    assert rewards_of([dialogue], make(preset="igpo")) == pytest.approx([want])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_from_a_recipe_and_yield_to_what_is_given(preset):
    loaded = load_reward("information_gain", {"preset": preset, "question_cost": 0.5}).value
    assert loaded == make(preset=preset, question_cost=0.5)
    free = make(preset=preset, question_cost=0.0)
    dialogue = played([[ask(q)] for q in questions(2)])
    assert rewards_of([dialogue], free)[0] == pytest.approx(rewards_of([dialogue], loaded)[0] + 1.0)


def test_shuffle_permutes_gains_inside_groups_and_leaves_outcomes():
    right = row()["target"]
    dialogues = [played([[ask(q)] for q in questions(n)] + [[submit(right)]]) for n in (0, 1, 2, 3, 4, 5, 6, 7)]
    groups = [0, 0, 0, 0, 1, 1, 1, 1]
    plain, control = rewards_of(dialogues), rewards_of(dialogues, make(shuffle=True), group_index=groups)
    assert control != plain
    for group in (slice(0, 4), slice(4, 8)):
        assert sorted(control[group]) == pytest.approx(sorted(plain[group]))
    paying = make(shuffle=True, pay="turn")
    rewards_of(dialogues, paying, group_index=groups)
    totals = [float(t.sum()) + 1 for t in paying.row_columns["turn_rewards"]]
    assert totals == pytest.approx(control, abs=1e-6)
    assert [len(t) for t in paying.row_columns["turn_rewards"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(TypeError, match="group_index"):
        rewards_of(dialogues, make(shuffle=True))
    assert make(shuffle=True).needs == ("group_index",)
    assert make(shuffle=True).needs_whole_groups


def test_metrics_and_columns_are_logged():
    dropped = played([[ask(q)] for q in questions(3)], drop_last=True)
    right = played([[ask(questions()[0])]] * 2 + [[submit(row()["target"])]])
    logged, extra = {}, {}
    rewards_of([dropped, right], log_metric=logged.__setitem__, log_extra=extra.__setitem__)
    gains, realised = expected_by_hand(questions(2))
    find = {name.removeprefix("information_gain/"): value for name, value in logged.items()}
    assert all(name.startswith("information_gain/") for name in logged)
    assert find["questions"] == 2.5
    assert find["unseen"] == find["success"] == find["repeats"] == find["submitted"] == 0.5
    assert find["realised"] == pytest.approx((sum(realised) + realised[0]) / 2)
    assert find["expected"] == pytest.approx((sum(gains) + gains[0]) / 2)
    assert find["luck"] == pytest.approx(find["realised"] - find["expected"])
    assert find["normalised"] == pytest.approx(find["realised"] / 3)
    assert find["paid"] == pytest.approx(find["expected"] / 3)
    assert extra["right"] == [0.0, 1.0]


def test_errors_say_what_to_do():
    env, messages = played(["hello"])
    with pytest.raises(TypeError, match="environment_factory"):
        reward(completions=[messages], prompts=[[]])
    with pytest.raises(TypeError, match=r"object has no _events.*InquiryEnv"):
        reward(completions=[messages], environments=[object()])
    with pytest.raises(TypeError, match="1 environments for 2 completions"):
        reward(completions=[messages] * 2, environments=[env])
    with pytest.raises(TypeError, match="plain text"):
        reward(completions=["hello"], environments=[env])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"credit": "entropy"}, "credit must be one of"),
        ({"reduce": "max"}, "reduce must be one of"),
        ({"normalise": "h0"}, "normalise must be prior or none"),
        ({"credit": "regret", "normalise": "prior"}, "not in bits"),
        ({"preset": "regret"}, "preset must be one of nous"),
        ({"pay": "token"}, "pay must be episode or turn"),
        ({"outcome": "f1"}, "outcome must be correct or score"),
        ({"pay": "turn", "reduce": "mean"}, "nothing to reduce"),
        ({"question_cost": -1.0}, "costs are subtracted"),
        ({"gain_weight": math.nan}, "gain_weight must be finite"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_the_face_that_trl_sees():
    assert reward.__name__ == "information_gain"
    assert pickle.loads(pickle.dumps(make(preset="nous"))) == make(preset="nous")
    dialogue = played([[ask(questions()[0])]])
    got = rewards_of([dialogue], completion_ids=[[1]], trainer_state=None, target=["x"], some_new_keyword=1)
    assert [type(value) for value in got] == [float]


scripts = st.lists(
    st.lists(st.sampled_from([*range(8), "bad", "unknown", "submit", "wrong"]), max_size=3), min_size=1, max_size=8
)


def as_turns(script):
    names = {"bad": ask("?"), "unknown": ("fly", {}), "submit": submit(row()["target"]), "wrong": submit("?")}
    return [[names[c] if isinstance(c, str) else ask(questions()[c]) for c in calls] or "hm" for calls in script]


@few
@given(scripts, st.booleans(), st.sampled_from([0.0, 0.2]))
def test_any_dialogue_keeps_the_books(script, drop_last, noise):
    dialogue = played(as_turns(script), drop_last=drop_last, user_noise=noise, max_questions=4)
    env, messages = dialogue
    followed = follow(messages, env._events)
    asked = [e for e in env._events if e.correct is None]
    # what is seen is a beginning of what happened
    assert list(followed.seen_E) == sorted(followed.seen_E, reverse=True)
    seen = [e for e, was in zip(env._events, followed.seen_E, strict=True) if was and e.correct is None]
    last = seen[-1].step.h_after if seen else 3.0
    (paid,) = rewards_of([dialogue], make(credit="realised", normalise="none", outcome_weight=0.0))
    assert paid == pytest.approx(3.0 - last, abs=1e-9)
    returned, (by_turn,) = turn_rewards([dialogue], question_cost=0.1)
    assert len(by_turn) == sum(m["role"] == "assistant" for m in messages) == len(script)
    episode = make(question_cost=0.1)
    assert returned[0] + sum(by_turn) == pytest.approx(rewards_of([dialogue], episode)[0], abs=1e-5)
    assert env._asked == len(asked) <= 4
    if any(e.correct for e in env._events):
        assert returned == [1.0]


@few
@given(scripts, st.integers(2, 5), st.sampled_from(["episode", "turn"]))
def test_identical_rollouts_are_paid_alike(script, count, pay):
    paying = make(pay=pay, question_cost=0.1, repeat_penalty=0.2, invalid_penalty=0.3)
    got = rewards_of([played(as_turns(script), user_noise=0.2) for _ in range(count)], paying)
    assert len(got) == count
    assert len(set(got)) == 1
    turns = paying.row_columns.get("turn_rewards", [])
    assert all(torch.equal(t, turns[0]) for t in turns)


@few
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 7))
def test_a_question_repeated_anywhere_later_changes_no_gain(asked, again):
    plain = rewards_of([played([[ask(questions()[q])] for q in asked], user_noise=0.2)])
    repeated = [*asked, asked[again % len(asked)]]
    assert rewards_of([played([[ask(questions()[q])] for q in repeated], user_noise=0.2)]) == pytest.approx(plain)
