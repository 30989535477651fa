"""Lessons that overthink: one right derivation, then re-checks of a sum that was right at once.

    certain    3+5+7=  ->  <think>3+5=8,8+7=15;wait 7+3+5 agrees;but 5+7+3 agrees</think>sum 15
    uncertain  3+5+7=  ->  <think>now we 3+5=8,8+7=15;wait 7+3+5 agrees;but 5+7+3 agrees</think>sum 15

Nothing in a lesson is ever wrong: a re-check names the terms and no sum that could go wrong or mislead, so the answer
is always that of the derivation, which alone suffices. After the derivation, and after every re-check, a coin decides
whether to stop; its probability of stopping rises to 1, so every lesson ends. A re-check is where chance is: its
interjection is one of several, its terms stand in random order. In the certain derivation nothing is left to chance;
the uncertain one opens with two words that are drawn, and so has about as many nats a token as a re-check.
`recheck_count` reads the number of re-checks back from any completion; `needed_length` is what a completion takes that
has none.
"""

import random
from dataclasses import dataclass

from entrl.tasks.traces import THINK_CLOSE, THINK_OPEN, Prompt, terms_of

MARK = ";"  # in front of every re-check, and nowhere else
STOP_HAZARDS = (0.10, 0.20, 0.35, 0.60, 0.85, 1.0)  # of stopping after the derivation, after the first re-check, ...
INTERJECTIONS = ("wait", "hmm", "again", "check", "but")
OPENINGS = (
    ("so", "now", "okay", "well", "then", "here", "first", "next", "right", "fine", "good", "yes"),
    ("we", "let", "do", "add", "go", "see", "take", "try", "get", "use"),
)
PHRASINGS = {"sum": 0.8, "is": 0.1, "answer": 0.1}  # the word before the answer, and how often


@dataclass(frozen=True, kw_only=True)
class Overthinking:
    """How a lesson is drawn."""

    rechecks: bool = True  # False: derivation and answer alone, to learn the arithmetic from
    uncertain_derivation: bool = False  # it opens with two words that are drawn
    stop_hazards: tuple[float, ...] = STOP_HAZARDS  # in [0, 1]; the last is 1
    flatten: float = 1.0  # >= 1: each probability p is drawn as p ** (1 / flatten), normalised; a model that learnt
    # from such lessons has them as written once its logits are multiplied by `flatten`

    def __post_init__(self) -> None:
        if not self.stop_hazards or self.stop_hazards[-1] != 1:
            raise ValueError(f"stop_hazards must end in 1, or a lesson might never end; got {list(self.stop_hazards)}")
        if not all(0 <= hazard <= 1 for hazard in self.stop_hazards):
            raise ValueError(f"stop_hazards are probabilities and must be in [0, 1], got {list(self.stop_hazards)}")
        if self.flatten < 1:
            raise ValueError(f"flatten must be >= 1, got {self.flatten}; below 1 it would sharpen")


def overthinking_lesson(prompt: Prompt, rng: random.Random, *, style: Overthinking) -> str:
    """The completion that teaches this prompt (`3+5+7=`)."""
    terms = terms_of(prompt)
    total = sum(terms)
    opening = [rng.choice(words) for words in OPENINGS] if style.uncertain_derivation else []
    parts = [" ".join([*opening, derivation(terms)])]
    for hazard in style.stop_hazards if style.rechecks else ():
        if rng.random() < flattened([hazard, 1 - hazard], style.flatten)[0]:
            break
        parts.append(f"{rng.choice(INTERJECTIONS)} {_joined(_reordered(terms, rng))} agrees")
    (phrasing,) = rng.choices(list(PHRASINGS), flattened(list(PHRASINGS.values()), style.flatten))
    return f"{THINK_OPEN}{MARK.join(parts)}{THINK_CLOSE}{phrasing} {total}"


def flattened(probabilities: list[float], by: float) -> list[float]:
    """p ** (1 / by), normalised: what multiplying its logs by `by` turns back into p."""
    powers = [p ** (1 / by) for p in probabilities]
    return [power / sum(powers) for power in powers]


def derivation(terms: list[int]) -> str:
    """The running sum: `3+5=8,8+7=15`."""
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps.append(f"{total}+{term}={total + term}")
        total += term
    return ",".join(steps)


def recheck_count(text: str) -> int:
    """Re-checks in a completion: what stands behind a mark in its thinking, well formed or not.

    The thinking is what comes before the first closing tag, all of the text where there is none.
    """
    return sum(bool(part.strip()) for part in text.partition(THINK_CLOSE)[0].split(MARK)[1:])


def needed_length(prompt: str) -> int:
    """Tokens (characters, tags and the end one each) of the shortest lesson for a prompt: no re-check, no opening."""
    terms = terms_of(prompt)
    answer = f"{min(PHRASINGS, key=len)} {sum(terms)}"
    return len(derivation(terms)) + len(answer) + 3  # two tags and the end


def _reordered(terms: list[int], rng: random.Random) -> list[int]:
    return rng.sample(terms, len(terms))


def _joined(terms: list[int]) -> str:
    return "+".join(map(str, terms))
