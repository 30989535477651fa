"""A reward that is best after the second step, and one that is never a number, for tests of the best checkpoint."""

from typing import Any

PEAK = 2  # optimiser steps


def peak(completions: list[str], trainer_state: Any, **_: object) -> list[float]:
    """Minus the distance to the peak; completions differ a little, so that there is something to learn."""
    return [sum(map(ord, text)) % 7 / 100 - abs(trainer_state.global_step - PEAK) for text in completions]


def never(completions: list[str], **_: object) -> list[float | None]:
    return [None] * len(completions)
