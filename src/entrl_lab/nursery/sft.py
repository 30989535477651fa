"""What every builder of a character-level base shares: an untrained Qwen3, SFT on lessons, the files that are written.

The same config, library versions and kind of processor give the same weights, byte for byte; the manifest holds their
SHA-256, so a rebuilt base can be told from the shipped one.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from entrl.settings.provenance import built_from
from entrl.version import __version__
from entrl_lab.nursery.tokenizer import END, PAD

LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "reasoning-gym")


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Shape and schedule; the defaults are the tiny reasoner's."""

    seed: int = 0
    batch_size: int = 32  # lessons a step
    warmup_steps: int = 50
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 384
    max_positions: int = 512
    threads: int = 1  # part of the config: another count sums in another order and gives other weights

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


def untrained_model(tokenizer: PreTrainedTokenizerFast, config: BaseConfig) -> Qwen3ForCausalLM:
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


def teach(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Dataset,
    config: BaseConfig,
    *,
    steps: int,
    rate: float,
    accumulate: int = 1,
) -> None:
    """SFT on the completions only, in order, cosine from `rate` to 0; TRL appends the end token.

    accumulate: batches of `batch_size` to a step; the loss is a mean over the tokens of all of them.
    """
    with tempfile.TemporaryDirectory() as scratch:  # the trainer wants a folder, nothing is kept in it
        args = SFTConfig(
            output_dir=scratch,
            seed=config.seed,
            max_steps=steps,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=accumulate,
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


def write_base(
    out: Path,
    name: str,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: BaseConfig,
    *,
    seconds: float,
    calibration: Mapping[str, Any],
) -> dict[str, Any]:
    """Model, tokenizer and manifest; the manifest comes back."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True  # the trainer turned it off
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone, and a wheel would keep that
    tokenizer.save_pretrained(out)
    manifest = {
        "name": name,
        "entrl": __version__,
        "commit": built_from(Path(__file__).parent, ".", "../../entrl/tasks"),
        "versions": {library: version(library) for library in LIBRARIES},
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "training_seconds": round(seconds, 1),
        "weights_sha256": sha256(out / "model.safetensors"),
        "tokenizer_sha256": sha256(out / "tokenizer.json"),
        "calibration": dict(calibration),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
