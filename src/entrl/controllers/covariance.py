"""What Clip-Cov and KL-Cov share: the covariance score of a token, the statistics under it, and its metrics.

    c_i = (log pi(y_i) - mean_j log pi(y_j)) (A_i - mean_j A_j)        i, j over the counted tokens

Source:  arXiv 2505.22617, Eq. 10
Differs: the means run over the optimiser step on all ranks, or over one micro-batch of one rank as in the published
    code (scope `micro_batch`). Rows of groups without reward spread are left out unless told otherwise: the
    published recipes drop such groups before training, TRL keeps them with advantage 0, and they would move n and
    both means. c and the selection made from it are outside the graph, in float32.
Needs:   the final advantages of TRL's loss and the log-probs of the sampled tokens

A selection is made once and applied with the log-probs of each loss pass, so it travels as a rule (means, threshold),
not as a mask. Tokens are named by id = row_id * 2**24 + column, which no split over micro-batches or ranks changes.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Controller, Ranks, Rows, Scope
from entrl.signals import covariance

LARGEST_FRACTION = 0.05  # our guard: the published settings are 2e-4 and 2e-3, percent read as fraction gives 0.02 up
COLUMN_SPAN = 2**24  # tokens a row may hold; leaves 2**39 rows
LAST_ID = torch.iinfo(torch.int64).max
TOP_SHARES = {"0.02%": 2e-4, "0.2%": 2e-3, "2%": 0.02, "20%": 0.2, "50%": 0.5}  # the groups of the paper's Table 1


class TokenStats(NamedTuple):
    """Over the counted tokens of the scope: a whole optimiser step on all ranks, or one micro-batch."""

    n: int
    mean_log_prob: Tensor  # float64 scalars
    mean_advantage: Tensor


class CovSpread(NamedTuple):
    mean: float
    std: float  # population standard deviation


def token_ids(row_id_B: Tensor, columns: int) -> Tensor:
    """(B, T) int64, one number per token that depends on nothing but its row and column."""
    return row_id_B.to(torch.int64)[:, None] * COLUMN_SPAN + torch.arange(columns, device=row_id_B.device)


@torch.no_grad()
def token_stats(log_probs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, ranks: Ranks) -> TokenStats:
    """One all-reduce of three numbers; means are 0 where no token counts."""
    parts = [torch.where(mask_BT, x, 0.0).double().sum() for x in (log_probs_BT, advantages_BT)]
    total = ranks.sum(torch.stack([mask_BT.double().sum(), *parts]))
    mean = total[1:] / total[0].clamp(min=1)
    return TokenStats(int(total[0]), mean[0], mean[1])


@torch.no_grad()
def token_covariance(log_probs_BT: Tensor, rows: Rows, mask_BT: Tensor, stats: TokenStats) -> Tensor:
    """(B, T) float32, 0 where `mask_BT` is False. Adding 0.0 turns -0.0 into 0.0, which some sorts tell apart."""
    return 0.0 + covariance(
        log_probs_BT,
        rows.advantages_BT,
        mask_BT,
        mean_log_prob=stats.mean_log_prob,
        mean_advantage=stats.mean_advantage,
    )


@torch.no_grad()
def cov_spread(cov_BT: Tensor, mask_BT: Tensor, n: int, ranks: Ranks) -> CovSpread:
    cov = torch.where(mask_BT, cov_BT, 0.0).double()
    mean, square = (ranks.sum(torch.stack([cov.sum(), (cov * cov).sum()])) / max(n, 1)).tolist()
    return CovSpread(mean, max(square - mean * mean, 0.0) ** 0.5)


@torch.no_grad()
def top_share_means(cov_N: Tensor, ranks: Ranks) -> dict[str, float]:
    """Mean c of the top shares over all ranks, exactly: every value is gathered (4 bytes a token of the step)."""
    width = ranks.max(len(cov_N))
    all_N = ranks.gather(padded(cov_N, width, torch.nan)).sort().values  # NaN sorts last
    all_N = all_N[~all_N.isnan()].flip(0)
    if len(all_N) == 0:
        return {}
    count = {name: max(1, int(len(all_N) * share)) for name, share in TOP_SHARES.items()}
    return {f"cov_top_{name}": float(all_N[:k].double().mean()) for name, k in count.items()}


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
    ratio_BT = torch.exp(log_probs_BT.detach() - old_log_probs_BT)
    above_BT = (advantages_BT > 0) & (ratio_BT > 1 + eps_high)
    below_BT = (advantages_BT < 0) & (ratio_BT < 1 - eps_low)
    return mask_BT & (above_BT | below_BT)


def padded(x_N: Tensor, width: int, value: float) -> Tensor:
    return torch.cat([x_N, x_N.new_full((width - len(x_N),), value)])


@dataclass(kw_only=True)
class CovarianceController(Controller):
    """Options and metrics of a controller that picks tokens by covariance."""

    fraction: float = 2e-4  # share of the counted tokens, never percent: 0.2 % is 0.002
    allow_large_fraction: bool = False
    scope: Scope = "step"
    skip_zero_std_groups: bool = True  # leave rows whose group had rewards without spread out of everything
    log_shares: bool = True  # mean c of the top shares; gathers 4 bytes per token of the step

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

    def spread_metrics(self, spread: CovSpread, cov_BT: Tensor, mask_BT: Tensor, ranks: Ranks) -> dict[str, float]:
        shares = top_share_means(cov_BT[mask_BT], ranks) if self.log_shares else {}
        return {"cov_mean": spread.mean, "cov_std": spread.std, **shares}

    @torch.no_grad()
    def token_sums(
        self,
        rows: Rows,
        chosen_BT: Tensor,
        *,
        log_probs_BT: Tensor,
        old_log_probs_BT: Tensor,
        eps_low: float,
        eps_high: float,
    ) -> dict[str, Tensor]:
        """Counts and totals of one micro-batch; `summarise` divides them."""
        mask_BT = rows.mask_BT
        x_BT = torch.where(mask_BT, log_probs_BT, 0.0) - torch.where(mask_BT, old_log_probs_BT, 0.0)
        clipped_BT = ppo_clipped(
            log_probs_BT, old_log_probs_BT, rows.advantages_BT, mask_BT, eps_low=eps_low, eps_high=eps_high
        )
        return {
            "loss_tokens": mask_BT.double().sum(),
            "tokens": self.counted(rows).double().sum(),
            "selected": chosen_BT.double().sum(),
            "selected_negative": (chosen_BT & (rows.advantages_BT < 0)).double().sum(),
            "selected_probability": torch.where(chosen_BT, log_probs_BT, -torch.inf).exp().double().sum(),
            "ppo_clipped": clipped_BT.double().sum(),
            "abs_log_ratio": x_BT.abs().double().sum(),
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
