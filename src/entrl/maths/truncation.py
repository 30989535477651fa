"""Truncated sampling: which tokens a sampler may still draw, and how much probability they hold.

    Top-H    the longest prefix S of the tokens by falling probability with H(p | S) <= alpha * H(p)   (rule "paper")
    top-k, top-p, min-p    as vLLM and transformers cut, for their kept mass

p is the distribution after temperature, H is in nats. A sampler restricted to S draws from q = p / G on S, with the
kept mass G = sum_{i in S} p_i, so log q(y) - log p(y) = -log G for every token it can draw.

Source:  Top-H: arXiv 2509.02510, Algorithms 1 and 2, Theorem 3 (H(p | prefix) rises with the prefix, so one cumulative
         sum finds it). Rule "reference": transformers' TopHLogitsWarper, which decides like the authors' repository
         (ErfanBaghaei/Top-H-Decoding @e3cc917d54): cumulative -p log p <= alpha * H, both inside the 100 most likely
         tokens, without renormalising the prefix. It is not the paper's rule and breaks its bound where p is flat.
Differs: ties are broken by the lower token id; equality with the bound, up to rounding, is within it; tokens of
         probability zero are never kept, where the reference code gives NaN.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["paper", "reference"]

REFERENCE_TOP_N = 100  # tokens the reference code looks at
FIRST_LOOK = 512  # candidates tried before the whole vocabulary is sorted, our choice
SMALLEST_LOG = -1000.0  # nats; exp() of it is 0 in float64 too, so 0 * log 0 becomes 0 without a NaN
CHUNK_CPU, CHUNK_GPU = 2**20, 2**23  # elements worked on at once: bounds what is allocated beside the logits


def top_h_keep(logits_BV: Tensor, alpha: float, *, rule: Rule = "paper", top_n: int | None = None) -> Tensor:
    """The tokens Top-H keeps; (B, V) logits after temperature in, (B, V) bool out, at least one per row.

    alpha: share of the entropy, in (0, 1]. top_n: only the n most likely tokens may be kept; None = all of them under
    the paper's rule, 100 under the reference's. Float32 or better; float64 logits are worked on in float64.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}; the paper uses 0.4")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if top_n is not None and top_n < 1:
        raise ValueError(f"top_n must be >= 1, got {top_n}; None looks at as many tokens as the rule does")
    limit = top_n if top_n is not None else logits_BV.shape[-1] if rule == "paper" else REFERENCE_TOP_N
    cut = _paper_keep if rule == "paper" else _reference_keep
    return _by_rows(lambda z_BV: cut(z_BV, alpha, min(limit, z_BV.shape[-1])), logits_BV)


def top_k_keep(logits_BV: Tensor, k: int) -> Tensor:
    """The k largest logits and whatever ties with the smallest of them; (B, V) bool."""
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    return logits_BV >= logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]


def top_p_keep(logits_BV: Tensor, p: float) -> Tensor:
    """The most likely tokens whose mass reaches p; (B, V) bool, at least one per row.

    Cut from below, where vLLM and transformers cut: a token goes when it and all smaller ones hold at most 1 - p.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p}")

    def cut(z_BV: Tensor) -> Tensor:
        sorted_BV, index_BV = z_BV.sort(dim=-1)
        keep_BV = sorted_BV.softmax(-1).cumsum(-1) > 1 - p
        keep_BV[:, -1] = True
        return torch.zeros_like(keep_BV).scatter_(-1, index_BV, keep_BV)

    return _by_rows(cut, _floats(logits_BV))


def min_p_keep(logits_BV: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest; (B, V) bool."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")

    def cut(z_BV: Tensor) -> Tensor:
        p_BV = z_BV.softmax(-1)
        return p_BV >= p * p_BV.amax(-1, keepdim=True)

    return _by_rows(cut, _floats(logits_BV))


def entropy_and_kept_mass(logits_BV: Tensor, keep_BV: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Entropy of the whole distribution and the mass of its kept tokens, (B,) nats and (B,) in [0, 1].

    keep_BV: bool, None = all tokens, whose mass is exactly 1. Works in float32 (float64 for float64 logits), a few
    rows at a time: no second (B, V) tensor is held. -inf logits count as probability zero.
    """
    logits_BV = _floats(logits_BV)
    entropy_B = torch.empty(len(logits_BV), dtype=logits_BV.dtype, device=logits_BV.device)
    kept_B = torch.ones_like(entropy_B)
    for rows in _chunks(logits_BV):
        log_p_BV = logits_BV[rows].log_softmax(-1)
        p_BV = log_p_BV.exp()
        if keep_BV is not None:
            kept_B[rows] = torch.where(keep_BV[rows], p_BV, 0.0).sum(-1)
        entropy_B[rows] = -p_BV.mul_(log_p_BV.clamp_(min=SMALLEST_LOG)).sum(-1)
    return entropy_B.clamp_(min=0.0), kept_B.clamp_(max=1.0)


def _floats(logits_BV: Tensor) -> Tensor:
    return logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()


def rows_at_once(logits_BV: Tensor) -> int:
    """How many rows are worked on together, so that what is allocated beside the logits has a fixed size."""
    size = CHUNK_CPU if logits_BV.device.type == "cpu" else CHUNK_GPU
    return max(1, size // max(1, logits_BV.shape[-1]))


def _chunks(logits_BV: Tensor) -> Iterator[slice]:
    rows = rows_at_once(logits_BV)
    return (slice(start, start + rows) for start in range(0, len(logits_BV), rows))


def _by_rows(cut: Callable[[Tensor], Tensor], logits_BV: Tensor) -> Tensor:
    keep_BV = torch.empty(logits_BV.shape, dtype=torch.bool, device=logits_BV.device)
    for rows in _chunks(logits_BV):
        keep_BV[rows] = cut(logits_BV[rows])
    return keep_BV


def _likeliest(log_p_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest per row in falling order, ties by token id, and their ids; both (B, count)."""
    if count >= log_p_BV.shape[-1]:
        values_BV, ids_BV = log_p_BV.sort(dim=-1, descending=True, stable=True)
        return values_BV, ids_BV
    ids_BN = log_p_BV.topk(count).indices.sort(-1).values
    values_BN, order_BN = log_p_BV.gather(-1, ids_BN).sort(dim=-1, descending=True, stable=True)
    return values_BN, ids_BN.gather(-1, order_BN)


def _paper_keep(logits_BV: Tensor, alpha: float, limit: int) -> Tensor:
    log_p_BV = _floats(logits_BV).log_softmax(-1)
    entropy_B, _ = entropy_and_kept_mass(logits_BV)
    slack = 1e-12 if log_p_BV.dtype == torch.float64 else 1e-6  # rounding of H(p)
    cap_B1 = (alpha * entropy_B.double() * (1 + slack))[:, None]
    keep_BV = torch.zeros_like(log_p_BV, dtype=torch.bool)
    rows_R = torch.arange(len(log_p_BV), device=log_p_BV.device)
    for count in sorted({min(FIRST_LOOK, limit), limit}):  # the prefix nearly always ends within the first look
        values_RN, ids_RN = _likeliest(log_p_BV[rows_R], count)
        prefix_RN = _within_cap(values_RN.double(), cap_B1[rows_R])
        keep_BV[rows_R] = torch.zeros_like(keep_BV[rows_R]).scatter_(-1, ids_RN, prefix_RN)
        if count == limit:
            break
        smallest_R1 = values_RN.gather(-1, prefix_RN.sum(-1, keepdim=True) - 1)
        undecided_R = (smallest_R1 <= values_RN[:, -1:]).squeeze(-1)  # may go on, or ties with a token not looked at
        rows_R = rows_R[undecided_R]
        if not len(rows_R):
            break
    return keep_BV


def _within_cap(log_p_BN: Tensor, cap_B1: Tensor) -> Tensor:
    """The prefix whose renormalised entropy stays within the cap; log-probs in falling order, float64."""
    p_BN = log_p_BN.exp()
    mass_BN = p_BN.cumsum(-1)
    entropy_BN = mass_BN.log() - (p_BN * log_p_BN.clamp(min=SMALLEST_LOG)).cumsum(-1) / mass_BN
    inside_BN = (entropy_BN <= cap_B1) & (p_BN > 0)
    inside_BN[:, 0] = True
    return inside_BN.cummin(-1).values


def _reference_keep(logits_BV: Tensor, alpha: float, limit: int) -> Tensor:
    top_BN, ids_BN = _likeliest(_floats(logits_BV), limit)
    log_p_BN = top_BN.log_softmax(-1)
    p_BN = log_p_BN.exp()
    spread_BN = (-p_BN * log_p_BN.clamp(min=SMALLEST_LOG)).cumsum(-1)
    slack = 1e-12 if spread_BN.dtype == torch.float64 else 1e-6
    inside_BN = (spread_BN <= alpha * spread_BN[:, -1:] * (1 + slack)) & (p_BN > 0)
    inside_BN[:, 0] = True
    return torch.zeros_like(logits_BV, dtype=torch.bool).scatter_(-1, ids_BN, inside_BN)
