"""What the folder of a reward model lacks, said from its files alone, before anything is generated.

Looked at: configuration, tokenizer, whole weight files, and a head with one score (`AutoModelForSequenceClassification`
of one label, as `entrl_rewards.reward_model` and TRL load it). Without one its scores would be random numbers. A hub
id, weights that are no safetensors, and foreign code are left to whoever loads them.
"""

import json
from pathlib import Path
from typing import Any

from entrl.models.folder import TOKENIZERS, stored_shapes, weight_problems


def scorer_problem(path: str) -> str | None:
    """path: a folder that exists"""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        return "the folder holds no config.json; name the one that save_pretrained wrote"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return f"the folder holds no tokenizer ({TOKENIZERS[0]}); save the model's there"
    try:
        if "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
            return None
        head = _head(folder)
    except Exception as error:  # whatever a damaged or strange configuration makes transformers raise
        return f"no model that scores can be made of its config.json ({' '.join(str(error).split())[:160]})"
    if broken := weight_problems(folder):
        return broken[0].removeprefix("model.path: ")
    stored = stored_shapes(folder)
    if not stored:
        return None
    if lacking := sorted(set(head) - set(stored)):
        return (
            f"it has no {', '.join(lacking[:3])}, which would be random numbers; name a model that was trained to "
            "score (a sequence-classification one)"
        )
    wrong = [f"{name} is {stored[name]} and not {shape}" for name, shape in head.items() if stored[name] != shape]
    return f"its head does not give one score ({wrong[0]}); name a model with one label" if wrong else None


def _head(folder: Path) -> dict[str, tuple[int, ...]]:
    """What a scoring model has besides its base: name -> shape."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, num_labels=1)
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    base = f"{model.base_model_prefix}."
    return {name: tuple(w.shape) for name, w in model.state_dict().items() if not name.startswith(base)}
