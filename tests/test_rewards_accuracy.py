"""The accuracy reward: each kind of verifier, where the answer starts, and what a failed check becomes."""

import json
import logging
import pickle
import time

import pytest
from entrl_rewards import accuracy_checks
from entrl_rewards.accuracy import Accuracy, reward

from entrl.tasks import load_task
from entrl.verify.choices import chosen_letter


def gym(name, answer, **config):
    return {"kind": "reasoning_gym", "dataset": name, "config": config, "entry": {"answer": answer, "metadata": {}}}


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"so \boxed{\frac{1}{2}}", "1/2", 1.0),
        ("<think>hm</think>The answer is 0.5", r"\frac12", 1.0),
        (r"\boxed{1,234}", "1234", 1.0),
        (r"\boxed{(1, 2)}", "(1,2)", 1.0),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1.0),
        (r"<think>\boxed{7}</think>\boxed{8}", "7", 0.0),  # what was thought does not count
        ("no number at all", "4", 0.0),
        ("", "4", 0.0),
    ],
)
def test_math(text, gold, right):
    assert reward.score([text], [gold]) == [right]


def test_reasoning_gym_scores_and_the_threshold():
    texts = ["<think>1</think>36", "37", "x=36", "<answer> 36.0 </answer>"]
    verifiers = [gym("chain_sum", "36")] * 4
    assert reward.score(texts, ["36"] * 4, verifiers) == [1.0, 0.0, 0.0, 1.0]
    # chain_sum gives half a point for the right text among other text
    graded = Accuracy(partial_credit=True).score(texts, ["36"] * 4, verifiers)
    assert graded == [1.0, 0.0, 0.5, 1.0]
    assert Accuracy(threshold=0.5).score(texts, ["36"] * 4, verifiers) == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["countdown", "chain_sum", "knights_knaves", "zebra_puzzles", "mini_sudoku"])
def test_a_dataset_accepts_its_own_answers_through_the_verifier_column(name):
    rows = load_task(f"reasoning_gym:{name}", split="test", size=3, seed=3)
    scores = Accuracy(timeout_s=20).score(rows["answer"], rows["answer"], rows["verifier"])
    assert scores == [1.0] * 3
    assert Accuracy(timeout_s=20).score(["nonsense"] * 3, rows["answer"], rows["verifier"]) == [0.0] * 3


def test_a_dataset_without_one_gold_answer_is_verified_by_its_entry():
    """rubiks_cube accepts any solution; the one it knows is in its metadata."""
    rows = load_task("reasoning_gym:rubiks_cube", split="test", size=2, seed=0)
    assert rows["answer"] == ["", ""]
    solution = json.loads(rows[0]["verifier"])["entry"]["metadata"]["example_correct_answer"]
    assert reward.score([solution, "nonsense"], rows["answer"], [rows[0]["verifier"]] * 2) == [1.0, 0.0]


def test_exact_squeezes_white_space():
    exact = Accuracy(kind="exact")
    assert exact.score(["<think></think>  a \n b ", "ab", "A b"], ["a b"] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{A} no, \boxed{D}", "D"),
        ("The answer is (b).", "B"),
        ("**Answer:** C", "C"),
        ("Answer: C", "C"),
        ("D", "D"),
        ("(A)", "A"),
        ("I like apples", None),
        ("The answer is a function of C.", None),
    ],
)
def test_chosen_letter(text, letter):
    assert chosen_letter(text, "ABCD") == letter


def test_choice_rows():
    spec = json.dumps({"kind": "choice", "letters": "ABCD"})
    assert reward.score([r"\boxed{B}", r"\boxed{C}"], ["B", "B"], [spec, spec]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "text", "part"),
    [
        ({}, "a</think>b</think> c", "c"),
        ({"close": "first"}, "a</think>b</think> c", "b</think> c"),
        ({}, "plain", "plain"),
        ({"require_close": True}, "plain", ""),
        ({}, "<think>never ends", ""),
        ({}, "a</think>", ""),
        ({"open_tag": "<r>", "close_tag": "</r>"}, "<r>x</r>y", "y"),
    ],
)
def test_answer_part(options, text, part):
    assert Accuracy(**options).answer_part(text) == part


def test_hanging_and_crashing_items_are_none_counted_and_named(monkeypatch, tmp_path, caplog):
    """A real sum that sympy never finishes, and a gold answer nobody can parse."""
    metrics: dict[str, float] = {}
    check = Accuracy(timeout_s=4.0)  # a machine that is busy must not time out the good items
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        scores = check(
            completions=[r"\boxed{2}", r"\boxed{\sum_{k=1}^{9^{9^{9^9}}} k}", r"\boxed{2}", r"\boxed{3}"],
            answer=["2", "7", "  ", "2"],
            log_metric=metrics.__setitem__,
        )
    assert scores == [1.0, None, None, 0.0]
    assert metrics == {"accuracy/verify_timeout": 1.0, "accuracy/verify_crash": 1.0}
    assert "item 1 was not verified (timeout" in caplog.text
    assert "item 2 was not verified (crash: UnreadableGold: the gold answer" in caplog.text
    assert time.monotonic() - began < 30


def test_the_counts_are_logged_when_nothing_fails():
    metrics: dict[str, float] = {}
    Accuracy(kind="exact")(completions=["a"], answer=["a"], log_metric=metrics.__setitem__)
    assert metrics == {"accuracy/verify_timeout": 0.0, "accuracy/verify_crash": 0.0}


def test_as_trl_calls_it():
    verifier = json.dumps({"kind": "exact"})
    conversation = [{"role": "assistant", "content": "<think>x</think>4"}]
    tool_call = [
        {"role": "assistant", "content": "let me look"},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "4"},
    ]
    scores = reward(
        prompts=["2+2="] * 4,
        completions=["4", conversation, tool_call, [{"role": "assistant", "content": None}]],
        completion_ids=[[1]] * 4,
        answer=["4"] * 4,
        verifier=[verifier] * 4,
        trainer_state=None,
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
        never_heard_of=[None] * 4,
    )
    assert scores == [1.0, 1.0, 1.0, 0.0]
    assert all(type(score) is float for score in scores)
    assert reward.__name__ == "accuracy"
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert reward(completions=[], answer=[]) == []


def test_a_row_without_gold_does_not_apply():
    assert reward.score(["4", "5"], [None, "5"]) == [None, 1.0]


def test_named_errors():
    with pytest.raises(TypeError, match=r"needs the dataset column 'answer'; the row has \['gold', 'prompts'\]"):
        reward(prompts=["p"], completions=["c"], gold=["g"])
    with pytest.raises(TypeError, match="row 0: kind 'reasoning_gym' needs the dataset column 'verifier'"):
        Accuracy(kind="reasoning_gym").score(["1"], ["1"])
    with pytest.raises(ValueError, match=r"row 1: verifier kind must be one of .* got 'maths'"):
        reward.score(["1", "1"], ["1", "1"], [{"kind": "exact"}, {"kind": "maths"}])
    with pytest.raises(ValueError, match="1 texts, 2 answers"):
        reward.score(["1"], ["1", "2"])
    for options, match in [
        ({"kind": "maths"}, "kind must be auto, math"),
        ({"timeout_s": 0}, "timeout_s must be > 0"),
        ({"threshold": 0}, "threshold must be in"),
        ({"close": "middle"}, "close must be"),
        ({"workers": 0}, "workers must be >= 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            Accuracy(**options)
    with pytest.raises(TypeError, match="unexpected keyword"):
        Accuracy(timeout=3)


def test_inline_kinds_start_no_process(monkeypatch):
    monkeypatch.setattr(accuracy_checks, "shared_pool", lambda *_: pytest.fail("a process for an exact match"))
    assert Accuracy(kind="exact").score(["a"] * 1000, ["a"] * 1000) == [1.0] * 1000
