"""Memory and time of a planned run, and of the engines that generate for it."""

import math
from dataclasses import dataclass
from typing import Any

from entrl.models.load import load_config
from entrl.runs.plan.balance import Load, Rates, balance, engines_in_balance
from entrl.runs.plan.checks import Prepared, first_line
from entrl.runs.plan.device import Device
from entrl.runs.plan.machines import Machines
from entrl.runs.plan.memory import (
    GIB,
    Engine,
    ModelShape,
    Training,
    cache_bytes,
    model_shape,
    sync_bytes,
    training_memory,
)
from entrl.runs.recipe import Recipe
from entrl.trainers.refusals.schedule import describe_schedule
from entrl.trainers.shared.rewards import SCORED_SIGNALS, needed_signals

Rows = list[tuple[str, str]]
PROMPT = 256  # tokens; taken where vllm_max_model_length does not say how long prompts may be


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured elsewhere; None where it was not.

    device_gib: memory of one GPU
    generate, train: tokens per second of one engine and of one training process (`entrl.runs.plan.balance.Rates`)
    length: tokens of a completion, mean; None takes the longest allowed
    prompt: tokens of a prompt, mean
    bandwidth: bytes per second from the trainer to the engines
    """

    device_gib: float | None = None
    generate: float | None = None
    train: float | None = None
    length: float | None = None
    prompt: float | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be a number > 0, got {value}")


def describe_model(
    recipe: Recipe, prepared: Prepared, machines: Machines, device: Device
) -> tuple[Rows, ModelShape | None, list[str], list[str], list[str]]:
    """(rows, shape, problems, memory that is short, what could not be looked at).

    Parameters are counted on the meta device.
    """
    try:
        config = model_config(recipe)
    except FileNotFoundError as error:
        return [], None, [str(error)], [], []
    except OSError as error:  # transformers: not on disk and the hub does not answer
        why = f"model {recipe.model.path} could not be looked at from here ({first_line(error)})"
        return [], None, [], [], [f"{why}; memory not estimated"]
    total, trained = count_parameters(config, prepared.lora)
    shape = model_shape(config, parameters=total, trained=trained)
    rows = [("parameters", f"{total:,}, trained {trained:,} ({trained / total:.1%})")]
    if prepared.args is None:
        return rows, shape, [], [], []
    parts = training_memory(shape, training_of(recipe, prepared.args, machines))
    needed = sum(parts.values())
    share = "per process"
    rows += [(f"memory, {name}", gib(size)) for name, size in parts.items()]
    rows.append(("memory, training", f"{gib(needed)} {share} at the peak, CUDA context and fragmentation not counted"))
    short = []
    if device.size is not None:
        reserved = reserved_by_engine(prepared.args) * device.size
        if needed > device.size - reserved:
            taken = f", {gib(reserved)} of it for the colocated engine" if reserved else ""
            short.append(
                f"training needs about {gib(needed)} and a process has {device.described}{taken}; "
                f"{_smaller(recipe, prepared.args, machines)}"
            )
    return rows, shape, [], short, []


def _smaller(recipe: Recipe, args: Any, machines: Machines) -> str:
    """The next move where memory is short, the cheapest first."""
    if not args.gradient_checkpointing:
        return "set gradient_checkpointing: true"
    if args.per_device_train_batch_size > 1:
        return "halve per_device_train_batch_size and double gradient_accumulation_steps and steps_per_generation"
    if machines.sharding == "none" and machines.world_size > 1:
        return "divide the state: launch/fsdp2.yaml or launch/zero3.yaml"
    if recipe.lora is None:
        return "train an adapter (lora: {r: 16, target_modules: all-linear}), or on more devices"
    return "train on more or larger devices"


def training_of(recipe: Recipe, args: Any, machines: Machines) -> Training:
    optimiser = str(getattr(args.optim, "value", args.optim))
    return Training(
        dtype=recipe.model.dtype,
        autocast=bool(args.bf16 or args.fp16),
        lora=recipe.lora is not None,
        optimiser=optimiser,
        rows=args.per_device_train_batch_size,
        tokens=prompt_tokens(args) + args.max_completion_length,
        checkpointing=bool(args.gradient_checkpointing),
        processes=machines.world_size,
        sharding=machines.sharding,
        quantised=None if (q := recipe.model.quantization) is None else q.bytes_per_weight,
    )


def prompt_tokens(args: Any) -> int:
    """The longest prompt: what the engine leaves for it, else an assumption."""
    longest = args.vllm_max_model_length
    return longest - args.max_completion_length if longest and longest > args.max_completion_length else PROMPT


def reserved_by_engine(args: Any) -> float:
    """Share of a device that colocated vLLM takes at start; with sleep mode it gives it back while training."""
    return args.vllm_gpu_memory_utilization if has_colocated(args) and not args.vllm_enable_sleep_mode else 0.0


def has_colocated(args: Any) -> bool:
    return bool(args.use_vllm and args.vllm_mode == "colocate")


def describe_engines(
    recipe: Recipe, args: Any, machines: Machines, shape: ModelShape | None, device: Device
) -> tuple[Rows, list[str], list[str]]:
    """(rows, problems, memory that is short) of generation: how many engines, what they hold, what a sync sends."""
    if not args.use_vllm:
        return _own_generation(args, shape), [], []
    engines = engine_count(args, machines)
    replicas = getattr(args, "vllm_replicas", None)
    where = "servers of vllm_replicas" if replicas else f"vLLM, {args.vllm_mode}"
    rows = [("engines", f"{engines} ({where}), {args.vllm_tensor_parallel_size} device(s) each")]
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
    if replicas and len(set(replicas)) < len(replicas):
        problems.append(f"vllm_replicas names a server twice: {', '.join(replicas)}; name each once")
    if args.vllm_mode == "colocate" and machines.world_size % args.vllm_tensor_parallel_size:
        problems.append(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} must divide the {machines.world_size} "
            "processes of the run; choose a divisor"
        )
    if shape is None:
        return rows, problems, []
    if shape.heads % args.vllm_tensor_parallel_size:
        problems.append(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} must divide the model's {shape.heads} "
            "attention heads; choose a divisor"
        )
    sent = sync_bytes(shape, dtype=recipe.model.dtype, lora=recipe.lora is not None)
    if args.vllm_mode == "server":
        one = sent["adapter alone"] if replicas and recipe.lora is not None else sent["full weights"]
        rows.append(("sync", f"{gib(one)} to each of {engines} engine(s), once per rollout"))
    rows.append(("cache per token", f"{cache_bytes(shape) / 1024:.1f} KiB in 16 bit"))
    if device.size is not None and not device.is_cpu:
        more_rows, short = _room(args, shape, device.size)
        return rows + more_rows, problems, short
    return rows, problems, []


def _room(args: Any, shape: ModelShape, size: float) -> tuple[Rows, list[str]]:
    share = args.vllm_gpu_memory_utilization
    engine = Engine(device=size, share=share, parallel=args.vllm_tensor_parallel_size)
    tokens, longest = engine.cached_tokens(shape), prompt_tokens(args) + args.max_completion_length
    if tokens < longest:
        return [], [
            f"an engine with vllm_gpu_memory_utilization={share} of {size / GIB:.4g} GiB has room for "
            f"{max(tokens, 0):,} tokens beside the weights, and one completion may need {longest:,}; raise it, or "
            "vllm_tensor_parallel_size"
        ]
    return [("engine cache", f"{tokens:,} tokens, {tokens // longest:,} completions of full length at a time")], []


def _own_generation(args: Any, shape: ModelShape | None) -> Rows:
    """The trainer generates itself, a process's rows of a rollout together."""
    if shape is None:
        return []
    rows = args.per_device_train_batch_size * (args.steps_per_generation or args.gradient_accumulation_steps)
    tokens = rows * (prompt_tokens(args) + args.max_completion_length)
    size = tokens * cache_bytes(shape, item=2 if args.bf16 or args.fp16 else 4)
    return [("memory, generating", f"{gib(size)} of key-value cache per process at full length, not while training")]


def engine_count(args: Any, machines: Machines) -> int:
    if not args.use_vllm:
        return machines.world_size
    if args.vllm_mode == "colocate":
        return max(1, machines.world_size // args.vllm_tensor_parallel_size)
    return max(1, len(getattr(args, "vllm_replicas", None) or []))


def describe_time(
    recipe: Recipe, prepared: Prepared, machines: Machines, shape: ModelShape | None, measured: Measured
) -> Rows:
    """Seconds per rollout, where throughput of an engine and of a training process was measured."""
    if measured.generate is None or measured.train is None:
        return []
    args, schedule = prepared.args, describe_schedule(prepared.args, machines.world_size)
    load = rollout_load(prepared, machines.world_size, measured)
    rates = Rates(generate=measured.generate, train=measured.train, bandwidth=measured.bandwidth or math.inf)
    sent = 0
    if shape is not None and args.use_vllm and args.vllm_mode == "server":
        each = sync_bytes(shape, dtype=recipe.model.dtype, lora=recipe.lora is not None)
        sent = each.get("adapter alone", each["full weights"])
    engines = engine_count(args, machines)
    found = balance(load, rates, engines=engines, processes=machines.world_size, bytes_sent=sent)
    parts = f"generation {clock(found.generation)}, training {clock(found.training)}, sync {clock(found.sync)}"
    given = "mean" if measured.length else "full"
    rows = [
        ("time per rollout", f"{clock(found.synchronous)} ({parts}; {load.length:,.0f} tokens, {given} length)"),
        ("time per step", clock(found.synchronous / schedule.updates_per_rollout)),
    ]
    if args.max_steps > 0:
        whole = args.max_steps / schedule.updates_per_rollout * found.synchronous
        rows.append(("time in all", f"{clock(whole)}, evaluations and start not counted"))
    enough = engines_in_balance(load, rates, processes=machines.world_size)
    rows.append(("bottleneck", f"{found.bottleneck}; generation takes as long as training with {enough} engine(s)"))
    return rows


def rollout_load(prepared: Prepared, world_size: int, measured: Measured) -> Load:
    args, s = prepared.args, describe_schedule(prepared.args, world_size)
    sampled = getattr(args, "entropy_source", "scoring") == "sampler"
    scored = not sampled and any(needed_signals(r) & set(SCORED_SIGNALS) for r in prepared.reward_funcs)
    scopes = [c.scope for c in prepared.controller_objects if c.uses_loss_hook]
    extra = s.extra_passes_per_step(signals_needed=scored, scopes=scopes) * s.num_iterations
    return Load(
        rows=s.rows_per_rollout,
        prompt=measured.prompt or prompt_tokens(args),
        length=measured.length or args.max_completion_length,
        trainings=s.num_iterations,
        scorings=extra + float(s.trl_scores_rollouts) + float(bool(args.beta)),
    )


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def model_config(recipe: Recipe) -> Any:
    return load_config(recipe.model)


def count_parameters(config: Any, lora: Any) -> tuple[int, int]:
    """(all, trained) parameters of the model, built without memory on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
        base = sum(p.numel() for p in model.parameters())
        if lora is None:
            return base, base
        from peft import get_peft_model

        model = get_peft_model(model, lora)
    return base, sum(p.numel() for p in model.parameters() if p.requires_grad)
