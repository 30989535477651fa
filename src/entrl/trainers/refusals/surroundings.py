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
    if problem := unsaved_weights(accelerator):
        raise ValueError(problem)


def unsaved_weights(accelerator: Any) -> str | None:
    """Why a sharded run would end with no whole model in its folder; transformers then writes shards, or nothing."""
    fsdp, deepspeed = (getattr(accelerator.state, name, None) for name in ("fsdp_plugin", "deepspeed_plugin"))
    if fsdp is not None and getattr(fsdp, "fsdp_version", 1) != 2:
        return "FSDP version 1 was asked for and is not supported; set fsdp_version: 2, as launch/fsdp2.yaml does"
    if fsdp is not None and "FULL" not in str(fsdp.state_dict_type):
        return (
            f"fsdp_state_dict_type {fsdp.state_dict_type} saves no whole model; set fsdp_state_dict_type: "
            "FULL_STATE_DICT, as launch/fsdp2.yaml does"
        )
    zero = {} if deepspeed is None else deepspeed.deepspeed_config.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save", False):
        return (
            "ZeRO-3 without zero3_save_16bit_model saves no whole model; set zero3_save_16bit_model: true "
            "(stage3_gather_16bit_weights_on_model_save in a DeepSpeed file), as launch/zero3.yaml does"
        )
    return None


def refuse_dropout(model: Any, *, disabled: bool = False) -> None:
    """Scores taken under dropout are not those of the policy, and its ratio is noise before the first update.

    disabled: TRL will make its layers idle (`disable_dropout`), but not the attention's own.
    """
    layers = [] if disabled else model.named_modules()
    active = [n for n, m in layers if isinstance(m, torch.nn.Dropout) and m.p > 0]
    attention = getattr(model.config, "attention_dropout", 0.0) or 0.0
    if active or attention > 0:
        what = f"{active[0]} (and {len(active) - 1} more)" if active else f"attention_dropout={attention}"
        raise ValueError(
            f"dropout is active in {what}: token entropies and ratios would be of randomly thinned networks; set "
            "disable_dropout: true, and lora_dropout: 0 with an adapter"
        )
