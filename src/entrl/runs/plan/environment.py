"""Environment variables that accelerate and torch read: values that neither could use, said before."""

import importlib.util
import os
from collections.abc import Mapping

NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
PRECISIONS = ("no", "fp16", "bf16", "fp8")
TRUE = ("1", "true", "yes", "y", "t", "on")


def variable_problems(environ: Mapping[str, str] | None = None) -> list[str]:
    """Each with the variable's name. environ: None for this process's."""
    given = os.environ if environ is None else environ
    out = [
        f"{name} is {given[name]!r} in the environment and must be a number; `unset {name}`, a launcher sets it"
        for name in NUMBERS
        if name in given and not given[name].strip().lstrip("-").isdigit()
    ]
    precision = given.get("ACCELERATE_MIXED_PRECISION")
    if precision is not None and precision.lower() not in PRECISIONS:
        out.append(
            f"ACCELERATE_MIXED_PRECISION is {precision!r} in the environment and must be one of "
            f"{', '.join(PRECISIONS)}; correct mixed_precision in the accelerate file, or unset it (trainer.bf16 says "
            "what is trained in)"
        )
    return [*out, *_dynamo(given), *_sharding(given)]


def _dynamo(given: Mapping[str, str]) -> list[str]:
    from accelerate.utils import DynamoBackend

    name = given.get("ACCELERATE_DYNAMO_BACKEND")
    known = [backend.value for backend in DynamoBackend]
    if name is None or name.upper() in known:
        return []
    return [
        f"ACCELERATE_DYNAMO_BACKEND is {name!r} in the environment and must be one of {', '.join(known)}; correct it, "
        "or unset it"
    ]


def _sharding(given: Mapping[str, str]) -> list[str]:
    import torch

    out = []
    if given.get("ACCELERATE_USE_FSDP", "").lower() in TRUE and not torch.accelerator.is_available():
        out.append(
            "ACCELERATE_USE_FSDP is set in the environment, and on the CPU accelerate silently trains as DDP; unset "
            "it, or train on GPUs"
        )
    if given.get("ACCELERATE_USE_DEEPSPEED", "").lower() in TRUE and importlib.util.find_spec("deepspeed") is None:
        out.append(
            "ACCELERATE_USE_DEEPSPEED is set in the environment and deepspeed is not installed here; unset it, or "
            "install deepspeed"
        )
    return out
