"""Countdown: is this text arithmetic that makes the target from the given numbers?

    right(text) = [ value(text) = target ] * [ numbers written in text = given numbers, each as often ]

What may stand there: digits, `+ - * /`, parentheses, spaces. So every number that counts is a run of digits, and none
can hide as 0x1F, 1e2 or behind a `#`. The value is exact (fractions), and no text is run.

Source:  the rule is that of reasoning-gym 0.1.25, games/countdown.py (all numbers, each once)
Differs: reasoning-gym takes whatever sympy evaluates within 1e-5 of the target; here the value is exact
"""

import re
from collections.abc import Sequence

from entrl.verify.gym_expressions import Unreadable, exact

MAX_CHARS = 1000  # characters; fifteen numbers with every operator and parenthesis take about 150
ALLOWED = re.compile(r"[0-9+\-*/() ]+")
PYTHON_ONLY = ("**", "//")


def makes_target(text: str, numbers: Sequence[int], target: int, *, python: bool = False) -> bool:
    """Whether an expression uses each of the numbers exactly once and nothing else, and has the target for value.

    python: its operators `//` and `**` may stand there as well, which reasoning-gym lets pass.
    """
    if len(text) > MAX_CHARS or not ALLOWED.fullmatch(text):
        return False
    if not python and any(operator in text for operator in PYTHON_ONLY):
        return False
    if sorted(int(number) for number in re.findall("[0-9]+", text)) != sorted(numbers):
        return False
    try:
        return exact(text) == target
    except (Unreadable, ZeroDivisionError):
        return False
