"""Says while a run trains what its newest steps show and what to change (`entrl.diagnosis.rules`), and when it is over.

Each symptom is told once, and its end once. It is said and not kept: the report looks at the whole run by the same
rules, so a symptom that went away is in no report, and one that stayed is there once.

State: none in checkpoints. A resumed run rebuilds its curves from metrics.jsonl, and holds what they show for told.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entrl.diagnosis.curves import Curves
from entrl.diagnosis.rules import findings, said_of_the_start, there
from entrl.settings.json_lines import json_lines


class Watchdog(TrainerCallback):
    """history: metrics.jsonl of the run; say: prints a line; warned: what the run has warned of so far."""

    def __init__(self, *, history: Path, say: Callable[[str], None], warned: Callable[[], Sequence[str]]) -> None:
        self.history, self.say, self.warned = history, say, warned
        self.curves = Curves()
        self.told: dict[str, bool] = {}  # symptom -> whether it is still there

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step and self.history.is_file() and not self.curves.rows:
            known = (row for _, row in json_lines(self.history))
            done = (row for row in known if row["kind"] == "train" and row["step"] <= state.global_step)
            self.curves = Curves(done)
            self.told = {found.rule.symptom: True for found in findings(self.curves)}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if any(key.startswith("eval_") for key in logs):
            return
        self.curves.append({"step": state.global_step, **logs})
        for line in self.look():
            self.say(f"step {state.global_step}: {line}")

    def look(self) -> list[str]:
        """What is new since the last look."""
        lines = []
        for found in findings(self.curves):
            if found.rule.symptom not in self.told:
                self.told[found.rule.symptom] = True
                if not self._warned_of(found.rule.symptom):
                    lines.append(f"warning: {found.text}")
        still = there(self.curves)
        for symptom in [s for s, was in self.told.items() if was and s not in still]:
            self.told[symptom] = False
            lines.append(f"over: {symptom}")
        return lines

    def _warned_of(self, symptom: str) -> bool:
        """Whether the trainer itself has said it of its first completions."""
        return any((rule := said_of_the_start(text)) and rule.symptom == symptom for text in self.warned())
