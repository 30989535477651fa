"""Dynamic KL: a coefficient of the KL to the reference model per difficulty, steered to a KL of its own.

    l_i += beta s m_d rho^[i in W] k(x_i)      k(x) = exp(x) - x - 1, x_i = log pi_ref(y_i) - log pi(y_i)

beta is TRL's, which adds beta k(x_i) itself; the controller adds the difference. d is the difficulty of the row's
prompt, W the tokens in high-entropy windows (rho is `window_factor`), s = `strength`. m_d starts at `start` and, once
per optimiser step, moves towards KL_d = `targets[d]`, by one of two rules. KL_d is the mean of k over the step's
tokens of difficulty d on all ranks; with a `window_factor`, over those outside windows.

    log             K_d <- c K_d + (1 - c) KL_d;  e = K_d / target_d - 1, no move below |e| = 0.02;
                    E_d <- c E_d + (1 - c) e;     ln m_d <- ln m_d + 0.05 clip(E_d, -0.2, 0.2)           c = 0.9
    multiplicative  m_d <- m_d (1 + 0.1 clip(KL_d / target_d - 1, -1, 1))
    fixed           m_d stays

Source:  ARES, arXiv 2510.08457. `multiplicative` and rho: section 3.2 (kappa, beta_{i,t}), which gives no constants;
    `log`: shawn0728/ARES at 146620e, verl/workers/actor/dp_actor.py, `_update_beta_per_bucket`, with its constants
Differs: published, each rank moves its own m_d by its own micro-batches and ranks drift apart; here sums over all
    micro-batches and ranks move one m_d, once an optimiser step. KL_d is a mean over tokens there over completions.
    c is 0.97 there, with a move every 100 micro-batches; with a move a step two averages that long make the loop swing
    (tests: a KL that falls as 1/m^2 never settles). Targets are per difficulty (there 0.01 for all), easy problems held
    the tightest. The clip of the multiplicative error is ours (`error_clip: inf` is the paper's). What moves m_d is
    clamped as published (x to 20, k to 10 nats); the loss, which is TRL's, is not. The published controller, ranks
    apart, is `update: micro_batch` with `interval: 100`, `decay: 0.97` and targets of 0.01. TRL's
    `use_bias_correction_kl`, on by default, puts its term and ours under the ratio; KL_d is without it.
Needs:   `beta` above 0; a reward that publishes `difficulty` (0 easy, 1 medium, 2 hard, negative unknown: m = 1), and
    `high_entropy` with a `window_factor`
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Controller, LossTerms, LossView, Role, Rows, StepFeedback
from entrl.maths.difficulty import BUCKETS
from entrl.maths.signals import masked_mean

Rule = Literal["log", "multiplicative", "fixed"]
MAX_LOG_RATIO = 20.0  # nats; published clamp of x
MAX_KL = 10.0  # nats; published clamp of k
SMALLEST_TARGET = 1e-8  # nats; published guard of the division
ERROR_CLIPS = {"log": 0.2, "multiplicative": 1.0, "fixed": math.inf}


class KLState(NamedTuple):
    """Where one difficulty's coefficient stands."""

    multiplier: float = 1.0
    kl: float | None = None  # nats, running mean; None before the first
    error: float = 0.0  # running mean of the relative error


def kl_beta_step(
    state: KLState,
    kl: float,
    *,
    target: float,
    decay: float = 0.97,
    log_rate: float = 0.05,
    error_clip: float = 0.2,
    dead_zone: float = 0.02,
    minimum: float = 1e-4,
    maximum: float = 100.0,
    move: bool = True,
) -> KLState:
    """The rule `log` after one measurement of `kl` nats; with `move` False only the running KL takes it in.

    Defaults are the published ones.
    """
    running = kl if state.kl is None else (1 - decay) * kl + decay * state.kl
    error = running / max(SMALLEST_TARGET, target) - 1
    if not move or abs(error) < dead_zone:
        return state._replace(kl=running)
    smooth = (1 - decay) * error + decay * state.error
    log_multiplier = math.log(state.multiplier) + log_rate * min(max(smooth, -error_clip), error_clip)
    log_multiplier = min(max(log_multiplier, math.log(minimum)), math.log(maximum))
    return KLState(math.exp(log_multiplier), running, smooth)


def kappa_step(
    kappa: float,
    kl: float,
    *,
    target: float,
    rate: float = 0.1,
    error_clip: float = math.inf,
    minimum: float = 1e-4,
    maximum: float = 100.0,
) -> float:
    """The rule `multiplicative`: the next kappa after a KL of `kl` nats."""
    error = min(max(kl / target - 1, -error_clip), error_clip)
    return min(max(kappa * (1 + rate * error), minimum), maximum)


def token_factors(multiplier_B: Tensor, in_window_BT: Tensor, factor: float) -> Tensor:
    """(B, T) m rho^[in window]."""
    return torch.where(in_window_BT, factor * multiplier_B[:, None], multiplier_B[:, None])


def k3(log_probs_BT: Tensor, ref_log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) k(x) in nats with the graph of `log_probs_BT`, as TRL 1.16 computes it; 0 outside the mask."""
    x_BT = torch.where(mask_BT, ref_log_probs_BT - log_probs_BT, 0.0)
    return torch.exp(x_BT) - x_BT - 1


@torch.no_grad()
def measured_kl(log_probs_BT: Tensor, ref_log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) float64, nats: k(x) clamped as published, and exact where x is small and float32 would cancel."""
    x_BT = torch.where(mask_BT, ref_log_probs_BT - log_probs_BT, 0.0).double()
    x_BT = x_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(x_BT) - x_BT).clamp(-MAX_KL, MAX_KL)


def _by_bucket(what: str) -> list[str]:
    return [f"{what}_{name}" for name in BUCKETS]


@dataclass(kw_only=True)
class DynamicKL(Controller):
    """One multiplier of TRL's `beta` per difficulty."""

    name: ClassVar[str] = "dynamic_kl"
    role: ClassVar[Role] = "reference_kl"
    # Taking the reference for what RL starts from: less sharp than the policy, so holding closer to it spreads.
    knobs: ClassVar[Mapping[str, int]] = MappingProxyType({"strength": +1})
    needs_feedback: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    rule: Rule = "log"
    targets: Sequence[float] = (0.005, 0.01, 0.02)  # nats a token; easy, medium, hard
    start: Sequence[float] = (1.0, 1.0, 1.0)  # multipliers; the authors' earlier fixed ones are 1.25, 1, 0.75
    strength: float = 1.0  # of every difficulty, unknown ones included
    window_factor: float | None = None  # rho in high-entropy windows, 0.5 suggested; None: windows are not looked at
    update: Literal["step", "micro_batch"] = "step"
    interval: int = 1  # measurements per move: optimiser steps, or micro-batches of this rank
    decay: float = 0.9  # c of the rule `log`
    log_rate: float = 0.05  # of the rule `log`
    rate: float = 0.1  # of the rule `multiplicative`; ours
    error_clip: float | None = None  # None: 0.2 (`log`) or 1 (`multiplicative`)
    dead_zone: float = 0.02  # relative error below which the rule `log` does not move
    minimum: float = 1e-4  # of a multiplier
    maximum: float = 100.0

    def __post_init__(self) -> None:
        if self.rule not in ERROR_CLIPS:
            raise ValueError(f"rule must be 'log', 'multiplicative' or 'fixed', got {self.rule!r}")
        if self.update not in ("step", "micro_batch"):
            raise ValueError(f"update must be 'step' or 'micro_batch' (published), got {self.update!r}")
        if not 0 < self.minimum < self.maximum < math.inf:
            raise ValueError(f"0 < minimum < maximum is needed, got {self.minimum} and {self.maximum}")
        self.targets, self.start = self._one_each("targets"), self._one_each("start")
        if not all(0 < t < math.inf for t in self.targets):
            raise ValueError(f"targets must be > 0 nats a token, got {self.targets}; rule: fixed needs none")
        if not all(self.minimum <= m <= self.maximum for m in self.start):
            raise ValueError(f"start must lie in [minimum, maximum] = [{self.minimum}, {self.maximum}]: {self.start}")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength must be finite and >= 0, got {self.strength}")
        if self.window_factor is not None and not 0 <= self.window_factor < math.inf:
            raise ValueError(
                f"window_factor must be finite and >= 0, got {self.window_factor}; null leaves windows out"
            )
        if self.interval < 1:
            raise ValueError(f"interval must be >= 1 measurement, got {self.interval}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}; 0 keeps no past")
        for name in ("log_rate", "rate", "dead_zone"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        if self.rule == "multiplicative" and self.rate >= 1:
            raise ValueError(f"rate must be below 1, got {self.rate}: a KL of 0 would turn the multiplier negative")
        if self.error_clip is not None and not self.error_clip > 0:
            raise ValueError(f"error_clip must be > 0, got {self.error_clip}; .inf in a recipe switches it off")
        self._states = [KLState(multiplier=m) for m in self.start]
        self._measured = 0

    def _one_each(self, name: str) -> tuple[float, ...]:
        given = getattr(self, name)
        if isinstance(given, int | float) or len(given) != len(BUCKETS):
            raise ValueError(f"{name} takes one number each for {', '.join(BUCKETS)}, got {given!r}")
        return tuple(float(v) for v in given)

    @property
    def scope(self) -> Literal["micro_batch"] | None:
        return "micro_batch" if self.update == "micro_batch" else None

    @property
    def needs_columns(self) -> tuple[str, ...]:
        return ("difficulty",) if self.window_factor is None else ("difficulty", "high_entropy")

    @property
    def multipliers(self) -> list[float]:
        """m_d in force, easy first."""
        return [state.multiplier for state in self._states]

    @property
    def idle(self) -> bool:
        """Whether every coefficient is TRL's own, so that nothing is to be added."""
        factors = [self.strength, *(self.strength * m for m in self.multipliers)]
        return all(f == 1 for f in factors) and self.window_factor in (None, 1)

    def on_loss(self, rows: Rows, selection: Any, view: LossView) -> LossTerms:
        log_probs_BT, ref_log_probs_BT = view.log_probs_BT, view.ref_log_probs_BT
        if ref_log_probs_BT is None:
            raise ValueError("dynamic_kl weighs the KL to the reference model and there is none; set beta above 0")
        difficulty_B, window_BT = self._columns(rows)
        kl_BT = measured_kl(log_probs_BT.detach(), ref_log_probs_BT, rows.mask_BT)
        outside_BT = rows.mask_BT if window_BT is None else rows.mask_BT & ~window_BT
        if self.update == "micro_batch":
            self._take_in(self._completion_means(kl_BT, outside_BT, difficulty_B))
        sums = self._sums(kl_BT, rows.mask_BT, outside_BT, difficulty_B)
        if self.idle:
            return LossTerms(sums=sums)
        table = torch.tensor([*self.multipliers, 1.0], dtype=log_probs_BT.dtype, device=log_probs_BT.device)
        factor_BT = self.strength * table[torch.where(difficulty_B < 0, len(BUCKETS), difficulty_B)][:, None]
        if window_BT is not None and self.window_factor is not None:
            factor_BT = token_factors(factor_BT[:, 0], window_BT, self.window_factor)
        penalty_BT = (factor_BT - 1) * k3(log_probs_BT, ref_log_probs_BT, rows.mask_BT)
        return LossTerms(reference_penalty_BT=penalty_BT, sums=sums)

    def _columns(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        missing = [name for name in self.needs_columns if name not in rows.columns]
        if missing:
            raise ValueError(
                f"dynamic_kl needs {' and '.join(missing)} of each row, which no reward publishes; add the reward "
                "hierarchical_entropy (with alpha: 0 it scores accuracy alone)"
            )
        window_BT = None if self.window_factor is None else rows.columns["high_entropy"].bool()
        return rows.columns["difficulty"].long(), window_BT

    @torch.no_grad()
    def _sums(self, kl_BT: Tensor, mask_BT: Tensor, outside_BT: Tensor, difficulty_B: Tensor) -> dict[str, Tensor]:
        kl_B, tokens_B = torch.where(outside_BT, kl_BT, 0.0).sum(-1), outside_BT.sum(-1)
        out = {
            "rows": torch.ones_like(difficulty_B).sum(),
            "unknown": (difficulty_B < 0).sum(),
            "tokens": mask_BT.sum(),
            "window_tokens": mask_BT.sum() - tokens_B.sum(),
            "window_kl": torch.where(mask_BT & ~outside_BT, kl_BT, 0.0).sum(),
        }
        for d, name in enumerate(BUCKETS):
            out[f"kl_{name}"] = torch.where(difficulty_B == d, kl_B, 0.0).sum()
            out[f"tokens_{name}"] = torch.where(difficulty_B == d, tokens_B, 0).sum()
        return out

    @staticmethod
    def _completion_means(kl_BT: Tensor, outside_BT: Tensor, difficulty_B: Tensor) -> list[float | None]:
        """Per difficulty the mean over this micro-batch's completions of each one's mean; None without any."""
        kl_B = masked_mean(kl_BT, outside_BT)
        parts = [kl_B[difficulty_B == d] for d in range(len(BUCKETS))]
        return [float(p.mean()) if len(p) else None for p in parts]

    def _take_in(self, kls: Sequence[float | None]) -> None:
        """One measurement per difficulty; None leaves that difficulty as it is."""
        self._measured += 1
        move = self._measured % self.interval == 0
        for d, kl in enumerate(kls):
            if kl is not None and math.isfinite(kl):
                self._states[d] = self._after(self._states[d], kl, self.targets[d], move=move)

    def _after(self, state: KLState, kl: float, target: float, *, move: bool) -> KLState:
        if self.rule == "fixed":
            return state
        clip = ERROR_CLIPS[self.rule] if self.error_clip is None else self.error_clip
        limits = {"error_clip": clip, "minimum": self.minimum, "maximum": self.maximum}
        if self.rule == "log":
            steps = {"decay": self.decay, "log_rate": self.log_rate, "dead_zone": self.dead_zone}
            return kl_beta_step(state, kl, target=target, move=move, **steps, **limits)
        moved = kappa_step(state.multiplier, kl, target=target, rate=self.rate, **limits)
        return state._replace(multiplier=moved if move else state.multiplier, kl=kl)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Nats a token, of the tokens that are measured; a difficulty absent from the step has no `kl_`."""
        out = {f"multiplier_{name}": self.strength * m for name, m in zip(BUCKETS, self.multipliers, strict=True)}
        for kl, tokens in zip(_by_bucket("kl"), _by_bucket("tokens"), strict=True):
            out[kl] = sums[kl] / sums[tokens] if sums[tokens] else math.nan
        if self.window_factor is not None:
            out["kl_windows"] = sums["window_kl"] / sums["window_tokens"] if sums["window_tokens"] else math.nan
            out["window_share"] = sums["window_tokens"] / max(sums["tokens"], 1)
        return out | {"unknown_share": sums["unknown"] / max(sums["rows"], 1)}

    def on_step(self, feedback: StepFeedback) -> dict[str, float]:
        """Move the multipliers by the step's KL, which `summarise` made of the sums over all ranks."""
        if self.update == "step":
            self._take_in([feedback.metrics.get(f"{self.name}/{kl}") for kl in _by_bucket("kl")])
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"states": [state._asdict() for state in self._states], "measured": self._measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._states = [KLState(**saved) for saved in state["states"]]
        self._measured = int(state["measured"])


controller = DynamicKL
