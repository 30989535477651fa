"""The starts of recipes/countdown and recipes/puzzles: made and trained, in a few steps."""

import json
from pathlib import Path

import pytest

from entrl.cli.main import main

ROOT = Path(__file__).parents[1] / "recipes"
SHORT_START = ("sft.max_steps=3", "sft.per_device_train_batch_size=4", "answers.lessons.problems=60", "out=start")
SHORT_RUN = (
    "model.path=start/model",
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=8",
    "trainer.num_generations=4",
    "trainer.output_dir=run",
    "eval.size=10",
    "eval.samples=2",
    "eval.k=[1, 2]",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["countdown", "puzzles"])
def test_a_start_is_made_and_trained(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = []
    if name == "puzzles":  # a second lesson, with slips
        assert main(["cold-start", str(ROOT / name / "clean.yaml"), *SHORT_START, "out=clean"]) == 0
        before = ["model.path=clean/model"]
    assert main(["cold-start", str(ROOT / name / "start.yaml"), *SHORT_START, *before]) == 0
    taught = [json.loads(line) for line in Path("start/train.jsonl").read_text().splitlines()]
    assert {row["correct"] for row in taught} == ({0, 1} if name == "puzzles" else {1})
    assert all(row["completion"].startswith("<think>") for row in taught)
    assert main(["train", str(ROOT / name / "grpo.yaml"), *SHORT_RUN]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    before, after = (json.loads(Path(f"run/eval_{when}.json").read_text()) for when in ("before", "after"))
    assert before["n_problems"] == after["n_problems"] == 10
    taught_prompts = {row["prompt"] for row in taught}
    assert not taught_prompts & {problem["prompt"] for problem in before["problems"]}
