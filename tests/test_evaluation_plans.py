"""What an evaluation tells of answers to puzzles, by hand: errors, legal shares, levels; and who shows it."""

import pytest

from entrl.evaluation.answers import Answers, evaluate
from entrl.evaluation.writing import Answered, Completion, Sampling
from entrl.models.load import load_policy
from entrl.puzzles import Judged
from entrl.report.metrics import numbers_of
from entrl.stats.pairing import paired_difference
from entrl.tasks import load_task

HANOI = {"task": "hanoi", "n": [1, 2], "form": "line"}


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny-reasoner")


def said(tokenizer, text):
    return Completion(ids=tokenizer(text)["input_ids"], text=text, truncated=False, entropies=None)


def result(policy, answers, task=HANOI):
    """Of answers that are handed in, [the greedy one, *the drawn] for each problem."""
    model, tokenizer = policy
    rows = load_task(task, split="test", size=len(answers), seed=0)
    sampling = Sampling(samples=len(answers[0]) - 1, temperature=1.0, top_p=1.0, max_new_tokens=99, seed=0)
    work = Answers(model=model, tokenizer=tokenizer, dataset=rows, sampling=sampling)
    records = []
    for i, texts in enumerate(answers):
        first, *drawn = (said(tokenizer, f"<think></think>{text.format(**names(rows[i]))}") for text in texts)
        records.append(work.record(Answered(index=i, greedy=first, drawn=drawn)))
    return work.result(records, 1.0)


def names(row):
    """A, B and C of a prompt such as `2,A>B,C:`."""
    start, goal, spare = row["prompt"][2:-1].replace(",", ">").split(">")
    return {"a": start, "b": goal, "c": spare}


ONE = ["[[1,{a},{b}]]"] * 5
TWO = [
    "[[1,{a},{c}],[2,{a},{b}],[1,{c},{b}]]",  # the greedy answer counts in none of this
    "[[1,{a},{c}],[2,{a},{b}],[1,{c},{b}]]",  # right: all of it is legal
    "[[1,{a},{c}],[2,{a},{c}],[1,{c},{b}]]",  # the larger on the smaller, after a third of the plan
    "[[2,{a},{c}]]",  # nothing is legal
    "[[1,{a},{c}],[2,{a}",  # cut: no plan
]


def test_errors_and_legal_shares_by_hand(policy):
    found = result(policy, [ONE, TWO])
    assert found["errors"] == {"larger_on_smaller": 1 / 8, "not_on_top": 1 / 8, "unfinished": 1 / 8}
    legal = (1 + 1 / 3 + 0) / 3
    assert [p["legal_share"] for p in found["problems"]] == pytest.approx([1.0, legal])
    assert found["legal_share"] == pytest.approx((1 + legal) / 2)
    assert found["plans"]["1"] == {
        "answers": 4, "solved": 1.0, "truncated": 0.0, "first_illegal_move": None, "legal_share": 1.0, "errors": {},
    }  # fmt: skip
    two = found["plans"]["2"]
    assert (two["solved"], two["truncated"], two["first_illegal_move"]) == (0.25, 0.25, 0.5)
    assert two["errors"] == {"larger_on_smaller": 1, "not_on_top": 1}
    assert found["sampled_accuracy"] == (1 + 1 / 4) / 2  # the verdicts are those of the score


def test_nothing_readable_has_no_legal_share(policy):
    found = result(policy, [["no", "no", "no"], ["[[1", "[[1", "none"]])
    assert found["legal_share"] is None
    assert found["errors"] == {"unfinished": 1 / 4, "unreadable": 3 / 4}


def test_every_table_shows_them(policy):
    before, after = result(policy, [TWO, TWO]), result(policy, [ONE, TWO])
    shown = {number.name: number.label for number in numbers_of([before, after])}
    assert shown["legal_share"] == "Legal share of a plan, %"
    assert shown["errors/larger_on_smaller"] == "Error: larger_on_smaller, %"
    gained = paired_difference(before, after, "legal_share")
    assert gained.diff == pytest.approx(after["legal_share"] - before["legal_share"])


def asked(policy, **task):
    model, tokenizer = policy
    rows = load_task(task, split="test", size=2, seed=0)
    return evaluate(model, tokenizer, rows, samples=2, max_new_tokens=4, progress=False, batch_size=4)


@pytest.mark.parametrize("task", ["sums", "countdown"])
def test_other_tasks_have_none_of_it(policy, task):
    found = asked(policy, task=task)
    assert not {"errors", "legal_share", "plans"} & found.keys()
    assert "legal_share" not in found["problems"][0]


@pytest.mark.parametrize("mode", ["symbolic", "worded"])
def test_a_graph_has_its_own_errors(policy, mode):
    found = asked(policy, task="graph_path", lookahead=2, branching=2, mode=mode, system="x")
    assert found["errors"] == {"unusable": 1.0}
    assert (found["legal_share"], list(found["plans"])) == (None, ["2"])


@pytest.mark.parametrize(
    ("verdict", "share"),
    [
        (Judged(solved=True, length=3), 1.0),
        (Judged(solved=False, error="not_solved", length=2), 1.0),
        (Judged(solved=False, error="after_goal", index=3, length=4), 0.75),
        (Judged(solved=False, error="unreadable"), None),
        (Judged(solved=False, error="unusable", length=3), None),  # a path between other vertices
    ],
)
def test_legal_share_of_one_answer(verdict, share):
    assert verdict.legal == share
