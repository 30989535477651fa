"""What a trace is made of, and how it is written.

    text   = create [ "~" cost ] { "<" }  { "," the same }
    create   a step of the game, `7+5=12` or `b3=4`; the new state lies one deeper
    cost     how far that state is from the goal, a whole number
    close    the last step that still stands is taken back: one backtrack

A depth-first search writes each step once and takes back every failed one, so the steps that are never taken back are
the solution.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Kind = Literal["create", "cost", "close"]
BETWEEN, COST, BACK = ",", "~", "<"
ITEM = re.compile(r"([^,~<]+)(?:~([0-9]+))?(<*)")


class TraceError(ValueError):
    """A text that is no trace, or a trace with a step that its board does not allow."""


class Step(NamedTuple):
    """One typed step."""

    kind: Kind
    text: str = ""  # of a create the step, of a cost the number


CLOSE = Step("close")


def write(steps: Iterable[Step]) -> str:
    """The text of a trace; what `read` reads."""
    parts: list[str] = []
    for step in steps:
        mark = {"create": BETWEEN if parts else "", "cost": COST, "close": BACK}[step.kind]
        parts.append(mark + step.text)
    return "".join(parts)


def read(text: str) -> list[Step]:
    """The steps of a text; [] for none. TraceError names the part that is no step."""
    steps: list[Step] = []
    for number, item in enumerate(text.split(BETWEEN) if text else ()):
        found = ITEM.fullmatch(item)
        if found is None:
            raise TraceError(f"step {number} of the trace is {item!r}, expected such as 7+5=12, 7+5=12~3 or 7+5=12<")
        create, cost, back = found.groups()
        steps += [Step("create", create), *([Step("cost", cost)] if cost else []), *[CLOSE] * len(back)]
    return steps
