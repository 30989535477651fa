"""A small task of programs: write a Python function over a list of whole numbers, or finish an expression.

    ask: function       chat, "Write a Python function `f(numbers)` ...": pick, change, gather (two to three steps)
    ask: program        the same, numbers on standard input and the result printed
    ask: expression     a plain string such as `12+7-3=`; what follows is the body of a function without arguments, so
                        that a tiny model of sums can be trained on code from end to end

The tests are made by applying the same steps to lists drawn from the problem's own text; `verifier` is code. The level
is the number of steps, or of terms.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from entrl.tasks.rows import Row, chat, digest, side_of, verifier_json

CASES = 6  # tests of a problem; the first list is empty
ASKS = ("function", "program", "expression")


class Step(NamedTuple):
    words: str
    apply: Callable[[list[int]], Any]


def _picks() -> list[Step]:
    found = [
        Step("keep the even numbers", lambda xs: [x for x in xs if x % 2 == 0]),
        Step("keep the odd numbers", lambda xs: [x for x in xs if x % 2]),
        Step("drop repeats, keeping the first of each", lambda xs: list(dict.fromkeys(xs))),
        Step("keep every second number, starting with the first", lambda xs: xs[::2]),
    ]
    for n in range(-5, 10):
        found.append(Step(f"keep the numbers above {n}", lambda xs, n=n: [x for x in xs if x > n]))
    return found


def _changes() -> list[Step]:
    found = [
        Step("square each", lambda xs: [x * x for x in xs]),
        Step("take the absolute value of each", lambda xs: [abs(x) for x in xs]),
        Step(
            "replace each by the sum of all numbers up to and with it",
            lambda xs: [sum(xs[: i + 1]) for i in range(len(xs))],
        ),
    ]
    for n in range(2, 10):
        found.append(Step(f"multiply each by {n}", lambda xs, n=n: [n * x for x in xs]))
        found.append(Step(f"subtract {n} from each", lambda xs, n=n: [x - n for x in xs]))
    return found


GATHERS = [
    Step("return their sum", lambda xs: sum(xs)),
    Step("return how many there are", lambda xs: len(xs)),
    Step("return the largest minus the smallest (0 if there are none)", lambda xs: max(xs) - min(xs) if xs else 0),
    Step("return the largest (0 if there are none)", lambda xs: max(xs, default=0)),
]
PICKS, CHANGES = _picks(), _changes()


def functions_rows(
    *, split: str, size: int, seed: int, ask: str = "function", steps: int = 3, terms: int = 3
) -> list[Row]:
    """Rows in an order drawn from `seed`; none is of the other side of the split. ValueError where there are too few.

    steps: 2 or 3, for functions and programs. terms: from 2 on, for expressions.
    """
    if ask not in ASKS:
        raise ValueError(f"ask must be one of {', '.join(ASKS)}, got {ask!r}")
    if steps not in (2, 3):
        raise ValueError(f"steps must be 2 or 3, got {steps}")
    if not 2 <= terms <= 8:
        raise ValueError(f"terms must be from 2 to 8, got {terms}")
    draw, found, tries = random.Random(seed), {}, 0
    while len(found) < size:
        row = _expression(draw, terms) if ask == "expression" else _written(draw, steps, ask)
        tries += 1
        if side_of(row["problem_id"]) == split:
            found.setdefault(row["problem_id"], row)
        if tries > 60 * size + 2000:
            raise ValueError(f"task 'functions' found {len(found)} {split} problems, asked for {size}; ask for fewer")
    return list(found.values())


def _written(draw: random.Random, steps: int, ask: str) -> Row:
    chosen = [draw.choice(PICKS), *([draw.choice(CHANGES)] if steps == 3 else []), draw.choice(GATHERS)]
    words = [step.words for step in chosen]
    if ask == "program":
        words[-1] = words[-1].replace("return", "print", 1)
    steps_text = f"{', then '.join(words[:-1])}, then {words[-1]}"
    shown = {
        "function": f"Write a Python function `f(numbers)` that takes a list of whole numbers: {steps_text}.",
        "program": f"Write a Python program. It reads one line of whole numbers with spaces between: {steps_text}.",
    }[ask]
    lists = _lists(random.Random(steps_text))
    values = [_applied(chosen, numbers) for numbers in lists]
    tests: dict[str, Any] = {"inputs": [[xs] for xs in lists], "outputs": [[v] for v in values], "fn_name": "f"}
    if ask == "program":
        tests = {"inputs": [" ".join(map(str, xs)) + "\n" for xs in lists], "outputs": [f"{v}\n" for v in values]}
    return _row(chat(shown, instruction="Put the code into one ```python block."), tests, f"{ask}: {steps_text}", steps)


def _lists(draw: random.Random) -> list[list[int]]:
    return [[], *([draw.randint(-9, 20) for _ in range(draw.randint(1, 8))] for _ in range(CASES - 1))]


def _applied(steps: Sequence[Step], numbers: list[int]) -> Any:
    value: Any = list(numbers)
    for step in steps:
        value = step.apply(value)
    return value


def _expression(draw: random.Random, terms: int) -> Row:
    numbers = [draw.randint(10, 99) for _ in range(terms)]
    signs = [draw.choice("+-") for _ in range(terms - 1)]
    text = str(numbers[0]) + "".join(sign + str(n) for sign, n in zip(signs, numbers[1:], strict=True))
    value = numbers[0] + sum(n if sign == "+" else -n for sign, n in zip(signs, numbers[1:], strict=True))
    case = {"fn_name": "f", "input": [], "output": value}
    return _row(f"{text}=", {"prefix": "def f():\n    return ", "test_cases": [case]}, text, terms)


def _row(prompt: Any, tests: dict[str, Any], text: str, level: int) -> Row:
    return Row(
        prompt=prompt,
        answer=json.dumps(tests),
        verifier=verifier_json("code"),
        problem_id=f"functions/{digest(text):016x}",
        level=str(level),
    )
