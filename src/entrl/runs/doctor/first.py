"""`doctor: warn` and `doctor: strict` of a recipe: what `entrl train` does before its first step."""

from collections.abc import Callable

from entrl.runs.doctor.examination import examine
from entrl.runs.doctor.page import lines
from entrl.runs.recipe import Recipe


class Stopped(ValueError):
    """`doctor: strict` found something."""


def consult(recipe: Recipe, say: Callable[[str], None]) -> None:
    """What `plan` finds was said already."""
    found = examine(recipe, planned=True)
    for line in lines(found, table=False):
        say(line)
    if recipe.doctor == "strict" and (wrong := [*found.errors, *found.warnings]):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise Stopped(f"doctor: strict stops this run: {wrong[0]}{more}; mend it, or set doctor: warn")
