"""What entropy costs per optimiser step: stock TRL GRPO against ours, same model, data, schedule and lengths.

    ratio(arm) = seconds(arm) / seconds(stock)    per repetition, in one process, order of the arms rotating
    reported:  exp(mean log ratio) -+ Student's t 95 % interval over the repetitions

Schedules: `stale` makes two optimiser steps per rollout (KL-Cov acts, TRL runs its own scoring pass), `on_policy`
one (KL-Cov would be refused; PEAR needs one forward pass that TRL does not make). Every completion is forced to its
full length, so no arm saves time by writing less. Verification is in every arm. The model is random.

    python benchmarks/step_overhead.py [--repetitions 6] [--steps 8] [--vocab 32768] [--out result.json]

A second vocabulary size shows what entropies over a wide softmax add. Needs no weights; CPU or one GPU.
"""

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from entrl_rewards.accuracy import Accuracy
from entrl_rewards.pear import Pear
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from entrl.controllers.kl_cov import KLCov
from entrl.stats.pairing import seed_ratio
from entrl.tasks import load_task
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl_lab.nursery.tokenizer import character_tokenizer

WARM_UP = 2  # optimiser steps not timed; a multiple of both schedules' steps per rollout


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    ours: bool
    reward: Callable[..., Any]
    controllers: Callable[[], list[Any]] = field(default=list)


ACCURACY = Accuracy()


def coin(completions: list[str], **columns: Any) -> list[float]:
    """Verify like every run does, then pay by a coin: a random model is never right, and without spread in the
    rewards the controllers would have no tokens to look at."""
    ACCURACY(completions=completions, **columns)
    return [float(sum(map(ord, text)) % 2) for text in completions]


PEAR = Pear(correctness=coin, floor=None)  # a random model's entropies are far above the default floor's range
STOCK = Arm(name="stock", ours=False, reward=coin)
ARMS = {
    "stale": [
        STOCK,
        Arm(name="ours, all off", ours=True, reward=coin),
        Arm(name="PEAR", ours=True, reward=PEAR),
        Arm(name="KL-Cov", ours=True, reward=coin, controllers=lambda: [KLCov()]),
        Arm(name="PEAR + KL-Cov", ours=True, reward=PEAR, controllers=lambda: [KLCov()]),
    ],
    "on_policy": [
        STOCK,
        Arm(name="ours, all off", ours=True, reward=coin),
        Arm(name="PEAR", ours=True, reward=PEAR),
    ],
}
STEPS_PER_ROLLOUT = {"stale": 2, "on_policy": 1}


class Stopwatch(TrainerCallback):
    """Seconds from the end of the warm-up to the end of training."""

    def __init__(self) -> None:
        self.started = self.stopped = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == WARM_UP:
            self.started = time.perf_counter()
        self.stopped = time.perf_counter()


def random_model(tokenizer: Any, vocab: int | None) -> Qwen3ForCausalLM:
    """The tiny reasoner's shape, with a wider vocabulary where one is asked for."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab or len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def options(arm: Arm, schedule: str, folder: str, args: argparse.Namespace) -> GRPOConfig:
    kind = EntropyGRPOConfig if arm.ours else GRPOConfig
    return kind(
        output_dir=folder,
        per_device_train_batch_size=args.rows,
        steps_per_generation=STEPS_PER_ROLLOUT[schedule],
        num_generations=8,
        max_completion_length=args.length,
        generation_kwargs={"min_new_tokens": args.length},
        max_steps=WARM_UP + args.steps,
        learning_rate=1e-5,
        scale_rewards="batch",
        beta=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def time_arm(arm: Arm, schedule: str, dataset: Any, vocab: int | None, args: argparse.Namespace) -> float:
    """Seconds per optimiser step after the warm-up, generation included."""
    tokenizer = character_tokenizer()
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        extra = {"controllers": arm.controllers()} if arm.ours else {}
        trainer = (EntropyGRPOTrainer if arm.ours else GRPOTrainer)(
            random_model(tokenizer, vocab),
            arm.reward,
            options(arm, schedule, folder, args),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[watch],
            **extra,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return (watch.stopped - watch.started) / args.steps


def measure(schedule: str, dataset: Any, vocab: int | None, args: argparse.Namespace) -> dict[str, Any]:
    arms = ARMS[schedule]
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for repetition in range(args.repetitions):
        turn = repetition % len(arms)  # the order rotates, so a drift of the machine hits every arm alike
        for arm in arms[turn:] + arms[:turn]:
            seconds[arm.name].append(time_arm(arm, schedule, dataset, vocab, args))
    return {name: summary(values, seconds["stock"]) for name, values in seconds.items()}


def summary(values: list[float], stock: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"seconds_per_step": values}
    if values is not stock and len(values) > 1:
        row["ratio"], *row["ratio_ci"] = seed_ratio(stock, values)
    return row


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def print_table(result: dict[str, Any]) -> None:
    print(f"{'schedule':<22}{'arm':<18}{'s/step':>8}{'ratio':>8}  95 % interval")
    for name, arms in result.items():
        for arm, row in arms.items():
            values = sorted(row["seconds_per_step"])
            line = f"{name:<22}{arm:<18}{values[len(values) // 2]:>8.3f}"
            if "ratio" in row:
                low, high = row["ratio_ci"]
                line += f"{row['ratio']:>8.3f}  [{low:.3f}, {high:.3f}]"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per step, stock TRL against ours.")
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="timed optimiser steps per run, even")
    parser.add_argument("--rows", type=int, default=32, help="completions per optimiser step")
    parser.add_argument("--length", type=int, default=64, help="tokens of every completion")
    parser.add_argument("--vocab", type=int, default=32_768, help="second vocabulary size; 0 leaves it out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dataset = load_task("sums", split="train", size=256, seed=0)
    result = {schedule: measure(schedule, dataset, None, args) for schedule in ARMS}
    if args.vocab:
        result[f"stale, V={args.vocab}"] = measure("stale", dataset, args.vocab, args)
    print_table(result)
    if args.out:
        about = {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
        }
        args.out.write_text(json.dumps(about | {"results": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
