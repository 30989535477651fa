"""The moments of a run at which one process holds most: evaluation, rollout, training; and whether they fit.

    evaluation   a whole copy of the weights + cache + logits, or the share of an engine of its own; the trainer is gone
                 afterwards, a colocated engine that does not sleep is counted: nobody saw one leave a GPU
    rollout      weights + optimiser + the engine's share, or + cache and logits where the trainer generates itself
    training     `entrl.runs.plan.memory`; + the engine's share, unless it sleeps (vllm_enable_sleep_mode)

A sleeping engine (level 2, as TRL asks) gives up weights and cache; they come back for each sync and rollout.
"""

from dataclasses import replace
from typing import Any

from entrl.engines.local import SHARE as OWN_ENGINE
from entrl.evaluation.memory import MOST_ROWS, SHARE
from entrl.models.shape import ModelShape
from entrl.runs.plan.device import Device
from entrl.runs.plan.machines import Machines
from entrl.runs.plan.memory import GIB, Peak, Term, Training, peak, state_terms, training_peak
from entrl.runs.plan.sampling import Engine, generating_terms, whole_weights
from entrl.runs.recipe import Recipe
from entrl.runs.specs import EvalSpec

PROMPT = 256  # tokens; taken where nothing says how long prompts are
BEFORE, ROLLOUT, TRAINING, AFTER = "evaluation before training", "rollout", "training", "evaluation after training"


def training_of(recipe: Recipe, args: Any, machines: Machines, device: Device, prompt: int) -> Training:
    """prompt: tokens of the longest"""
    return Training(
        dtype=recipe.model.dtype,
        autocast=bool(args.bf16 or args.fp16),
        lora=recipe.lora is not None,
        optimiser=str(getattr(args.optim, "value", args.optim)),
        rows=args.per_device_train_batch_size,
        tokens=prompt + args.max_completion_length,
        checkpointing=bool(args.gradient_checkpointing),
        processes=machines.world_size,
        sharding=machines.sharding,
        quantised=None if (q := recipe.model.quantization) is None else q.bytes_per_weight,
        accumulates=args.gradient_accumulation_steps > 1,
        reference=bool(args.beta) and recipe.lora is None,
        on_cpu=device.is_cpu,
    )


def prompt_tokens(args: Any, longest: int | None = None) -> int:
    """Tokens of the longest prompt: of the rows where they were counted, no more than the engine leaves for it."""
    limit = args.vllm_max_model_length if args.use_vllm else None
    room = limit - args.max_completion_length if limit and limit > args.max_completion_length else None
    if longest is None:
        return room or PROMPT
    return longest if room is None else min(longest, room)


def has_colocated(args: Any) -> bool:
    return bool(args.use_vllm and args.vllm_mode == "colocate")


def colocated_engine(args: Any, device: Device) -> Engine | None:
    """None without one, and where its share is not known: on the CPU vLLM takes memory by a rule of its own."""
    if not has_colocated(args) or device.size is None or device.is_cpu:
        return None
    return Engine(device=device.size, share=args.vllm_gpu_memory_utilization, parallel=args.vllm_tensor_parallel_size)


def run_peaks(
    recipe: Recipe, args: Any, run: Training, shape: ModelShape, device: Device, evaluated: int | None
) -> list[Peak]:
    """evaluated: tokens of the longest prompt of the evaluation, None where they were not counted"""
    engine = colocated_engine(args, device)
    share = [] if engine is None else [engine.term]
    awake = [] if args.vllm_enable_sleep_mode else share
    state = state_terms(shape, run)
    peaks = [_rollout(args, run, shape, share, state)]
    step = training_peak(shape, run)
    peaks.append(peak(f"{TRAINING} ({step.moment})", [*step.terms, *awake]))
    if (spec := recipe.eval) is None or spec.servers:
        return peaks
    lengths = [part.max_new_tokens or args.max_completion_length for part in spec.parts.values()]
    tokens = (PROMPT if evaluated is None else evaluated) + max(lengths)
    weights = replace(state_terms(shape, replace(run, processes=1))[0], name="evaluated weights")  # a whole copy
    before, after = (
        _evaluation(moment, spec, run, shape, device, tokens, weights, held)
        for moment, held in ((BEFORE, []), (AFTER, awake))
    )
    return [one for one in (*([before] if spec.before else []), *peaks, after) if one.terms]


def _rollout(args: Any, run: Training, shape: ModelShape, share: list[Term], state: list[Term]) -> Peak:
    if args.use_vllm:
        return peak(ROLLOUT, [*state, *share])
    rows = args.per_device_train_batch_size * (args.steps_per_generation or args.gradient_accumulation_steps)
    cache = generating_terms(shape, rows=rows, tokens=run.tokens, item=run.item)
    return peak(ROLLOUT, [*state, whole_weights(shape, run), *cache])


def _evaluation(
    moment: str,
    spec: EvalSpec,
    run: Training,
    shape: ModelShape,
    device: Device,
    tokens: int,
    weights: Term,
    held: list[Term],
) -> Peak:
    """Of a whole copy of the model, on every rank. held: by others at the time"""
    if spec.engine == "vllm":
        share = 0 if device.size is None or device.is_cpu else OWN_ENGINE * device.size
        return peak(moment, [*held, Term(name="vLLM", size=share, formula=f"{OWN_ENGINE:g} of the device")])
    rows = spec.batch_size
    if not isinstance(rows, int):
        rows = _rows_that_fit(run, shape, device, tokens, weights.size + sum(term.size for term in held))
    cache = generating_terms(shape, rows=rows, tokens=tokens, item=run.item)
    return peak(moment, [*held, weights, *cache])


def _rows_that_fit(run: Training, shape: ModelShape, device: Device, tokens: int, held: float) -> int:
    """As the evaluation chooses them (`entrl.evaluation.memory`); at least one."""
    if device.size is None:
        return 1
    one = sum(term.size for term in generating_terms(shape, rows=1, tokens=tokens, item=run.item))
    share = SHARE["cpu" if device.is_cpu else "cuda"]
    rows = max(1, int(share * (device.size - held) // one))
    return min(MOST_ROWS, 1 << (rows.bit_length() - 1))


# --- what is said of them -----------------------------------------------------------------------------------------


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def told(one: Peak) -> str:
    """Its size, and what most of it is."""
    return f"{gib(one.size)}, most of it {one.largest.name} {gib(one.largest.size)}: {one.largest.formula}"


def explained(one: Peak) -> list[tuple[str, str]]:
    """A line for each term, the largest first."""
    terms = sorted(one.terms, key=lambda term: -term.size)
    return [(f"  {term.name}", f"{gib(term.size):>11} = {term.formula}") for term in terms]


def shortages(
    peaks: list[Peak], recipe: Recipe, args: Any, machines: Machines, device: Device, least: float
) -> list[str]:
    """Moments at which a process needs more than its device has, each with the next move.

    least: bytes of training with the smallest batch (`least_training`)
    """
    if device.size is None:
        return []
    return [
        f"{one.moment} needs about {gib(one.size)} and a process has {device.described}; most of it is "
        f"{one.largest.name} ({one.largest.formula}); {_next_move(one, recipe, args, machines, device, least)}"
        for one in peaks
        if one.size > device.size
    ]


def least_training(shape: ModelShape, run: Training) -> float:
    """Bytes of one row at a time, under checkpointing."""
    return training_peak(shape, replace(run, rows=1, checkpointing=True)).size


def _next_move(one: Peak, recipe: Recipe, args: Any, machines: Machines, device: Device, least: float) -> str:
    engine = next((term.size for term in one.terms if term.name == "vLLM"), 0.0)
    if one.moment in (BEFORE, AFTER):
        return _smaller_evaluation(recipe.eval, engine)
    if one.moment == ROLLOUT:
        if not args.use_vllm:
            return "generate with vLLM (use_vllm: true), or halve steps_per_generation"
        lower = f"lower vllm_gpu_memory_utilization ({args.vllm_gpu_memory_utilization:g})"
        return f"{lower}, or {_divide(recipe, machines)}" if engine < one.size / 2 else lower
    if engine and device.size is not None and one.size - engine <= device.size:
        return "set vllm_enable_sleep_mode: true, so that the engine gives its share back while training"
    if device.size is not None and least > device.size:  # whatever the batch
        return _divide(recipe, machines)
    return _smaller_training(recipe, args, machines)


def _smaller_evaluation(spec: EvalSpec | None, engine: float) -> str:
    assert spec is not None
    if isinstance(spec.batch_size, int) and spec.batch_size > 1:
        return f"halve eval.batch_size ({spec.batch_size})"
    sleep = "set vllm_enable_sleep_mode: true, " if engine else ""
    return f"{sleep}lower eval.max_new_tokens, or evaluate the trained model by itself (eval: null, then `entrl eval`)"


def _smaller_training(recipe: Recipe, args: Any, machines: Machines) -> str:
    """The cheapest first."""
    if not args.gradient_checkpointing:
        return "set gradient_checkpointing: true"
    if args.per_device_train_batch_size > 1:
        return "halve per_device_train_batch_size and double gradient_accumulation_steps and steps_per_generation"
    return _divide(recipe, machines)


def _divide(recipe: Recipe, machines: Machines) -> str:
    if machines.sharding == "none" and machines.world_size > 1:
        return "divide the state: launch/fsdp2.yaml or launch/zero3.yaml"
    if recipe.lora is None:
        return "train an adapter (lora: {r: 16, target_modules: all-linear}), or on more devices"
    return "train on more or larger devices"
