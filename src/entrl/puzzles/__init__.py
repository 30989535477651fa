"""Problems whose difficulty is one number, and verdicts that say which move is wrong (docs/puzzles.md).

    hanoi, checkers, river, blocks   rules, names, prompt (puzzle: what they share; naming: their instances)
    plans                            shortest plans by breadth-first search
    lists                            the one list of an answer that is judged
    replay                           a plan judged move by move (judged: a verdict, and many of them)
    graph                            lookahead, and paths judged (graph_draw, graph_words: how they are made and asked)

Knows nobody else in the library: `tasks` makes rows of them, `verify` judges answers to them.
"""

import json
from collections.abc import Mapping
from typing import Any

from entrl.puzzles.blocks import Blocks
from entrl.puzzles.checkers import Checkers
from entrl.puzzles.graph import Graph, judge_path
from entrl.puzzles.graph_words import MODES, judge_step
from entrl.puzzles.hanoi import Hanoi
from entrl.puzzles.judged import Judged, summary
from entrl.puzzles.puzzle import Puzzle
from entrl.puzzles.replay import first_solved_list, judge_plan
from entrl.puzzles.river import River

PUZZLES: dict[str, type[Puzzle]] = {"hanoi": Hanoi, "checkers": Checkers, "river": River, "blocks": Blocks}
KINDS = ("puzzle", "graph_path")  # of a row's verifier

__all__ = ["KINDS", "PUZZLES", "Judged", "first_solution_position", "graph_of", "judge", "puzzle_of", "summary"]

Spec = str | Mapping[str, Any]  # a row's `verifier`: JSON, or what it holds; or `Puzzle.spec()`


def judge(text: str, spec: Spec) -> Judged:
    """The verdict on an answer part. Raises ValueError for a spec that makes no puzzle."""
    spec = _mapping(spec)
    if spec.get("kind", "puzzle") == "puzzle":
        return judge_plan(puzzle_of(spec), text)
    graph = graph_of(spec)
    return judge_step(graph, text) if spec["mode"] == "worded" else judge_path(graph, text)


def first_solution_position(trace: str, spec: Spec) -> float | None:
    """Where in a trace the first right list of moves ends, as a share of its characters in (0, 1]; None without one.

    trace: the whole completion, thinking included. spec: of one of the four puzzles.
    """
    return first_solved_list(puzzle_of(spec), trace)


def puzzle_of(spec: Spec) -> Puzzle:
    """The instance that a spec describes. Raises ValueError for one that describes none."""
    options = {key: value for key, value in _mapping(spec).items() if key != "kind"}
    name = options.pop("puzzle", None)
    if name not in PUZZLES:
        raise ValueError(f"verifier of kind 'puzzle': puzzle must be one of {', '.join(PUZZLES)}, got {name!r}")
    try:
        return PUZZLES[name](**options)
    except TypeError as error:
        raise ValueError(f"verifier of kind 'puzzle': {name} cannot be made of {sorted(options)}: {error}") from error


def graph_of(spec: Spec) -> Graph:
    """The graph that a spec describes. Raises ValueError for one that describes none."""
    spec = _mapping(spec)
    edges, start, goal, mode = _pairs(spec.get("edges")), spec.get("start"), spec.get("goal"), spec.get("mode")
    if edges is None or mode not in MODES or not (isinstance(start, str) and isinstance(goal, str)):
        raise ValueError(
            f"verifier of kind 'graph_path' needs edges (pairs of words), start, goal and a mode of {', '.join(MODES)}"
            f"; got {sorted(spec)}, mode {mode!r}"
        )
    return Graph(edges=edges, start=start, goal=goal)


def _pairs(value: Any) -> tuple[tuple[str, str], ...] | None:
    """Pairs of words as JSON has them, None where they are none."""
    if not isinstance(value, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
        return None
    good = all(isinstance(a, str) and isinstance(b, str) for a, b in value)
    return tuple((a, b) for a, b in value) if good else None


def _mapping(spec: Spec) -> Mapping[str, Any]:
    return json.loads(spec) if isinstance(spec, str) else spec
