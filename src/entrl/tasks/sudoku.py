"""Sudoku of 4 x 4 or 9 x 9, asked in a line: `1_3_/__1_/_1_3/3_2_:` wants the rows with every cell filled.

The problems are those of reasoning-gym's `mini_sudoku` and `sudoku`, each with one solution, the row's `answer`. Judged
is whether the text fills the puzzle by the rules (`entrl.verify.sudoku`). The level is the number of empty cells.
"""

from typing import Any

from entrl.tasks.reasoning_gym_rows import distinct_items
from entrl.tasks.rows import Mode, Row, digest, short_prompt, verifier_json
from entrl.verify.sudoku import SIDES

DATASETS = {4: "mini_sudoku", 9: "sudoku"}
EMPTY = {4: (8, 12), 9: (30, 50)}  # cells, where nobody says; reasoning-gym's own


def sudoku_rows(
    *,
    split: str,
    size: int,
    seed: int,
    side: int = 4,
    min_empty: int | None = None,
    max_empty: int | None = None,
    system: str = "",
    mode: Mode = "auto",
) -> list[Row]:
    """Rows of boards with `side` rows. A board may keep a cell more than asked, where it would have two solutions.

    system: "" asks in plain strings; else chat messages, this one first. mode: `fast` ends the prompt with
    `<think></think>`, `slow` with `<think>`, `auto` with neither. ValueError for another side.
    """
    if side not in SIDES:
        raise ValueError(f"side must be 4 or 9, got {side}")
    low, high = EMPTY[side]
    config = {
        "min_empty": low if min_empty is None else min_empty,
        "max_empty": high if max_empty is None else max_empty,
    }
    items = distinct_items(DATASETS[side], config, split=split, size=size, seed=seed, key=problem_key)
    return [_row(item, system, mode) for item, _ in items]


def problem_key(item: dict[str, Any]) -> str:
    """The text whose hash decides the side of the split."""
    return f"sudoku/{_line(item['metadata']['puzzle'])}"


def _row(item: dict[str, Any], system: str, mode: Mode) -> Row:
    puzzle = item["metadata"]["puzzle"]
    return Row(
        prompt=short_prompt(f"{_line(puzzle)}:", system=system, mode=mode),
        answer=_line(item["metadata"]["solution"]),
        verifier=verifier_json("sudoku", puzzle=puzzle),
        problem_id=f"sudoku/{digest(problem_key(item)):016x}",
        level=str(sum(digit == 0 for row in puzzle for digit in row)),
    )


def _line(board: list[list[int]]) -> str:
    return "/".join("".join(str(digit or "_") for digit in row) for row in board)
