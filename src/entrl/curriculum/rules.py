"""What a sampling rule sees and what it answers: a weight for each prompt, as plain arrays.

A rule is a keyword-only dataclass that subclasses `Rule` and overrides what it needs:

    weights    before each rollout: how much more often one prompt is to be drawn than another
    observed   after each rollout: what came of the prompts that were tried

Nothing here knows a trainer or a model. Rules compute in float64 from what all ranks have gathered, so every rank gets
the same weights; `entrl.curriculum.draw` turns them into prompts.

P prompts (rows of the data set), G groups of one rollout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """All prompts of the data set and what is known of each.

    trials_P, passes_P: completions judged, and those of them that passed; older ones fade, so neither is a whole number
    failed_P: completions judged since the last that passed, none of them faded
    columns: the columns of the data set that the rule names, one entry per prompt
    """

    trials_P: Floats
    passes_P: Floats
    failed_P: Ints
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trials_P)

    @property
    def pass_rate_P(self) -> Floats:
        """Smoothed by one pass and one failure: 1/2 where nothing is known, never 0 or 1."""
        return (self.passes_P + 1) / (self.trials_P + 2)

    @property
    def fail_rate_P(self) -> Floats:
        return (self.trials_P - self.passes_P + 1) / (self.trials_P + 2)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The groups of one rollout over all ranks, in its order: prompt, completions judged, and how many passed."""

    prompt_G: Sequence[int]
    trials_G: Sequence[int]
    passes_G: Sequence[int]


@dataclass(kw_only=True)
class Rule:
    """Base class: no prompt is preferred, and TRL's own order stays."""

    name: ClassVar[str] = "rule"
    by_prompt: ClassVar[bool] = True  # whether a prompt's weight rests on its own trials, so it must be met twice

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data set that `weights` reads."""
        return ()

    def weights(self, prompts: Prompts) -> Floats | None:
        """(P,) finite and >= 0, in any unit; None: take the next prompts of TRL's own order.

        Asked once whenever what is known has changed, whether or not a rollout follows; changes nothing itself.
        """
        return None

    def observed(self, prompts: Prompts, tried: Tried) -> None:
        """Called after each rollout, on every rank alike; `prompts` knows of it already."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the options: plain numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
