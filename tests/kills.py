"""Runs that are killed and resumed, as users run them: recipes, kills, damage, and what must come out alike.

`benchmarks/reliability.py` is the campaign, `test_kills.py` its bounded part. Every run is a process of its own
(`python -m entrl train`, or `accelerate launch` with two ranks), killed by SIGKILL, resumed by `resume=true`.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TIMES = ("seconds", "step_time", "runtime", "per_second")  # metrics that are clock readings
LIMIT_S = 400.0  # for one process on a busy core

TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "learning_rate": 1e-3,
    "max_steps": 6, "bf16": False, "gradient_checkpointing": False, "save_strategy": "steps", "save_steps": 2,
}  # fmt: skip
BASE: dict[str, Any] = {
    "model": {"path": "tiny-reasoner"},
    "data": {"task": "sums", "train_size": 64, "seed": 0},
    "rewards": [{"use": f"{TESTS / 'kill_reward.py'}:reward"}],
    "eval": {"task": "sums", "size": 3, "samples": 2, "k": [1, 2], "max_new_tokens": 8},
}
RECIPES: dict[str, dict[str, Any]] = {
    "grpo": {**BASE, "trainer": TRAINER},
    # two updates per rollout, twice over: every other checkpoint lies inside a rollout
    "lora": {
        **BASE,
        "rewards": [{"use": "pear", "args": {"alpha": 1.0}}, *BASE["rewards"]],
        "controllers": [{"use": "kl_cov", "args": {"fraction": 0.05, "coef": 1.0}}],
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "trainer": {**TRAINER, "steps_per_generation": 2, "num_iterations": 2, "save_steps": 1},
    },
    # four steps are one pass over the prompts; log rows that straddle checkpoints
    "epochs": {
        **BASE,
        "data": {"task": "sums", "train_size": 8, "seed": 0},
        "trainer": {**TRAINER, "max_steps": 11, "logging_steps": 3},
    },
    # evaluations draw from the run's random state; one checkpoint is kept
    "evaluation": {
        **BASE,
        "controllers": [{"use": "clip_cov", "args": {"fraction": 0.05}}],
        "trainer": {
            **TRAINER,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "per_device_eval_batch_size": 8,
            "save_total_limit": 1,
            "steps_per_generation": 2,
        },
    },
    "two_ranks": {
        **BASE,
        "data": {"task": "sums", "train_size": 16, "seed": 0},
        "launch": {"world_size": 2, "backend": "gloo"},
        "trainer": {**TRAINER, "max_steps": 5, "logging_steps": 3, "steps_per_generation": 2, "save_total_limit": 2},
    },
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has come to its end. seconds: how long it took; code: -9 where it was killed."""

    code: int
    seconds: float
    text: str


def write_recipe(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.dump(RECIPES[name]))
    return file


def entrl_train(
    recipe: Path, run_dir: Path, *words: str, at: int = -1, trace: Path | None = None, rank: int = 0,
    kill_after: float | None = None, forked: bool = False,
) -> Ended:  # fmt: skip
    """One `entrl train` in processes of its own. at, rank: the place to die at (`kill_at.py`); kill_after: seconds.

    forked: the process is a fork of this one, in which the libraries are imported, so it starts at once; one rank only.
    """
    ranks = RECIPES[recipe.stem].get("launch", {}).get("world_size", 1)
    train = ["train", str(recipe), f"trainer.output_dir={run_dir}", *words]
    places = [str(at), str(trace or "-"), str(rank)]
    started, out = time.monotonic(), run_dir.parent / f"{run_dir.name}.out"
    if forked and ranks == 1:
        process = _Forked([*places, *train], out)
    else:
        program = [str(TESTS / "kill_at.py"), *places] if at >= 0 or trace is not None else ["-m", "entrl"]
        if ranks > 1:
            launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "cpu_2.yaml")]
            program = [*launch, "--main_process_port", "0", *program]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with out.open("w") as file:
            command = [sys.executable, *program, *train]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        code = process.wait(timeout=LIMIT_S if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        ranks_too = psutil.Process(process.pid).children(recursive=True)  # they have sessions of their own
        for member in (psutil.Process(process.pid), *ranks_too):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        code = process.wait()
    return Ended(code=code, seconds=time.monotonic() - started, text=out.read_text())


class _Forked:
    """`python tests/kill_at.py WORDS` in a fork, as far as a `subprocess.Popen` is needed."""

    def __init__(self, words: list[str], out: Path) -> None:
        import kill_at

        import entrl.runs.train
        import entrl.trainers  # noqa: F401

        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                with out.open("w") as file:
                    for stream in (1, 2):
                        os.dup2(file.fileno(), stream)
                sys.argv = ["entrl", *words[3:]]
                code = kill_at.main(words)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self, timeout: float | None = None) -> int:
        started = time.monotonic()
        while True:
            pid, status = os.waitpid(self.pid, 0 if timeout is None else os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.02)


def places(trace: Path) -> list[str]:
    """What a run passes, in order; the index is what `entrl_train(at=...)` takes."""
    return trace.read_text().splitlines()


def differences(whole: Path, resumed: Path) -> list[str]:
    """What is not alike in two finished run folders; clock readings and paths aside. Empty = bit for bit."""
    out = []
    for name in sorted({p.name for d in (whole, resumed) for p in (d / "model").glob("*.safetensors")}):
        a, b = (d / "model" / name for d in (whole, resumed))
        if not (a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()):
            out.append(f"model/{name}")
    for name in ("metrics.jsonl", "completions.jsonl"):
        if _rows(whole / name) != _rows(resumed / name):
            out.append(name)
    for name in ("eval_before.json", "eval_after.json"):
        a, b = ({k: v for k, v in json.loads((d / name).read_text()).items() if k not in ("seconds", "model", "commit")}
                for d in (whole, resumed))  # fmt: skip
        if a != b:
            out.append(name)
    a, b = (json.loads((d / "manifest.json").read_text()) for d in (whole, resumed))
    if (b["status"], b["steps"]) != ("finished", a["steps"]):
        out.append("manifest.json")
    if not (resumed / "report.html").is_file():
        out.append("report.html")
    return out


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


def resume(recipe: Path, whole: Path, run_dir: Path, *, forked: bool = False) -> dict[str, Any]:
    """Resume a killed run and say how it came out; `alike` is True where nothing differs from the whole run."""
    ended = entrl_train(recipe, run_dir, "resume=true", forked=forked)
    said = [line for line in ended.text.splitlines() if line.startswith("run folder") or " is skipped: " in line]
    done = "nothing is left to do" in ended.text  # it had finished before the kill
    wrong = differences(whole, run_dir) if ended.code == 0 else [ended.text[-2000:]]
    return {
        "alike": not wrong and "Traceback" not in ended.text,
        "differences": wrong,
        "seconds": round(ended.seconds, 1),
        "went_on": "finished before" if done else _last_word(said),
        "skipped": [line for line in said if " is skipped: " in line],
    }


def _last_word(said: Sequence[str]) -> str:
    return next((line.rpartition(", ")[2] for line in said if line.startswith("run folder")), "")


# Damage: ten kinds and two more, done to the newest checkpoint. Each takes its folder.


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _rng_file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("rng_state*.pth"), reverse=True)))  # of the last rank


def _state_file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("entrl_state_*.pt"), reverse=True)))


def _weights(folder: Path) -> Path:
    return next(iter(folder.glob("*.safetensors")))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "our state is missing": lambda d: _state_file(d).unlink(),
    "our state is cut": lambda d: _cut(_state_file(d)),
    "trainer_state.json is missing": lambda d: (d / "trainer_state.json").unlink(),
    "trainer_state.json is garbage": lambda d: (d / "trainer_state.json").write_text('{"global_step": 4, "epo'),
    "weights are empty": lambda d: os.truncate(_weights(d), 0),
    "one bit of the weights is flipped": lambda d: _flip(_weights(d)),
    "the optimiser is missing": lambda d: (d / "optimizer.pt").unlink(),
    "one bit of the optimiser is flipped": lambda d: _flip(d / "optimizer.pt"),
    "random states are missing": lambda d: _rng_file(d).unlink(),
    "the folder is empty": _empty,
    "the marker is missing": lambda d: (d / "entrl_complete.json").unlink(),
    "the marker is garbage": lambda d: (d / "entrl_complete.json").write_bytes(b"\0" * 200),
}


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))


def copied(run_dir: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(run_dir, to))


def kinds_of_places(trace: Sequence[str], *, seed: int) -> dict[str, list[int]]:
    """Places by what the run is doing (a pass, a checkpoint, the report, ...), in an order that names no file twice
    before all of that kind have been named."""
    alike: dict[str, list[int]] = {}
    for i, place in enumerate(trace):
        alike.setdefault(place.translate(str.maketrans("", "", "0123456789")), []).append(i)
    draw = random.Random(seed)
    kinds: dict[str, list[tuple[int, float, int]]] = {}
    for place, found in alike.items():
        for turn, i in enumerate(draw.sample(found, len(found))):
            kinds.setdefault(kind_of(place), []).append((turn, draw.random(), i))
    return {kind: [i for *_, i in sorted(found)] for kind, found in kinds.items()}


def kind_of(place: str) -> str:
    """A forward pass counts by what it is for, a backward pass and an optimiser step by themselves, files by what is
    being saved."""
    doing, _, what = place.partition(": ")
    for word in ("backward pass", "optimiser step"):
        if word in what:
            return word
    return doing
