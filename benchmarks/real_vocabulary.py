"""What PEAR with KL-Cov costs on a real vocabulary: stock TRL's GRPO against ours, SmolLM2 with its 49,152 tokens.

    ratio = seconds(ours) / seconds(stock)    per pair, of one rollout with its two updates; processor and wall time
    reported:  geometric mean of the pairs' ratios, 95 % interval by a paired bootstrap over them

Both trainers live in one process and take turns at the boundary of a rollout, in the order stock-ours, ours-stock,
stock-ours, ... (ABBA), each with its own model, optimiser and random state. Same weights, prompts, schedule, seeds and
options; every completion is written to its full length (the end token is one the model never writes), so no arm saves
time by writing less. The stock arm pays what ours pays without entropy: a verdict and a coin (`coin`). Forward calls of
the model are counted by a hook, those of generation apart.

    python benchmarks/real_vocabulary.py --model FOLDER [--pairs 10] [--rows-file pairs.jsonl] [--out result.json]
    python benchmarks/real_vocabulary.py --model FOLDER --memory stock     peak memory of one arm alone, in a process
    python benchmarks/real_vocabulary.py --model FOLDER --vllm             each arm with a colocated vLLM engine

With --vllm (environment as in launch/test.sh) both engines live in this process, so processor time holds theirs.

Each pair is a line of --rows-file when it is finished: a run that was killed goes on after it. On a machine that others
use as well processor time decides and wall time is shown. One thread is best (OMP_NUM_THREADS=1).
"""

import argparse
import contextlib
import cProfile
import json
import os
import platform
import pstats
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from entrl_rewards.accuracy import Accuracy
from entrl_rewards.pear import Pear
from peft import LoraConfig
from scipy.stats import bootstrap
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from entrl.controllers.kl_cov import KLCov
from entrl.engines.cpu_weights import prepare_cpu_engine, unpacked_linear_weights
from entrl.tasks import load_task
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

ROOT = Path(__file__).parents[1]
UPDATES = 2  # of a rollout
NEVER_WRITTEN = "<repo_name>"  # of SmolLM2's vocabulary, stands for the end token here
ARMS = ("stock", "ours")
SHELL = dict(os.environ)  # before an engine of this process writes its rank there
ACCURACY = Accuracy()


def coin(completions: list[Any], **columns: Any) -> list[float]:
    """Verify like every run does, then pay by a coin: without spread in the rewards nothing would be selected."""
    ACCURACY(completions=completions, **columns)
    return [float(sum(map(ord, text_of(c))) % 2) for c in completions]


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


class Turns(TrainerCallback):
    """Lets one trainer work while the other waits, a rollout at a time, with a random state of its own."""

    def __init__(self) -> None:
        self.mine, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.state: Any = None
        self.finished = False

    def begin(self) -> None:
        self.mine.acquire()
        if self.state is not None:
            torch.set_rng_state(self.state[0]), np.random.set_state(self.state[1]), random.setstate(self.state[2])

    def end(self) -> None:
        self.state = (torch.get_rng_state(), np.random.get_state(), random.getstate())
        self.done.release()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % UPDATES == 0 and state.global_step < state.max_steps:
            self.end()
            self.begin()

    def go(self) -> tuple[float, float]:
        """One rollout of this trainer: (processor seconds, wall seconds)."""
        processor, wall = time.process_time(), time.perf_counter()
        self.mine.release()
        self.done.acquire()
        return time.process_time() - processor, time.perf_counter() - wall


class Forwards:
    """Counts calls of the model outside and inside of generation."""

    def __init__(self, trainer: Any) -> None:
        self.counts, self.generating = {"training and scoring": 0, "generation": 0}, False
        model = trainer.model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.register_forward_hook(self._count)
        generate = trainer._generate_single_turn

        def counted(*given: Any, **options: Any) -> Any:
            self.generating = True
            try:
                return generate(*given, **options)
            finally:
                self.generating = False

        trainer._generate_single_turn = counted

    def _count(self, *_: Any) -> None:
        self.counts["generation" if self.generating else "training and scoring"] += 1


def build(arm: str, options: argparse.Namespace, turns: Turns | None, folder: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.eos_token = NEVER_WRITTEN
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    engine: dict[str, Any] = {}
    if options.vllm:
        engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 64 + options.length}
    args = (EntropyGRPOConfig if arm == "ours" else GRPOConfig)(
        **engine,
        output_dir=folder,
        per_device_train_batch_size=options.rows // options.micro_steps,
        gradient_accumulation_steps=options.micro_steps,
        steps_per_generation=UPDATES * options.micro_steps,
        num_generations=8,
        max_completion_length=options.length,
        max_steps=UPDATES * (options.pairs + 2),
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        loss_type="dapo",
        scale_rewards="batch",
        beta=0.0,
        bf16=True,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        log_level="error",
    )
    rows = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 2, "instruction": ""}
    data = load_task({"task": "reasoning_gym:chain_sum", **rows}, split="train", size=512, seed=0)
    with contextlib.ExitStack() as building:
        if options.vllm and arm == "stock":  # TRL by itself builds no engine on a CPU
            prepare_cpu_engine()
            building.enter_context(unpacked_linear_weights())
        return trainer_of(arm, model, args, data, tokenizer, turns)


def trainer_of(arm: str, model: Any, args: Any, data: Any, tokenizer: Any, turns: Turns | None) -> Any:
    ours: dict[str, Any] = {"controllers": [KLCov(fraction=0.02)]} if arm == "ours" else {}
    trainer = (EntropyGRPOTrainer if arm == "ours" else GRPOTrainer)(
        model,
        Pear(correctness=coin, floor=None) if arm == "ours" else coin,
        args,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[] if turns is None else [turns],
        **ours,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def endless(model: Path, folder: str) -> Path:
    """The model with another end token: an engine reads it from the files, not from the tokenizer it is given."""
    out = Path(folder) / model.name
    out.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = NEVER_WRITTEN
    tokenizer.save_pretrained(out)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((model / name).read_text()) | {"eos_token_id": tokenizer.eos_token_id}
        (out / name).write_text(json.dumps(settings))
    (out / "model.safetensors").symlink_to((model / "model.safetensors").resolve())
    return out


class Work(threading.Thread):
    """A trainer in a thread of its own; an error of it ends the measurement."""

    def __init__(self, arm: str, options: argparse.Namespace, folder: str) -> None:
        super().__init__(daemon=True)
        self.turns = Turns()
        self.trainer = build(arm, options, self.turns, folder)
        self.forwards = Forwards(self.trainer)
        self.profile: cProfile.Profile | None = None
        self.profiled = 0  # rollouts before the one that is profiled

    def run(self) -> None:
        self.turns.begin()
        try:
            self.trainer.train()
        except BaseException as error:
            print(f"{self.name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        self.turns.end()

    def watch(self) -> None:
        """Profile the rollout to come: in its own thread, from its first pass on."""
        step, once = self.trainer.training_step, self

        def profiled(*given: Any, **more: Any) -> Any:
            if once.profile is None:
                once.profile = cProfile.Profile()
            once.profile.enable()
            try:
                return step(*given, **more)
            finally:
                once.profile.disable()

        self.trainer.training_step = profiled


def share_base(work: dict[str, Work]) -> None:
    """One copy of the frozen weights for both, to save memory; the adapters are each one's own."""
    first, second = (dict(one.trainer.model.named_parameters()) for one in work.values())
    for name, weight in second.items():
        if not weight.requires_grad:
            assert torch.equal(weight, first[name])
            weight.data = first[name].data


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of a profiled rollout: all, and those whose innermost Python function is ours, what it calls in C
    included."""
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # pyright: ignore[reportAttributeAccessIssue]
    mine = lambda name: any(part in name for part in ("/entrl/", "/entrl_rewards/"))  # noqa: E731
    found: dict[str, float] = {}
    for (file, _, function), (_, _, own, _, callers) in stats.items():
        if mine(file):
            where = f"{Path(file).parent.name}/{Path(file).name}:{function}"
            found[where] = found.get(where, 0.0) + own
        elif file == "~":  # built in: charged to who calls it
            for (caller, _, name), (_, _, spent, _) in callers.items():
                if mine(caller):
                    where = f"{Path(caller).parent.name}/{Path(caller).name}:{name}"
                    found[where] = found.get(where, 0.0) + spent
    total = sum(own for _, _, own, _, _ in stats.values())
    top = dict(sorted(found.items(), key=lambda item: -item[1])[:12])
    return {"rollout": total, "ours": sum(found.values()), **top}


def interval(ratios: list[float]) -> dict[str, Any]:
    """Geometric mean and 95 % interval (BCa bootstrap over pairs)."""
    logs = np.log(ratios)
    found = bootstrap((logs,), np.mean, n_resamples=9999, rng=np.random.default_rng(0), method="BCa")
    ends = np.exp(found.confidence_interval).tolist()
    return {"ratio": float(np.exp(logs.mean())), "ci95": ends, "pairs": len(ratios)}


def measure(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        if options.vllm:
            options.model = endless(options.model, folder)
        work = {arm: Work(arm, options, f"{folder}/{arm}") for arm in ARMS}
        if not options.vllm:  # it merges each adapter into its base and takes it out again
            share_base(work)
        for one in work.values():
            one.start()
        for one in work.values():
            one.turns.go()  # warm-up: the first rollout of each
        for pair in range(len(done), options.pairs):
            row: dict[str, Any] = {"pair": pair, "load": os.getloadavg()[0]}
            for arm in ARMS if pair % 2 == 0 else ARMS[::-1]:
                before = dict(work[arm].forwards.counts)
                row[arm] = dict(zip(("processor", "wall"), work[arm].turns.go(), strict=True))
                row[arm]["forwards"] = {k: v - before[k] for k, v in work[arm].forwards.counts.items()}
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            done.append(row)
            print(f"pair {pair}: {row['ours']['processor'] / row['stock']['processor']:.3f}", flush=True)
        profiles = {}
        for arm in ARMS:
            work[arm].watch()
            work[arm].turns.go()
            profiles[arm] = shares(work[arm].profile)  # pyright: ignore[reportArgumentType]
        logged = [row for row in work["ours"].trainer.state.log_history if "kl_cov/selected" in row]
    passes = [row[arm]["forwards"]["training and scoring"] for row in done for arm in ARMS]
    return {
        clock: interval([row["ours"][clock] / row["stock"][clock] for row in done]) for clock in ("processor", "wall")
    } | {
        "seconds": {arm: [row[arm]["processor"] for row in done] for arm in ARMS},
        "wall_seconds": {arm: [row[arm]["wall"] for row in done] for arm in ARMS},
        "extra_forwards_per_rollout": (sum(passes[1::2]) - sum(passes[::2])) / len(done),
        "forwards_per_rollout": {arm: done[0][arm]["forwards"] for arm in ARMS},
        "load": [row["load"] for row in done],
        "profile_seconds": profiles,
        "selected_tokens": [row["kl_cov/selected"] for row in logged],
    }


def memory(arm: str, options: argparse.Namespace) -> dict[str, float]:
    """MiB: resident once the trainer stands, and at the peak of a rollout with its updates."""
    with tempfile.TemporaryDirectory() as folder:
        if options.vllm:
            options.model = endless(options.model, folder)
        trainer = build(arm, options, None, folder)
        trainer.args.max_steps = UPDATES
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
        trainer.train()
    return {"loaded": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def peak_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Each arm in a process of its own."""
    found = {}
    for arm in ARMS:
        shape = {"rows": options.rows, "length": options.length, "micro-steps": options.micro_steps}
        more = [f"--{name}={value}" for name, value in shape.items()] + ["--vllm"] * options.vllm
        line = [sys.executable, __file__, "--model", str(options.model), "--memory", arm, *more]
        found[arm] = json.loads(
            subprocess.run(line, check=True, capture_output=True, text=True, env=SHELL).stdout.splitlines()[-1]
        )
    return found


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16, help="completions per update")
    parser.add_argument("--micro-steps", type=int, default=2, help="that an update is cut into, to save memory")
    parser.add_argument("--length", type=int, default=48, help="tokens of every completion")
    parser.add_argument("--rows-file", type=Path, default=Path("real_vocabulary.pairs.jsonl"))
    parser.add_argument("--vllm", action="store_true", help="generate by a colocated engine")
    parser.add_argument("--memory", choices=ARMS, help="only the peak memory of this arm")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory, options)))
        return
    model = options.model
    found = measure(options, options.rows_file)
    options.model = model
    about = {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": options.model.name,
        "settings": {k: v for k, v in vars(options).items() if k in ("pairs", "rows", "micro_steps", "length", "vllm")},
    }
    result = about | {"results": found, "peak_memory_mib": peak_memory(options)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
