"""What a search needs to know of a game: states, moves between them, and when it is won."""

import random
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Protocol

State = Any  # hashable; two states are the same node where they are equal
Move = Any  # hashable


class Game(Protocol):
    """One problem. States and moves are values, and nothing here remembers anything."""

    ORDERS: ClassVar[tuple[str, ...]]  # what may be tried first; the default stands first

    @property
    def start(self) -> Hashable:
        """The state that is asked about."""
        ...

    def moves(self, state: State, order: str, rng: random.Random) -> Sequence[Move]:
        """What can be done, in the order it is tried; no two lead to the same state."""
        ...

    def after(self, state: State, move: Move) -> State:
        """The state behind a move, whose result is taken as it says. TraceError where it cannot be done at all."""
        ...

    def wrong(self, state: State, move: Move) -> str | None:
        """What is wrong about a move that can be done, such as its arithmetic; None for a right one."""
        ...

    def solved(self, state: State) -> bool:
        """Whether nothing is left to do."""
        ...

    def cost(self, state: State, order: str) -> int:
        """What is written behind `~` for a state."""
        ...

    def write(self, move: Move) -> str:
        """A move as a create step."""
        ...

    def read(self, text: str) -> Move:
        """The move of a create step; TraceError for a text that is none."""
        ...

    def answer(self, path: Sequence[Move], style: str) -> str:
        """What is answered at the end of a path. style: `short` or `gym`, as the question was asked."""
        ...

    def otherwise(self, number: int, rng: random.Random) -> int:
        """Another number in place of one that stands in a step."""
        ...
