"""entrl.traces: the grammar, depth-first search and its walk, k wrong branches, skipped ones."""

import random
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reasoning_gym import create_dataset

from entrl.traces import Step, TraceError, detours, read, search, walk, write
from entrl.traces.countdown import Countdown
from entrl.traces.search import skip_branches, solve
from entrl.traces.steps import CLOSE
from entrl.traces.sudoku import Sudoku, written
from entrl.verify.countdown import makes_target
from entrl.verify.sudoku import fills_puzzle

NO_LIMIT = 10**9


@cache
def boards(name: str, count: int) -> list[Sudoku]:
    dataset = create_dataset(name, seed=4, size=count)
    puzzles = [entry["metadata"]["puzzle"] for entry in dataset]
    return [Sudoku(tuple(digit for row in puzzle for digit in row), len(puzzle)) for puzzle in puzzles]


@st.composite
def countdowns(draw, most: int = 4):
    """A chain of operations decides the target, so there is a solution."""
    numbers = draw(st.lists(st.integers(1, 12), min_size=2, max_size=most))
    value = numbers[0]
    for number in numbers[1:]:
        op = draw(st.sampled_from("+-*"))
        value = value + number if op == "+" else abs(value - number) if op == "-" else value * number
    return Countdown(tuple(draw(st.permutations(numbers))), value)


def games():
    return st.one_of(countdowns(), st.sampled_from(boards("mini_sudoku", 30)))


def verified(game, answer: str) -> bool:
    if isinstance(game, Countdown):
        return makes_target(answer, game.numbers, game.target)
    side = game.side
    return fills_puzzle(answer, [list(game.start[i : i + side]) for i in range(0, side * side, side)])


# --- the grammar --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["7+5=12", "b3=4"]), st.integers(-1, 30), st.integers(0, 3)), max_size=8))
def test_what_is_written_is_read(items):
    steps = [
        step
        for create, cost, closes in items
        for step in (
            Step("create", create),
            *([Step("cost", str(cost))] if cost >= 0 else []),
            *[CLOSE] * closes,
        )
    ]
    assert read(write(steps)) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",", "step 0 of the trace is ''"),
        ("7+5=12,", "step 1 of the trace is ''"),
        ("<", "step 0 of the trace is '<'"),
        ("7+5=12<~3", "expected such as 7\\+5=12"),
        ("7+5=12~x", "step 0"),
        ("7+5=12~٣", "step 0"),
    ],
)
def test_a_text_that_is_no_trace(text, message):
    with pytest.raises(TraceError, match=message):
        read(text)


def test_no_trace_has_no_steps():
    assert read("") == []
    assert write([]) == ""


def test_the_trace_of_the_documentation():
    page = (Path(__file__).parents[1] / "docs" / "search_traces.md").read_text()
    prompt, trace, answer = re.search(r"(3,5,7->26:)<think>(.*)</think>(.*)", page).groups()
    done = walk(Countdown((3, 5, 7), 26), read(trace))
    assert done.solved
    assert Countdown((3, 5, 7), 26).answer(done.path, "short") == answer
    assert prompt.startswith("3,5,7")


# --- depth-first search -------------------------------------------------------------------------------------------


def test_a_search_by_hand():
    # 3 and 2 to 6, as they come: 3+2=5 has nothing left to do and is taken back, 3*2=6 is the target
    found = search(Countdown((2, 3), 6), order="given", width=None, budget=NO_LIMIT, rng=random.Random(0))
    assert write(step for step in found.steps if step.kind != "cost") == "3+2=5<,3*2=6"
    assert write(found.steps) == "3+2=5~1<,3*2=6~0"  # |5 - 6| and |6 - 6|


def failed_nodes(game, state, order, rng) -> tuple[bool, int]:
    """Slow twin: whether the goal lies below a state, and how many nodes below it have none, up to there."""
    if game.solved(state):
        return True, 0
    failed = 0
    for move in game.moves(state, order, rng):
        found, below = failed_nodes(game, game.after(state, move), order, rng)
        failed += below
        if found:
            return True, failed
        failed += 1
    return False, failed


@settings(max_examples=100, deadline=None)
@given(games(), st.integers(0, 3), st.integers(0, 2**32))
def test_every_search_parses_solves_and_backtracks_as_its_tree_does(game, order, seed):
    order = game.ORDERS[order % len(game.ORDERS)]
    found = search(game, order=order, width=None, budget=NO_LIMIT, rng=random.Random(seed))
    text = write(found.steps)
    assert read(text) == found.steps
    done = walk(game, read(text))
    assert done.solved
    assert done.path == found.path
    assert verified(game, game.answer(done.path, "short"))
    assert game.solved(game.after(state_before(game, done.path), done.path[-1]))  # the last step solves
    assert found.steps[-2].kind == "create"  # and nothing comes after it but its cost
    assert (True, done.backtracks) == failed_nodes(game, game.start, order, random.Random(seed))
    assert done.backtracks == text.count("<")
    assert done.nodes == done.backtracks + len(done.path)


def state_before(game, path):
    state = game.start
    for move in path[:-1]:
        state = game.after(state, move)
    return state


@pytest.mark.parametrize("order", Sudoku.ORDERS)
def test_searches_of_nine_by_nine(order):
    for game in boards("sudoku", 3):
        found = search(game, order=order, width=None, budget=20_000, rng=random.Random(1))
        assert found.path is not None
        assert walk(game, read(write(found.steps))).solved
        assert verified(game, game.answer(found.path, "short"))
        assert verified(game, game.answer(found.path, "gym"))


def test_no_solution_takes_everything_back():
    found = search(Countdown((1, 1), 50), order="given", width=None, budget=NO_LIMIT, rng=random.Random(0))
    done = walk(Countdown((1, 1), 50), found.steps)
    assert found.path is None
    assert (done.nodes, done.backtracks, done.path, done.solved) == (3, 3, [], False)  # 2, 0 and 1


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_budget_ends_a_search_where_it_stands(budget):
    game = Countdown((3, 5, 7, 9), 1000)
    found = search(game, order="given", width=None, budget=budget, rng=random.Random(0))
    done = walk(game, read(write(found.steps)))
    assert found.path is None
    assert done.nodes == budget
    assert done.path  # the last step still stands


def test_width_tries_the_first_moves_alone():
    game = Countdown((3, 5, 7), 26)
    narrow = search(game, order="distance", width=1, budget=NO_LIMIT, rng=random.Random(0))
    assert walk(game, narrow.steps).nodes <= 2
    first = game.moves(game.start, "distance", random.Random(0))[0]
    assert narrow.steps[0].text == game.write(first)


def test_orders_are_what_they_say():
    game, rng = Countdown((2, 3, 20), 21), random.Random(0)
    states = [game.after(game.start, move) for move in game.moves(game.start, "distance", rng)]
    costs = [sum(abs(n - 21) for n in state) // len(state) for state in states]
    assert costs == sorted(costs)
    by_factors = [game.after(game.start, move) for move in game.moves(game.start, "factors", rng)]
    # divisors of 21 from 2 on: 3, 7, 21
    sums = [sum(min(abs(n - d) for d in (3, 7, 21)) for n in state) for state in by_factors]
    assert sums == sorted(sums)
    board = boards("mini_sudoku", 30)[0]
    (first, *_), (fewest, *_) = (board.moves(board.start, order, rng) for order in ("first", "fewest"))
    assert first.cell == board.start.index(0)
    left = {cell: len(board.candidates(board.start, cell)) for cell, d in enumerate(board.start) if not d}
    assert left[fewest.cell] == min(left.values())


def test_random_orders_follow_the_seed():
    game = Countdown((3, 5, 7, 9), 33)
    texts = [
        write(search(game, order="random", width=None, budget=50, rng=random.Random(s)).steps) for s in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("numbers", [3, 4])
def test_every_problem_of_reasoning_gym_has_a_path_of_whole_numbers(numbers):
    config = {"min_numbers": numbers, "max_numbers": numbers, "max_value": 20, "min_target": 1, "max_target": 99}
    for entry in create_dataset("countdown", seed=3, size=60, **config):
        game = Countdown(tuple(entry["metadata"]["numbers"]), entry["metadata"]["target"])
        path = solve(game, order="distance", rng=random.Random(0))
        assert path is not None, entry
        assert verified(game, game.answer(path, "gym"))


@settings(max_examples=100, deadline=None)
@given(countdowns(most=5), st.randoms(use_true_random=False))
def test_an_expression_has_the_value_of_its_path(game, rng):
    """Any way down, solved or not; the parentheses are the ones that are needed."""
    state, path = game.start, []
    while len(state) > 1:
        path.append(rng.choice(game.moves(state, "given", rng)))
        state = game.after(state, path[-1])
    answer = game.answer(path, "short")
    assert makes_target(answer, game.numbers, state[0])


@pytest.mark.parametrize(
    ("numbers", "steps", "answer"),
    [
        ((2, 3, 4), "3+2=5,5*4=20", "(3+2)*4"),
        ((2, 3, 4), "3*2=6,6+4=10", "3*2+4"),
        ((2, 3, 4), "4-3=1,2-1=1", "2-(4-3)"),
        ((2, 3, 4), "4+3=7,7-2=5", "4+3-2"),
        ((2, 4, 8), "8/4=2,2*2=4", "2*8/4"),  # of equal numbers the given one first; (2*8)/4 is the same
        ((2, 4, 8), "4*2=8,8/8=1", "8/(4*2)"),
    ],
)
def test_expressions_by_hand(numbers, steps, answer):
    game = Countdown(numbers, 0)
    done = walk(game, read(steps))
    assert game.answer(done.path, "short") == answer


# --- the walk -----------------------------------------------------------------------------------------------------

BOARD = Sudoku((0, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 0), 4)


@pytest.mark.parametrize(
    ("game", "text", "message"),
    [
        (Countdown((2, 3, 4), 24), "5+2=7", r"step 0: 5\+2=7 takes 5, and \[4, 3, 2\] is what is left"),
        (Countdown((2, 3, 4), 24), "2*2=4", "takes 2"),
        (Countdown((2, 3, 4), 24), "3*2=7", r"step 0: 3\*2 is 6, not 7"),
        (Countdown((2, 3, 4), 24), "4/3=1", r"step 0: 4/3 is no whole number"),
        (Countdown((2, 3), 6), "3*2=6,6+6=12", "comes after the goal"),
        (Countdown((2, 3), 6), "3*2=6<<", "takes a step back, and none stands"),
        (Countdown((2, 3), 6), "3x2=6", "is no step of Countdown, expected such as"),
        (Countdown((2, 3), 6), "03*2=6", "is no step of Countdown, expected such as"),
        (Countdown((2, 3), 6), f"3*2={'6' * 5000}", "is no step of Countdown"),
        (Countdown((2, 3), 6), "٣*2=6", "is no step of Countdown"),
        (BOARD, "b1=1", "sets a cell that holds 2"),
        (BOARD, "a1=4", "a1=4: its row, column or box has a 4"),
        (BOARD, "e1=1", "no step of a Sudoku of 4 x 4"),
        (BOARD, "a1=9", "no step of a Sudoku of 4 x 4"),
    ],
)
def test_a_step_that_cannot_be_done(game, text, message):
    with pytest.raises(TraceError, match=message):
        walk(game, read(text))


def test_a_walk_that_is_not_strict_takes_results_as_they_stand():
    done = walk(Countdown((2, 3, 4), 28), read("3*2=7,7*4=28"), strict=False)
    assert done.solved
    assert walk(BOARD, read("a1=4"), strict=False).path == [(0, 4)]


def test_a_board_is_written_in_both_styles():
    assert written(BOARD.start, 4) == "_234/3412/2143/432_"
    assert written(BOARD.start, 4, style="gym") == "_ 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 _"


# --- k wrong branches ---------------------------------------------------------------------------------------------


def branches_in(text: str) -> tuple[list[str], list[tuple[int, str]]]:
    """Slow twin, from the text alone: the steps that stay, and (depth, first step) of what leaves them."""
    places, closed, stack = [], set(), []
    for token in re.findall(r"[^,<~]+(?:~\d+)?|<", text):
        if token == "<":
            closed.add(stack.pop())
        else:
            stack.append(len(places))
            places.append((len(stack) - 1, token.partition("~")[0], tuple(stack[:-1])))
    stays = [place for place in range(len(places)) if place not in closed]
    off = [places[p][:2] for p in sorted(closed) if list(places[p][2]) == stays[: places[p][0]]]
    return [places[p][1] for p in stays], off


def can_end_wrong(game, state) -> bool:
    if game.solved(state):
        return False
    moves = game.moves(state, game.ORDERS[0], random.Random(0))
    return not moves or any(can_end_wrong(game, game.after(state, move)) for move in moves)


@settings(max_examples=100, deadline=None)
@given(games(), st.sampled_from([0, 1, 2, 3, 5, 10]), st.integers(0, 2**32))
def test_k_detours_are_k_different_wrong_branches(game, k, seed):
    order = game.ORDERS[0]
    path = solve(game, order=order, rng=random.Random(seed))
    steps = detours(game, path, k, order=order, rng=random.Random(seed))
    text = write(steps)
    stays, wrong = branches_in(text)
    assert stays == [game.write(move) for move in path]
    assert len(set(wrong)) == len(wrong)  # all different
    assert not set(wrong) & set(enumerate(stays))  # and none the right one
    possible, state = 0, game.start
    for right in path:
        others = [m for m in game.moves(state, order, random.Random(0)) if m != right]
        possible += sum(can_end_wrong(game, game.after(state, move)) for move in others)
        state = game.after(state, right)
    assert len(wrong) == min(k, possible)
    done = walk(game, read(text))
    assert done.solved
    assert verified(game, game.answer(done.path, "short"))
    assert sorted(done.wrong_branches) == sorted(wrong)
    assert done.backtracks == text.count("<")
    assert write(detours(game, path, k, order=order, rng=random.Random(seed))) == text


@settings(max_examples=60, deadline=None)
@given(games(), st.integers(0, 2**32))
def test_a_wrong_branch_ends_where_nothing_is_left_to_try(game, seed):
    order = game.ORDERS[0]
    path = solve(game, order=order, rng=random.Random(0))
    states, before = [game.start], None
    for step in detours(game, path, 5, order=order, rng=random.Random(seed)):
        if step.kind == "create":
            states.append(game.after(states[-1], game.read(step.text)))
        elif step.kind == "close":
            if before != "close":
                assert not game.moves(states[-1], order, random.Random(0))
                assert not game.solved(states[-1])
            states.pop()
        before = "create" if step.kind == "cost" else step.kind


def test_boards_that_go_wrong_have_branches_enough():
    """Of a Sudoku with the first cell first; with the fewest digits first hardly anything can be tried."""
    found = {
        order: [
            len(
                walk(
                    game,
                    detours(game, solve(game, order=order, rng=random.Random(0)), 5, order=order, rng=random.Random(1)),
                ).wrong_branches
            )
            for game in boards("sudoku", 3)
        ]
        for order in ("first", "fewest")
    }
    assert found["first"] == [5, 5, 5]
    assert sum(found["fewest"]) < 15


# --- skipped branches ---------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(games(), st.floats(0, 1), st.integers(0, 2**32))
def test_what_skipping_leaves_is_a_trace_of_the_same_solution(game, share, seed):
    whole = search(game, order=game.ORDERS[0], width=None, budget=NO_LIMIT, rng=random.Random(0)).steps
    kept = skip_branches(whole, share, random.Random(seed))
    before, after = walk(game, whole), walk(game, read(write(kept)))
    assert after.path == before.path
    assert set(after.wrong_branches) <= set(before.wrong_branches)
    assert skip_branches(whole, 0, random.Random(seed)) == whole
    alone = walk(game, skip_branches(whole, 1, random.Random(seed)))
    assert (alone.path, alone.backtracks) == (before.path, 0)


def test_the_share_that_is_skipped():
    """Branches straight off the path: each goes with the probability named."""
    game = Countdown((2, 3, 5, 7), 210)
    whole = search(game, order="given", width=None, budget=NO_LIMIT, rng=random.Random(0)).steps
    count = len(walk(game, whole).wrong_branches)
    left = sum(len(walk(game, skip_branches(whole, 0.3, random.Random(seed))).wrong_branches) for seed in range(300))
    assert left / (300 * count) == pytest.approx(0.7, abs=0.04)
