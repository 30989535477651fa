"""Golds are read before anything is generated: counted, named, and refused where nothing could be verified."""

import json
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from entrl_rewards import accuracy, hierarchical_entropy, length, pear
from entrl_rewards.pear import Pear
from test_run import quietly

from entrl.evaluation.answers import evaluate
from entrl.models.load import load_policy
from entrl.runs.plan import plan
from entrl.runs.recipe import load_recipe
from entrl.verify import golds as module
from entrl.verify.golds import check_golds, gold_kind

GOOD, BAD = ["267", "25", "-82", r"\frac{1}{2}"], "  "  # nothing reads white space
LETTERS = json.dumps({"kind": "choice", "letters": "ABCD"})


def rows(answers, **columns) -> Dataset:
    return Dataset.from_dict({"prompt": ["1+1="] * len(answers), "answer": answers, **columns})


def test_unverifiable_golds_are_counted_and_named():
    found = check_golds(rows([*GOOD, BAD, None, BAD], problem_id=[*"abcdefg"]))
    assert [(b.row, b.name) for b in found.bad] == [(4, "row 5 (e)"), (5, "row 6 (f)"), (6, "row 7 (g)")]
    (line,) = found.warnings("data (x)", "so it hurts")
    assert line.startswith("data (x): 3 of 7 gold answers cannot be verified, so it hurts: row 5 (e): ")
    assert "row 6 (f): it has no gold answer" in line
    assert found.problems("data (x)") == []  # some can
    more = check_golds(rows([BAD] * 5 + GOOD))
    assert more.warnings("data", "so")[0].endswith(", and 2 more")
    assert [b.name for b in more.bad] == [f"row {i}" for i in range(1, 6)]
    good = check_golds(rows(GOOD))
    assert (good.rows, good.bad, good.unread, good.warnings("data", "so")) == (4, [], 0, [])


def test_no_gold_at_all_is_refused():
    for answers in ([BAD, BAD], [None, None]):
        (problem,) = check_golds(Dataset.from_dict({"prompt": ["a", "b"], "answer": answers})).problems("data")
        assert problem.startswith("data: none of its 2 gold answers can be verified: row 1: ")
        assert "exact compares" in problem
    assert check_golds(rows([])).problems("data") == []


def test_rows_without_a_gold_can_be_left_to_others():
    found = check_golds(rows([None, "1", BAD]), nulls=False)
    assert (found.rows, [b.row for b in found.bad]) == (2, [2])
    assert check_golds(rows([None, None]), nulls=False).problems("data") == []


def test_a_choice_that_is_no_letter_is_refused_with_its_row():
    found = check_golds(rows(["A", "E", "D"], verifier=[LETTERS] * 3, problem_id=["p", "q", "r"]))
    assert [b.row for b in found.bad] == [1]
    (problem,) = found.problems("eval")
    assert problem.startswith("eval: row 2 (q): ")
    assert "'E'" in problem
    assert "would score 0" in problem
    # the reward's own kind overrules the column's; letters still come from it
    assert check_golds(rows(["A", "E"], verifier=[json.dumps({"letters": "ABCDE"})] * 2), default="choice").bad == []
    assert [b.row for b in check_golds(rows(["A", "E"]), default="choice").bad] == [1]


def test_a_row_whose_verifier_has_its_own_answer_needs_no_gold():
    gym = json.dumps({"kind": "reasoning_gym", "dataset": "chain_sum", "entry": {"answer": "3", "metadata": {}}})
    assert check_golds(rows(["", "x"], verifier=[gym] * 2)).bad == []
    with pytest.raises(ValueError, match="kind must be one of"):
        check_golds(rows(["1"], verifier=[json.dumps({"kind": "maths"})]))


def test_equal_golds_are_read_once(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "gold_problem", lambda *job: asked.append(job[:2]))
    assert check_golds(rows(["12", "-3.5", r"\sqrt{2}"] * 5000)).bad == []
    assert asked == [("math", r"\sqrt{2}")]  # and plain numbers not at all


def test_what_is_not_reached_in_time_is_said():
    found = check_golds(rows([*GOOD, r"\sqrt{2}"]), limit_s=0.0)
    assert found.unread == 2
    assert found.warnings("data", "so") == ["data: 2 of 5 gold answers were not read within 60 s"]


def test_which_rewards_judge_golds():
    assert gold_kind([lambda **_: []]) is None
    assert gold_kind([lambda **_: [], accuracy.reward]) == "auto"
    assert gold_kind([accuracy.Accuracy(kind="choice")]) == "choice"
    for judged in (pear.reward, hierarchical_entropy.reward, length.L1Exact(target=4), length.laser_d):
        assert gold_kind([judged]) == "auto"
    assert gold_kind([Pear(correctness="column:right")]) is None
    assert gold_kind([Pear(correctness=lambda **_: [])]) is None
    assert gold_kind([Pear(correctness=accuracy.Accuracy(kind="exact"))]) == "exact"


RECIPE = """\
model: {{path: tiny-reasoner}}
data: {{task: "jsonl:{rows}"}}
rewards: [{{use: accuracy}}]
eval: {{task: "jsonl:{eval_rows}", size: null, samples: 1, before: false}}
trainer:
  output_dir: "{out}"
  per_device_train_batch_size: 8
  num_generations: 4
  max_steps: 1
  max_completion_length: 8
  bf16: false
  gradient_checkpointing: false
  save_strategy: "no"
"""


def recipe(folder: Path, answers: list[str], eval_answers: list[str]):
    for name, golds in (("rows", answers), ("eval_rows", eval_answers)):
        lines = [json.dumps({"prompt": f"{i}+{i}=", "answer": gold}) for i, gold in enumerate(golds)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    file = folder / "golds.yaml"
    names = {name: folder / f"{name}.jsonl" for name in ("rows", "eval_rows")}
    file.write_text(RECIPE.format(out=folder / "run", **names))
    return load_recipe(file)


@pytest.mark.filterwarnings("ignore")
def test_a_run_says_so_before_it_trains_and_the_evaluation_counts_them(tmp_path, capsys):
    made = recipe(tmp_path, [*GOOD, "$$"], [*GOOD, "..."])
    planned = plan(made)
    assert planned.ok
    said = [w for w in planned.warnings if "gold answers cannot be verified" in w]
    assert [w.partition(":")[0] for w in said] == ["data", "eval"]
    assert "row 5" in said[0]
    assert "so it is scored over 4 problems" in said[1]
    after = quietly(made).eval_after
    assert after["unverifiable_golds"] == 1
    assert after["n_problems"] == 5


def test_plan_and_train_refuse_rows_that_nobody_could_verify(tmp_path):
    for answers, eval_answers, where in ((["$$", "..."], GOOD, "data"), (GOOD, ["$$"], "eval")):
        made = recipe(tmp_path, answers, eval_answers)
        planned = plan(made)
        assert not planned.ok
        assert any(p.startswith(f"{where}: none of its") for p in planned.problems)
        with pytest.raises(ValueError, match=f"{where}: none of its"):
            quietly(made)
        assert not (tmp_path / "run").exists()


def test_evaluate_refuses_and_counts(tmp_path):
    policy = load_policy("tiny-reasoner", device="cpu")
    quick = {"samples": 1, "max_new_tokens": 4, "progress": False}
    with pytest.warns(UserWarning, match="evaluation: 1 of 3 gold answers cannot be verified, so it is scored over 2"):
        found = evaluate(*policy, rows(["1", BAD, "2"]), **quick)
    assert found["unverifiable_golds"] == 1
    with pytest.raises(ValueError, match="evaluation: none of its 2 gold answers"):
        evaluate(*policy, rows([BAD, BAD]), **quick)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = evaluate(*policy, rows([BAD]), score=lambda texts, *_: [0.0] * len(texts), **quick)
    assert own["unverifiable_golds"] is None  # whoever brings a score knows its golds
