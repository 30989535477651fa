"""A user's own files loaded in a fork first: one may loop, or end its process, while it is imported.

Rewards, controllers, curricula, environments (one is made), tables and counts. Only that is found out there: what a
file raises it raises again where it is loaded for good, with its place.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from entrl.environments.table_files import find_table
from entrl.runs.curriculum import load_rule
from entrl.runs.plan.limits import NotBack, apart, within
from entrl.runs.recipe import Recipe
from entrl.runs.specs import load_controller, load_reward
from entrl.settings.names import load_object

LIMIT = "reward_trial_s"  # the key
OURS = ("entrl.", "entrl_rewards.")
TABLE = "loaded:"


def is_own(use: str) -> bool:
    """Whether a recipe's word is none for something of this package."""
    return (":" in use or use.endswith(".py")) and not use.startswith(OURS)


def refuse_endless(recipe: Recipe, group: str) -> None:
    """NotBack where loading one of the group does not come back within `reward_trial_s`, or ends its process.

    group: rewards, controllers, curriculum, environment, counts or tables
    """
    seconds = recipe.reward_trial_s
    for use, load in LOADS[group](recipe) if seconds else ():
        try:
            load_apart(load, use, seconds=seconds, what=group.removesuffix("s"))
        except NotBack as error:
            raise NotBack(with_limit(error, LIMIT)) from None


def load_apart(load: Callable[[], Any], use: str, *, seconds: float, what: str = "reward") -> None:
    """Load one in a fork; beside Linux here, under an alarm."""
    if not is_own(use):
        return

    def work() -> None:
        with contextlib.suppress(Exception, SystemExit):
            load()

    tried_apart(seconds, work, f"loading {what} {use}")


def tried_apart(seconds: float, work: Callable[[], None], what: str) -> None:
    (apart if sys.platform == "linux" else within)(seconds, work, what)


def with_limit(error: ValueError, limit: str) -> str:
    """Its words; where time was up, with what sets how long that is."""
    return f"{error}; where it is slow and no more, raise {limit}" if "did not come back" in str(error) else str(error)


# --- what a recipe names, with how it is loaded -----------------------------------------------------------------------

Loads = Iterator[tuple[str, Callable[[], Any]]]


def _rewards(recipe: Recipe) -> Loads:
    for use, args in [(reward.use, reward.args) for reward in recipe.rewards]:
        yield use, lambda use=use, args=args: load_reward(use, args, base=recipe.base)


def _controllers(recipe: Recipe) -> Loads:
    """With those inside others (`guard`), each as the outer one is loaded."""
    for use, args in [(controller.use, controller.args) for controller in recipe.controllers]:
        for name in (use, *_inner(args)):
            yield name, lambda use=use, args=args: load_controller(use, args, base=recipe.base)


def _inner(args: Any) -> Iterator[str]:
    for value in args.values():
        if isinstance(value, Mapping) and isinstance(value.get("use"), str):
            yield value["use"]
            if isinstance(value.get("args"), Mapping):
                yield from _inner(value["args"])


def _curriculum(recipe: Recipe) -> Loads:
    if (spec := recipe.curriculum) is not None:
        yield spec.use, lambda: load_rule(spec.use, spec.args, base=recipe.base)


def _environment(recipe: Recipe) -> Loads:
    if (spec := recipe.environment) is not None:
        yield spec.use, lambda: spec.load(recipe.base)


def _counts(recipe: Recipe) -> Loads:
    for where in [] if recipe.eval is None else recipe.eval.counts.values():
        yield where, lambda where=where: load_object(where, base=recipe.base)


def _tables(recipe: Recipe) -> Loads:
    """Those that code makes; a file is only read."""
    parts: Sequence[Any] = [*(recipe.data.mixture or [recipe.data])]
    parts = [*parts, *([] if recipe.eval is None else recipe.eval.parts.values())]
    for name in dict.fromkeys(str(part.args.get("tables", "")) for part in parts):
        if name.startswith(TABLE) and not name.endswith((".json", ".csv")):
            yield name.removeprefix(TABLE), lambda name=name: find_table(name)


LOADS: dict[str, Callable[[Recipe], Loads]] = {
    "rewards": _rewards,
    "controllers": _controllers,
    "curriculum": _curriculum,
    "environment": _environment,
    "counts": _counts,
    "tables": _tables,
}
