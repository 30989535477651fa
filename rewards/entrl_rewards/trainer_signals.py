"""What a trainer delivers beside the completions, read the same way by every reward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gather = Callable[[list[float]], list[float]]  # floats in (equally many on every rank), those of all ranks out
LogMetric = Callable[[str, float], None]


def own_tokens(completion_ids: Sequence[Sequence[int]], token_mask: Sequence[Any] | None = None) -> list[Tensor]:
    """1-D bool per completion: the tokens that the model wrote; all of them where nobody says otherwise."""
    if token_mask is None:
        return [torch.ones(len(ids), dtype=torch.bool) for ids in completion_ids]
    return [torch.as_tensor(mask, dtype=torch.bool) for mask in token_mask]


def own_lengths(completion_ids: Sequence[Sequence[int]], token_mask: Sequence[Any] | None = None) -> list[int]:
    """Tokens of each completion, less those a tool put in."""
    return [int(own_T.sum()) for own_T in own_tokens(completion_ids, token_mask)]


def optimiser_step(trainer_state: Any) -> int:
    """0 before training and where nobody counts."""
    return int(getattr(trainer_state, "global_step", 0) or 0)
