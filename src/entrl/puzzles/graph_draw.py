"""Acyclic graphs with a given lookahead L and B first steps, of which one is right.

    m = B L + 1    n = min(m + U{0..2m}, 2m) vertices, at most 2m edges

B chains leave the start: one of L edges to the goal, the others with L or, while there is room, L + 1 vertices. A chain
of 0 to all further vertices leads to the start. Each of the rest draws numbers of children and parents, P(d) ~ 1/(d+1),
d = 0..4 (not both 0), and then who they are, with weights 0.5 + degree. It never closes a cycle, never leads from the
start to the goal, and where it would lower the lookahead it loses its parents or its children, by a coin. Numbers are
shuffled at the end. Graphs without an out-degree above 2 outside the start are drawn again. B = 1: a shuffled chain of
L edges.

Source:  DeepRD, `graph_generator/generator.cpp`, `generate_graph_with_lookahead` and `generate_training_set`, and
         `graph_generator.py`, `generate_examples`
Differs: whether a vertex may lie between start and goal is asked of all paths (the source asks whether one of its
         children lies on the first chain, which leaves detours open, and drops what came of them later); the
         lookahead is kept up to date along changed vertices, where the source searches again for every vertex
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from entrl.puzzles.graph import Graph

MOST_DEGREE = 4  # children, or parents, of one further vertex
ALPHA = 0.5  # weight of a vertex without edges
MOST = 20_000  # lookahead x branching, for time: the source's grid ends at 12,800
TRIES = 2_000  # graphs drawn for one with a larger out-degree than 2
PATIENCE = 32  # draws by rejection before weights are listed
DEGREES = range(MOST_DEGREE + 1)
WEIGHTS = [1 / (degree + 1) for degree in DEGREES]


def draw_graph(draw: Random, *, lookahead: int, branching: int) -> Graph:
    """A graph of numbered vertices ("1", "2", ...). Raises ValueError below 1 and for a product above MOST."""
    for name, value in (("lookahead", lookahead), ("branching", branching)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"graph_path: {name} must be a whole number from 1 on, got {value!r}")
    if lookahead * branching > MOST:
        raise ValueError(
            f"graph_path: lookahead times branching must be at most {MOST:,}, got {lookahead} x {branching}; lower one"
        )
    if branching == 1:
        return _shuffled(draw, [(i, i + 1) for i in range(lookahead)], lookahead + 1, lookahead + 1, lookahead)
    for _ in range(TRIES):
        growing = _grown(draw, lookahead, branching)
        if any(len(children) > 2 for children in growing.children[1:]):
            most = 2 * (branching * lookahead + 1)
            return _shuffled(draw, growing.edges, len(growing.children), most, lookahead)
    raise ValueError(
        f"graph_path: no graph with lookahead {lookahead} and branching {branching} was found whose out-degrees pass "
        "2; raise lookahead"
    )


def _shuffled(draw: Random, edges: Sequence[tuple[int, int]], vertices: int, numbers: int, goal: int) -> Graph:
    """Vertex 0 is the start. Numbers from 1 on, edges in any order."""
    names = [str(i) for i in draw.sample(range(1, numbers + 1), vertices)]
    named = [(names[a], names[b]) for a, b in edges]
    draw.shuffle(named)
    return Graph(edges=tuple(named), start=names[0], goal=names[goal])


@dataclass
class _Growing:
    """A graph under way. `key`: 2 * edges from the start + (1 on the wrong side), as in `entrl.puzzles.graph`."""

    lookahead: int
    children: list[list[int]] = field(default_factory=lambda: [[]])
    parents: list[list[int]] = field(default_factory=lambda: [[]])
    key: list[int | None] = field(default_factory=lambda: [0])  # None: not reached from the start
    goalward: set[int] = field(default_factory=set)  # the goal, and what leads to it
    edges: list[tuple[int, int]] = field(default_factory=list)
    tails: list[int] = field(default_factory=list)  # of edges: a vertex as often as its out-degree
    heads: list[int] = field(default_factory=list)
    witnesses: int = 0  # wrong vertices as deep as the goal: without one the lookahead would be lower

    def vertex(self) -> int:
        self.children.append([])
        self.parents.append([])
        self.key.append(None)
        return len(self.children) - 1

    def join(self, tail: int, head: int) -> None:
        self.children[tail].append(head)
        self.parents[head].append(tail)
        self.edges.append((tail, head))
        self.tails.append(tail)
        self.heads.append(head)

    def set_key(self, vertex: int, key: int | None) -> None:
        witness = 2 * self.lookahead + 1
        self.witnesses += (key == witness) - (self.key[vertex] == witness)
        self.key[vertex] = key

    def relax(self, roots: Sequence[int], key: int) -> bool:
        """Keys after edges from a vertex of this key to the roots; taken back, and False, where that would lower the
        lookahead."""
        before: dict[int, int | None] = {}
        stack = [(root, key + 2) for root in roots]
        while stack:
            vertex, reached = stack.pop()
            if (old := self.key[vertex]) is not None and old <= reached:
                continue
            before.setdefault(vertex, old)
            self.set_key(vertex, reached)
            stack.extend((child, reached + 2) for child in self.children[vertex])
        if self.witnesses:
            return True
        for vertex, old in before.items():
            self.set_key(vertex, old)
        return False


def _grown(draw: Random, lookahead: int, branching: int) -> _Growing:
    least = branching * lookahead + 1
    vertices = min(least + draw.randrange(2 * least + 1), 2 * least)
    graph = _chains(draw, lookahead, branching, spare=vertices - least)
    before = 0
    for _ in range(draw.randrange(vertices - len(graph.children) + 1)):
        new = graph.vertex()
        graph.join(new, before)
        graph.goalward.add(new)
        before = new
    while len(graph.children) < vertices and _extended(draw, graph, most_edges=2 * least):
        pass
    return graph


def _chains(draw: Random, lookahead: int, branching: int, *, spare: int) -> _Growing:
    """Vertex 0 is the start, vertex `lookahead` the goal."""
    graph = _Growing(lookahead=lookahead)
    for chain in range(branching):
        longer = chain > 0 and spare > 0 and draw.random() < 0.5
        spare -= longer
        before = 0
        for depth in range(1, lookahead + longer + 1):
            new = graph.vertex()
            graph.join(before, new)
            graph.set_key(new, 2 * depth + (chain > 0))
            before = new
    graph.goalward = set(range(lookahead + 1))
    return graph


def _extended(draw: Random, graph: _Growing, *, most_edges: int) -> bool:
    """One more vertex with its edges; False where they would be too many."""
    size = len(graph.children)
    children = draw.choices(DEGREES, WEIGHTS)[0]
    parents = draw.choices(DEGREES, WEIGHTS)[0] if children else draw.choices(DEGREES[1:], WEIGHTS[1:])[0]
    if len(graph.edges) + children + parents > most_edges:
        return False
    heads = _chosen(draw, children, size, graph.heads, lambda vertex: True)
    goalward = not graph.goalward.isdisjoint(heads)
    below = _closure(heads, graph.children)

    def may_lead(vertex: int) -> bool:
        return vertex > 0 and vertex not in below and not (goalward and graph.key[vertex] is not None)

    tails = _chosen(draw, parents, size, graph.tails, may_lead)
    reached = [key for tail in tails if (key := graph.key[tail]) is not None]
    new = graph.vertex()
    if reached:
        key = min(reached) + 2
        if not graph.relax(heads, key):
            heads, tails = (heads, []) if draw.random() < 0.5 else ([], tails)
        if tails:
            graph.set_key(new, key)
    for head in heads:
        graph.join(new, head)
    for tail in tails:
        graph.join(tail, new)
    if goalward and heads:
        graph.goalward |= _closure([new], graph.parents)
    return True


def _closure(roots: Iterable[int], following: Sequence[Sequence[int]]) -> set[int]:
    """The roots and what they lead to, by lists of children or of parents."""
    found = set(roots)
    stack = list(found)
    while stack:
        new = [vertex for vertex in following[stack.pop()] if vertex not in found]
        found.update(new)
        stack.extend(new)
    return found


def _chosen(draw: Random, number: int, size: int, ends: Sequence[int], allowed: Callable[[int], bool]) -> list[int]:
    """Up to `number` different vertices below `size`, drawn without replacement with weights ALPHA + degree.

    ends: one end of every edge, so that a uniform one has a vertex with a weight of its degree.
    """
    found: list[int] = []
    misses = 0
    while len(found) < number and misses < PATIENCE:
        free = draw.random() * (ALPHA * size + len(ends)) < ALPHA * size
        vertex = draw.randrange(size) if free else draw.choice(ends)
        if vertex not in found and allowed(vertex):
            found.append(vertex)
        else:
            misses += 1
    while len(found) < number:
        degrees = [0] * size
        for end in ends:
            degrees[end] += 1
        left = [vertex for vertex in range(size) if vertex not in found and allowed(vertex)]
        if not left:
            break
        found += draw.choices(left, [ALPHA + degrees[vertex] for vertex in left])
    return found
