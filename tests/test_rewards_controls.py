"""The arms of the control suite: what each pays, seeded coins, the published regular expression, what compare says."""

import json
import math
import pickle
import re
import runpy
from pathlib import Path

import pytest
import torch
from entrl_rewards import controls
from entrl_rewards.controls import Control, coins, in_majority, think_then_answer
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import parameters, same, trainer

from entrl.report.compare import compare_runs
from entrl.report.control import control_arm
from entrl.report.read import read_run
from entrl.runs.specs import load_reward

make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]


def right(*, completions, **_):
    """A verifier: what ends in 4 is right, a question mark could not be checked."""
    return [None if c.endswith("?") else float(c.endswith("4")) for c in completions]


WELL, ILL = "<think>2+2</think>4", "4"
COMPLETIONS = [WELL, "<think>2+2</think>5", ILL, "<think>2</think>?"]


def paid(arm, completions=COMPLETIONS, **options):
    signals = {"prompts": [""] * len(completions), "completion_ids": [[1]] * len(completions)}
    signals |= {"group_index": [0] * len(completions), "answer_texts": [c.rpartition(">")[2] for c in completions]}
    return Control(arm=arm, correctness=right, **options)(completions=completions, **signals)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("truth", [1, 0, 0, None]),
        ("format", [1, 1, 0, 1]),
        ("incorrect", [0, 1, 0, None]),
        ("majority", [1, 0, 0, 0]),  # 4 twice, of which one is ill-formed
    ],
)
def test_what_each_arm_pays(arm, expected):
    assert paid(arm) == expected


def test_form_none_pays_whatever_the_form():
    assert paid("truth", form="none") == [1, 0, 1, None]
    assert paid("format", form="none") == [1] * 4


def test_truth_and_incorrect_share_what_the_format_pays():
    """For every completion that could be judged."""
    both = zip(paid("truth"), paid("incorrect"), paid("format"), strict=True)
    assert all(t is None or t + i == f for t, i, f in both)


# --- form ---------------------------------------------------------------------------------------------------------

PUBLISHED = re.compile(r"^<think>.*?</think>\s*<answer>.*?</answer>$")
PIECES = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "x", "2+2\n=4"])


@given(st.lists(PIECES, max_size=9).map("".join))
def test_without_newlines_it_is_the_published_expression(text):
    assert think_then_answer(text, newlines=False) == (PUBLISHED.match(text.strip()) is not None)
    assert think_then_answer(text) >= think_then_answer(text, newlines=False)
    if "\n" not in text:
        assert think_then_answer(text) == think_then_answer(text, newlines=False)


@pytest.mark.parametrize(
    ("text", "with_newlines", "published"),
    [
        ("<think>a</think><answer>4</answer>", True, True),
        (" <think>a</think>\n\n<answer>4</answer>\n", True, True),  # outside the blocks
        ("<think>a\nb</think><answer>4</answer>", True, False),
        ("<think>a</think><answer>4\n</answer>", True, False),
        ("<think>a</think>4", False, False),
        ("so <think>a</think><answer>4</answer>", False, False),
        ("<think>a</think><answer>4</answer> done", False, False),
        ("", False, False),
    ],
)
def test_the_quirk_of_newlines(text, with_newlines, published):
    assert (think_then_answer(text), think_then_answer(text, newlines=False)) == (with_newlines, published)
    got = [paid("format", [text], form="think_answer", newlines=n)[0] for n in (True, False)]
    assert got == [with_newlines, published]


# --- coins --------------------------------------------------------------------------------------------------------


def test_coins_are_fair_and_repeat_with_their_seed():
    groups = [g for g in range(500) for _ in range(8)]
    tossed = coins(groups, seed=1, call=0)
    assert abs(sum(tossed) - 2000) < 4 * math.sqrt(1000)
    assert tossed == coins(groups, seed=1, call=0)
    for other in ({"seed": 2, "call": 0}, {"seed": 1, "call": 1}):
        same_coin = sum(a == b for a, b in zip(tossed, coins(groups, **other), strict=True))
        assert abs(same_coin - 2000) < 4 * math.sqrt(1000)


def test_two_ranks_toss_what_one_does():
    groups = [g for g in range(6) for _ in range(4)]
    assert coins(groups[:12], seed=3, call=5) + coins(groups[12:], seed=3, call=5) == coins(groups, seed=3, call=5)


def test_a_resumed_control_goes_on_with_its_coins():
    signals = {"completions": [WELL] * 16, "prompts": [""] * 16, "completion_ids": [[1]] * 16, "group_index": [0] * 16}
    whole, first, second = Control(), Control(), Control()
    expected = [whole(**signals) for _ in range(4)]
    assert [first(**signals) for _ in range(2)] == expected[:2]
    first(**signals, training=False)  # an evaluation leaves the coins of training alone
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second(**signals) for _ in range(2)] == expected[2:]
    assert len({tuple(row) for row in expected}) == 4


# --- majority and likelihood --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["", "4", " 4 ", "5", "4 4"])), max_size=12))
def test_majority_slow_twin(rows):
    groups, answers = [g for g, _ in rows], [a for _, a in rows]
    want = []
    for group, answer in rows:
        mine = [" ".join(a.split()) for g, a in rows if g == group and a.strip()]
        best = max(mine, key=lambda a: (mine.count(a), -mine.index(a))) if mine else None
        want.append(bool(answer.strip()) and " ".join(answer.split()) == best)
    assert in_majority(answers, groups) == want


def test_of_equals_the_first_is_the_majority():
    assert in_majority(["5", "4", "4", "5", ""], [0] * 5) == [True, False, False, True, False]


def test_likelihood_is_the_mean_over_the_policy_s_own_tokens():
    rows = [torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([-2.0]), torch.tensor([])]
    masks = [torch.tensor([True, False, True]), torch.tensor([False]), torch.tensor([], dtype=torch.bool)]
    call = Control(arm="likelihood")
    assert call(completions=[""] * 3, token_logprobs=rows, token_mask=masks) == [-3.0, None, None]
    assert call(completions=[""] * 2, token_logprobs=rows[:2]) == [-3.0, -2.0]


# --- as TRL and recipes meet them ---------------------------------------------------------------------------------


def test_each_arm_is_a_named_reward():
    names = ["truth", "formatted", "random", "incorrect", "majority", "likelihood"]
    ready = [getattr(controls, name) for name in names]
    assert [r.__name__ for r in ready] == [f"control_{a}" for a in ("truth", "format", *names[2:])]
    assert [load_reward(f"entrl_rewards.controls:{name}", {}).value for name in names] == ready
    assert load_reward("controls", {"arm": "majority", "form": "none"}).value == Control(arm="majority", form="none")
    assert pickle.loads(pickle.dumps(ready)) == ready
    assert [bool(r.columns) for r in ready] == [True, False, False, True, False, False]
    assert [r.needs_whole_groups for r in ready] == [False, False, True, False, True, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arm": "luck"}, "arm must be one of truth, format, random"),
        ({"newlines": False}, "newlines is of form: think_answer, and form is 'think'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_what_a_control_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Control(**options)


@pytest.mark.parametrize("arm", ["random", "majority", "likelihood"])
def test_what_stock_trl_cannot_deliver_is_named(arm):
    with pytest.raises(TypeError, match=f"controls, arm {arm}: needs"):
        Control(arm=arm, form="none")(completions=["a"])


def test_controls_train_and_the_random_arm_differs_from_the_format_arm(tmp_path):
    def run(*arms):
        rewards = [Control(arm=arm, form="none", correctness=right) for arm in arms]
        made = trainer(tmp_path, rewards, max_steps=3)
        made.train()
        return made

    made = run("random", "likelihood", "majority")
    logged = made.state.log_history[0]
    assert {f"rewards/control_{arm}/mean" for arm in ("random", "likelihood", "majority")} <= logged.keys()
    assert logged["rewards/control_likelihood/mean"] < 0
    assert not same(parameters(run("random")), parameters(run("format")))


# --- no credit ----------------------------------------------------------------------------------------------------


def as_control(run, use="controls"):
    recipe = run / "recipe.yaml"
    text = re.sub(r"rewards: .*", f"rewards: [{{use: '{use}'}}, {{use: accuracy, weight: 0}}]", recipe.read_text())
    recipe.write_text(text)
    return run


@pytest.mark.parametrize(
    ("use", "arm"),
    [
        ("controls", "random"),
        ("entrl_rewards.controls:formatted", "format"),
        ("entrl_rewards.controls:truth", None),
        ("pear", None),
    ],
)
def test_which_runs_are_controls(use, arm, tmp_path):
    assert control_arm(read_run(as_control(make_run(tmp_path / "run", steps=4), use))) == arm


@pytest.mark.parametrize(("gain", "credit"), [(0.3, False), (0.7, True)])
@pytest.mark.parametrize("control_first", [True, False])
def test_a_method_that_gains_no_more_than_a_control_earns_no_credit(gain, credit, control_first, tmp_path):
    control = as_control(make_run(tmp_path / "spurious", steps=4, gain=0.3))
    method = make_run(tmp_path / "method", steps=4, gain=gain, seed=1)
    found = compare_runs(*((control, method) if control_first else (method, control)))
    (sentence,) = found["control"]
    assert sentence.startswith(f"method gains {'more' if credit else 'no more'} than the random control: ")
    assert sentence.endswith("its reward earns no credit") != credit
    assert "Sampled accuracy" in sentence


def test_two_methods_or_two_controls_say_nothing(tmp_path):
    runs = [make_run(tmp_path / name, steps=4) for name in "ab"]
    assert compare_runs(*runs)["control"] == []
    assert compare_runs(*map(as_control, runs))["control"] == []
