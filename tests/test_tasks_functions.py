"""The task of programs: its tests are passed by a program that does what is asked, and rows of others are read."""

import json

import pytest
from entrl_rewards.accuracy import Accuracy
from entrl_rewards.code import reward

from entrl.errors import SandboxError
from entrl.sandbox import open_sandbox
from entrl.tasks import load_task
from entrl.tasks.functions import CHANGES, GATHERS, PICKS
from entrl.verify.golds import check_golds

try:
    open_sandbox()
except SandboxError as error:
    pytest.skip(f"not covered: {error}", allow_module_level=True)


def load(**options):
    return load_task({"task": "functions", **options}, split="train", size=40, seed=3)


def test_sides_never_share_a_problem_and_sizes_agree():
    train, test = (load_task("functions", split=side, size=60, seed=seed) for side, seed in (("train", 0), ("test", 1)))
    assert not set(train["problem_id"]) & set(test["problem_id"])
    assert load_task("functions", size=20)["problem_id"] == load_task("functions", size=50)["problem_id"][:20]
    assert check_golds(train).bad == []


def test_a_right_function_and_a_right_program_pass():
    for ask in ("function", "program"):
        row = next(r for r in load(ask=ask, steps=2) if "even" in r["prompt"][0]["content"])
        words = row["prompt"][0]["content"]
        gather = "sum(x)" if "their sum" in words else "len(x)" if "how many" in words else "max(x, default=0)"
        gather = "(max(x) - min(x) if x else 0)" if "smallest" in words else gather
        pick = "x = [n for n in numbers if n % 2 == 0]"
        right = {
            "function": f"def f(numbers):\n    {pick}\n    return {gather}",
            "program": f"numbers = list(map(int, input().split()))\n{pick}\nprint({gather})",
        }[ask]
        wrong = right.replace("== 0", "== 1")
        answers = [row["answer"]] * 2
        assert reward(completions=[f"```python\n{p}\n```" for p in (right, wrong)], answer=answers) == [1, 0]


def test_each_step_does_what_it_says_by_hand():
    by_words = {step.words: step.apply for step in (*PICKS, *CHANGES, *GATHERS)}
    assert by_words["keep every second number, starting with the first"]([1, 2, 3]) == [1, 3]
    assert by_words["replace each by the sum of all numbers up to and with it"]([1, 2, 3]) == [1, 3, 6]
    assert by_words["drop repeats, keeping the first of each"]([2, 1, 2]) == [2, 1]
    assert by_words["keep the numbers above -5"]([-5, -4]) == [-4]
    assert by_words["subtract 2 from each"]([1]) == [-1]
    assert by_words["return the largest minus the smallest (0 if there are none)"]([3, 1]) == 2


def test_expressions_are_judged_by_accuracy_too():
    row = load(ask="expression", terms=2)[0]
    value = str(eval(row["prompt"].rstrip("=")))
    accuracy = Accuracy()
    texts = [f"<think>hm</think>{value}", f"<think>hm</think>{value}0", "<think>hm"]
    assert accuracy.score(texts, [row["answer"]] * 3, [row["verifier"]] * 3) == [1, 0, 0]
    assert reward(completions=texts, answer=[row["answer"]] * 3) == [1, 0, 0]


@pytest.mark.parametrize(("option", "why"), [({"ask": "poem"}, "ask must be"), ({"steps": 4}, "steps must be")])
def test_options(option, why):
    with pytest.raises(ValueError, match=why):
        load(**option)


def test_rows_of_the_hub_by_column_mapping(tmp_path):
    """open-r1's and verl's shapes, as objects and as JSON text."""
    cases = [{"type": "stdin_stdout", "fn_name": None, "input": "3\n", "output": "9\n"}]
    open_r1 = {"problem": "Square it.", "verification_info": {"language": "python", "test_cases": cases}}
    verl = {"problem": "Square it!", "verification_info": json.dumps({"inputs": ["3\n"], "outputs": ["9\n"]})}
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, (open_r1, verl))))
    spec = {"task": f"jsonl:{tmp_path / 'x.jsonl'}", "prompt_column": "problem", "verifier": "code"}
    rows = load_task({**spec, "answer_column": "verification_info"})
    assert reward(completions=["```python\nprint(int(input()) ** 2)\n```"] * 2, answer=rows["answer"]) == [1, 1]
    bad = {**open_r1, "verification_info": {"language": "cpp", "test_cases": cases}}
    (tmp_path / "x.jsonl").write_text(json.dumps(bad))
    found = check_golds(load_task({**spec, "answer_column": "verification_info"}))
    assert "only Python is run" in found.problems("data")[0]
