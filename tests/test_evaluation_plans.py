"""What an evaluation tells of answers to puzzles, by hand: errors, legal shares, levels; and who shows it."""

import io
import json
import re
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from entrl.evaluation.answers import Answers, evaluate
from entrl.evaluation.writing import Answered, Completion, Sampling
from entrl.models.load import load_policy
from entrl.puzzles import Judged
from entrl.report import read_runs
from entrl.report.compare import compare_runs, print_comparison
from entrl.report.metrics import named
from entrl.report.summary import before_after
from entrl.runs.train import before_after_table
from entrl.tasks import load_task
from entrl_lab.replicate import load_study
from entrl_lab.replicate.summary import numbers, summarise

make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]
RECIPE = """
model: {path: tiny-reasoner}
data: {task: hanoi, args: {n: [1, 2], form: line}, train_size: 8}
rewards: [{use: accuracy}]
trainer: {max_steps: 2}
"""
STUDY = """
title: Made up
recipe: base.yaml
out: OUT/runs
seeds: [1, 2]
reference: grpo
margin: 0.02
arms: {grpo: {}, pear: {set: {rewards: [{use: pear}]}}}
"""
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
LEGAL = (1 + 1 / 3 + 0) / 3  # of TWO's plans


def test_errors_and_legal_shares_by_hand(policy):
    found = result(policy, [ONE, TWO])
    assert found["errors"] == {"larger_on_smaller": 1 / 8, "not_on_top": 1 / 8, "unfinished": 1 / 8}
    assert [p["legal_share"] for p in found["problems"]] == pytest.approx([1.0, LEGAL])
    assert found["legal_share"] == pytest.approx((1 + LEGAL) / 2)
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


@pytest.fixture
def finished(policy, tmp_path):
    """A finished run with these evaluations of puzzles before and after."""

    def write(name, before, after, **made):
        folder = make_run(tmp_path / name, steps=3, **made)
        for when, answers in (("before", before), ("after", after)):
            (folder / f"eval_{when}.json").write_text(json.dumps(result(policy, answers)))
        return folder

    return write


def shown(show):
    console = Console(record=True, width=200, quiet=False, file=io.StringIO())
    show(console)
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in console.export_text().splitlines()]


def test_every_table_shows_them(finished):
    a, b = finished("a", [TWO, TWO], [ONE, ONE]), finished("b", [TWO, TWO], [ONE, TWO])
    table = shown(lambda console: console.print(before_after_table(read_runs([b])[0])))
    assert {row[0] for row in table if row} >= {"Legal share of a plan, %", "Error: larger_on_smaller, %"}
    compared = shown(lambda console: print_comparison(compare_runs(a, b), console))
    legal = next(row for row in compared if row[:1] == ["Legal share of a plan, %"])
    assert legal[1] == f"−{100 * (1 - (1 + LEGAL) / 2):.1f}"  # b - a
    assert not any("larger_on_smaller" in cell for row in compared for cell in row)
    assert numbers(b).items() >= {"legal_share": (1 + LEGAL) / 2, "errors/larger_on_smaller": 1 / 8}.items()


def test_an_error_that_is_gone_is_0_in_the_table(finished):
    rows = {row.label: row.cells[0] for row in before_after(read_runs([finished("a", [TWO, TWO], [ONE, ONE])]))}
    gone = rows["Error: larger_on_smaller, %"]
    assert (gone.before, gone.after, gone.change) == ("12.5", "0.0", "−12.5")
    sums = named("errors/unknown")
    assert (sums.read({"errors": {}}), sums.read({"greedy_accuracy": 1.0})) == (0.0, None)


def test_an_error_in_one_seed_only_stands_in_the_study(finished, tmp_path):
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "study.yaml").write_text(STUDY.replace("OUT", str(tmp_path)))
    study = load_study(tmp_path / "study.yaml")
    wrong = {"grpo-1", "pear-2"}  # the runs whose answers have errors
    found = [
        (run, numbers(finished(run.name, [TWO, TWO], [ONE, TWO if run.name in wrong else ONE])))
        for run in study.runs({})
    ]
    block = summarise(study, {"": {}}, found)
    assert [block["values"]["grpo"][seed]["errors/not_on_top"] for seed in ("1", "2")] == [1 / 8, 0.0]
    assert [block["means"][arm]["errors/not_on_top"] for arm in ("grpo", "pear")] == [1 / 16, 1 / 16]
    assert block["differences"]["pear"]["errors/not_on_top"]["mean"] == 0.0
    other = [(run, {"sampled_accuracy": 1.0} if run.arm.name == "pear" else n) for run, n in found]
    assert summarise(study, {"": {}}, other)["means"]["pear"] == {"sampled_accuracy": 1.0}  # no puzzle, no errors


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
