"""A trial call of the user's own rewards on a group of short completions: what train would find at its first step.

Rewards are made anew from the recipe, so that one that remembers what it saw has not seen this. Those of this package
are tested elsewhere and not called; nor are those of a run with an environment, whose events nobody has here.
"""

import asyncio
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from entrl.runs.plan.checks import Prepared
from entrl.runs.plan.limits import within
from entrl.runs.recipe import Recipe
from entrl.trainers.shared.first_look import think_tags_of
from entrl.trainers.shared.rewards import RewardError, guarded, needed_signals

TRIAL_S = 30.0  # seconds for one call; a rollout would wait as long for every batch
LARGEST = 1e6  # of a reward; single precision tells no difference below 0.06 there
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
    own = [r.value for r in recipe.build_rewards() if not r.source.startswith("entrl_rewards.")]
    if not own:
        return trial
    sources = [r.source for r in prepared.rewards if not r.source.startswith("entrl_rewards.")]
    signals = _signals(prepared, rows, tokenizer)
    tags = think_tags_of(tokenizer, prepared.args, needed=False, warn=lambda _: None)
    shared = {"gather": list, "training": True, "tokenizer": tokenizer, "think_tags": tags}
    for guard, source in zip(guarded(own, **shared), sources, strict=True):
        _try_one(guard, source, signals, trial)
    return trial


def _try_one(guard: Any, source: str, signals: dict[str, Any], trial: Trial) -> None:
    count = len(signals["completions"])
    try:
        values = within(TRIAL_S, lambda: called(guard, signals), f"reward {guard.__name__!r} ({source})")
    except RewardError as error:
        trial.problems.append(f"{error} (in a trial call on {count} short completions)")
        return
    except ValueError as error:
        trial.problems.append(f"{error} (in a trial call on {count} short completions)")
        return
    if all(value is None for value in values):
        trial.warnings.append(
            f"reward {source} returned None for all {count} completions of a trial call, so it applies to none of "
            "them: nothing is paid by it; look with `entrl try-reward` at what it says of real completions"
        )
    elif (most := max(abs(value) for value in values if value is not None)) > LARGEST:
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


def called(guard: Any, signals: dict[str, Any]) -> list[float | None]:
    """What the reward says of these signals, also where it is asynchronous."""
    answer = guard(**signals)
    return asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer


async def _awaited(answer: Any) -> Any:
    return await answer


def _signals(prepared: Prepared, rows: Any, tokenizer: Any) -> dict[str, Any]:
    """What a reward is called with: the first row's prompt, whole groups of it, as TRL and the trainer hand it over."""
    from transformers import TrainerState

    row = dict(rows[0])
    prompt = row.pop("prompt")
    kinds = _texts(row.get("answer"), prepared.args)
    size = prepared.args.num_generations
    count = size * math.ceil(len(kinds) / size)
    texts = [kinds[i % len(kinds)] for i in range(count)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    chat = not isinstance(prompt, str)
    return {
        "prompts": [prompt] * count,
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
        "completion_ids": ids,
        **{name: [value] * count for name, value in row.items()},
        "trainer_state": TrainerState(),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
        "group_index": [i // size for i in range(count)],
        "token_entropies": [torch.ones(len(one)) for one in ids],
        "token_logprobs": [-torch.ones(len(one)) for one in ids],
        "token_mask": [torch.ones(len(one), dtype=torch.bool) for one in ids],
        "truncated": [False] * count,
        "prompt_ids": [tokenizer(str(prompt), add_special_tokens=False)["input_ids"]] * count,
        "answer_texts": texts,
    }


def _texts(gold: Any, args: Any) -> list[str]:
    """Right and wrong, bare, boxed and after a thought, short and long."""
    right = [] if gold is None else [str(gold), f"{args.think_open}1 + 1{args.think_close}\n\\boxed{{{gold}}}"]
    return [*SHORT, *right, f"{args.think_open}2{args.think_close}\n\\boxed{{17}}", "so it goes on " * 8]
