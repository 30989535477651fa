"""Token maths with two or more callers: padding, masked means, entropy (exact, from top-k), covariance.

    H_t = -sum_v p_t(v) ln p_t(v) = logsumexp(z_t) - sum_v softmax(z_t)_v z_tv   nats, z = logits/T

From the K log-probs a serving engine returns (S the listed tokens, t = 1 - sum_S p the missing mass, p_k the
smallest probability among the top-k, V the vocabulary size, H_S = -sum_S p ln p):

    dropped = H_S                        the tail left out
    bucket  = H_S - t ln t               the tail as one outcome: always an underestimate
    lower   = H_S - t ln min(t, p_k)     every tail token has at most min(t, p_k)
    upper   = H_S - t ln t + t ln(V - |S|)   a uniform tail
    mid     = (lower + upper) / 2,   half_width = (upper - lower) / 2

Source:  bounds derived from H = H_S - t ln t + t H(tail / t); bucket and dropped are the two ARES uses (arXiv
    2510.08457)
Needs:   torch only

Masks are bool and True counts. Everything is selected with `where`, never multiplied, so NaN in the padding
stays there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MASS_TOLERANCE = 1e-3  # how far listed probabilities may sum above 1 (bfloat16 log-probs) before we call it an error


def pad_rows(rows: Sequence[Tensor], *, value: float = 0.0) -> tuple[Tensor, Tensor]:
    """1-D rows of any length to (B, T) and its bool mask; T >= 1 even when every row is empty."""
    if len(rows) == 0:
        raise ValueError("pad_rows got no rows; pass at least one completion")
    for i, row in enumerate(rows):
        if row.dim() != 1:
            raise ValueError(f"row {i} has shape {tuple(row.shape)}; pass one 1-D tensor per completion")
    length_B = torch.tensor([len(row) for row in rows], device=rows[0].device)
    T = max(1, int(length_B.max()))
    padded_BT = rows[0].new_full((len(rows), T), value)
    for i, row in enumerate(rows):
        padded_BT[i, : len(row)] = row
    return padded_BT, torch.arange(T, device=length_B.device) < length_B[:, None]


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B,) mean of each row over its masked tokens; 0 where the row has none."""
    total_B = torch.where(mask_BT, x_BT, 0.0).sum(-1)
    return total_B / mask_BT.sum(-1).clamp(min=1)


def masked_token_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Scalar mean over all masked tokens (long rows weigh more); 0 when there are none."""
    return torch.where(mask_BT, x_BT, 0.0).sum() / mask_BT.sum().clamp(min=1)


def entropy_from_logits(logits: Tensor, *, temperature: float = 1.0, chunk: int = 2048) -> Tensor:
    """Entropy in nats over the last dimension, in float32 (float64 logits stay float64), `chunk` rows at a
    time.

    -inf logits (forbidden tokens) count 0. The graph is kept; wrap in `torch.no_grad()` for a statistic.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; greedy decoding has entropy 0 by definition")
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1 row, got {chunk}")
    rows_NV = logits.reshape(-1, logits.shape[-1])
    parts = [_entropy_rows(rows, temperature) for rows in rows_NV.split(chunk)]
    return torch.cat(parts).reshape(logits.shape[:-1])


def _entropy_rows(logits_NV: Tensor, temperature: float) -> Tensor:
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return entropy_from_log_probs(torch.log_softmax(wide / temperature, -1))


def entropy_from_log_probs(log_p: Tensor) -> Tensor:
    """Entropy in nats over the last dimension, of log-probs that are normalised."""
    finite = log_p.masked_fill(log_p == -torch.inf, 0.0)  # 0 * -inf is 0 here, in the gradient as well
    return -(log_p.exp() * finite).sum(-1)


class TopKEntropy(NamedTuple):
    """Estimates in nats, one per position; the exact entropy lies in [lower, upper]."""

    lower: Tensor
    upper: Tensor
    bucket: Tensor
    dropped: Tensor
    mid: Tensor
    half_width: Tensor


def entropy_from_topk(
    log_probs_NK: Tensor, *, vocab_size: int, k: int | None = None, listed_NK: Tensor | None = None
) -> TopKEntropy:
    """Bounds and estimates from the listed log-probs of each position, in any order; float64 inside, nats
    out.

    k: how many top tokens the engine was asked for. Engines append the sampled token when it is outside the
        top-k, so a position may list k + 1; p_k is then the k-th largest listed probability, never the
        appended one. None: every listed token is a top token.
    listed_NK: False where an entry is padding, because positions may list different numbers of tokens.
    """
    log_p_NK = log_probs_NK.to(torch.float64)
    listed = torch.ones_like(log_p_NK, dtype=torch.bool) if listed_NK is None else listed_NK
    log_p_NK = torch.where(listed, log_p_NK, -torch.inf)
    p_NK = log_p_NK.exp()
    mass_N, size_N = p_NK.sum(-1), listed.sum(-1)
    _check_topk(mass_N, size_N, vocab_size=vocab_size, k=k)
    smallest_N = _smallest_top(p_NK, listed, size_N, k)
    rest_N = vocab_size - size_N
    # A top token of probability 0 (truncated sampler) or a fully listed vocabulary leaves no tail; 1 - mass
    # is round-off.
    no_tail_N = (smallest_N <= 0) | (rest_N == 0)
    tail_N = torch.where(no_tail_N, 0.0, (1 - mass_N).clamp(min=0.0))
    dropped = -torch.where(p_NK > 0, p_NK * log_p_NK, 0.0).sum(-1)
    bucket = dropped - torch.xlogy(tail_N, tail_N)
    lower = dropped - torch.xlogy(tail_N, torch.minimum(tail_N, smallest_N))
    upper = torch.maximum(bucket + torch.xlogy(tail_N, rest_N), lower)
    answers = (lower, upper, bucket, dropped, (lower + upper) / 2, (upper - lower) / 2)
    return TopKEntropy(*(x.to(log_probs_NK.dtype) for x in answers))


def _smallest_top(p_NK: Tensor, listed_NK: Tensor, size_N: Tensor, k: int | None) -> Tensor:
    """Smallest probability among the top tokens of each position: the min(k, listed)-th largest."""
    if k is None or k >= p_NK.shape[-1]:  # every listed token is a top token, so there is nothing to sort
        return torch.where(listed_NK, p_NK, torch.inf).amin(-1)
    last_N = (size_N if k is None else size_N.clamp(max=k)) - 1
    ordered_NK = p_NK.sort(-1, descending=True).values
    return ordered_NK.gather(-1, last_N.clamp(min=0)[..., None])[..., 0]


def _check_topk(mass_N: Tensor, size_N: Tensor, *, vocab_size: int, k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k must be >= 1, got {k}; pass the number of top log-probs the engine was asked for")
    if size_N.numel() == 0:
        return
    if int(size_N.max()) > vocab_size:
        raise ValueError(f"{int(size_N.max())} tokens listed but vocab_size is {vocab_size}; pass the model's own size")
    if int(size_N.min()) < 1:
        raise ValueError("a position lists no token; drop it or pass at least the sampled token's log-prob")
    if not bool((mass_N <= 1 + MASS_TOLERANCE).all()):  # also catches NaN
        raise ValueError(
            f"listed probabilities sum to {float(mass_N.max()):.4g} > 1; pass natural-log probabilities, "
            "each token once"
        )


def covariance(
    log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    mean_log_prob: Tensor | float,
    mean_advantage: Tensor | float,
) -> Tensor:
    """(B, T) float32 (log p - mean log p)(A - mean A) per token, outside the graph; 0 at masked tokens.

    The means are the caller's, because only the caller knows over which tokens and ranks they run.
    """
    centred_BT = log_probs_BT.detach().float() - mean_log_prob
    cov_BT = centred_BT * (advantages_BT.detach().float() - mean_advantage)
    return torch.where(mask_BT, cov_BT, 0.0).float()
