"""The one list of evaluation numbers: a number named there stands in reports, comparisons and studies."""

import json
import runpy
from pathlib import Path

import pytest

from entrl.report import metrics as listed
from entrl.report import read_runs
from entrl.report.compare import compare_runs
from entrl.report.metrics import NUMBERS, Number, find, named, numbers_of
from entrl.report.summary import before_after
from entrl_lab.replicate.analyses.comparison import analyse
from entrl_lab.replicate.folders import TaskRuns
from entrl_lab.replicate.summary import cells, columns, numbers

make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]


def test_names_lead_to_one_value_each(tmp_path):
    after = read_runs([make_run(tmp_path / "a", steps=3)])[0].eval_after
    found = {n.name: n.read(after) for n in numbers_of([after])}
    assert found["greedy_accuracy"] == after["greedy_accuracy"]
    assert found["entropy/think"] == after["entropy"]["think"]
    assert found["pass_at_k/8"] == after["pass_at_k"]["8"]
    assert "pass_at_k/1" not in found  # the sampled accuracy
    assert found["questions/greedy"] is None
    assert named("questions/greedy").read({"inquiry": {"greedy": {"questions": {"mean": 3.5}}}}) == 3.5
    assert len({n.label for n in NUMBERS}) == len({n.name for n in NUMBERS}) == len(NUMBERS)


def test_members_of_a_family_and_unknown_names():
    held = [{"counts": {"rechecks": 2.5}, "pass_at_k": {"1": 0.5, "16": 1.0, "8": 0.9}}, {"counts": None}]
    assert [n.name for n in numbers_of(held) if "/" in n.name and n.read(held[0]) is not None] == [
        "pass_at_k/8",
        "pass_at_k/16",
        "counts/rechecks",
    ]
    assert named("counts/rechecks").label == "rechecks a completion"
    assert named("pass_at_k/16").label == "pass@16, %"
    assert find("greedy_accuracy, level 3") is None
    with pytest.raises(ValueError, match=r"'pass_at_8' is no number of an evaluation; there are greedy_accuracy, "):
        named("pass_at_8")


def test_text_has_the_unit_scale_and_a_minus_sign():
    assert named("sampled_accuracy").text(-0.1234, sign=True) == "−12.3"
    assert named("mean_length_sampled").text(31.26) == "31.3"


def test_a_new_number_is_named_once(tmp_path, monkeypatch):
    new = Number(name="rarity/mean", title="Rarity", unit="bits", digits=2, problem="greedy_rarity", main=True)
    monkeypatch.setattr(listed, "NUMBERS", (*NUMBERS, new))
    arms = {
        arm: {seed: make_run(tmp_path / f"{arm}-{seed}", steps=3, seed=seed) for seed in (1, 2)} for arm in ("a", "b")
    }
    for arm, folders in arms.items():
        for seed, folder in folders.items():
            for file in (folder / "eval_before.json", folder / "eval_after.json"):  # as the evaluation would write it
                found = json.loads(file.read_text())
                value = 1.0 + 0.1 * seed + (arm == "b") + ("after" in file.name)
                problems = [p | {"greedy_rarity": value} for p in found["problems"]]
                file.write_text(json.dumps(found | {"rarity": {"mean": value}, "problems": problems}))
    rows = {row.label: row.cells[0] for row in before_after(read_runs([arms["a"][1]]))}
    assert rows["Rarity, bits"][:3] == ("1.10", "2.10", "+1.00 [+1.00, +1.00]")
    assert compare_runs(arms["a"][1], arms["b"][1])["evaluation"]["metrics"]["greedy_rarity"]["diff"] == 1.0
    runs = TaskRuns(task="", folders=arms, reference="a", margin=0.02)
    assert analyse(runs)["metrics"]["rarity/mean"]["arms"]["b"]["diff"] == pytest.approx(1.0)
    block = {"means": {"a": numbers(arms["a"][1])}, "differences": {}}
    assert new.label in [n.label for n in columns(block, "a")]
    assert cells(block, "a", named("rarity/mean")) == ("2.10", "", None)
