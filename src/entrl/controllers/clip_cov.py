"""Clip-Cov: take the gradient away from a few random tokens out of a band of high covariance.

    c_i = (log pi(y_i) - mean log pi)(A_i - mean A)
    candidates: lower < c_i < upper, and not silenced by the ratio clip already
    S = uniform random subset of m = max(int(fraction n), 1) candidates, all of them if there are fewer
    l_i = [i not in S] max(-A_i r_i, -A_i clip(r_i, 1 - clip_low, 1 + clip_high))       tokens of S stay in the divisor

Source:  arXiv 2505.22617, Eqs. 10-11; code: verl/trainer/ppo/core_algos.py, compute_policy_loss_clip_cov
    (volcengine/verl at b178a3c). Defaults are the paper's and its scripts': fraction 2e-4, band (1, 5), ratio
    in [0, 2]. The band is open on both sides, as in the code (the equation closes it).
Differs: S is drawn over the optimiser step on all ranks (scope `step` or `exact`; `micro_batch` is the published
    code). Each token has a key, a hash of (seed, step, row, column); `select` finds the m-th smallest key among the
    candidates, and a token belongs to S when it is a candidate in the loss pass and its key is not larger. So the
    draw depends on nothing but seed and step; the published one is an unseeded permutation per micro-batch.
    Band in multiples of std(c), and leaving out groups without spread, are ours.
Needs:   nothing more; it acts on-policy as well, because it removes gradients

The absolute band belongs to advantages divided by the group's std and 8 completions a group, where |A| <= 2.47; it
holds about 1 % of tokens there. Elsewhere use `bounds="std"`.

Supported losses are those with one ratio per token, -min(r A, clip(r) A): "silenced by the ratio clip" and zeroing one
token mean nothing else where the ratio is detached (CISPO), reshaped (SAPO, VESPO) or per completion (LUSPO, sequence
level), so those are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.covariance import (
    CovSpread,
    TokenStats,
    cov_spread,
    in_band,
    ppo_clipped,
    spread_of,
    spread_sums,
    token_covariance,
    token_stats,
)
from entrl.controllers.covariance_controller import CovarianceController
from entrl.controllers.hooks import LossTerms, LossView, Role, Rows, Window
from entrl.controllers.seeded_sample import key_rule, smallest, token_keys
from entrl.controllers.top import LAST_ID, agreed_tokens, gather_together, rule_size, share_of, token_ids


class ClipCovSelection(NamedTuple):
    stats: TokenStats
    spread: CovSpread
    key: Tensor  # int64 scalar: candidates with a key of at most this are taken
    step: int  # what the keys were made of
    metrics: dict[str, Tensor | float]


@dataclass(kw_only=True)
class ClipCov(CovarianceController):
    """Clip-Cov as a controller: weight 0 on the selected tokens, no penalty."""

    name: ClassVar[str] = "clip_cov"
    role: ClassVar[Role] = "weight"
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({"fraction": +1})

    fraction: float = 2e-4
    bounds: Literal["absolute", "std"] = "absolute"  # unit of the band: c itself, or the std of c over the scope
    lower: float = 1.0
    upper: float = 5.0
    clip_low: float = 1.0  # ratio clip at 1 - clip_low: the ratio range is [0, 2] by default
    clip_high: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds not in ("absolute", "std"):
            raise ValueError(f"bounds must be 'absolute' or 'std', got {self.bounds!r}")
        if not self.lower < self.upper:
            raise ValueError(f"lower must be below upper, got {self.lower} and {self.upper}; the band is open")
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}; the published value is 1")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit 64 bits, got {self.seed}")
        self._draws = 0  # micro-batches seen under scope `micro_batch`, where no step number reaches the controller

    @property
    def clip_range(self) -> tuple[float, float]:
        return (self.clip_low, self.clip_high)

    def select(self, window: Window) -> ClipCovSelection:
        chosen = self._choose(window, eps_low=self.clip_low, eps_high=self.clip_high)
        return chosen._replace(metrics=self.spread_metrics(window, chosen.stats, chosen.spread))

    @torch.no_grad()
    def _choose(self, window: Window, *, eps_low: float, eps_high: float) -> ClipCovSelection:
        rows, ranks, counted_BT = window.rows, window.ranks, self.counted(window.rows)
        stats = token_stats(window.log_probs_BT, rows.advantages_BT, counted_BT, ranks)
        cov_BT = token_covariance(window.log_probs_BT, rows, counted_BT, stats)
        # A band in units of std(c) needs it of all ranks first, which costs a collective more.
        spread = cov_spread(cov_BT, stats.n, ranks) if self.bounds == "std" else None
        log_probs = window.log_probs_BT, window.old_log_probs_BT
        clipped_BT = ppo_clipped(*log_probs, rows.advantages_BT, rows.mask_BT, eps_low=eps_low, eps_high=eps_high)
        candidate_BT = self.candidates(rows, cov_BT, clipped_BT, spread)
        key_BT = torch.where(candidate_BT, self._keys(rows, window.step), LAST_ID)
        size = rule_size(self.fraction, agreed_tokens(cov_BT, ranks), stats.world)
        key_RK, sums_R2 = gather_together(ranks, smallest(key_BT.flatten(), size), spread_sums(cov_BT))
        key = key_rule(key_RK.flatten(), share_of(self.fraction, stats.n))
        return ClipCovSelection(stats, spread_of(sums_R2.sum(0), stats.n), key, window.step, {})

    def _keys(self, rows: Rows, step: int) -> Tensor:
        return token_keys(token_ids(rows.row_id_B, rows.mask_BT.shape[1]), seed=self.seed, step=step)

    def candidates(self, rows: Rows, cov_BT: Tensor, clipped_BT: Tensor, spread: CovSpread | None) -> Tensor:
        """(B, T) bool: counted tokens inside the open band that still have a policy gradient."""
        unit = 1.0 if spread is None or self.bounds == "absolute" else spread.std
        return in_band(cov_BT, lower=self.lower * unit, upper=self.upper * unit) & self.counted(rows) & ~clipped_BT

    @torch.no_grad()
    def members(self, rows: Rows, selection: ClipCovSelection, view: LossView) -> tuple[Tensor, Tensor]:
        """(B, T) bool, the tokens of these rows that the selection's rule takes, and the number of candidates."""
        cov_BT = token_covariance(view.log_probs_BT, rows, self.counted(rows), selection.stats)
        log_probs = view.log_probs_BT, view.old_log_probs_BT
        clip = {"eps_low": view.eps_low, "eps_high": view.eps_high}
        clipped_BT = ppo_clipped(*log_probs, rows.advantages_BT, rows.mask_BT, **clip)
        candidate_BT = self.candidates(rows, cov_BT, clipped_BT, selection.spread)
        return candidate_BT & (self._keys(rows, selection.step) <= selection.key), candidate_BT.sum()

    def on_loss(self, rows: Rows, selection: ClipCovSelection | None, view: LossView) -> LossTerms:
        selection = self._choose_slice(rows, view) if selection is None else selection
        chosen_BT, candidates = self.members(rows, selection, view)
        sums = self.token_sums(rows, chosen_BT, view)
        sums["candidates"] = candidates
        return LossTerms(weight_BT=1 - chosen_BT.to(view.log_probs_BT.dtype), sums=sums)

    def _choose_slice(self, rows: Rows, view: LossView) -> ClipCovSelection:
        self.warn_single_row(rows)
        slice_ = view.window(rows, step=self._draws)
        self._draws += 1
        return self._choose(slice_, eps_low=view.eps_low, eps_high=view.eps_high)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return {**super().summarise(sums), "candidates": sums["candidates"]}

    def window_metrics(self, selection: Any) -> dict[str, Tensor | float]:
        return selection.metrics

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self._draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws = int(state["draws"])


controller = ClipCov
