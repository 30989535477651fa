"""What the four puzzles have in common: a size, names, states of numbers, moves that are legal or say why not.

    state = puzzle.start();  state = puzzle.step(state, puzzle.read(["1", "A", "C"]));  puzzle.solved(state)

Rules work on numbers; names stand in prompts and answers alone, so that one search serves every instance of a size.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

FORM = "End your answer with the complete list of moves, as moves = [[...], [...], ...]"


class IllegalMove(ValueError):
    """A move that the rules forbid; `error` is its class (docs/puzzles.md)."""

    def __init__(self, error: str, why: str) -> None:
        super().__init__(why)
        self.error = error


@dataclass(frozen=True, kw_only=True)
class Puzzle(ABC):
    """One instance. Raises ValueError for a size without a solution, or names that are none."""

    name: ClassVar[str]

    n: int  # the dial

    @abstractmethod
    def start(self) -> Hashable: ...

    @abstractmethod
    def solved(self, state: Any) -> bool: ...

    @abstractmethod
    def step(self, state: Any, move: Any) -> Hashable:
        """The state after a move. Raises IllegalMove."""

    @abstractmethod
    def moves(self, state: Any) -> Iterator[Any]:
        """Moves worth trying in this state: every legal one, and maybe others."""

    @abstractmethod
    def read(self, items: Sequence[str]) -> Any:
        """A move of numbers, from names as they are written. Raises IllegalMove (`unknown`)."""

    @abstractmethod
    def write(self, move: Any) -> list[str]:
        """The names of a move, as `read` takes them."""

    @abstractmethod
    def prompt(self) -> str:
        """Rules, start, goal and the form of the answer."""

    @abstractmethod
    def line(self) -> str:
        """Start and goal in one line without rules, for character-level models (docs/puzzles.md)."""

    @abstractmethod
    def plain(self) -> Self:
        """The same problem under its default names."""

    @classmethod
    @abstractmethod
    def count(cls, n: int, **options: Any) -> int:
        """How many instances of a size there are. Raises ValueError for a size that has none."""

    @classmethod
    @abstractmethod
    def instance(cls, index: int, n: int, **options: Any) -> Self:
        """The `index`-th of `count`."""

    def spec(self) -> dict[str, Any]:
        """What makes this instance again (`entrl.puzzles.puzzle_of`), as JSON has it."""
        return json.loads(json.dumps({"puzzle": self.name, **asdict(self)}))


def check_size(name: str, n: Any, *, least: int = 1, most: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or not least <= n <= most:
        raise ValueError(f"{name}: n must be a whole number from {least} to {most}, got {n!r}")


def check_names(name: str, what: str, names: Any, number: int) -> tuple[str, ...]:
    """As many different words as needed, as a tuple (JSON has lists)."""
    good = isinstance(names, list | tuple) and len(names) == number == len(set(map(str, names)))
    if not good or not all(isinstance(word, str) and word.isascii() and word.isalnum() for word in names):
        raise ValueError(f"{name}: {what} must be {number} different words of letters and digits, got {names!r}")
    return tuple(names)


def places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def named(items: Sequence[str], known: Sequence[Mapping[str, int]]) -> list[int]:
    """The place of each item among the names it may have. Raises IllegalMove (`unknown`)."""
    if len(items) != len(known):
        raise IllegalMove("unknown", f"a move has {len(known)} items, not {len(items)}")
    try:
        return [names[item] for item, names in zip(items, known, strict=True)]
    except KeyError as error:
        raise IllegalMove("unknown", f"the puzzle has no {error} in this place") from error
