"""The engines of a planned run: how many, what they have room for, what a sync sends them, what cannot work."""

from typing import Any

from entrl.models.shape import ModelShape, cache_bytes
from entrl.runs.plan.device import Device
from entrl.runs.plan.estimates import Estimate
from entrl.runs.plan.machines import Machines
from entrl.runs.plan.memory import GIB
from entrl.runs.plan.peaks import gib, prompt_tokens
from entrl.runs.plan.sampling import Engine, sync_bytes
from entrl.runs.recipe import Recipe


def describe_engines(found: Estimate, recipe: Recipe, args: Any, machines: Machines, device: Device) -> None:
    """Add how many engines there are, what they have room for, what a sync sends, and what is wrong with them."""
    if not args.use_vllm:
        return
    found.problems += _problems(found.shape, recipe, args, machines)
    engines = engine_count(args, machines)
    replicas = getattr(args, "vllm_replicas", None)
    where = "servers of vllm_replicas" if replicas else f"vLLM, {args.vllm_mode}"
    found.rows.append(("engines", f"{engines} ({where}), {args.vllm_tensor_parallel_size} device(s) each"))
    if found.shape is None:
        return
    sent = sync_bytes(found.shape, dtype=recipe.model.dtype, lora=recipe.lora is not None)
    if args.vllm_mode == "server":
        one = sent["adapter alone"] if replicas and recipe.lora is not None else sent["full weights"]
        found.rows.append(("sync", f"{gib(one)} to each of {engines} engine(s), once per rollout"))
    found.rows.append(("cache per token", f"{cache_bytes(found.shape) / 1024:.1f} KiB in 16 bit"))
    if device.size is not None and not device.is_cpu:
        _describe_room(found, args, found.shape, device.size)


def _describe_room(found: Estimate, args: Any, shape: ModelShape, size: float) -> None:
    share = args.vllm_gpu_memory_utilization
    engine = Engine(device=size, share=share, parallel=args.vllm_tensor_parallel_size)
    tokens, longest = engine.cached_tokens(shape), prompt_tokens(args) + args.max_completion_length
    if tokens < longest:
        found.short.append(
            f"an engine with vllm_gpu_memory_utilization={share} of {size / GIB:.4g} GiB has room for "
            f"{max(tokens, 0):,} tokens beside the weights, and one completion may need {longest:,}; raise it, or "
            "vllm_tensor_parallel_size"
        )
        return
    fit = f"{tokens:,} tokens, {tokens // longest:,} completions of full length at a time"
    found.rows.append(("engine cache", f"{fit}; its weights, activations and graphs are not measured"))


def _problems(shape: ModelShape | None, recipe: Recipe, args: Any, machines: Machines) -> list[str]:
    """Engines that could not start, or could not be sent what they need."""
    replicas = getattr(args, "vllm_replicas", None)
    problems = []
    longest = args.vllm_max_model_length
    if longest is not None and longest <= args.max_completion_length:
        problems.append(
            f"vllm_max_model_length={longest} holds prompt and completion, and max_completion_length is "
            f"{args.max_completion_length}; set it to the longest prompt more"
        )
    if replicas and recipe.lora is None:
        problems.append(
            "vllm_replicas are sent the LoRA adapter alone, and the recipe has no lora; add lora: {r: 16, "
            "target_modules: all-linear}, or use vllm_mode: colocate"
        )
    if args.vllm_mode == "colocate" and machines.world_size % args.vllm_tensor_parallel_size:
        problems.append(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} must divide the {machines.world_size} "
            "processes of the run; choose a divisor"
        )
    if shape is not None and shape.heads % args.vllm_tensor_parallel_size:
        problems.append(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} must divide the model's {shape.heads} "
            "attention heads; choose a divisor"
        )
    return problems


def engine_count(args: Any, machines: Machines) -> int:
    if not args.use_vllm:
        return machines.world_size
    if args.vllm_mode == "colocate":
        return max(1, machines.world_size // args.vllm_tensor_parallel_size)
    return max(1, len(getattr(args, "vllm_replicas", None) or []))
