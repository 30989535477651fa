"""Tower of Hanoi: n disks, three pegs, never a larger disk on a smaller one. Minimum 2^n - 1 moves.

A state is the peg of every disk, smallest first; pegs are 0 (start), 1 (spare), 2 (goal). A move is (disk, from, to).

Source:  The Illusion of Thinking (puzzle and dial); minimum: classical, recomputed by search in the tests
Differs: pegs have letters that vary, so that a size has more than one instance
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import perm
from typing import ClassVar, Self

from entrl.puzzles.naming import LETTERS, arrangement
from entrl.puzzles.puzzle import FORM, IllegalMove, Puzzle, check_names, check_size, named, places

MOST = 16  # disks: a shortest plan has to fit into what is read of an answer (entrl.verify.judge.MAX_PUZZLE)

State = tuple[int, ...]
Move = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Hanoi(Puzzle):
    name: ClassVar[str] = "hanoi"

    pegs: tuple[str, ...] = ("A", "B", "C")  # start, spare, goal

    def __post_init__(self) -> None:
        check_size(self.name, self.n, most=MOST)
        object.__setattr__(self, "pegs", check_names(self.name, "pegs", self.pegs, 3))

    def start(self) -> State:
        return (0,) * self.n

    def solved(self, state: State) -> bool:
        return state == (2,) * self.n

    def step(self, state: State, move: Move) -> State:
        disk, source, target = move
        if source == target:
            raise IllegalMove("same_place", f"disk {disk + 1} would stay where it is")
        smaller = state[:disk]
        if state[disk] != source or source in smaller:
            raise IllegalMove("not_on_top", f"disk {disk + 1} is not the top disk of peg {self.pegs[source]}")
        if target in smaller:
            raise IllegalMove("larger_on_smaller", f"peg {self.pegs[target]} holds a disk smaller than {disk + 1}")
        return (*smaller, target, *state[disk + 1 :])

    def moves(self, state: State) -> Iterator[Move]:
        for source in range(3):
            if source in state:
                disk = state.index(source)
                yield from ((disk, source, target) for target in range(3) if target not in state[: disk + 1])

    @cached_property
    def known(self) -> list[dict[str, int]]:
        pegs = places(self.pegs)
        return [places([str(i + 1) for i in range(self.n)]), pegs, pegs]

    def read(self, items: Sequence[str]) -> Move:
        disk, source, target = named(items, self.known)
        return disk, source, target

    def write(self, move: Move) -> list[str]:
        return [str(move[0] + 1), self.pegs[move[1]], self.pegs[move[2]]]

    def prompt(self) -> str:
        start, _, goal = self.pegs
        disks = f"{self.n} disks, numbered 1 (the smallest) to {self.n}, lie" if self.n > 1 else "One disk, 1, lies"
        return (
            f"There are three pegs: {', '.join(sorted(self.pegs))}. {disks} on peg {start}, the largest at the bottom. "
            f"Bring all of them to peg {goal}.\n"
            "- A move takes the top disk of one peg and puts it on another peg.\n"
            "- A disk never lies on a smaller one.\n\n"
            f"{FORM}, where [1, {start}, {goal}] stands for: disk 1 goes from peg {start} to peg {goal}."
        )

    def line(self) -> str:
        start, spare, goal = self.pegs
        return f"{self.n},{start}>{goal},{spare}:"

    def plain(self) -> Self:
        return type(self)(n=self.n)

    @classmethod
    def count(cls, n: int) -> int:
        check_size(cls.name, n, most=MOST)
        return perm(len(LETTERS), 3)

    @classmethod
    def instance(cls, index: int, n: int) -> Self:
        return cls(n=n, pegs=arrangement(index, LETTERS, 3))
