"""Adapters whose every weight counts, and what a model of them says."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from entrl.models.fold import fixed_prompts, forward, tolerance
from entrl.models.load import load_policy

SHAPE = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def save_adapter(base: str, folder: Path, *, std: float = 0.02, **options: Any) -> str:
    """An adapter whose every weight counts; `std` of its random part."""
    model, tokenizer = load_policy(base, dtype="float32", device="cpu")
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**SHAPE, **options}))
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter += std * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def logits(path: str | Path) -> torch.Tensor:
    model, _ = load_policy(str(path), dtype="float32", device="cpu")
    return forward(model, fixed_prompts(model.get_input_embeddings()))


def close(found: torch.Tensor, wanted: torch.Tensor, model: Any) -> bool:
    return bool((found - wanted).abs().max() <= tolerance(model) * wanted.abs().max())
