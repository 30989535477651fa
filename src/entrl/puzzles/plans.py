"""Shortest plans, by breadth-first search over the states of a puzzle."""

import functools
from collections import deque
from typing import Any

from entrl.puzzles.puzzle import IllegalMove, Puzzle

STATES = 60_000  # that a search may see: hanoi to n = 10, about a second, our choice


def shortest_plan(puzzle: Puzzle, *, states: int = STATES) -> list[list[str]]:
    """The moves of one shortest plan, by name. Raises ValueError where it is not found among `states` states."""
    return [puzzle.write(move) for move in _search(puzzle.plain(), states)]


def plan_text(plan: list[list[str]]) -> str:
    """A plan as an answer gives it."""
    return f"moves = [{', '.join('[' + ', '.join(move) + ']' for move in plan)}]"


def plan_line(plan: list[list[str]]) -> str:
    """The same without what a reader needs and a judge does not: the answer to a puzzle asked in a line."""
    return plan_text(plan).removeprefix("moves = ").replace(" ", "")


@functools.lru_cache(maxsize=64)
def _search(puzzle: Puzzle, states: int) -> tuple[Any, ...]:
    start = puzzle.start()
    came: dict[Any, tuple[Any, Any]] = {start: (None, None)}  # state -> (the one before, the move)
    queue = deque([start])
    while queue:
        state = queue.popleft()
        if puzzle.solved(state):
            return _back(came, state)
        for move in puzzle.moves(state):
            try:
                reached = puzzle.step(state, move)
            except IllegalMove:
                continue
            if reached not in came:
                came[reached] = state, move
                queue.append(reached)
        if len(came) > states:
            raise ValueError(
                f"{puzzle.name} with n = {puzzle.n}: no plan found among {states:,} states; answers are judged without "
                "one. Raise `states`, or take a smaller n"
            )
    raise ValueError(f"{puzzle.name} with n = {puzzle.n} has no plan")


def _back(came: dict[Any, tuple[Any, Any]], state: Any) -> tuple[Any, ...]:
    moves = []
    while came[state][0] is not None:
        state, move = came[state]
        moves.append(move)
    return tuple(reversed(moves))
