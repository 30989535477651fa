"""Accuracy by level and steps to an accuracy, from the numbers of runs alone. The numbers are MADE UP in here; that
real runs give such numbers is a slow test's at the end."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from entrl.stats.pairing import seed_differences
from entrl_lab.replicate import load_study, replicate
from entrl_lab.replicate.analyses import check
from entrl_lab.replicate.analyses.accuracy_by_level import analyse as accuracy_by_level
from entrl_lab.replicate.analyses.steps_to import analyse as steps_to
from entrl_lab.replicate.analyses.steps_to import reached
from entrl_lab.replicate.folders import NotMeasured, TaskRuns
from entrl_lab.replicate.rows import hashes
from entrl_lab.replicate.study import check_same_schedule
from entrl_lab.replicate.summary import by_level

ROOT = Path(__file__).parents[1] / "recipes"


def runs(numbers, reference):
    return TaskRuns(task="", folders={}, reference=reference, margin=0.02, numbers=numbers)


def levels(**accuracy):
    return {f"level/{n[1:]}/{m}": a for n, a in accuracy.items() for m in ("sampled_accuracy", "greedy_accuracy")}


BEFORE = {1: levels(n2=0.5, n10=0.1, n3=0.4), 2: levels(n2=0.5, n10=0.1, n3=0.4), 3: levels(n2=0.5, n10=0.1, n3=0.4)}
AFTER = {1: levels(n2=0.9, n10=0.1, n3=0.3), 2: levels(n2=0.8, n10=0.0, n3=0.2), 3: levels(n2=0.85, n10=0.2, n3=0.25)}


def test_accuracy_by_level_finds_what_was_planted():
    found = accuracy_by_level(runs({"start": BEFORE, "grpo": AFTER}, "start"))
    assert found["levels"] == ["2", "3", "10"]
    gaps = found["metrics"]["sampled_accuracy"]["differences"]["grpo"]
    assert gaps["2"] == pytest.approx(seed_differences([0.5] * 3, [0.9, 0.8, 0.85])._asdict())
    assert found["metrics"]["greedy_accuracy"]["means"]["start"]["10"]["mean"] == pytest.approx(0.1)
    assert found["verdict"] == "grpo against start: gained on 2, lost on 3, not told apart on 10"
    assert "2: 50.0 to 85.0 (+35.0 [+22.6, +47.4])" in found["saw"]


def test_accuracy_by_level_needs_levels_and_pairs():
    with pytest.raises(NotMeasured, match="two finished seeds"):
        accuracy_by_level(runs({"start": BEFORE, "grpo": {1: AFTER[1]}}, "start"))
    with pytest.raises(NotMeasured, match="several levels"):
        accuracy_by_level(runs({"start": {1: {}, 2: {}}, "grpo": {1: {}, 2: {}}}, "start"))


def test_levels_are_counted_as_a_loop_does():
    problems = [
        {"level": "2", "greedy_correct": True, "n_correct": 3, "n_samples": 4},
        {"level": "2", "greedy_correct": False, "n_correct": 0, "n_samples": 2},
        {"level": "3", "greedy_correct": None, "n_correct": 0, "n_samples": 0},  # nobody could verify it
        {"level": "3", "greedy_correct": True, "n_correct": 1, "n_samples": 4},
    ]
    assert by_level(problems) == {
        "level/2/greedy_accuracy": 0.5,
        "level/2/sampled_accuracy": 0.375,  # (3/4 + 0/2) / 2
        "level/3/greedy_accuracy": 1.0,
        "level/3/sampled_accuracy": 0.25,
    }
    assert by_level(problems[:2]) == {}  # one level is the whole


def curve(*accuracy):
    return {f"at/{step}/accuracy": a for step, a in zip((10, 20, 30), accuracy, strict=True)}


def test_steps_to_an_accuracy():
    slow = {1: curve(0.1, 0.2, 0.3), 2: curve(0.1, 0.2, 0.29), 3: curve(0.1, 0.25, 0.3), 4: curve(0.2, 0.2, 0.31)}
    fast = {1: curve(0.3, 0.2, 0.1), 2: curve(0.4, 0.4, 0.4), 3: curve(0.1, 0.3, 0.3), 4: curve(0.3, 0.3, 0.3)}
    found = steps_to(runs({"slow": slow, "fast": fast}, "slow"), target=0.3, never=40)
    assert found["arms"]["slow"]["by_seed"] == {"1": 30, "2": 40, "3": 30, "4": 30}
    assert found["arms"]["slow"]["there"] == 3
    assert found["arms"]["fast"]["by_seed"] == {"1": 10, "2": 10, "3": 20, "4": 10}  # a later fall does not count
    by_hand = seed_differences([30, 40, 30, 30], [10, 10, 20, 10])._asdict()
    assert found["differences"]["fast"] == pytest.approx(by_hand)
    assert found["verdict"] == "fast: sooner than slow"
    assert found["arms"]["slow"]["accuracy"]["10"]["mean"] == pytest.approx(0.125)
    back = steps_to(runs({"slow": slow, "fast": fast}, "fast"), target=0.3, never=40)
    assert back["verdict"] == "slow: later than fast"
    same = steps_to(runs({"slow": slow, "other": slow}, "slow"), target=0.3, never=40)
    assert same["verdict"] == "other: not told apart, neither sooner nor later than slow"


def test_steps_to_says_what_it_lacks():
    none = {1: {}, 2: {}}
    with pytest.raises(NotMeasured, match=r"set eval\.at"):
        steps_to(runs({"a": none, "b": none}, "a"), target=0.3, never=40)
    with pytest.raises(ValueError, match="between 0 and 1, got 30"):
        steps_to(runs({"a": none}, "a"), target=30, never=40)
    assert reached({10: 0.29}, 0.3, 40) == 40


STUDIES = ("countdown/study", "puzzles/study", "countdown/curriculum")


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_of_the_starts_are_sound(name):
    study = load_study(ROOT / f"{name}.yaml")
    check(study)
    check_same_schedule(study)
    assert len(study.seeds) >= 5
    starts = {str(file.relative_to(ROOT)) for file in study.prepare}
    for run in study.runs({}):  # each run starts from a start that the study makes
        made = study.recipe_of(run).model.path.removesuffix("/model").removeprefix("runs/")
        assert f"{made}.yaml" in starts


def test_a_line_says_which_curriculum_it_ran():
    study = load_study(ROOT / "countdown" / "curriculum.yaml")
    told = {run.arm.name: hashes(study, run) for run in study.runs({}) if run.seed == 1}
    assert len({own["curriculum"] for own in told.values()}) == 3
    rest = [{k: v for k, v in own.items() if k != "curriculum"} for own in told.values()]
    assert rest[0] == rest[1] == rest[2]
    plain = load_study(ROOT / "puzzles" / "study.yaml")
    assert "curriculum" not in hashes(plain, plain.runs({})[0])  # lines of older studies stay as they are


TINY = """
recipe: {recipe}
out: {out}
rows: rows.jsonl
seeds: [1, 2]
reference: uniform
margin: 0.02
eval: {{size: 8, samples: 2, k: [1, 2], before: false, at: [1, 2], max_new_tokens: 12}}
tasks:
  blocks:
    set:
      model.path: tiny-reasoner
      data.train_size: 8
      trainer.max_steps: 2
      trainer.per_device_train_batch_size: 4
      trainer.num_generations: 4
      trainer.max_completion_length: 12
      trainer.per_device_eval_batch_size: 8
      trainer.num_generations_eval: 2
arms:
  uniform: {{set: {{curriculum: {{use: uniform}}}}}}
  band: {{set: {{curriculum: {{use: band}}}}}}
analyses:
  - accuracy_by_level
  - {{use: steps_to, target: 0.5, never: 3}}
"""


@pytest.mark.slow
def test_runs_have_the_numbers_that_the_analyses_read(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(TINY.format(recipe=ROOT / "puzzles" / "grpo.yaml", out=tmp_path / "runs"))
    result = replicate(file, console=Console(quiet=True))
    by_size, steps = (a["tasks"]["blocks"] for a in result["analyses"])
    assert by_size["levels"] == ["2", "3", "4", "5", "6"]
    assert set(steps["arms"]["band"]["accuracy"]) == {"1", "2"}
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {line["settings"]["curriculum"] for line in lines if "band" in line["run"]} != {
        line["settings"]["curriculum"] for line in lines if "uniform" in line["run"]
    }
    again = replicate(file, report_only=True, console=Console(quiet=True))
    assert again["analyses"] == result["analyses"]
