"""Where a reward takes its token entropies from: exact, from top-k log-probs, or sampled surprisal.

    exact     token_entropies, full vocabulary at the training temperature: the only source fit to compare runs
    topk      token_topk_logprobs, per completion a (T, K) tensor of the engine's log-probs (-inf = not listed)
    sampled   -ln pi(y_t): its phase mean is unbiased at temperature 1 without truncation, noisy for short answers,
              and turns the reward into one on the likelihood of the very tokens drawn

Nats everywhere. See `entrl.maths.signals.entropy_from_topk` for the estimates and their bias.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from entrl.maths.signals import entropy_from_topk

EntropySource = Literal["exact", "topk", "sampled"]
TopKEstimate = Literal["lower", "upper", "bucket", "dropped", "mid"]

SIGNAL_OF = {"exact": "token_entropies", "topk": "token_topk_logprobs", "sampled": "token_logprobs"}


def token_entropy_rows(
    source: EntropySource,
    completion_ids: Sequence[Sequence[int]],
    signals: dict[str, Any],
    *,
    estimate: TopKEstimate = "mid",
    k: int | None = None,
    vocab_size: int | None = None,
) -> list[Tensor]:
    """One 1-D float32 tensor of nats per completion, one value per token."""
    rows = signals.get(SIGNAL_OF[source])
    if rows is None:
        raise TypeError(_missing(source))
    for i, (row, ids) in enumerate(zip(rows, completion_ids, strict=True)):
        if len(row) != len(ids):
            raise ValueError(
                f"{SIGNAL_OF[source]} of row {i} has {len(row)} values for {len(ids)} tokens; one per completion token"
            )
    if source == "exact":
        return [torch.as_tensor(row, dtype=torch.float32) for row in rows]
    if source == "sampled":
        return [-torch.as_tensor(row, dtype=torch.float32) for row in rows]
    return [_from_topk(torch.as_tensor(row), estimate=estimate, k=k, vocab_size=vocab_size or 0) for row in rows]


def _from_topk(log_probs_TK: Tensor, *, estimate: TopKEstimate, k: int | None, vocab_size: int) -> Tensor:
    if len(log_probs_TK) == 0:
        return torch.zeros(0)
    listed_TK = log_probs_TK != -torch.inf
    estimates = entropy_from_topk(log_probs_TK, vocab_size=vocab_size, k=k, listed_NK=listed_TK)
    return getattr(estimates, estimate).float()


def _missing(source: EntropySource) -> str:
    if source == "topk":
        return (
            "entropy_source='topk' needs token_topk_logprobs, which no trainer here delivers by itself: add that key "
            "to the rows (per completion a (T, K) tensor), or set entropy_source='exact'"
        )
    return f"entropy_source={source!r} needs {SIGNAL_OF[source]}, which stock TRL does not pass; use EntropyGRPOTrainer"
