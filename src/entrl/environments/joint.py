"""The exact joint belief over slots: what independent slots are measured against.

    p'(s) = p(s) L[s_i, a] / m(a)      m(a) = sum_v p_i(v) L[v, a]         an answer about slot i

An answer about slot i depends on the combination through s_i only, so everything but the entropy needs the marginal
p_i alone: expected gain H(m) - sum_v p_i(v) H(L[v]), surprise gain KL(p_i' || p_i), target gain log2 L[s_i*, a] / m(a).

Source:  textbook identities (method card information-gain, section 1)
Needs:   numpy

Bits. One axis per slot.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from entrl.beliefs import Contradiction, GainStep, ShapeMismatch, UnknownHypothesis
from entrl.beliefs.estimators import Observation, OnContradiction, _Inquiry
from entrl.beliefs.information import Array, checked_likelihood, entropy_bits, expected_gain_bits, not_negative


class JointBelief:
    """A table of probabilities with one axis per slot; same calls as `FactoredBelief`."""

    def __init__(self, slots: Mapping[str, Sequence[str]], probs: Array) -> None:
        """probs: shape (values of the first slot, ...), sums to 1. ShapeMismatch."""
        shape = tuple(len(values) for values in slots.values())
        if probs.shape != shape:
            raise ShapeMismatch(f"probabilities have shape {probs.shape}, the slots {shape}")
        self.slots = {name: tuple(values) for name, values in slots.items()}
        self._take(probs)

    def _take(self, probs: Array) -> None:
        self.probs = probs  # never written into, so copies may share it
        self._entropy = float(entropy_bits(probs.ravel())) + 0.0
        self._marginals: dict[str, Array] = {}  # made when asked for; a question looks at each slot several times

    def entropy(self) -> float:
        return self._entropy

    def _axis(self, slot: str) -> int:
        if slot not in self.slots:
            raise UnknownHypothesis(f"unknown slot {slot!r}; known are {', '.join(map(repr, self.slots))}")
        return list(self.slots).index(slot)

    def marginal(self, slot: str) -> Array:
        """(values,) of one slot; do not write into it."""
        axis = self._axis(slot)
        if slot not in self._marginals:
            before = int(np.prod(self.probs.shape[:axis]))
            self._marginals[slot] = self.probs.reshape(before, self.probs.shape[axis], -1).sum((0, 2))
        return self._marginals[slot]

    def expected_gain(self, slot: str, likelihood: Array) -> float:
        """EIG in bits of a question about one slot; (values, answers)."""
        marginal = self.marginal(slot)
        return expected_gain_bits(marginal, checked_likelihood(likelihood, hypotheses=len(marginal)))

    def update(self, slot: str, *, likelihood: Array, answer: int, target: int | None = None) -> GainStep:
        """Move to the posterior; on Contradiction nothing moves. target: the slot's true value, as an index."""
        marginal = self.marginal(slot)
        table = checked_likelihood(likelihood, hypotheses=len(marginal))
        predictive = marginal @ table
        if predictive[answer] <= 0:
            raise Contradiction(f"answer {answer} about {slot!r} has probability 0; the belief is unchanged")
        factor = table[:, answer] / predictive[answer]
        with np.errstate(divide="ignore"):
            bits = np.log2(factor)
        before, shape = self._entropy, [1] * self.probs.ndim
        shape[self._axis(slot)] = len(factor)
        self._take(self.probs * factor.reshape(shape))
        after = marginal * factor
        return GainStep(
            h_before=before,
            h_after=self._entropy,
            realised=before - self._entropy,
            kl=not_negative(float((after * np.where(after > 0, bits, 0.0)).sum())),
            expected=expected_gain_bits(marginal, table),
            evidence_bits=float(-np.log2(predictive[answer])) + 0.0,
            answer_entropy=float(entropy_bits(predictive)),
            target_log_gain=None if target is None else float(bits[target]),
        )

    def copy(self) -> "JointBelief":
        other = JointBelief.__new__(JointBelief)
        other.slots, other.probs, other._entropy = self.slots, self.probs, self._entropy
        other._marginals = dict(self._marginals)
        return other


class JointSlots(_Inquiry):
    """`Factored` without the assumption: repeats and contradictions settled, the belief a joint."""

    belief: JointBelief  # type: ignore[assignment]

    def __init__(self, belief: JointBelief, *, on_contradiction: OnContradiction = "ignore") -> None:
        super().__init__(belief, on_contradiction)  # type: ignore[arg-type]

    def observe(
        self, slot: str, *, question: str, likelihood: Array, answer: int, target: int | None = None
    ) -> Observation:
        """Take in an answer about one slot. Contradiction only with on_contradiction="raise"."""
        return self._observe(
            question,
            answer,
            lambda: self.belief.update(slot, likelihood=likelihood, answer=answer, target=target),
            target,
        )
