"""Sudoku as a game: set a digit into an empty cell, until all are full.

A node is a board with the cell that comes next; its moves are the digits which the row, the column and the box of that
cell leave. Orders: `first` takes the first empty cell, row by row, `fewest` the one with the fewest such digits (of
several the first), both with small digits first; `random` is `first` with the digits shuffled. With `fewest` the boards
of reasoning-gym hardly ever branch: some cell has one digit left.
"""

import functools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from entrl.traces.steps import TraceError

COLUMNS = "abcdefghi"
MOVE = re.compile(r"([a-i])([1-9])=([1-9])", re.ASCII)

Board = tuple[int, ...]  # (n * n,) row by row; 0: empty


class Move(NamedTuple):
    """A digit for a cell, which is counted from 0, row by row."""

    cell: int
    digit: int


@functools.cache
def peers(side: int) -> tuple[tuple[int, ...], ...]:
    """For each cell the others of its row, column and box."""
    box = math.isqrt(side)

    def together(a: int, b: int) -> bool:
        (i, j), (k, m) = divmod(a, side), divmod(b, side)
        return a != b and (i == k or j == m or (i // box == k // box and j // box == m // box))

    cells = range(side * side)
    return tuple(tuple(b for b in cells if together(a, b)) for a in cells)


@dataclass(frozen=True)
class Sudoku:
    """Fill the board."""

    start: Board
    side: int

    ORDERS: ClassVar[tuple[str, ...]] = ("first", "fewest", "random")

    def moves(self, state: Board, order: str, rng: random.Random) -> Sequence[Move]:
        empty = [cell for cell, digit in enumerate(state) if not digit]
        if not empty:
            return []
        cell = min(empty, key=lambda one: len(self.candidates(state, one))) if order == "fewest" else empty[0]
        found = self.possible(state, cell)
        return rng.sample(found, len(found)) if order == "random" else found

    def possible(self, state: Board, cell: int) -> list[Move]:
        """A move for every digit that a cell can have."""
        return [Move(cell, digit) for digit in self.candidates(state, cell)]

    def candidates(self, state: Board, cell: int) -> list[int]:
        """The digits that its row, column and box leave to a cell."""
        taken = {state[peer] for peer in peers(self.side)[cell]}
        return [digit for digit in range(1, self.side + 1) if digit not in taken]

    def after(self, state: Board, move: Move) -> Board:
        if state[move.cell]:
            raise TraceError(f"{self.write(move)} sets a cell that holds {state[move.cell]}")
        return (*state[: move.cell], move.digit, *state[move.cell + 1 :])

    def wrong(self, state: Board, move: Move) -> str | None:
        taken = any(state[peer] == move.digit for peer in peers(self.side)[move.cell])
        return f"{self.write(move)}: its row, column or box has a {move.digit}" if taken else None

    def solved(self, state: Board) -> bool:
        return all(state)

    def cost(self, state: Board, order: str) -> int:
        """Digits left to the empty cell that has the fewest; 0 on a full board and at a dead end."""
        return min((len(self.candidates(state, cell)) for cell, digit in enumerate(state) if not digit), default=0)

    def write(self, move: Move) -> str:
        row, column = divmod(move.cell, self.side)
        return f"{COLUMNS[column]}{row + 1}={move.digit}"

    def read(self, text: str) -> Move:
        found = MOVE.fullmatch(text)
        column, row, digit = (COLUMNS.index(found[1]), int(found[2]) - 1, int(found[3])) if found else (9, 9, 9)
        if found is None or max(column + 1, row + 1, digit) > self.side:
            raise TraceError(f"{text!r} is no step of a Sudoku of {self.side} x {self.side}, expected such as b3=4")
        return Move(row * self.side + column, digit)

    def answer(self, path: Sequence[Move], style: str) -> str:
        """The board at the end: `1234/3412/...`, or as reasoning-gym asks for it, with spaces and new lines."""
        board = list(self.start)
        for cell, digit in path:
            board[cell] = digit
        return written(board, self.side, style=style)

    def otherwise(self, number: int, rng: random.Random) -> int:
        return rng.choice([other for other in range(1, self.side + 1) if other != number])


def written(board: Sequence[int], side: int, *, style: str = "short") -> str:
    """A board in a line, or in reasoning-gym's rows; `_` for an empty cell."""
    rows = [["_" if not digit else str(digit) for digit in board[i : i + side]] for i in range(0, side * side, side)]
    return "\n".join(" ".join(row) for row in rows) if style == "gym" else "/".join("".join(row) for row in rows)


@dataclass(frozen=True)
class FaultySudoku(Sudoku):
    """The same with a hand that sets another digit with probability `intensity`, at the same place always the same.

    A digit that is touched is never that of `solution`; where the cell has another candidate it is one of these.
    """

    solution: Board
    intensity: float
    seed: str

    def possible(self, state: Board, cell: int) -> list[Move]:
        return list(dict.fromkeys(self._set(state, move) for move in super().possible(state, cell)))

    def _set(self, state: Board, move: Move) -> Move:
        rng = random.Random(f"{self.seed}/{state}/{self.write(move)}")
        if rng.random() >= self.intensity:
            return move
        wrong = [d for d in range(1, self.side + 1) if d not in (move.digit, self.solution[move.cell])]
        near = [digit for digit in wrong if digit in self.candidates(state, move.cell)]
        return move._replace(digit=rng.choice(near or wrong))
