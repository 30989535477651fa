"""CW-GRPO: damp every token smoothly by how far out its covariance lies, instead of picking a few.

    c_i = (log pi(y_i) - mean log pi)(A_i - mean A)
    v_i = exp(-c_i^2 / (2 (width sigma)^2))          sigma = std of c (population) over the scope
    l_i = (v_i / mean v) min-clipped surrogate of i  so the weights have mean 1 over the counted tokens

Source:  arXiv 2605.11538; formula as others report it, the authors' code was not seen. `width` = 1 is the source.
Differs: means, sigma and mean v run over the optimiser step on all ranks, the weight then uses the log-probs of the
    loss pass (scope `step` or `exact`; under `micro_batch` everything is of one micro-batch on one rank). `width` is
    ours: inf is off, every weight is then exactly 1. Groups without spread are left out: their tokens have weight 1.
    Under `step` the constants are of the sampling policy, so later in a rollout the mean weight drifts from 1.
Needs:   nothing more; it acts on-policy as well, because it scales gradients

Where all advantages are alike, sigma is 0 and every weight is 1. The supported losses are those with one ratio per
token: a positive weight passes through min(r A, clip(r) A), so it scales the term and changes no clip decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.covariance import CovSpread, TokenStats, cov_spread, token_covariance, token_stats
from entrl.controllers.hooks import Controller, LossTerms, LossView, Role, Rows, Scope, Window
from entrl.controllers.token_weights import weight_metrics, weight_sums

# At least half the tokens lie within sqrt(2) std of the mean, so mean v is no less than about exp(-1 / width^2) / 2 and
# the largest weight no more than its inverse: 5.4 at width 1, 1.8e7 at 0.25. Below that a bell is a lottery.
LEAST_WIDTH = 0.25


class CWGRPOSelection(NamedTuple):
    stats: TokenStats
    spread: CovSpread
    mean_weight: Tensor  # float64 scalar: mean v over the counted tokens, 1 where there are none
    smallest_weight: Tensor  # float64 scalar, after renormalising; 1 where no token counts


@torch.no_grad()
def gaussian_weights(cov_BT: Tensor, std: Tensor | float, *, width: float) -> Tensor:
    """(B, T) exp(-c^2 / (2 (width std)^2)) in the dtype of `cov_BT`; 1 everywhere where std is 0 or width is inf."""
    scale = torch.as_tensor(std, dtype=torch.float64, device=cov_BT.device) * width
    spread = scale > 0  # False for 0 x inf as well, which is NaN
    z_BT = cov_BT / torch.where(spread, scale, 1.0)
    return torch.where(spread, torch.exp(-0.5 * z_BT.square()), 1.0)


@dataclass(kw_only=True)
class CWGRPO(Controller):
    """CW-GRPO as a controller: a weight on every counted token, no penalty."""

    name: ClassVar[str] = "cw_grpo"
    role: ClassVar[Role] = "weight"
    # A wider bell damps less. It damps both tails alike, but the far tail of c is the positive one (mean c > 0 while
    # entropy falls), so damping holds entropy up and widening lets it fall.
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({"width": -1})

    width: float = 1.0  # multiples of std(c); inf = off
    scope: Scope = "step"
    skip_zero_std_groups: bool = True  # leave rows whose group had rewards without spread out of everything

    def __post_init__(self) -> None:
        if not self.width >= LEAST_WIDTH:
            raise ValueError(
                f"{self.name}: width must be at least {LEAST_WIDTH}, got {self.width}; 1 is the source, larger damps "
                "less, inf switches it off"
            )
        if self.scope not in ("step", "exact", "micro_batch"):
            raise ValueError(f"scope must be 'step', 'exact' or 'micro_batch', got {self.scope!r}")

    def counted(self, rows: Rows) -> Tensor:
        """(B, T) bool: the tokens that enter the means and get a weight."""
        return rows.mask_BT & rows.informative_B[:, None] if self.skip_zero_std_groups else rows.mask_BT

    @torch.no_grad()
    def select(self, window: Window) -> CWGRPOSelection:
        """Three small collectives: the means need all tokens, sigma needs the means, mean v needs sigma."""
        rows, ranks, counted_BT = window.rows, window.ranks, self.counted(window.rows)
        stats = token_stats(window.log_probs_BT, rows.advantages_BT, counted_BT, ranks)
        cov_BT = token_covariance(window.log_probs_BT, rows, counted_BT, stats)
        spread = cov_spread(cov_BT, stats.n, ranks)
        weight_BT = gaussian_weights(cov_BT, spread.std, width=self.width).double()
        total = torch.where(counted_BT, weight_BT, 0.0).sum()
        smallest = torch.where(counted_BT, weight_BT, 1.0).amin()  # no weight is above 1 before renormalising
        total_R, count_R, smallest_R = ranks.gather(
            torch.stack([total, counted_BT.double().sum(), smallest]).unsqueeze(0)
        ).unbind(-1)
        count = count_R.sum()
        mean = torch.where(count > 0, total_R.sum() / count.clamp(min=1), 1.0)
        return CWGRPOSelection(stats, spread, mean, smallest_R.amin() / mean)

    @torch.no_grad()
    def weights(self, rows: Rows, selection: CWGRPOSelection, *, log_probs_BT: Tensor) -> Tensor:
        """(B, T) float32 weights of these rows under these log-probs; 1 at tokens that do not count."""
        counted_BT = self.counted(rows)
        cov_BT = token_covariance(log_probs_BT, rows, counted_BT, selection.stats)
        weight_BT = gaussian_weights(cov_BT, selection.spread.std, width=self.width) / selection.mean_weight
        return torch.where(counted_BT, weight_BT, 1.0).float()

    def on_loss(self, rows: Rows, selection: CWGRPOSelection | None, view: LossView) -> LossTerms:
        selection = self.select(view.window(rows)) if selection is None else selection
        weight_BT = self.weights(rows, selection, log_probs_BT=view.log_probs_BT.detach())
        return LossTerms(weight_BT=weight_BT, sums=weight_sums(rows, weight_BT, self.counted(rows)))

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return weight_metrics(sums)

    def window_metrics(self, selection: Any) -> dict[str, Tensor | float]:
        return {
            "cov_mean": selection.spread.mean,
            "cov_std": selection.spread.std,
            "mean_before_renormalising": selection.mean_weight,
            "smallest_weight": selection.smallest_weight,
        }


controller = CWGRPO
