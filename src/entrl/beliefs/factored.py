"""Independent slots, each with a belief of its own: the form in which an entropy reward has a closed formula (Nous).

    H(S) = sum_i w_i H(p_i)                              w_i = 1 unless weights are given
    hard update of slot i:  p_i'(v) = p_i(v) 1[v allowed] / sum of the allowed      other slots stay
    realised gain           w_i (H(p_i) - H(p_i'))       negative when a dominant value is ruled out

Source:  "Dialogue as Discovery" (arXiv 2510.27410) as its abstract and public reviews describe it; the paper's body was
    not read, so attribute list, prior and discount are unknown
Differs: weights, likelihoods (soft answers) and the exact joint to measure what independence costs
Needs:   numpy
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from entrl.beliefs.belief import Belief, GainStep, position
from entrl.beliefs.errors import EmptyHypothesisSpace, InvalidDistribution, ShapeMismatch, UnknownHypothesis

BETWEEN = " | "  # values of one combination, in the names of the joint belief


class FactoredBelief:
    """Slots that are independent of each other by assumption."""

    def __init__(self, slots: Mapping[str, Belief], weights: Mapping[str, float] | None = None) -> None:
        """slots: name to belief over its values. weights: name to a factor >= 0 on that slot's entropy and gains.

        Raises EmptyHypothesisSpace, UnknownHypothesis (a weight for no slot), InvalidDistribution (a bad weight).
        """
        if not slots:
            raise EmptyHypothesisSpace("no slots; a factored belief needs at least one")
        self.slots = {name: belief.copy() for name, belief in slots.items()}
        self.weights = dict.fromkeys(self.slots, 1.0)
        for name, weight in (weights or {}).items():
            self._slot(name)
            if not (np.isfinite(weight) and weight >= 0):
                raise InvalidDistribution(f"weight {weight} of slot {name!r} must be finite and >= 0")
            self.weights[name] = float(weight)

    def _slot(self, name: str) -> Belief:
        if name not in self.slots:
            raise UnknownHypothesis(f"unknown slot {name!r}; known are {', '.join(map(repr, self.slots))}")
        return self.slots[name]

    def entropy(self) -> float:
        """Weighted sum of the slots' entropies, bits; without weights the entropy of the joint."""
        return sum(self.weights[name] * belief.entropy() for name, belief in self.slots.items())

    def expected_gain(self, slot: str, likelihood: Any, *, normalise: bool = False) -> float:
        """Bits that a question about one slot is expected to tell; likelihood: (values of the slot, answers)."""
        return self._slot(slot).expected_gain(likelihood, normalise=normalise) * self.weights[slot]

    def update(
        self,
        slot: str,
        *,
        allowed: Sequence[int | str] | None = None,
        likelihood: Any = None,
        answer: int | str | None = None,
        answers: Sequence[str] | None = None,
        target: int | str | None = None,
        normalise: bool = False,
    ) -> GainStep:
        """Move one slot; on any error nothing moves.

        allowed: values (names or indices) that the answer leaves, the others are ruled out. Its `expected` is that of
            "is it one of these?"; pass the question's own `likelihood` and `answer` where that was not what was asked.
        target: the slot's true value.
        The step is the whole belief's: entropies are sums over slots, gains those of the slot times its weight.
        `evidence_bits` and `answer_entropy` belong to the answer and have no weight.
        Raises as `Belief.update`; UnknownHypothesis for a slot or value that does not exist.
        """
        belief = self._slot(slot)
        if (allowed is None) == (likelihood is None) or (likelihood is None) != (answer is None):
            raise ValueError("give either `allowed`, or `likelihood` with `answer`")
        if allowed is not None:
            likelihood, answer, answers = self.restriction(slot, allowed), 1, None
        before = self.entropy()
        assert answer is not None
        step = belief.update(likelihood, answer, answers=answers, target=target, normalise=normalise)
        weight, after = self.weights[slot], self.entropy()
        assert step.expected is not None
        return replace(
            step,
            h_before=before,
            h_after=after,
            realised=weight * step.realised,
            kl=weight * step.kl,
            expected=weight * step.expected,
            target_log_gain=_times(weight, step.target_log_gain),
        )

    def restriction(self, slot: str, allowed: Sequence[int | str]) -> np.ndarray:
        """(values, 2) likelihood of "is it one of these?": column 0 no, column 1 yes."""
        values = self._slot(slot).hypotheses
        yes = np.zeros(len(values))
        yes[[position(value, values, f"value of {slot!r}", UnknownHypothesis) for value in allowed]] = 1.0
        return np.stack([1 - yes, yes], 1)

    def joint(self, max_size: int = 1_000_000) -> Belief:
        """The belief over all combinations, named `value | value`, the last slot fastest; unweighted.

        Raises ShapeMismatch when there are more than `max_size` combinations.
        """
        beliefs = list(self.slots.values())
        size = int(np.prod([len(b) for b in beliefs], dtype=object))
        if size > max_size:
            raise ShapeMismatch(f"the slots have {size} combinations, more than max_size {max_size}; raise it if meant")
        names = (BETWEEN.join(values) for values in itertools.product(*(b.hypotheses for b in beliefs)))
        log_p = np.zeros(1)
        for belief in beliefs:
            log_p = (log_p[:, None] + belief._log_p).ravel()
        return Belief.from_log_weights(names, log_p)

    def copy(self) -> "FactoredBelief":
        return FactoredBelief(self.slots, self.weights)

    def __repr__(self) -> str:
        return f"FactoredBelief({len(self.slots)} slots, {self.entropy():.4g} bits)"


def _times(weight: float, bits: float | None) -> float | None:
    if bits is None:
        return None
    return 0.0 if weight == 0 else weight * bits  # 0 * -inf: a slot that does not count tells nothing
