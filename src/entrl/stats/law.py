"""The law of entropy and accuracy, R = -a e^H + b; what can prove it wrong is in `entrl.stats.forecasts`.

    R   accuracy on held-out problems, as a share          H   policy entropy on training prompts, nats per token
    ceiling = b - a, the accuracy at H = 0                  dR/dH = -a e^H

Given e^H the law is linear in (a, b): ordinary least squares.

Source:  arXiv 2505.22617, Eq. 6; the paper names no fitting routine. Pseudo-residuals for the noise of an unevenly
         sampled series: Gasser, Sroka and Jennen-Steinmetz 1986. Moving blocks: Kuensch 1989.
Differs: the fit is refused where it would mean nothing (`LawRefused`), and intervals are given
Needs:   numpy. scipy's bootstrap draws single values, which blocks of residuals are not, and its permutation test
         takes every order of a short series one by one

Letters: N points in time order, M predicted points, S resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entrl.stats.intervals import CONFIDENCE, tails

MIN_POINTS = 3  # two coefficients and one residual
MIN_SERIES = 6  # for an interval or a forecast: three blocks of two
# Range of e^H. The steepest a read off the paper's figures is 0.25: over a range of 0.02 even that moves accuracy by
# half a point, which no validation set of a few hundred problems can see.
MIN_RANGE = 0.02
# Share of the variance of e^H that is trend rather than noise from point to point. Noise in a regressor shrinks its
# slope by this factor; below 0.5 more than half of a, and of the climb to the ceiling, is lost to noise.
MIN_RELIABILITY = 0.5
# A short noisy series often looks like a trend: from MIN_SERIES points on, it must also beat its own shuffles.
MAX_CHANCE = 0.05
SHUFFLES = 999
ENTROPY = "policy_entropy/token_mean"
ACCURACY = "rewards/accuracy/mean"


class LawRefused(ValueError):
    """The points cannot carry the law; the message names the values, the rule and the next move."""


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """a, b in accuracy (share); entropies in nats. `reliability` is the share of trend in the variance of e^H."""

    a: float
    b: float
    ceiling: float  # b - a
    r2: float  # in sample, hence weak evidence; 0 where the accuracy does not vary
    rmse: float
    n: int
    dropped: int  # points left out because entropy, accuracy or weight was not finite
    entropy_range: tuple[float, float]
    exp_range: tuple[float, float]  # of e^H
    reliability: float

    def predict(self, entropy: ArrayLike) -> np.ndarray:
        """Accuracy at each entropy (nats, any shape)."""
        return self.b - self.a * np.exp(np.asarray(entropy, dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class LawIntervals:
    """Bootstrap intervals of a fit; `a_S`, `b_S` are the resampled coefficients."""

    a: tuple[float, float]
    b: tuple[float, float]
    ceiling: tuple[float, float]
    block: int
    confidence: float
    a_S: np.ndarray
    b_S: np.ndarray

    def predict(self, entropy_M: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval of the fitted *line* at each entropy; a new measurement scatters more."""
        line_SM = self.b_S[:, None] - self.a_S[:, None] * np.exp(np.asarray(entropy_M, dtype=np.float64))
        lo_M, hi_M = np.quantile(line_SM, tails(self.confidence), axis=0)
        return lo_M, hi_M


class Series(NamedTuple):
    """One run: times in steps counted from 0, ascending; entropy in nats; accuracy as a share."""

    times: np.ndarray
    entropy: np.ndarray
    accuracy: np.ndarray


# --- fit --------------------------------------------------------------------------------------------------------


def fit_law(
    entropy_N: ArrayLike,
    accuracy_N: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    times_N: ArrayLike | None = None,
    min_points: int = MIN_POINTS,
    refuse: bool = True,
) -> LawFit:
    """Least squares of R on -e^H and 1, over the points where everything is finite.

    weights: >= 0, such as the number of problems behind each accuracy
    times_N: when the points were measured, for the noise of e^H; None takes them as evenly spaced in the given order
    refuse: False fits whatever can be solved (for arithmetic and for showing what a refused fit would have said)
    Raises LawRefused: fewer than `min_points`, a range of e^H below MIN_RANGE, a trend of e^H lost in noise.
    """
    columns = [entropy_N, accuracy_N] if weights is None else [entropy_N, accuracy_N, weights]
    columns += [] if times_N is None else [times_N]
    (entropy_N, accuracy_N, *rest), dropped = finite_rows(*columns)
    weight_N = np.ones(len(entropy_N)) if weights is None else rest.pop(0)
    if (weight_N < 0).any():
        raise ValueError(f"weights must be >= 0, got {weight_N.min():g}; weigh by problems or rows behind the accuracy")
    exp_N = np.exp(entropy_N)
    reliability = trend_share(exp_N, rest[0] if rest else None)
    if refuse:
        _check_points(exp_N, rest[0] if rest else None, reliability, min_points, dropped)
    a, b = _least_squares(exp_N, accuracy_N, weight_N)
    error_N = accuracy_N - (b - a * exp_N)
    total = weight_N.sum()
    centred_N = accuracy_N - (weight_N @ accuracy_N) / total
    spread, missed = float(weight_N @ centred_N**2), float(weight_N @ error_N**2)
    return LawFit(
        a=a,
        b=b,
        ceiling=b - a,
        r2=1 - missed / spread if spread > 0 else 0.0,
        rmse=math.sqrt(missed / total),
        n=len(exp_N),
        dropped=dropped,
        entropy_range=(float(entropy_N.min()), float(entropy_N.max())),
        exp_range=(float(exp_N.min()), float(exp_N.max())),
        reliability=reliability,
    )


def trend_share(x_N: np.ndarray, times_N: np.ndarray | None = None) -> float:
    """1 - noise variance / variance of a series, in [0, 1]; 0 where it cannot be told (fewer than 3 points).

    The noise of a point is what is left of it after a straight line between its two neighbours in time. A trend that
    bends within three points counts as noise, noise that lasts over neighbours counts as trend.
    """
    spread = float(np.var(x_N, ddof=1)) if len(x_N) > 2 else 0.0
    return 0.0 if spread <= 0 else min(1.0, max(0.0, 1 - float(np.mean(noise_of(x_N, times_N) ** 2)) / spread))


def noise_of(x_N: np.ndarray, times_N: np.ndarray | None = None) -> np.ndarray:
    """Pseudo-residuals of the inner points, scaled so that independent noise of variance v has mean square v.

    x_N may have leading dimensions; points lie along the last one.
    """
    times_N = np.arange(x_N.shape[-1], dtype=np.float64) if times_N is None else times_N
    width = np.where(times_N[2:] > times_N[:-2], times_N[2:] - times_N[:-2], 1.0)  # equal times: the later neighbour
    left = np.where(times_N[2:] > times_N[:-2], (times_N[2:] - times_N[1:-1]) / width, 0.5)
    right = 1 - left
    return (left * x_N[..., :-2] + right * x_N[..., 2:] - x_N[..., 1:-1]) / np.sqrt(left**2 + right**2 + 1)


def trend_by_chance(x_N: np.ndarray, times_N: np.ndarray | None = None) -> float:
    """Share of random orders of the values (this one counted) whose trend share is at least as large."""
    draw = np.random.default_rng(0)  # fixed: the same series is always refused, or never
    shuffled_SN = draw.permuted(np.tile(x_N, (SHUFFLES, 1)), axis=1)
    rough_S = np.mean(noise_of(shuffled_SN, times_N) ** 2, axis=-1)
    return float(1 + (rough_S <= np.mean(noise_of(x_N, times_N) ** 2)).sum()) / (1 + SHUFFLES)


def _check_points(
    exp_N: np.ndarray, times_N: np.ndarray | None, reliability: float, min_points: int, dropped: int
) -> None:
    if len(exp_N) < min_points:
        lost = f" ({dropped} more were not finite)" if dropped else ""
        raise LawRefused(
            f"the law needs at least {min_points} points, got {len(exp_N)}{lost}; "
            "train longer, or evaluate more often early on (eval.at: early)"
        )
    width = float(exp_N.max() - exp_N.min())
    if width < MIN_RANGE:
        raise LawRefused(
            f"e^H runs from {exp_N.min():.4f} to {exp_N.max():.4f}, a range of {width:.4f}; below {MIN_RANGE} the "
            "slope a is not determined; fit a stretch of the run over which entropy falls further"
        )
    if reliability < MIN_RELIABILITY:
        raise LawRefused(
            f"only {reliability:.0%} of the variance of e^H is trend, the rest is noise from point to point; below "
            f"{MIN_RELIABILITY:.0%} the fitted a is less than half of the true one; average the entropy over more "
            "rows or several steps, or fit a longer stretch of the run"
        )
    chance = trend_by_chance(exp_N, times_N) if len(exp_N) >= MIN_SERIES else 0.0
    if chance > MAX_CHANCE:
        raise LawRefused(
            f"the trend of e^H over {len(exp_N)} points is no clearer than in {chance:.0%} of shuffled series; above "
            f"{MAX_CHANCE:.0%} it may be noise; average the entropy over more rows or several steps, or fit a longer "
            "stretch of the run"
        )


def _least_squares(exp_N: np.ndarray, accuracy_N: np.ndarray, weight_N: np.ndarray) -> tuple[float, float]:
    total = float(weight_N.sum())
    if total <= 0 or len(exp_N) < 2:
        raise LawRefused(f"no line through {len(exp_N)} points of total weight {total:g}; give at least 2 points")
    mean_x, mean_y = float(weight_N @ exp_N) / total, float(weight_N @ accuracy_N) / total
    spread = float(weight_N @ (exp_N - mean_x) ** 2)
    if spread <= total * (1e-12 * abs(mean_x)) ** 2:
        raise LawRefused(
            f"e^H is {mean_x:.6g} at every point, so a is not determined; fit points at different entropies"
        )
    a = -float(weight_N @ ((exp_N - mean_x) * (accuracy_N - mean_y))) / spread
    return a, mean_y + a * mean_x


def finite_rows(*columns: ArrayLike) -> tuple[list[np.ndarray], int]:
    """The rows in which every column is finite, and how many were left out."""
    arrays = [np.asarray(c, dtype=np.float64) for c in columns]
    if len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"the series must be 1-D and of one length, got {', '.join(str(a.shape) for a in arrays)}")
    good_N = np.logical_and.reduce([np.isfinite(a) for a in arrays])
    return [a[good_N] for a in arrays], int((~good_N).sum())


# --- intervals --------------------------------------------------------------------------------------------------


def default_block(n: int) -> int:
    """Points per block: n^(1/3) rounded up, at least 2. Fits noise that is forgotten within a few points."""
    return max(2, math.ceil(n ** (1 / 3) - 1e-9))


def bootstrap_law(
    entropy_N: ArrayLike,
    accuracy_N: ArrayLike,
    *,
    block: int | None = None,
    resamples: int = 2000,
    seed: int,
    confidence: float = CONFIDENCE,
) -> LawIntervals:
    """Percentile intervals from a moving-block bootstrap of the residuals; points in time order.

    Blocks of neighbours (default `default_block`) keep the autocorrelation that single points would lose; residuals
    are drawn rather than points because entropy falls over time and a draw of late points alone has no slope. They
    are centred, and widened by sqrt(n / (n - 2)) for the two fitted coefficients. Conditional on the entropies: noise
    of H itself is not in the interval (`LawFit.reliability` speaks of it). Short blocks leave the interval somewhat
    too narrow: measured with 60 points at 95 %, 93 % for independent noise, 85 % for AR(1) noise of 0.5 (73 % if single
    points were drawn).
    """
    (entropy_N, accuracy_N), dropped = finite_rows(entropy_N, accuracy_N)
    n = len(entropy_N)
    if n < MIN_SERIES:
        raise LawRefused(
            f"an interval needs at least {MIN_SERIES} points, got {n} ({dropped} more were not finite); "
            "evaluate more often, or fit a longer stretch of the run"
        )
    block = default_block(n) if block is None else block
    if not 1 <= block <= n // 2:
        raise ValueError(
            f"block must lie in 1..n/2 = {n // 2} points, got {block}; leave it out for {default_block(n)}"
        )
    exp_N = np.exp(entropy_N)
    a, b = _least_squares(exp_N, accuracy_N, np.ones(n))
    error_N = accuracy_N - (b - a * exp_N)
    starts = np.arange(n - block + 1)
    # Points near the ends are in fewer blocks, so the mean over all blocks is not 0 although the residuals' is.
    offset = error_N[starts[:, None] + np.arange(block)].mean()
    count = -(-n // block)
    first = np.random.default_rng(seed).choice(starts, size=(resamples, count))
    draw_SN = (first[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :n]
    noise_SN = (error_N[draw_SN] - offset) * math.sqrt(n / (n - 2))
    centred_N = exp_N - exp_N.mean()
    a_S = a - noise_SN @ centred_N / float(centred_N @ centred_N)
    b_S = (b - a * exp_N.mean()) + noise_SN.mean(1) + a_S * exp_N.mean()

    def ends(values_S: np.ndarray) -> tuple[float, float]:
        lo, hi = np.quantile(values_S, tails(confidence))
        return float(lo), float(hi)

    return LawIntervals(
        a=ends(a_S), b=ends(b_S), ceiling=ends(b_S - a_S), block=block, confidence=confidence, a_S=a_S, b_S=b_S
    )


# --- interventions ----------------------------------------------------------------------------------------------


def held_by(options: Mapping[str, Any]) -> list[str]:
    """What among GRPOConfig options holds or shifts entropy, in words; missing ones count as TRL's defaults (off)."""
    found = []
    if coefficient := options.get("entropy_coef"):
        found.append(f"entropy_coef={coefficient:g}")
    if options.get("use_adaptive_entropy"):
        found.append("use_adaptive_entropy")
    if beta := options.get("beta"):
        found.append(f"beta={beta:g} (KL to the reference)")
    low, high = options.get("epsilon", 0.2), options.get("epsilon_high")
    if high is not None and high != low:
        found.append(f"epsilon_high={high:g} differs from epsilon={low:g}")
    if (share := options.get("top_entropy_quantile", 1.0)) != 1.0:
        found.append(f"top_entropy_quantile={share:g}")
    return found


# --- the series of a run ----------------------------------------------------------------------------------------


def law_series(
    train: Sequence[Mapping[str, Any]],
    evals: Sequence[Mapping[str, Any]],
    *,
    entropy: str = ENTROPY,
    accuracy: str = ACCURACY,
) -> tuple[Series, bool]:
    """(series, R is from evaluations) of a run, from rows as metrics.jsonl holds them, by ascending step.

    With at least MIN_SERIES evaluations R is theirs, paired with the training entropy nearest in time; otherwise R is
    the accuracy of the rollouts. A training row of step s was generated by the policy after s - 1 updates, and its
    time says so.
    """
    steps_N, entropy_N, accuracy_N = (_column(train, name) for name in ("step", entropy, accuracy))
    times_N, known_N = steps_N - 1, np.isfinite(entropy_N)
    at_M, tested_M = _column(evals, "step"), _column(evals, accuracy)
    at_M, tested_M = at_M[np.isfinite(tested_M)], tested_M[np.isfinite(tested_M)]
    if known_N.any() and len(at_M) >= MIN_SERIES:
        nearest_M = np.abs(at_M[:, None] - times_N[known_N]).argmin(1)
        return Series(at_M, entropy_N[known_N][nearest_M], tested_M), True
    both_N = known_N & np.isfinite(accuracy_N)
    return Series(times_N[both_N], entropy_N[both_N], accuracy_N[both_N]), False


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """NaN where a row has no number of that name."""
    return np.array([row.get(name) for row in rows], dtype=np.float64)
