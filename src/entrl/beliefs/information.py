"""Entropy, expected gain and the checks that come before them; bits, float64, plain arrays in.

    H(b)  = -sum_h b(h) log2 b(h)                          0 log2 0 = 0
    m(a)  = sum_h b(h) L[h,a]                              what the belief expects to hear
    EIG   = H(m) - sum_h b(h) H(L[h,.]) = I(h; a)          >= 0, <= min(H(b), H(m)) <= log2 A
    KL(p || q) = sum p log2 p/q

Source:  textbook identities (method card information-gain, section 1). The form of the expected gain that needs no
    posterior is the accurate one: exact 0 for a constant answer, exactly H(m) for a deterministic one.
Needs:   numpy

K hypotheses, A answers, V variables.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from entrl.beliefs.errors import InvalidDistribution, ShapeMismatch

Array = np.ndarray[Any, np.dtype[Any]]

LN2 = math.log(2.0)  # nats per bit
SUM_TOLERANCE = 1e-6  # how far probabilities may sum from 1 and still be meant as a distribution (method card, 8)
ROUND_OFF = 1e-12  # bits; a gain that cannot be negative may come out this far below 0


def entropy_bits(probs: Any) -> Array:
    """H over the last dimension, in bits; (..., K) to (...). The numbers are taken as they are: check them first."""
    p = np.asarray(probs, dtype=np.float64)
    return np.maximum(-(p * _log2(p)).sum(-1), 0.0)


def kl_bits(p: Any, q: Any) -> float:
    """KL(p || q) in bits; inf where q is 0 and p is not."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p.shape != q.shape:
        raise ShapeMismatch(f"distributions of shapes {p.shape} and {q.shape}; both need the same hypotheses")
    if bool(((q <= 0) & (p > 0)).any()):
        return math.inf
    return not_negative(float((p * (_log2(p) - _log2(q))).sum()))


def expected_gain_bits(prior: Any, likelihood: Any) -> float:
    """EIG of one question; (K,) and (K, A), both checked by the caller."""
    b, table = np.asarray(prior, dtype=np.float64), np.asarray(likelihood, dtype=np.float64)
    return not_negative(float(entropy_bits(b @ table) - b @ entropy_bits(table)))


def marginals(joint: Any) -> list[Array]:
    """The V one-variable distributions of a joint table with one axis per variable."""
    table = np.asarray(joint, dtype=np.float64)
    axes = range(table.ndim)
    return [table.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]


def dependence_bits(joint: Any) -> float:
    """sum_i H(marginal i) - H(joint) >= 0: what a factored belief overstates (two variables: mutual information)."""
    table = np.asarray(joint, dtype=np.float64)
    independent = sum(float(entropy_bits(one)) for one in marginals(table))
    return not_negative(independent - float(entropy_bits(table.ravel())))


def not_negative(bits: float) -> float:
    """0 for what round-off put just below 0; anything lower stays, so that a mistake shows."""
    return 0.0 if -ROUND_OFF < bits <= 0 else bits


def checked_distribution(probs: Any, *, what: str, length: int | None = None, normalise: bool = False) -> Array:
    """(K,) float64 that sums to 1; a sum within 1e-6 of it is round-off and divided out.

    normalise: any positive sum will do (counts, unnormalised weights).
    Raises ShapeMismatch, InvalidDistribution.
    """
    p = _numbers(probs, what)
    if p.ndim != 1 or (length is not None and len(p) != length):
        want = "one row of numbers" if length is None else f"{length} numbers, one for each hypothesis"
        raise ShapeMismatch(f"{what} has shape {p.shape}; it needs {want}")
    return _checked_rows(p[None], what=what, normalise=normalise)[0]


def checked_likelihood(likelihood: Any, *, hypotheses: int, normalise: bool = False) -> Array:
    """(K, A) float64 whose rows sum to 1. Raises ShapeMismatch, InvalidDistribution."""
    table = _numbers(likelihood, "the likelihood")
    if table.ndim != 2 or len(table) != hypotheses:
        raise ShapeMismatch(
            f"the likelihood has shape {table.shape}; it needs a row for each of the {hypotheses} hypotheses and a "
            "column for each answer"
        )
    return _checked_rows(table, what="the likelihood", normalise=normalise)


def _numbers(values: Any, what: str) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeMismatch(f"{what} is no array of numbers ({error}); give rows of equal length") from error


def _checked_rows(rows: Array, *, what: str, normalise: bool) -> Array:
    if rows.shape[1] == 0:
        raise ShapeMismatch(f"{what} has no columns; it needs at least one")
    if not bool(np.isfinite(rows).all()) or bool((rows < 0).any()):
        raise InvalidDistribution(f"{what} has {_worst(rows)}; probabilities are finite and >= 0")
    sums = rows.sum(1, keepdims=True)
    wrong = sums <= 0 if normalise else np.abs(sums - 1) > SUM_TOLERANCE
    if bool(wrong.any()):
        row = int(np.argmax(wrong[:, 0]))
        where = what if len(rows) == 1 else f"row {row} of {what}"
        hint = "nothing can be normalised there" if normalise else "mend it, or pass normalise=True if that is meant"
        raise InvalidDistribution(f"{where} sums to {float(sums[row, 0]):.9g}, not 1; {hint}")
    return rows / sums


def _worst(rows: Array) -> str:
    bad = rows[~np.isfinite(rows) | (rows < 0)]
    return f"the value {float(bad[0])}"


def _log2(p: Array) -> Array:
    return np.log2(np.where(p > 0, p, 1.0))


def one_hot(answers: Sequence[int] | Array, *, count: int) -> Array:
    """(K, A) likelihood of a question whose answer is certain for every hypothesis; answers: (K,) indices below A."""
    index = np.asarray(answers)
    if index.ndim != 1 or index.dtype.kind not in "iub" or bool((index < 0).any() or (index >= count).any()):
        raise ShapeMismatch(f"answers must be one index in 0..{count - 1} for each hypothesis")
    table = np.zeros((len(index), count))
    table[np.arange(len(index)), index.astype(np.int64)] = 1.0
    return table
