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

RAISE_LIMIT = "; where it is slow and no more, raise {}"


def is_own(use: str) -> bool:
    """Whether a recipe's word is none for a reward of this package."""
    return (":" in use or use.endswith(".py")) and not use.startswith("entrl_rewards.")


def refuse_endless(recipe: Recipe) -> None:
    """ValueError where loading one of its rewards does not come back within `reward_trial_s`, or ends its process."""
    for reward in recipe.rewards if recipe.reward_trial_s else []:
        load_apart(
            lambda use=reward.use, args=reward.args: load_reward(use, args, base=recipe.base),
            reward.use,
            seconds=recipe.reward_trial_s,
            limit="reward_trial_s",
        )


def load_apart(load: Callable[[], Any], use: str, *, seconds: float, limit: str) -> None:
    """Load one in a fork; beside Linux here, under an alarm. limit: the name of what sets `seconds`."""
    if not is_own(use):
        return

    def work() -> None:
        with contextlib.suppress(Exception, SystemExit):
            load()

    try:
        (apart if sys.platform == "linux" else within)(seconds, work, f"loading reward {use}")
    except NotBack as error:
        raise NotBack(f"{error}{RAISE_LIMIT.format(limit) * ('come back' in str(error))}") from None
