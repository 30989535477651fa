"""The overthinkers' task: sums of single digits such as `3+5+7=`, all of them, asked as a bare expression.

Every ordered choice of digits is a problem: 1,000 of three terms. The split goes by the digits without their order, so
a test problem has no reordering of it in train; the train side is cut in two the same way, `part: sft` for lessons (two
thirds) and `part: rl` for what no lesson has taught, which is as new to the model as the test side. The level is the
number of terms. The verifier is the mathematical one, which takes `15`, `sum 15` and `is 15` alike.
"""

import itertools
import random
from typing import Literal, get_args

from entrl.tasks.rows import TEST_EVERY, Row, chat, digest, side_of, verifier_json

Part = Literal["all", "sft", "rl"]


def additions_rows(
    *, split: str, size: int, seed: int, terms: int = 3, system: str = "", part: Part = "all"
) -> list[Row]:
    """Rows in an order drawn from `seed`; the first n do not depend on `size`.

    system: "" asks in plain strings; else chat messages, this one first, for a model with a chat template.
    part: of the train side, the problems of the lessons, those of reinforcement learning, or all; the test side is one.

    Raises ValueError for fewer than two or more than four terms, another part, and more rows than there are problems.
    """
    if not 2 <= terms <= 4:
        raise ValueError(f"terms must be 2, 3 or 4, got {terms}; `sums` has longer ones")
    if part not in get_args(Part):
        raise ValueError(f"part must be one of {', '.join(get_args(Part))}, got {part!r}")
    found = [
        digits
        for digits in itertools.product(range(10), repeat=terms)
        if side_of(problem_key(digits)) == split and (part == "all" or split == "test" or part_of(digits) == part)
    ]
    if size > len(found):
        raise ValueError(
            f"task 'additions' with {terms} terms has {len(found)} {split} problems"
            f"{f' of part {part!r}' if split == 'train' and part != 'all' else ''}, asked for {size}; ask for at most "
            f"{len(found)}, or for more terms"
        )
    random.Random(seed).shuffle(found)
    return [_row(digits, system) for digits in found[:size]]


def problem_key(digits: tuple[int, ...]) -> str:
    """The text whose hash decides the side of the split: the digits in ascending order."""
    return "additions/" + "+".join(map(str, sorted(digits)))


def part_of(digits: tuple[int, ...]) -> Part:
    """Where a train problem belongs, by what the hash has left after deciding the side."""
    return "sft" if digest(problem_key(digits)) // TEST_EVERY % 3 else "rl"


def _row(digits: tuple[int, ...], system: str) -> Row:
    expression = "+".join(map(str, digits))
    return Row(
        prompt=chat(f"{expression}=", system=system) if system else f"{expression}=",
        answer=str(sum(digits)),
        verifier=verifier_json("math"),
        problem_id=f"additions/{expression}",
        level=str(len(digits)),
    )
