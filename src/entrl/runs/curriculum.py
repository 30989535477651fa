"""The group `curriculum` of a recipe, and the course it stands for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrl.curriculum.course import Course, CourseOptions
from entrl.curriculum.pass_rates import PassRateFile
from entrl.curriculum.rules import Rule
from entrl.settings.arguments import configure
from entrl.settings.names import Loaded, load_object

FILE = "pass_rates.jsonl"  # in the run folder, where the recipe names none


@dataclass(frozen=True, kw_only=True)
class CurriculumSpec(CourseOptions):
    """A sampling rule (entrl.curriculum), where its pass rates are kept, and how they are counted."""

    use: str
    args: dict[str, Any] = field(default_factory=dict)
    file: str | None = None

    def load(self, base: Path | None, run_dir: Path) -> Loaded:
        """A fresh `Course`, with the file its rule came from."""
        loaded = load_rule(self.use, self.args, base=base)
        file = run_dir / FILE if self.file is None else Path(self.file)
        if file.is_dir():
            raise ValueError(f"curriculum.file {self.file} is a folder; name a file in it, such as {self.file}/{FILE}")
        options = CourseOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(CourseOptions)})
        kept = PassRateFile(file, run=str(run_dir.absolute()))
        if self.file is not None:  # one in the run folder is the folder's to judge
            kept.check()
        return dataclasses.replace(loaded, value=Course(loaded.value, options, file=kept))


def load_rule(use: str, args: Mapping[str, Any], *, base: Path | None = None) -> Loaded:
    """A `Rule` with its options set."""
    loaded = load_object(use, base=base, package="entrl.curriculum", attribute="rule")
    value = configure(loaded.value, args, source=loaded.source)
    if not isinstance(value, Rule):
        raise TypeError(
            f"curriculum {loaded.source} ({loaded.file}) is a {type(value).__name__}; subclass "
            "entrl.curriculum.rules.Rule"
        )
    return dataclasses.replace(loaded, value=value)
