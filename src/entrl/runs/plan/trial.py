"""A trial call of the user's own rewards on a group of short completions: what train would find at its first step.

`entrl plan` and `entrl train` make it, the latter in its first process. It is made in a fork, so that one that
remembers what it saw has not seen this, and one that ends its process ends the fork. Where there is none (beside Linux,
or for a reward on a GPU that this process has opened) rewards are made anew from the recipe and called here under an
alarm. Those of this package are tested elsewhere and not called; nor are those of a run with an environment, whose
events nobody has here.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from entrl.diagnosis.bounds import BEYOND
from entrl.runs.plan.checks import Prepared
from entrl.runs.plan.limits import apart, within
from entrl.runs.plan.loading import with_limit
from entrl.runs.recipe import Recipe
from entrl.runs.reward_call import called, completion_row, signals_of
from entrl.settings.names import Loaded
from entrl.trainers.shared.first_look import think_tags_of
from entrl.trainers.shared.rewards import RewardError, guarded, needed_signals, reward_name

ON_GPU = "CUDA in forked subprocess"  # what torch says where the process that was forked has opened a GPU
LARGEST = BEYOND["rewards.* of a trial call"]
SHORT = ("1", "2 + 2")  # completions, beside those made of the row's gold answer


@dataclass(kw_only=True)
class Trial:
    """What the trial calls showed."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def try_rewards(recipe: Recipe, prepared: Prepared, rows: Any, tokenizer: Any) -> Trial:
    """What each reward of the user's raises, or returns that is no reward, or the same whatever was written."""
    trial = Trial()
    if prepared.environment is not None or prepared.args is None or not prepared.rewards:
        return trial
    own = [i for i, reward in enumerate(prepared.rewards) if not reward.source.startswith("entrl_rewards.")]
    if not own or not recipe.reward_trial_s:
        return trial
    signals = _signals(prepared, rows, tokenizer)
    tags = think_tags_of(tokenizer, prepared.args, needed=False, warn=lambda _: None)
    shared = {"gather": list, "training": True, "tokenizer": tokenizer, "think_tags": tags}
    for number in own:
        _try_one(recipe, prepared.rewards[number], number, signals, shared, trial)
    return trial


def _try_one(
    recipe: Recipe, reward: Loaded, number: int, signals: dict[str, Any], shared: dict[str, Any], trial: Trial
) -> None:
    count, source = len(signals["completions"]), reward.source

    def call(one: Loaded) -> list[float | None]:
        (guard,) = guarded([one.value], **shared)
        return called(guard, signals)

    try:
        values = _limited(recipe, reward, number, call)
    except ValueError as error:
        words = with_limit(error, "reward_trial_s")
        trial.problems.append(f"{words} (in a trial call on {count} short completions)")
        return
    if all(value is None for value in values):
        trial.warnings.append(
            f"reward {source} returned None for all {count} completions of a trial call, so it applies to none of "
            "them: nothing is paid by it; look with `entrl try-reward` at what it says of real completions"
        )
    elif (most := max(abs(value) for value in values if value is not None)) > LARGEST.high:
        trial.warnings.append(
            f"reward {source} returned {most:g} in a trial call on {count} short completions: rewards are averaged in "
            "single precision, where beside it all others vanish; scale it to about 1"
        )
    elif len(set(values)) == 1:
        trial.warnings.append(
            f"reward {source} returned {values[0]:g} for all {count} completions of a trial call, right and wrong, "
            "long and short ones: a reward that is the same within a group trains nothing; look with `entrl "
            "try-reward` at what it says of real completions"
        )


def tag_problems(prepared: Prepared, tokenizer: Any) -> list[str]:
    """Tags that a reward needs and the tokenizer cannot spell or tell apart, in the trainer's own words."""
    try:
        if any("think_tags" in needed_signals(r) for r in prepared.reward_funcs):
            think_tags_of(tokenizer, prepared.args, needed=True, warn=lambda _: None)
    except ValueError as error:
        return [f"trainer: {error}"]
    return []


def _limited(
    recipe: Recipe, reward: Loaded, number: int, call: Callable[[Loaded], list[float | None]]
) -> list[float | None]:
    """ValueError for what a reward raises, returns that is no reward, or never returns."""
    what, seconds = f"reward {reward_name(reward.value)!r} ({reward.source})", recipe.reward_trial_s
    if sys.platform == "linux":
        try:
            return apart(seconds, lambda: call(reward), what)
        except RewardError as error:
            if ON_GPU not in str(error):
                raise
    again = recipe.build_rewards()[number]
    return within(seconds, lambda: call(again), what)


def _signals(prepared: Prepared, rows: Any, tokenizer: Any) -> dict[str, Any]:
    """The first row's prompt, answered by whole groups."""
    columns = dict(rows[0])
    prompt = columns.pop("prompt")
    kinds = _texts(columns.get("answer"), prepared.args)
    size = prepared.args.num_generations
    asked = tokenizer(str(prompt), add_special_tokens=False)["input_ids"]
    made = []
    for i in range(size * math.ceil(len(kinds) / size)):
        text = kinds[i % len(kinds)]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made.append(
            completion_row(
                prompt,
                text,
                group=i // size,
                truncated=False,
                answer=text,
                columns=columns,
                completion_ids=ids,
                prompt_ids=asked,
                token_entropies=torch.ones(len(ids)),
                token_logprobs=-torch.ones(len(ids)),
            )
        )
    return signals_of(made)


def _texts(gold: Any, args: Any) -> list[str]:
    """Right and wrong, bare, boxed and after a thought, short and long."""
    right = [] if gold is None else [str(gold), f"{args.think_open}1 + 1{args.think_close}\n\\boxed{{{gold}}}"]
    return [*SHORT, *right, f"{args.think_open}2{args.think_close}\n\\boxed{{17}}", "so it goes on " * 8]
