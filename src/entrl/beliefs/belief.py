"""A belief over named hypotheses, and what one answer was worth.

    b'(h) = b(h) L[h,a] / m(a)                      Bayes; kept as log b, normalised by log-sum-exp
    realised   = H(b) - H(b')                       may be negative, may exceed log2 A, sums to H0 - HT over turns
    kl         = KL(b' || b)                        >= 0
    expected   = I(h; a) before the answer          >= 0, <= min(H(b), H(m)); mean of each of the others
    target     = log2 L[h*,a] / m(a)                any sign, sums to log2 bT(h*) / b0(h*)
    evidence   = -log2 m(a)                         surprise at the answer; all of the gains for a uniform belief and
                                                    certain answers

Source:  textbook identities (method card information-gain, sections 1 and 7.1)
Differs: nothing
Needs:   numpy

Bits everywhere. A realised gain is never clipped: negative ones are what a surprising noisy answer does.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrl.beliefs.errors import (
    Contradiction,
    DuplicateHypothesis,
    EmptyHypothesisSpace,
    InvalidDistribution,
    ShapeMismatch,
    UnknownAnswer,
    UnknownHypothesis,
)
from entrl.beliefs.information import (
    LN2,
    Array,
    checked_distribution,
    checked_likelihood,
    entropy_bits,
    expected_gain_bits,
    not_negative,
)


@dataclass(frozen=True, kw_only=True)
class GainStep:
    """What one answer did, in bits. None: the estimator cannot know (no truth given, no predictive distribution)."""

    h_before: float
    h_after: float
    realised: float  # h_before - h_after, unclipped
    kl: float  # KL(after || before)
    expected: float | None  # of the question, before the answer
    evidence_bits: float | None  # -log2 of the answer's predictive probability
    answer_entropy: float | None  # H(m), the most the question could be expected to tell
    target_log_gain: float | None = None  # log2 after(h*) / before(h*); -inf when the answer rules h* out


def no_gain(entropy: float, *, target: bool = False) -> GainStep:
    """The step of an answer that is not counted: every gain exactly 0."""
    return GainStep(
        h_before=entropy,
        h_after=entropy,
        realised=0.0,
        kl=0.0,
        expected=0.0,
        evidence_bits=0.0,
        answer_entropy=0.0,
        target_log_gain=0.0 if target else None,
    )


class Belief:
    """Probabilities over K named hypotheses; answers move them, nothing else does."""

    def __init__(self, hypotheses: Iterable[str], prior: Any = None, *, normalise: bool = False) -> None:
        """prior: (K,) that sums to 1, or counts with normalise=True; None: uniform.

        Raises EmptyHypothesisSpace, DuplicateHypothesis, ShapeMismatch, InvalidDistribution.
        """
        names = _checked_names(hypotheses)
        if prior is None:
            p = np.full(len(names), 1.0 / len(names))
        else:
            p = checked_distribution(prior, what="the prior", length=len(names), normalise=normalise)
        self._take(names, _log(p))

    @classmethod
    def from_log_weights(cls, hypotheses: Iterable[str], log_weights: Any) -> "Belief":
        """softmax of (K,) natural-log weights; -inf is probability 0."""
        names = _checked_names(hypotheses)
        weights = np.asarray(log_weights, dtype=np.float64)
        if weights.shape != (len(names),):
            raise ShapeMismatch(f"log-weights have shape {weights.shape}; {len(names)} hypotheses need one each")
        if bool(np.isnan(weights).any() or (weights == np.inf).any() or (weights == -np.inf).all()):
            raise InvalidDistribution("log-weights hold NaN, +inf or only -inf; give at least one finite weight")
        belief = cls.__new__(cls)
        belief._take(names, weights - _log_sum(weights))
        return belief

    def _take(self, names: tuple[str, ...], log_p: Array) -> None:
        self.hypotheses = names
        self._log_p = log_p  # nats; keeps what would underflow as a probability, so that it can come back
        self._entropy = _entropy(log_p)

    @property
    def probs(self) -> Array:
        """(K,) float64, a copy."""
        return np.exp(self._log_p)

    def __len__(self) -> int:
        return len(self.hypotheses)

    def entropy(self) -> float:
        """H(b) in bits."""
        return self._entropy

    def effective_size(self) -> float:
        """2^H: as many equally likely hypotheses would be as uncertain."""
        return float(2.0**self._entropy)

    def index(self, hypothesis: str | int) -> int:
        """Position of a hypothesis given by name or position; UnknownHypothesis."""
        return position(hypothesis, self.hypotheses, "hypothesis", UnknownHypothesis)

    def log2_prob(self, hypothesis: str | int) -> float:
        """log2 b(h); finite also where the probability itself would underflow to 0, -inf where it is 0."""
        return float(self._log_p[self.index(hypothesis)]) / LN2 + 0.0

    def predictive(self, likelihood: Any, *, normalise: bool = False) -> Array:
        """m(a): (A,) probabilities of the answers; likelihood: (K, A)."""
        return self.probs @ checked_likelihood(likelihood, hypotheses=len(self), normalise=normalise)

    def expected_gain(self, likelihood: Any, *, normalise: bool = False) -> float:
        """EIG in bits of the question with this (K, A) likelihood."""
        return expected_gain_bits(self.probs, checked_likelihood(likelihood, hypotheses=len(self), normalise=normalise))

    def update(
        self,
        likelihood: Any,
        answer: int | str,
        *,
        answers: Sequence[str] | None = None,
        target: int | str | None = None,
        normalise: bool = False,
    ) -> GainStep:
        """Move to the posterior; on any error the belief stays what it was.

        likelihood: (K, A), rows sum to 1. answer: column, or its name in `answers`. target: the true hypothesis,
        for `target_log_gain`.
        Raises ShapeMismatch, InvalidDistribution, UnknownAnswer, UnknownHypothesis, Contradiction.
        """
        table = checked_likelihood(likelihood, hypotheses=len(self), normalise=normalise)
        if answers is not None and len(answers) != table.shape[1]:
            raise ShapeMismatch(f"{len(answers)} answer names for {table.shape[1]} columns of the likelihood")
        column = position(answer, answers or table.shape[1], "answer", UnknownAnswer)
        truth = None if target is None else self.index(target)
        log_l = _log(table[:, column])
        log_m = _log_sum(self._log_p + log_l)
        if log_m == -np.inf:
            raise Contradiction(
                f"answer {answer!r} has probability 0 under every hypothesis that is still possible; the belief is "
                "unchanged. Allow for noise in the likelihood, or ignore the answer"
            )
        log_p = self._log_p + log_l - log_m
        p = self.probs
        m = p @ table
        step = GainStep(
            h_before=self._entropy,
            h_after=_entropy(log_p),
            realised=self._entropy - _entropy(log_p),
            kl=not_negative(_dot(np.exp(log_p), log_l - log_m) / LN2),
            expected=expected_gain_bits(p, table),
            evidence_bits=_zero(-log_m / LN2),
            answer_entropy=float(entropy_bits(m)),
            target_log_gain=None if truth is None else _zero(float(log_l[truth] - log_m) / LN2),
        )
        self._take(self.hypotheses, log_p)
        return step

    def copy(self) -> "Belief":
        other = type(self).__new__(type(self))
        other._take(self.hypotheses, self._log_p.copy())
        return other

    def __repr__(self) -> str:
        return f"Belief({len(self)} hypotheses, {self._entropy:.4g} bits)"


def position(key: str | int, names: Sequence[str] | int, what: str, error: type[ValueError]) -> int:
    """Where `key` stands: a name among `names`, or a position below their number (which may come alone)."""
    known = () if isinstance(names, int) else tuple(names)
    count = names if isinstance(names, int) else len(known)
    if isinstance(key, str):
        if key in known:
            return known.index(key)
        listed = ", ".join(map(repr, known[:8])) + (", ..." if count > 8 else "")
        raise error(f"unknown {what} {key!r}; " + (f"known: {listed}" if known else f"give its index, below {count}"))
    try:
        index = operator.index(key)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        raise error(f"{what} {key!r} is no index in 0..{count - 1}" + (" and no name" if known else ""))
    return index


def _checked_names(hypotheses: Iterable[str]) -> tuple[str, ...]:
    names = tuple(hypotheses)
    if not names:
        raise EmptyHypothesisSpace("no hypotheses; a belief needs at least one")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise DuplicateHypothesis(f"hypothesis {twice!r} is named twice; names tell hypotheses apart")
    return names


def _log(p: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(p)


def _log_sum(log_w: Array) -> float:
    """ln sum exp, the largest taken out: exact for a single survivor, -inf when there is none."""
    top = float(log_w.max())
    return top if top == -np.inf else top + float(np.log(np.exp(log_w - top).sum()))


def _dot(p: Array, x: Array) -> float:
    """sum p x over p > 0, so that 0 * inf is 0."""
    return float((p * np.where(p > 0, x, 0.0)).sum())


def _entropy(log_p: Array) -> float:
    return max(-_dot(np.exp(log_p), log_p) / LN2, 0.0) + 0.0


def _zero(bits: float) -> float:
    """-0.0 reads badly in a log."""
    return bits + 0.0
