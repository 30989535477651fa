"""Countdown as a game: take two numbers, put one back, until the target is the only one left.

Numbers stay whole and are not negative, as in stream-of-search: a + b, a * b, a - b and a / b for a >= b, the last
where nothing remains. No solution of reasoning-gym's needs more: it is a chain of operations, and with the absolute
value carried in place of a negative one it arrives at the same target.

Orders: `distance` by the mean |n - target| of the numbers left, `factors` by the summed distance of each number to the
nearest divisor of the target (from 2 on), both lowest first; `given` as they come, `random` shuffled.

Source:  stream-of-search, src/countdown_dfs.py and countdown_utils.py: operations and both heuristics
Differs: a number is not put back twice: of several moves to the same state the first is tried
"""

import functools
import itertools
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

from entrl.traces.steps import TraceError

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}
SLIPS = (-10, -2, -1, 1, 2, 10)  # what a wrong result is off by: a digit or a carry
NUMBER = "(0|[1-9][0-9]{0,17})"  # a model may have written it, and int() takes no number of any length
MOVE = re.compile(rf"{NUMBER}([-+*/]){NUMBER}={NUMBER}")

Numbers = tuple[int, ...]  # descending


class Move(NamedTuple):
    """`left op right = result`, with left >= right."""

    left: int
    op: str
    right: int
    result: int


@dataclass(frozen=True)
class Countdown:
    """Make the target of all the numbers."""

    numbers: Numbers
    target: int

    ORDERS: ClassVar[tuple[str, ...]] = ("distance", "factors", "given", "random")

    @property
    def start(self) -> Numbers:
        return tuple(sorted(self.numbers, reverse=True))

    def moves(self, state: Numbers, order: str, rng: random.Random) -> Sequence[Move]:
        found: dict[Numbers, Move] = {}
        for move in self.possible(state):
            found.setdefault(self.after(state, move), move)
        if order == "random":
            return rng.sample(list(found.values()), len(found))
        if order == "given":
            return list(found.values())
        return [found[after] for after in sorted(found, key=lambda after: self.cost(after, order))]

    def possible(self, state: Numbers) -> list[Move]:
        """Every operation on two numbers of a state, with its result."""
        found = []
        for i, j in itertools.combinations(range(len(state)), 2):
            a, b = state[i], state[j]
            ops = "+*-" if b and a % b else "+*-/" if b else "+*"
            found += [Move(a, op, b, OPERATIONS[op](a, b)) for op in ops]
        return found

    def after(self, state: Numbers, move: Move) -> Numbers:
        rest = list(state)
        for number in (move.left, move.right):
            if number not in rest:
                raise TraceError(f"{self.write(move)} takes {number}, and {list(state)} is what is left")
            rest.remove(number)
        return tuple(sorted([*rest, move.result], reverse=True))

    def wrong(self, state: Numbers, move: Move) -> str | None:
        a, op, b, result = move
        if op == "/" and (b == 0 or a % b):
            return f"{a}/{b} is no whole number"
        right = OPERATIONS[op](a, b)
        return None if right == result else f"{a}{op}{b} is {right}, not {result}"

    def solved(self, state: Numbers) -> bool:
        return state == (self.target,)

    def cost(self, state: Numbers, order: str) -> int:
        if order == "factors":
            return sum(min(abs(n - divisor) for divisor in _divisors(self.target)) for n in state)
        return sum(abs(n - self.target) for n in state) // len(state)

    def write(self, move: Move) -> str:
        return f"{move.left}{move.op}{move.right}={move.result}"

    def read(self, text: str) -> Move:
        found = MOVE.fullmatch(text)
        if found is None:
            raise TraceError(f"{text!r} is no step of Countdown, expected such as 7+5=12")
        return Move(int(found[1]), found[2], int(found[3]), int(found[4]))

    def answer(self, path: Sequence[Move], style: str) -> str:
        """The path as one expression; the same in both styles."""
        pool = [_Part(number, str(number), "") for number in self.start]
        for move in path:
            left, right = _taken(pool, move.left), _taken(pool, move.right)
            pool.append(_Part(move.result, _joined(left, move.op, right), move.op))
        return pool[-1].text

    def otherwise(self, number: int, rng: random.Random) -> int:
        return rng.choice([number + slip for slip in SLIPS if number + slip >= 0])


class Claimed(int):
    """A number of a faulty run: what it says, and the value that its operations really have (None: divided by 0)."""

    truth: Fraction | None

    def __new__(cls, says: int, truth: Fraction | None) -> "Claimed":
        made = super().__new__(cls, says)
        made.truth = truth
        return made


@dataclass(frozen=True)
class FaultyCountdown(Countdown):
    """The same on a machine whose results come out otherwise with probability `intensity`, always the same ones."""

    intensity: float
    seed: str

    def after(self, state: Numbers, move: Move) -> Numbers:
        rest = list(state)
        for number in (move.left, move.right):
            rest.pop(next(i for i, one in enumerate(rest) if _same(one, number)))
        return tuple(sorted([*rest, move.result], reverse=True))

    def possible(self, state: Numbers) -> list[Move]:
        return [move._replace(result=self._result(state, move)) for move in super().possible(state)]

    def _result(self, state: Numbers, move: Move) -> Claimed:
        rng = random.Random(f"{self.seed}/{state}/{self.write(move)}")
        truth = _true_result(move)
        if rng.random() >= self.intensity:
            return Claimed(move.result, truth)
        others = [move.result + slip for slip in SLIPS if move.result + slip >= 0]
        return Claimed(rng.choice([other for other in others if other != truth]), truth)


def _true_result(move: Move) -> Fraction | None:
    a, b = _truth(move.left), _truth(move.right)
    if a is None or b is None or (move.op == "/" and b == 0):
        return None
    exact = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    return exact[move.op](Fraction(a), Fraction(b))


def _truth(number: int) -> Fraction | int | None:
    return number.truth if isinstance(number, Claimed) else number


def _same(one: int, other: int) -> bool:
    """Of equal numbers of a faulty run one may be wrong, and the expression has to take the one that was meant."""
    return one == other and _truth(one) == _truth(other)


class _Part(NamedTuple):
    number: int
    text: str
    op: str  # the last operation of the text; "" for a number


def _taken(pool: list[_Part], number: int) -> _Part:
    for i, part in enumerate(pool):
        if _same(part.number, number):
            return pool.pop(i)
    raise TraceError(f"the path takes {number}, which is not there")


def _joined(left: _Part, op: str, right: _Part) -> str:
    """With the parentheses that are needed, and no others."""
    first = f"({left.text})" if op in "*/" and left.op in ("+", "-") else left.text
    inner = {"+": (), "-": ("+", "-"), "*": ("+", "-"), "/": ("+", "-", "*", "/")}[op]
    second = f"({right.text})" if right.op in inner else right.text
    return f"{first}{op}{second}"


@functools.lru_cache(maxsize=1024)
def _divisors(target: int) -> tuple[int, ...]:
    return tuple(d for d in range(2, target + 1) if target % d == 0) or (1,)
