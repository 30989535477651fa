"""Beliefs read off a frozen model: softmax over its scores of K candidates, and the size of a conformal set of them.

    b(h | history) = softmax(score(history, h) / temperature)
    V(history) = log2 max(|C|, 1)       C with the threshold of the history's length; gain = V before - V after

Source:  C-IP (arXiv 2507.03279), sections 2 and 3; method card information-gain, section 7.2
Differs: exact ranks (`entrl.beliefs.conformal`); gains rather than a choice of question
Needs:   numpy

Each belief is coherent by itself. Beliefs of successive histories need not be one another's posteriors, and thresholds
differ between lengths, so gains may be negative, and may be expected to be. Coverage holds for histories drawn like
those of the calibration. K hypotheses. Bits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from entrl.beliefs.belief import Belief, GainStep, position
from entrl.beliefs.conformal import LengthThresholds, fit_lengths, log2_sizes, prediction_sets
from entrl.beliefs.errors import InvalidScore, ShapeMismatch, UnknownAnswer
from entrl.beliefs.information import Array, kl_bits

History = Sequence[tuple[str, str]]  # (question, answer) in the order they were asked


class AnswerModel:
    """A frozen model's belief over K candidates, from its scores given the history.

    score(history, hypotheses): (K,) natural-log scores (log-probs, or logits), numbers, numpy or torch.
    temperature: divides the scores; above 1 it tames an over-confident model.
    """

    def __init__(
        self,
        score: Callable[[History, Sequence[str]], Any],
        hypotheses: Sequence[str],
        *,
        temperature: float = 1.0,
    ) -> None:
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be finite and > 0, got {temperature}; 1 takes the scores as they are")
        self.hypotheses = Belief(hypotheses).hypotheses  # the same checks
        self.score, self.temperature = score, temperature

    def belief(self, history: History) -> Belief:
        """softmax(scores / temperature). Raises ShapeMismatch, InvalidScore."""
        scores = as_float64(self.score(history, self.hypotheses))
        if bool(np.isnan(scores).any()):
            raise InvalidScore(f"the model gave a NaN score after {len(history)} answers; mend the score function")
        return Belief.from_log_weights(self.hypotheses, scores / self.temperature)

    def step(
        self,
        history: History,
        question: str,
        answer: str,
        *,
        answer_probs: Mapping[str, float] | None = None,
        target: int | str | None = None,
    ) -> GainStep:
        """What the answer changed in the model's belief.

        answer_probs: the question's answers with their probability as someone sees it (the model scores hypotheses,
        not answers). Without them `expected`, `evidence_bits` and `answer_entropy` are None. `expected` then asks the
        model about every answer, and may be negative.
        """
        before, after = self.belief(history), self.belief([*history, (question, answer)])
        truth = None
        if target is not None:
            was, now = before.log2_prob(target), after.log2_prob(target)
            truth = 0.0 if now == was else now - was  # equal also where both are -inf
        step = GainStep(
            h_before=before.entropy(),
            h_after=after.entropy(),
            realised=before.entropy() - after.entropy(),
            kl=kl_bits(after.probs, before.probs),
            expected=None,
            evidence_bits=None,
            answer_entropy=None,
            target_log_gain=truth,
        )
        if answer_probs is None:
            return step
        alphabet = Belief(answer_probs, list(answer_probs.values()))
        position(answer, alphabet.hypotheses, "answer", UnknownAnswer)
        left = {a: self.belief([*history, (question, a)]).entropy() for a, p in answer_probs.items() if p > 0}
        return replace(
            step,
            expected=before.entropy() - sum(answer_probs[a] * entropy for a, entropy in left.items()),
            evidence_bits=-alphabet.log2_prob(answer) + 0.0,
            answer_entropy=alphabet.entropy(),
        )


class ConformalSize:
    """Uncertainty as the log of a conformal set's size; what is left to ask about, with a coverage attached.

    The empty history has V = log2 K unless length 0 was calibrated.
    """

    def __init__(self, model: AnswerModel, thresholds: LengthThresholds, *, nonempty: bool = False) -> None:
        self.model, self.thresholds, self.nonempty = model, thresholds, nonempty

    @classmethod
    def calibrated(
        cls,
        model: AnswerModel,
        sample: Callable[[int], Iterable[tuple[History, int | str]]],
        lengths: Iterable[int],
        alpha: str | float,
        *,
        nonempty: bool = False,
    ) -> "ConformalSize":
        """sample(length): calibration histories of that length with their true label; drawn as those it will serve."""

        def draw(length: int) -> Iterable[tuple[Array, int]]:
            for history, label in sample(length):
                if len(history) != length:
                    raise ShapeMismatch(f"sample({length}) gave a history of {len(history)} answers")
                belief = model.belief(history)
                yield belief.probs, belief.index(label)

        return cls(model, fit_lengths(draw, lengths, alpha), nonempty=nonempty)

    def kept(self, history: History) -> Array:
        """(K,) bool, the prediction set. EmptyCalibration for a length that was not calibrated."""
        if len(history) == 0 and 0 not in self.thresholds:
            return np.ones(len(self.model.hypotheses), dtype=bool)
        threshold = self.thresholds.at(len(history))
        return prediction_sets(self.model.belief(history).probs, threshold, nonempty=self.nonempty)

    def size(self, history: History) -> int:
        return int(self.kept(history).sum())

    def value(self, history: History) -> float:
        """V in bits; 0 for an empty set."""
        return float(log2_sizes(self.size(history)))

    def gain(self, history: History, question: str, answer: str) -> float:
        """Bits by which the answer shrank the set."""
        return self.value(history) - self.value([*history, (question, answer)])


def random_histories(table: Any, *, count: int, seed: int) -> Callable[[int], list[tuple[History, int]]]:
    """A sampler for `ConformalSize.calibrated`: truths from the prior, questions at random without repetition, answers
    from the likelihood (C-IP's closed set). Answers are column indices in text.

    table: `hypotheses`, `questions`, `likelihood(question)`, `prior` (None: uniform).
    """
    belief = Belief(table.hypotheses, table.prior)

    def sample(length: int) -> list[tuple[History, int]]:
        if length > len(table.questions):
            raise ShapeMismatch(f"{length} different questions of {len(table.questions)}; lower the length")
        rng = np.random.default_rng([seed, length])
        drawn = []
        for _ in range(count):
            truth = int(rng.choice(len(belief), p=belief.probs))
            order = rng.permutation(len(table.questions))[:length]
            history = []
            for question in (table.questions[i] for i in order):
                row = np.asarray(table.likelihood(question), dtype=np.float64)[truth]
                history.append((question, str(int(rng.choice(len(row), p=row)))))
            drawn.append((history, truth))
        return drawn

    return sample


def logged_histories(
    dialogues: Sequence[tuple[History, int | str]],
) -> Callable[[int], list[tuple[History, int | str]]]:
    """A sampler from played dialogues: the first `length` turns of each that is long enough, each used once."""

    def sample(length: int) -> list[tuple[History, int | str]]:
        return [(list(history[:length]), label) for history, label in dialogues if len(history) >= length]

    return sample


def as_float64(values: Any) -> Array:
    """Numbers from a list, numpy or torch, which need not be importable."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
