"""The controllers of a trainer, asked together: what a run with them needs, their selections, their state."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from entrl.controllers.hooks import Controller, Scope, Window


class Controls:
    """All controllers, and of them those that act on the loss, in the user's order."""

    def __init__(self, controllers: Sequence[Controller]) -> None:
        self.all = list(controllers)
        self.on_loss = [c for c in self.all if c.uses_loss_hook]
        self.selections: list[Any] = []  # of the optimiser step in hand, one for each of `on_loss`

    @property
    def scopes(self) -> set[Scope | None]:
        return {c.scope for c in self.on_loss}

    @property
    def selecting(self) -> bool:
        """Whether some controller selects over whole windows."""
        return bool(self.scopes & {"step", "exact"})

    @property
    def needs_feedback(self) -> bool:
        return any(c.needs_feedback for c in self.all)

    @property
    def columns(self) -> list[str]:
        """Names of what rewards must publish of each row."""
        return sorted({name for c in self.on_loss for name in c.needs_columns})

    def set_clip_range(self, trainer: Any) -> None:
        """Where a controller has a ratio range of its own, it takes the place of TRL's."""
        for controller in self.on_loss:
            if controller.clip_range is not None:
                trainer.epsilon_low, trainer.epsilon_high = controller.clip_range

    def select(self, windows: Mapping[Scope, Window]) -> dict[str, Tensor | float]:
        """Let each controller select over the window of its scope; returns their metrics by full name."""
        self.selections, metrics = [], {}
        for controller in self.on_loss:
            window = None if controller.scope is None else windows.get(controller.scope)
            self.selections.append(None if window is None else controller.select(window))
            if window is not None:
                own = controller.window_metrics(self.selections[-1])
                metrics |= {f"{controller.name}/{key}": value for key, value in own.items()}
        return metrics
