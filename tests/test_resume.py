"""A run goes on from its newest whole checkpoint as if it had not stopped, and nothing is trained twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kills import DAMAGES, copied, differences, newest
from rich.console import Console
from tiny_model import digits, parameters, same, saved_model, trainer

from entrl.runs import train as run_module
from entrl.runs.checkpoints import newest_whole, trained_model
from entrl.runs.folder import RunFolder, write_json
from entrl.runs.lock import LOCK
from entrl.runs.plan import plan
from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.train import train

TESTS = Path(__file__).parent
PLAIN = {
    "model": "path: MODEL",
    "data": "task: sums, train_size: 8, seed: 0",
    "eval": "task: sums, size: 3, samples: 2, k: [1, 2], max_new_tokens: 6",
}


class Killed(BaseException):
    """Stands for SIGKILL where a test stays in its own process; nothing of entrl's catches it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def recipe(folder: Path, model: str, *words: str) -> Recipe:
    """Two prompts of four completions a step, four steps a pass over the prompts, a checkpoint every second step."""
    groups = [f"{name}: {{{text.replace('MODEL', model)}}}" for name, text in PLAIN.items()]
    options = [
        "per_device_train_batch_size: 8", "num_generations: 4", "max_completion_length: 6", "max_steps: 6",
        "learning_rate: 1e-2", "bf16: false", "gradient_checkpointing: false", "save_strategy: steps", "save_steps: 2",
        f"output_dir: {folder / 'run'}",
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    rewards = f"rewards: [{{use: '{TESTS / 'kill_reward.py'}:Restless'}}]"
    file.write_text("\n".join([*groups, rewards, f"trainer: {{{', '.join(options)}}}"]))
    return load_recipe(file, words)


def quietly(made: Recipe, **how: Any) -> Any:
    return train(made, console=Console(quiet=True), **how)


def told(made: Recipe, folder: Path, **how: Any) -> str:
    """What a run prints."""
    with (folder / "out.txt").open("w") as file:
        train(made, console=Console(file=file, width=1000), **how)
    return (folder / "out.txt").read_text()


def as_killed(run_dir: Path, *, after_step: int) -> None:
    """A finished folder as a kill would have left it after the checkpoint of a step: later things half there."""
    for checkpoint in (run_dir / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > after_step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(run_dir / "model")
    (run_dir / "report.html").unlink()
    (run_dir / "eval_after.json").unlink()
    manifest = json.loads((run_dir / "manifest.json").read_text())
    write_json(run_dir / "manifest.json", {**manifest, "status": "running"})
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (run_dir / name).open("a") as file:
            file.write('{"step": 4, "kin')


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, a pass and a half over its prompts, with checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    quietly(recipe(folder, model))
    return folder / "run"


def killed(finished: Path, folder: Path, *, after_step: int) -> Path:
    run_dir = copied(finished, folder / "run")
    as_killed(run_dir, after_step=after_step)
    return run_dir


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(damage: str, finished: Path, tmp_path: Path):
    run_dir = copied(finished, tmp_path / "run")
    DAMAGES[damage](newest(run_dir))
    said: list[str] = []
    found = newest_whole(run_dir / "checkpoints", say=said.append)
    assert found is not None
    assert found.name == "checkpoint-4"
    assert len(said) == 1
    assert said[0].startswith("checkpoint-6 is skipped: ")


@pytest.mark.parametrize("after_step", [2, 4], ids=["within_the_first_pass", "at_its_end"])
def test_a_resumed_run_equals_an_uninterrupted_one(after_step: int, model: str, finished: Path, tmp_path: Path):
    run_dir = killed(finished, tmp_path, after_step=after_step)
    quietly(recipe(tmp_path, model), resume=True)
    assert differences(finished, run_dir) == []


def test_all_checkpoints_damaged_starts_over_and_says_so(model: str, finished: Path, tmp_path: Path):
    run_dir = killed(finished, tmp_path, after_step=4)
    for checkpoint in (run_dir / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    text = told(recipe(tmp_path, model), tmp_path, resume=True)
    assert [f"checkpoint-{s} is skipped: optimizer.pt is missing" in text for s in (2, 4)] == [True, True]
    assert "has no whole checkpoint to go on from: the run starts over" in text
    assert differences(finished, run_dir) == []


@pytest.mark.parametrize("stop", [5, 9], ids=["second_pass", "third_pass"])
def test_a_later_pass_over_the_prompts_resumes_in_the_order_it_had(stop: int, tmp_path: Path):
    """The sampler's generator is in no checkpoint of TRL's: the first order came again."""
    from datasets import Dataset

    rows = Dataset.from_dict({"prompt": [f"{i}+{i}=" for i in range(4)]})
    options = {"max_steps": 11, "save_strategy": "steps", "save_steps": stop, "train_dataset": rows}
    whole = trainer(tmp_path, digits, **options)
    whole.train()
    resumed = trainer(tmp_path, digits, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    assert same(parameters(whole), parameters(resumed))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_log_rows_that_straddle_a_checkpoint_average_over_all_their_steps(strategy: str, model: str, tmp_path: Path):
    words = (f"trainer.logging_strategy={strategy}", "trainer.logging_steps=3", "trainer.max_steps=8", "eval=null")
    run_dir = quietly(recipe(tmp_path / "a", model, *words)).run_dir
    whole = copied(run_dir, tmp_path / "whole")
    for name in ("eval_before.json", "eval_after.json"):
        for folder in (whole, run_dir):
            (folder / name).write_text("{}")
    as_killed(run_dir, after_step=4)  # the end of a pass: its row is written at the same step as the checkpoint
    quietly(recipe(tmp_path / "a", model, *words), resume=True)
    (run_dir / "eval_after.json").write_text("{}")
    assert differences(whole, run_dir) == []
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == ([3, 6] if strategy == "steps" else [4, 8])


def test_samples_since_the_last_log_row_are_written_at_the_end(model: str, tmp_path: Path):
    words = ("trainer.logging_steps=3", "trainer.max_steps=4", "trainer.save_strategy=no", "eval=null")
    run_dir = quietly(recipe(tmp_path, model, *words)).run_dir
    lines = (run_dir / "completions.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {0, 3}


@pytest.mark.parametrize("place", ["save_model", "evaluate_into", "write_report"])
def test_what_is_left_after_the_last_step_is_done_and_no_step_is_trained_twice(
    place: str, model: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Six steps are a pass and a half: transformers would take a seventh."""
    where = run_module if place != "save_model" else _trainer_class()
    plain = getattr(where, place)

    def dying(*args: Any, **named: Any) -> Any:
        if "after" in args or place == "write_report" or (place == "save_model" and str(args[1]).endswith("model")):
            raise Killed
        return plain(*args, **named)

    monkeypatch.setattr(where, place, dying)
    with pytest.raises(Killed):
        quietly(recipe(tmp_path, model))
    monkeypatch.undo()
    text = told(recipe(tmp_path, model), tmp_path, resume=True)
    assert f"run folder {tmp_path / 'run'}, from {'checkpoint-6' if place == 'save_model' else 'model'}" in text
    assert "step 7/6" not in text
    assert differences(finished, tmp_path / "run") == []


def _trainer_class() -> Any:
    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

    return EntropyGRPOTrainer


def test_without_checkpoints_a_trained_model_is_enough(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = recipe(
        tmp_path, model, "trainer.save_strategy=no", "trainer.max_steps=1", "eval={task: sums, size: 2, samples: 1}"
    )
    monkeypatch.setattr(run_module, "load_trained", _no_file)
    with pytest.raises(ValueError, match=r"training is over and its model is in .*model, but .*: gone; .*resume=true"):
        quietly(made)
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "build_trainer", _no_file)
    result = quietly(made, resume=True)
    assert result.eval_after["n_problems"] == 2
    assert json.loads((result.run_dir / "manifest.json").read_text())["steps"] == 1


def _no_file(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("gone")


def test_a_damaged_model_is_saved_again(model: str, finished: Path, tmp_path: Path):
    run_dir = copied(finished, tmp_path / "run")
    (run_dir / "report.html").unlink()
    (run_dir / "model" / "model.safetensors").write_bytes(b"")
    write_json(run_dir / "manifest.json", {**json.loads((run_dir / "manifest.json").read_text()), "status": "running"})
    said: list[str] = []
    assert trained_model(run_dir / "model", say=said.append) is None
    assert said == ["model is not used: model.safetensors has 0 bytes instead of " + said[0].rpartition(" ")[2]]
    quietly(recipe(tmp_path, model), resume=True)
    assert differences(finished, run_dir) == []


def test_a_finished_run_is_never_started_over(model: str, finished: Path, tmp_path: Path):
    run_dir = copied(finished, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file() and p.name != LOCK}
    assert "nothing is left to do" in told(recipe(tmp_path, model), tmp_path, resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (run_dir / "report.html").unlink()
    quietly(recipe(tmp_path, model), resume=True)
    assert (run_dir / "report.html").is_file()
    (run_dir / "report.html").unlink()
    shutil.rmtree(run_dir / "model")
    with pytest.raises(ValueError, match="is finished, there is nothing to resume"):
        quietly(recipe(tmp_path, model), resume=True)


def test_an_evaluation_that_judges_nothing_is_a_finished_run_with_words(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("entrl.evaluation.answers.scorer", lambda _: lambda texts, *rest: [None] * len(texts))
    text = told(recipe(tmp_path, model, "trainer.max_steps=1"), tmp_path)
    assert "no problem was judged both before and after training" in text
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"
    assert (tmp_path / "run" / "report.html").is_file()


# What cannot be resumed exactly


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trainer.save_only_model=true"], "save_only_model: true leaves the optimiser and the random states out"),
        (["trainer.sync_ref_model=true", "trainer.beta=0.1"], "sync_ref_model: true moves the reference model"),
    ],
)
def test_a_run_that_could_not_be_resumed_exactly_is_planned_with_a_warning(
    words: list[str], reason: str, model: str, tmp_path: Path
):
    found = plan(recipe(tmp_path, model, *words))
    assert [w for w in found.warnings if reason in w]
    assert not [w for w in plan(recipe(tmp_path, model)).warnings if "could not go on" in w]


def test_resuming_without_the_optimiser_is_refused_and_finishing_is_not(model: str, tmp_path: Path):
    made = recipe(tmp_path, model, "trainer.save_only_model=true", "trainer.max_steps=3", "eval=null")
    run_dir = quietly(made).run_dir
    (run_dir / "eval_after.json").write_text("")
    whole = copied(run_dir, tmp_path / "whole")
    as_killed(run_dir, after_step=3)
    quietly(made, resume=True)  # trained to its end: the weights are all it takes
    assert (run_dir / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()
    (run_dir / "eval_after.json").write_text("")
    as_killed(run_dir, after_step=2)
    before = (run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="cannot be resumed as if it had not stopped: save_only_model"):
        quietly(made, resume=True)
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_the_trainer_itself_refuses_a_checkpoint_without_an_optimiser(tmp_path: Path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    (tmp_path / "out" / "checkpoint-1" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="its optimiser is gone"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


def test_a_checkpoint_without_our_state_warns(tmp_path: Path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    (tmp_path / "out" / "checkpoint-1" / "entrl_state_0.pt").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-1 holds no state of entrl's"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


# Folders killed before there was anything to keep


def test_a_folder_killed_while_it_was_emptied_starts_over(model: str, finished: Path, tmp_path: Path):
    run_dir = copied(finished, tmp_path / "run")
    made = recipe(tmp_path, model)
    write_json(run_dir / "manifest.json", {"entrl": "0.1.0", "config_hash": None, "status": "starting"})
    shutil.rmtree(run_dir / "model")
    assert RunFolder(path=run_dir).open(made, resume=True, overwrite=False) is None
    assert [p.name for p in run_dir.iterdir()] == [LOCK]
    (run_dir / "manifest.json.part").write_text('{"sta')
    assert RunFolder(path=run_dir).open(made, resume=True, overwrite=False) is None
