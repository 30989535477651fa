"""Where a reward takes its token entropies from: exact, from top-k log-probs, or sampled surprisal.

    exact     token_entropies, full vocabulary at the training temperature: the only source fit to compare runs
    topk      token_topk_logprobs, per completion a (T, K) tensor of the engine's log-probs (-inf = not listed)
    sampled   -ln pi(y_t): its phase mean is unbiased at temperature 1 without truncation, noisy for short answers,
              and turns the reward into one on the likelihood of the very tokens drawn

Nats everywhere. See `entrl.maths.signals.entropy_from_topk` for the estimates and their bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from entrl.maths.signals import entropy_from_topk
from entrl_rewards.options import check_choices, check_ranges

EntropySource = Literal["exact", "topk", "sampled"]
TopKEstimate = Literal["lower", "upper", "bucket", "dropped", "mid"]

SIGNAL_OF = {"exact": "token_entropies", "topk": "token_topk_logprobs", "sampled": "token_logprobs"}


@dataclass(frozen=True, kw_only=True)
class EntropyOptions:
    """Base of the expert options of a reward that reads token entropies."""

    entropy_source: EntropySource = "exact"
    topk_estimate: TopKEstimate = "mid"  # for entropy_source="topk": the sharpened tail
    topk_k: int | None = None  # how many log-probs the engine was asked for
    vocab_size: int | None = None  # tokens in the vocabulary, for entropy_source="topk"

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, {"topk_k": (self.topk_k is None or self.topk_k >= 1, ">= 1, or null")})
        if self.entropy_source == "topk" and (self.vocab_size is None or self.vocab_size < 2):
            raise ValueError(
                f"entropy_source='topk' needs vocab_size, got {self.vocab_size}; pass the model's own size"
            )

    @property
    def entropy_needs(self) -> tuple[str, ...]:
        """Signals the trainer must deliver; top-k log-probs are not among them, they come as a key of the rows."""
        return () if self.entropy_source == "topk" else (SIGNAL_OF[self.entropy_source],)

    def entropy_rows(
        self,
        completion_ids: Sequence[Sequence[int]],
        signals: dict[str, Any],
        *,
        estimate: TopKEstimate | None = None,
    ) -> list[Tensor]:
        """One 1-D float32 tensor of nats per completion, one value per token. estimate: in place of topk_estimate."""
        rows = signals.get(name := SIGNAL_OF[self.entropy_source])
        if rows is None:
            raise TypeError(_missing(self.entropy_source))
        for i, (row, ids) in enumerate(zip(rows, completion_ids, strict=True)):
            if len(row) != len(ids):
                raise ValueError(
                    f"{name} of row {i} has {len(row)} values for {len(ids)} tokens; one per completion token"
                )
        if self.entropy_source == "topk":
            return [self._from_topk(torch.as_tensor(row), estimate or self.topk_estimate) for row in rows]
        nats = [torch.as_tensor(row, dtype=torch.float32) for row in rows]
        return [-row for row in nats] if self.entropy_source == "sampled" else nats

    def _from_topk(self, log_probs_TK: Tensor, estimate: TopKEstimate) -> Tensor:
        if len(log_probs_TK) == 0:
            return torch.zeros(0)
        listed_TK = log_probs_TK != -torch.inf
        size = self.vocab_size or 0
        estimates = entropy_from_topk(log_probs_TK, vocab_size=size, k=self.topk_k, listed_NK=listed_TK)
        return getattr(estimates, estimate).float()


def _missing(source: EntropySource) -> str:
    if source == "topk":
        return (
            "entropy_source='topk' needs token_topk_logprobs, which no trainer here delivers by itself: add that key "
            "to the rows (per completion a (T, K) tensor), or set entropy_source='exact'"
        )
    return f"entropy_source={source!r} needs {SIGNAL_OF[source]}, which stock TRL does not pass; use EntropyGRPOTrainer"
