"""Saturating curves over training time: what the law of `entrl.stats.law` is judged against, and how entropy is
continued.

    saturation   R(t) = A - (A - R0) exp(-t / tau)                    the time-only curve c - d exp(-t / tau)
    sigmoid      R(t) = R0 + (A - R0) / (1 + (t_mid / t)^B)           R(0) = R0

Both are two levels and a rise g(t) between them, R = R0 + (A - R0) g: for a given shape (tau, or t_mid and B) the
levels are a linear least-squares problem with a closed solution, and only the shape is searched (variable projection).
The search is a bounded grid in log space, zoomed in a fixed number of times: deterministic, no starting values.

Source:  sigmoid: arXiv 2510.13786 (ScaleRL), Eq. 1, R_C - R_0 = (A - R_0) / (1 + (C_mid / C)^B), C in GPU hours.
Differs: C is whatever the caller counts time in (optimiser steps); R_0 is fitted, since one noisy first measurement
         would otherwise carry it; the very first measurements are kept (the source leaves out about 1 500 GPU hours).
         A is held inside bounds, as the source's grid of A does. The bounds of the other parameters are ours.
Needs:   numpy

Letters: N points, K candidate shapes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Kind = Literal["saturation", "sigmoid"]
GRID = 24  # values of each shape parameter per round
ROUNDS = 6  # each round narrows every parameter to two grid steps: a factor of about 12
LONGEST = 10.0  # longest tau or t_mid, in last observed times: beyond it the data hold a straight line at most
POWERS = (0.3, 8.0)  # of the sigmoid; the source's fits lie between 1 and 4
MIN_POINTS = {"saturation": 4, "sigmoid": 5}  # one more than there are parameters


class CurveRefused(ValueError):
    """Too few points for the curve's parameters."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A fitted curve; `scale` is tau or t_mid in the unit of the times, `power` is the sigmoid's B."""

    kind: Kind
    start: float  # R0, level at time 0
    end: float  # A, level after endless time
    scale: float
    power: float = 1.0
    r2: float = 0.0  # in sample; 0 where the values do not vary

    def predict(self, times: ArrayLike) -> np.ndarray:
        """Level at each time (any shape, counted from 0)."""
        times = np.asarray(times, dtype=np.float64)
        rise = _rise(self.kind, times, np.array([self.scale]), np.array([self.power]))[0]
        return self.start + (self.end - self.start) * rise


def fit_curve(
    kind: Kind, times_N: ArrayLike, values_N: ArrayLike, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Curve:
    """Least-squares curve through (times, values); `bounds` hold the end level.

    times_N: counted from 0, ascending; values_N: finite. Raises CurveRefused with too few points.
    """
    times_N, values_N = np.asarray(times_N, dtype=np.float64), np.asarray(values_N, dtype=np.float64)
    if len(np.unique(times_N)) < MIN_POINTS[kind]:
        raise CurveRefused(
            f"the {kind} curve needs at least {MIN_POINTS[kind]} points in time, got {len(np.unique(times_N))}; "
            "evaluate earlier and more often (eval.at: early), or fit a longer share of the run"
        )

    def cost(shape_K2: np.ndarray) -> np.ndarray:
        rise_KN = _rise(kind, times_N, np.exp(shape_K2[:, 0]), np.exp(shape_K2[:, 1]))
        return _levels(rise_KN, values_N, bounds)[2]

    last, gap = float(times_N.max()), float(np.diff(np.unique(times_N)).min())
    scales = (math.log(gap / 2), math.log(LONGEST * last))
    powers = (math.log(POWERS[0]), math.log(POWERS[1])) if kind == "sigmoid" else (0.0, 0.0)
    log_scale, log_power = _zoom(cost, [scales, powers])
    scale, power = math.exp(log_scale), math.exp(log_power)
    rise_1N = _rise(kind, times_N, np.array([scale]), np.array([power]))
    start, end, sse = (float(v[0]) for v in _levels(rise_1N, values_N, bounds))
    total = float(((values_N - values_N.mean()) ** 2).sum())
    return Curve(kind=kind, start=start, end=end, scale=scale, power=power, r2=1 - sse / total if total > 0 else 0.0)


def _rise(kind: Kind, times: np.ndarray, scale_K: np.ndarray, power_K: np.ndarray) -> np.ndarray:
    """g(t) from 0 at time 0 towards 1, for K shapes: (K, *times.shape)."""
    columns = (slice(None),) + (None,) * times.ndim
    if kind == "saturation":
        return -np.expm1(-times / scale_K[columns])
    with np.errstate(divide="ignore"):  # t = 0: t_mid / 0 is inf, and 1 / (1 + inf) the 0 it should be
        return 1 / (1 + (scale_K[columns] / times) ** power_K[columns])


def _levels(
    rise_KN: np.ndarray, values_N: np.ndarray, bounds: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, end, squared error) of each of the K shapes; an end outside the bounds is set on the bound it crossed."""
    centred_KN = rise_KN - rise_KN.mean(1, keepdims=True)
    spread_K = (centred_KN**2).sum(1)
    # A rise that is flat over the data says nothing about the end: no step then, rather than an endless one.
    flat_K = spread_K < 1e-12
    step_K = np.where(flat_K, 0.0, centred_KN @ values_N / np.where(flat_K, 1.0, spread_K))
    start_K = values_N.mean() - step_K * rise_KN.mean(1)
    end_K = np.clip(start_K + step_K, *bounds)
    outside_K = end_K != start_K + step_K
    rest_KN = 1 - rise_KN
    weight_K = (rest_KN**2).sum(1)
    held_K = (rest_KN * (values_N - end_K[:, None] * rise_KN)).sum(1) / np.where(weight_K > 0, weight_K, 1.0)
    start_K = np.where(outside_K, held_K, start_K)
    error_KN = start_K[:, None] + (end_K - start_K)[:, None] * rise_KN - values_N
    return start_K, end_K, (error_KN**2).sum(1)


def _zoom(cost: Callable[[np.ndarray], np.ndarray], limits: list[tuple[float, float]]) -> list[float]:
    """Minimum of `cost` over a box: a grid, then finer grids around the best point, never outside the box."""
    box, best = list(limits), [lo for lo, _ in limits]
    for _ in range(ROUNDS):
        axes = [np.linspace(lo, hi, GRID) if hi > lo else np.array([lo]) for lo, hi in box]
        points = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
        best = points[int(np.argmin(cost(points)))].tolist()  # the first of equals: deterministic
        steps = [(hi - lo) / (GRID - 1) for lo, hi in box]
        box = [(max(lo, b - s), min(hi, b + s)) for b, s, (lo, hi) in zip(best, steps, limits, strict=True)]
    return best
