"""Errors in traces: of the text, or of the run that wrote it.

    static     positions of the finished text are corrupted; the run was right, and so is the answer
    dynamic    results are corrupted while the search runs, and what follows is built on them

contamination is the share of samples that are touched, intensity the share of positions touched within one. Dynamic
noise is a faulty game (`FaultyCountdown`, `FaultySudoku`) that is searched in place of the right one.

Source:  TInt, "noise in LLM training data with algorithmic chain of thought": both kinds, both knobs
Differs: there an integer type records a Python program; here a search over states does what the program does
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from entrl.traces.game import Game
from entrl.traces.steps import Step, write

Unit = Literal["numbers", "characters", "steps"]
CHARACTERS = "0123456789+-*/=,<"  # what a character is replaced by


@dataclass(frozen=True, kw_only=True)
class NoiseSpec:
    """How many traces have errors, of which kind, and how many."""

    kind: Literal["static", "dynamic"]
    contamination: float = 1.0  # share of the lessons
    intensity: float = 0.1  # share of the positions of one
    unit: Unit = "numbers"  # static: what a position is

    def __post_init__(self) -> None:
        for name in ("contamination", "intensity"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(
                    f"noise.{name} is a share and must be in (0, 1], got {value}; for none leave noise out"
                )
        if self.kind == "dynamic" and self.unit != "numbers":
            raise ValueError(
                f"noise.unit {self.unit} is for static noise, and dynamic noise corrupts results; leave it out"
            )


def static_noise(steps: Sequence[Step], game: Game, spec: NoiseSpec, rng: random.Random) -> str:
    """The text of a trace, each position otherwise with probability `intensity`."""

    def touched() -> bool:
        return rng.random() < spec.intensity

    if spec.unit == "characters":
        return "".join(_other(CHARACTERS, char, rng) if touched() else char for char in write(steps))
    creates = [step.text for step in steps if step.kind == "create"]
    change: Callable[[str], str]
    if spec.unit == "steps":
        change = lambda text: _other(creates, text, rng) if touched() else text  # noqa: E731
    else:
        change = lambda text: re.sub(  # noqa: E731
            "[0-9]+", lambda n: str(game.otherwise(int(n[0]), rng)) if touched() else n[0], text
        )
    return write([step._replace(text=change(step.text)) if step.kind == "create" else step for step in steps])


def _other(these: Sequence[str], one: str, rng: random.Random) -> str:
    """One of these that is another; the same where there is no other."""
    return rng.choice([other for other in these if other != one] or [one])
