"""Rows of `graph_path`: paths through graphs with a given lookahead, in numbers or in words (docs/puzzles.md).

The degrees of a graph decide its side of the split, so graphs that are the same up to names never lie on both; of
B = 1, where there is one graph of each length, its numbers decide.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from entrl.puzzles.graph import YES, Graph
from entrl.puzzles.graph_draw import draw_graph
from entrl.puzzles.graph_words import Mode, symbolic_line, symbolic_prompt, worded, worded_prompt
from entrl.tasks.puzzles import dealt, levels_of
from entrl.tasks.rows import Form, Row, chat, digest, short_prompt, side_of, verifier_json

MAX_BARREN = 1_000  # graphs in a row that add nothing before we say that there are no more


def graph_path_rows(
    *,
    split: str,
    size: int,
    seed: int,
    lookahead: int | Sequence[int] = 4,
    branching: int = 2,
    mode: Mode = "symbolic",
    distinct_shapes: bool = False,
    form: Form = "chat",
    system: str = "",
) -> list[Row]:
    """Rows in an order drawn from `seed`; lookaheads are dealt out in turn. ValueError where there are too few graphs.

    distinct_shapes: no two rows of a lookahead have the same degrees, so none are isomorphic. Of B = 1 there is one.
    """
    if form == "line" and mode != "symbolic":
        raise ValueError(f"task 'graph_path': form line is for mode symbolic, got {mode}; sentences need form chat")
    levels = levels_of("graph_path", "lookahead", lookahead)
    each = math.ceil(size / len(levels))
    tiers: list[list[Row]] = []
    for level in levels:
        draw = random.Random(f"graph_path/{level}/{branching}/{seed}")
        graphs = _graphs(draw, level, branching, split=split, distinct=distinct_shapes)
        tiers.append(_tier(graphs, level, branching, mode, split=split, size=each, form=form, system=system))
    return dealt(tiers, size)


def _tier(
    graphs: Iterator[Graph],
    level: int,
    branching: int,
    mode: Mode,
    *,
    split: str,
    size: int,
    form: Form,
    system: str,
) -> list[Row]:
    rows: list[Row] = []
    for graph in graphs:
        rows.append(_row(graph, level, mode, form, system))
        if len(rows) == size:
            return rows
    raise ValueError(
        f"task 'graph_path' with lookahead {level} and branching {branching} has no more {split} graphs after "
        f"{len(rows)} of the {size} asked for; ask for at most {len(rows)}, or raise lookahead or branching"
    )


def _graphs(draw: random.Random, lookahead: int, branching: int, *, split: str, distinct: bool) -> Iterator[Graph]:
    """Different graphs of one side, until no more are found."""
    seen: set[str] = set()
    barren = 0
    while barren < MAX_BARREN:
        graph = draw_graph(draw, lookahead=lookahead, branching=branching)
        shape, text = shape_of(graph), _text(graph)
        key = shape if distinct else text
        if key in seen or side_of(shape if branching > 1 else text) != split:
            barren += 1
            continue
        barren = 0
        seen.add(key)
        yield graph


def shape_of(graph: Graph) -> str:
    """The degrees (in, out) of all vertices, sorted: the same for isomorphic graphs."""
    came, left = Counter(b for _, b in graph.edges), Counter(a for a, _ in graph.edges)
    return str(sorted((came[v], left[v]) for v in came.keys() | left.keys()))


def _text(graph: Graph) -> str:
    return f"{graph.start} {graph.goal} {sorted(graph.edges)}"


def _row(graph: Graph, level: int, mode: Mode, form: Form, system: str) -> Row:
    """Words follow from the graph, so that the first n rows do not depend on how many are asked for."""
    text = _text(graph)
    if form == "line":
        prompt, answer = symbolic_line(graph), f"[{','.join(graph.shortest_path())}]"
    elif mode == "symbolic":
        prompt, answer = symbolic_prompt(graph), f"{YES} path = [{', '.join(graph.shortest_path())}]"
    else:
        draw = random.Random(text)
        graph = worded(draw, graph)
        prompt = worded_prompt(draw, graph, mode)
        path = graph.shortest_path()
        answer = f"Answer: {path[1]}" if mode == "worded" else f"path = [{', '.join(path)}]"
    return Row(
        prompt=short_prompt(prompt, system=system) if form == "line" else chat(prompt, system=system),
        answer=answer,
        verifier=verifier_json("graph_path", mode=mode, edges=graph.edges, start=graph.start, goal=graph.goal),
        problem_id=f"graph_path/{digest(text):016x}",
        level=str(level),
    )
