"""A user's own reward loaded in a fork first: a file may loop, or end its process, while it is imported.

Only that is found out there. What a file raises it raises again where it is loaded for good, with its place.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from entrl.runs.plan.limits import NotBack, apart, within
from entrl.runs.recipe import Recipe
from entrl.runs.specs import load_reward


def is_own(use: str) -> bool:
    """Whether a recipe's word is none for a reward of this package."""
    return (":" in use or use.endswith(".py")) and not use.startswith("entrl_rewards.")


def refuse_endless(recipe: Recipe) -> None:
    """NotBack where loading one of its rewards does not come back within `reward_trial_s`, or ends its process."""
    seconds = recipe.reward_trial_s
    for use, args in [(reward.use, reward.args) for reward in recipe.rewards if seconds]:
        try:
            load_apart(lambda use=use, args=args: load_reward(use, args, base=recipe.base), use, seconds=seconds)
        except NotBack as error:
            raise NotBack(with_limit(error, "reward_trial_s")) from None


def load_apart(load: Callable[[], Any], use: str, *, seconds: float) -> None:
    """Load one in a fork; beside Linux here, under an alarm."""
    if not is_own(use):
        return

    def work() -> None:
        with contextlib.suppress(Exception, SystemExit):
            load()

    (apart if sys.platform == "linux" else within)(seconds, work, f"loading reward {use}")


def with_limit(error: ValueError, limit: str) -> str:
    """Its words; where time was up, with what sets how long that is."""
    return f"{error}; where it is slow and no more, raise {limit}" if "did not come back" in str(error) else str(error)
