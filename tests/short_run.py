"""Runs of a few steps on a random model, in this process or as real ones, for tests of the run folder and its end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file

from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.train import train

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "tiny-reasoner" / "grpo.yaml"
SHORT = (
    "data.train_size=32",
    "trainer.per_device_train_batch_size=4",
    "trainer.num_generations=4",
    "trainer.max_completion_length=6",
    "trainer.max_steps=4",
    "trainer.learning_rate=1e-2",
    "trainer.lr_scheduler_type=constant",
    "trainer.save_strategy=steps",
    "trainer.save_steps=1",
    "eval=null",
)


def words(model: str, out: Path | str, *more: str) -> list[str]:
    return [*SHORT, f"model.path={model}", f"trainer.output_dir={out}", *more]


def short_recipe(model: str, out: Path | str, *more: str, file: Path = RECIPE) -> Recipe:
    return load_recipe(file, words(model, out, *more))


def quietly(recipe: Recipe, **how: Any) -> Any:
    return train(recipe, console=Console(quiet=True), **how)


def weights(out: Path) -> dict[str, Any]:
    return load_file(out / "model" / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def rows(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    clock = ("seconds", "step_time", "runtime", "samples_per_second", "steps_per_second")
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in clock} for row in read]


def command(*arguments: str, processes: int = 1) -> list[str]:
    """`entrl ...` as a process of its own, or as two joined over gloo."""
    if processes == 1:
        return [sys.executable, "-m", "entrl", *arguments]
    config = str(ROOT / "launch" / "cpu_2.yaml")
    launch = ["accelerate.commands.launch", "--config_file", config, "--main_process_port", "0", "-m", "entrl"]
    return [sys.executable, "-m", *launch, *arguments]


def start(*arguments: str, processes: int = 1, **more: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(*arguments, processes=processes), text=True, env=os.environ.copy(), **pipes, **more)
