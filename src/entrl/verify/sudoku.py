"""Sudoku: does this text fill the puzzle by the rules?

    right(text) = every given stays, and every row, column and box holds 1 to n once      (n = 4 or 9)

Rows stand behind each other with a new line or `/` between them, digits with nothing or one space. A puzzle with
several solutions has several right answers; those of reasoning-gym have one.
"""

import math
import re
from collections.abc import Sequence

Grid = Sequence[Sequence[int]]  # (n, n); 0: empty

SIDES = (4, 9)


def read_grid(text: str, side: int) -> list[list[int]] | None:
    """The digits of a full grid; None for a text that is not exactly that. Spaces around a row do not count."""
    if len(text) > 4 * side * side:
        return None
    lines = [line.strip(" ") for line in re.split(r"[/\n]", text.strip())]
    row = re.compile(f"[1-{side}](?: ?[1-{side}]){{{side - 1}}}")
    if len(lines) != side or not all(row.fullmatch(line) for line in lines):
        return None
    return [[int(digit) for digit in line.replace(" ", "")] for line in lines]


def fills_puzzle(text: str, puzzle: Grid) -> bool:
    """Whether a text is a solution of the puzzle."""
    side = len(puzzle)
    grid = read_grid(text, side)
    if grid is None:
        return False
    pairs = [pair for rows in zip(puzzle, grid, strict=True) for pair in zip(*rows, strict=True)]
    return all(given in (0, found) for given, found in pairs) and all(len(set(group)) == side for group in groups(grid))


def groups(grid: Grid) -> list[list[int]]:
    """Rows, columns and boxes, 3n lists of n."""
    side, box = len(grid), math.isqrt(len(grid))
    boxes = [
        [grid[top + i][left + j] for i in range(box) for j in range(box)]
        for top in range(0, side, box)
        for left in range(0, side, box)
    ]
    return [*map(list, grid), *map(list, zip(*grid, strict=True)), *boxes]


def check_puzzle(puzzle: Grid) -> None:
    """ValueError for what is no puzzle of 4 x 4 or 9 x 9."""
    side = len(puzzle) if isinstance(puzzle, list | tuple) else 0
    rows = puzzle if side in SIDES else ()
    square = bool(rows) and all(isinstance(row, list | tuple) and len(row) == side for row in rows)
    if not square or not all(type(digit) is int and 0 <= digit <= side for row in rows for digit in row):
        raise ValueError(f"a Sudoku is 4 or 9 rows of as many digits, 0 for an empty cell, got {puzzle!r:.200}")
