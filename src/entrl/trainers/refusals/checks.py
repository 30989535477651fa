"""Every check of a run's options, together: the trainers refuse by it, `entrl plan` prints it. No model, no data."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from entrl.controllers.hooks import Controller
from entrl.trainers.refusals.conflicts import combination_problems, loss_problems
from entrl.trainers.refusals.engine_rules import vllm_problems
from entrl.trainers.refusals.part_options import branching_problems, filter_problems, turn_problems
from entrl.trainers.refusals.sampling import sampling_problems
from entrl.trainers.refusals.schedule import describe_schedule, empty_runs, group_problems, window_problems
from entrl.trainers.shared.rewards import SCORED_SIGNALS, needed_signals, reward_name

TRL_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


def check_schedule(
    args: Any, controllers: Sequence[Controller], reward_funcs: Sequence[Callable | Any], world_size: int
) -> list[str]:
    """Everything about these options that would make a controller or a reward wrong or idle; empty = all right.

    Each entry names the value, the rule and the next move. The trainers raise all of them as one, `entrl plan`
    prints them all.
    """
    if problems := empty_runs(args):
        return problems  # without a step there is no arithmetic
    schedule = describe_schedule(args, world_size)
    if args.loss_type not in TRL_LOSSES:
        problems.append(f"loss_type={args.loss_type!r} is not one of TRL's: {', '.join(TRL_LOSSES)}; set one of them")
    if not 0 < args.temperature < math.inf:
        problems.append(f"temperature must be > 0 and finite to sample rollouts, got {args.temperature}")
    for controller in controllers:
        if controller.uses_loss_hook:
            problems += loss_problems(args, controller) + window_problems(controller, schedule)
        if controller.required_scaling not in (None, args.scale_rewards):
            problems.append(
                f"{controller.name} is defined for scale_rewards={controller.required_scaling}, not "
                f"{args.scale_rewards}; change scale_rewards or drop the controller"
            )
    problems += combination_problems(args, controllers)
    for reward in reward_funcs:
        problems += group_problems(args, reward, schedule) + _repeated_tags(args, reward)
    problems += branching_problems(args, whole_groups=schedule.whole_groups_per_rank)
    if getattr(args, "branch_roots", None) is not None:
        problems += [
            f"branch_roots and {c.name} cannot be combined: both replace the advantages; keep one of them"
            for c in controllers
            if c.role == "advantage"
        ]
    problems += filter_problems(args, reward_funcs, whole_groups=schedule.whole_groups_per_rank)
    problems += turn_problems(args, reward_funcs)
    problems += _unpublished_columns(controllers, reward_funcs)
    problems += sampling_problems(args)
    return problems + vllm_problems(args, entropy_aware=reads_policy(controllers, reward_funcs))


def reads_policy(controllers: Sequence[Controller], reward_funcs: Sequence[Callable | Any]) -> bool:
    """Whether somebody reads entropies or log-probs, which are those of the policy and not of what a sampler makes."""
    return any(c.uses_loss_hook for c in controllers) or any(
        needed_signals(r) & set(SCORED_SIGNALS) for r in reward_funcs
    )


def wants_no_dropout(args: Any, controllers: Sequence[Controller], reward_funcs: Sequence[Callable | Any]) -> bool:
    """Whether somebody reads scores of the policy, branching and the logs included."""
    others = args.branch_roots is not None or args.probe_every or args.log_windows
    return bool(others) or reads_policy(controllers, reward_funcs)


def _repeated_tags(args: Any, reward: Any) -> list[str]:
    """Options of a reward that say for texts what the trainer knows from token ids, and say it otherwise."""
    found = []
    for option, key in getattr(reward, "text_options", {}).items():
        given, here = getattr(reward, option), getattr(args, key, None) if key else None
        if given in (None, False, "last", here):  # not given, what holds here anyway, or the same again
            continue
        advice = (
            f"trainer.{key} is {here!r} and decides for rewards and evaluation alike"
            if key
            else (
                "here the token ids and the prompt decide; pay for the format by think_format or PEAR's missing_close"
            )
        )
        found.append(
            f"reward {reward_name(reward)!r}: {option}={given!r} is for stock TRL and plain texts; {advice}: remove "
            f"{option} from the reward" + (f" and set trainer.{key}" if key else "")
        )
    return found


def _unpublished_columns(controllers: Sequence[Controller], reward_funcs: Sequence[Callable | Any]) -> list[str]:
    published = {name for r in reward_funcs for name in getattr(r, "published_columns", ())}
    return [
        f"{c.name} needs {', '.join(missing)} of each row, which no reward here publishes; add hierarchical_entropy "
        "(alpha: 0 makes it plain accuracy)"
        for c in controllers
        if (missing := [name for name in c.needs_columns if name not in published])
    ]
