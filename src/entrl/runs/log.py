"""What a run writes and shows while it trains: metrics and completions as JSON lines, one progress bar."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from entrl.runs.folder import append_lines
from entrl.runs.log_lengths import note_logs

PLAIN_LINES = 20  # progress lines of a run whose output is not a terminal


class RunLog(TrainerCallback):
    """Writes metrics.jsonl and completions.jsonl from TRL's own log calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer: Any = None  # set once the trainer exists

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        counters = self.trainer.counters
        evaluating = any(key.startswith("eval_") for key in logs)
        row = {
            "step": state.global_step,
            "kind": "eval" if evaluating else "train",
            "seconds": round(counters.seconds, 3),
            "tokens": int(counters.completion_tokens),
            "forward_passes": counters.forward_passes,
            "optimizer_steps": state.global_step,
        }
        values = {k.removeprefix("eval_"): v for k, v in logs.items() if isinstance(v, (int, float))}
        append_lines(self.folder / "metrics.jsonl", [{**values, **row}])
        self._drain()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._drain()

    def into_checkpoint(self, checkpoint: Path) -> None:
        """The logs hold every step up to a checkpoint, and the checkpoint how long they are."""
        self._drain()
        note_logs(self.folder, checkpoint)

    def _drain(self) -> None:
        samples = self.trainer.completion_samples
        append_lines(self.folder / "completions.jsonl", [samples.popleft() for _ in range(len(samples))])


class ProgressLine(TrainerCallback):
    """One bar on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: Any = None
        self.latest: dict[str, Any] = {}
        self.started = 0.0
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, TextColumn("{task.fields[facts]}"), console=self.console)
        bar.start()
        self.task = bar.add_task("training", total=state.max_steps, completed=state.global_step, facts="")
        self.bar = bar

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        self.latest |= logs  # the reward comes once per rollout, not with every optimiser step
        facts = self.facts(self.latest)
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, facts=facts)
        elif state.global_step % max(1, state.max_steps // PLAIN_LINES) == 0:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  {self._clock(state)}  {facts}", highlight=False
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _clock(self, state: Any) -> str:
        spent = time.monotonic() - self.started
        left = spent / max(1, state.global_step - self.first) * (state.max_steps - state.global_step)
        return f"{spent:.0f}s, {left:.0f}s left"

    @staticmethod
    def facts(logs: dict[str, Any]) -> str:
        shown = {"reward": ".2f", "entropy": ".3f", "completions/mean_length": ".0f"}
        names = {"completions/mean_length": "length", "entropy": "entropy (nats)"}
        return "  ".join(f"{names.get(k, k)} {logs[k]:{form}}" for k, form in shown.items() if logs.get(k) is not None)


def listen_first(trainer: Any, callback: Any) -> None:
    """Let a callback that adds to the logs come before the trackers, which transformers calls first."""
    callbacks = trainer.callback_handler.callbacks
    callbacks.remove(callback)
    callbacks.insert(0, callback)


def be_quiet() -> None:
    """Keep the libraries' progress bars and advice off the terminal; errors still show."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(transformers|trl|peft|accelerate|torch)(\..*)?")
