"""Time of a planned run, as a range, from throughput that somebody measured; unknown without."""

import math
from dataclasses import dataclass
from typing import Any

from entrl.models.shape import ModelShape
from entrl.runs.plan.balance import Balance, Load, Rates, balance, engines_in_balance
from entrl.runs.plan.checks import Prepared
from entrl.runs.plan.engines import engine_count
from entrl.runs.plan.machines import Machines
from entrl.runs.plan.peaks import prompt_tokens
from entrl.runs.plan.sampling import sync_bytes
from entrl.runs.recipe import Recipe
from entrl.trainers.refusals.schedule import describe_schedule
from entrl.trainers.shared.rewards import SCORED_SIGNALS, needed_signals

Rows = list[tuple[str, str]]
Range = tuple[float, float]
UNKNOWN = "unknown: no measured rates (launch.rates, or --generate-rate and --train-rate)"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured elsewhere; None where it was not. A rate is a number, or (lowest, highest).

    device_gib: memory of one GPU
    generate, train: tokens per second of one engine and of one training process (`entrl.runs.plan.balance.Rates`)
    length: tokens of a completion, mean; None takes the longest allowed
    prompt: tokens of a prompt, mean
    bandwidth: bytes per second from the trainer to the engines
    """

    device_gib: float | None = None
    generate: float | Range | None = None
    train: float | Range | None = None
    length: float | None = None
    prompt: float | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = ends(value) if value is not None else (1.0, 1.0)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be a number > 0, got {value}")


def ends(rate: float | Range) -> Range:
    return (rate[0], rate[1]) if isinstance(rate, tuple) else (rate, rate)


def with_rates(measured: Measured, recipe: Recipe) -> Measured:
    """With the rates that the recipe states where none were given."""
    from dataclasses import replace

    if (stated := recipe.launch.rates) is None:
        return measured
    own = {name: tuple(pair) for name in ("generate", "train") if (pair := getattr(stated, name)) is not None}
    return replace(measured, **{name: pair for name, pair in own.items() if getattr(measured, name) is None})


def describe_time(
    recipe: Recipe,
    prepared: Prepared,
    machines: Machines,
    shape: ModelShape | None,
    measured: Measured,
    steps: int | None,
) -> tuple[Rows, list[str]]:
    """(rows, problems): seconds per rollout, step and run, where throughput of an engine and a process is known."""
    measured = with_rates(measured, recipe)
    if measured.generate is None or measured.train is None:
        return [("time", UNKNOWN)], []
    args, schedule = prepared.args, describe_schedule(prepared.args, machines.world_size)
    load, engines = rollout_load(prepared, machines.world_size, measured), engine_count(args, machines)
    sent = _sent(recipe, args, shape)
    rates = [
        Rates(generate=generate, train=train, bandwidth=measured.bandwidth or math.inf)
        for generate, train in zip(ends(measured.generate), ends(measured.train), strict=True)
    ]
    slow, fast = (balance(load, r, engines=engines, processes=machines.world_size, bytes_sent=sent) for r in rates)
    whole = spread(slow.synchronous, fast.synchronous)
    rows = [
        ("time per rollout", f"{whole} ({_parts(slow, fast)}; {_given(load, measured)})"),
        ("time per step", spread(*(b.synchronous / schedule.updates_per_rollout for b in (slow, fast)))),
    ]
    if steps is not None:
        times = [steps / schedule.updates_per_rollout * b.synchronous for b in (slow, fast)]
        rows.append(("time in all", f"{spread(*times)}, evaluations and start not counted"))
    enough = sorted({engines_in_balance(load, r, processes=machines.world_size) for r in rates})
    names = " or ".join(dict.fromkeys(b.bottleneck for b in (slow, fast)))
    count = " to ".join(map(str, enough))
    rows.append(("bottleneck", f"{names}; generation takes as long as training with {count} engine(s)"))
    if recipe.launch.rates is not None:
        rows.append(("rates from", recipe.launch.rates.source))
    return rows, timeout_problems(args, slow.generation, machines)


def timeout_problems(args: Any, generation: float, machines: Machines) -> list[str]:
    """In server mode the other processes wait in a collective while the first one generates for all (TRL)."""
    waits = args.use_vllm and args.vllm_mode == "server" and machines.world_size > 1
    if not waits or generation < args.ddp_timeout:
        return []
    return [
        f"a rollout may take {clock(generation)} to generate, and processes that wait for it give up after "
        f"{clock(args.ddp_timeout)}; raise trainer.ddp_timeout"
    ]


def _sent(recipe: Recipe, args: Any, shape: ModelShape | None) -> float:
    if shape is None or not args.use_vllm or args.vllm_mode != "server":
        return 0.0
    each = sync_bytes(shape, dtype=recipe.model.dtype, lora=recipe.lora is not None)
    return each.get("adapter alone", each["full weights"])


def _parts(slow: Balance, fast: Balance) -> str:
    return ", ".join(f"{n} {spread(getattr(slow, n), getattr(fast, n))}" for n in ("generation", "training", "sync"))


def _given(load: Load, measured: Measured) -> str:
    mean = f"{load.length:,.0f} tokens"
    return f"{mean}, mean length" if measured.length else f"{mean}, full length; shorter with --mean-length"


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


def spread(one: float, other: float) -> str:
    """A range of seconds, or one number where both ends are it."""
    low, high = clock(min(one, other)), clock(max(one, other))
    return low if low == high else f"{low} to {high}"


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
