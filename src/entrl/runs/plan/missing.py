"""What a run needs and this machine lacks, which another one may have: engines, trackers, kernels, optimisers.

`entrl plan` lists it as not checked from here; `entrl train` stops at it.
"""

import importlib.util
from typing import Any

from entrl.engines.local import missing as missing_vllm
from entrl.models.folder import missing_weights
from entrl.models.quantization import missing_bitsandbytes
from entrl.runs.recipe import Recipe

# optimisers of transformers by a part of their name -> the package that they come from
OPTIMISERS = {
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
    "bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "torchao": "torchao",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
}
KERNELS = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}
KNOWN_ATTENTION = ("eager", "sdpa", "flex_attention", *KERNELS)


def missing_here(recipe: Recipe, args: Any) -> list[str]:
    """Each with the package and the way around it."""
    found = [
        missing_weights(recipe.model),
        _missing_engine(args),
        _missing_evaluator(recipe),
        missing_bitsandbytes(recipe.model.quantization),
        _missing_hub(args),
        _missing_kernel(recipe.model.attn_implementation),
        _missing_optimiser(str(getattr(args.optim, "value", args.optim))),
        *(_missing_tracker(name) for name in trackers(args)),
    ]
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        found.append("use_liger_kernel is set and liger-kernel is not installed here; pip install liger-kernel")
    return [text for text in found if text is not None]


def _missing_engine(args: Any) -> str | None:
    if args.use_vllm and args.vllm_mode == "colocate" and (why := missing_vllm()):
        return f"trainer.use_vllm: {why}, or set use_vllm: false"
    return None


def _missing_evaluator(recipe: Recipe) -> str | None:
    spec = recipe.eval
    if spec is not None and spec.engine == "vllm" and not spec.servers and (why := missing_vllm()):
        return f"eval.engine: {why}, or set eval.engine: transformers"
    return None


def _missing_hub(args: Any) -> str | None:
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not args.push_to_hub or not (HF_HUB_OFFLINE or (args.hub_token is None and get_token() is None)):
        return None
    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "there is no token of the hub's here (`hf auth login`)"
    return f"trainer.push_to_hub: {why}; mend that, or set push_to_hub: false"


def _missing_kernel(name: str | None) -> str | None:
    package = "kernels" if "/" in (name or "") else KERNELS.get(name or "")
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"model.attn_implementation {name} needs {package}, which is not installed here; install it, or take sdpa"


def _missing_optimiser(name: str) -> str | None:
    package = next((package for part, package in OPTIMISERS.items() if part in name), None)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"trainer.optim {name} needs {package}, which is not installed here; install it, or take adamw_torch_fused"


def trackers(args: Any) -> list[str | None]:
    """As they are written; null stays None."""
    named = args.report_to
    return [named] if isinstance(named, str) else list(named or [])


def _missing_tracker(name: str | None) -> str | None:
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if name not in INTEGRATION_TO_CALLBACK or name == "flyte" or name in get_available_reporting_integrations():
        return None  # a name that no machine knows is no package to install (`name_problems`)
    return f"trainer.report_to names {name}, which is not installed here; pip install {name}, or take it out"


def name_problems(recipe: Recipe, args: Any) -> list[str]:
    """Names that no machine knows."""
    from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    out = []
    if args.cache_implementation not in (None, *ALL_CACHE_IMPLEMENTATIONS):
        kinds = ", ".join(ALL_CACHE_IMPLEMENTATIONS)
        out.append(f"trainer.cache_implementation must be one of {kinds}, got {args.cache_implementation!r}")
    kernel = recipe.model.attn_implementation
    # one with a slash is a kernel of the hub's
    if kernel is not None and kernel not in KNOWN_ATTENTION and "/" not in kernel:
        out.append(f"model.attn_implementation must be one of {', '.join(KNOWN_ATTENTION)}, got {kernel!r}")
    known = {*INTEGRATION_TO_CALLBACK, "none", "all"}
    if None in trackers(args):
        out.append("trainer.report_to is null; write report_to: none for no tracker, or leave it out, which means none")
    out += [
        f"trainer.report_to names {name!r}, which transformers does not know; it knows {', '.join(sorted(known))}"
        for name in trackers(args)
        if name not in (None, *known)
    ]
    return out
