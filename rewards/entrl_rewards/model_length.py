"""How many tokens of a completion the model wrote: all of them, less those a tool put in."""

from collections.abc import Sequence
from typing import Any

import torch


def model_lengths(completion_ids: Sequence[Sequence[int]], token_mask: Sequence[Any] | None = None) -> list[int]:
    """One length in tokens per completion; `token_mask` is True on the model's own tokens."""
    if token_mask is None:
        return [len(ids) for ids in completion_ids]
    return [int(torch.as_tensor(mask, dtype=torch.bool).sum()) for mask in token_mask]
