"""STEER: damp the tokens whose update would change entropy most, in either direction.

    O_i = A_i r_i (1 - pi_i)(log pi_i + H_i)               r_i = pi_i / pi_old_i, H_i entropy of the token's state
    exp     w_i = exp(-k |O_i|),  k = -ln(w_min) / max(max |O|, 0.02)
    linear  w_i = w_max - (w_max - w_min)(|O_i| - min |O|) / (max |O| - min |O|)

O_i is the first-order change of entropy in the token's state per unit step, from the token's own update. `exp` maps
onto [w_min, 1], `linear` onto [w_min, w_max]; w_min = 1 (and w_max = 1) is off, every weight is then exactly 1.

Source:  arXiv 2510.10150; code: verl/trainer/ppo/core_algos.py, compute_token_weights (zz-haooo/STEER at b31df71).
    Default w_min is the release's 0.8; the paper's v4 has 0.7.
Differs: max and min of |O| run over the optimiser step on all ranks (scope `step` or `exact`; `micro_batch` is the
    published code, one micro-batch of one rank). Under `step` they are of the sampling policy, where r = 1, so |O| of
    the loss pass may lie beyond them; the weight is held in its range, as in the code. r is at most exp(20), where
    the code lets pi_old down to 1e-8, and so is always finite; pi itself is not clamped.
Needs:   token entropies of the policy that scored the window

Tokens with A = 0 have O = 0: weight 1 under `exp`, w_max under `linear`, no effect on max |O| and no gradient anyway.
If all |O| are alike, `linear` has no slope and every weight is (w_min + w_max) / 2, as in the code. Supported losses
are those with one ratio per token: a positive weight passes through min(r A, clip(r) A).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Controller, LossTerms, LossView, Ranks, Role, Rows, Scope, Window
from entrl.controllers.token_weights import weight_metrics, weight_sums

LEAST_MAX = 0.02  # nats x advantage: below it the window has nothing to damp (the code's constant)
MAX_LOG_RATIO = 20.0  # nats; keeps r finite in float32


class Influence(NamedTuple):
    """Range of |O| over the tokens of the scope: float32 scalars, inf and 0 where there is no token."""

    smallest: Tensor
    largest: Tensor


@torch.no_grad()
def entropy_influence(
    log_probs_BT: Tensor, old_log_probs_BT: Tensor, advantages_BT: Tensor, entropies_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """(B, T) float32 |O|, 0 at masked tokens whatever they hold."""
    log_probs_BT, old_BT, advantages_BT, entropies_BT = (
        torch.where(mask_BT, x.detach(), 0.0).float()
        for x in (log_probs_BT, old_log_probs_BT, advantages_BT, entropies_BT)
    )
    ratio_BT = (log_probs_BT - old_BT).clamp(max=MAX_LOG_RATIO).exp()
    others_BT = -torch.expm1(log_probs_BT)  # 1 - pi without cancellation
    return (advantages_BT * ratio_BT * others_BT * (log_probs_BT + entropies_BT)).abs()


@torch.no_grad()
def influence_range(influence_BT: Tensor, mask_BT: Tensor, ranks: Ranks) -> Influence:
    """One small collective."""
    largest = torch.where(mask_BT, influence_BT, 0.0).amax()
    smallest = torch.where(mask_BT, influence_BT, torch.inf).amin()
    smallest_R, largest_R = ranks.gather(torch.stack([smallest, largest]).unsqueeze(0)).unbind(-1)
    return Influence(smallest_R.amin(), largest_R.amax())


@torch.no_grad()
def steer_weights(
    influence_BT: Tensor,
    mask_BT: Tensor,
    span: Influence,
    *,
    w_min: float,
    w_max: float = 1.0,
    mapping: Literal["exp", "linear"] = "exp",
) -> Tensor:
    """(B, T) float32 weights in [w_min, w_max] (`exp`: w_max is 1); 1 at masked tokens."""
    if mapping == "exp":
        k = -math.log(w_min) / span.largest.clamp(min=LEAST_MAX)
        weight_BT = torch.exp(-k * influence_BT).clamp(w_min, 1.0)
    else:
        sloped = span.largest > span.smallest
        gap = torch.where(sloped, span.largest - span.smallest, 1.0)
        weight_BT = (w_max - (influence_BT - span.smallest) * ((w_max - w_min) / gap)).clamp(w_min, w_max)
        weight_BT = torch.where(sloped, weight_BT, (w_min + w_max) / 2)
    return torch.where(mask_BT, weight_BT, 1.0)


@dataclass(kw_only=True)
class Steer(Controller):
    """STEER as a controller: a weight on every loss token, no penalty."""

    name: ClassVar[str] = "steer"
    role: ClassVar[Role] = "weight"
    # A higher floor damps less. |O| damps both directions, but while entropy falls the large |O| are those that lower
    # it, so damping holds entropy up and a higher floor lets it fall.
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({"w_min": -1})

    w_min: float = 0.8  # in (0, 1]: weight of the token of largest influence; 1 = off
    w_max: float = 1.0  # weight of the token of least influence, under `linear` only; the release has 1.2 there
    mapping: Literal["exp", "linear"] = "exp"
    scope: Scope = "step"

    def __post_init__(self) -> None:
        if not 0 < self.w_min <= 1:
            raise ValueError(f"{self.name}: w_min must be in (0, 1], got {self.w_min}; 1 switches it off")
        if self.mapping not in ("exp", "linear"):
            raise ValueError(f"{self.name}: mapping must be 'exp' or 'linear', got {self.mapping!r}")
        if not self.w_min <= self.w_max < torch.inf:
            raise ValueError(f"{self.name}: w_max must be finite and at least w_min={self.w_min}, got {self.w_max}")
        if self.mapping == "exp" and self.w_max != 1:
            raise ValueError(
                f"{self.name}: w_max={self.w_max} has no meaning with mapping='exp', whose largest weight is 1; leave "
                "it out or take mapping='linear'"
            )
        if self.scope not in ("step", "exact", "micro_batch"):
            raise ValueError(f"scope must be 'step', 'exact' or 'micro_batch', got {self.scope!r}")

    @torch.no_grad()
    def select(self, window: Window) -> Influence:
        if window.entropies_BT is None:
            raise ValueError(
                f"{self.name} needs the token entropies of the window, and this Window has entropies_BT=None; fill it, "
                "or take scope 'micro_batch', which reads those of the loss pass"
            )
        rows = window.rows
        influence_BT = entropy_influence(
            window.log_probs_BT, window.old_log_probs_BT, rows.advantages_BT, window.entropies_BT, rows.mask_BT
        )
        return influence_range(influence_BT, rows.mask_BT, window.ranks)

    def on_loss(self, rows: Rows, selection: Influence | None, view: LossView) -> LossTerms:
        selection = self.select(view.window(rows)) if selection is None else selection
        influence_BT = entropy_influence(
            view.log_probs_BT, view.old_log_probs_BT, rows.advantages_BT, view.entropies_BT, rows.mask_BT
        )
        weight_BT = steer_weights(
            influence_BT, rows.mask_BT, selection, w_min=self.w_min, w_max=self.w_max, mapping=self.mapping
        )
        sums = weight_sums(rows, weight_BT, rows.mask_BT)
        sums["influence"] = influence_BT.double().sum()
        sums["beyond"] = (influence_BT > selection.largest).double().sum()
        return LossTerms(weight_BT=weight_BT, sums=sums)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """`beyond_share`: tokens whose |O| outgrew the largest of the selection (none under `micro_batch`)."""
        n = max(sums["tokens"], 1)
        return {
            **weight_metrics(sums),
            "influence_mean": sums["influence"] / n,
            "beyond_share": sums["beyond"] / n,
        }

    def window_metrics(self, selection: Any) -> dict[str, Tensor | float]:
        return {"influence_max": selection.largest}


controller = Steer
