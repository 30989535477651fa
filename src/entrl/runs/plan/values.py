"""Values that TRL and transformers take in silence, or stop at late: refused before a run, or warned of.

`entrl plan` and `entrl train` share the refusals. A warning names the key of a run that is legal and rarely meant.
"""

import math
from collections.abc import Sequence
from typing import Any

from entrl.diagnosis.bounds import BEYOND, STEPS, TOKENS, unusual, unusual_arguments
from entrl.runs.plan.ranges import range_problems
from entrl.runs.recipe import Recipe
from entrl.settings.groups import flat
from entrl.settings.names import Loaded
from entrl.tasks import is_endless
from entrl.trainers.shared.rewards import reward_name

# words that TRL 1.16 compares at its first step and nowhere before
CHOICES: dict[str, tuple[Any, ...]] = {
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_mode": ("colocate", "server"),
}


def value_problems(trainer: dict[str, Any]) -> list[str]:
    """Of the `trainer` group as it is written: numbers outside of what they mean, and words that mean nothing."""
    out = [
        f"trainer.{name} must be one of {', '.join(str(c) for c in known if isinstance(c, str))}, got {trainer[name]!r}"
        for name, known in CHOICES.items()
        if name in trainer and trainer[name] not in known
    ]
    if trainer.get("remove_unused_columns"):
        out.append(
            "trainer.remove_unused_columns: true takes away the columns that rewards read (answer, verifier); leave it "
            "out"
        )
    return out + range_problems(trainer)


def weight_problems(recipe: Recipe) -> list[str]:
    return [
        f"rewards.{i}.weight of {spec.use} must be a finite number, got {spec.weight}"
        for i, spec in enumerate(recipe.rewards)
        if not math.isfinite(spec.weight)
    ]


def nan_problems(recipe: Recipe) -> list[str]:
    """NaN anywhere but in `trainer` and weights, which say more of themselves."""
    return [
        f"{name} is NaN; write a number, or leave it out"
        for name, value in flat(recipe.resolved()).items()
        if isinstance(value, float) and math.isnan(value) and not name.startswith("trainer.") and "weight" not in name
    ]


def tasks_of(recipe: Recipe) -> list[str]:
    """What is trained on."""
    return [str(data.task) for data in recipe.data.mixture or [recipe.data]]


def size_problems(recipe: Recipe) -> list[str]:
    """Tasks that generate problems without end, and no number of them."""
    out = []
    if recipe.data.mixture is None and recipe.data.train_size is None and recipe.data.endless:
        out.append(f"data.train_size is not set, and {recipe.data.task} generates problems without end; set it")
    for name, part in ({} if recipe.eval is None else recipe.eval.parts).items():
        if part.size is None and is_endless(part.task):
            out.append(f"eval.size is null, and {name} generates problems without end; set it")
    return out


def reference_problems(args: Any, lora: Any) -> list[str]:
    if getattr(args, "sync_ref_model", False) and lora is not None:
        return ["trainer.sync_ref_model beside lora: the reference is the base, which does not move; leave one out"]
    if getattr(args, "sync_ref_model", False) and not args.beta:
        return ["trainer.sync_ref_model: true moves a reference model, and with beta 0 there is none; set trainer.beta"]
    return []


# --- legal, and rarely meant --------------------------------------------------------------------------------------


def value_warnings(recipe: Recipe, args: Any, prepared: Any) -> list[str]:
    """prepared: the rewards and controllers that the recipe made (`entrl.runs.plan.checks.Prepared`)"""
    return [
        *unusual(recipe.trainer),
        *_weight_warnings(recipe, prepared.rewards),
        *_reward_warnings(recipe, args, prepared.rewards),
        *_pass_warnings(recipe),
        *_controller_warnings(recipe, prepared.controllers),
        *_argument_warnings(recipe, args, prepared),
        *_evaluation_warnings(recipe, args),
        *_launch_warnings(recipe),
    ]


def _weight_warnings(recipe: Recipe, rewards: Sequence[Loaded]) -> list[str]:
    weights = [spec.weight for spec in recipe.rewards]
    if not any(weights):
        return ["every rewards.*.weight is 0: the policy is paid for nothing; give one of them a weight above 0"]
    out, names, usual = [], [reward_name(reward.value) for reward in rewards], BEYOND["size of rewards.*.weight"]
    for i, spec in enumerate(recipe.rewards):
        if abs(spec.weight) > usual.high:
            out.append(
                f"rewards.{i}.weight of {spec.use} is {spec.weight:g}, beside which nothing else counts; set it near 1"
            )
        if 0 < abs(spec.weight) < usual.low:
            out.append(
                f"rewards.{i}.weight of {spec.use} is {spec.weight:g}, which pays next to nothing (below "
                f"{usual.low:g}); set it near 1, or leave the reward out"
            )
        if spec.weight < 0:
            out.append(f"rewards.{i}.weight of {spec.use} is {spec.weight:g}: the policy is paid for less of it")
        counted = recipe.curriculum is not None and [recipe.curriculum.reward] == names[i : i + 1]
        read = recipe.trainer.get("filter_on") or counted  # its verdicts are
        if spec.weight == 0 and not read:
            out.append(
                f"rewards.{i}.weight of {spec.use} is 0: it is logged and pays nothing; leave it out, unless meant"
            )
    return out


def _pass_warnings(recipe: Recipe) -> list[str]:
    """A curriculum whose bound for a pass lies outside of the scores that `accuracy` gives."""
    spec = recipe.curriculum
    shipped = any(reward.use == "accuracy" for reward in recipe.rewards)
    if spec is None or spec.reward != "accuracy" or not shipped or 0 <= spec.pass_above < 1:
        return []
    who = "no answer" if spec.pass_above >= 1 else "every answer"
    return [
        f"curriculum.pass_above is {spec.pass_above:g}, and accuracy gives 0 to 1: {who} passes, which shows the rule "
        "no difference; set it from 0 to below 1 (0.5 as it is)"
    ]


def _reward_warnings(recipe: Recipe, args: Any, rewards: Sequence[Loaded]) -> list[str]:
    out = []
    for i, (reward, spec) in enumerate(zip(rewards, recipe.rewards, strict=False)):
        where, value = f"rewards.{i}.args", reward.value
        limit, usual = getattr(value, "timeout_s", None), BEYOND["rewards.*.args.timeout_s"]
        if limit is not None and limit < usual.low:
            out.append(
                f"{where}.timeout_s of {spec.use} is {limit:g}: checks by a child process take longer on a busy "
                f"machine, and what is not checked in time gets no reward; set it to {usual.low:g} at least"
            )
        if limit is not None and limit > usual.high:
            out.append(
                f"{where}.timeout_s of {spec.use} is {limit:g} seconds for one answer, which a rollout waits for; is "
                "it in milliseconds? Set it to about 5"
            )
        longest = getattr(value, "max_length", None)
        if isinstance(longest, int) and longest > args.max_completion_length:
            out.append(
                f"{where}.max_length of {spec.use} is {longest:,}, and no completion is longer than "
                f"trainer.max_completion_length of {args.max_completion_length:,}; set both to the same"
            )
    paying = [
        r.source for r, spec in zip(rewards, recipe.rewards, strict=False) if spec.weight and _pays_correctness(r)
    ]
    if len(paying) > 1:
        out.append(f"correctness is paid {len(paying)} times, by {' and '.join(paying)}; keep one, unless it is meant")
    return out


def _pays_correctness(reward: Loaded) -> bool:
    theirs = reward.source.startswith("trl.rewards") and "accuracy" in reward.source
    return theirs or getattr(reward.value, "judges", None) is not None


def _controller_warnings(recipe: Recipe, controllers: Sequence[Loaded]) -> list[str]:
    out = []
    for i, (controller, spec) in enumerate(zip(controllers, recipe.controllers, strict=False)):
        where, value = f"controllers.{i}.args", controller.value
        out += [
            f"{where}.{name} of {spec.use} is 0, which switches it off; leave the controller out, or set it above 0"
            for name in ("coef", "strength")
            if getattr(value, name, None) == 0
        ]
        if (floor := getattr(value, "floor", None)) is not None and floor > BEYOND["controllers.*.args.floor"].high:
            out.append(
                f"{where}.floor of {spec.use} is {floor:g} in reward units, above the spread that rewards of 0 and 1 "
                "can have (0.5): every advantage is divided by it; set it near 0.05"
            )
        band = getattr(value, "band", None)
        if band is not None and band[0] > BEYOND["controllers.*.args.band"].high:
            out.append(
                f"{where}.band of {spec.use} is {list(band)}, as shares of the starting entropy; is it in percent? "
                f"Write [{band[0] / 100:g}, {band[1] / 100:g}]"
            )
    return out


def _argument_warnings(recipe: Recipe, args: Any, prepared: Any) -> list[str]:
    sizes = {TOKENS: args.max_completion_length, STEPS: args.max_steps}
    parts = [
        (f"{group}.{i}.args", loaded.value, spec.use)
        for group, made, specs in (
            ("rewards", prepared.rewards, recipe.rewards),
            ("controllers", prepared.controllers, recipe.controllers),
        )
        for i, (loaded, spec) in enumerate(zip(made, specs, strict=False))
    ]
    if prepared.course is not None and recipe.curriculum is not None:
        parts.append(("curriculum", prepared.course.options, recipe.curriculum.use))
        parts.append(("curriculum.args", prepared.course.rule, recipe.curriculum.use))
    return [text for where, value, use in parts for text in unusual_arguments(value, where, use, sizes)]


def _launch_warnings(recipe: Recipe) -> list[str]:
    gib = recipe.launch.device_memory_gib
    if gib is None or gib <= BEYOND["launch.device_memory_gib"].high:
        return []
    return [f"launch.device_memory_gib of {gib:g} is more than any device has; is it in MiB? Write {gib / 1024:g}"]


def _evaluation_warnings(recipe: Recipe, args: Any) -> list[str]:
    out = []
    trained = [(data.task, data.split, dict(data.args)) for data in recipe.data.mixture or [recipe.data]]
    for spec in [] if recipe.eval is None else recipe.eval.parts.values():
        if (spec.task, spec.split, dict(spec.args)) in trained:
            out.append(
                f"eval reads the split that is trained on ({spec.task}, {spec.split}): its numbers are no test; set "
                "eval.split or eval.task"
            )
        if spec.counts and recipe.environment is not None:
            out.append(
                "eval.counts counts in texts, and with an environment the evaluation is of dialogues, where it does "
                "nothing; leave it out"
            )
        if spec.samples > BEYOND["eval.samples"].high:
            out.append(
                f"eval.samples of {spec.samples:,} answers to each of the problems take longer than most trainings; "
                "set it to what the largest eval.k needs"
            )
        if spec.temperature > BEYOND["eval.temperature"].high:
            out.append(
                f"eval.temperature of {spec.temperature:g} samples little but noise; runs have 0.6 to 1.2, set it there"
            )
        if spec.max_new_tokens is not None and 2 * spec.max_new_tokens < args.max_completion_length:
            out.append(
                f"eval.max_new_tokens of {spec.max_new_tokens} cuts answers that may have {args.max_completion_length} "
                "tokens in training (trainer.max_completion_length): what is cut counts as wrong"
            )
    return out
