"""Refusals about what a trainer finds itself in: processes, backend, sharding, dropout. No name of TRL's."""

import os
from typing import Any

import torch


def check_surroundings(args: Any, accelerator: Any) -> None:
    """ValueError for a world size, a backend or a sharding other than the asked one."""
    wanted = getattr(args, "expected_world_size", None)
    real = accelerator.num_processes
    if wanted is not None and wanted != real:
        raise ValueError(
            f"world size {wanted} was asked for and {real} process(es) started; check num_processes and "
            "distributed_type of the accelerate config (launch/cpu_2.yaml starts two gloo ranks)"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != real:
        raise ValueError(
            f"the launcher started {launched} processes, but this one trains alone; on CPUs set use_cpu=True in "
            "the training arguments so that they join over gloo"
        )
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
    wanted = getattr(args, "expected_backend", None)
    if wanted is not None and wanted != backend:
        raise ValueError(
            f"backend {wanted!r} was asked for and the process group runs on {backend!r}; start with a launcher "
            "whose configuration gives that backend (launch/), or leave launch.backend out"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") and accelerator.device.type == "cpu":
        raise ValueError("FSDP was asked for on the CPU, where accelerate silently trains as DDP; use a GPU or DDP")


def refuse_dropout(model: Any) -> None:
    """Scores taken under dropout are not those of the policy, and its ratio is noise before the first update."""
    active = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    attention = getattr(model.config, "attention_dropout", 0.0) or 0.0
    if active or attention > 0:
        what = f"{active[0]} (and {len(active) - 1} more)" if active else f"attention_dropout={attention}"
        raise ValueError(
            f"dropout is active in {what}: token entropies and ratios would be of randomly thinned networks; set "
            "disable_dropout: true, and lora_dropout: 0 with an adapter"
        )
