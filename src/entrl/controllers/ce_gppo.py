"""CE-GPPO: tokens beyond the ratio clip keep a gradient, and a bounded one.

    below  A < 0, r < 1 - eps_low     l_i = -beta_low  (1 - eps_low)  A r / sg(r)
    above  A > 0, r > 1 + eps_high    l_i = -beta_high (1 + eps_high) A r / sg(r)
    else                              l_i = -min(r A, clip(r) A), TRL's own

r / sg(r) is 1 in value and has the gradient of log pi: what comes back is beta (1 -+ eps) A per nat, however far out.

Source:  arXiv 2509.20712 (CE-GPPO); code: Kwai-Klear/CE-GPPO, README, compute_gppo_loss_general_beta. With both betas
    1 it is GPPO, arXiv 2508.07629 (Klear_Reasoner, compute_gppo_loss). beta_low 0.5 and 0.75 and beta_high 1 are
    the paper's settings; the code's default for beta_low is 0.75, GPPO's authors advise 0.25 or 0.5.
Differs: written as what TRL's clipped loss lacks, e A - beta e A r / sg(r) with e the clip bound, so that the sum is
    the published loss in value and gradient. A beta of 0 leaves its side to TRL: same gradient (none), and TRL's
    constant -e A instead of the published 0; both 0 is off, stock bit for bit. The clip range is the trainer's.
    The published dual clip (A < 0: l_i = min(l_i, -3 A)) is TRL's `delta`: set `delta: 3` in the trainer.
Needs:   several updates per rollout: while the policy is the one that sampled, no ratio is beyond the clip

Supported losses are those with one ratio per token and min(r A, clip(r) A).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.covariance import ppo_clipped
from entrl.controllers.hooks import Controller, LossSettings, LossTerms, LossView, Role, Rows


class Outside(NamedTuple):
    """(B, T) bool: loss tokens that the ratio clip silences, strictly beyond its bounds."""

    below_BT: Tensor
    above_BT: Tensor


@torch.no_grad()
def outside_clip(
    log_probs_BT: Tensor, old_log_probs_BT: Tensor, rows: Rows, *, eps_low: float, eps_high: float
) -> Outside:
    """Split by the sign of the advantage. The ratio is in the dtype TRL takes it in, so both judge alike."""
    silenced_BT = ppo_clipped(
        log_probs_BT, old_log_probs_BT, rows.advantages_BT, rows.mask_BT, eps_low=eps_low, eps_high=eps_high
    )
    return Outside(silenced_BT & (rows.advantages_BT < 0), silenced_BT & (rows.advantages_BT > 0))


def restored_loss(
    log_probs_BT: Tensor,
    advantages_BT: Tensor,
    outside: Outside,
    *,
    eps_low: float,
    eps_high: float,
    beta_low: float,
    beta_high: float,
) -> Tensor:
    """(B, T) e A - beta e A r / sg(r) outside the clip, 0 elsewhere, with the graph of `log_probs_BT`.

    Added to TRL's -e A of those tokens it gives the published loss. Log-probs elsewhere reach neither the result nor
    the gradient, whatever they hold.
    """
    # A side whose beta is 0 adds nothing, not even its constant.
    low_BT = outside.below_BT if beta_low else torch.zeros_like(outside.below_BT)
    high_BT = outside.above_BT if beta_high else torch.zeros_like(outside.above_BT)
    advantages_BT = advantages_BT.to(log_probs_BT.dtype)
    at_low_BT, at_high_BT = (1 - eps_low) * advantages_BT, (1 + eps_high) * advantages_BT
    constant_BT = torch.where(low_BT, at_low_BT, torch.where(high_BT, at_high_BT, 0.0))
    gain_BT = torch.where(low_BT, beta_low * at_low_BT, torch.where(high_BT, beta_high * at_high_BT, 0.0))
    x_BT = torch.where(low_BT | high_BT, log_probs_BT, 0.0)
    growth_BT = torch.exp(x_BT - x_BT.detach())  # r / sg(r)
    return constant_BT - gain_BT * growth_BT


@dataclass(kw_only=True)
class CEGPPO(Controller):
    """CE-GPPO as a controller: a penalty that completes TRL's clipped loss, no weight."""

    name: ClassVar[str] = "ce_gppo"
    role: ClassVar[Role] = "outside_clip"
    # A push g on a token's logit changes its state's entropy by -pi (log pi + H) g. Below g < 0, above g > 0. Tokens
    # get that far out in ratio where they are rare for their state, log pi < -H: there pushing further down (more
    # beta_low) lowers entropy and pushing further up (more beta_high) raises it, as the authors report. A token with
    # log pi > -H goes the other way; `rare_share` says for how many of the restored tokens the signs hold.
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({"beta_low": -1, "beta_high": +1})
    needs_stale_policy: ClassVar[bool] = True

    beta_low: float = 0.5  # gradient kept below the clip, A < 0; 0 = none, as without the controller
    beta_high: float = 1.0  # gradient kept above the clip, A > 0; 0 = none

    def __post_init__(self) -> None:
        for name in ("beta_low", "beta_high"):
            if not 0 <= getattr(self, name) < torch.inf:
                raise ValueError(
                    f"{self.name}: {name} must be a finite number >= 0, got {getattr(self, name)}; 0 leaves that side "
                    "to the clip, 1 is GPPO"
                )

    def conflicts(self, loss: LossSettings) -> list[str]:
        name, owner, high = self.name, loss.clip_owner, loss.eps_high
        out = [
            f"{name} and {other.name} cannot be combined: whether the gradient restored beyond the clip carries "
            f"{other.name}'s weight is defined by neither; keep one of them"
            for other in loss.others
            if other.role == "weight"
        ]
        if self.beta_low and loss.eps_low >= 1:
            out.append(
                f"{name} restores the gradient below 1 - eps_low (beta_low={self.beta_low}), but {owner} has eps_low="
                f"{loss.eps_low:g} and no ratio is below 0; set it below 1, or beta_low: 0"
            )
        if self.beta_high and high == math.inf:
            out.append(
                f"{name} restores the gradient above 1 + eps_high (beta_high={self.beta_high}), but {owner} does not "
                "clip there; give it an upper clip, or set beta_high: 0"
            )
        if self.beta_high and loss.delta is not None and loss.delta <= 1 + high:
            out.append(
                f"{name} restores the gradient above 1 + eps_high={1 + high:g}, where delta={loss.delta} already "
                "replaces the ratio; set delta above that (the published dual clip is 3) or leave it out"
            )
        return out

    def on_loss(self, rows: Rows, selection: Any, view: LossView) -> LossTerms:
        clip = {"eps_low": view.eps_low, "eps_high": view.eps_high}
        outside = outside_clip(view.log_probs_BT, view.old_log_probs_BT, rows, **clip)
        sums = self._sums(rows, outside, view.log_probs_BT.detach(), view.entropies_BT)
        if not (self.beta_low or self.beta_high):
            return LossTerms(sums=sums)
        penalty_BT = restored_loss(
            view.log_probs_BT,
            rows.advantages_BT,
            outside,
            **clip,
            beta_low=self.beta_low,
            beta_high=self.beta_high,
        )
        return LossTerms(penalty_BT=penalty_BT, sums=sums)

    @torch.no_grad()
    def _sums(self, rows: Rows, outside: Outside, log_probs_BT: Tensor, entropies_BT: Tensor) -> dict[str, Tensor]:
        below_BT, above_BT = outside
        rare_BT = (below_BT | above_BT) & (log_probs_BT + entropies_BT < 0)
        return {
            "loss_tokens": rows.mask_BT.double().sum(),
            "below": below_BT.double().sum(),
            "above": above_BT.double().sum(),
            "rare": rare_BT.double().sum(),
        }

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Tokens beyond the clip as shares of the loss tokens; `negative_advantage` and `rare_share` of those."""
        loss_tokens, outside = max(sums["loss_tokens"], 1), sums["below"] + sums["above"]
        metrics = {
            "outside": outside,
            "below_share": sums["below"] / loss_tokens,
            "above_share": sums["above"] / loss_tokens,
        }
        if outside:
            metrics["negative_advantage"] = sums["below"] / outside
            metrics["rare_share"] = sums["rare"] / outside  # log pi < -H
        return metrics


controller = CEGPPO
