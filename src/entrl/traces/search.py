"""Depth-first search, and the walk that does a trace again.

Source:  depth-first search as stream-of-search traces it (src/countdown_dfs.py), in our grammar (`entrl.traces.steps`)
Differs: `width` best moves are tried at a node in place of those under a threshold of the heuristic
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from entrl.traces.game import Game, Move, State
from entrl.traces.steps import CLOSE, Step, TraceError

SOLVE_BUDGET = 20_000  # nodes; a few seconds


class Found(NamedTuple):
    """A search: its steps, costs included, and the path to the solution; None where it ended without."""

    steps: list[Step]
    path: list[Move] | None


@dataclass
class _Search:
    game: Game
    order: str
    width: int | None
    budget: int
    rng: random.Random
    failed: set[State] | None  # states that are not entered again; None: every one is, as a trace has to

    def __post_init__(self) -> None:
        self.steps: list[Step] = []
        self.path: list[Move] = []
        self.created = 0

    def run(self, state: State) -> bool:
        """Whether the goal lies below a state; stops, as if it did not, where the budget is spent."""
        if self.game.solved(state):
            return True
        for move in self.game.moves(state, self.order, self.rng)[: self.width]:
            after = self.game.after(state, move)
            if self.failed is not None and after in self.failed:
                continue
            if self.created == self.budget:
                return False
            self.created += 1
            self.steps += _created(self.game, after, move, self.order)
            self.path.append(move)
            if self.run(after):
                return True
            if self.created == self.budget:
                return False
            self.path.pop()
            self.steps.append(CLOSE)
        if self.failed is not None:
            self.failed.add(state)
        return False


def search(game: Game, *, order: str, width: int | None, budget: int, rng: random.Random) -> Found:
    """Depth first until the goal, the end of the tree, or `budget` steps; then the last ones stay open."""
    one = _Search(game, order, width, budget, rng, None)
    solved = one.run(game.start)
    return Found(one.steps, one.path if solved else None)


def solve(game: Game, *, order: str, rng: random.Random) -> list[Move] | None:
    """The path which a complete search finds first; None where there is none within SOLVE_BUDGET nodes."""
    one = _Search(game, order, None, SOLVE_BUDGET, rng, set())
    return one.path if one.run(game.start) else None


def _created(game: Game, after: State, move: Move, order: str) -> list[Step]:
    return [Step("create", game.write(move)), Step("cost", str(game.cost(after, order)))]


def path_steps(game: Game, state: State, path: Sequence[Move], order: str) -> list[Step]:
    """The steps of a path from a state, none taken back."""
    steps: list[Step] = []
    for move in path:
        state = game.after(state, move)
        steps += _created(game, state, move, order)
    return steps


# --- a trace done again -------------------------------------------------------------------------------------------


class Walk(NamedTuple):
    """What a trace did."""

    path: list[Move]  # the steps that were not taken back
    solved: bool
    nodes: int  # steps, all of them
    backtracks: int
    wrong_branches: list[tuple[int, str]]  # taken back, straight off the path: at which depth, and their first step


def walk(game: Game, steps: Sequence[Step], *, strict: bool = True) -> Walk:
    """Do every step on the board.

    TraceError names the first one that cannot be done: operands that are not there, a cell that is full, more taken
    back than stands, a step after the goal; and (strict) a wrong result or a digit against the rules.
    """
    states: list[State] = [game.start]
    path: list[Move] = []
    off: list[list[tuple[int, str]]] = [[]]  # per open node the branches below it that were taken back
    nodes = backtracks = 0
    for number, step in enumerate(steps):
        if step.kind == "create":
            move = _checked(game, states[-1], step, number, strict)
            path.append(move)
            states.append(game.after(states[-1], move))
            off.append([])
            nodes += 1
        elif step.kind == "close":
            if not path:
                raise TraceError(f"step {number} takes a step back, and none stands")
            states.pop()
            off.pop()
            off[-1].append((len(path) - 1, game.write(path.pop())))
            backtracks += 1
    wrong = [branch for branches in off for branch in branches]
    return Walk(path, game.solved(states[-1]), nodes, backtracks, wrong)


def _checked(game: Game, state: State, step: Step, number: int, strict: bool) -> Move:
    if game.solved(state):
        raise TraceError(f"step {number}, {step.text}, comes after the goal")
    try:
        move = game.read(step.text)
        game.after(state, move)
    except TraceError as error:
        raise TraceError(f"step {number}: {error}") from None
    if strict and (wrong := game.wrong(state, move)):
        raise TraceError(f"step {number}: {wrong}")
    return move


def skip_branches(steps: Sequence[Step], share: float, rng: random.Random) -> list[Step]:
    """The trace without failed branches, each left out whole with probability `share`; what stays is a trace still."""
    ends = _ends(steps)
    kept: list[Step] = []
    i = 0
    while i < len(steps):
        if i in ends and rng.random() < share:
            i = ends[i]
            continue
        kept.append(steps[i])
        i += 1
    return kept


def _ends(steps: Sequence[Step]) -> dict[int, int]:
    """Place of each create that is taken back -> the place behind its close."""
    found, open_at = {}, []
    for i, step in enumerate(steps):
        if step.kind == "create":
            open_at.append(i)
        elif step.kind == "close":
            found[open_at.pop()] = i + 1
    return found
