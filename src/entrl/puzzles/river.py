"""River crossing: n pairs of actor and agent, a boat of k; no actor may be with another's agent without the own one.

That holds on both banks and in the boat. Solvable: k = 2 for n <= 3, k = 3 for n <= 5, k >= 4 for every n; a boat of
one never brings anybody over for good. Other pairs are refused.

A state is (who is on the far bank, is the boat there), people as bits: actor i is 2i, agent i is 2i + 1. A move is the
bits of those in the boat.

Source:  The Illusion of Thinking; which (n, k) are solvable, and the minima: breadth-first search to n = 6 (tests), and
         for k >= 4 the classical result on jealous couples (Pressman and Singmaster, 1989)
Differs: the source asks for n >= 6 with k = 3, which has no solution. People have first names that vary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import perm
from typing import ClassVar, Self

from entrl.puzzles.naming import PEOPLE, arrangement
from entrl.puzzles.puzzle import FORM, IllegalMove, Puzzle, check_names, check_size

MOST = {1: 0, 2: 3, 3: 5}  # boat -> pairs it can take across; from 4 on any number

State = tuple[int, bool]
Move = int


@dataclass(frozen=True, kw_only=True)
class River(Puzzle):
    name: ClassVar[str] = "river"

    boat: int = 3  # how many it holds
    people: tuple[str, ...] = ()  # actor, agent, actor, agent, ...; empty: the first names of the pool

    def __post_init__(self) -> None:
        check_crossing(self.n, self.boat)
        people = self.people or PEOPLE[: 2 * self.n]
        object.__setattr__(self, "people", check_names(self.name, "people", people, 2 * self.n))

    def start(self) -> State:
        return 0, False

    def solved(self, state: State) -> bool:
        return state[0] == (1 << 2 * self.n) - 1

    def step(self, state: State, move: Move) -> State:
        far, over = state
        here = far if over else far ^ ((1 << 2 * self.n) - 1)
        if move & ~here:
            absent = next(i for i in range(2 * self.n) if move & ~here & (1 << i))
            raise IllegalMove("not_there", f"{self.people[absent]} is not on the boat's bank")
        if move.bit_count() > self.boat:
            raise IllegalMove("capacity", f"{move.bit_count()} people are in a boat for {self.boat}")
        far ^= move
        # In the boat it holds when it holds on both banks: the agent of an actor who sits there beside another's agent
        # was on the bank that they left, for that was safe, and so is not on the one where they arrive.
        if not (is_safe(far, self.n) and is_safe(far ^ ((1 << 2 * self.n) - 1), self.n)):
            raise IllegalMove("unsafe", "an actor is with another's agent and without the own one")
        return far, not over

    def moves(self, state: State) -> Iterator[Move]:
        far, over = state
        here = [1 << i for i in range(2 * self.n) if bool(far & (1 << i)) == over]
        for number in range(1, self.boat + 1):
            yield from map(sum, combinations(here, number))

    def read(self, items: Sequence[str]) -> Move:
        move = 0
        for item in items:
            if item not in self.people:
                raise IllegalMove("unknown", f"{item!r} is none of {', '.join(self.people)}")
            bit = 1 << self.people.index(item)
            if move & bit:
                raise IllegalMove("repeated", f"{item} is in the boat twice")
            move |= bit
        return move

    def write(self, move: Move) -> list[str]:
        return [name for i, name in enumerate(self.people) if move & (1 << i)]

    def prompt(self) -> str:
        pairs = "; ".join(f"{self.people[i]} (agent: {self.people[i + 1]})" for i in range(0, 2 * self.n, 2))
        actors = f"{self.n} actors and their agents stand" if self.n > 1 else "An actor and an agent stand"
        return (
            f"{actors} on the left bank of a river: {pairs}. All of them want to get to the right bank. There is one "
            f"boat, on the left bank; it holds at most {self.boat} people and needs at least one to row it.\n"
            "- No actor may be together with the agent of another actor unless the own agent is there too. This "
            "holds on the left bank, on the right bank and in the boat.\n\n"
            f"{FORM}. A move names who is in the boat, such as [{self.people[0]}, {self.people[1]}]; the first goes to "
            "the right, the next back to the left, and so on."
        )

    def line(self) -> str:
        pairs = (f"{self.people[i]}/{self.people[i + 1]}" for i in range(0, 2 * self.n, 2))
        return f"{self.boat},{','.join(pairs)}:"

    def plain(self) -> Self:
        return type(self)(n=self.n, boat=self.boat)

    @classmethod
    def count(cls, n: int, *, boat: int = 3) -> int:
        check_crossing(n, boat)
        return perm(len(PEOPLE), 2 * n)

    @classmethod
    def instance(cls, index: int, n: int, *, boat: int = 3) -> Self:
        return cls(n=n, boat=boat, people=arrangement(index, PEOPLE, 2 * n))


def is_safe(group: int, n: int) -> bool:
    """No actor of the group (bits as above) is with another's agent and without the own one."""
    every_actor = (1 << 2 * n) // 3  # 0b...010101
    actors, agents = group & every_actor, group >> 1 & every_actor
    return not agents or not actors & ~agents


def check_crossing(n: int, boat: int) -> None:
    check_size("river", n, most=len(PEOPLE) // 2)
    if not isinstance(boat, int) or isinstance(boat, bool) or boat < 1:
        raise ValueError(f"river: boat must be a whole number from 1 on, got {boat!r}")
    if n > MOST.get(boat, n):
        raise ValueError(
            f"river: n = {n} pairs cannot cross in a boat of {boat}: a boat of 2 takes at most 3 pairs across, a boat "
            "of 3 at most 5, a boat of 1 none, a boat of 4 any number; take a larger boat or a smaller n"
        )
