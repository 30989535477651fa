"""What a reward is called with outside of training, as TRL and the trainer hand it over; and the call.

    completion_row   one completion with its prompt, its columns and what is known of its tokens, by the singular
    signals_of       rows -> the keywords of one call
    called           what the guarded reward says of them, also where it is asynchronous

Kept completions (`stored`), the trial before training (`plan.trial`) and the doctor's samples make their rows here.
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

PLURAL = {"prompt": "prompts", "completion": "completions"}


def completion_row(
    prompt: Any,
    text: str,
    *,
    group: int,
    truncated: bool,
    answer: str,
    columns: Mapping[str, Any],
    mask: Sequence[bool] | None = None,
    **known: Any,
) -> dict[str, Any]:
    """prompt: text, or messages, and then the completion is one too. mask: None where every token is the model's.

    known: completion_ids, prompt_ids, token_entropies, token_logprobs, as far as they are.
    """
    mask = [True] * len(known["completion_ids"]) if mask is None else mask
    return {
        **columns,
        "prompt": prompt,
        "completion": text if isinstance(prompt, str) else [{"role": "assistant", "content": text}],
        "group_index": group,
        "truncated": truncated,
        "answer_texts": answer,
        "token_mask": torch.tensor(mask, dtype=torch.bool),
        **known,
    }


def signals_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every key of the first row, a value per row (None where one lacks it), and TRL's own beside them."""
    from transformers import TrainerState

    call = {PLURAL.get(name, name): [one.get(name) for one in rows] for name in rows[0]}
    call.setdefault("completion_ids", [[] for _ in rows])
    return call | {
        "trainer_state": TrainerState(),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }


def called(reward: Any, signals: Mapping[str, Any]) -> Any:
    """reward: a guard (`entrl.trainers.shared.rewards.guarded`), or one of its methods."""
    answer = reward(**signals)
    return asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer


async def _awaited(answer: Any) -> Any:
    return await answer
