"""The way to the solution with k wrong branches, each another one.

A branch leaves the way at one of its nodes by a step that leads to another state, goes on at random until nothing is
left to try, and is taken back step by step. Two branches differ in the node or in their first step.

Source:  "How much backtracking is enough", games/countdown.py and games/sudoku.py: k branches, capped by what exists
Differs: all k are different (there `create_backtrack_trajectory` takes one branch k times); taken back one step at a
         time with `<`, in place of a sentence; of Sudoku any digit the cell could have, not only smaller ones
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from entrl.traces.game import Game, Move, State
from entrl.traces.search import path_steps
from entrl.traces.steps import CLOSE, Step


class Branch(NamedTuple):
    node: int  # of the way; 0 is the start
    path: list[Move]


def detours(game: Game, path: Sequence[Move], k: int, *, order: str, rng: random.Random) -> list[Step]:
    """The path with k wrong branches, or with all there are (`len(wrong_branches)` of its walk says how many)."""
    states: list[State] = [game.start]
    for move in path:
        states.append(game.after(states[-1], move))
    branches = wrong_branches(game, states, k, order=order, rng=rng)
    steps: list[Step] = []
    for node, move in enumerate(path):
        for branch in branches:
            if branch.node == node:
                steps += path_steps(game, states[node], branch.path, order) + [CLOSE] * len(branch.path)
        steps += path_steps(game, states[node], [move], order)
    return steps


def wrong_branches(game: Game, states: Sequence[State], k: int, *, order: str, rng: random.Random) -> list[Branch]:
    """k branches drawn from all that leave a way, which is given by its states, goal included."""
    starts = [
        (node, move)
        for node, state in enumerate(states[:-1])
        for move in game.moves(state, order, rng)
        if game.after(state, move) != states[node + 1]
    ]
    rng.shuffle(starts)
    found: list[Branch] = []
    for node, move in starts:
        if len(found) == k:
            break
        rest = dead_end(game, game.after(states[node], move), order=order, rng=rng)
        if rest is not None:
            found.append(Branch(node, [move, *rest]))
    return found


def dead_end(game: Game, state: State, *, order: str, rng: random.Random) -> list[Move] | None:
    """Moves drawn at random from a state to one that is not the goal and has none left; None where all reach it."""
    if game.solved(state):
        return None
    moves = list(game.moves(state, order, rng))
    if not moves:
        return []
    rng.shuffle(moves)
    for move in moves:
        rest = dead_end(game, game.after(state, move), order=order, rng=rng)
        if rest is not None:
            return [move, *rest]
    return None
