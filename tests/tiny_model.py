"""A random two-layer Qwen3 with a character tokenizer, and trainers around it: what the trainer tests share."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig

from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl_lab.nursery.tokenizer import character_tokenizer


def tiny_model(*, seed: int = 0, hidden: int = 32, vocabulary: Any = None) -> Qwen3ForCausalLM:
    """Random weights, as large as a test needs. `hidden` is a multiple of 16; vocabulary: a tokenizer."""
    tokenizer = vocabulary or character_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # wide enough that the distributions are far from uniform
    )
    return Qwen3ForCausalLM(config)


def saved_model(folder: Path, **kwargs: Any) -> str:
    """A folder with the tiny model and its tokenizer (a reference model is loaded from there)."""
    tiny_model(**kwargs).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


def prompts(count: int = 64, *, conversational: bool = False) -> Dataset:
    texts = [f"{i}+{i + 1}=" for i in range(count)]
    rows = [[{"role": "user", "content": t}] for t in texts] if conversational else texts
    return Dataset.from_dict({"prompt": rows, "answer": [str(2 * i + 1) for i in range(count)]})


def digits(completions: list, **_: object) -> list[float]:
    """A plain TRL reward: how many digits were written."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(ch.isdigit() for ch in t)) for t in texts]


def options(folder: Path, *, plain: bool = False, **kwargs: Any) -> GRPOConfig:
    """Four rows a micro-batch in groups of four, on the CPU in float32, logging every step."""
    defaults = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return (GRPOConfig if plain else EntropyGRPOConfig)(**(defaults | kwargs))


def trainer(
    folder: Path, rewards: Any = digits, *, controllers: Any = (), cls: Any = EntropyGRPOTrainer, **kwargs: Any
):
    """A trainer of `cls`; keyword arguments beside the named ones are options of the configuration."""
    passed = {k: kwargs.pop(k) for k in ("peft_config", "rollout_func", "eval_dataset", "curriculum") if k in kwargs}
    extra = {"controllers": controllers} if controllers else {}
    model = kwargs.pop("model", None)
    dataset = kwargs.pop("train_dataset", None)
    return cls(
        tiny_model() if model is None else model,
        rewards,
        options(folder, **kwargs),
        train_dataset=prompts() if dataset is None else dataset,
        processing_class=character_tokenizer(),
        **passed,
        **extra,
    )


def parameters(of: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in of.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
