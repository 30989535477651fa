"""A run under way: what was asked for, where it is written, who listens."""

import contextlib
import warnings
from collections.abc import Iterator
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
from entrl.settings.secrets import mask_text


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

    def warn(self, text: str) -> None:
        """Say it, and keep it for the report."""
        self.say(f"warning: {text}")
        self._keep(text)

    @contextlib.contextmanager
    def keeping_warnings(self) -> Iterator[None]:
        """What Python code warns of while this lasts is shown as ever, and stands in the manifest for the report."""
        with warnings.catch_warnings():
            show = warnings.showwarning

            def keep(message: Warning | str, *where: Any, **more: Any) -> None:
                show(message, *where, **more)
                self._keep(str(message))

            warnings.showwarning = keep
            yield

    def _keep(self, text: str) -> None:
        kept = self.manifest.setdefault("warnings", [])
        if (text := mask_text(text)) not in kept:
            self.note(warnings=[*kept, text])

    def note(self, **changes: Any) -> None:
        """Write the manifest anew, with changes."""
        self.manifest.update(changes)
        if PartialState().is_main_process:
            write_json(self.folder.path / "manifest.json", self.manifest)
