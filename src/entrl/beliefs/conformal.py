"""Split conformal prediction with exact ranks, a threshold for each history length, and C-IP's entropy bounds.

    rank      k = ceil((n + 1)(1 - alpha))               in rational arithmetic of the decimal alpha
    threshold q = k-th smallest calibration score, +inf where k > n
    set       C = {y : score(y) <= q}                    closed; score = -f(y) here, so f(y) >= -q
    coverage  P(Y in C) >= k/(n + 1) >= 1 - alpha        for exchangeable data; equality for continuous scores

    H(Y|X) <= h_b(alpha) + (1 - a_N) E[log|C| | covered] + alpha E[log(|Y| - |C|) | not covered]
           <= lambda + (1 - a_N) log E|C|     lambda = h_b(alpha) + alpha log|Y| - (1 - a_N) log(1 - alpha)
    a_N = alpha - 1/(N + 1), N calibration scores; both need 1 - alpha <= coverage <= 1 - a_N

Source:  C-IP (arXiv 2507.03279) Proposition 3.1, equation 6 and Algorithm 1; its code (ryanchankh/Conformal-IP at
    ed7fb66) for the two released forms of the bound; the first inequality is its derivation's own middle line
Differs: the rank. The paper prints the quantile of f and keeps f > q, a slip of sign that its code does not have; the
    code takes numpy's "higher" quantile at 1 - alpha, which can be one rank low and is never +inf
    (`cip_code_threshold`). A float ceil((n + 1)(1 - alpha)) is wrong by one at, for example, n = 99, alpha = 0.45.
Needs:   numpy

One threshold for all histories of a length ("length marginalisation"): coverage holds on average over histories drawn
as the calibration's were. Histories that a policy chose are others, and can be undercovered.

K labels, N rows. Sizes are counts, bounds are bits.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from entrl.beliefs.errors import EmptyCalibration, InvalidAlpha, InvalidScore, ShapeMismatch
from entrl.beliefs.information import Array, entropy_bits

CIP_FLOOR = 1e-5  # what the C-IP code clamps probabilities to before taking their entropy


class CalibrationTooSmall(UserWarning):
    """Too few calibration scores for alpha: the threshold is +inf and every set holds all labels."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Labels scoring at most `value` are kept."""

    rank: int  # k, from 1; above n when n is too small for alpha
    n: int  # calibration scores
    alpha: str  # decimal, as given
    value: float  # the k-th smallest score, or +inf

    def keep(self, scores: Any) -> Array:
        """(...) bool for scores of any shape; InvalidScore for NaN."""
        return _checked_scores(scores) <= self.value


def exact_alpha(alpha: str | float | Fraction) -> Fraction:
    """The decimal that is meant: 0.1 is one tenth, not the nearest binary fraction. InvalidAlpha outside (0, 1)."""
    try:
        exact = alpha if isinstance(alpha, Fraction) else Fraction(str(alpha))
    except (ValueError, ZeroDivisionError):
        exact = Fraction(0)
    if not 0 < exact < 1:
        raise InvalidAlpha(f"alpha must be a number between 0 and 1, got {alpha!r}; it is the share of sets that miss")
    return exact


def conformal_rank(n: int, alpha: str | float | Fraction) -> int:
    """ceil((n + 1)(1 - alpha)), exactly; more than n when n scores are too few."""
    if n < 1:
        raise EmptyCalibration("no calibration scores; calibrate on at least one")
    return math.ceil((n + 1) * (1 - exact_alpha(alpha)))


def fit_threshold(scores: Any, alpha: str | float | Fraction) -> Threshold:
    """The split-conformal threshold of (n,) calibration scores, low scores for likely labels.

    Warns CalibrationTooSmall when the rank exceeds n. Raises EmptyCalibration, InvalidAlpha, InvalidScore,
    ShapeMismatch.
    """
    threshold = _fit(scores, alpha)
    if threshold.rank > threshold.n:
        _warn_too_small(f"{threshold.n} calibration scores are", threshold.alpha)
    return threshold


def _fit(scores: Any, alpha: str | float | Fraction) -> Threshold:
    ordered = np.sort(_checked_scores(scores))
    if ordered.ndim != 1:
        raise ShapeMismatch(f"calibration scores have shape {ordered.shape}; give one number for each example")
    rank = conformal_rank(len(ordered), alpha)
    value = float(ordered[rank - 1]) if rank <= len(ordered) else math.inf
    return Threshold(rank=rank, n=len(ordered), alpha=str(alpha), value=value)


def _warn_too_small(which: str, alpha: str) -> None:
    least = math.ceil(1 / exact_alpha(alpha)) - 1
    warnings.warn(
        f"{which} too few for alpha {alpha}, so every prediction set holds all labels; calibrate on at least {least}",
        CalibrationTooSmall,
        stacklevel=3,
    )


def _checked_scores(scores: Any) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    if bool(np.isnan(values).any()):
        raise InvalidScore("a score is NaN; mend the model that gave it")
    return values


def prediction_sets(probs: Any, threshold: Threshold | float, *, nonempty: bool = False) -> Array:
    """(N, K) bool: labels whose score -p is at most the threshold; probs (N, K), or (K,) for one row.

    nonempty: the most likely label (the first of equals) is always in; coverage can only rise.
    """
    p = _checked_scores(probs)
    sets = -p <= (threshold.value if isinstance(threshold, Threshold) else threshold)
    if nonempty:
        sets |= np.arange(p.shape[-1]) == p.argmax(-1)[..., None]
    return sets


def log2_sizes(sizes: Any) -> Array:
    """log2 of set sizes, an empty set counted 0."""
    return np.log2(np.maximum(np.asarray(sizes), 1))


@dataclass(frozen=True)
class LengthThresholds:
    """A threshold for each calibrated history length."""

    by_length: Mapping[int, Threshold]

    def at(self, length: int) -> Threshold:
        """EmptyCalibration for a length that was not calibrated."""
        if length not in self.by_length:
            known = ", ".join(map(str, sorted(self.by_length))) or "none"
            raise EmptyCalibration(f"histories of length {length} were not calibrated; calibrated lengths: {known}")
        return self.by_length[length]

    def __contains__(self, length: object) -> bool:
        return length in self.by_length


def fit_lengths(
    draw: Callable[[int], Iterable[tuple[Any, int]]], lengths: Iterable[int], alpha: str | float | Fraction
) -> LengthThresholds:
    """A threshold for each length; draw(length): its calibration examples, (K,) probabilities and the true label.

    Warns once, however many lengths have too few examples. Raises as `fit_threshold`; the message names the length.
    """
    by_length: dict[int, Threshold] = {}
    for length in lengths:
        scores = [-float(np.asarray(probs, dtype=np.float64)[label]) for probs, label in draw(length)]
        try:
            by_length[length] = _fit(scores, alpha)
        except (EmptyCalibration, InvalidScore) as error:
            raise type(error)(f"histories of length {length}: {error}") from error
    small = [str(length) for length, threshold in by_length.items() if threshold.rank > threshold.n]
    if small:
        _warn_too_small(f"calibration examples at history length {', '.join(small)} are", str(alpha))
    return LengthThresholds(by_length)


def cip_code_threshold(scores: Any, alpha: str | float | Fraction) -> float:
    """The quantile that the C-IP code takes: equal to the exact one at its own n = 100 and 200, else often one low."""
    return float(np.quantile(_checked_scores(scores), 1 - float(exact_alpha(alpha)), method="higher"))


def binary_entropy_bits(p: float) -> float:
    return float(entropy_bits([p, 1 - p]))


def entropy_bound(
    sizes: Any,
    covered: Any,
    *,
    alpha: float,
    alpha_n: float,
    num_labels: int,
    weights: Any = None,
) -> float:
    """The sharper bound on H(Y|X): bits, from (N,) set sizes and (N,) bool whether the true label is in.

    alpha_n: alpha - 1/(N_calibration + 1). The released code has alpha (MediQ) or alpha - 1/(N_estimation + 1) (20Q).
    weights: (N,) probabilities of the rows, for an exact expectation; None: equal. A mean over no rows counts 0.
    """
    size, hit = _checked_sets(sizes, covered, num_labels)
    w = np.ones(len(size)) if weights is None else np.asarray(weights, dtype=np.float64)
    inside = _mean(np.log2(np.maximum(size, 1)), np.where(hit, w, 0.0))
    outside = _mean(np.log2(np.maximum(num_labels - size, 1)), np.where(hit, 0.0, w))
    return binary_entropy_bits(alpha) + (1 - alpha_n) * inside + alpha * outside


def cip_bound(sizes: Any, *, alpha: float, calibration_n: int, num_labels: int, weights: Any = None) -> float:
    """Equation 6, bits: looser, and its only data is the mean size. Sizes (N,) as in `entropy_bound`."""
    size, _ = _checked_sets(sizes, np.ones(len(np.asarray(sizes)), dtype=bool), num_labels)
    alpha_n = alpha - 1 / (calibration_n + 1)
    constant = binary_entropy_bits(alpha) + alpha * math.log2(num_labels) - (1 - alpha_n) * math.log2(1 - alpha)
    mean_size = _mean(size, np.ones(len(size)) if weights is None else np.asarray(weights, dtype=np.float64))
    return constant + (1 - alpha_n) * (math.log2(mean_size) if mean_size > 0 else -math.inf)


def cip_mean_entropy(probs: Any) -> float:
    """What the code's IP baseline minimises: mean entropy of (N, K) posteriors clamped at 1e-5, bits."""
    clamped = np.maximum(_checked_scores(probs), CIP_FLOOR)
    return float(-(clamped * np.log2(clamped)).sum(-1).mean())


def _mean(x: Array, weights: Array) -> float:
    total = float(weights.sum())
    return float((x * weights).sum()) / total if total > 0 else 0.0


def _checked_sets(sizes: Any, covered: Any, num_labels: int) -> tuple[Array, Array]:
    size, hit = np.asarray(sizes), np.asarray(covered, dtype=bool)
    if size.ndim != 1 or size.shape != hit.shape:
        raise ShapeMismatch(f"sizes {size.shape} and covered {hit.shape} must be one number and one bool per row")
    if len(size) == 0:
        raise EmptyCalibration("no prediction sets; a bound needs at least one")
    if bool((size < 0).any() or (size > num_labels).any()):
        raise ShapeMismatch(f"set sizes must be in 0..{num_labels} (num_labels), got {size.min()} to {size.max()}")
    return size, hit


def coverage(sets: Any, labels: Sequence[int] | Array) -> float:
    """Share of rows whose label is in its set; (N, K) bool and (N,) indices."""
    held = np.asarray(sets)
    if held.ndim != 2 or len(held) != len(labels) or len(held) == 0:
        raise ShapeMismatch(f"sets have shape {held.shape} for {len(labels)} labels; give one row for each label")
    return float(held[np.arange(len(held)), np.asarray(labels)].mean())
