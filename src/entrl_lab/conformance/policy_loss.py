"""The policy loss around a controller, written out as the published programs write it, aggregations included.

So a case says something about the controller's weight and penalty alone; that a trainer's loss agrees is for its own
tests.
"""

import torch
from torch import Tensor

from entrl.controllers.hooks import LossTerms

PUBLISHED_OFFSET = 1e-8  # the published masked means add it to the count; rows with a zero sum show it


def token_losses(
    inputs: dict[str, Tensor],
    terms: LossTerms,
    *,
    eps_low: float,
    eps_high: float,
    ratio_is_clipped: bool = True,
    dual_clip: float = torch.inf,
) -> Tensor:
    """max(-A r, -A clip(r)) under a controller's weight, plus its penalty, times the rollout weights if there are.

    dual_clip: the loss of a token with A < 0 is at most -dual_clip A, TRL's `delta`; inf = none.
    """
    ratio_BT = torch.exp(inputs["log_prob"] - inputs["old_log_prob"])
    weight_BT = 1.0 if terms.weight_BT is None else terms.weight_BT
    gain_BT = inputs["advantages"] * weight_BT
    loss_BT = torch.where(gain_BT < 0, -gain_BT * ratio_BT.clamp(max=dual_clip), -gain_BT * ratio_BT)
    if ratio_is_clipped:
        loss_BT = torch.maximum(loss_BT, -gain_BT * ratio_BT.clamp(1 - eps_low, 1 + eps_high))
    if terms.penalty_BT is not None:
        loss_BT = loss_BT + terms.penalty_BT
    return loss_BT * inputs["rollout_is_weights"] if "rollout_is_weights" in inputs else loss_BT


def aggregate(loss_BT: Tensor, mask_BT: Tensor, mode: str, *, count_empty_rows: bool) -> Tensor:
    """The published reductions; count_empty_rows: whether a fully masked row enters the mean over rows."""
    loss_BT = torch.where(mask_BT, loss_BT, 0.0)
    tokens_B = mask_BT.sum(-1).double()
    rows = len(mask_BT) if count_empty_rows else int((tokens_B > 0).sum())
    if mode == "token-mean":
        return loss_BT.sum() / tokens_B.sum()
    if mode == "seq-mean-token-sum":
        return loss_BT.sum() / rows
    if mode == "seq-mean-token-mean":
        return (loss_BT.sum(-1) / (tokens_B + PUBLISHED_OFFSET)).sum() / rows
    if mode == "seq-mean-token-sum-norm":
        return loss_BT.sum() / mask_BT.shape[1]
    raise ValueError(f"unknown aggregation {mode!r}; known: token-mean and the three seq-mean ones")
