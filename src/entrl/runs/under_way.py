"""A run under way: what was asked for, where it is written, who listens."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from entrl.runs.ending import Ending
from entrl.runs.folder import RunFolder, write_json
from entrl.runs.plan import Prepared
from entrl.runs.recipe import Recipe
from entrl.runs.wording import say


@dataclass(kw_only=True)
class Run:
    """A run under way: what was asked for, where it is written, who listens."""

    recipe: Recipe
    prepared: Prepared
    folder: RunFolder
    console: Console
    ending: Ending
    dataset: Any
    start: Path | None = None  # the checkpoint it goes on from, or its own trained model
    manifest: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def evaluation_rows(self) -> Any:
        """Of the `eval` group; read once."""
        return self.recipe.load_eval_data()

    @property
    def is_trained(self) -> bool:
        """Whether the files of a whole model were there at the start: evaluation and report are left."""
        return self.start == self.folder.model

    def say(self, text: str) -> None:
        say(self.console, text)

    def note(self, **changes: Any) -> None:
        """Write the manifest anew, with changes."""
        self.manifest.update(changes)
        if PartialState().is_main_process:
            write_json(self.folder.path / "manifest.json", self.manifest)
