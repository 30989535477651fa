"""Where numbers and warnings of ours go: TRL's training metrics, and the user's eyes once."""

import warnings
from collections.abc import Mapping
from typing import Any


class TrainingLog:
    """Appends to TRL's metrics of a logging window, and warns once per run and kind.

    metrics: TRL's `_metrics["train"]`, which it empties and never replaces; speaks: whether this process may warn
    """

    def __init__(self, metrics: Mapping[str, list[Any]], *, speaks: bool) -> None:
        self.metrics, self.speaks = metrics, speaks
        self._warned: set[str] = set()

    def add(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.metrics[name].append(value)

    def warn_once(self, text: str) -> None:
        """The words of a text up to its first number name its kind."""
        kind = text.split(" by ")[0].split(" keeps ")[0]
        if kind not in self._warned and self.speaks:
            self._warned.add(kind)
            warnings.warn(text, stacklevel=3)
