"""What a run folder remembers: the contents of its files, and how many steps it was to have."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from short_run import RECIPE, manifest, quietly, rows, same_weights, short_recipe
from tiny_model import saved_model

from entrl.runs.contents import END, WHOLE, contents, digest
from entrl.runs.folder import read_json, write_json
from entrl.runs.lock import LOCK
from entrl.runs.train import train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


# --- contents -----------------------------------------------------------------------------------------------------


def own_recipe(model: str, folder: Path, *more: str) -> Any:
    """A recipe with a data file, a reward file and a model folder of its own."""
    (folder / "rows.jsonl").write_text("".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(8)))
    (folder / "mine.py").write_text("def short(completions, **_):\n    return [-float(len(c)) for c in completions]\n")
    if not (folder / "model").is_dir():
        saved_model(folder / "model")
    (folder / "own.yaml").write_text(RECIPE.read_text())
    own = ["data={task: 'jsonl:rows.jsonl'}", "rewards=[{use: 'mine.py:short'}]"]
    return lambda *extra: short_recipe(
        str(folder / "model"), folder / "run", *own, "trainer.max_steps=2", *more, *extra, file=folder / "own.yaml"
    )


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("rows.jsonl", "data.task rows.jsonl"),
        ("mine.py", "rewards.0.use mine.py"),
        ("model/model.safetensors", "model.path model.safetensors"),
        ("model/config.json", "model.path config.json"),
    ],
)
def test_a_changed_file_is_refused_by_name_on_resume(model: str, tmp_path: Path, file: str, named: str):
    made = own_recipe(model, tmp_path)
    quietly(made())
    kept = manifest(tmp_path / "run")["contents"]
    assert {"data.task rows.jsonl", "rewards.0.use mine.py", "model.path model.safetensors"} <= kept.keys()
    write_json(tmp_path / "run" / "manifest.json", {**manifest(tmp_path / "run"), "status": "running"})
    content = (tmp_path / file).read_bytes()
    other = bytes([content[-1] ^ 1])  # of weights a bit, for their length is looked at before; of text a space
    changed = content[:-1] + other if file.endswith(".safetensors") else content[:-2] + b" " + content[-2:]
    (tmp_path / file).write_bytes(changed)
    with pytest.raises(ValueError, match=f"^{named}: changed since .*take the old content back"):
        quietly(made(), resume=True)
    (tmp_path / file).write_bytes(content)
    quietly(made(), resume=True)


def test_the_base_of_an_adapter_is_looked_at_too(model: str, tmp_path: Path):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    adapter = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    found = contents({"model.path": str(tmp_path / "adapter")}, tmp_path)
    assert found.keys() == {"model.path adapter_config.json", "model.path base/config.json"}


def test_a_long_file_is_hashed_at_both_ends(tmp_path: Path):
    def long_file(**changed: bytes) -> str:
        with (tmp_path / "w").open("wb") as file:
            file.truncate(WHOLE + END)
            for place, byte in changed.items():
                file.seek(int(place[1:]))
                file.write(byte)
        return digest(tmp_path / "w")

    plain = long_file()
    assert plain.startswith("ends:")
    assert long_file() == plain
    assert long_file(_0=b"x") != plain
    assert long_file(**{f"_{WHOLE + END - 1}": b"x"}) != plain


# --- another length -----------------------------------------------------------------------------------------------


def test_a_finished_run_trains_on(model: str, tmp_path: Path):
    evaluation = "eval={task: sums, size: 4, samples: 2, k: [1]}"
    quietly(short_recipe(model, tmp_path / "whole", evaluation))
    out = tmp_path / "run"
    quietly(short_recipe(model, out, evaluation, "trainer.max_steps=3"))  # ends in the middle of a rollout
    early = read_json(out / "eval_after.json")
    quietly(short_recipe(model, out, evaluation), resume=True)
    assert same_weights(out, tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole")
    assert (manifest(out)["status"], manifest(out)["steps"]) == ("finished", 4)
    after = read_json(out / "eval_after.json")
    assert after != early
    assert after["problems"] == read_json(tmp_path / "whole" / "eval_after.json")["problems"]


def test_a_finished_run_trains_another_epoch(model: str, tmp_path: Path):
    epochs = ("trainer.max_steps=-1", "data.train_size=4")
    quietly(short_recipe(model, tmp_path / "whole", *epochs, "trainer.num_train_epochs=2"))
    quietly(short_recipe(model, tmp_path / "run", *epochs, "trainer.num_train_epochs=1"))
    quietly(short_recipe(model, tmp_path / "run", *epochs, "trainer.num_train_epochs=2"), resume=True)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_with_the_same_settings_nothing_is_left_to_do(model: str, tmp_path: Path):
    made = short_recipe(model, tmp_path / "run", "trainer.max_steps=1")
    quietly(made)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != LOCK}
    with (tmp_path / "said.txt").open("w") as file:
        found = train(made, resume=True, console=Console(file=file, soft_wrap=True))
    assert found.report == tmp_path / "run" / "report.html"
    assert "is finished with these settings: nothing is left to do" in (tmp_path / "said.txt").read_text()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != LOCK}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["trainer.lr_scheduler_type=linear"], "the linear learning rate depends on the number of steps"),
        (["trainer.lr_scheduler_type=constant_with_warmup", "trainer.warmup_steps=0.5"], "warmup_steps is a share"),
        (["eval={task: sums, size: 4, samples: 1, at: early}"], "eval.at: early spreads its evaluations"),
        (["trainer.max_steps=1"], "2 steps are made already"),
        (["trainer.save_only_model=true"], "save_only_model: true left the optimiser out"),
        (["trainer.sync_ref_model=true", "trainer.beta=0.1"], "sync_ref_model: true moves the reference model"),
    ],
)
def test_a_length_whose_steps_would_be_others_is_refused(model: str, tmp_path: Path, settings: list[str], why: str):
    shared = [word for word in settings if "max_steps" not in word]
    quietly(short_recipe(model, tmp_path / "run", *shared, "trainer.max_steps=2"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != LOCK}
    with pytest.raises(ValueError, match=why) as caught:
        quietly(short_recipe(model, tmp_path / "run", *settings), resume=True)
    assert "overwrite" not in str(caught.value)
    assert "model.path" in str(caught.value)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != LOCK}


def test_a_run_without_checkpoints_is_not_begun_again_in_silence(model: str, tmp_path: Path):
    quietly(short_recipe(model, tmp_path / "run", "trainer.save_strategy=no", "trainer.max_steps=1"))
    with pytest.raises(ValueError, match=r"keeps no checkpoint to train on from; .*model.path=") as caught:
        quietly(short_recipe(model, tmp_path / "run", "trainer.save_strategy=no"), resume=True)
    assert "overwrite" not in str(caught.value)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
