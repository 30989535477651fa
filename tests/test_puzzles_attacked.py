"""Verdicts under attack: whatever stands around and inside of the list is judged as the slow twin judges it."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from puzzle_twins import PIECES, WORDS, attack, path_verdict, read_moves, read_path, step_verdict, verdict

from entrl.puzzles import judge
from entrl.puzzles.blocks import Blocks
from entrl.puzzles.checkers import Checkers
from entrl.puzzles.graph import SCORES
from entrl.puzzles.graph_draw import draw_graph
from entrl.puzzles.graph_words import worded
from entrl.puzzles.hanoi import Hanoi
from entrl.puzzles.lists import Unreadable, last_moves, last_path
from entrl.puzzles.plans import plan_text, shortest_plan
from entrl.puzzles.river import River
from entrl.verify.judge import MAX_PUZZLE, check

HANOI = Hanoi(n=2)
PLAN = "[[1, A, B], [2, A, C], [1, B, C]]"
SPEC = HANOI.spec()


@pytest.mark.parametrize(
    "text",
    [
        PLAN,
        f"moves = {PLAN}",
        f"First disk 1 [the small one], see [1], goes away.\n```python\nmoves = {PLAN}\n```\nThat is all [3 moves].",
        f"$$\\boxed{{{PLAN}}}$$",
        f"\\[ {PLAN} \\]",
        f"**moves** = {PLAN}.",
        "moves = [ [ 1 , A , B ] ,\n [2,A,C],\n\t[ '1' , \"B\" , 'C' ] , ]",
        f"moves = [[1, A, C]], no: moves = {PLAN}",
        f"{PLAN}\n\n{PLAN}",
        f"[unclosed {PLAN}",
        f"moves = {PLAN} and [1, A",
        "moves = [[1, A, C], [1, C, B], [2, A, C], [1, B, C]]",
    ],
)
def test_right_answers_in_any_dress(text):
    assert judge(text, SPEC).solved
    assert verdict("hanoi", HANOI.prompt(), text) == (True, None, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "unreadable"),
        ("[[]]", "unreadable"),
        ("[]", "unreadable"),
        (PLAN[:-1], "unfinished"),
        (PLAN[:-2], "unfinished"),
        (PLAN[:12], "unfinished"),
        (PLAN.replace("]]", "], ..."), "unreadable"),
        (f"{PLAN} [[1, A, C]]", "not_solved"),  # the last list, and no other
        (f"{PLAN}, {PLAN}", "unreadable"),  # side by side
        (f"[{PLAN}]", "unreadable"),
        (f"[{PLAN}, {PLAN}]", "unreadable"),
        (f"[0, {PLAN}]", "unreadable"),
        (f"{PLAN} then [[", "unfinished"),
        (f"{PLAN} of the form [[disk, from, to], ...]", "unreadable"),
        (PLAN.replace("[1, B, C]", "[[1, B, C]]"), "unreadable"),
        (PLAN.replace("1", "１"), "unknown"),
        (PLAN.replace("2", "²"), "unknown"),
        (PLAN.replace("1", "01"), "unknown"),
        (PLAN.replace("1", "1.0"), "unknown"),
        (PLAN.replace("A", "Α"), "unknown"),  # a Greek capital
        (PLAN.replace("A", "a"), "unknown"),
        (PLAN.replace("A, B", "A -> B"), "unknown"),
        (PLAN.replace(", [2", "; [2"), "unreadable"),
        (PLAN.replace("[1, A", "[1, 'A"), "unreadable"),
        (PLAN.replace("]]", "], [1, C, A], [1, A, C]]"), "after_goal"),
        (PLAN.replace("[2, A, C], ", ""), "not_solved"),
        ("\\[\\[1, A, B\\], \\[2, A, C\\], \\[1, B, C\\]\\]", "unreadable"),
    ],
)
def test_what_is_no_answer(text, error):
    found = judge(text, SPEC)
    assert (found.solved, found.error) == (False, error)
    assert not verdict("hanoi", HANOI.prompt(), text)[0]


def test_several_answers_are_one_chance():
    """Every plan of three moves in one answer: right only where the last one is."""
    draw = random.Random(0)
    pegs = "ABC"
    guesses = [[[draw.choice("12"), draw.choice(pegs), draw.choice(pegs)] for _ in range(3)] for _ in range(300)]
    texts = [plan_text(guess) for guess in guesses]
    assert not judge("\n".join([*texts, PLAN, texts[0]]), SPEC).solved
    assert judge("\n".join([*texts, PLAN]), SPEC).solved
    assert check("puzzle", f"<answer>{PLAN}</answer> or <answer>{texts[0]}</answer>", "", SPEC) == 0.0
    assert check("puzzle", f"<answer>{texts[0]}</answer> or <answer>{PLAN}</answer>", "", SPEC) == 1.0
    assert check("puzzle", f"{PLAN} <answer>A</answer>", "", SPEC) == 0.0  # the block is the answer


HUGE = 200_000
BOMBS = {
    "brackets": "[" * HUGE,
    "spaced brackets": "[ " * (HUGE // 2),
    "pairs": "[[" + "]" * HUGE,
    "spaces": "[" + " " * HUGE + "[",
    "spaces before": " " * HUGE + "[[1, A, B]]",
    "spaces, bracket": ("[" + " " * 1000) * (HUGE // 1000),
    "one move": "[[1, A, B" + "B" * HUGE + "]]",
    "one open move": "[[" + "1" * HUGE,
    "commas": "[[" + "," * HUGE + "]]",
    "moves": "[" + "[1, A, B], [1, B, A], " * (HUGE // 22) + "[1, A, B]]",
    "open lists": "[[1, A, B], " * (HUGE // 12),
    "lists": f"{PLAN}\n" * (HUGE // 34),
    "quotes": '[["' + "'\"" * (HUGE // 2) + "]]",
    "backslashes": "\\" * HUGE + "[[1]]",
    "tags": "<answer>" * (HUGE // 8),
    "answers": "answer:" * (HUGE // 7),
    "markers": "|YES|" * (HUGE // 5),
}


@pytest.mark.parametrize("name", BOMBS)
def test_huge_answers_end_in_time(name):
    """Time grows with the length: a quadratic reader would need hours."""
    graph = draw_graph(random.Random(0), lookahead=3, branching=2)
    spec = {"kind": "graph_path", "edges": graph.edges, "start": graph.start, "goal": graph.goal}
    begun = time.monotonic()
    solved = check("puzzle", BOMBS[name], "", SPEC)
    for mode in ("symbolic", "worded", "proof"):
        assert check("graph_path", BOMBS[name], "", {**spec, "mode": mode}) == 0.0
    assert time.monotonic() - begun < 5
    assert solved == (name == "lists")


def test_only_the_end_of_a_text_is_looked_at():
    assert check("puzzle", "x" * 2 * MAX_PUZZLE + PLAN, "", SPEC) == 1.0
    assert check("puzzle", PLAN + "x" * MAX_PUZZLE, "", SPEC) == 0.0


def problems():
    """Puzzles with right and wrong answers."""
    for puzzle in (HANOI, Hanoi(n=3), Checkers(n=1), River(n=2, boat=2), Blocks(n=3), Blocks(n=4, goal="first")):
        plan = shortest_plan(puzzle)
        quoted = "[" + ", ".join(str(move) for move in plan) + "]"
        wrong = [plan[:-1], plan[1:], [*plan, plan[-1]], plan[::-1], [plan[0], *plan]]
        yield puzzle, puzzle.prompt(), [plan_text(plan), quoted, plan_text(plan), *(plan_text(w) for w in wrong)]


def fuzz(cases: int, seed: int) -> int:
    """Verdicts equal the twin's; how many were solved."""
    draw, solved = random.Random(seed), 0
    known = list(problems())
    for _ in range(cases):
        puzzle, prompt, answers = draw.choice(known)
        text = attack(draw, answers)
        found, (right, error, index) = judge(text, puzzle.spec()), verdict(puzzle.name, prompt, text)
        assert (found.solved, found.index) == (right, index), text
        if error != "illegal":
            assert found.error == error, text
        solved += right
    return solved


def fuzz_paths(cases: int, seed: int) -> int:
    draw, solved = random.Random(seed), 0
    graphs = [draw_graph(draw, lookahead=n, branching=b) for n in (2, 3) for b in (1, 2, 3)]
    for _ in range(cases):
        graph = draw.choice(graphs)
        path = graph.shortest_path()
        other = [graph.start, draw.choice(graph.first_steps), *path[2:]]
        lists = (path, path, path[::-1], path[1:], other, [draw.choice(path) for _ in path], [*path[:-2], *path[-1:]])
        text = attack(draw, [f"|YES| path = [{', '.join(one)}]" for one in lists])
        spec = {
            "kind": "graph_path",
            "edges": graph.edges,
            "start": graph.start,
            "goal": graph.goal,
            "mode": "symbolic",
        }
        found = judge(text, spec)
        wanted = path_verdict(graph.edges, graph.start, graph.goal, text)
        assert (found.solved, SCORES[found.error]) == wanted, text
        solved += found.solved
    return solved


def fuzz_words(cases: int, seed: int) -> int:
    draw, solved = random.Random(seed), 0
    graphs = [worded(draw, draw_graph(draw, lookahead=n, branching=b)) for n in (2, 3) for b in (1, 2, 3)]
    for _ in range(cases):
        graph = draw.choice(graphs)
        (right,), wrong = graph.right_steps, draw.choice(graph.first_steps)
        said = [f"Answer: {right}", f"Final answer:  **{right.title()}**.", right, f"`{right}`", f"Answer: {right}\n"]
        said += [f"Answer: {wrong}", f"Answer: {right} {wrong}", graph.goal, f"answer: {graph.start}", f"not {right}"]
        text = attack(draw, said, WORDS)
        spec = {"kind": "graph_path", "edges": graph.edges, "start": graph.start, "goal": graph.goal, "mode": "worded"}
        found = judge(text, spec)
        assert (found.solved, SCORES[found.error]) == step_verdict(graph.edges, graph.start, graph.goal, text), text
        solved += found.solved
    return solved


def test_fuzz_equals_the_twin():
    assert 300 < fuzz(3_000, seed=0) < 1_500  # so that both verdicts are tried
    assert 200 < fuzz_paths(2_000, seed=0) < 1_200
    assert 200 < fuzz_words(2_000, seed=0) < 1_200


@pytest.mark.slow
def test_a_hundred_thousand_attacks():
    assert fuzz(70_000, seed=1) > 7_000
    assert fuzz_paths(30_000, seed=1) > 3_000


@pytest.mark.slow
def test_a_hundred_thousand_attacks_on_words():
    assert fuzz_words(100_000, seed=1) > 10_000


def read(reader, text):
    try:
        return reader(text)
    except Unreadable as error:
        return "unfinished" if error.cut else "unreadable"


@given(st.lists(st.sampled_from([*PIECES, PLAN, "[1, A, B]", "[[1, A, B]"]), max_size=12).map("".join))
def test_the_reader_equals_its_twin(text):
    moves, path = read(last_moves, text), read(last_path, text)
    assert (moves if isinstance(moves, str) else [list(move) for move in moves]) == read_moves(text)
    assert (path if isinstance(path, str) else list(path)) == read_path(text)


def test_any_characters_are_judged():
    draw = random.Random(0)
    for _ in range(2_000):
        text = "".join(chr(draw.randrange(draw.choice((0x80, 0x300, 0x11000)))) for _ in range(draw.randrange(40)))
        assert not judge(f"[[{text}" if draw.random() < 0.5 else text, SPEC).solved
