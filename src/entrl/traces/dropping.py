"""Dualformer's trace dropping: one of five forms for each sample.

    level 0, with probability 1 - p1 - p2 - p3 - p4    the trace
    level 1, p1    without its close steps
    level 2, p2    and without its costs
    level 3, p3    and without each create step, with probability `steps`
    level 4, p4    nothing of it: the solution alone

Modes: `auto` draws as above, `slow` never draws level 4 (the others keep their proportions), `fast` always does.

Source:  Dualformer, searchformer/trace.py, tokenize_sokoban (each create with probability 0.3)
Differs: the level is drawn anew for each trace (there Sokoban keeps one per trace id); p1 to p4 were not published,
         so none are preset; tokenize_maze drops 10 to 40 % of the creates, from level 1 with costs left in
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from entrl.traces.steps import Step

Mode = Literal["auto", "fast", "slow"]
LEVELS = 4


@dataclass(frozen=True, kw_only=True)
class DropSpec:
    """What is left out of traces, and how often."""

    levels: list[float] | None = None  # p1 to p4; the rest is the whole trace
    mode: Mode = "auto"
    steps: float = 0.3  # at level 3, per create step

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 1:
            raise ValueError(f"drop.steps is a probability and must be in [0, 1], got {self.steps}")
        if self.mode == "fast":
            if self.levels is not None:
                raise ValueError("drop.mode fast always drops the whole trace, so levels say nothing; leave one out")
            return
        levels = self.levels or []
        if len(levels) != LEVELS or not all(0 <= p <= 1 for p in levels) or math.fsum(levels) > 1 + 1e-9:
            raise ValueError(
                f"drop.levels must be four probabilities, p1 to p4, that sum to at most 1, got {self.levels}; such as "
                "[0.1, 0.1, 0.1, 0.1]"
            )
        if not any(levels[: None if self.mode == "auto" else -1]):
            raise ValueError(f"drop.levels {levels} drop nothing in mode {self.mode}; raise one, or leave drop out")

    def shares(self) -> list[float]:
        """The probabilities of levels 0 to 4."""
        if self.mode == "fast":
            return [0.0, 0.0, 0.0, 0.0, 1.0]
        levels = list(self.levels or [])
        shares = [max(0.0, 1 - math.fsum(levels)), *levels]
        if self.mode == "slow":
            rest = math.fsum(shares[:-1])
            shares = [*(share / rest for share in shares[:-1]), 0.0]
        return shares


def drop_trace(steps: Sequence[Step], spec: DropSpec, rng: random.Random) -> tuple[int, list[Step]]:
    """The level that was drawn, and what it leaves of the steps. Lines of a plain text go in as create steps."""
    (level,) = rng.choices(range(LEVELS + 1), spec.shares())
    return level, dropped(steps, level, rng, share=spec.steps)


def dropped(steps: Sequence[Step], level: int, rng: random.Random, *, share: float) -> list[Step]:
    """What a level leaves; share: of the create steps that level 3 drops."""
    if level == LEVELS:
        return []
    out = {0: (), 1: ("close",)}.get(level, ("close", "cost"))
    return [
        step
        for step in steps
        if step.kind not in out and not (level == 3 and step.kind == "create" and rng.random() < share)
    ]
