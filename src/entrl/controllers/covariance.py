"""Covariance of log-probability and advantage, token by token, and which tokens Clip-Cov and KL-Cov take by it.

    Eq. 10   c_i    = (log pi(y_i) - mean_j log pi(y_j)) (A_i - mean_j A_j)        i, j over the N counted tokens
    Eq. 11   I_clip = max(1, int(r N)) tokens, drawn uniformly from { i : lower < c_i < upper }          Clip-Cov
    Eq. 12   I_kl   = { i : the rank of c_i is at most max(1, int(k N)) }, largest c first                 KL-Cov

Source:  arXiv 2505.22617, Eqs. 10 to 12. The floor of one token and the open band are the published code's
    (verl/trainer/ppo/core_algos.py, volcengine/verl at b178a3c)
Differs: the means run over the optimiser step on all ranks, or over one micro-batch of one rank as in the published
    code (scope `micro_batch`). c and what is chosen by it are outside the graph, c in float32.
Needs:   the final advantages of TRL's loss and the log-probs of the sampled tokens

No value is read from a device: counts, means and thresholds stay there, and every shape follows from shapes. What does
not count is dropped with `where`, so NaN in the padding stays there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Ranks, Rows
from entrl.maths.signals import covariance


class TokenStats(NamedTuple):
    """Over the counted tokens of the scope: a whole optimiser step on all ranks, or one micro-batch."""

    n: Tensor  # float64 scalars, on the device
    mean_log_prob: Tensor
    mean_advantage: Tensor
    world: int = 1  # ranks behind the numbers


class CovSpread(NamedTuple):
    mean: Tensor  # float64 scalars; 0 where no token counts
    std: Tensor  # population standard deviation


def total(x: Tensor) -> Tensor:
    """Float64 sum, so that no order of adding rows, micro-batches or ranks is felt in float32."""
    return x.sum(dtype=torch.float64)


@torch.no_grad()
def token_stats(log_probs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, ranks: Ranks) -> TokenStats:
    """N and the means of Eq. 10, from one gather of three numbers; means are 0 where no token counts."""
    log_prob, advantage = (total(torch.where(mask_BT, x_BT, 0.0)) for x_BT in (log_probs_BT, advantages_BT))
    # Gathered, not reduced: the length says how many ranks there are, and every rank adds in the same order.
    every_R3 = ranks.gather(torch.stack([total(mask_BT), log_prob, advantage])[None])
    n, log_prob, advantage = every_R3.sum(0).unbind()
    return TokenStats(n, log_prob / n.clamp(min=1), advantage / n.clamp(min=1), len(every_R3))


@torch.no_grad()
def token_covariance(log_probs_BT: Tensor, rows: Rows, mask_BT: Tensor, stats: TokenStats) -> Tensor:
    """Eq. 10: (B, T) float32, 0 where `mask_BT` is False; the same bits for the same log-prob in every pass."""
    means = {"mean_log_prob": stats.mean_log_prob, "mean_advantage": stats.mean_advantage}
    return covariance(log_probs_BT, rows.advantages_BT, mask_BT, **means)


def in_band(cov_BT: Tensor, *, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """The set of Eq. 11: (B, T) bool. Open on both sides, as in the code; the equation closes it."""
    return (lower < cov_BT) & (cov_BT < upper)


def spread_sums(cov_BT: Tensor) -> Tensor:
    """(2,) float64, sum of c and of c squared over this rank; c is 0 at the tokens that do not count."""
    cov_BT = cov_BT.double()
    return torch.stack([cov_BT.sum(), cov_BT.square().sum()])


def spread_of(sums_2: Tensor, n: Tensor) -> CovSpread:
    """Mean and standard deviation of c from the sums of all ranks."""
    mean, square = (sums_2 / n.clamp(min=1)).unbind()
    return CovSpread(mean, (square - mean * mean).clamp(min=0).sqrt())


@torch.no_grad()
def cov_spread(cov_BT: Tensor, n: Tensor, ranks: Ranks) -> CovSpread:
    """One all-reduce of two numbers; c is 0 at the tokens that do not count."""
    return spread_of(ranks.sum(spread_sums(cov_BT)), n)


@torch.no_grad()
def ppo_clipped(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    eps_low: float,
    eps_high: float,
) -> Tensor:
    """Bool: tokens the ratio clip already silences, strictly (A > 0 and r > 1 + high, or A < 0 and r < 1 - low)."""
    ratio_BT = torch.exp(log_probs_BT - old_log_probs_BT)
    above_BT = (advantages_BT > 0) & (ratio_BT > 1 + eps_high)
    below_BT = (advantages_BT < 0) & (ratio_BT < 1 - eps_low)
    return (above_BT | below_BT) & mask_BT
