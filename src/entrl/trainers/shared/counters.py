"""What a run has spent: the x-axes of its curves."""

import time
from collections import Counter
from typing import Any


class Counters:
    """What a run has spent: row-passes by kind (this rank), completion tokens (all ranks), training seconds."""

    def __init__(self, rows_per_step: int) -> None:
        self.rows_per_step = rows_per_step  # of this rank
        self.rows: Counter[str] = Counter()
        self.completion_tokens = 0.0
        self._before = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Let the clock run; nothing happens where it does already."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, as during an evaluation."""
        self._before, self._started = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    @property
    def forward_passes(self) -> float:
        """Forward passes over one optimiser step's rows; neither generation nor evaluation is counted."""
        return sum(n for kind, n in self.rows.items() if kind != "evaluation") / self.rows_per_step

    def state_dict(self) -> dict[str, Any]:
        return {"rows": dict(self.rows), "tokens": self.completion_tokens, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.completion_tokens = Counter(state["rows"]), state["tokens"]
        self._before = state["seconds"]
