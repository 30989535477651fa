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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.covariance import (
    COLUMN_SPAN,
    LAST_ID,
    CovarianceController,
    CovSpread,
    TokenStats,
    agreed_tokens,
    bits_of,
    both,
    entry,
    padded,
    ppo_clipped,
    raw_covariance,
    reads_are_free,
    rows_in,
    rule_size,
    runs,
    share_of,
    smallest,
    spread_of,
    spread_sums,
    token_stats,
    zeroed_,
)
from entrl.controllers.hooks import LossTerms, LossView, Ranks, Role, Rows, Window

NO_KEY = -1  # keys are >= 0: a threshold nothing reaches

# SplitMix64 (Steele, Lea, Flood 2014) as signed 64-bit numbers, whose products wrap the same way.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FACTOR_1 = 0xBF58476D1CE4E5B9 - 2**64
FACTOR_2 = 0x94D049BB133111EB - 2**64


class ClipCovSelection(NamedTuple):
    stats: TokenStats
    spread: CovSpread
    key: Tensor  # int64 scalar: candidates with a key of at most this are taken
    step: int  # what the keys were made of
    metrics: dict[str, Tensor | float]


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign bit."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + GOLDEN
    x = (x ^ _shift_right(x, 30)) * FACTOR_1
    x = (x ^ _shift_right(x, 27)) * FACTOR_2
    return x ^ _shift_right(x, 31)


def _mixed(x: int) -> int:
    """`_mix` of one number on the host, as a signed 64-bit number."""
    bits = 2**64 - 1
    x = (x + GOLDEN) & bits
    x = ((x ^ (x >> 30)) * FACTOR_1) & bits
    x = ((x ^ (x >> 27)) * FACTOR_2) & bits
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


@torch.no_grad()
def token_keys(id_BT: Tensor, *, seed: int, step: int) -> Tensor:
    """(B, T) int64 in [0, 2**53): a random number per token, the same on every device, rank and split."""
    stream = _mixed(_mixed(seed) + step)
    return _shift_right(_mix(_mix(id_BT) ^ stream), 11)


@torch.no_grad()
def key_rule(key_N: Tensor, m: Tensor | int, ranks: Ranks) -> Tensor:
    """The m-th smallest key over all ranks; the largest number where there are no more than m, NO_KEY for none.

    key_N: this rank's candidates for the first m + 1 places, equally many on every rank; filled up with LAST_ID.
    """
    return _rule(ranks.gather(key_N), m)


def _rule(key_N: Tensor, m: Tensor | int) -> Tensor:
    """`key_rule` once every rank's keys are here."""
    m = m if isinstance(m, Tensor) else torch.full((), m, device=key_N.device)
    key_N = padded(key_N, len(key_N) + 1, LAST_ID).sort().values
    no_choice = entry(key_N, m) == LAST_ID
    key = torch.where(no_choice, LAST_ID, entry(key_N, m - 1))
    return torch.where(key_N[0] == LAST_ID, NO_KEY, key)


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
        log_probs_BT = window.log_probs_BT
        stats = token_stats(log_probs_BT, rows.advantages_BT, counted_BT, ranks)

        def covariances() -> Iterator[tuple[slice, Tensor]]:
            for run in runs(log_probs_BT):
                cov_BT = raw_covariance(log_probs_BT[run], rows.advantages_BT[run], stats)
                yield run, zeroed_(cov_BT, bits_of(counted_BT[run]))

        in_std = self.bounds == "std"  # the band needs std(c) of all ranks first, which costs a collective more
        if in_std:
            spread = spread_of(
                ranks.sum(torch.stack([spread_sums(cov_BT) for _, cov_BT in covariances()]).sum(0)), stats.n
            )
        else:
            spread = None
        keys, sums = [], []
        for run, cov_BT in covariances():
            _, key_M = self._draw(
                rows_in(rows, run),
                cov_BT,
                spread,
                step=window.step,
                log_probs_BT=log_probs_BT[run],
                old_log_probs_BT=window.old_log_probs_BT[run],
                eps_low=eps_low,
                eps_high=eps_high,
            )
            keys.append(key_M)
            sums.append(spread_sums(cov_BT))
        size = rule_size(self.fraction, agreed_tokens(log_probs_BT, ranks), stats.world)
        mine_X = torch.cat([smallest(torch.cat(keys)[None], size), torch.stack(sums).sum(0).view(torch.int64)])
        every_RX = ranks.gather(mine_X[None])
        key = _rule(every_RX[:, :size].reshape(-1), share_of(self.fraction, stats.n))
        spread = spread_of(every_RX[:, size:].contiguous().view(torch.float64).sum(0), stats.n)
        return ClipCovSelection(stats, spread, key, window.step, {})

    def candidates(
        self,
        rows: Rows,
        cov_BT: Tensor,
        spread: CovSpread,
        *,
        log_probs_BT: Tensor,
        old_log_probs_BT: Tensor,
        eps_low: float,
        eps_high: float,
    ) -> Tensor:
        """(B, T) bool: counted tokens inside the open band that still have a policy gradient."""
        counted_BT = self.counted(rows)
        silenced_BT = ppo_clipped(
            log_probs_BT, old_log_probs_BT, rows.advantages_BT, counted_BT, eps_low=eps_low, eps_high=eps_high
        )
        return self._in_band(cov_BT, spread) & counted_BT & ~silenced_BT

    def _in_band(self, cov_BT: Tensor, spread: CovSpread | None) -> Tensor:
        unit = 1.0 if spread is None or self.bounds == "absolute" else spread.std
        band_BT = torch.gt(cov_BT, self.lower * unit, out=torch.empty_like(cov_BT))  # in float: see `in_top`
        band_BT.mul_(torch.lt(cov_BT, self.upper * unit, out=torch.empty_like(cov_BT)))
        return band_BT.to(torch.uint8).view(torch.bool)

    def _draw(
        self,
        rows: Rows,
        cov_BT: Tensor,
        spread: CovSpread | None,
        *,
        step: int,
        log_probs_BT: Tensor,
        old_log_probs_BT: Tensor,
        eps_low: float,
        eps_high: float,
    ) -> tuple[Tensor, Tensor]:
        """Flat positions of M tokens and their keys, LAST_ID where the token is no candidate.

        M is every token of the rows, or those of the band alone where counting them costs nothing: a key takes some
        thirty integer operations and the band holds about one token in a hundred.
        """
        band_BT = both(self._in_band(cov_BT, spread), self.counted(rows))
        band_N = band_BT.flatten()
        if reads_are_free(band_N):
            place_M = band_N.nonzero().squeeze(1)
        else:
            place_M = torch.arange(len(band_N), device=band_N.device)
        row_M, column_M = place_M // cov_BT.shape[1], place_M % cov_BT.shape[1]
        old_M, log_prob_M = (x.reshape(-1)[place_M] for x in (old_log_probs_BT, log_probs_BT.detach()))
        advantage_M = rows.advantages_BT[row_M, column_M]
        silenced_M = ppo_clipped(
            log_prob_M[:, None],
            old_M[:, None],
            advantage_M[:, None],
            band_N[place_M][:, None],
            eps_low=eps_low,
            eps_high=eps_high,
        ).squeeze(1)
        key_M = token_keys(rows.row_id_B[row_M] * COLUMN_SPAN + column_M, seed=self.seed, step=step)
        return place_M, torch.where(band_N[place_M] & ~silenced_M, key_M, LAST_ID)

    @torch.no_grad()
    def members(
        self,
        rows: Rows,
        selection: ClipCovSelection,
        *,
        log_probs_BT: Tensor,
        old_log_probs_BT: Tensor,
        eps_low: float,
        eps_high: float,
    ) -> tuple[Tensor, Tensor]:
        """(B, T) bool, the tokens of these rows that the selection's rule takes, and the number of candidates."""
        cov_BT = raw_covariance(log_probs_BT, rows.advantages_BT, selection.stats)
        place_M, key_M = self._draw(
            rows,
            cov_BT,
            selection.spread,
            step=selection.step,
            log_probs_BT=log_probs_BT,
            old_log_probs_BT=old_log_probs_BT,
            eps_low=eps_low,
            eps_high=eps_high,
        )
        candidate_M = key_M < LAST_ID
        chosen_N = torch.zeros(cov_BT.numel(), dtype=torch.bool, device=cov_BT.device)
        chosen_N.index_copy_(0, place_M, candidate_M & (key_M <= selection.key))
        return chosen_N.view(cov_BT.shape), candidate_M.count_nonzero()

    def on_loss(self, rows: Rows, selection: ClipCovSelection | None, view: LossView) -> LossTerms:
        if selection is None:
            selection = self._choose_slice(rows, view)
        chosen_BT, candidates = self.members(
            rows,
            selection,
            log_probs_BT=view.log_probs_BT.detach(),
            old_log_probs_BT=view.old_log_probs_BT,
            eps_low=view.eps_low,
            eps_high=view.eps_high,
        )
        sums = self.token_sums(rows, chosen_BT, view)
        sums["candidates"] = candidates
        return LossTerms(weight_BT=1 - chosen_BT.view(torch.uint8).to(view.log_probs_BT.dtype), sums=sums)

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
