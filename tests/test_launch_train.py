"""`entrl train`, evaluations included, on two real processes: DDP and ZeRO-3, started by the files of launch/."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_run import RECIPE, ROOT, manifest, rows, weights, words
from tiny_model import saved_model

from entrl.models.shipped import model_path
from entrl.runs.folder import write_json

TIMEOUT_S = 10  # of the process group
LONG = "eval={task: sums, size: 48, samples: 8, max_new_tokens: 256, batch_size: 8, k: [1]}"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="states what happens where no GPU is visible")


def train(file: str, *given: str, **env: str) -> subprocess.CompletedProcess[str]:
    launch = ["--config_file", str(ROOT / "launch" / file), "--main_process_port", "0", "-m", "entrl", "train"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, str(RECIPE), *given]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=1200)


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"eval_{when}.json").read_text()) for when in ("before", "after")]


def shapes(folder: Path) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.multiprocess
def test_an_evaluation_longer_than_the_groups_timeout(tmp_path: Path):
    """B2: whoever waits for an evaluation waits in no collective."""
    out = tmp_path / "run"
    given = words(saved_model(tmp_path / "model"), out, "trainer.max_steps=2", f"trainer.ddp_timeout={TIMEOUT_S}")
    done = train("cpu_2.yaml", *given, "launch.world_size=2", "launch.backend=gloo", LONG)
    assert done.returncode == 0, done.stderr[-3000:]
    said = manifest(out)
    assert (said["world_size"], said["backend"], said["status"]) == (2, "gloo", "finished")
    assert [row["step"] for row in rows(out)] == [1, 2]
    for found in evaluations(out):
        assert found["n_problems"] == 48
        assert found["seconds"] > TIMEOUT_S, "this machine is fast: take more problems, or the test shows nothing"


@pytest.mark.deepspeed
def test_zero3_trains_evaluates_saves_whole_weights_and_goes_on(tmp_path: Path):
    """B1. Each rank holds its half of parameters and optimiser; what is saved is whole, and is what was evaluated."""
    pytest.importorskip("deepspeed")
    base, out = Path(model_path("tiny-reasoner")), tmp_path / "run"  # one that is right at times, and so learns
    given = words("tiny-reasoner", out, "trainer.max_steps=3", "trainer.save_steps=2", "launch.world_size=2")
    given += ["trainer.max_completion_length=24", "trainer.learning_rate=1e-4"]
    evaluation = "eval={task: sums, size: 6, samples: 2, max_new_tokens: 8, k: [1]}"
    done = train("zero3_cpu.yaml", *given, evaluation, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    said = manifest(out)
    assert (said["world_size"], said["backend"], said["status"], said["steps"]) == (2, "gloo", "finished", 3)
    before, after = evaluations(out)
    assert (before["n_problems"], after["n_problems"]) == (6, 6)
    assert after["model"] == str(out / "model")
    (divided,) = (out / "checkpoints" / "checkpoint-2").glob("global_step*")
    for rank in (0, 1):  # DeepSpeed writes these where the stage divides, a file a rank
        assert (divided / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").is_file()
    held = [torch.load(f, weights_only=False) for f in sorted(divided.glob("zero_pp_rank_*_optim_states.pt"))]
    assert [one["ds_config"]["zero_optimization"]["stage"] for one in held] == [3, 3]
    assert [one["optimizer_state_dict"]["partition_count"] for one in held] == [2, 2]
    assert shapes(out / "model") == shapes(base)
    whole, old = weights(out), load_file(base / "model.safetensors")
    assert any(not torch.equal(old[name], whole[name]) for name in old)
    assert all(tensor.isfinite().all() for tensor in whole.values())
    for name in ("model", "checkpoints/checkpoint-3", "eval_after.json", "report.html"):  # as if killed after step 2
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    write_json(out / "manifest.json", said | {"status": "interrupted"})
    again = train("zero3_cpu.yaml", *given, evaluation, "resume=true", DS_ACCELERATOR="cpu")
    assert again.returncode == 0, again.stderr[-3000:]
    assert manifest(out)["resumed_from"] == "checkpoint-2"
    assert [row["step"] for row in rows(out)] == [1, 2, 3]
    resumed = weights(out)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
