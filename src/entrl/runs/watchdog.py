"""Says while a run trains, once per symptom, what its first steps show and what to change (`entrl.diagnosis.rules`).

State: none of its own in checkpoints. A resumed run rebuilds its rows from metrics.jsonl, and what was said from the
warnings that its manifest keeps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entrl.diagnosis.rules import RULES, findings
from entrl.settings.json_lines import json_lines


class Watchdog(TrainerCallback):
    """history: metrics.jsonl of the run; warn: says a text and keeps it; given: the warnings kept so far."""

    def __init__(self, *, history: Path, warn: Callable[[str], None], given: Callable[[], Sequence[str]]) -> None:
        self.history, self.warn, self.given = history, warn, given
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step and self.history.is_file() and not self.rows:
            known = (row for _, row in json_lines(self.history))
            self.rows = [row for row in known if row["kind"] == "train" and row["step"] <= state.global_step]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if any(key.startswith("eval_") for key in logs):
            return
        self.rows.append({"step": state.global_step, **logs})
        said = said_in(self.given())
        for found in findings(self.rows):
            if found.rule.symptom not in said:
                self.warn(f"step {state.global_step}: {found.text}")


def said_in(warnings: Sequence[str]) -> set[str]:
    """Symptoms that a run's warnings name, the trainer's own among them."""
    parts = [(text, text.partition(": ")[2] if text.startswith("step ") else text) for text in warnings]
    return {
        rule.symptom
        for rule in RULES
        for text, rest in parts
        if rest.startswith(f"{rule.symptom}: ") or (rule.said_by and text.startswith(rule.said_by))
    }
