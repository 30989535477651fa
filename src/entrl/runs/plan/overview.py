"""What `entrl plan` prints: the parts, the schedule, which controllers will act, memory, time, and every problem.

Planning for machines this one is not (another world size, GPUs it lacks) works; what could not be looked at from here
is said to be unchecked.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrl.models.folder import folder_warnings
from entrl.runs.law_watch import evaluation_steps
from entrl.runs.plan.arithmetic import arithmetic_warnings
from entrl.runs.plan.checks import Prepared, evaluation_problems, has_accelerator, prepare
from entrl.runs.plan.device import SAY, Device, find_device
from entrl.runs.plan.disk import place_problems, unwritable
from entrl.runs.plan.engines import describe_engines
from entrl.runs.plan.estimates import Estimate, describe_disk, describe_memory, describe_model
from entrl.runs.plan.machines import Machines, machine_problems, read_machines
from entrl.runs.plan.missing import missing_here
from entrl.runs.plan.peaks import has_colocated
from entrl.runs.plan.rows import check_data
from entrl.runs.plan.times import Measured, describe_time
from entrl.runs.plan.values import value_problems, value_warnings
from entrl.runs.recipe import Recipe
from entrl.runs.sandboxed import missing_sandbox
from entrl.runs.wording import one_line
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.refusals.schedule import describe_schedule, empty_runs
from entrl.trainers.shared.checkpoint import inexact_because
from entrl.trainers.shared.rewards import SCORED_SIGNALS, needed_signals


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `entrl plan` prints."""

    rows: list[tuple[str, str]]
    problems: list[str]
    warnings: list[str]
    notes: list[str]
    unchecked: list[str] = field(default_factory=list)  # what could not be looked at from this machine
    unjudged: str | None = None  # why nobody can say whether memory suffices, None where it does

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def verdict(self) -> str:
        """The last line: never "ready" where something was not looked at."""
        if not self.ok:
            return f"{len(self.problems)} problem(s): will not train"
        unchecked = f"{len(self.unchecked)} thing(s) could not be checked from here" if self.unchecked else ""
        if self.unjudged is not None:
            return f"memory not judged: {self.unjudged}" + (f"; {unchecked}" if unchecked else "")
        return f"no problem found, {unchecked}" if unchecked else "ready to train"

    def render(self) -> str:
        width = max((len(label) for label, _ in self.rows), default=0)
        lines = [f"{label:<{width}}  {value}" for label, value in self.rows]
        for word, entries in (("problem", self.problems), ("warning", self.warnings), ("note", self.notes)):
            lines += [f"{word}: {one_line(entry)}" for entry in entries]
        lines += [f"not checked: {one_line(entry)}" for entry in self.unchecked]
        return "\n".join([*lines, self.verdict])


def plan(
    recipe: Recipe,
    world_size: int | None = None,
    *,
    accelerate_config: str | Path | None = None,
    measured: Measured | None = None,
    explain: bool = False,
) -> Plan:
    """Run every check and describe the run.

    world_size: processes to plan for; None = those `accelerate_config` starts, else launch.world_size, else 1.
    accelerate_config: the file given to `accelerate launch --config_file`.
    measured: size of a device and throughput, where they are known; without rates no time. Where neither it nor
        `launch.device_memory_gib` nor torch says how large a device is, memory is not judged, and the verdict says so.
    explain: with every term of every peak, and its formula

    Raises FileNotFoundError and ValueError for an accelerate file that is none, or throughput that is no number > 0.
    """
    machines = None if accelerate_config is None else read_machines(accelerate_config)
    real = None if machines is None else machines.world_size
    size = world_size or real or recipe.launch.world_size or 1
    if machines is None:
        machines = Machines(source="no accelerate file", kind="MULTI_GPU" if size > 1 else "NO", world_size=size)
    measured = measured or Measured()
    prepared = prepare(recipe, world_size=size)
    rows = _describe_parts(recipe, prepared)
    found = _Found(problems=list(prepared.problems), warnings=list(machines.warnings), notes=list(prepared.notes))
    if accelerate_config is not None:
        rows.append(("machines", machines.described))
    sound = _has_arithmetic(recipe, prepared.args)
    if sound:
        if accelerate_config is not None:
            found.problems += machine_problems(recipe, prepared.args, machines)
        rows += _describe_schedule(recipe, prepared, size)
        rows += _describe_evaluations(recipe, prepared.args)
        rows += _describe_controllers(prepared, size)
        found.warnings += recipe_warnings(recipe, prepared, size)
        found.notes += _machine_notes(recipe, prepared.args)
    data = check_data(recipe, prepared)
    device = find_device(recipe, machines, measured.device_gib)
    estimate = describe_model(recipe, prepared)
    if sound:
        steps = _step_count(prepared.args, size, data.count)
        describe_memory(estimate, recipe, prepared.args, machines, device, data.longest, explain)
        describe_disk(estimate, recipe, prepared.args, steps, device, explain)
        describe_engines(estimate, recipe, prepared.args, machines, device)
        times, late = describe_time(recipe, prepared, machines, estimate.shape, measured, steps)
        estimate.rows += times
        estimate.problems += late
    rows += [("device memory", device.described), *estimate.rows]
    short = estimate.short if device.binding else []
    own = [p for p in estimate.problems if p not in found.problems]
    missing = [] if prepared.args is None else missing_here(recipe, prepared.args)
    missing += missing_sandbox(prepared.reward_funcs, rows_ask=data.runs_code)
    misplaced = place_problems(recipe.run_dir)
    missing += [] if misplaced else unwritable(recipe.run_dir)
    return Plan(
        rows=rows,
        problems=[*found.problems, *own, *short, *data.problems, *misplaced],
        warnings=[*found.warnings, *estimate.warnings, *data.warnings],
        notes=found.notes,
        unchecked=[*estimate.unchecked, *data.unchecked, *missing],
        unjudged=_unjudged(device, prepared.args, estimate),
    )


def _has_arithmetic(recipe: Recipe, args: Any) -> bool:
    """Whether its numbers can be reckoned with; if not, what is wrong with them is among the problems."""
    return args is not None and not value_problems(recipe.trainer) and not empty_runs(args)


def _step_count(args: Any, world_size: int, rows: int | None) -> int | None:
    """Optimiser steps of the run; None where it trains by epochs over an unknown number of rows."""
    if args.max_steps > 0:
        return args.max_steps
    if rows is None:
        return None
    schedule = describe_schedule(args, world_size)
    rollouts = rows // schedule.prompts_per_rollout  # a rest is dropped
    return int(args.num_train_epochs * rollouts * schedule.updates_per_rollout)


def _unjudged(device: Device, args: Any, found: Estimate) -> str | None:
    """Why nothing is said about memory, None where something is."""
    if found.shape is None:
        return "its model could not be looked at"
    if device.size is None or (found.short and not device.binding):
        return SAY
    if device.is_cpu and args is not None and has_colocated(args):
        return f"{SAY}, of the device that vLLM will share"
    return None


@dataclass(kw_only=True)
class _Found:
    problems: list[str]
    warnings: list[str]
    notes: list[str]


def _describe_parts(recipe: Recipe, prepared: Prepared) -> list[tuple[str, str]]:
    rows = [("recipe", recipe.name), ("model", recipe.model.path), ("task", recipe.data.shown)]
    for spec, reward in zip(recipe.rewards, prepared.rewards, strict=False):
        rows.append(("reward", f"{spec.weight:g} x {reward.source}  ({reward.file})"))
    rows += [("controller", f"{c.source}  ({c.file})") for c in prepared.controllers]
    if (course := prepared.curriculum) is not None:
        rows.append(("curriculum", f"{course.source}  ({course.file}), pass rates in {course.value.file.path}"))
    if recipe.environment is not None:
        arguments = "".join(f", {k}={v}" for k, v in recipe.environment.args.items())
        rows.append(("environment", f"{recipe.environment.use}{arguments}"))
    if recipe.lora is not None:
        rows.append(("lora", ", ".join(f"{k}={v}" for k, v in recipe.lora.items())))
    return [*rows, ("run folder", str(recipe.run_dir))]


def _describe_schedule(recipe: Recipe, prepared: Prepared, world_size: int) -> list[tuple[str, str]]:
    args, s = prepared.args, describe_schedule(prepared.args, world_size)
    scored = any(needed_signals(r) & set(SCORED_SIGNALS) for r in prepared.reward_funcs)
    scopes = [c.scope for c in prepared.controller_objects if c.uses_loss_hook]
    extra = s.extra_passes_per_step(signals_needed=scored, scopes=scopes)
    tokens = s.rows_per_rollout * args.max_completion_length
    policy = "fully on-policy (ratio exactly 1)" if s.on_policy else "off-policy after the first update of a rollout"
    groups = s.local_rows_per_rollout / s.num_generations
    whole = f"{groups:g} whole groups" if s.whole_groups_per_rank else "groups split over processes"
    return [
        ("processes", str(world_size)),
        ("rollout", f"{s.prompts_per_rollout} prompts x {s.num_generations} completions = {s.rows_per_rollout} rows"),
        ("per process", f"{s.local_rows_per_rollout} rows of a rollout ({whole}), {s.per_device_rows} per forward"),
        ("optimiser step", f"{s.rows_per_step} rows in {s.gradient_accumulation_steps} micro-step(s) per process"),
        ("updates per rollout", f"{s.updates_per_rollout:g}, {policy}"),
        ("tokens per rollout", f"at most {tokens:,} ({args.max_completion_length} per completion)"),
        ("steps", _steps(recipe, args, s)),
        ("extra forward passes", f"{extra:g} per optimiser step beyond stock TRL"),
        *_describe_rollout(args),
        (
            "loss",
            f"{args.loss_type}, scale_rewards={args.scale_rewards}, beta={args.beta:g}, lr={args.learning_rate:g}",
        ),
    ]


def _describe_rollout(args: Any) -> list[tuple[str, str]]:
    """Branching and the group filter, where they are on: what they add to a rollout."""
    rows = []
    if args.branch_roots is not None:
        calls = 2 + args.branch_attempts * (args.branch_at == "window_start")
        passes = "" if args.entropy_source == "sampler" else ", a no-grad pass over the roots and each attempt"
        rows.append(
            (
                "branching",
                f"{args.branch_roots} completions of a prompt whole, up to {args.num_generations - args.branch_roots} "
                f"continue them; at most {calls} generation calls a rollout{passes}",
            )
        )
    if args.turn_credit is not None:
        discount = "" if args.turn_credit_discount is None else f", discount {args.turn_credit_discount:g}"
        rows.append(("credit per turn", f"{args.turn_credit_weight:g} x {args.turn_credit}{discount}"))
    if args.filter_on is not None:
        rows.append(
            ("group filter", f"on {args.filter_on}; up to {args.filter_max_tries} generations until a rollout is full")
        )
    return rows


def _steps(recipe: Recipe, args: Any, schedule: Any) -> str:
    prompts_per_step = schedule.prompts_per_rollout / schedule.updates_per_rollout
    size = recipe.data.train_size
    if args.max_steps > 0:
        seen = args.max_steps * prompts_per_step
        share = f", {seen / size:.2g} passes over {size:,} problems" if size else ""
        return f"{args.max_steps}, {seen:,.0f} prompts{share}"
    if size is None:
        return f"{args.num_train_epochs:g} epochs of the whole task"
    return f"about {args.num_train_epochs * size / prompts_per_step:,.0f} ({args.num_train_epochs:g} epochs)"


def _describe_evaluations(recipe: Recipe, args: Any) -> list[tuple[str, str]]:
    """What `eval.at` costs, in completions beside those of training."""
    if recipe.eval is None or recipe.eval.at is None or evaluation_problems(recipe, args):
        return []
    count = len(evaluation_steps(recipe.eval.at, args.max_steps))
    generations = args.num_generations_eval or args.num_generations
    size = recipe.eval.size
    each = f"all problems x {generations}" if size is None else f"{size:,} problems x {generations}"
    total = "" if size is None else f", {count * size * generations:,} in all"
    return [("evaluations while training", f"{count}, {each} completions each{total}")]


def _describe_controllers(prepared: Prepared, world_size: int) -> list[tuple[str, str]]:
    """One line each: acts or not, how often, on how many tokens at most."""
    args, s = prepared.args, describe_schedule(prepared.args, world_size)
    rows = []
    for controller in prepared.controller_objects:
        found = check_schedule(args, [controller], prepared.reward_funcs, world_size)
        if found:
            rows.append((controller.name, f"will not act: {found[0]}"))
            continue
        when = "acts on every optimiser step" if controller.uses_loss_hook else "acts on every rollout"
        if controller.needs_stale_policy:
            share = 1 - 1 / s.updates_per_rollout
            when = f"acts on {share:.0%} of optimiser steps (the first update of a rollout has ratio 1)"
        rows.append((controller.name, when + _selected(controller, s, args)))
    return rows


def _selected(controller: Any, schedule: Any, args: Any) -> str:
    fraction = getattr(controller, "fraction", None)
    if not isinstance(fraction, float):
        return ""
    tokens = fraction * schedule.rows_per_step * args.max_completion_length
    return (
        f"; at most {tokens:,.3g} tokens selected per step (fraction {fraction:g}), fewer where completions are shorter"
    )


def recipe_warnings(recipe: Recipe, prepared: Prepared, world_size: int) -> list[str]:
    """Legal settings that usually are not meant, by the recipe alone; `entrl train` says them at its start too."""
    return [
        *_warnings(recipe, prepared, world_size),
        *value_warnings(recipe, prepared.args, prepared),
        *arithmetic_warnings(recipe, prepared.args),
        *folder_warnings(recipe.model),
    ]


def _warnings(recipe: Recipe, prepared: Prepared, world_size: int) -> list[str]:
    """Of batches, losses, engines and checkpoints."""
    args, out = prepared.args, []
    if (reason := inexact_because(args)) is not None:
        out.append(f"a run that is stopped could not go on from a checkpoint: trainer.{reason}")
    scored = [r for r in prepared.rewards if needed_signals(r.value) & set(SCORED_SIGNALS)]
    if scored and args.scale_rewards == "group":
        out.append(
            f"scale_rewards=group divides by each group's own spread, so in all-correct groups {scored[0].source} acts "
            "at full strength whatever its weight; set scale_rewards: batch, or use the controller std_floor"
        )
    if (
        args.use_vllm
        and args.vllm_importance_sampling_correction
        and args.vllm_importance_sampling_mode == "sequence_mask"
    ):
        out.append(
            "vllm_importance_sampling_mode=sequence_mask multiplies ratios over the length and drops long completions "
            "first, which confounds length and entropy results; set token_truncate or token_mask"
        )
    if recipe.lora is None and recipe.model.dtype in ("bfloat16", "float16"):
        out.append(
            f"all weights are trained in {recipe.model.dtype}: updates smaller than its resolution are lost; "
            "set model.dtype: float32 with trainer.bf16: true, or use lora"
        )
    return out


def _machine_notes(recipe: Recipe, args: Any) -> list[str]:
    out = []
    if not has_accelerator() and not recipe.trainer.get("use_cpu"):
        what = " in bf16 autocast" if args.bf16 else ""
        out.append(
            f"no accelerator on this machine: arguments were checked with use_cpu; training here is on the CPU{what}"
        )
    return out
