"""What about a run's options would make a curriculum wrong; asked before a model is loaded."""

from collections.abc import Sequence
from typing import Any

from entrl.curriculum.course import Course
from entrl.trainers.shared.rewards import reward_name


def curriculum_problems(course: Course | None, args: Any, reward_funcs: Sequence[Any]) -> list[str]:
    """Empty without a course."""
    if course is None:
        return []
    problems, names = [], [reward_name(reward) for reward in reward_funcs]
    if (wanted := course.options.reward) not in names:
        problems.append(
            f"curriculum counts passes by the reward {wanted!r}, which is not among the rewards ({', '.join(names)}); "
            "add it (weight 0 will do), or name another in curriculum.reward"
        )
    if args.dataloader_num_workers:
        problems.append(
            f"dataloader_num_workers is {args.dataloader_num_workers}: workers ask for prompts long before the "
            "rollouts that should choose them; set it to 0 beside a curriculum"
        )
    return problems
