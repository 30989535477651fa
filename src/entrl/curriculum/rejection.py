"""Difficulty-aware rejection sampling: which problems to ask for more answers, and when each has enough right ones.

Rounds: `pilot` answers to every problem, then `per_round` to every problem that is still open. A problem closes by
DART-Math's stop rule (`entrl.curriculum.dart.stop_reason`), its target set by the fail rate of the pilot under
prop2diff and alike for all under uniform. Of the right answers the first ones up to the target are kept.

Source:  DART-Math, arXiv 2407.13690, and hkust-nlp/dart-math at 219b32467b: Uniform k_u 40 within 2048 trials,
         Prop2Diff k_p 192 within 8000 and more
Differs: the repository takes fail rates from 8 to 192 answers drawn beforehand; here the pilot's. `give_up` and
         the removal of duplicates are ours, both off by default
Needs:   nothing. Trials count when they are asked for, so the last round of a problem may overshoot `max_trials`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from entrl.curriculum.dart import Stop, prop2diff_targets, stop_reason
from entrl.curriculum.rules import Ints


@dataclass(frozen=True, kw_only=True)
class RejectionSpec:
    rule: Literal["uniform", "prop2diff"] = "uniform"
    correct: int = 40  # right answers: of every problem, under prop2diff of the hardest (k_u, k_p)
    max_trials: int = 2048  # of a problem
    pilot: int = 8  # answers to every problem in the first round
    per_round: int = 8  # answers to each open problem in the others
    divide_by_max: bool = False  # prop2diff: fail rates over the largest of them
    give_up: int = 0  # trials after which a problem without a right answer closes; 0: max_trials alone
    duplicates: Literal["keep", "exact", "normalised"] = "keep"  # normalised: but for case and white space

    def __post_init__(self) -> None:
        for name in ("correct", "max_trials", "pilot", "per_round"):
            if getattr(self, name) < 1:
                raise ValueError(f"rejection.{name} must be at least 1, got {getattr(self, name)}")
        if self.give_up < 0:
            raise ValueError(f"rejection.give_up counts trials, 0 for never; got {self.give_up}")
        if self.divide_by_max and self.rule != "prop2diff":
            raise ValueError("rejection.divide_by_max is of prop2diff; leave it out, or set rejection.rule: prop2diff")

    def samples(self, turn: int) -> int:
        """Answers to each problem of a round."""
        return self.per_round if turn else self.pilot


@dataclass(kw_only=True)
class Asking:
    """Counts of a set of problems. trials_P, correct_P: answers asked for, and right ones; rounds: that are over."""

    spec: RejectionSpec
    trials_P: Ints
    correct_P: Ints
    rounds: int = 0
    target_P: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.target_P = np.full(len(self.trials_P), self.spec.correct, dtype=np.int64)

    @classmethod
    def of(cls, spec: RejectionSpec, problems: int) -> "Asking":
        return cls(spec=spec, trials_P=np.zeros(problems, np.int64), correct_P=np.zeros(problems, np.int64))

    @property
    def samples(self) -> int:
        """Answers to each problem of the next round."""
        return self.spec.samples(self.rounds)

    def stop(self, problem: int) -> Stop | Literal["gave_up"] | None:
        """Why no more answers to a problem are asked for, None where they are."""
        trials, correct = int(self.trials_P[problem]), int(self.correct_P[problem])
        if self.spec.give_up and not correct and trials >= self.spec.give_up:
            return "gave_up"
        target = int(self.target_P[problem])
        return stop_reason(max_trials=self.spec.max_trials, min_correct=target, trials=trials, correct=correct)

    def open(self) -> list[int]:
        """The problems of the next round."""
        return [problem for problem in range(len(self.trials_P)) if self.stop(problem) is None]

    def add(self, verdicts: Mapping[int, Sequence[bool]]) -> None:
        """A whole round: for each problem that was open whether each answer was right."""
        for problem, right in verdicts.items():
            self.trials_P[problem] += len(right)
            self.correct_P[problem] += sum(right)
        if self.rounds == 0 and self.spec.rule == "prop2diff":
            fail_rate_P = (self.trials_P - self.correct_P) / self.trials_P
            self.target_P = prop2diff_targets(fail_rate_P, k_p=self.spec.correct, divide_by_max=self.spec.divide_by_max)
        self.rounds += 1


def first_right(texts: Sequence[str], right: Sequence[bool], *, target: int, duplicates: str = "keep") -> list[int]:
    """Which of the answers to a problem, in the order they were drawn, are kept."""
    kept: list[int] = []
    seen: set[str] = set()
    for i, (text, good) in enumerate(zip(texts, right, strict=True)):
        same = " ".join(text.split()).casefold() if duplicates == "normalised" else text
        if good and (duplicates == "keep" or same not in seen):
            kept.append(i)
            seen.add(same)
    return kept[:target]
