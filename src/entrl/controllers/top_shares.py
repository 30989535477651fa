"""Mean covariance of the tokens with the largest one, by share of all tokens, from a histogram of fixed size.

    |c| = m 2**e, 1/2 <= m < 1        bin of c = sign(c) (64 (e - 1 - LOWEST) + floor(64 (2 m - 1)) + 1)

that is 64 bins of equal width in each octave of |c|, on either side of one around zero.

Source:  the groups of arXiv 2505.22617, Table 1
Differs: a share holds max(1, int(share n)) tokens of all ranks. Bins carry their own sums, so only the bin that the
    last token falls into is approximated, by its mean: the error is at most 1/64 of |c| there (2**-19 for
    |c| < 2**-20; above 2**16 all values share a bin). Nothing depends on how rows fall on ranks but the order in which
    sums are added.
Needs:   c of `covariance.token_covariance`
"""

import torch
from torch import Tensor

from entrl.controllers.hooks import Ranks

TOP_SHARES = {"0.02%": 2e-4, "0.2%": 2e-3, "2%": 0.02, "20%": 0.2, "50%": 0.5}
BINS_AN_OCTAVE = 64
LOWEST, HIGHEST = -20, 16  # log2 |c|: below, one bin around zero; above, one bin for all
HALF_BINS = (HIGHEST - LOWEST) * BINS_AN_OCTAVE


@torch.no_grad()
def share_means(
    cov_BT: Tensor, mask_BT: Tensor, ranks: Ranks, *, negative_BT: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean c of the top shares over all ranks, from one all-reduce.

    negative_BT: bool, tokens with negative advantage; adds the share of them in each top share.

    Returns float64 scalars: `cov_top_0.2%` and so on, and `cov_top_0.2%_negative`; 0 where no token counts.
    """
    total_HP = ranks.sum(_histogram(cov_BT, mask_BT, negative_BT)).flip(1)  # largest c first
    count_P = total_HP[0]
    mean_HP = total_HP[1:] / count_P.clamp(min=1)
    before_P = count_P.cumsum(0) - count_P
    n = count_P.sum()
    out: dict[str, Tensor] = {}
    for name, share in TOP_SHARES.items():
        k = (n * share).floor().clamp(min=1)
        taken_P = torch.minimum((k - before_P).clamp(min=0), count_P)
        means = (taken_P * mean_HP).sum(1) / k
        out[f"cov_top_{name}"] = means[0]
        if negative_BT is not None:
            out[f"cov_top_{name}_negative"] = means[1]
    return out


def _histogram(cov_BT: Tensor, mask_BT: Tensor, negative_BT: Tensor | None) -> Tensor:
    """(2 or 3, bins) float64: tokens, sum of c, tokens of negative advantage, lowest c first."""
    cov_BT = torch.where(mask_BT, cov_BT, 0.0)
    rows = [mask_BT, cov_BT] + ([] if negative_BT is None else [mask_BT & negative_BT])
    bin_N = _bins(cov_BT).flatten()
    empty_P = torch.zeros(2 * HALF_BINS + 1, dtype=torch.float64, device=cov_BT.device)
    return torch.stack([empty_P.scatter_add(0, bin_N, x_BT.flatten().double()) for x_BT in rows])


def _bins(cov_BT: Tensor) -> Tensor:
    """int64 bin of every value: 0 for the lowest, HALF_BINS around zero, 2 HALF_BINS for the highest and for NaN."""
    size_BT = cov_BT.abs().clamp(2.0 ** (LOWEST - 1), 2.0**HIGHEST)
    mantissa_BT, exponent_BT = torch.frexp(size_BT)
    away_BT = BINS_AN_OCTAVE * (exponent_BT - 2 - LOWEST) + (2 * BINS_AN_OCTAVE * mantissa_BT).floor() + 1
    signed_BT = away_BT.clamp(0, HALF_BINS).copysign(cov_BT)
    return (HALF_BINS + signed_BT).nan_to_num(nan=2 * HALF_BINS).long()
