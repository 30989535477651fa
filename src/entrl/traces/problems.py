"""The game behind a row of `load_task`, read from its `verifier` column."""

import json
from typing import Any, NamedTuple

from entrl.traces.countdown import Countdown
from entrl.traces.game import Game
from entrl.traces.sudoku import Sudoku

TASKS = {
    "countdown": Countdown,
    "sudoku": Sudoku,
    "reasoning_gym:countdown": Countdown,
    "reasoning_gym:mini_sudoku": Sudoku,
    "reasoning_gym:sudoku": Sudoku,
}


class Problem(NamedTuple):
    game: Game
    style: str  # of the answer, `short` or `gym`, as the prompt asks for it


def problem_of(verifier: str) -> Problem:
    """The problem of one row. ValueError for a row of another task."""
    spec = json.loads(verifier)
    kind, facts, style = spec.get("kind"), spec, "short"
    if kind == "reasoning_gym" and f"reasoning_gym:{spec['dataset']}" in TASKS:
        kind, facts, style = spec["dataset"].removeprefix("mini_"), spec["entry"]["metadata"], "gym"
    if kind == "countdown":
        return Problem(Countdown(tuple(facts["numbers"]), facts["target"]), style)
    if kind == "sudoku":
        return Problem(_sudoku(facts["puzzle"]), style)
    raise ValueError(f"search traces are written for {', '.join(TASKS)}; a row of kind {kind!r} is none of them")


def _sudoku(puzzle: list[list[Any]]) -> Sudoku:
    return Sudoku(tuple(digit for row in puzzle for digit in row), len(puzzle))
