"""Blocks world: two stacks in alphabetical order become one that takes from their tops in turn; only tops move.

The first stack holds the blocks up to the middle (the larger half), the second the others, both from the bottom up;
the third is empty. The goal, from the bottom: the tops in turn, beginning with the second stack; for odd n the lowest
block of the first is left over and lies on top. Its place is `goal`, is printed, and decides how many moves it takes:

    empty     n                          the third place
    second    1, 2, 6, 7, 10, 11         n = 2..7
    first     3, 6, 7, 10, 11, 14

A state is three tuples of blocks, bottom first. A move is (block, from, to).

Source:  The Illusion of Thinking; minima by breadth-first search (tests), layout compared with an independent
         re-implementation (11inaki11/Rethinking-The-Illusion-of-Thinking)
Differs: labels of blocks and numbers of stacks vary, so that a size has more than one instance
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb, perm
from typing import ClassVar, Literal, Self, get_args

from entrl.puzzles.naming import DIGITS, LETTERS, arrangement, combination
from entrl.puzzles.puzzle import FORM, IllegalMove, Puzzle, check_names, check_size, named, places

Goal = Literal["empty", "first", "second"]
PLACE = {"first": 0, "second": 1, "empty": 2}
PAIRS = tuple(a + b for a in LETTERS for b in LETTERS)

State = tuple[tuple[int, ...], ...]
Move = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Blocks(Puzzle):
    name: ClassVar[str] = "blocks"

    goal: Goal = "empty"  # where the goal stack stands
    labels: tuple[str, ...] = ()  # in alphabetical order; empty: the first of the pool
    stacks: tuple[str, ...] = ("1", "2", "3")  # numbers of the first, the second and the empty stack

    def __post_init__(self) -> None:
        check_blocks(self.n, self.goal)
        labels = check_names(self.name, "labels", self.labels or pool(self.n)[: self.n], self.n)
        if sorted(labels) != list(labels):
            raise ValueError(f"blocks: labels must be in alphabetical order, got {labels}")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "stacks", check_names(self.name, "stacks", self.stacks, 3))

    def start(self) -> State:
        half = (self.n + 1) // 2
        return tuple(range(half)), tuple(range(half, self.n)), ()

    @cached_property
    def target(self) -> State:
        """The goal: popped from the two stacks in turn."""
        stacks = [list(stack) for stack in self.start()[:2]]
        order = [(stacks[(i + 1) % 2] or stacks[0]).pop() for i in range(self.n)]
        return tuple(tuple(order) if place == PLACE[self.goal] else () for place in range(3))

    def solved(self, state: State) -> bool:
        return state == self.target

    def step(self, state: State, move: Move) -> State:
        block, source, target = move
        if state[source][-1:] != (block,):
            raise IllegalMove("not_on_top", f"{self.labels[block]} is not on top of stack {self.stacks[source]}")
        if source == target:
            raise IllegalMove("same_place", f"{self.labels[block]} would stay where it is")
        stacks = list(state)
        stacks[source] = state[source][:-1]
        stacks[target] = (*state[target], block)
        return tuple(stacks)

    def moves(self, state: State) -> Iterator[Move]:
        for source, stack in enumerate(state):
            yield from ((stack[-1], source, target) for target in range(3) if stack and target != source)

    @cached_property
    def known(self) -> list[dict[str, int]]:
        stacks = places(self.stacks)
        return [places(self.labels), stacks, stacks]

    def read(self, items: Sequence[str]) -> Move:
        block, source, target = named(items, self.known)
        return block, source, target

    def write(self, move: Move) -> list[str]:
        return [self.labels[move[0]], self.stacks[move[1]], self.stacks[move[2]]]

    def prompt(self) -> str:
        def shown(state: State) -> str:
            rows = sorted(zip(self.stacks, state, strict=True))
            return "; ".join(f"stack {name}: {' '.join(self.labels[b] for b in s) or 'empty'}" for name, s in rows)

        top, place = self.start()[0][-1], self.stacks[PLACE[self.goal]]
        return (
            f"Blocks lie in three stacks, listed from the bottom to the top.\nStart: {shown(self.start())}\n"
            f"Goal: {shown(self.target)}\nThe goal stack stands on stack {place}.\n"
            "- A move takes the top block of one stack and puts it on top of another stack, which may be empty.\n\n"
            f"{FORM}, where [{self.labels[top]}, {self.stacks[0]}, {self.stacks[2]}] stands for: block "
            f"{self.labels[top]} goes from stack {self.stacks[0]} to stack {self.stacks[2]}."
        )

    def line(self) -> str:
        """Labels of one puzzle are equally long, so nothing stands between them."""
        stacks = (
            f"{name}:{''.join(self.labels[b] for b in s)}" for name, s in zip(self.stacks, self.start(), strict=True)
        )
        return f"{','.join(stacks)}>{self.stacks[PLACE[self.goal]]}:"

    def plain(self) -> Self:
        return type(self)(n=self.n, goal=self.goal)

    @classmethod
    def count(cls, n: int, *, goal: Goal = "empty") -> int:
        check_blocks(n, goal)
        return comb(len(pool(n)), n) * perm(len(DIGITS), 3)

    @classmethod
    def instance(cls, index: int, n: int, *, goal: Goal = "empty") -> Self:
        labels, stacks = divmod(index, perm(len(DIGITS), 3))
        return cls(n=n, goal=goal, labels=combination(labels, pool(n), n), stacks=arrangement(stacks, DIGITS, 3))


def pool(n: int) -> tuple[str, ...]:
    return LETTERS if n <= len(LETTERS) else PAIRS


def check_blocks(n: int, goal: str) -> None:
    check_size("blocks", n, least=2, most=len(PAIRS))
    if goal not in get_args(Goal):
        raise ValueError(f"blocks: goal must be one of {', '.join(get_args(Goal))}, got {goal!r}")
