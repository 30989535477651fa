"""entrl.replicate: what a study file may say, that arms share a schedule, and a whole small study run for real."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_model import saved_model

from entrl.replicate import check_same_schedule, finished, load_study, replicate

ROOT = Path(__file__).parents[1] / "recipes"

RECIPE = """
model: {{path: {model}}}
data: {{task: sums, train_size: 32}}
rewards: [{{use: accuracy}}, {{use: "{digits}:digit_share", weight: 0.1}}]
eval: {{task: sums, size: 4, samples: 2, k: [1, 2]}}
trainer: {{per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, max_steps: 2, bf16: false,
  logging_steps: 1, save_strategy: "no", gradient_checkpointing: false, learning_rate: 0.01}}
"""
STUDY = """
recipe: base.yaml
out: {out}
seeds: [1, 2]
reference: plain
margin: 0.02
eval: {{size: 3}}
arms:
  plain: {{}}
  hot: {{set: {{trainer.temperature: 1.5}}, why: hotter}}
"""
DIGITS = "def digit_share(completions, **_):\n    return [sum(c.isdigit() for c in t) / 8 for t in completions]\n"


def written(folder: Path, study: str = STUDY) -> Path:
    saved_model(folder / "model")
    (folder / "digits.py").write_text(DIGITS)
    (folder / "base.yaml").write_text(RECIPE.format(model=folder / "model", digits=folder / "digits.py"))
    (folder / "study.yaml").write_text(study.format(out=folder / "runs"))
    return folder / "study.yaml"


def test_the_shipped_study_compares_like_with_like():
    study = load_study(ROOT / "tiny-reasoner" / "study.yaml")
    changes = check_same_schedule(study)
    assert {name: sorted(keys) for name, keys in changes.items() if keys} == {
        "grpo-matched-temperature": ["temperature"]
    }
    assert len(study.seeds) >= 5
    assert {"pear-shuffled", "laser-d", "grpo-matched-temperature"} <= {a.name for a in study.arms}


def test_a_schedule_that_differs_undeclared_is_refused(tmp_path):
    file = written(tmp_path, STUDY.replace("set: {{trainer.temperature: 1.5}}", "recipe: other.yaml"))
    other = (tmp_path / "base.yaml").read_text().replace("learning_rate: 0.01", "learning_rate: 0.02")
    (tmp_path / "other.yaml").write_text(other)
    with pytest.raises(ValueError, match=r"arm 'hot' trains with other options than 'plain': \['learning_rate'\]"):
        check_same_schedule(load_study(file))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("reference: plain", "reference: cold"), "reference 'cold' is no arm of .*; arms: plain, hot"),
        (("seeds: [1, 2]", "seeds: [1, 1]"), "two or more different integers"),
        (("margin: 0.02", "margin: 0"), "margin must be > 0"),
        (("why: hotter", "wyh: hotter"), r"arm 'hot' has unknown keys \['wyh'\]"),
        (("margin: 0.02\n", ""), r"missing keys \['margin'\]"),
        (("margin: 0.02", "margni: 0.02"), r"unknown keys \['margni'\]"),
    ],
)
def test_study_files_are_strict(tmp_path, wrong, message):
    (tmp_path / "study.yaml").write_text(STUDY.replace(*wrong).format(out=tmp_path))
    with pytest.raises(ValueError, match=message):
        load_study(tmp_path / "study.yaml")


@pytest.mark.slow
def test_a_study_runs_stops_and_goes_on(tmp_path):
    file = written(tmp_path)
    result = replicate(file, jobs=2, console=Console(quiet=True))
    assert set(result["values"]["plain"]) == {"1", "2"}
    difference = result["differences"]["hot"]["greedy_accuracy"]
    assert difference["lo"] <= difference["mean"] <= difference["hi"]
    assert isinstance(difference["non_inferior"], bool)
    assert result["changed_options"] == {"plain": {}, "hot": {"temperature": ["TRL's default", 1.5]}}
    kept, lost = tmp_path / "runs" / "plain-1", tmp_path / "runs" / "hot-2"
    stamp = (kept / "manifest.json").stat().st_mtime_ns
    (lost / "eval_after.json").unlink()
    assert not finished(lost)
    again = replicate(file, jobs=1, console=Console(quiet=True))
    assert (kept / "manifest.json").stat().st_mtime_ns == stamp, "a finished run was run again"
    for metric, value in result["values"]["hot"]["2"].items():
        if "seconds" not in metric and "time" not in metric:
            assert again["values"]["hot"]["2"][metric] == value, metric
    assert json.loads((tmp_path / "runs" / "results.json").read_text())["seeds"] == [1, 2]


@pytest.mark.slow
def test_a_failing_arm_is_named_and_the_others_are_kept(tmp_path):
    file = written(tmp_path, STUDY.replace("trainer.temperature: 1.5", "trainer.temperature: -1.0"))
    with pytest.raises(RuntimeError, match=r"hot-1: exit \d+, see .*hot-1\.log"):
        replicate(file, jobs=2, console=Console(quiet=True))
    assert finished(tmp_path / "runs" / "plain-2")
