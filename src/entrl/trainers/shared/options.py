"""Options of ours on a plain configuration of TRL's, which has none."""

import dataclasses
from typing import Any


def complete(args: Any, ours: type) -> None:
    """Give `args` every option of the dataclass `ours` that it lacks, at its default."""
    for field in dataclasses.fields(ours):
        if not hasattr(args, field.name) and field.default is not dataclasses.MISSING:
            setattr(args, field.name, field.default)


def refuse(problems: list[str]) -> None:
    """ValueError with all of them, where there are any."""
    if problems:
        raise ValueError("; and ".join(problems))
