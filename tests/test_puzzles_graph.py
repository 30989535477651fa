"""Graphs with a lookahead: recomputed by search and by a twin; paths judged strictly, with the source's scores."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from puzzle_twins import all_paths

from entrl.puzzles import judge
from entrl.puzzles.graph import SCORES, Graph, check_path, judge_path
from entrl.puzzles.graph_draw import draw_graph
from entrl.puzzles.graph_words import SENTENCES, judge_step, worded, worded_prompt

GRID = [(lookahead, b) for lookahead in (1, 2, 3, 5, 8, 16) for b in (2, 3, 4, 8)]


def lookahead_twin(graph: Graph) -> int:
    """The source's search, vertex by vertex: the frontier with the first step each vertex was reached by."""
    (right,) = {path[1] for path in all_paths(graph.edges, graph.start, graph.goal)}
    children = {v: [b for a, b in graph.edges if a == v] for edge in graph.edges for v in edge}
    frontier = [[v, v] for v in children[graph.start]]
    visited, lookahead = set(children[graph.start]), 0
    while frontier:
        if all(step == right for _, step in frontier):
            return lookahead
        lookahead += 1
        new = []
        for vertex, step in frontier:
            if vertex == graph.goal:
                return lookahead
            for child in children[vertex]:
                if child not in visited:
                    new.append([child, step])
                    visited.add(child)
                elif step == right:
                    for entry in new:
                        if entry[0] == child:
                            entry[1] = step
        frontier = new
    return lookahead


@pytest.mark.parametrize(("lookahead", "branching"), GRID)
def test_graphs_are_as_asked(lookahead, branching):
    draw = random.Random(lookahead * 100 + branching)
    most = 2 * (lookahead * branching + 1)
    for _ in range(20):
        graph = draw_graph(draw, lookahead=lookahead, branching=branching)
        assert graph.lookahead() == lookahead
        assert len(graph.first_steps) == branching == Counter(a for a, _ in graph.edges)[graph.start]
        assert graph.is_acyclic()
        assert len(graph.right_steps) == 1
        assert len(graph.shortest_path()) == lookahead + 1
        assert len(set(graph.edges)) == len(graph.edges) <= most
        assert all(1 <= int(v) <= most for edge in graph.edges for v in edge)
        assert max(n for v, n in Counter(a for a, _ in graph.edges).items() if v != graph.start) > 2
        if lookahead * branching <= 16:
            assert lookahead_twin(graph) == lookahead
            assert {p[1] for p in all_paths(graph.edges, graph.start, graph.goal)} == graph.right_steps


def test_one_branch_is_a_shuffled_chain():
    graph = draw_graph(random.Random(0), lookahead=6, branching=1)
    assert len(graph.edges) == 6
    assert {v for edge in graph.edges for v in edge} == set("1234567")
    assert graph.lookahead() == 0  # no step is wrong
    path = graph.shortest_path()
    assert len(path) == 7
    assert list(graph.edges) != list(pairwise(path))


@pytest.mark.slow
def test_large_graphs_are_as_asked():
    for lookahead, branching in ((64, 16), (150, 4), (800, 2)):
        graph = draw_graph(random.Random(1), lookahead=lookahead, branching=branching)
        assert (graph.lookahead(), len(graph.first_steps), graph.is_acyclic()) == (lookahead, branching, True)


def test_numbers_below_one():
    for options in ({"lookahead": 0, "branching": 2}, {"lookahead": True, "branching": 2}):
        with pytest.raises(ValueError, match="lookahead must be a whole number from 1 on"):
            draw_graph(random.Random(0), **options)
    with pytest.raises(ValueError, match="must be at most 20,000, got 10000 x 3; lower one"):
        draw_graph(random.Random(0), lookahead=10_000, branching=3)
    with pytest.raises(ValueError, match="branching must be a whole number from 1 on, got 0"):
        draw_graph(random.Random(0), lookahead=2, branching=0)


def test_lookahead_by_hand():
    """s -> a -> g and s -> b: after one level b is a dead end. With b -> c -> d the goal is met first, at depth 2."""
    edges = [("s", "a"), ("a", "g"), ("s", "b")]
    assert Graph(edges=tuple(edges), start="s", goal="g").lookahead() == 1
    edges += [("b", "c"), ("c", "d")]
    assert Graph(edges=tuple(edges), start="s", goal="g").lookahead() == 2
    # a reaches c as early as b does: level 2 belongs to the right step alone, so one level tells
    assert Graph(edges=(*edges, ("a", "c")), start="s", goal="g").lookahead() == 1
    # both steps are right: nothing to tell
    assert Graph(edges=(*edges, ("b", "g")), start="s", goal="g").lookahead() == 0


@given(st.lists(st.tuples(*[st.integers(0, 8)] * 2).filter(lambda e: e[0] < e[1]), max_size=24, unique=True))
def test_lookahead_of_any_acyclic_graph_equals_the_sources(pairs):
    edges = tuple((str(a), str(b)) for a, b in pairs)
    paths = all_paths(edges, "0", "8")
    if not paths:
        with pytest.raises(ValueError, match="no path of one edge or more leads from '0' to '8'"):
            Graph(edges=edges, start="0", goal="8")
        return
    graph = Graph(edges=edges, start="0", goal="8")
    assert graph.is_acyclic()
    assert graph.right_steps == {path[1] for path in paths}
    assert len(graph.shortest_path()) == min(map(len, paths))
    assert graph.shortest_path() in paths
    if len(graph.right_steps) == 1:
        assert graph.lookahead() == lookahead_twin(graph)


def test_a_circle_is_found():
    assert not Graph(edges=(("s", "a"), ("a", "b"), ("b", "a"), ("a", "g")), start="s", goal="g").is_acyclic()
    with pytest.raises(ValueError, match="no path"):
        Graph(edges=(("s", "a"), ("a", "s")), start="s", goal="s")


FORK = Graph(edges=(("1", "2"), ("2", "3"), ("3", "4"), ("1", "5"), ("5", "6"), ("6", "7")), start="1", goal="4")


@pytest.mark.parametrize(
    ("text", "error", "index"),
    [
        ("|YES| path = [1, 2, 3, 4]", None, None),
        ("[1, 2, 3, 4]", None, None),
        ("|NO| hm |YES| [1, 2, 3, 4]", None, None),
        ("|YES| [1, 5, 6] no: [1, 2, 3, 4].", None, None),
        ("|YES| [1, 2, 4]", "invented_edge", 1),
        ("|YES| [1, 2, 3, 9, 4]", "invented_edge", 2),
        ("|YES| [1, 5, 6, 4]", "wrong_first_step", 2),
        ("|YES| [1, 9, 4]", "wrong_first_step", 0),
        ("|YES| [1, 4]", "wrong_first_step", 0),
        ("|YES| [1, 2, 3]", "unusable", None),
        ("|YES| [2, 3, 4]", "unusable", None),
        ("|YES| [4]", "unusable", None),
        ("|YES| 1, 2, 3, 4", "unusable", None),
        ("|YES| [1, 2, 3, 4", "unfinished", None),
        ("|YES| [[1, 2], [2, 3], [3, 4]]", "unusable", None),
        ("|YES| [1, 2, 3, 4], [1, 5, 6]", "unusable", None),
        ("|NO| [1, 2, 3, 4]", "unusable", None),
        ("|YES| [1, 2, 3, 4] |NO|", "unusable", None),
        ("|YES| [1, 2, 3, ４]", "unusable", None),
        ("|YES| [1, 2, 3, 4] as [start, goal]", "unusable", None),
    ],
)
def test_paths_by_hand(text, error, index):
    found = judge_path(FORK, text)
    assert (found.solved, found.error, found.index) == (error is None, error, index)


def test_scores_of_the_source():
    """is_valid_path: 2 right, -1 an edge that is none after a right first step, -2 after a wrong one, 0 unusable."""
    for path, score in (
        (["1", "2", "3", "4"], 2),
        (["1", "2", "4"], -1),
        (["1", "5", "4"], -2),
        (["1", "2"], 0),
        ([], 0),
    ):
        assert SCORES[check_path(FORK, path).error] == score


@pytest.mark.parametrize("branching", [1, 2, 4])
def test_words_are_the_same_graph(branching):
    draw = random.Random(branching)
    numbers = draw_graph(draw, lookahead=4, branching=branching)
    graph = worded(draw, numbers)
    names = dict(zip((v for e in numbers.edges for v in e), (v for e in graph.edges for v in e), strict=True))
    assert len(set(names.values())) == len(names)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in names.values())
    assert graph.lookahead() == numbers.lookahead()
    assert [names[v] for v in numbers.shortest_path()] == graph.shortest_path()
    prompt = worded_prompt(draw, graph, "worded")
    for line, (a, b) in zip(prompt.splitlines(), graph.edges, strict=False):
        assert f" {a}" in line
        assert line.index(f" {a}") < line.rindex(f" {b}")
    assert len(set(SENTENCES)) == 9


STEP = Graph(edges=(("sabo", "mitu"), ("mitu", "gol"), ("sabo", "rek"), ("rek", "dun")), start="sabo", goal="gol")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Answer: mitu", None),
        ("Final answer:  **Mitu**.", None),
        ("mitu", None),
        ("`mitu`", None),
        ("Answer: rek\nNo.\nAnswer: mitu\n", None),
        ("Answer: rek, no. Answer: mitu", None),
        ("Answer: rek", "wrong_first_step"),
        ("Answer: mitu\nAnswer: rek", "wrong_first_step"),
        ("Answer: mitu or rek", "unusable"),
        ("Answer: mitu rek", "unusable"),
        ("Answer: gol", "unusable"),
        ("Answer: sabo", "unusable"),
        ("Answer:", "unusable"),
        ("It is mitu", "unusable"),
        ("mitu, rek", "unusable"),
        ("", "unusable"),
        ("Answer: mıtu", "unusable"),
    ],
)
def test_steps_by_hand(text, error):
    assert (judge_step(STEP, text).solved, judge_step(STEP, text).error) == (error is None, error)


@pytest.mark.parametrize(
    "change",
    [{"edges": None}, {"edges": [["1"]]}, {"edges": [[1, 2]]}, {"edges": ["12"]}, {"start": 1}, {"mode": "logic"},
     {"goal": None}],
)  # fmt: skip
def test_specs_that_make_no_graph(change):
    spec = {"kind": "graph_path", "edges": [["1", "2"]], "start": "1", "goal": "2", "mode": "symbolic"}
    assert judge("[1, 2]", spec).solved
    with pytest.raises(ValueError, match="needs edges"):
        judge("[1, 2]", {**spec, **change})
