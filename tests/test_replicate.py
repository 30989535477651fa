"""entrl_lab.replicate: what a study file may say, that arms share a schedule, and a whole small study run for real."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny_model import saved_model

from entrl_lab.replicate import RunsFailed, check_same_schedule, finished, load_study, replicate

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
    changes = check_same_schedule(study)[""]
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
        (("why: hotter", "wyh: hotter"), r"unknown key 'wyh' in arm 'hot'. Did you mean 'why'\?"),
        (("margin: 0.02", "margin: 0.02\nprepare: start.yaml"), "prepare must be a list of files of cold starts"),
        (("margin: 0.02\n", ""), "the study study has no 'margin'"),
        (("margin: 0.02", "margni: 0.02"), r"unknown key 'margni' in study. Did you mean 'margin'\?"),
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
        if "seconds" not in metric and "time" not in metric:  # a fork of the server computes what a fresh process does
            assert again["values"]["hot"]["2"][metric] == value, metric
    assert json.loads((tmp_path / "runs" / "results.json").read_text())["seeds"] == [1, 2]


START = """
model: {{path: {model}}}
answers: {{lessons: {{terms: [2], problems: 8}}}}
sft: {{max_steps: 2, per_device_train_batch_size: 4, learning_rate: 0.01, bf16: false, use_cpu: true,
  gradient_checkpointing: false}}
threads: 1
out: {out}
"""


@pytest.mark.slow
def test_a_study_makes_its_cold_start_once(tmp_path):
    file = written(tmp_path, STUDY.replace("arms:", "prepare: [start.yaml]\narms:"))
    folder = tmp_path / "start"
    (tmp_path / "start.yaml").write_text(START.format(model=tmp_path / "model", out=folder))
    (tmp_path / "base.yaml").write_text(RECIPE.format(model=folder / "model", digits=tmp_path / "digits.py"))
    result = replicate(file, jobs=2, console=Console(quiet=True))
    (made,) = result["prepared"]
    assert made["folder"] == str(folder)
    assert (made["rows"], made["steps"]) == (8, 2)
    assert json.loads((tmp_path / "runs" / "results.json").read_text())["prepared"] == [made]
    assert "train_loss" in (tmp_path / "start.log").read_text()
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert replicate(file, jobs=1, console=Console(quiet=True))["prepared"] == [made]
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp, "a finished cold start was made again"
    (tmp_path / "start.yaml").write_text((tmp_path / "start.yaml").read_text().replace("0.01", "0.02"))
    with pytest.raises(ValueError, match=r"was made with other settings \(sft.learning_rate\)"):
        replicate(file, jobs=1, console=Console(quiet=True))


@pytest.mark.slow
def test_a_cold_start_that_fails_names_its_log_and_starts_no_run(tmp_path):
    file = written(tmp_path, STUDY.replace("arms:", "prepare: [start.yaml]\narms:"))
    (tmp_path / "start.yaml").write_text(START.format(model=tmp_path / "nowhere", out=tmp_path / "start"))
    with pytest.raises(RunsFailed, match=r"cold start .*start\.yaml: exit 2, see .*start\.log"):
        replicate(file, jobs=1, console=Console(quiet=True))
    assert "does not exist" in (tmp_path / "start.log").read_text()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_takes_its_runs_along(tmp_path, stop):
    file = written(tmp_path)
    (tmp_path / "base.yaml").write_text((tmp_path / "base.yaml").read_text().replace("max_steps: 2", "max_steps: 5000"))
    # as from nohup: the signal is handed on as ignored, and SIGTERM must do all the same
    ignore = {signal.SIGTERM: lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}.get(stop)
    command = [sys.executable, "-m", "entrl", "replicate", str(file), "--jobs", "2"]
    study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=ignore)
    manifests = [tmp_path / "runs" / name / "manifest.json" for name in ("plain-1", "hot-1")]
    for _ in range(3000):
        # from "running" on a stop is noted; one that says "starting" has nothing to keep and begins anew
        if all(m.is_file() and json.loads(m.read_text())["status"] == "running" for m in manifests):
            break
        time.sleep(0.1)
    study.send_signal(stop)
    assert study.stderr is not None
    assert "stopped; finished runs are kept" in study.stderr.read()
    assert study.wait() == 130
    assert [json.loads(m.read_text())["status"] for m in manifests] == ["interrupted", "interrupted"]


@pytest.mark.slow
def test_a_failing_arm_is_named_and_the_others_are_kept(tmp_path):
    file = written(tmp_path, STUDY.replace("trainer.temperature: 1.5", "trainer.temperature: -1.0"))
    with pytest.raises(RunsFailed, match=r"hot-1: exit \d+, see .*hot-1\.log"):
        replicate(file, jobs=2, console=Console(quiet=True))
    assert finished(tmp_path / "runs" / "plain-2")


TASKS = """
recipe: base.yaml
out: {out}
seeds: [1, 2]
reference: plain
margin: 0.02
eval: {{size: 3}}
tasks:
  short: {{set: {{data.train_size: 16}}}}
  long: {{arms: [plain, rate]}}
tuning: {{seeds: [100], criterion: sampled_accuracy, set: {{eval.size: 2}}}}
arms:
  plain: {{tune: [{{trainer.learning_rate: 0.01}}, {{trainer.learning_rate: 0.02}}]}}
  rate: {{set: {{trainer.temperature: 1.5}}, tune: [{{trainer.epsilon_high: 0.3}}, {{trainer.epsilon_high: 0.4}}]}}
  few: {{seeds: [2, 1], set: {{trainer.temperature: 1.2}}}}
"""


def test_an_arm_that_is_taught_offline_first_starts_from_what_its_seed_made(tmp_path):
    arms = "arms:\n  taught: {{offline: dpo.yaml, set: {{trainer.max_steps: 1}}}}"
    study = load_study(written(tmp_path, STUDY.replace("arms:", arms)))
    run = next(r for r in study.runs({}) if r.arm.name == "taught" and r.seed == 2)
    folder = tmp_path / "runs" / "taught-2-offline"
    assert run.arm.offline == tmp_path / "dpo.yaml"
    assert study.offline_words(run) == ["trainer.seed=2", "data.seed=2", f'out="{folder}"']
    assert f'model.path="{folder}/model"' in study.words(run)
    assert not any("model.path" in word for r in study.runs({}) if r.arm.name == "plain" for word in study.words(r))


def test_tasks_tuning_and_seeds_of_an_arm(tmp_path):
    study = load_study(written(tmp_path, TASKS))
    assert [r.name for r in study.tuning_runs()] == [
        *("short/tuning/plain.0-100", "short/tuning/plain.1-100", "short/tuning/rate.0-100", "short/tuning/rate.1-100"),
        *("long/tuning/plain.0-100", "long/tuning/plain.1-100", "long/tuning/rate.0-100", "long/tuning/rate.1-100"),
    ]
    chosen = {(t, a): 1 for t in ("short", "long") for a in ("plain", "rate")}
    runs = {r.name: r for r in study.runs(chosen)}
    assert list(runs)[:5] == ["short/plain-1", "short/rate-1", "short/few-1", "long/plain-1", "long/rate-1"]
    recipe = study.recipe_of(runs["short/rate-2"])
    assert (recipe.trainer["seed"], recipe.data.seed, recipe.data.train_size) == (2, 2, 16)
    assert (recipe.trainer["epsilon_high"], recipe.eval and recipe.eval.size) == (0.4, 3)
    assert study.recipe_of(runs["long/rate-2"]).data.train_size == 32
    tuning = study.recipe_of(study.tuning_runs()[2])
    assert (tuning.trainer["epsilon_high"], tuning.eval and tuning.eval.size) == (0.3, 2)
    changes = check_same_schedule(study)
    assert sorted(changes["short"]["rate"]) == ["epsilon_high", "temperature"]
    assert set(changes["long"]) == {"plain", "rate"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((", {{trainer.epsilon_high: 0.4}}]", "]"), "different budgets, settings per arm: .*'rate': 1"),
        (("seeds: [100]", "seeds: [1]"), r"tuning.seeds \[1\] are seeds of the comparison too"),
        (("tuning: {{seeds", "analyses: [] #{{"), "the study has no `tuning`"),
        (("seeds: [2, 1]", "seeds: [2, 3]"), "'few' shares fewer than two seeds with 'plain'"),
        (("arms: [plain, rate]", "arms: [rate]"), "task 'long' lacks the reference 'plain'"),
        (("arms: [plain, rate]", "arms: [plain, rat]"), r"task 'long' names arms \['rat'\]"),
        (("  long:", "  a/b:"), "task 'a/b' becomes a folder"),
        (("  long:", "  tuning:"), "task 'tuning' becomes a folder"),
        (("criterion:", "criterium:"), r"unknown key 'criterium' in tuning. Did you mean 'criterion'\?"),
    ],
)
def test_tasks_and_tuning_are_strict(tmp_path, wrong, message):
    (tmp_path / "study.yaml").write_text(TASKS.replace(*wrong).format(out=tmp_path))
    with pytest.raises(ValueError, match=message):
        load_study(tmp_path / "study.yaml")


@pytest.mark.slow
def test_a_study_with_tasks_tunes_first_and_keeps_nothing_of_other_settings(tmp_path):
    file = written(tmp_path, TASKS)
    result = replicate(file, jobs=2, console=Console(quiet=True))
    assert set(result["tasks"]) == {"short", "long"}
    tried = result["tasks"]["short"]["tuning"]["rate"]
    means = [t["mean"] for t in tried["tried"]]
    assert means[tried["chosen"]] == max(means)
    assert set(result["tasks"]["short"]["values"]["few"]) == {"1", "2"}
    file.write_text(file.read_text().replace("temperature: 1.2", "temperature: 1.3"))
    with pytest.raises(ValueError, match=r"few-1 was run with other settings .*: trainer.temperature; delete"):
        replicate(file, jobs=1, console=Console(quiet=True))
