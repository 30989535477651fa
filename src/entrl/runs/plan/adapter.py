"""The `lora` group: what TRL or peft would stop at or train nothing with, and names that the model has not."""

import math
import re
from collections.abc import Sequence
from typing import Any

from entrl.diagnosis.bounds import BEYOND
from entrl.models.load import on_meta

TRL_PEFT_TASK = "CAUSAL_LM"
NEEDS_DATA = ("eva", "corda", "lora_ga")  # starts that peft makes of activations or gradients


def adapter_problems(lora: Any) -> list[str]:
    """What TRL or peft would stop at, or train nothing with."""
    if lora is None:
        return []
    out = []
    if lora.task_type != TRL_PEFT_TASK:
        out.append(f"lora.task_type must be {TRL_PEFT_TASK}, got {lora.task_type!r}; leave it out")
    if getattr(lora, "r", 1) < 1:
        out.append(f"lora.r must be at least 1, got {lora.r}")
    if not 0 <= getattr(lora, "lora_dropout", 0) < 1:
        out.append(f"lora.lora_dropout must be at least 0 and below 1 (a share), got {lora.lora_dropout:g}")
    if not 0 <= getattr(lora, "lora_alpha", 0) < math.inf:
        out.append(f"lora.lora_alpha must be a finite number above 0, got {lora.lora_alpha}")
    if lora.inference_mode:
        out.append("lora.inference_mode: true freezes the adapter, and nothing would be trained; leave it out")
    if (start := getattr(lora, "init_lora_weights", True)) in NEEDS_DATA:
        out.append(
            f"lora.init_lora_weights {start} is computed from data beforehand, which training does not do; set it to "
            "true, gaussian, orthogonal, pissa or olora"
        )
    targets = getattr(lora, "target_modules", None) or ()
    if not isinstance(targets, str) and "lm_head" in targets:
        out.append(
            "lora.target_modules names lm_head, whose adapter TRL would never train (it reads lm_head.weight "
            "directly); leave it out, or set lora.modules_to_save: [lm_head]"
        )
    return out


def adapter_warnings(lora: Any, config: Any) -> list[str]:
    """Names of an adapter that the model has no module for, beside others it has, which peft takes in silence.

    config: of the model, built here without memory
    """
    if lora is None:
        return []
    modules = [name for name, _ in on_meta(config).named_modules()]
    out = []
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        given = getattr(lora, option, None) or ()
        idle = [] if isinstance(given, str) else sorted(n for n in given if not _names_any(n, modules))
        if idle:
            out.append(f"lora.{option} names {', '.join(idle)}, which no module of the model is called; correct it")
    layers, count = getattr(lora, "layers_to_transform", None), config.get_text_config().num_hidden_layers
    beyond = [i for i in ([layers] if isinstance(layers, int) else layers or []) if i >= count]
    if beyond:
        out.append(f"lora.layers_to_transform names {beyond}, and the model's layers are 0 to {count - 1}; correct it")
    for option in ("rank_pattern", "alpha_pattern"):
        idle = [name for name in getattr(lora, option, None) or {} if not any(_matches(name, m) for m in modules)]
        if idle:
            out.append(f"lora.{option} names {', '.join(idle)}, which no module of the model is called; correct it")
    width = getattr(config.get_text_config(), "hidden_size", None)
    if width and getattr(lora, "r", 0) > width:
        out.append(
            f"lora.r of {lora.r} is above the model's width of {width}: the adapter has more weights than the layers "
            "it is put on; lower it"
        )
    if getattr(lora, "lora_alpha", None) == 0:
        out.append("lora.lora_alpha is 0, which the adapter is multiplied by: nothing will be trained; set it above 0")
    return out + _scale_warnings(lora)


def _scale_warnings(lora: Any) -> list[str]:
    """The factor that peft puts before an adapter, of the whole and of layers that have their own."""
    usual, alpha, rank = BEYOND["lora.lora_alpha over lora.r"], getattr(lora, "lora_alpha", 0), getattr(lora, "r", 0)
    alphas = {"lora.lora_alpha": alpha}
    alphas |= {
        f"lora.alpha_pattern.{name}": size for name, size in (getattr(lora, "alpha_pattern", None) or {}).items()
    }
    root = math.sqrt(rank) if getattr(lora, "use_rslora", False) else rank
    return [
        f"{where} of {size:g} over {root:g} (of lora.r) is {size / root:g}: {usual.why}; set it nearer, unless meant"
        for where, size in alphas.items()
        if size and root and not usual.low <= size / root <= usual.high
    ]


def _names_any(name: str, modules: Sequence[str]) -> bool:
    """By peft's rule: the whole dotted name, or its last parts."""
    return any(module == name or module.endswith(f".{name}") for module in modules)


def _matches(pattern: str, module: str) -> bool:
    """By peft's rule for `rank_pattern`: a regular expression for the name's end."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False


def target_problem(lora: Any, config: Any, error: BaseException) -> str:
    """What peft says of a `lora` group that it cannot put on the model, with the key and the names there are."""
    why = str(error).strip().splitlines()[0][:160]
    named = next((f"lora.{option}: " for option in ("init_lora_weights", "bias") if option in why), None)
    if named is not None:
        return f"{named}{why}; leave it out for peft's own"
    linear = sorted(
        {name.rpartition(".")[2] for name, module in on_meta(config).named_modules() if hasattr(module, "in_features")}
    )
    excluded = " and lora.exclude_modules" if getattr(lora, "exclude_modules", None) else ""
    return (
        f"lora.target_modules{excluded}: {why} Name some of the model's, as a list: {', '.join(linear)}; or write "
        "all-linear"
    )
