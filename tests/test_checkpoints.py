"""A checkpoint counts only when its marker, written last, names all its files and they are what it says."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from short_run import manifest, quietly, short_recipe
from tiny_model import saved_model, trainer

from entrl.runs.checkpoints import newest_whole
from entrl.runs.folder import write_json
from entrl.runs.log_lengths import cut_logs, note_logs
from entrl.trainers.shared.checkpoint import redrawn_because, rotate
from entrl.trainers.shared.completeness import MARKER, Marker, file_names, fingerprints, flaw, mark, read_marker


def whole_folder(folder: Path) -> Path:
    (folder / "inside").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"123456789")
    (folder / "inside" / "b.txt").write_text("b")
    mark(folder, Marker(step=3, world_size=1, files=fingerprints(folder, file_names(folder))))
    return folder


def test_a_marked_folder_is_whole_and_says_what_it_holds(tmp_path: Path):
    folder = whole_folder(tmp_path / "x")
    assert flaw(folder) is None
    # CRC-32's own check value, of the nine digits, is CBF43926
    assert read_marker(folder).files == {"a.bin": [9, 0xCBF43926], "inside/b.txt": [1, 1908338681]}
    (folder / "c.txt").write_text("nobody's business")
    assert flaw(folder) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "a.bin").unlink(), "a.bin is missing"),
        (lambda d: (d / "a.bin").write_bytes(b"x23456789"), "a.bin is damaged"),
        (lambda d: (d / "a.bin").write_bytes(b""), "a.bin has 0 bytes instead of 9"),
        (lambda d: shutil.rmtree(d / "inside"), "inside/b.txt is missing"),
        (lambda d: (d / MARKER).unlink(), "is missing: it was not written to its end"),
        (lambda d: (d / MARKER).write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / MARKER).write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda d: (d / MARKER).write_text("[]"), "is not what this version of entrl writes"),
        (lambda d: (d / MARKER).write_text('{"format": 2, "files": {}}'), "is not what this version of entrl writes"),
        (lambda d: (d / MARKER).write_text('{"format": 1, "files": {"a": [1]}}'), "is damaged"),
        (lambda d: (d / MARKER).write_text('{"format": 1}'), "is damaged"),
    ],
)
def test_each_flaw_has_words(tmp_path: Path, damage: Any, said: str):
    folder = whole_folder(tmp_path / "x")
    damage(folder)
    assert said in str(flaw(folder))


def test_rotation_keeps_the_newest_whole_ones_and_the_best(tmp_path: Path):
    for step in (2, 4, 6, 8, 12):  # 12: left from before a resume, damaged
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    best = str(tmp_path / "checkpoint-2")
    rotate(tmp_path, tmp_path / "checkpoint-8", limit=2, best=best)
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{s}" for s in (2, 8, 12, "final")}
    rotate(tmp_path, tmp_path / "checkpoint-8", limit=None, best=None)
    assert (tmp_path / "checkpoint-2").is_dir()
    rotate(tmp_path, tmp_path / "checkpoint-8", limit=1, best=None)
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{s}" for s in (8, 12, "final")}


def test_the_good_checkpoint_is_there_until_the_next_one_is_whole(tmp_path: Path):
    """TRL deletes inside its own saving, before our state is written."""
    run = trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1)
    seen = []
    run.checkpoint_files.append(
        lambda folder: seen.append((sorted(p.name for p in folder.parent.glob("c*-*")), flaw(folder)))
    )
    run.train()
    assert seen[1][0] == ["checkpoint-1", "checkpoint-2"]
    assert "not written to its end" in seen[1][1]
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert flaw(tmp_path / "out" / "checkpoint-2") is None


def test_logs_are_cut_back_to_the_byte(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (tmp_path / "completions.jsonl").write_text('{"text": "a\u2028b"}\n')  # a line for JSON, two for splitlines
    note_logs(tmp_path, checkpoint)
    before = (tmp_path / "completions.jsonl").read_bytes()
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 3}\n{"st')
    lines: list[str] = []
    cut_logs(tmp_path, checkpoint, say=lines.append)
    assert ((tmp_path / "completions.jsonl").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()) == (before, b"")
    assert not lines
    (tmp_path / "completions.jsonl").write_text('{"a": 1}\n{"b')
    cut_logs(tmp_path, checkpoint, say=lines.append)
    assert (tmp_path / "completions.jsonl").read_text() == '{"a": 1}\n'
    assert "completions.jsonl has lost" in lines[0]


def test_where_a_resumed_run_draws_anew_is_said():
    assert "colocated engine" in str(redrawn_because(SimpleNamespace(use_vllm=True, vllm_mode="colocate")))
    assert "asynchronous" in str(redrawn_because(SimpleNamespace()))
    for same in ({"use_vllm": False, "vllm_mode": "colocate"}, {"use_vllm": True, "vllm_mode": "server"}):
        assert redrawn_because(SimpleNamespace(**same)) is None


def test_tensors_can_be_read_onto_the_device_of_a_cpu_rank(tmp_path: Path):
    """transformers maps an optimiser to the rank's device, which gloo calls cpu:0; torch knew `cpu` alone."""
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", map_location=torch.device("cpu", 0), weights_only=True)
    assert torch.equal(found["x"], torch.ones(2))


def test_another_number_of_processes_is_refused_before_anything_is_built(tmp_path: Path):
    """Each rank's file holds its share of a rollout, so a checkpoint of two cannot be dealt out to one, or to four."""
    recipe = short_recipe(saved_model(tmp_path / "model"), tmp_path / "run", "trainer.max_steps=1")
    quietly(recipe)
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    mark(folder, dataclasses.replace(read_marker(folder), world_size=2))
    shutil.rmtree(tmp_path / "run" / "model")
    write_json(tmp_path / "run" / "manifest.json", manifest(tmp_path / "run") | {"status": "interrupted"})
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"written by 2 processes and this run has 1; resume with 2.*model\.path="):
        quietly(recipe, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_that_is_something_else_is_named_and_passed_over(tmp_path: Path):
    def whole(step: int, name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "entrl_log.json").write_text("{}")
        mark(folder, Marker(step=step, world_size=1, files=fingerprints(folder, ["entrl_log.json"])))
        return folder

    good = whole(2, "checkpoint-2")
    whole(3, "checkpoint-99")
    (tmp_path / "checkpoint-5").write_text("a file")
    (tmp_path / "checkpoint-6" / "entrl_complete.json").mkdir(parents=True)
    said: list[str] = []
    assert newest_whole(tmp_path, say=said.append) == good
    assert [line.partition(":")[0] for line in said] == [f"checkpoint-{n} is skipped" for n in (99, 6, 5)]
    assert "written at step 3: it has been renamed" in said[0]
