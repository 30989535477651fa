"""What every inquiry shares: questions counted, answers drawn once, events kept, and nothing that survives a reset.

`InquiryEnv` is an environment as TRL's `environment_factory` wants it: `reset(**row)`, and public methods that are
tools. Everything else starts with an underscore, since TRL shows every other method to the model.

    question   valid, open or repeated   -> one event, one of the budget's questions, "Question 3 of 20: no"
    bad arguments                        -> "Error: ...", no event, `_invalid` + 1
    after the budget or after `submit`   -> a fixed text, no event, `_refused` + 1

The counter makes observations unique in an episode, so a reward can match tool messages to events by their text, also
when TRL drops a tool result that did not fit. Unknown tools never get here: TRL answers
them. Nor do malformed calls, which TRL takes for text: the dialogue ends, and the reward counts them as invalid.

Source:  method card information-gain, sections 6 to 8
Needs:   numpy

Bits.
"""

import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from entrl.beliefs import GainStep
from entrl.beliefs.estimators import Observation, OnContradiction

CERTAIN = 1e-9  # bits; a belief this sure has one value left
SHOWN = 40  # characters of a bad argument that an error text repeats
OVER = "The inquiry is over."
Credit = Literal["expected", "realised", "kl", "target"]


@dataclass(frozen=True, kw_only=True)
class TurnEvent:
    """One call that counted: a question with its answer, or the submission."""

    number: int  # 1, 2, ... over all events of the episode
    tool: str
    key: str  # the question asked, or the answer submitted
    answer: str | None  # what was answered; None for a submission
    step: GainStep | None  # None for a submission
    valid: bool = True
    repeated: bool = False
    contradiction: bool = False
    observation: str  # the text the tool returned, to the letter
    correct: bool | None = None  # of a submission
    best_expected: float | None = None  # bits: the largest expected gain of any open question before this one
    resolved: int = 0  # slots that became certain with this answer; for one table 1 when the whole belief did


CALL_MARK = "<tool_call>"  # left over in a message's text, it is a call that no parser could read (Qwen's templates)


def malformed_call(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message holds a call that was not read as one: TRL takes it for text."""
    if message["role"] != "assistant" or message.get("tool_calls"):
        return False
    return CALL_MARK in str(message.get("content") or "")


class BadArguments(ValueError):
    """What a model passed to a tool makes no sense; its text is the answer the model gets."""


def draw(*keys: object) -> float:
    """A number in [0, 1) that depends on the keys only: the same on every machine, in any order of calls."""
    text = "\x1f".join(map(str, keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def pick(probs: Any, uniform: float) -> int:
    """The index that a uniform number in [0, 1) falls on; (A,) probabilities. Never one of probability 0."""
    total = np.cumsum(probs)
    return int(np.searchsorted(total, uniform * total[-1], side="right"))


def listed(names: Iterable[str], limit: int = 40) -> str:
    """`a, b, c`, cut after `limit` names."""
    all_names = list(names)
    return ", ".join(all_names[:limit]) + (", ..." if len(all_names) > limit else "")


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def matched(value: object, names: Iterable[str], what: str) -> str:
    """The name meant, whatever its capitals and the spaces around it. BadArguments."""
    known = {name.strip().casefold(): name for name in names}
    found = known.get(value.strip().casefold()) if isinstance(value, str) else None
    if found is None:
        raise BadArguments(f"unknown {what} {shown(value)}; known: {listed(known.values())}")
    return found


def whole(row: dict[str, Any], name: str, default: int, least: int) -> int:
    """An integer column of a row. ValueError."""
    value = row.get(name)
    try:
        number = default if value is None else operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"column {name!r} must be a whole number >= {least}, got {value!r}")
    return number


def share(row: dict[str, Any], name: str) -> float:
    """A probability column of a row, 0 when it is missing. ValueError."""
    value = row.get(name)
    number = 0.0 if value is None else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise ValueError(f"column {name!r} must be in [0, 1], got {value!r}")
    return float(number)


class InquiryEnv:
    """One hidden thing, questions about it, one submission. Subclasses add the tools."""

    _DEFAULT_BUDGET: ClassVar[int] = 20  # questions, where the row does not say

    def __init__(self, *, on_contradiction: OnContradiction = "ignore") -> None:
        """on_contradiction: what an answer of probability 0 does, see `entrl.beliefs.estimators`."""
        if on_contradiction not in get_args(OnContradiction):
            raise ValueError(
                f"on_contradiction must be one of {', '.join(get_args(OnContradiction))}; got {on_contradiction!r}"
            )
        self._on_contradiction: OnContradiction = on_contradiction
        self._estimator: Any = None
        self._clear({})

    def _clear(self, row: dict[str, Any]) -> None:
        """A new episode: nothing of the one before is left. TRL reuses instances."""
        self._events: list[TurnEvent] = []
        self._target: str = ""
        self._done: bool = False
        self._budget: int = whole(row, "max_questions", self._DEFAULT_BUDGET, 1)
        self._seed: int = whole(row, "seed", 0, 0)
        self._noise: float = share(row, "user_noise")
        self._asked: int = 0  # questions that counted
        self._correct: bool | None = None  # None: nothing submitted
        self._score: float | None = None  # share of the submission that is right
        self._invalid: int = 0
        self._refused: int = 0

    def _prior_entropy(self) -> float:
        """H0 in bits, 0 before the first reset."""
        return 0.0 if self._estimator is None else self._estimator.prior_entropy()

    def _gains(self, credit: Credit = "expected") -> list[float]:
        """Bits of each question so far, in order; a repeat and an ignored contradiction are 0."""
        name = "target_log_gain" if credit == "target" else credit
        return [float(getattr(event.step, name) or 0.0) for event in self._events if event.step is not None]

    def _question(self, tool: str, key: str, answer: str, seen: Observation, **known: Any) -> str:
        """Count a question, keep its event, and say what the model reads."""
        self._asked += 1
        repeated = " (asked before)" if seen.repeated else ""
        text = f"Question {self._asked} of {self._budget}: {answer}{repeated}"
        self._events.append(
            TurnEvent(
                number=len(self._events) + 1,
                tool=tool,
                key=key,
                answer=answer,
                step=seen.step,
                repeated=seen.repeated,
                contradiction=seen.contradiction,
                observation=text,
                **known,
            )
        )
        return text

    def _submission(self, key: str, score: float, text: str) -> str:
        """Close the episode."""
        self._done, self._score, self._correct = True, score, score == 1.0
        self._events.append(
            TurnEvent(
                number=len(self._events) + 1,
                tool="submit",
                key=key,
                answer=None,
                step=None,
                observation=text,
                correct=self._correct,
            )
        )
        return text

    def _call(self, tool: Callable[[], str], *, question: bool) -> str:
        """Run a tool's body: refused when it is too late, an error text when the arguments are bad.

        The body checks everything before it changes anything (TRL passes on whatever the model wrote).
        """
        if self._estimator is None:
            raise RuntimeError("call reset(**row) before any tool")
        if self._done:
            self._refused += 1
            return OVER
        if question and self._asked >= self._budget:
            self._refused += 1
            return f"No questions left after {self._budget}; submit your answer."
        try:
            return tool()
        except BadArguments as error:
            self._invalid += 1
            return f"Error: {error}"


class OwnReward:
    """Adds TRL's `get_reward`, for a trainer without reward functions.

        R = outcome_weight score + gain_weight sum of gains / H0 - question_cost questions

    It cannot see the completion: a tool result that TRL dropped for its length is paid all the same. The reward
    function `information_gain` pays only what was seen; do not use both, TRL would add them.
    """

    def __init__(
        self,
        *,
        credit: Credit = "expected",
        gain_weight: float = 1.0,
        outcome_weight: float = 1.0,
        question_cost: float = 0.0,
        **options: Any,
    ) -> None:
        if credit not in get_args(Credit):
            raise ValueError(f"credit must be one of {', '.join(get_args(Credit))}; got {credit!r}")
        super().__init__(**options)
        self._credit: Credit = credit
        self._weights = (outcome_weight, gain_weight, question_cost)

    def get_reward(self) -> float:
        """Called by TRL once a rollout has ended."""
        assert isinstance(self, InquiryEnv)
        outcome, gain, cost = self._weights
        h0 = self._prior_entropy()
        total = sum(self._gains(self._credit)) / h0 if h0 > 0 else 0.0
        return outcome * (self._score or 0.0) + gain * total - cost * self._asked
