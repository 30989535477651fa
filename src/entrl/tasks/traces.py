"""Lessons for the tiny reasoner: a mixture of answering at once and thinking step by step.

    at once    12+7-3=  ->  <think></think>3
    thinking   12+7-3=  ->  <think>12+7=19,19-3=16</think>16

A sum inside a sentence, as `reasoning_gym:chain_sum` asks it, is taught with a space between two steps.

The lesson that answers at once guesses: it names the last term, which is hardly ever right. (With right answers
there, the base was worse: three or four terms are more than the small model can do in its head, so those digits are
noise to it, and learning on them unlearnt the arithmetic of the thinking lessons: right 5 to 19 % of the time when
thinking instead of 41 %.) A thinking lesson keeps a running sum; now and then a step slips (and what follows is built
on the slip), and now and then a step is checked, `?12+7=19`, which repairs a slip. A policy that starts from this
mixture can gain much by thinking more, some by slipping less, a little by checking, and nothing by writing on.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

SLIPS = (-10, -1, 1, 10)  # what a slip adds: one digit wrong, or one carry


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How lessons are mixed; every number is a probability."""

    think: float = 0.35  # per lesson: think step by step instead of answering at once
    slip: float = 0.04  # per step: the result is wrong
    check: float = 0.15  # per step: done a second time

    def __post_init__(self) -> None:
        for name in ("think", "slip", "check"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability and must be in [0, 1], got {value}")


Prompt = str | Sequence[Mapping[str, str]]  # a bare sum, or messages with one in the last


def terms_of(prompt: Prompt) -> list[int]:
    """`12+7-3=`, or a last message that ends in `... 12 + 7 - 3 =`: [12, 7, -3]."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"].rpartition(":")[2].replace(" ", "")
    if not re.fullmatch(r"\d+([+-]\d+)*=", text):
        raise ValueError(
            f"expected a sum such as '12+7-3=', got {text!r}; lessons teach the tasks sums and reasoning_gym:chain_sum "
            '(with `instruction: ""`)'
        )
    return [int(term) for term in re.findall(r"[+-]?\d+", text)]


def lesson(prompt: Prompt, rng: random.Random, *, mixture: Mixture) -> str:
    """The completion that teaches this prompt."""
    terms = terms_of(prompt)
    if rng.random() >= mixture.think:
        return f"{THINK_OPEN}{THINK_CLOSE}{abs(terms[-1])}"
    steps, total = running_sum(terms, rng, mixture=mixture)
    return f"{THINK_OPEN}{(',' if isinstance(prompt, str) else ', ').join(steps)}{THINK_CLOSE}{total}"


def running_sum(terms: list[int], rng: random.Random, *, mixture: Mixture) -> tuple[list[str], int]:
    """The steps as text and where they arrive."""
    steps: list[str] = []
    total = terms[0]
    for term in terms[1:]:
        left, right = f"{total}{term:+d}", total + term
        total = right + rng.choice(SLIPS) if rng.random() < mixture.slip else right
        steps.append(f"{left}={total}")
        if rng.random() < mixture.check:
            total = right
            steps.append(f"?{left}={total}")
    return steps, total
