"""Directed graphs with one start and one goal: lookahead, right first steps, and paths judged strictly.

    key(v) = 2 d(v) + w(v)    d: edges from the start; w = 0 where a shortest path to v begins with a right first step
    lookahead = min(d(goal), max {d(v) : w(v) = 1})    0 where no first step is wrong

A search that goes breadth first from the start, and remembers with which first step it came to each vertex, knows after
`lookahead` levels which step is right: it has met the goal, or nothing is left but what right steps lead to.

Source:  DeepRD, `graph_generator/generator.cpp`, `lookahead_depth`; errors and scores:
         `llm_results/llm_metrics.py`, `is_valid_path`
Differs: right first steps are those that the goal can be reached from (the source enumerates simple paths). A path is
         read from the last list of the answer (there, another model extracts it) and no step may be missing (there,
         unreadable vertices are passed over)
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from entrl.puzzles.judged import Judged
from entrl.puzzles.lists import Unreadable, last_path

SCORES = {None: 2, "invented_edge": -1, "wrong_first_step": -2, "unusable": 0, "unfinished": 0}  # error -> the source's
NO = "|NO|"
YES = "|YES|"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Vertices are words. Raises ValueError where the goal cannot be reached, or is the start."""

    edges: tuple[tuple[str, str], ...]
    start: str
    goal: str

    def __post_init__(self) -> None:
        if self.start == self.goal or not self.right_steps:
            raise ValueError(f"graph_path: no path of one edge or more leads from {self.start!r} to {self.goal!r}")

    @cached_property
    def children(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for source, target in self.edges:
            found.setdefault(source, []).append(target)
        return found

    @cached_property
    def first_steps(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.children.get(self.start, ())))

    @cached_property
    def right_steps(self) -> frozenset[str]:
        """First steps from which the goal can be reached."""
        parents: dict[str, list[str]] = {}
        for source, target in self.edges:
            parents.setdefault(target, []).append(source)
        before = {self.goal}
        queue = deque(before)
        while queue:
            for parent in parents.get(queue.popleft(), ()):
                if parent not in before:
                    before.add(parent)
                    queue.append(parent)
        return frozenset(before & set(self.first_steps))

    def lookahead(self) -> int:
        """Levels of a breadth-first search after which the right first step is known."""
        wrong = set(self.first_steps) - self.right_steps
        if not wrong:
            return 0
        depth, side = 1, {vertex: vertex in wrong for vertex in self.first_steps}  # side: True for wrong
        seen = {self.start, *side}
        while True:
            level: dict[str, bool] = {}
            for vertex, is_wrong in side.items():
                for child in self.children.get(vertex, ()):
                    if child not in seen:
                        level[child] = level.get(child, True) and is_wrong
            if self.goal in side or not any(level.values()):
                return depth
            seen |= set(level)
            side, depth = level, depth + 1

    def shortest_path(self) -> list[str]:
        came: dict[str, str] = {}
        queue = deque([self.start])
        while self.goal not in came:
            vertex = queue.popleft()
            for child in self.children.get(vertex, ()):
                if child not in came:
                    came[child] = vertex
                    queue.append(child)
        path = [self.goal]
        while path[-1] != self.start:
            path.append(came[path[-1]])
        return path[::-1]

    def is_acyclic(self) -> bool:
        """Whether vertices can be taken off one after another, each without an edge that leads to it."""
        incoming: dict[str, int] = dict.fromkeys((v for edge in self.edges for v in edge), 0)
        for _, target in self.edges:
            incoming[target] += 1
        queue, taken = deque(v for v, count in incoming.items() if not count), 0
        while queue:
            taken += 1
            for child in self.children.get(queue.popleft(), ()):
                incoming[child] -= 1
                if not incoming[child]:
                    queue.append(child)
        return taken == len(incoming)


def judge_path(graph: Graph, text: str) -> Judged:
    """The verdict on the last list in a text, as a path from start to goal."""
    if text.rfind(NO) > text.rfind(YES):
        return Judged(solved=False, error="unusable", why="the answer says that there is no path")
    try:
        path = last_path(text)
    except Unreadable as error:
        return Judged(solved=False, error="unfinished" if error.cut else "unusable", why=str(error))
    return check_path(graph, path)


def check_path(graph: Graph, path: Iterable[str]) -> Judged:
    """Strict: from start to goal, and every step an edge."""
    path = tuple(path)
    steps = len(path) - 1
    if steps < 1 or path[0] != graph.start or path[-1] != graph.goal:
        why = f"the path does not lead from {graph.start} to {graph.goal}"
        return Judged(solved=False, error="unusable", length=max(steps, 0), why=why)
    edges = set(graph.edges)
    for index, edge in enumerate(pairwise(path)):
        if edge not in edges:
            error = "invented_edge" if path[1] in graph.right_steps else "wrong_first_step"
            return Judged(
                solved=False, error=error, index=index, length=steps, why=f"{edge[0]} -> {edge[1]} is no edge"
            )
    return Judged(solved=True, length=steps)
