"""KL-Cov: hold the tokens that lower entropy most close to the policy that sampled them.

    c_i = (log pi(y_i) - mean log pi)(A_i - mean A)             S = the k largest c, k = max(1, int(fraction n))
    l_i = -A_i r_i + [i in S] coef f(x_i)                       x_i = log pi(y_i) - log pi_old(y_i), r_i = exp(x_i)
    f(x) = |x| (`abs`),  x^2 / 2 (`k2`)  or  exp(x) - 1 - x (`k3`)

Source:  arXiv 2505.22617, Eqs. 10, 12, 14; code: verl/trainer/ppo/core_algos.py, compute_policy_loss_kl_cov
    (volcengine/verl at b178a3c). Defaults are the 7B setting (fraction 2e-3, coef 1); the 32B one is fraction 2e-4.
Differs: S is taken over the optimiser step on all ranks, by threshold: means and threshold from `select`, membership
    by the log-probs of the loss pass (scope `step` or `exact`; `micro_batch` is the published code). Under `step` the
    threshold comes from the sampling policy, so the number selected is k on the first update and near k later.
    There is no penalty while the policy is still the one that sampled (but under `micro_batch`): x is round-off then.
    `k2`, `k3`, dead zone, log-ratio clamp and ratio clip are ours and off; groups without spread are left out.
Needs:   several updates per rollout: while the policy is the one that sampled, x = 0 and nothing happens

The ratio is not clipped unless `clip_low` / `clip_high` say so. The slope of `abs` does not shrink with |x|: where
old log-probs come from another forward pass, round-off alone pushes by +-coef; use `k2` or a dead zone there.

Supported losses are those with one ratio per token. CISPO detaches the ratio, SAPO and VESPO reshape it, LUSPO and
sequence-level ratios have one ratio per completion: in none of them does l_i above appear, so they are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.covariance import (
    LAST_ID,
    CovarianceController,
    CovSpread,
    TokenStats,
    agreed_tokens,
    bits_of,
    block_tops,
    block_values,
    both,
    entry,
    padded,
    raw_covariance,
    reads_are_free,
    rule_size,
    runs,
    share_of,
    spread_of,
    spread_sums,
    token_ids,
    token_stats,
    top_tokens,
    total,
    zeroed_,
)
from entrl.controllers.hooks import LossSettings, LossTerms, LossView, Ranks, Role, Rows, Window

Penalty = Literal["abs", "k2", "k3"]


class Top(NamedTuple):
    """The k largest values as a rule: above `threshold`, or equal to it with an id of at most `tie_id`."""

    threshold: Tensor  # float64 scalar
    tie_id: Tensor  # int64 scalar, -1 where no tie has to be broken
    above: Tensor  # float32 scalar: a float32 is above `threshold` where it is above this
    above_or_tied: Tensor  # float32 scalar: and above or equal where it is above this
    tied: bool  # False: `tie_id` was seen to be -1, where looking at it costs nothing


class KLCovSelection(NamedTuple):
    stats: TokenStats
    spread: CovSpread
    top: Top
    metrics: dict[str, Tensor | float]


@torch.no_grad()
def top_rule(value_N: Tensor, id_N: Tensor, k: Tensor | int, n: Tensor | int, ranks: Ranks) -> Top:
    """Rule for the k largest of the n values all ranks hold together; ties go to the smallest ids.

    value_N, id_N: this rank's candidates for the first k + 1 places, in any order, equally many on every rank; filled
    up with (-inf, LAST_ID). k and n may stay on the device.

    The threshold is the midpoint between the k-th and the next value, so that round-off between two passes over the
    same tokens flips none of them; k = n gives -inf, n = 0 gives +inf.
    """
    return _rule(ranks.gather(value_N.double()), ranks.gather(id_N), k, n)


def _rule(value_N: Tensor, id_N: Tensor, k: Tensor | int, n: Tensor | int) -> Top:
    """`top_rule` once every rank's entries are here."""
    k, n = (x if isinstance(x, Tensor) else torch.full((), x, device=value_N.device) for x in (k, n))
    edge = 2  # places k - 1 and k exist however short the list
    value_N, id_N = padded(value_N, len(value_N) + edge, -torch.inf), padded(id_N, len(id_N) + edge, LAST_ID)
    by_id_N = id_N.argsort()
    value_N, order_N = value_N[by_id_N].sort(descending=True, stable=True)
    last, following = entry(value_N, k.long() - 1).double(), entry(value_N, k.long()).double()
    threshold = torch.where(k >= n, -torch.inf, (last + following) / 2)
    tied = (last == following) & (k < n)
    tie_id = torch.where(tied, entry(id_N[by_id_N][order_N], k.long() - 1), -1)
    threshold = torch.where(n == 0, torch.inf, threshold)
    return Top(threshold, tie_id, *_float32_bounds(threshold), bool(tied) if reads_are_free(tied) else True)


def _float32_bounds(threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The largest float32 that is not above the float64 threshold, and the next one below it.

    The midpoint of two neighbouring float32 numbers is neither, so values cannot be compared with it in float32.
    """
    nearest = threshold.float()
    low = torch.full_like(nearest, -torch.inf)
    above = torch.where(nearest.double() > threshold, nearest.nextafter(low), nearest)
    return above, above.nextafter(low)


@torch.no_grad()
def in_top(value_BT: Tensor, id_BT: Tensor | None, mask_BT: Tensor, top: Top) -> Tensor:
    """(B, T) bool: the float32 values that the rule takes; `id_BT` may be None where `top.tied` is False."""
    above = top.above
    if top.tied:
        assert id_BT is not None
        above = torch.where(id_BT <= top.tie_id, top.above_or_tied, top.above)
    # Compared as numbers, then turned into bytes: several times as fast as a comparison into bool on a CPU.
    return both(torch.gt(value_BT, above, out=torch.empty_like(value_BT)).to(torch.uint8).view(torch.bool), mask_BT)


def log_ratio_penalty(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    chosen_BT: Tensor,
    *,
    coef: float,
    kind: Penalty = "abs",
    dead_zone: float = 0.0,
    max_log_ratio: float | None = None,
) -> Tensor:
    """(B, T) coef f(x) at chosen tokens, 0 elsewhere, with the graph of `log_probs_BT`.

    NaN or huge values outside the chosen tokens reach neither the result nor the gradient: they are dropped straight
    after the difference, whose slope is 1 whatever its inputs.
    """
    x_BT = torch.where(chosen_BT, log_probs_BT - old_log_probs_BT, 0.0)
    if max_log_ratio is not None:
        x_BT = x_BT.clamp(-max_log_ratio, max_log_ratio)
    if kind == "abs":
        f_BT = x_BT.abs()
    elif kind == "k2":
        f_BT = x_BT.square() / 2
    else:
        f_BT = torch.expm1(x_BT) - x_BT
    if dead_zone > 0:
        f_BT = torch.where(x_BT.detach().abs() < dead_zone, 0.0, f_BT)
    return coef * f_BT


@dataclass(kw_only=True)
class KLCov(CovarianceController):
    """KL-Cov as a controller: a penalty on the selected tokens, no weight."""

    name: ClassVar[str] = "kl_cov"
    role: ClassVar[Role] = "penalty"
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({"fraction": +1, "coef": +1})
    needs_stale_policy: ClassVar[bool] = True

    fraction: float = 2e-3
    coef: float = 1.0  # beta of the paper; verl's config default is 0.1, its function and the paper say 1
    penalty: Penalty = "abs"
    dead_zone: float = 0.0  # nats: |x| below it is not penalised; about 0.01 covers round-off between passes
    max_log_ratio: float | None = None  # nats: x is clamped in the penalty, which does not push beyond it
    clip_low: float | None = None  # ratio clip at 1 - clip_low; None = none
    clip_high: float | None = None  # ratio clip at 1 + clip_high; None = none

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coef < torch.inf:
            raise ValueError(f"coef must be a finite number >= 0, got {self.coef}")
        if self.penalty not in ("abs", "k2", "k3"):
            raise ValueError(f"penalty must be 'abs', 'k2' or 'k3', got {self.penalty!r}")
        if not 0 <= self.dead_zone < torch.inf:
            raise ValueError(f"dead_zone must be >= 0 nats, got {self.dead_zone}; 0 switches it off")
        for name in ("max_log_ratio", "clip_low", "clip_high"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}; None switches it off")

    @property
    def clip_range(self) -> tuple[float, float]:
        return (
            torch.inf if self.clip_low is None else self.clip_low,
            torch.inf if self.clip_high is None else self.clip_high,
        )

    def conflicts(self, loss: LossSettings) -> list[str]:
        if not loss.sampler_ratio or self.penalty != "abs" or self.dead_zone or not self.coef:
            return []
        return [
            f"{self.name}: penalty 'abs' pushes by +-coef={self.coef} however small the log-ratio, and here the "
            "ratio is to another engine's log-probs, whose round-off alone moves it; set penalty='k2', or a "
            "dead_zone above the logged staleness/0/abs_log_ratio"
        ]

    def select(self, window: Window) -> KLCovSelection:
        chosen = self._choose(window)
        return chosen._replace(metrics=self.spread_metrics(window, chosen.stats, chosen.spread))

    @torch.no_grad()
    def _choose(self, window: Window) -> KLCovSelection:
        rows, ranks, counted_BT = window.rows, window.ranks, self.counted(window.rows)
        log_probs_BT = window.log_probs_BT
        stats = token_stats(log_probs_BT, rows.advantages_BT, counted_BT, ranks)
        tops, sums = [], []
        for run in runs(log_probs_BT):
            bits_BT = bits_of(counted_BT[run])
            cov_BT = zeroed_(raw_covariance(log_probs_BT[run], rows.advantages_BT[run], stats), bits_BT)
            tops.append(block_tops(cov_BT, bits_BT))
            sums.append(spread_sums(cov_BT))
        size = rule_size(self.fraction, agreed_tokens(log_probs_BT, ranks), stats.world)
        value_K, id_K = top_tokens(
            torch.cat(tops),
            rows.row_id_B,
            size,
            lambda block_X: block_values(block_X, log_probs_BT, rows, counted_BT, stats),
        )
        mine_X = torch.cat([id_K, value_K.double().view(torch.int64), torch.stack(sums).sum(0).view(torch.int64)])
        every_RX = ranks.gather(mine_X[None])
        value_N = every_RX[:, size : 2 * size].reshape(-1).view(torch.float64)
        top = _rule(value_N, every_RX[:, :size].reshape(-1), share_of(self.fraction, stats.n), stats.n)
        spread = spread_of(every_RX[:, 2 * size :].contiguous().view(torch.float64).sum(0), stats.n)
        return KLCovSelection(stats, spread, top, {})

    def members(self, rows: Rows, selection: KLCovSelection, *, log_probs_BT: Tensor) -> Tensor:
        """(B, T) bool: the tokens of these rows that the selection's rule takes under these log-probs."""
        counted_BT = self.counted(rows)
        cov_BT = raw_covariance(log_probs_BT, rows.advantages_BT, selection.stats)
        id_BT = token_ids(rows.row_id_B, cov_BT.shape[1]) if selection.top.tied else None
        return in_top(cov_BT, id_BT, counted_BT, selection.top)

    def on_loss(self, rows: Rows, selection: KLCovSelection | None, view: LossView) -> LossTerms:
        if selection is None:
            self.warn_single_row(rows)
            selection = self._choose(view.window(rows))
        chosen_BT = self.members(rows, selection, log_probs_BT=view.log_probs_BT.detach())
        # |x| has slope 1 however small x is, so on a fresh policy round-off would push every selected token by coef.
        published = self.scope == "micro_batch"
        penalised_BT = chosen_BT if published or not view.fresh else torch.zeros_like(chosen_BT)
        penalty_BT = log_ratio_penalty(
            view.log_probs_BT,
            view.old_log_probs_BT,
            penalised_BT,
            coef=self.coef,
            kind=self.penalty,
            dead_zone=self.dead_zone,
            max_log_ratio=self.max_log_ratio,
        )
        sums = self.token_sums(rows, chosen_BT, view)
        sums["candidates"] = sums["tokens"]  # no band here: every counted token competes
        sums["penalty"] = total(penalty_BT.detach().float())
        return LossTerms(penalty_BT=penalty_BT, sums=sums)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        penalty = sums["penalty"] / max(sums["loss_tokens"], 1)  # what it adds to a token-mean loss
        return {**super().summarise(sums), "candidates": sums["candidates"], "penalty": penalty}

    def window_metrics(self, selection: Any) -> dict[str, Tensor | float]:
        return selection.metrics


controller = KLCov
