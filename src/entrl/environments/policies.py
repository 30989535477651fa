"""Policies that choose questions without a trained player: the ends of the scale.

    RandomQuestions, FixedOrder   ask without looking, until the exact belief is sure
    GreedyExact                   argmax_q I(h; answer of q), exact belief, until nothing is left to learn
    GuessOnly                     submits at once

All submit the most likely hypothesis, at the latest when the budget is used up. Those that ask a model's belief are in
`entrl.environments.pursuit`.

Source:  method card information-gain, section 10.1
Needs:   numpy
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from entrl.beliefs.estimators import TIE
from entrl.beliefs.information import Array
from entrl.environments.diagram import DiagramShort, _noisy, open_question
from entrl.environments.diagram_worlds import written
from entrl.environments.model_policy import call_tool, tools_of
from entrl.environments.play import Message

CERTAIN = 1e-9  # bits


@dataclass(kw_only=True)
class ScriptedPolicy:
    """Plays one environment after the other; subclasses say which question, if any, and what to submit."""

    name: str = "scripted"
    seed: int = 0
    _episode: int = field(default=0, init=False, repr=False)

    def restart(self) -> None:
        self._episode = 0

    def play(self, environments: Sequence[Any], prompts: Sequence[list[Message]]) -> list[list[Message]]:
        assert len(environments) == len(prompts)
        return [self._dialogue(environment) for environment in environments]

    def _dialogue(self, environment: Any) -> list[Message]:
        rng = np.random.default_rng([self.seed, self._episode])  # the same for a row, however rows are batched
        self._episode += 1
        messages: list[Message] = []
        while environment._asked < environment._budget:
            question = self.choose(environment, rng)
            if question is None:
                break
            messages += scripted_turn(environment, "ask", {question_argument(environment): question})
        return messages + scripted_turn(environment, "submit", self.guess(environment))

    def choose(self, environment: Any, rng: np.random.Generator) -> str | None:
        """The next question, or None to submit."""
        raise NotImplementedError

    def guess(self, environment: Any) -> dict[str, Any]:
        """The arguments of `submit`: what the environment's own belief finds most likely."""
        return most_likely(environment)


@dataclass(kw_only=True)
class RandomQuestions(ScriptedPolicy):
    """Open questions in random order."""

    name: str = "random"

    def choose(self, environment: Any, rng: np.random.Generator) -> str | None:
        left = open_questions(environment)
        return None if _sure(environment) or not left else left[rng.integers(len(left))]


@dataclass(kw_only=True)
class FixedOrder(ScriptedPolicy):
    """The questions in the order of the table."""

    name: str = "fixed"

    def choose(self, environment: Any, rng: np.random.Generator) -> str | None:
        left = open_questions(environment)
        return None if _sure(environment) or not left else left[0]


@dataclass(kw_only=True)
class GreedyExact(ScriptedPolicy):
    """The largest expected gain, the first of equals."""

    name: str = "greedy"

    def choose(self, environment: Any, rng: np.random.Generator) -> str | None:
        left = open_questions(environment)
        gains = open_gains(environment)
        if not left or gains.max() <= TIE:
            return None
        return left[int(np.argmax(gains >= gains.max() - TIE))]


@dataclass(kw_only=True)
class GuessOnly(ScriptedPolicy):
    """Asks nothing."""

    name: str = "guess"

    def choose(self, environment: Any, rng: np.random.Generator) -> str | None:
        return None


PLAIN: dict[str, Callable[..., ScriptedPolicy]] = {
    "guess": GuessOnly,
    "random": RandomQuestions,
    "fixed": FixedOrder,
    "greedy": GreedyExact,
}


def open_questions(environment: Any) -> tuple[str, ...]:
    """Attributes or slots that were not asked yet, in the environment's order."""
    asked = set(environment._estimator.asked)
    known = environment._world.slots if isinstance(environment, DiagramShort) else environment._table.questions
    return tuple(question for question in known if question not in asked)


def open_gains(environment: Any) -> Array:
    """Expected gain in bits of each open question under the environment's own belief."""
    left = open_questions(environment)
    if isinstance(environment, DiagramShort):
        belief, noise = environment._estimator.belief, environment._belief_noise
        told = {slot: _noisy(open_question(slot)[1], noise) for slot in left}
        known = environment._known
        return np.array([belief.expected_gain(s, np.einsum("vm,vma->va", known[s], told[s])) for s in left])
    gains = dict(zip(environment._table.questions, environment._open_gains(), strict=True))
    return np.array([gains[question] for question in left])


def most_likely(environment: Any) -> dict[str, str]:
    """What to submit by the environment's own belief; of a diagram each slot's most likely value."""
    if isinstance(environment, DiagramShort):
        slots = environment._world.slots.items()
        values = {slot: values[int(environment._marginal(slot).argmax())] for slot, values in slots}
        return {"specification": written(values)}
    belief = environment._estimator.belief
    return {"answer": belief.hypotheses[int(belief.probs.argmax())]}


def question_argument(environment: Any) -> str:
    return "slot" if isinstance(environment, DiagramShort) else "attribute"


def _sure(environment: Any) -> bool:
    return environment._estimator.entropy() <= CERTAIN


def scripted_turn(environment: Any, tool: str, arguments: dict[str, Any]) -> list[Message]:
    """One call with its result, in the messages a model's would be."""
    call = {"type": "function", "function": {"name": tool, "arguments": arguments}}
    return [{"role": "assistant", "content": "", "tool_calls": [call]}, call_tool(call, tools_of(environment))]
