"""The overthinker and its twin: teach a small Qwen3 the lessons of `entrl.tasks.rechecks`.

    entrl nursery --model tiny-overthinker --out DIR              (or overthinker-flat)

First the derivation alone, which is short and brings the arithmetic, then lessons with re-checks, then the same with
flatter frequencies, which multiplying the logits turns back: what is nearly certain is certain after that. Problems are
the lessons' part of the train side of `additions` and single steps; each returns many times, every time with other
re-checks.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from entrl_rewards.accuracy import reward
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, set_seed

from entrl.tasks import load_task
from entrl.tasks.rechecks import Overthinking, needed_length, overthinking_lesson
from entrl_lab.nursery.calibration import complete
from entrl_lab.nursery.sft import BaseConfig, teach, untrained_model, write_base
from entrl_lab.nursery.tokenizer import character_tokenizer

MODELS = {"tiny-overthinker": Overthinking(), "overthinker-flat": Overthinking(uncertain_derivation=True)}
LEAST_ACCURACY, LEAST_RATIO = 0.995, 3  # conditions (a) and (c) of recipes/overthinker/README.md
MAX_NEW_TOKENS = 160  # the longest lesson has 129
LESSON_PROBLEMS, RL_PROBLEMS, TEST_PROBLEMS = 553, 245, 202  # all of `additions` with three terms


@dataclass(frozen=True, kw_only=True)
class OverthinkerConfig(BaseConfig):
    """How the two models are built. Widths and steps are ours."""

    practice_steps: int = 500  # derivation and answer alone, one batch a step
    steps: int = 700  # with re-checks, `batches` batches a step
    polish_steps: int = 300  # the same with lessons flattened by `sharpen`, before the logits are multiplied by it
    batches: int = 2
    practice_learning_rate: float = 2.5e-3  # peak; cosine to 0 after `warmup_steps`
    learning_rate: float = 2.5e-3  # the same, for the lessons with re-checks
    polish_learning_rate: float = 1e-3
    sharpen: float = 1.5  # >= 1; what is nearly certain gets certain, and slips that sampling would meet are gone
    batch_size: int = 32
    layers: int = 3
    intermediate: int = 256
    calibration_problems: int = TEST_PROBLEMS
    calibration_samples: int = 8
    style: Overthinking = MODELS["tiny-overthinker"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"practice_steps": 0, "steps": 0, "polish_steps": 0, "calibration_problems": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")


CONFIGS = {
    "tiny-overthinker": OverthinkerConfig(),
    "overthinker-flat": OverthinkerConfig(style=MODELS["overthinker-flat"]),
}


def lessons(config: OverthinkerConfig) -> tuple[Dataset, Dataset, Dataset]:
    """Practice, full lessons, polish, in the order they are taught; each round goes through all problems once.

    Beside the train side stand sums of two numbers, and of three that start from 10 to 18: together they have every
    step of a derivation, first and second. From the train side alone some steps of test problems (15+5 after 9+6)
    could not be learnt.
    """
    problems = [
        *load_task({"task": "additions", "part": "sft"}, size=LESSON_PROBLEMS)["prompt"],
        *(f"{total}+{digit}=" for total in range(19) for digit in range(10)),
        *(f"{total}+{step}+{digit}=" for step in (0, 1) for total in range(10, 19 - step) for digit in range(10)),
    ]
    rng = random.Random(config.seed)
    together = config.batches * config.batch_size
    practice = replace(config.style, rechecks=False)
    polish = replace(config.style, flatten=config.sharpen)
    return (
        _rows(problems, rng, style=practice, size=config.practice_steps * config.batch_size, together=1),
        _rows(problems, rng, style=config.style, size=config.steps * together, together=together),
        _rows(problems, rng, style=polish, size=config.polish_steps * together, together=together),
    )


def _rows(prompts: list[str], rng: random.Random, *, style: Overthinking, size: int, together: int) -> Dataset:
    """together: lessons to an optimiser step that are sorted by length, so that batches of them need less padding."""
    asked: list[str] = []
    while len(asked) < size:
        asked += rng.sample(prompts, len(prompts))
    rows = [{"prompt": prompt, "completion": overthinking_lesson(prompt, rng, style=style)} for prompt in asked[:size]]
    parts = [rows[start : start + together] for start in range(0, size, together)]
    return Dataset.from_list([row for part in parts for row in sorted(part, key=lambda row: len(row["completion"]))])


def train(config: OverthinkerConfig) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The three parts of `lessons`, each with an optimiser and a schedule of its own; then the logits are sharpened."""
    torch.set_num_threads(config.threads)
    set_seed(config.seed)
    tokenizer = character_tokenizer(max_length=config.max_positions)
    model = untrained_model(tokenizer, config)
    for rows, steps, rate, batches in zip(
        lessons(config),
        (config.practice_steps, config.steps, config.polish_steps),
        (config.practice_learning_rate, config.learning_rate, config.polish_learning_rate),
        (1, config.batches, config.batches),
        strict=True,
    ):
        if steps:
            teach(model, tokenizer, rows, config, steps=steps, rate=rate, accumulate=batches)
    return sharpened(model.eval(), config.sharpen), tokenizer


@torch.no_grad()
def sharpened(model: Qwen3ForCausalLM, by: float) -> Qwen3ForCausalLM:
    """The same model with its logits multiplied, by way of the last norm's weights; what was uniform stays so."""
    model.model.norm.weight.mul_(by)
    return model


def build(out: Path, name: str, config: OverthinkerConfig) -> dict[str, Any]:
    """Train, measure and write model, tokenizer and manifest; the manifest comes back."""
    started = time.perf_counter()
    model, tokenizer = train(config)
    seconds = time.perf_counter() - started
    rows = [dict(row) for row in load_task("additions", split="test", size=config.calibration_problems)]
    measured = calibrate(model, tokenizer, rows, samples=config.calibration_samples, seed=config.seed)
    return write_base(out, name, model, tokenizer, config, seconds=seconds, calibration=measured)


def calibrate(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    *,
    samples: int,
    seed: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, float]:
    """Shares and mean tokens of sampled completions, and greedy accuracy; leaves torch's generator seeded."""
    torch.manual_seed(seed)
    found: dict[str, float] = {"problems": len(rows), "samples": samples, "max_new_tokens": max_new_tokens}
    for kind, each in (("greedy", 1), ("sampled", samples)):
        asked = [row for row in rows for _ in range(each)]
        prompts = [row["prompt"] for row in asked]
        ids = complete(model, tokenizer, prompts, sample=kind == "sampled", max_new_tokens=max_new_tokens)
        right = reward.score(
            tokenizer.batch_decode(ids, skip_special_tokens=True),
            [row["answer"] for row in asked],
            [row["verifier"] for row in asked],
        )
        found[f"{kind}_accuracy"] = sum(map(bool, right)) / len(asked)
        found[f"{kind}_length"] = sum(map(len, ids)) / len(asked)
        found[f"{kind}_truncated"] = sum(one[-1] != tokenizer.eos_token_id for one in ids) / len(asked)
    found["needed_length"] = sum(needed_length(row["prompt"]) for row in rows) / len(rows)
    return found


def complaints(calibration: dict[str, float]) -> list[str]:
    """Why a base is no overthinker; `entrl_lab.nursery.conditions` measures it thoroughly."""
    found = []
    if calibration["sampled_accuracy"] < LEAST_ACCURACY:
        found.append(f"sampled_accuracy is {calibration['sampled_accuracy']:.4f}, below {LEAST_ACCURACY}")
    if calibration["sampled_length"] < LEAST_RATIO * calibration["needed_length"]:
        found.append(
            f"sampled_length is {calibration['sampled_length']:.1f}, below {LEAST_RATIO} times needed_length "
            f"{calibration['needed_length']:.1f}"
        )
    if calibration["greedy_truncated"]:
        found.append(f"greedy_truncated is {calibration['greedy_truncated']:.3f}, above 0")
    return found


def main(argv: list[str] | None = None, *, name: str) -> int:
    """The command; returns 1 when the base does not overthink."""
    defaults = CONFIGS[name]
    parser = argparse.ArgumentParser(
        prog=f"entrl nursery --model {name}",
        description="Build an overthinking base; or measure one: --conditions FILE.json, and --help.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not hold a model yet")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--practice-steps", type=int, default=defaults.practice_steps, help="optimiser steps without")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="and with re-checks, after them")
    parser.add_argument("--polish-steps", type=int, default=defaults.polish_steps, help="and with flattened ones")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="lessons per step")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="torch threads; changes the weights")
    parser.add_argument(
        "--problems", type=int, default=defaults.calibration_problems, help="test problems the base is measured on"
    )
    options = parser.parse_args(argv)
    if (options.out / "model.safetensors").exists():
        parser.error(f"{options.out} already holds a model; name another folder, or remove it first")
    names = ("seed", "practice_steps", "steps", "polish_steps", "batch_size", "threads")
    try:
        config = replace(
            defaults, **{key: getattr(options, key) for key in names}, calibration_problems=options.problems
        )
    except ValueError as error:
        parser.error(str(error))
    manifest = build(options.out, name, config)
    print(json.dumps({key: manifest[key] for key in ("parameters", "training_seconds", "calibration")}, indent=2))
    found = complaints(manifest["calibration"])
    for complaint in found:
        print(f"no overthinker: {complaint}")
    return 1 if found else 0
