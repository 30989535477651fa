"""Puzzles with a dial: minima of the tables, plans that verify, mutated moves that fail where they stand."""

import itertools
import random
from collections import deque

import pytest
from puzzle_twins import replayed

from entrl.puzzles import PUZZLES, Judged, first_solution_position, judge, puzzle_of, summary
from entrl.puzzles.blocks import Blocks
from entrl.puzzles.checkers import Checkers
from entrl.puzzles.hanoi import Hanoi
from entrl.puzzles.naming import LETTERS, PEOPLE, arrangement, combination
from entrl.puzzles.plans import plan_text, shortest_plan, slipped_plan
from entrl.puzzles.replay import replay
from entrl.puzzles.river import River, is_safe
from entrl.verify.judge import MAX_PUZZLE, check

SMALL = [
    *(Hanoi(n=n) for n in (1, 2, 3, 4)),
    *(Checkers(n=n) for n in (1, 2, 3)),
    *(River(n=n, boat=k) for n, k in ((1, 2), (2, 2), (3, 2), (2, 3), (3, 3), (5, 3), (6, 4))),
    *(Blocks(n=n, goal=goal) for n in (2, 3, 4, 5) for goal in ("empty", "first", "second")),
]


def named(puzzle) -> str:
    return " ".join(str(value) for key, value in puzzle.spec().items() if key in ("puzzle", "n", "boat", "goal"))


def drawn(puzzle, seed: int):
    """Another instance of the same problem."""
    options = {key: value for key, value in puzzle.spec().items() if key in ("boat", "goal")}
    count = type(puzzle).count(puzzle.n, **options)
    return type(puzzle).instance(random.Random(seed).randrange(count), puzzle.n, **options)


@pytest.mark.parametrize(
    ("make", "minima"),
    [
        (lambda n: Hanoi(n=n), [2**n - 1 for n in range(1, 9)]),
        (lambda n: Checkers(n=n), [n * (n + 2) for n in range(1, 7)]),
        (lambda n: River(n=n, boat=2), [1, 5, 11]),
        (lambda n: River(n=n, boat=3), [1, 3, 5, 9, 11]),
        (lambda n: River(n=n, boat=4), [1, 1, 3, 5, 7, 9]),
        (lambda n: Blocks(n=n + 1, goal="empty"), [2, 3, 4, 5, 6, 7]),
        (lambda n: Blocks(n=n + 1, goal="second"), [1, 2, 6, 7, 10]),
        (lambda n: Blocks(n=n + 1, goal="first"), [3, 6, 7, 10, 11]),
    ],
    ids=["hanoi", "checkers", "boat 2", "boat 3", "boat 4", "empty", "second", "first"],
)
def test_minima_equal_the_table(make, minima):
    assert [len(shortest_plan(make(n))) for n in range(1, len(minima) + 1)] == minima


@pytest.mark.slow
def test_minima_of_the_largest_blocks():
    assert [len(shortest_plan(Blocks(n=7, goal=goal), states=200_000)) for goal in ("second", "first")] == [11, 14]


@pytest.mark.parametrize("puzzle", SMALL, ids=named)
@pytest.mark.parametrize("seed", range(3))
def test_every_optimal_plan_verifies_under_every_name(puzzle, seed):
    """The plan is found under other names than the instance has, and the twin reads the prompt alone."""
    puzzle = drawn(puzzle, seed)
    plan = shortest_plan(puzzle)
    assert judge(plan_text(plan), puzzle.spec()) == Judged(solved=True, length=len(plan))
    assert replayed(puzzle.name, puzzle.prompt(), plan) == (True, None, None)
    assert puzzle_of(puzzle.spec()) == puzzle
    assert puzzle.plain() == puzzle_of({**puzzle.plain().spec(), "kind": "puzzle"})


def every_move(puzzle):
    """All lists of names that look like a move."""
    if puzzle.name == "river":
        return [list(c) for k in (1, 2, puzzle.boat + 1) for c in itertools.combinations(puzzle.people, k)]
    squares = {
        "hanoi": lambda: ([str(i + 1) for i in range(puzzle.n)], puzzle.pegs),
        "checkers": lambda: (puzzle.colours, [str(puzzle.first + i) for i in range(2 * puzzle.n + 1)]),
        "blocks": lambda: (puzzle.labels, puzzle.stacks),
    }
    what, where = squares[puzzle.name]()
    return [[a, b, c] for a in what for b in where for c in where]


@pytest.mark.parametrize("puzzle", [p for p in SMALL if p.n in (2, 3)], ids=named)
def test_one_mutated_move_fails_at_its_index(puzzle):
    """Every move of the plan replaced by every other: where the twin finds that move illegal, the index is its own."""
    puzzle = drawn(puzzle, 7)
    plan = shortest_plan(puzzle)
    at_its_own = 0
    for index in range(len(plan)):
        for other in every_move(puzzle):
            if sorted(other) == sorted(plan[index]) and puzzle.name == "river":
                continue  # the same people
            moves = [*plan[:index], other, *plan[index + 1 :]]
            found = replay(puzzle, moves)
            solved, error, where = replayed(puzzle.name, puzzle.prompt(), moves)
            assert (found.solved, found.index) == (solved, where)
            assert (found.error in ("not_solved", "after_goal")) == (error in ("not_solved", "after_goal"))
            at_its_own += where == index
        misspelt = replay(puzzle, [*plan[:index], ["nobody", *plan[index][1:]], *plan[index + 1 :]])
        assert (misspelt.error, misspelt.index) == ("unknown", index)
    assert at_its_own > len(plan)  # or nothing was illegal


@pytest.mark.parametrize(
    ("puzzle", "moves", "error", "index"),
    [
        (Hanoi(n=3), [["1", "A", "C"], ["2", "A", "C"]], "larger_on_smaller", 1),
        (Hanoi(n=3), [["2", "A", "C"]], "not_on_top", 0),
        (Hanoi(n=3), [["1", "B", "C"]], "not_on_top", 0),
        (Hanoi(n=3), [["1", "A", "A"]], "same_place", 0),
        (Hanoi(n=3), [["4", "A", "B"]], "unknown", 0),
        (Hanoi(n=3), [["1", "A"]], "unknown", 0),
        (Hanoi(n=3), [["1", "A", "C"]], "not_solved", None),
        (Hanoi(n=1), [["1", "A", "C"], ["1", "C", "B"]], "after_goal", 1),
        (Checkers(n=2), [["red", "0", "1"]], "occupied", 0),
        (Checkers(n=2), [["red", "3", "2"]], "not_there", 0),
        (Checkers(n=2), [["red", "1", "2"], ["red", "2", "1"]], "backwards", 1),
        (Checkers(n=2), [["red", "0", "2"]], "over_own", 0),
        (Checkers(n=3), [["red", "0", "3"]], "too_far", 0),
        (Checkers(n=2), [["red", "1", "9"]], "unknown", 0),
        (River(n=2, boat=2), [["Ada"], ["Ali"]], "not_there", 1),
        (River(n=2, boat=2), [["Ada", "Ali", "Amy"]], "capacity", 0),
        (River(n=2, boat=2), [["Ada", "Ada"]], "repeated", 0),
        (River(n=2, boat=2), [["Ada", "Ana"]], "unsafe", 0),  # in the boat
        (River(n=2, boat=2), [["Ali"]], "unsafe", 0),  # Ada stays behind with Ana
        (River(n=2, boat=2), [["Bo"]], "unknown", 0),
        (Blocks(n=4), [["A", "1", "3"]], "not_on_top", 0),
        (Blocks(n=4), [["B", "3", "1"]], "not_on_top", 0),
        (Blocks(n=4), [["B", "1", "1"]], "same_place", 0),
        (Blocks(n=4), [["E", "1", "3"]], "unknown", 0),
    ],
)
def test_error_classes_by_hand(puzzle, moves, error, index):
    found = replay(puzzle, moves)
    assert (found.solved, found.error, found.index, found.length) == (False, error, index, len(moves))
    assert found.why


def test_a_longer_plan_is_right_and_one_that_goes_on_is_not():
    puzzle = Hanoi(n=2)
    plan = shortest_plan(puzzle)
    around = [["1", "A", "C"], ["1", "C", "A"], *plan]
    assert replay(puzzle, around).solved
    after = replay(puzzle, [*plan, ["1", "C", "B"], ["1", "B", "C"]])  # and back at the goal
    assert (after.solved, after.error, after.index) == (False, "after_goal", 3)


@pytest.mark.parametrize(
    ("n", "boat", "match"),
    [
        (
            4,
            2,
            "n = 4 pairs cannot cross in a boat of 2: a boat of 2 takes at most 3 pairs across, a boat of 3 at most 5",
        ),
        (6, 3, "n = 6 pairs cannot cross in a boat of 3"),
        (1, 1, "a boat of 1 none"),
        (2, 0, "boat must be a whole number from 1 on, got 0"),
        (31, 4, "n must be a whole number from 1 to 30, got 31"),
    ],
)
def test_what_has_no_solution_is_refused(n, boat, match):
    for make in (lambda: River(n=n, boat=boat), lambda: River.count(n, boat=boat)):
        with pytest.raises(ValueError, match=match):
            make()


def crossings(n: int, boat: int) -> int | None:
    """Fewest crossings by search over how many pairs stand how (both here, actor alone here, agent alone here)."""
    start, goal = (n, 0, 0, 0), (0, 0, 0, n)  # both here, actor here, agent here, both there
    seen, queue = {(start, 0): 0}, deque([(start, 0)])

    def safe(actors_alone, agents):  # groups as numbers
        return not (actors_alone and agents)

    while queue:
        state, side = queue.popleft()
        if state == goal:
            return seen[state, side]
        both, actor, agent, there = state if side == 0 else (state[3], state[2], state[1], state[0])
        for pairs, one, other, a, g in itertools.product(*(range(k + 1) for k in (both, both, both, actor, agent))):
            if pairs + one + other > both or not 0 < 2 * pairs + one + other + a + g <= boat:
                continue
            left = (both - pairs - one - other, actor - a + other, agent - g + one, there)
            # in the boat: pairs, lone actors, lone agents; behind: actors whose agents left or were over
            over = (left[0], left[1], left[2], there + pairs + a + g)
            good = safe(one + a, pairs + other + g)
            good &= safe(over[1], over[0] + over[2]) and safe(over[2], over[3] + over[1])
            after = over if side == 0 else (over[3], over[2], over[1], over[0])
            if good and (after, 1 - side) not in seen:
                seen[after, 1 - side] = seen[state, side] + 1
                queue.append((after, 1 - side))
    return None


def test_which_boats_take_whom_by_another_search():
    """The rule of refusal and the table, and that a boat of 4 goes on where the tables end."""
    tables = {1: [None] * 3, 2: [1, 5, 11, None, None], 3: [1, 3, 5, 9, 11, None, None], 4: [1, 1, 3, 5, 7, 9]}
    for boat, wanted in tables.items():
        assert [crossings(n, boat) for n in range(1, len(wanted) + 1)] == wanted
    assert all(crossings(n, 4) for n in (7, 10, 14))


def test_safety_by_hand():
    """Bits: actor 0, agent 0, actor 1, agent 1."""
    assert not is_safe(0b1001, 2)  # actor 0 with agent 1
    assert is_safe(0b1011, 2)  # and agent 0
    assert is_safe(0b0101, 2)  # two actors
    assert is_safe(0b1010, 2)  # two agents
    assert is_safe(0, 2)


@pytest.mark.parametrize("name", PUZZLES)
def test_sizes_that_are_none(name):
    for n in (0, -1, 2.0, True, "3", None, 10**9):
        with pytest.raises(ValueError, match=f"{name}: n must be a whole number from"):
            PUZZLES[name](n=n)
        with pytest.raises(ValueError, match=f"{name}: n must be a whole number from"):
            PUZZLES[name].count(n)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"puzzle": "tower", "n": 3}, "puzzle must be one of hanoi, checkers, river, blocks, got 'tower'"),
        ({"puzzle": "hanoi"}, "hanoi cannot be made of"),
        ({"puzzle": "hanoi", "n": 3, "disks": 3}, "hanoi cannot be made of"),
        ({"puzzle": "hanoi", "n": 3, "pegs": ["A", "A", "B"]}, "pegs must be 3 different words"),
        ({"puzzle": "hanoi", "n": 3, "pegs": "ABC"}, "pegs must be 3 different words"),
        ({"puzzle": "hanoi", "n": 3, "pegs": ["A", "B", "]"]}, "words of letters and digits"),
        ({"puzzle": "checkers", "n": 3, "first": -1}, "first must be a whole number from 0 on"),
        ({"puzzle": "blocks", "n": 3, "goal": "third"}, "goal must be one of empty, first, second, got 'third'"),
        ({"puzzle": "blocks", "n": 3, "labels": ["B", "A", "C"]}, "labels must be in alphabetical order"),
        ({"puzzle": "blocks", "n": 1}, "n must be a whole number from 2 to 676"),
    ],
)
def test_specs_that_make_no_puzzle(spec, match):
    with pytest.raises(ValueError, match=match):
        judge("moves = [[1, A, C]]", spec)


def test_instances_differ_and_there_are_as_many_as_is_said():
    small = [("hanoi", 2, {}, 15_600), ("checkers", 1, {}, 5_520), ("river", 1, {}, 3_540), ("blocks", 26, {}, 504)]
    for name, n, options, count in small:
        kind = PUZZLES[name]
        assert kind.count(n, **options) == count
        indices = range(count) if count < 1_000 else random.Random(0).sample(range(count), 1_000)
        assert len({kind.instance(i, n, **options).prompt() for i in indices}) == len(indices)
    assert Blocks.count(2) == 163_800
    assert River.count(2) == 60 * 59 * 58 * 57
    assert Blocks.instance(Blocks.count(30) - 1, 30).labels[-1] == "ZZ"


def test_choices_by_index_are_all_choices():
    assert [arrangement(i, "abcd", 2) for i in range(12)] == list(itertools.permutations("abcd", 2))
    assert [combination(i, "abcde", 3) for i in range(10)] == list(itertools.combinations("abcde", 3))
    assert len(set(PEOPLE)) == len(PEOPLE) == 60
    assert len(LETTERS) == 26


def test_a_search_that_is_too_large_says_so():
    with pytest.raises(
        ValueError, match="hanoi with n = 9: no plan found among 1,000 states; answers are judged without"
    ):
        shortest_plan(Hanoi(n=9), states=1_000)
    straight = [["1", "A", "C"], ["2", "A", "B"], ["1", "C", "B"]]
    assert judge(plan_text(straight), Hanoi(n=16).spec()).error == "not_solved"  # no plan is needed to judge


def hanoi_moves(n, source="A", spare="B", goal="C"):
    """The classical recursion."""
    if n:
        yield from hanoi_moves(n - 1, source, goal, spare)
        yield [str(n), source, goal]
        yield from hanoi_moves(n - 1, spare, source, goal)


def test_the_largest_sizes_fit_into_what_is_read():
    text = plan_text(list(hanoi_moves(16)))
    assert 700_000 < len(text) <= MAX_PUZZLE
    assert check("puzzle", text, "", Hanoi(n=16).spec()) == 1.0
    widest = Checkers(n=200, colours=("orange", "yellow"), first=9)
    one = ", ".join(widest.write((1, 300, 301)))
    assert len(f"[{one}], ") * 200 * (200 + 2) <= MAX_PUZZLE
    assert [list(m) for m in hanoi_moves(7)] == shortest_plan(Hanoi(n=7))


def test_where_a_trace_first_holds_a_solution():
    puzzle = Hanoi(n=2, pegs=("X", "Y", "Z"))
    right, wrong = plan_text(shortest_plan(puzzle)), "moves = [[1, X, Z], [2, X, Z]]"
    trace = f"Try {wrong}. No. Or {right}? Yes. But also {wrong}"
    assert first_solution_position(trace, puzzle.spec()) == (trace.index(right) + len(right)) / len(trace)
    assert first_solution_position(f"{wrong} and [[1, X", puzzle.spec()) is None
    assert first_solution_position("", puzzle.spec()) is None
    assert first_solution_position(right, puzzle.spec()) == 1.0


@pytest.mark.parametrize(
    "puzzle", [Hanoi(n=3, pegs=("X", "Q", "M")), Checkers(n=2), River(n=3), Blocks(n=5)], ids=lambda puzzle: puzzle.name
)
def test_slips_are_other_legal_moves_of_the_plans_states(puzzle):
    plan = shortest_plan(puzzle)
    assert slipped_plan(puzzle, 0.0, random.Random(0)) == plan
    slips = seen = 0
    for seed in range(200):
        moves = slipped_plan(puzzle, 0.25, random.Random(seed))
        assert moves == slipped_plan(puzzle, 0.25, random.Random(seed))
        assert len(moves) == len(plan)
        state = puzzle.start()
        for move, right in zip(moves, plan, strict=True):
            puzzle.step(state, puzzle.read(move))  # legal here
            others = {tuple(puzzle.write(m)) for m in puzzle.moves(state) if is_legal(puzzle, state, m)} - {
                tuple(right)
            }
            slips, seen = slips + (move != right), seen + bool(others)
            state = puzzle.step(state, puzzle.read(right))
        first = next((i for i, (move, right) in enumerate(zip(moves, plan, strict=True)) if move != right), None)
        found = judge(plan_text(moves), puzzle.spec())
        assert found.solved or first is not None
        assert found.index is None or found.index > first
    assert slips / seen == pytest.approx(0.25, abs=0.05)


def is_legal(puzzle, state, move):
    try:
        puzzle.step(state, move)
    except ValueError:
        return False
    return True


def test_summary_by_hand():
    judged = [
        Judged(solved=True, length=3),
        Judged(solved=False, error="unfinished"),
        Judged(solved=False, error="unsafe", index=2, length=5),
        Judged(solved=False, error="unsafe", index=5, length=9),
        Judged(solved=False, error="not_solved", length=1),
    ]
    found = summary(judged, ["2", "2", "3", "3", "3"])
    assert found == {
        "2": {"answers": 2, "solved": 0.5, "truncated": 0.5, "first_illegal_move": None, "legal_share": 1.0,
              "errors": {}},
        "3": {
            "answers": 3, "solved": 0.0, "truncated": 0.0, "first_illegal_move": 3.5,
            "legal_share": pytest.approx((2 / 5 + 5 / 9 + 1) / 3), "errors": {"not_solved": 1, "unsafe": 2},
        },
    }  # fmt: skip
    assert judged[2].record() == {"solved": False, "error": "unsafe", "index": 2, "length": 5, "why": ""}
    with pytest.raises(ValueError, match="zip"):
        summary(judged, ["2"])
