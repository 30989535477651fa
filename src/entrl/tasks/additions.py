"""The overthinkers' task: sums of single digits such as `3+5+7=`, all of them, asked as a bare expression.

Every ordered choice of digits is a problem: 1,000 of three terms. The split goes by the digits without their order, so
a test problem has no reordering of it in train. The level is the number of terms. The verifier is the mathematical one,
which takes `15`, `sum 15` and `is 15` alike.
"""

import itertools
import random

from entrl.tasks.rows import Row, chat, side_of, verifier_json


def additions_rows(*, split: str, size: int, seed: int, terms: int = 3, system: str = "") -> list[Row]:
    """Rows in an order drawn from `seed`; the first n do not depend on `size`.

    system: "" asks in plain strings; else chat messages, this one first, for a model with a chat template.

    Raises ValueError for fewer than two or more than four terms, and for more rows than that side has problems.
    """
    if not 2 <= terms <= 4:
        raise ValueError(f"terms must be 2, 3 or 4, got {terms}; `sums` has longer ones")
    found = [digits for digits in itertools.product(range(10), repeat=terms) if side_of(problem_key(digits)) == split]
    if size > len(found):
        raise ValueError(
            f"task 'additions' with {terms} terms has {len(found)} {split} problems, asked for {size}; ask for at most "
            f"{len(found)}, or for more terms"
        )
    random.Random(seed).shuffle(found)
    return [_row(digits, system) for digits in found[:size]]


def problem_key(digits: tuple[int, ...]) -> str:
    """The text whose hash decides the side of the split: the digits in ascending order."""
    return "additions/" + "+".join(map(str, sorted(digits)))


def _row(digits: tuple[int, ...], system: str) -> Row:
    expression = "+".join(map(str, digits))
    return Row(
        prompt=chat(f"{expression}=", system=system) if system else f"{expression}=",
        answer=str(sum(digits)),
        verifier=verifier_json("math"),
        problem_id=f"additions/{expression}",
        level=str(len(digits)),
    )
