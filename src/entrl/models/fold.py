"""Fold an adapter into its base, W + delta, and hold the result to what it replaces.

The sum is taken in float32: adding a small update to 16-bit weights would lose it. Embeddings that base and output
layer share are parted first, because an adapter may change one of the two, and tied again where they end up equal.
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROWS, TOKENS = 4, 48  # of the fixed prompts
SLACK = 8.0  # times the expected round-off; a largest error over all logits lies some standard deviations out


def fold(model: Any, where: str) -> Any:
    """The plain model of a PeftModel, weights in the dtypes they had; ValueError where it would not be the same."""
    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning:
        raise ValueError(
            f"{where} is an adapter of kind {config.peft_type.value}, which adds no matrix to the base and cannot be "
            "folded in; take a LoRA adapter, or evaluate it as it is"
        )
    base = model.get_base_model()
    kept = _widen(base)
    ids_BT = fixed_prompts(base.get_input_embeddings(), config)
    before_BTV = forward(model, ids_BT)
    tied = _part(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no longer tied")  # said, and settled, below
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        merged = model.merge_and_unload(safe_merge=True)
    _settle_tie(merged, tied)
    compare(forward(merged, ids_BT), before_BTV, merged, f"the model with {where} folded in")
    for name, parameter in merged.named_parameters(remove_duplicate=False):
        parameter.data = parameter.data.to(kept.get(name, torch.float32))
    return merged.requires_grad_(True)  # peft froze the base


def _widen(base: Any) -> dict[str, torch.dtype]:
    """Bring all parameters to float32; their old dtypes, by the names they will have when the adapter is gone."""
    kept = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        kept[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = parameter.dtype
    for parameter in base.parameters():
        parameter.data = parameter.data.float()
    return kept


def _part(base: nn.Module) -> bool:
    """Give every layer that shares its weight with another one a copy of its own; whether there was one."""
    seen: set[int] = set()
    for module in base.modules():
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in seen:
            module._parameters["weight"] = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        seen.add(id(weight))
    return any(c.tie_word_embeddings for c in _configs(base))


def _configs(model: Any) -> Iterator[Any]:
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "tie_word_embeddings"):
            yield config


def _settle_tie(merged: Any, tied: bool) -> None:
    """Tie equal embeddings again; otherwise the configuration says that they are two."""
    if not tied:
        return
    table, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    same = torch.equal(table.weight, head.weight)
    if same:
        head.weight = table.weight
    for config in _configs(merged):
        config.tie_word_embeddings = same


def fixed_prompts(table: Any, config: Any = None) -> Tensor:
    """(B, T) token ids, the same for one vocabulary; tokens that an adapter trains by name are among them."""
    size = table.weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(size, (ROWS, TOKENS), generator=draw)
    named = getattr(config, "trainable_token_indices", None) or []
    trained = sorted({i for part in (named.values() if isinstance(named, dict) else [named]) for i in part})[:TOKENS]
    if trained:
        ids_BT[0, : len(trained)] = torch.tensor(trained)
    return ids_BT.to(table.weight.device)


@torch.no_grad()
def forward(model: Any, ids_BT: Tensor) -> Tensor:
    """(B, T, V) logits in float32, dropout off."""
    training = model.training
    try:
        return model.eval()(input_ids=ids_BT, use_cache=False).logits.float()
    finally:
        model.train(training)


def tolerance(model: Any) -> float:
    """Largest difference of two float32 forward passes of the same weights, as a share of the largest logit.

    A sum of n products in another order, or with W x + d x for (W + d) x, is off by about sqrt(n) u of its terms, u =
    2^-24 the unit round-off (Higham, Accuracy and Stability, section 4.2: errors of random sign). The errors of the M
    matrices that a token passes add up like independent ones, sqrt(M).
    """
    matrices = [p for p in model.parameters() if p.dim() == 2]
    width = max(p.shape[-1] for p in matrices)
    return SLACK * 2.0**-24 * math.sqrt(width * len(matrices))


def compare(found_BTV: Tensor, wanted_BTV: Tensor, model: Any, what: str) -> float:
    """The largest difference of logits; ValueError above `tolerance`, or where it is no number."""
    gap, size = float((found_BTV - wanted_BTV).abs().max()), float(wanted_BTV.abs().max())
    allowed = tolerance(model) * size
    if not gap <= allowed:  # NaN as well
        raise ValueError(
            f"{what} gives other logits: off by up to {gap:.3g} where float32 explains {allowed:.2g} (largest logit "
            f"{size:.3g}); please report this adapter's configuration. Base and adapter apart still work as model.path"
        )
    return gap


def round_to(model: Any, dtype: torch.dtype) -> None:
    """Store all parameters in `dtype`."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def check_saved(folder: Path, ids_BT: Tensor, wanted_BTV: Tensor) -> None:
    """Load `folder` as anybody would, in float32, and compare its logits."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    compare(forward(loaded, ids_BT), wanted_BTV, loaded, "the merged model, loaded again from disk,")
