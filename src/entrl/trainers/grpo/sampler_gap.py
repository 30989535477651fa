"""How far the engine that sampled and the model that trains disagree, and whom the correction drops. Tensors only."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

DECILES = 10
EDGE_SAMPLE = 4096  # token entropies per rank from which the decile edges are taken


def kept_tokens(ratio: Tensor, mask_BT: Tensor, *, low: float | None, high: float | None) -> Tensor:
    """(B, T) bool: tokens whose importance ratio was neither zeroed nor cut off at a bound.

    ratio: (B, T), or (B, 1) for one ratio per sequence, as TRL applies it (after truncation or masking).
    """
    inside = ratio > 0
    if low is not None:
        inside &= ratio > low
    if high is not None:
        inside &= ratio < high
    return inside.expand(mask_BT.shape) & mask_BT


def gap_metrics(
    *,
    train_log_probs_BT: Tensor,
    sampler_log_probs_BT: Tensor,
    kept_BT: Tensor,
    entropies_BT: Tensor | None,
    sampler_entropies_BT: Tensor | None,
    mask_BT: Tensor,
    gather: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Metrics of one rollout over all ranks.

    sampler/gap: mean |log-prob difference| per token, nats; sampler/gap_max; sampler/entropy_gap: mean |entropy
    difference|, where the sampler recorded entropies; sampler/kept: share of tokens whose importance ratio the
    correction left alone; sampler/kept_by_length/1..10: the same for completions from the shortest tenth to the
    longest; sampler/kept_by_entropy/1..10: for tokens from the least to the most uncertain tenth.

    gather: tensor (n,) of this rank -> (N,) of all ranks, the same n on every rank. Tokens whose sampler log-prob is
    NaN (the engine could not tell) are left out.
    """
    mask_BT = mask_BT.bool() & torch.isfinite(sampler_log_probs_BT)
    zero = torch.zeros_like(train_log_probs_BT)
    gap_BT = torch.where(mask_BT, (train_log_probs_BT - sampler_log_probs_BT).abs(), zero)
    tokens_B = gather(mask_BT.sum(1).float())
    kept_B = gather((kept_BT & mask_BT).sum(1).float())
    total = float(tokens_B.sum())
    if total == 0:
        return {}
    out = {
        "sampler/gap": float(gather(gap_BT.sum(1)).sum()) / total,
        "sampler/gap_max": float(gather(gap_BT.amax(1)).max()),
        "sampler/kept": float(kept_B.sum()) / total,
    }
    order = torch.argsort(tokens_B, stable=True)
    order = order[tokens_B[order] > 0]  # completions masked as a whole are no short ones
    for i, rows in enumerate(torch.tensor_split(order, DECILES), 1):
        if rows.numel() and float(tokens_B[rows].sum()) > 0:
            out[f"sampler/kept_by_length/{i}"] = float(kept_B[rows].sum() / tokens_B[rows].sum())
    if sampler_entropies_BT is not None and entropies_BT is not None:
        difference = torch.where(mask_BT, (entropies_BT - sampler_entropies_BT).abs(), zero)
        out["sampler/entropy_gap"] = float(gather(difference.sum(1)).sum()) / total
    if entropies_BT is None:
        entropies_BT = sampler_entropies_BT
    if entropies_BT is not None:
        out |= _by_entropy(entropies_BT, kept_BT, mask_BT, gather)
    return out


def _by_entropy(
    entropies_BT: Tensor, kept_BT: Tensor, mask_BT: Tensor, gather: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    values = entropies_BT[mask_BT].float()
    # Every rank contributes the same number of values; a rank without tokens contributes NaN, which is dropped.
    if values.numel():
        at = torch.linspace(0, values.numel() - 1, EDGE_SAMPLE, device=values.device).long()
        sample = values.sort().values[at]
    else:
        sample = torch.full((EDGE_SAMPLE,), math.nan, device=entropies_BT.device)
    everybody = gather(sample)
    everybody = everybody[torch.isfinite(everybody)]
    edges = torch.quantile(everybody, torch.linspace(0, 1, DECILES + 1, device=everybody.device)[1:-1])
    bins = torch.bucketize(values, edges)
    counts = torch.bincount(bins, minlength=DECILES).float()
    kept = torch.bincount(bins, weights=kept_BT[mask_BT].float(), minlength=DECILES)
    counts, kept = (gather(t).view(-1, DECILES).sum(0) for t in (counts, kept.float()))
    return {f"sampler/kept_by_entropy/{i + 1}": float(kept[i] / counts[i]) for i in range(DECILES) if counts[i] > 0}


def alarms(metrics: dict[str, float], *, gap_limit: float) -> list[str]:
    """What in these metrics a user should hear of, each with the next move; empty = nothing."""
    out = []
    if metrics.get("sampler/gap", 0.0) > gap_limit:
        out.append(
            f"the engine's log-probs differ from the trainer's by {metrics['sampler/gap']:.3g} nats a token on average "
            f"(vllm_gap_alarm={gap_limit:g}): different precision (vLLM serves float32 models in bfloat16), weights "
            "that did not arrive, or a sampler setting the trainer does not know; the importance-sampling correction "
            "hides this and pays with variance"
        )
    lengths = [metrics.get(f"sampler/kept_by_length/{i}") for i in (1, DECILES)]
    if None not in lengths and lengths[1] < 0.5 * lengths[0]:  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        out.append(
            f"the correction keeps {lengths[0]:.0%} of the shortest completions' tokens and {lengths[1]:.0%} of the "
            "longest's, so length is rewarded or punished by the correction itself; use "
            "vllm_importance_sampling_mode: token_truncate"
        )
    return out
