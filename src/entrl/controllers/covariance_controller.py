"""What Clip-Cov and KL-Cov share beside the equations: which tokens count, their options, and their metrics.

Rows of groups without reward spread are left out unless told otherwise: the published recipes drop such groups before
training, TRL keeps them with advantage 0, and they would move n and both means.

One step of a selecting controller gathers twice: three numbers for the means, then from each rank the few tokens or
keys that can decide the threshold, 8 to 16 bytes each, together with the sums behind mean and std of c.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from entrl.controllers.covariance import CovSpread, TokenStats, ppo_clipped, token_covariance, total
from entrl.controllers.hooks import Controller, LossView, Rows, Scope, Window
from entrl.controllers.top_shares import share_means

LARGEST_FRACTION = 0.05  # our guard: the published settings are 2e-4 and 2e-3, percent read as fraction gives 0.02 up


@dataclass(kw_only=True)
class CovarianceController(Controller):
    """Options and metrics of a controller that picks tokens by covariance."""

    fraction: float = 2e-4  # share of the counted tokens, never percent: 0.2 % is 0.002
    allow_large_fraction: bool = False
    scope: Scope = "step"
    skip_zero_std_groups: bool = True  # leave rows whose group had rewards without spread out of everything
    log_shares: bool = True  # mean c of the top shares, from a histogram: 72 KB reduced a step

    def __post_init__(self) -> None:
        limit = 1.0 if self.allow_large_fraction else LARGEST_FRACTION
        if not 0 < self.fraction <= limit:
            raise ValueError(
                f"{self.name}: fraction must be in (0, {limit:g}], got {self.fraction}; it is a fraction, not a "
                "percentage (0.2 % is 0.002). Set allow_large_fraction=True if you mean it"
            )
        if self.scope not in ("step", "exact", "micro_batch"):
            raise ValueError(f"scope must be 'step', 'exact' or 'micro_batch', got {self.scope!r}")
        self._warned_single_row = False

    def counted(self, rows: Rows) -> Tensor:
        """(B, T) bool: the tokens that enter n, the means and the selection."""
        return rows.mask_BT & rows.informative_B[:, None] if self.skip_zero_std_groups else rows.mask_BT

    def warn_single_row(self, rows: Rows) -> None:
        if len(rows.mask_BT) == 1 and not self._warned_single_row:
            self._warned_single_row = True
            warnings.warn(
                f"{self.name} with scope 'micro_batch' got one completion per micro-batch: advantages are constant "
                "there, so every covariance is 0. Raise per_device_train_batch_size or use scope 'step'",
                stacklevel=3,
            )

    def spread_metrics(self, window: Window, stats: TokenStats, spread: CovSpread) -> dict[str, Tensor | float]:
        metrics: dict[str, Tensor | float] = {"cov_mean": spread.mean, "cov_std": spread.std}
        if self.log_shares:
            counted_BT = self.counted(window.rows)
            cov_BT = token_covariance(window.log_probs_BT, window.rows, counted_BT, stats)
            metrics |= share_means(cov_BT, counted_BT, window.ranks)
        return metrics

    @torch.no_grad()
    def token_sums(self, rows: Rows, chosen_BT: Tensor, view: LossView) -> dict[str, Tensor]:
        """Counts and totals of one micro-batch; `summarise` divides them."""
        mask_BT, counted_BT = rows.mask_BT, self.counted(rows)
        log_probs_BT, old_log_probs_BT = view.log_probs_BT, view.old_log_probs_BT
        clipped_BT = ppo_clipped(
            log_probs_BT, old_log_probs_BT, rows.advantages_BT, mask_BT, eps_low=view.eps_low, eps_high=view.eps_high
        )
        moved_BT = torch.where(mask_BT, (log_probs_BT - old_log_probs_BT).abs(), 0.0)
        return {
            "loss_tokens": mask_BT.sum(),
            "tokens": counted_BT.sum(),
            "selected": chosen_BT.sum(),
            "selected_negative": (chosen_BT & (rows.advantages_BT < 0)).sum(),
            "selected_probability": total(torch.where(chosen_BT, log_probs_BT.exp(), 0.0)),
            "ppo_clipped": clipped_BT.sum(),
            "abs_log_ratio": total(moved_BT),
        }

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Shares of the loss's tokens (`ppo_clipped`, `abs_log_ratio`), of the counted ones, and of the selected."""
        loss_tokens, selected = max(sums["loss_tokens"], 1), sums["selected"]
        metrics = {
            "tokens": sums["tokens"],
            "selected": selected,
            "selected_fraction": selected / max(sums["tokens"], 1),
            "ppo_clipped": sums["ppo_clipped"] / loss_tokens,
            "abs_log_ratio": sums["abs_log_ratio"] / loss_tokens,  # nats; the published `ppo_kl`
        }
        if selected:
            metrics["selected_negative_advantage"] = sums["selected_negative"] / selected
            metrics["selected_probability"] = sums["selected_probability"] / selected
        return metrics
