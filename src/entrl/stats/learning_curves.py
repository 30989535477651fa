"""Saturating curves over training time: what the law of `entrl.stats.law` is judged against, and how entropy is
continued.

    saturation   R(t) = A - (A - R0) exp(-t / tau)                    the time-only curve c - d exp(-t / tau)
    sigmoid      R(t) = R0 + (A - R0) / (1 + (t_mid / t)^B)           R(0) = R0

Both are two levels and a rise g(t) between them, R = R0 + (A - R0) g: for a given shape (tau, or t_mid and B) the
levels are a linear least-squares problem with a closed solution, and only the shape is searched (variable projection):
the best of a grid in log space is where scipy's bounded least squares starts. Deterministic.

Source:  sigmoid: arXiv 2510.13786 (ScaleRL), Eq. 1, R_C - R_0 = (A - R_0) / (1 + (C_mid / C)^B), C in GPU hours.
Differs: C is whatever the caller counts time in (optimiser steps); R_0 is fitted, since one noisy first measurement
         would otherwise carry it; the very first measurements are kept (the source leaves out about 1 500 GPU hours).
         A is held inside bounds, as the source's grid of A does. The bounds of the other parameters are ours.
Needs:   numpy, scipy

Letters: N points.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

Kind = Literal["saturation", "sigmoid"]
GRID = 24  # values of each shape parameter the search may start from
LONGEST = 10.0  # longest tau or t_mid, in last observed times: beyond it the data hold a straight line at most
POWERS = (0.3, 8.0)  # of the sigmoid; the source's fits lie between 1 and 4
MIN_POINTS = {"saturation": 4, "sigmoid": 5}  # one more than there are parameters


class CurveRefused(ValueError):
    """Too few points for the curve's parameters."""


@dataclass(frozen=True)
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
        rise = _rise(self.kind, np.asarray(times, dtype=np.float64), self.scale, self.power)
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
    last, gap = float(times_N.max()), float(np.diff(np.unique(times_N)).min())
    limits = [(math.log(gap / 2), math.log(LONGEST * last)), (math.log(POWERS[0]), math.log(POWERS[1]))]
    limits = limits if kind == "sigmoid" else limits[:1]

    def errors(log_shape: np.ndarray) -> np.ndarray:
        rise_N = _rise(kind, times_N, *np.exp(log_shape))
        start, end = _levels(rise_N, values_N, bounds)
        return start + (end - start) * rise_N - values_N

    first = scipy.optimize.brute(lambda log_shape: float((errors(log_shape) ** 2).sum()), limits, Ns=GRID, finish=None)
    box = np.transpose(limits)
    inside = np.clip(first, *box)  # the grid's last point may lie a rounding beyond
    found = scipy.optimize.least_squares(errors, inside, bounds=box, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    shape = np.exp(found.x).tolist()
    start, end = _levels(_rise(kind, times_N, *shape), values_N, bounds)
    total = float(((values_N - values_N.mean()) ** 2).sum())
    return Curve(kind, start, end, *shape, r2=1 - 2 * float(found.cost) / total if total > 0 else 0.0)


def _rise(kind: Kind, times: np.ndarray, scale: float, power: float = 1.0) -> np.ndarray:
    """g(t) from 0 at time 0 towards 1."""
    if kind == "saturation":
        return -np.expm1(-times / scale)
    with np.errstate(divide="ignore"):  # t = 0: t_mid / 0 is inf, and 1 / (1 + inf) the 0 it should be
        return 1 / (1 + (scale / times) ** power)


def _levels(rise_N: np.ndarray, values_N: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float]:
    """(start, end) of least squares for one rise; an end outside the bounds is set on the bound it crossed."""
    centred_N = rise_N - rise_N.mean()
    spread = float(centred_N @ centred_N)
    # A rise that is flat over the data says nothing about the end: no step then, rather than an endless one.
    step = float(centred_N @ values_N) / spread if spread >= 1e-12 else 0.0
    start = float(values_N.mean()) - step * float(rise_N.mean())
    end = min(max(start + step, bounds[0]), bounds[1])
    if end != start + step:
        rest_N = 1 - rise_N
        weight = float(rest_N @ rest_N)
        start = float(rest_N @ (values_N - end * rise_N)) / (weight if weight > 0 else 1.0)
    return start, end
