"""Shortest plans, by breadth-first search over the states of a puzzle."""

import functools
import random
from collections import deque
from typing import Any

from entrl.puzzles.puzzle import IllegalMove, Puzzle

STATES = 60_000  # that a search may see: hanoi to n = 10, about a second, our choice


def shortest_plan(puzzle: Puzzle, *, states: int = STATES) -> list[list[str]]:
    """The moves of one shortest plan, by name. Raises ValueError where it is not found among `states` states."""
    return [puzzle.write(move) for move in _search(puzzle.plain(), states)]


def slipped_plan(puzzle: Puzzle, slip: float, rng: random.Random) -> list[list[str]]:
    """A shortest plan in which each move is, with probability `slip`, another legal one of its state.

    What follows a slip is written as if it had not happened: as a rule it is not legal any more, or leads elsewhere.
    """
    state, moves = puzzle.start(), []
    for move in _search(puzzle.plain(), STATES):
        others = [other for other in puzzle.moves(state) if other != move and _legal(puzzle, state, other)]
        moves.append(rng.choice(others) if others and rng.random() < slip else move)
        state = puzzle.step(state, move)
    return [puzzle.write(move) for move in moves]


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
            if (reached := _legal(puzzle, state, move)) is not None and reached not in came:
                came[reached] = state, move
                queue.append(reached)
        if len(came) > states:
            raise ValueError(
                f"{puzzle.name} with n = {puzzle.n}: no plan found among {states:,} states; answers are judged without "
                "one. Raise `states`, or take a smaller n"
            )
    raise ValueError(f"{puzzle.name} with n = {puzzle.n} has no plan")


def _legal(puzzle: Puzzle, state: Any, move: Any) -> Any:
    """The state after a move; None where the rules forbid it."""
    try:
        return puzzle.step(state, move)
    except IllegalMove:
        return None


def _back(came: dict[Any, tuple[Any, Any]], state: Any) -> tuple[Any, ...]:
    moves = []
    while came[state][0] is not None:
        state, move = came[state]
        moves.append(move)
    return tuple(reversed(moves))
