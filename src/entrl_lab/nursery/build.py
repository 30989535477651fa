"""`entrl nursery`: teach a small Qwen3 the mixture of `traces` by SFT, measure it, and write it with a manifest.

The same config, library versions and kind of processor give the same weights, byte for byte; the manifest holds their
SHA-256, so a rebuilt base can be told from the shipped one. Lessons come from the train side of the task `sums`; the
measurement uses the test side, which shares no problem with it.
"""

import argparse
import hashlib
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from entrl.settings.provenance import built_from
from entrl.tasks import load_task
from entrl.tasks.traces import Mixture, lesson
from entrl.version import __version__
from entrl_lab.nursery.calibration import Calibration, calibrate
from entrl_lab.nursery.tokenizer import END, PAD, character_tokenizer

LESSON_SEED = 1_000_000  # added to the seed of the task, so that recipes (small seeds) draw other problems
TEST_SEED = 2_000_000
PRACTICE = Mixture(think=1.0, slip=0.0, check=0.15)
LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "reasoning-gym")


@dataclass(frozen=True, kw_only=True)
class NurseryConfig:
    """How the base is built. Widths and steps are ours, chosen so that one core needs about ten minutes."""

    seed: int = 0
    practice_steps: int = 2000  # first: every lesson thinks and none slips, the quick way to learn the arithmetic
    steps: int = 400  # then: optimiser steps on the mixture
    batch_size: int = 32  # half of 64 learns the arithmetic in half of the lessons
    practice_learning_rate: float = 2.5e-3  # peak; cosine to 0 after `warmup_steps`
    learning_rate: float = 2.5e-3  # the same, for the mixture
    warmup_steps: int = 50
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 384
    max_positions: int = 512
    threads: int = 1  # part of the config: another count sums in another order and gives other weights
    calibration_problems: int = 200
    calibration_samples: int = 8
    mixture: Mixture = field(default_factory=Mixture)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "threads", "calibration_problems", "calibration_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.practice_steps < 0:
            raise ValueError(f"practice_steps must be >= 0, got {self.practice_steps}")
        for name in ("practice_learning_rate", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


def untrained_model(tokenizer: PreTrainedTokenizerFast, config: NurseryConfig) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights from torch's generator."""
    vocabulary = tokenizer.get_vocab()
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[PAD],
            dtype=torch.float32,
        )
    )


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


def teach(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Dataset,
    config: NurseryConfig,
    *,
    steps: int,
    rate: float,
) -> None:
    """SFT on the completions only, in order; TRL appends the end token."""
    with tempfile.TemporaryDirectory() as scratch:  # the trainer wants a folder, nothing is kept in it
        args = SFTConfig(
            output_dir=scratch,
            seed=config.seed,
            max_steps=steps,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=config.batch_size,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=config.warmup_steps,
            completion_only_loss=True,
            max_length=config.max_positions,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=100,
            disable_tqdm=True,
        )
        SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer).train()


def build(out: Path, config: NurseryConfig) -> dict[str, Any]:
    """Train, measure and write model, tokenizer and manifest; the manifest comes back."""
    started = time.perf_counter()
    model, tokenizer = train(config)
    seconds = time.perf_counter() - started
    problems = load_task("sums", split="test", size=config.calibration_problems, seed=TEST_SEED)
    rows = [dict(row) for row in problems]
    measured = calibrate(model, tokenizer, rows, samples=config.calibration_samples, seed=config.seed)
    out.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True  # the trainer turned it off
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone, and a wheel would keep that
    tokenizer.save_pretrained(out)
    manifest = manifest_of(out, config, measured, parameters=model.num_parameters(), seconds=seconds)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def manifest_of(
    out: Path, config: NurseryConfig, measured: Calibration, *, parameters: int, seconds: float
) -> dict[str, Any]:
    """What was built, from what, and what it can do."""
    return {
        "name": "tiny-reasoner",
        "entrl": __version__,
        "commit": built_from(Path(__file__).parent, ".", "../../entrl/tasks"),
        "versions": {name: version(name) for name in LIBRARIES},
        "config": asdict(config),
        "parameters": parameters,
        "training_seconds": round(seconds, 1),
        "weights_sha256": sha256(out / "model.safetensors"),
        "tokenizer_sha256": sha256(out / "tokenizer.json"),
        "calibration": measured.as_dict(),
    }


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
