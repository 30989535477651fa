"""What a run asks of branching, of the group filter and of credit per turn; and why it cannot have it."""

from collections.abc import Sequence
from typing import Any

from entrl.maths.branching import BranchOptions
from entrl.maths.group_filter import GroupFilter
from entrl.trainers.shared.rewards import reward_name

CORRECT = "correct"  # a published column: 1, 0, or -1 where the verdict is not known
ACCURACY = "accuracy"  # the name of a reward function whose values are scores
NO_VERDICTS = f"filter_on: accuracy finds no verdicts: no reward is called {ACCURACY!r} or publishes {CORRECT!r}"
TURN_REWARDS = "turn_rewards"  # a published column: one list of rewards per completion
# Settings of a sampler that count from the start of its own output, which for a fork is the middle of a completion.
FROM_THE_START = (
    "min_new_tokens",
    "min_length",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "begin_suppress_tokens",
    "structured_outputs",
    "stop",
    "stop_strings",
    "stop_token_ids",
    "max_time",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
    "max_new_tokens",
    "max_tokens",
    "seed",
)


def branch_options(args: Any) -> BranchOptions | None:
    """The `branch_*` options of a trainer's config, None where it does not branch; ValueError as `BranchOptions`."""
    if getattr(args, "branch_roots", None) is None:
        return None
    return BranchOptions(
        roots=args.branch_roots,
        at=args.branch_at,
        window=args.branch_window,
        quantile=args.branch_quantile,
        attempts=args.branch_attempts,
        token_budget=args.branch_token_budget,
    )


def branching_problems(args: Any, *, whole_groups: bool, tools: bool = False, rollout_func: bool = False) -> list[str]:
    """Why these options cannot branch; empty = all right, or `branch_roots` is not set.

    whole_groups: each rank holds whole groups.
    """
    roots = getattr(args, "branch_roots", None)
    if roots is None:
        return []
    try:
        branch_options(args)
    except ValueError as error:
        return [str(error)]
    out = []
    if not 2 <= roots < args.num_generations:
        out.append(
            f"branch_roots={roots} must be at least 2 and below num_generations={args.num_generations}; the rest of a "
            "prompt's completions are forks"
        )
    if not whole_groups:
        out.append(
            "branch_roots needs every prompt's completions on one process; make per_device_train_batch_size x "
            "steps_per_generation a multiple of num_generations"
        )
    if getattr(args, "vllm_replicas", None):
        out.append(
            "branch_roots with vllm_replicas is not supported: one limit goes with all requests of a call, and a "
            "server refuses a long prefix with the limit of a short one; use the colocated engine, or transformers"
        )
    if tools or rollout_func:
        out.append("branch_roots forks what the trainer's own sampler wrote; remove the tools or the rollout function")
    if getattr(args, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
        out.append(
            f"branch_roots weighs one summed reward; multi_objective_aggregation={args.multi_objective_aggregation} "
            "normalises each first: take sum_then_normalize"
        )
    given = {k for k, v in (args.generation_kwargs or {}).items() if k in FROM_THE_START and v is not None}
    if getattr(args, "vllm_structured_outputs_regex", None):
        given.add("vllm_structured_outputs_regex")
    if given:
        out.append(
            f"{', '.join(sorted(given))} act from the start of what the sampler writes, which for a fork is the middle "
            "of a completion, so it would be drawn from another distribution; remove them, or branch_roots"
        )
    return out


def filter_rule(args: Any) -> GroupFilter | None:
    """The filter that these options ask for; ValueError where they contradict each other. None without `filter_on`."""
    on = getattr(args, "filter_on", None)
    if on is None:
        return None
    return GroupFilter(
        on=on,
        low=args.filter_low,
        high=args.filter_high,
        min_std=args.filter_min_std,
        max_tries=args.filter_max_tries,
        on_exhausted=args.filter_exhausted,
    )


def filter_problems(args: Any, reward_funcs: Sequence[Any], *, whole_groups: bool) -> list[str]:
    """What makes the filter of these options impossible; empty without `filter_on`."""
    try:
        rule = filter_rule(args)
    except ValueError as error:
        return [str(error)]
    if rule is None:
        return []
    problems = []
    if not whole_groups:
        problems.append(
            "filter_on puts whole groups in the places of others, and groups are split over processes; make "
            "per_device_train_batch_size x steps_per_generation a multiple of num_generations"
        )
    sources = [r for r in reward_funcs if reward_name(r) == ACCURACY or CORRECT in getattr(r, "published_columns", ())]
    if rule.on == "accuracy" and not sources:
        problems.append(f"{NO_VERDICTS}; add the reward accuracy (weight 0 will do), or filter on reward")
    return problems


def turn_problems(args: Any, reward_funcs: Sequence[Any]) -> list[str]:
    """What about these options would make credit per turn wrong or idle."""
    estimator = getattr(args, "turn_credit", None)
    publishes = any(TURN_REWARDS in getattr(r, "published_columns", ()) for r in reward_funcs)
    if estimator is None:
        if not publishes:
            return []
        return [
            f"a reward publishes {TURN_REWARDS} and nothing turns them into advantages; set trainer.turn_credit: "
            "return_to_go, or pay: episode"
        ]
    problems = []
    if not publishes:
        problems.append(
            f"turn_credit={estimator} needs {TURN_REWARDS}, which no reward here publishes; add information_gain with "
            "pay: turn, or a reward of your own with published_columns"
        )
    if args.importance_sampling_level != "token":
        problems.append(
            f"turn_credit gives each turn its own advantage, which importance_sampling_level="
            f"{args.importance_sampling_level!r} spreads over the completion; set importance_sampling_level: token"
        )
    if getattr(args, "filter_on", None) is not None:
        problems.append(
            "turn_credit and filter_on cannot be combined: the filter drops groups by the episode's reward, also those "
            "whose turns differ; leave one of them out"
        )
    if getattr(args, "branch_roots", None) is not None:
        problems.append("turn_credit and branch_roots cannot be combined: dialogues are not forked; leave one out")
    return problems
