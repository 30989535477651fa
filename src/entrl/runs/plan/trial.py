"""A trial call of the user's own rewards on a group of short completions: what train would find at its first step.

Rewards are made anew from the recipe, so that one that remembers what it saw has not seen this. Those of this package
are tested elsewhere and not called; nor are those of a run with an environment, whose events nobody has here.
"""

import asyncio
import inspect
from typing import Any

import torch

from entrl.runs.plan.checks import Prepared
from entrl.runs.recipe import Recipe
from entrl.trainers.shared.first_look import think_tags_of
from entrl.trainers.shared.rewards import RewardError, guarded, needed_signals

TEXTS = ("1", "2 + 2")  # completions, in turn


def trial_problems(recipe: Recipe, prepared: Prepared, rows: Any, tokenizer: Any) -> list[str]:
    """What each reward of the user's raises, or returns that is no reward."""
    if prepared.environment is not None or prepared.args is None or not prepared.rewards:
        return []
    own = [r.value for r in recipe.build_rewards() if not r.source.startswith("entrl_rewards.")]
    if not own:
        return []
    signals = _signals(prepared.args.num_generations, rows, tokenizer)
    tags = think_tags_of(tokenizer, prepared.args, needed=False, warn=lambda _: None)
    shared = {"gather": list, "training": True, "tokenizer": tokenizer, "think_tags": tags}
    return [problem for guard in guarded(own, **shared) if (problem := _tried(guard, signals)) is not None]


def tag_problems(prepared: Prepared, tokenizer: Any) -> list[str]:
    """Tags that a reward needs and the tokenizer cannot spell or tell apart, in the trainer's own words."""
    try:
        if any("think_tags" in needed_signals(r) for r in prepared.reward_funcs):
            think_tags_of(tokenizer, prepared.args, needed=True, warn=lambda _: None)
    except ValueError as error:
        return [f"trainer: {error}"]
    return []


def _tried(guard: Any, signals: dict[str, Any]) -> str | None:
    try:
        answer = guard(**signals)
        if inspect.isawaitable(answer):
            asyncio.run(_awaited(answer))
    except RewardError as error:
        return f"{error} (in a trial call on {len(signals['completions'])} short completions)"
    return None


async def _awaited(answer: Any) -> Any:
    return await answer


def _signals(count: int, rows: Any, tokenizer: Any) -> dict[str, Any]:
    """What a reward is called with: the first row's prompt, `count` times, as TRL and the trainer hand it over."""
    from transformers import TrainerState

    row = dict(rows[0])
    prompt = row.pop("prompt")
    texts = [TEXTS[i % len(TEXTS)] for i in range(count)]
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
        "group_index": [0] * count,
        "token_entropies": [torch.ones(len(one)) for one in ids],
        "token_logprobs": [-torch.ones(len(one)) for one in ids],
        "token_mask": [torch.ones(len(one), dtype=torch.bool) for one in ids],
        "truncated": [False] * count,
        "prompt_ids": [tokenizer(str(prompt), add_special_tokens=False)["input_ids"]] * count,
        "answer_texts": texts,
    }
