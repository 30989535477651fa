"""Beliefs that answers move: exact Bayes over a table, and independent slots; with repeats and contradictions settled.

`ExactBayes` keeps every identity of `entrl.beliefs.belief`; `Factored` does if its slots are independent.

A question asked twice is answered from memory and worth exactly 0: noise is one draw per (episode, question), so a
second update would count the same evidence again.

Source:  method card information-gain, sections 7.2 and 8
Needs:   numpy

K hypotheses, A answers. Bits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from entrl.beliefs.belief import Belief, GainStep, no_gain
from entrl.beliefs.errors import Contradiction, InvalidDistribution, ShapeMismatch, UnknownAnswer
from entrl.beliefs.factored import FactoredBelief

OnContradiction = Literal["ignore", "raise", "reset"]
TIE = 1e-12  # bits; expected gains this close are equal, and the first question wins


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What became of one answer."""

    step: GainStep
    answer: Any  # the one that counts: the first, when the question is repeated
    repeated: bool = False
    contradiction: bool = False


class _Inquiry:
    """Remembers answers and settles contradictions; what a move is, the estimators say."""

    belief: Belief | FactoredBelief

    def __init__(self, belief: Belief | FactoredBelief, on_contradiction: OnContradiction) -> None:
        if on_contradiction not in ("ignore", "raise", "reset"):
            raise ValueError(f"on_contradiction must be ignore, raise or reset; got {on_contradiction!r}")
        self.on_contradiction: OnContradiction = on_contradiction
        self._prior = belief.copy()
        self.restart()

    def restart(self) -> None:
        """A new episode: the prior, and nothing asked."""
        self.belief = self._prior.copy()
        self._answers: dict[str, Any] = {}

    @property
    def asked(self) -> tuple[str, ...]:
        """Questions answered so far, each once, in their order."""
        return tuple(self._answers)

    def entropy(self) -> float:
        return self.belief.entropy()

    def prior_entropy(self) -> float:
        """H0, what `normalise` divides by."""
        return self._prior.entropy()

    def _observe(self, question: str, answer: Any, move: Callable[[], GainStep], target: Any) -> Observation:
        if question in self._answers:
            step = no_gain(self.entropy(), target=target is not None)
            return Observation(step=step, answer=self._answers[question], repeated=True)
        try:
            observation = Observation(step=move(), answer=answer)
        except Contradiction:
            if self.on_contradiction == "raise":
                raise
            step = no_gain(self.entropy(), target=target is not None)
            if self.on_contradiction == "reset":
                step = self._reset(step, target)
            observation = Observation(step=step, answer=answer, contradiction=True)
        self._answers[question] = answer
        return observation

    def _reset(self, step: GainStep, target: Any) -> GainStep:
        """Back to the prior. The gain lost is counted, so that gains still sum to H0 - HT; nothing else is paid."""
        self.belief = self._prior.copy()
        h0 = self.belief.entropy()
        return replace(step, h_after=h0, realised=step.h_before - h0, target_log_gain=None)


class ExactBayes(_Inquiry):
    """Bayes over enumerated hypotheses and a closed set of questions.

    hypotheses, prior: as `Belief`. likelihood: question to its (K, A) table, called when the question is needed and
    checked each time. questions: the closed set, in the order that breaks ties. answers: question to the names of its
    columns, or None when answers are indices.
    """

    belief: Belief

    def __init__(
        self,
        hypotheses: Iterable[str],
        questions: Sequence[str],
        likelihood: Callable[[str], Any],
        *,
        prior: Any = None,
        answers: Callable[[str], Sequence[str]] | None = None,
        on_contradiction: OnContradiction = "ignore",
        normalise: bool = False,
    ) -> None:
        self.questions = tuple(questions)
        self._known = set(self.questions)
        self._likelihood, self._names, self._normalise = likelihood, answers, normalise
        super().__init__(Belief(hypotheses, prior, normalise=normalise), on_contradiction)

    @classmethod
    def from_table(cls, table: Any, **options: Any) -> "ExactBayes":
        """From anything with `hypotheses`, `questions`, `likelihood(question)` and `prior` (the loader's contract)."""
        return cls(table.hypotheses, table.questions, table.likelihood, prior=table.prior, **options)

    def likelihood(self, question: str) -> Any:
        if question not in self._known:
            raise UnknownAnswer(f"unknown question {question!r}; this table has {len(self.questions)} others")
        return self._likelihood(question)

    def expected_gain(self, question: str) -> float:
        """EIG in bits under the belief as it is now; 0 for a question that was already answered."""
        likelihood = self.likelihood(question)
        return 0.0 if question in self._answers else self.belief.expected_gain(likelihood, normalise=self._normalise)

    def expected_gains(self) -> dict[str, float]:
        return {question: self.expected_gain(question) for question in self.questions}

    def best_question(self) -> str | None:
        """The largest expected gain, the first of equals; None when no question is expected to tell anything."""
        gains = self.expected_gains()
        best = max(gains.values(), default=0.0)
        return None if best <= TIE else next(q for q, gain in gains.items() if gain >= best - TIE)

    def observe(self, question: str, answer: int | str, *, target: int | str | None = None) -> Observation:
        """Take the answer in. UnknownAnswer, UnknownHypothesis; Contradiction only with on_contradiction="raise"."""
        likelihood = self.likelihood(question)
        names = None if self._names is None else self._names(question)
        return self._observe(
            question,
            answer,
            lambda: self.belief.update(likelihood, answer, answers=names, target=target, normalise=self._normalise),
            target,
        )

    def _reset(self, step: GainStep, target: Any) -> GainStep:
        if target is None:
            return super()._reset(step, target)
        before = self.belief.log2_prob(target)
        step = super()._reset(step, target)
        after = self.belief.log2_prob(target)  # equal to `before` where both are -inf
        return replace(step, target_log_gain=0.0 if after == before else after - before)


class Factored(_Inquiry):
    """Independent slots; what an answer says about one slot leaves the others alone.

    slots: name to its values. counts: name to a count for each value, from data (the empirical prior); a slot without
    any is uniform. pseudocount: added to every value of a slot with counts, so that unseen values stay possible.
    """

    belief: FactoredBelief

    def __init__(
        self,
        slots: Mapping[str, Sequence[str]],
        counts: Mapping[str, Sequence[float]] | None = None,
        *,
        pseudocount: float = 0.0,
        weights: Mapping[str, float] | None = None,
        on_contradiction: OnContradiction = "ignore",
    ) -> None:
        if not (np.isfinite(pseudocount) and pseudocount >= 0):
            raise InvalidDistribution(f"pseudocount must be finite and >= 0, got {pseudocount}")
        counts = counts or {}
        unknown = [name for name in counts if name not in slots]
        if unknown:
            raise ShapeMismatch(f"counts for {', '.join(map(repr, unknown))}, which are no slots")
        beliefs = {
            name: Belief(values, np.asarray(counts[name], dtype=np.float64) + pseudocount, normalise=True)
            if name in counts
            else Belief(values)
            for name, values in slots.items()
        }
        super().__init__(FactoredBelief(beliefs, weights), on_contradiction)

    def observe(
        self,
        slot: str,
        *,
        question: str | None = None,
        allowed: Sequence[int | str] | None = None,
        likelihood: Any = None,
        answer: int | str | None = None,
        answers: Sequence[str] | None = None,
        target: int | str | None = None,
    ) -> Observation:
        """Take in an answer about one slot, hard (`allowed`) or soft (`likelihood`, `answer`).

        question: what a repeat is recognised by; None: the slot's name, that is "what is it?".
        After a reset `target_log_gain` is None: every slot is forgotten, and the truth of one of them is known here.
        Otherwise as `FactoredBelief.update`.
        """
        return self._observe(
            slot if question is None else question,
            allowed if likelihood is None else answer,
            lambda: self.belief.update(
                slot, allowed=allowed, likelihood=likelihood, answer=answer, answers=answers, target=target
            ),
            target,
        )
