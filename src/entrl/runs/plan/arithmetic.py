"""Steps, intervals and clip ranges that contradict each other: legal, and something in the recipe never happens.

No model and no data; of the trainer's config and of what the recipe says.
"""

import math
from typing import Any

from entrl.diagnosis.bounds import BEYOND
from entrl.models.load import load_config
from entrl.runs.recipe import Recipe


def arithmetic_problems(recipe: Recipe, args: Any) -> list[str]:
    """What transformers or TRL would stop at late, or do silently in another way."""
    out, given = [], recipe.trainer
    if args.use_adaptive_entropy and args.entropy_coef_min > args.entropy_coef_max:
        out.append(
            f"trainer.entropy_coef_min of {args.entropy_coef_min:g} is above entropy_coef_max of "
            f"{args.entropy_coef_max:g}; set the smaller one as the minimum"
        )
    if args.fp16 and args.use_cpu:
        out.append("trainer.fp16 is for GPUs, and this run is on the CPU; set fp16: false")
    config = args.accelerator_config
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name, None):
            out.append(
                f"trainer.accelerator_config: {name} cuts a rollout's batch up between processes, by which TRL deals "
                "out whole groups itself; leave it out"
            )
    if given.get("cache_implementation") == "quantized":
        out.append(
            "trainer.cache_implementation quantized keeps rounded keys and values while completions are written: they "
            "come from another policy than the one that is trained; leave it out"
        )
    if (backend := recipe.launch.backend) in ("nccl", "xccl", "hccl") and args.use_cpu and args.world_size == 1:
        out.append(
            f"launch.backend {backend} is for GPUs, and this run is on the CPU; leave it out, or write gloo with "
            "several processes"
        )
    return out + _beyond_context(recipe)


def _beyond_context(recipe: Recipe) -> list[str]:
    """An evaluation that lets answers run on far beyond what the model can attend to; they would take for ever."""
    longest = 0 if recipe.eval is None else max(part.max_new_tokens or 0 for part in recipe.eval.parts.values())
    if not longest:
        return []
    try:
        positions = getattr(load_config(recipe.model).get_text_config(), "max_position_embeddings", None)
    except (OSError, ValueError):  # said where the model is looked at
        return []
    if positions is None or longest < 2 * positions:
        return []
    return [
        f"eval.max_new_tokens of {longest:,} is twice the model's context of {positions:,} or more, which no answer "
        "can fill; lower it"
    ]


def arithmetic_warnings(recipe: Recipe, args: Any) -> list[str]:
    return [*_step_warnings(recipe, args), *_clip_warnings(args), *_text_warnings(recipe, args)]


def _step_warnings(recipe: Recipe, args: Any) -> list[str]:
    steps, given, out = args.max_steps, recipe.trainer, []
    if steps < 1:
        return []
    prompts = args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps
    passes = steps * prompts / args.num_generations / (recipe.data.train_size or math.inf)
    if passes > BEYOND["passes over data.train_size"].high:
        out.append(
            f"trainer.max_steps of {steps:,} is {passes:,.0f} passes over the {recipe.data.train_size:,} problems of "
            "data.train_size; lower it, unless it is meant"
        )
    if args.warmup_steps >= max(steps, 1):
        out.append(
            f"trainer.warmup_steps of {args.warmup_steps:g} are not over when the run ends at step {steps}: the "
            "learning rate is never reached; lower it (below 1 it is a share of all steps)"
        )
    for name, what in (
        ("save_steps", "a checkpoint is written at the last step alone, and a run that is stopped starts over"),
        ("logging_steps", "no row of metrics is written before the end"),
        ("probe_every", "the probe runs at its start alone"),
        ("eval_steps", "the trainer never evaluates"),
    ):
        asked = given.get(name)
        uses = name != "save_steps" or str(getattr(args.save_strategy, "value", args.save_strategy)) == "steps"
        if isinstance(asked, int | float) and asked > steps and uses:
            out.append(f"trainer.{name} of {asked:g} is beyond the last step, {steps}: {what}; lower it")
    for name, strategy in (("save_steps", args.save_strategy), ("logging_steps", args.logging_strategy)):
        if name in given and str(getattr(strategy, "value", strategy)) == "no":
            out.append(
                f"trainer.{name} is set, and {name.removesuffix('_steps')}_strategy is no: none is written; write "
                "steps, or leave it out"
            )
    if late := [step for step in args.log_windows or [] if step >= steps]:
        out.append(f"trainer.log_windows names {late}, and steps are counted from 0 to {steps - 1}; take them out")
    return out


def _clip_warnings(args: Any) -> list[str]:
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    out = []
    if args.epsilon_high is not None and args.epsilon_high < args.epsilon:
        out.append(
            f"trainer.epsilon_high of {args.epsilon_high:g} is below epsilon of {args.epsilon:g}: tokens that become "
            "likelier are clipped sooner than those that become rarer; published runs have it the other way round; "
            "raise it"
        )
    if args.delta is not None and args.delta <= 1 + high:
        out.append(
            f"trainer.delta of {args.delta:g} caps the ratio inside its clip range, which ends at {1 + high:g}; raise "
            "it above that, or leave it out"
        )
    return out


def _text_warnings(recipe: Recipe, args: Any) -> list[str]:
    out = []
    if args.num_generations_eval == 1 and recipe.eval is not None and recipe.eval.at is not None:
        out.append(
            "trainer.num_generations_eval is 1: evaluations while training (eval.at) have one completion a prompt, so "
            "their spread within a prompt is 0; set it to 2 at least, or leave it out"
        )
    if args.think_open == args.think_close:
        out.append(
            f"trainer.think_open and think_close are both {args.think_open!r}: nothing tells thought from answer; give "
            "each its own tag"
        )
    if args.think_open.startswith("</") and not args.think_close.startswith("</"):
        out.append(
            f"trainer.think_open is {args.think_open!r} and think_close {args.think_close!r}: they look swapped; swap "
            "them, unless it is meant"
        )
    if args.cache_implementation == "static" and recipe.trainer.get("cache_implementation"):
        out.append(
            "trainer.cache_implementation static holds keys and values of the full length for every row from the first "
            "token on, however short completions are; leave it out"
        )
    return out
