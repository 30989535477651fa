"""`entrl nursery`: teach a small Qwen3 the mixture of `traces` by SFT, measure it, and write it with a manifest.

Lessons come from the train side of the task `sums`; the measurement uses the test side, and they share no problem.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, set_seed

from entrl.tasks import load_task
from entrl.tasks.traces import Mixture, lesson
from entrl_lab.nursery.calibration import Calibration, calibrate
from entrl_lab.nursery.sft import BaseConfig, teach, untrained_model, write_base
from entrl_lab.nursery.tokenizer import character_tokenizer

LESSON_SEED = 1_000_000  # added to the seed of the task, so that recipes (small seeds) draw other problems
TEST_SEED = 2_000_000
PRACTICE = Mixture(think=1.0, slip=0.0, check=0.15)


@dataclass(frozen=True, kw_only=True)
class NurseryConfig(BaseConfig):
    """How the base is built. Widths and steps are ours, chosen so that one core needs about ten minutes."""

    practice_steps: int = 2000  # first: every lesson thinks and none slips, the quick way to learn the arithmetic
    steps: int = 400  # then: optimiser steps on the mixture
    practice_learning_rate: float = 2.5e-3  # peak; cosine to 0 after `warmup_steps`
    learning_rate: float = 2.5e-3  # the same, for the mixture
    calibration_problems: int = 200
    calibration_samples: int = 8
    mixture: Mixture = field(default_factory=Mixture)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "calibration_problems", "calibration_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.practice_steps < 0:
            raise ValueError(f"practice_steps must be >= 0, got {self.practice_steps}")
        for name in ("practice_learning_rate", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


def lessons(config: NurseryConfig) -> tuple[Dataset, Dataset]:
    """Practice and mixture: one new problem per lesson, in the order they are taught."""
    practice = config.practice_steps * config.batch_size
    size = practice + config.steps * config.batch_size
    prompts = load_task("sums", split="train", size=size, seed=LESSON_SEED + config.seed)["prompt"]
    rng = random.Random(config.seed)
    mixtures = (PRACTICE if i < practice else config.mixture for i in range(size))
    rows = [{"prompt": p, "completion": lesson(p, rng, mixture=m)} for p, m in zip(prompts, mixtures, strict=True)]
    return Dataset.from_list(rows[:practice]), Dataset.from_list(rows[practice:])


def train(config: NurseryConfig) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Practice, then the mixture, each with an optimiser and a schedule of its own."""
    torch.set_num_threads(config.threads)
    set_seed(config.seed)
    tokenizer = character_tokenizer(max_length=config.max_positions)
    model = untrained_model(tokenizer, config)
    practice, mixture = lessons(config)
    if config.practice_steps:
        teach(model, tokenizer, practice, config, steps=config.practice_steps, rate=config.practice_learning_rate)
    teach(model, tokenizer, mixture, config, steps=config.steps, rate=config.learning_rate)
    return model.eval(), tokenizer


def build(out: Path, config: NurseryConfig) -> dict[str, Any]:
    """Train, measure and write model, tokenizer and manifest; the manifest comes back."""
    started = time.perf_counter()
    model, tokenizer = train(config)
    seconds = time.perf_counter() - started
    problems = load_task("sums", split="test", size=config.calibration_problems, seed=TEST_SEED)
    rows = [dict(row) for row in problems]
    measured = calibrate(model, tokenizer, rows, samples=config.calibration_samples, seed=config.seed)
    calibration = measured.as_dict()
    return write_base(out, "tiny-reasoner", model, tokenizer, config, seconds=seconds, calibration=calibration)


def _parser() -> argparse.ArgumentParser:
    defaults = NurseryConfig()
    about = "Build the tiny reasoner's base model. Others: --model tiny-inquirer or --model tiny-specifier, and --help."
    parser = argparse.ArgumentParser(prog="entrl nursery", description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not hold a model yet")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--practice-steps", type=int, default=defaults.practice_steps, help="optimiser steps of arithmetic"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimiser steps on the mixture, after them")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="lessons per step")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="peak, of the mixture")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="torch threads; changes the weights")
    parser.add_argument("--think", type=float, default=Mixture().think, help="share of lessons that think")
    parser.add_argument("--slip", type=float, default=Mixture().slip, help="share of steps that go wrong")
    parser.add_argument("--check", type=float, default=Mixture().check, help="share of steps done twice")
    parser.add_argument(
        "--problems", type=int, default=defaults.calibration_problems, help="test problems the base is measured on"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns 1 when the base is no good start for RL."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.out / "model.safetensors").exists():
        parser.error(f"{options.out} already holds a model; name another folder, or remove it first")
    try:
        config = NurseryConfig(
            seed=options.seed,
            practice_steps=options.practice_steps,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            threads=options.threads,
            calibration_problems=options.problems,
            mixture=Mixture(think=options.think, slip=options.slip, check=options.check),
        )
    except ValueError as error:
        parser.error(str(error))
    manifest = build(options.out, config)
    print(json.dumps({key: manifest[key] for key in ("parameters", "training_seconds", "calibration")}, indent=2))
    complaints = Calibration(**manifest["calibration"]).complaints()
    for complaint in complaints:
        print(f"not a good start for RL: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
