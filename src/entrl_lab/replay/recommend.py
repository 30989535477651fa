"""From predictions to nats, and to the setting that comes nearest to a target.

    scale = sum x y / sum x^2          over the run's own windows: x predicted for what the run did, y measured

A run's optimiser carries momentum, so part of every measured change belongs to earlier steps; the scale is of a step as
it was taken, not of a gradient alone, and its interval says how well one number describes the run.

Source:  ours
Needs:   windows whose entropies were measured again after the step (`entropies_after_BT`)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from entrl.trainers.grpo.window_log import LoggedWindow
from entrl_lab.estimators import ESTIMATORS, Estimator
from entrl_lab.replay.agreement import Interval, kendall, moments_of, over_windows, r_squared, scale_of_moments
from entrl_lab.replay.predict import Prediction, predicted_changes, token_gain
from entrl_lab.replay.settings import Setting

RESAMPLES = 2000
LEAST_POINTS = 3  # windows a scale is fitted on


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """scale: measured nats per predicted unit, with interval; windows: how many it was fitted on; r2 see agreement."""

    scale: Interval
    r2: float
    windows: int


def measured_change(window: LoggedWindow) -> float | None:
    """Mean entropy change of the window's own tokens over its step, nats; None where it was not measured."""
    if window.entropies_after_BT is None:
        return None
    mask_BT = window.rows.mask_BT
    change = (window.entropies_after_BT.double() - window.entropies_BT.double())[mask_BT]
    return float(change.mean()) if bool(torch.isfinite(change).all()) else None


def calibrate(windows: Sequence[LoggedWindow], logged: Sequence[Setting | None]) -> dict[Estimator, Calibration] | None:
    """Fit the scale of every estimator; None where fewer than three windows can be used.

    logged: what really acted in each window, None where that cannot be told.
    """
    points = []
    for window, setting in zip(windows, logged, strict=True):
        change = measured_change(window)
        if change is not None and setting is not None:
            gain_BT = token_gain(window, setting.fresh_controllers()).gain_BT
            points.append((predicted_changes(window, gain_BT), change))
    if len(points) < LEAST_POINTS:
        return None
    return {name: _fit([(x[name], y) for x, y in points]) for name in ESTIMATORS}


def _fit(points: Sequence[tuple[float, float]]) -> Calibration:
    scale = over_windows([moments_of([x], [y]) for x, y in points], scale_of_moments)
    r2 = r_squared([x for x, _ in points], [y for _, y in points], scale.value)
    return Calibration(scale=scale, r2=r2, windows=len(points))


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where entropy should go in one step: `value` nats, or `value` times the plain loss's change."""

    value: float
    share: bool  # of the plain loss's change

    @property
    def needs_scale(self) -> bool:
        return not self.share and self.value != 0.0


def parse_target(text: str) -> Target:
    """'0' holds entropy, '-0.001' is nats per step, '50%' half of what the plain loss does."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(
            f"--target takes nats per step (0 holds entropy) or a share of the plain loss's change such as 50%; "
            f"got {text!r}"
        )
    share = text.endswith("%")
    return Target(value=value / 100 if share else value, share=share)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """setting: nearest to the target by mean predicted change.

    gap: how far it is from the target, as a share of the plain loss's change
    chosen_share: share of resampled sets of windows that name the same setting
    rank_stability: mean Kendall tau between the order of settings in a resample and in all windows
    reachable: False where the target lies outside what the asked settings span
    """

    setting: str
    gap: float
    chosen_share: float
    rank_stability: float
    reachable: bool
    runners_up: list[tuple[str, float]]  # other settings and the share of resamples that named them


def recommend(
    table: Sequence[Sequence[Prediction]],
    target: Target,
    *,
    estimator: Estimator = "natural",
    scale: float | None = None,
    seed: int = 0,
) -> Recommendation:
    """Which setting to take. table: one row per window, settings in one order, the plain loss first."""
    if target.needs_scale and scale is None:
        raise ValueError(
            f"a target of {target.value:g} nats needs a scale, and fewer than {LEAST_POINTS} windows have entropies "
            "after the step; log more windows, or give the target as a share of the plain loss's change such as 50%"
        )
    labels = [p.setting for p in table[0]]
    change_WS = np.array([[p.change[estimator] for p in row] for row in table])  # W windows, S settings
    plain = float(change_WS[:, 0].mean())
    if plain == 0.0:
        raise ValueError("the plain loss has no effect in these windows (advantages without spread); choose others")

    def nearest(means_S: np.ndarray) -> int:
        wanted = target.value * means_S[0] if target.share else target.value / (scale or 1.0)
        return int(np.abs(means_S - wanted).argmin())

    means_S = change_WS.mean(0)
    best = nearest(means_S)
    wanted = target.value * plain if target.share else target.value / (scale or 1.0)
    draws = np.random.default_rng(seed).integers(0, len(change_WS), (RESAMPLES, len(change_WS)))
    resampled_RS = change_WS[draws].mean(1)
    named = Counter(labels[nearest(row)] for row in resampled_RS)
    taus = np.array([kendall(row.tolist(), means_S.tolist()) for row in resampled_RS])
    return Recommendation(
        setting=labels[best],
        gap=abs(float(means_S[best]) - wanted) / abs(plain),
        chosen_share=named[labels[best]] / RESAMPLES,
        rank_stability=float(np.nanmean(taus)) if np.isfinite(taus).any() else float("nan"),
        reachable=bool(means_S.min() <= wanted <= means_S.max()),
        runners_up=[(name, count / RESAMPLES) for name, count in named.most_common() if name != labels[best]],
    )
