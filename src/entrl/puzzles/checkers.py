"""Checker jumping: n checkers of one colour, a gap, n of the other; the colours change sides. Minimum n(n + 2) moves.

A state is a row of 2n + 1 squares: 0 empty, 1 moves right, 2 moves left. A move is (colour 1 or 2, from, to). A checker
steps into the gap beside it, or jumps over exactly one checker of the other colour into it, and never moves backwards.

Source:  The Illusion of Thinking; that nothing moves backwards is recalled, and the minimum follows from it (tested)
Differs: colours and the number of the first square vary, so that a size has more than one instance
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import perm
from typing import ClassVar, Self

from entrl.puzzles.naming import COLOURS, arrangement
from entrl.puzzles.puzzle import FORM, IllegalMove, Puzzle, check_names, check_size, named, places

MOST = 200  # of each colour: a plan has to fit into what is read of an answer (entrl.verify.judge.MAX_PUZZLE)
FIRSTS = 10  # numbers the first square may have: 0 to 9

State = tuple[int, ...]
Move = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Checkers(Puzzle):
    name: ClassVar[str] = "checkers"

    colours: tuple[str, ...] = ("red", "blue")  # of those on the left, on the right
    first: int = 0  # number of the leftmost square

    def __post_init__(self) -> None:
        check_size(self.name, self.n, most=MOST)
        object.__setattr__(self, "colours", check_names(self.name, "colours", self.colours, 2))
        if not isinstance(self.first, int) or isinstance(self.first, bool) or self.first < 0:
            raise ValueError(f"checkers: first must be a whole number from 0 on, got {self.first!r}")

    def start(self) -> State:
        return (*(1,) * self.n, 0, *(2,) * self.n)

    def solved(self, state: State) -> bool:
        return state == (*(2,) * self.n, 0, *(1,) * self.n)

    def step(self, state: State, move: Move) -> State:
        colour, source, target = move
        forward = target - source if colour == 1 else source - target
        if state[source] != colour:
            raise IllegalMove("not_there", f"no {self.colours[colour - 1]} checker is on square {source + self.first}")
        if state[target] != 0:
            raise IllegalMove("occupied", f"square {target + self.first} is not empty")
        if forward < 0:
            raise IllegalMove("backwards", f"{self.colours[colour - 1]} checkers never move back")
        if forward > 2:
            raise IllegalMove("too_far", f"{forward} squares are neither a step nor a jump")
        if forward == 2 and state[(source + target) // 2] != 3 - colour:
            raise IllegalMove("over_own", "a jump goes over a checker of the other colour")
        row = list(state)
        row[source], row[target] = 0, colour
        return tuple(row)

    def moves(self, state: State) -> Iterator[Move]:
        gap = state.index(0)
        for source in range(max(0, gap - 2), min(len(state), gap + 3)):
            forward = gap - source if state[source] == 1 else source - gap
            if state[source] and forward > 0 and (forward == 1 or state[(source + gap) // 2] != state[source]):
                yield state[source], source, gap

    @cached_property
    def known(self) -> list[dict[str, int]]:
        squares = places([str(self.first + i) for i in range(2 * self.n + 1)])
        return [places(self.colours), squares, squares]

    def read(self, items: Sequence[str]) -> Move:
        colour, source, target = named(items, self.known)
        return colour + 1, source, target

    def write(self, move: Move) -> list[str]:
        return [self.colours[move[0] - 1], str(move[1] + self.first), str(move[2] + self.first)]

    def prompt(self) -> str:
        left, right = self.colours
        last = self.first + 2 * self.n
        many = f"{self.n} checkers" if self.n > 1 else "one checker"
        return (
            f"Squares numbered {self.first} to {last} lie in a row. From the left there are {many} in {left}, one "
            f"empty square (number {self.first + self.n}) and {many} in {right}. The two colours are to change sides: "
            f"{right} on the left, {left} on the right, the same square empty.\n"
            "- A checker steps onto the empty square beside it, or jumps over exactly one checker of the other colour "
            "onto the empty square behind that.\n"
            f"- {left} moves to the right only, {right} to the left only.\n\n"
            f"{FORM}, where [{left}, {self.first + self.n - 1}, {self.first + self.n}] stands for: the {left} checker "
            f"on square {self.first + self.n - 1} goes to square {self.first + self.n}."
        )

    def line(self) -> str:
        left, right = self.colours
        return f"{self.n},{left}>{right},{self.first}:"

    def plain(self) -> Self:
        return type(self)(n=self.n)

    @classmethod
    def count(cls, n: int) -> int:
        check_size(cls.name, n, most=MOST)
        return perm(len(COLOURS), 2) * FIRSTS

    @classmethod
    def instance(cls, index: int, n: int) -> Self:
        names, first = divmod(index, FIRSTS)
        return cls(n=n, colours=arrangement(names, COLOURS, 2), first=first)
