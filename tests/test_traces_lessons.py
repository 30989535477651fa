"""entrl.traces: what is dropped from traces, errors in them, and whole lessons."""

import random
import re
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reasoning_gym import create_dataset

from entrl.tasks import load_task
from entrl.traces import (
    DropSpec,
    NoiseSpec,
    Problem,
    Step,
    TraceError,
    TraceSpec,
    drop_trace,
    problem_of,
    read,
    search,
    static_noise,
    trace_lesson,
    walk,
    write,
)
from entrl.traces.countdown import Countdown, FaultyCountdown
from entrl.traces.lessons import faulty
from entrl.traces.sudoku import Sudoku
from entrl.verify.countdown import makes_target
from entrl.verify.gym_expressions import exact
from entrl.verify.sudoku import fills_puzzle

FORMS = [
    TraceSpec(form="search", budget=2000),
    TraceSpec(form="search", budget=2000, order="random", skip=0.5, costs=True),
    TraceSpec(form="detours", k=0),
    TraceSpec(form="detours", k=3),
]


@cache
def problems() -> list[Problem]:
    config = {"min_numbers": 3, "max_numbers": 3, "max_value": 9, "min_target": 5, "max_target": 60}
    countdown = [entry["metadata"] for entry in create_dataset("countdown", seed=8, size=30, **config)]
    sudoku = [entry["metadata"]["puzzle"] for entry in create_dataset("mini_sudoku", seed=8, size=15)]
    return [
        *(Problem(Countdown(tuple(facts["numbers"]), facts["target"]), "short") for facts in countdown),
        *(Problem(Sudoku(tuple(digit for row in puzzle for digit in row), 4), "short") for puzzle in sudoku),
    ]


def verified(game, answer: str) -> bool:
    if isinstance(game, Countdown):
        return makes_target(answer, game.numbers, game.target)
    return fills_puzzle(answer, [list(game.start[i : i + 4]) for i in range(0, 16, 4)])


def noisy(spec: TraceSpec, **noise) -> TraceSpec:
    return TraceSpec(**{**vars(spec), "noise": NoiseSpec(**noise)})


# --- dropping -----------------------------------------------------------------------------------------------------

SEARCH = search(Countdown((3, 5, 7), 26), order="given", width=None, budget=100, rng=random.Random(0)).steps


def within(count: int, total: int, share: float) -> bool:
    """Four standard deviations of a binomial count: one draw in 16,000 lies outside."""
    return abs(count - total * share) <= 4 * (total * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("spec", "shares"),
    [
        (DropSpec(levels=[0.1, 0.2, 0.3, 0.15]), [0.25, 0.1, 0.2, 0.3, 0.15]),
        (DropSpec(levels=[0.2, 0.2, 0.2, 0.4], mode="slow"), [0, 1 / 3, 1 / 3, 1 / 3, 0]),
        (DropSpec(levels=[0.1, 0.2, 0.3, 0.2], mode="slow"), [0.25, 0.125, 0.25, 0.375, 0]),
        (DropSpec(mode="fast"), [0, 0, 0, 0, 1]),
    ],
)
def test_levels_come_as_often_as_asked(spec, shares):
    rng = random.Random(7)
    counts = Counter(drop_trace(SEARCH, spec, rng)[0] for _ in range(10_000))
    assert all(within(counts[level], 10_000, share) for level, share in enumerate(shares)), counts


def test_each_level_drops_what_it_says():
    creates = [step for step in SEARCH if step.kind == "create"]
    left = {level: drop_trace(SEARCH, _always(level), random.Random(3))[1] for level in range(1, 5)}
    assert left[1] == [step for step in SEARCH if step.kind != "close"]
    assert left[2] == creates
    assert left[4] == []
    kept = dropped = 0
    for seed in range(500):
        level, steps = drop_trace(SEARCH, _always(3), random.Random(seed))
        assert level == 3
        rest = iter(creates)
        assert all(step in rest for step in steps)  # in their order
        kept, dropped = kept + len(steps), dropped + len(creates) - len(steps)
    assert within(dropped, kept + dropped, 0.3)


def _always(level: int) -> DropSpec:
    return DropSpec(levels=[float(one == level) for one in range(1, 5)])


def test_lines_of_a_plain_text_are_steps_too():
    lines = [Step("create", line) for line in ("First, 3 + 5 is 8.", "Then 8 + 7 is 15.")]
    assert drop_trace(lines, _always(1), random.Random(0)) == (1, lines)
    assert drop_trace(lines, _always(4), random.Random(0)) == (4, [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"four probabilities, p1 to p4, that sum to at most 1, got None"),
        ({"levels": [0.1, 0.1]}, r"four probabilities"),
        ({"levels": [0.5, 0.5, 0.5, 0.0]}, r"sum to at most 1"),
        ({"levels": [-0.1, 0.5, 0.5, 0.1]}, r"four probabilities"),
        ({"levels": [0.0] * 4}, r"drop nothing in mode auto; raise one, or leave drop out"),
        ({"levels": [0.0, 0.0, 0.0, 0.5], "mode": "slow"}, r"drop nothing in mode slow"),
        ({"levels": [0.1] * 4, "mode": "fast"}, r"levels say nothing"),
        ({"levels": [0.1] * 4, "steps": 1.5}, r"drop\.steps is a probability"),
    ],
)
def test_drops_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DropSpec(**fields)


# --- noise --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(range(45)), st.sampled_from(FORMS), st.integers(0, 2**32))
def test_static_noise_never_changes_the_answer_and_dynamic_noise_always_does(which, form, seed):
    problem, name = problems()[which], str(seed)
    clean = trace_lesson(problem, form, seed=name)
    assert verified(problem.game, clean.answer)
    static = trace_lesson(problem, noisy(form, kind="static", intensity=1.0), seed=name)
    assert static.answer == clean.answer
    assert {**static.facts, "noise": None} == clean.facts
    were, are = (numbers_of(lesson.trace) for lesson in (clean, static))
    assert len(were) == len(are)
    assert all(a != b for a, b in zip(were, are, strict=True))  # every position
    dynamic = trace_lesson(problem, noisy(form, kind="dynamic", intensity=1.0), seed=name)
    assert dynamic.answer != clean.answer
    assert not verified(problem.game, dynamic.answer)


def numbers_of(text: str) -> list[str]:
    """Those of the steps, without costs."""
    return re.findall(r"\d+", re.sub(r"~\d+", "", text))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(range(45)), st.sampled_from(FORMS), st.floats(0.05, 1), st.integers(0, 2**32))
def test_what_follows_a_dynamic_error_is_built_on_it(which, form, intensity, seed):
    """Every step takes what the steps before it left, wrong as that may be, and ends where its numbers say."""
    problem = problems()[which]
    lesson = trace_lesson(problem, noisy(form, kind="dynamic", intensity=intensity), seed=str(seed))
    done = walk(problem.game, read(lesson.trace), strict=False)
    assert done.solved == (lesson.answer != "none")
    if intensity == 1 and isinstance(problem.game, Countdown):
        wrong = [
            problem.game.wrong((), problem.game.read(step.text)) for step in read(lesson.trace) if step.kind == "create"
        ]
        assert all(wrong)


def test_what_a_faulty_run_knows_is_the_value_of_its_expression():
    """Small numbers, so that equal ones stand side by side of which one is wrong; any way down."""
    undefined = 0
    for seed in range(1500):
        rng = random.Random(seed)
        numbers = [rng.randint(1, 4) for _ in range(rng.randint(3, 5))]
        game = FaultyCountdown(tuple(numbers), 7, rng.uniform(0.2, 0.9), str(seed))
        state, path = game.start, []
        while len(state) > 1:
            path.append(rng.choice(game.moves(state, "given", rng)))
            state = game.after(state, path[-1])
        answer, truth = game.answer(path, "short"), path[-1].result.truth
        if truth is None:
            undefined += 1
            with pytest.raises(ZeroDivisionError):
                exact(answer)
        else:
            assert exact(answer) == truth, (seed, answer)
    assert undefined < 100


@pytest.mark.parametrize("which", range(30, 45))
def test_a_digit_that_is_touched_is_never_the_right_one(which):
    game = faulty(problems()[which].game, 1.0, seed="x")
    states = [game.start]
    for _ in range(5):
        for cell, digit in enumerate(states[-1]):
            if not digit:
                assert all(move.digit != game.solution[cell] for move in game.possible(states[-1], cell))
        if not (moves := game.moves(states[-1], "first", random.Random(0))):
            break
        states.append(game.after(states[-1], moves[-1]))


def test_dynamic_errors_by_the_share_asked():
    """Of the results of the first moves of many boards: each is touched or it is not."""
    touched = total = 0
    for seed in range(400):
        game = FaultyCountdown((9, 7, 5, 3), 50, 0.3, str(seed))
        moves = game.possible(game.start)
        touched += sum(game.wrong(game.start, move) is not None for move in moves)
        total += len(moves)
    assert within(touched, total, 0.3)


def test_a_faulty_machine_makes_the_same_fault_again():
    game = FaultyCountdown((9, 7, 5), 50, 0.5, "a")
    assert game.possible(game.start) == game.possible(game.start)
    assert game.possible(game.start) != FaultyCountdown((9, 7, 5), 50, 0.5, "b").possible(game.start)


def test_without_faults_a_faulty_machine_is_the_right_one():
    right, faulty = Countdown((9, 7, 5, 2), 52), FaultyCountdown((9, 7, 5, 2), 52, 0.0, "a")
    runs = [search(game, order="given", width=None, budget=10**6, rng=random.Random(0)) for game in (right, faulty)]
    assert runs[0] == runs[1]
    assert runs[0].path is not None


def test_a_strict_walk_tells_the_two_kinds_of_text_apart_from_a_right_one():
    problem = problems()[0]
    for kind in ("static", "dynamic"):
        lesson = trace_lesson(problem, noisy(FORMS[0], kind=kind, intensity=1.0), seed="s")
        with pytest.raises(TraceError):
            walk(problem.game, read(lesson.trace))


@pytest.mark.parametrize("intensity", [0.2, 0.7])
def test_static_noise_by_the_share_asked(intensity):
    game, spec = problems()[0].game, NoiseSpec(kind="static", intensity=intensity)
    were, touched, total = numbers_of(write(SEARCH)), 0, 0
    for seed in range(100):
        are = numbers_of(static_noise(SEARCH, game, spec, random.Random(seed)))
        touched += sum(a != b for a, b in zip(were, are, strict=True))
        total += len(were)
    assert within(touched, total, intensity)


def test_units_of_static_noise():
    game, text = problems()[0].game, write(SEARCH)
    characters = static_noise(
        SEARCH, game, NoiseSpec(kind="static", intensity=1.0, unit="characters"), random.Random(1)
    )
    assert len(characters) == len(text)
    assert all(a != b for a, b in zip(characters, text, strict=True))
    steps = static_noise(SEARCH, game, NoiseSpec(kind="static", intensity=1.0, unit="steps"), random.Random(1))
    own = [step.text for step in SEARCH if step.kind == "create"]
    other = [step.text for step in read(steps) if step.kind == "create"]
    assert all(a != b and b in own for a, b in zip(own, other, strict=True))


def test_contamination_is_the_share_of_lessons_touched():
    spec = TraceSpec(form="detours", k=1, noise=NoiseSpec(kind="static", contamination=0.3, intensity=1.0))
    clean = TraceSpec(form="detours", k=1)
    touched = 0
    for seed in range(400):
        lesson = trace_lesson(problems()[3], spec, seed=str(seed))
        assert (lesson.facts["noise"] == "static") == (
            lesson.trace != trace_lesson(problems()[3], clean, seed=str(seed)).trace
        )
        touched += lesson.facts["noise"] == "static"
    assert within(touched, 400, 0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "static", "intensity": 0.0}, r"noise\.intensity is a share and must be in \(0, 1\], got 0\.0"),
        ({"kind": "static", "contamination": 1.5}, r"noise\.contamination is a share"),
        ({"kind": "dynamic", "unit": "steps"}, r"dynamic noise corrupts results; leave it out"),
    ],
)
def test_noise_that_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NoiseSpec(**fields)


# --- lessons ------------------------------------------------------------------------------------------------------


def test_a_lesson_by_hand():
    # 3, 2 to 6: one wrong first step that differs is there, 3+2 (3-2 is the other); the order of k=2 is drawn
    problem = Problem(Countdown((3, 2), 6), "short")
    assert trace_lesson(problem, TraceSpec(form="solution"), seed="0")[:2] == ("", "3*2")
    assert trace_lesson(problem, TraceSpec(form="detours", k=0), seed="0")[:2] == ("3*2=6", "3*2")
    both = trace_lesson(problem, TraceSpec(form="detours", k=5), seed="0")
    assert both.trace in ("3+2=5<,3-2=1<,3*2=6", "3-2=1<,3+2=5<,3*2=6")
    assert both.facts["wrong_branches"] == 2
    whole = trace_lesson(problem, TraceSpec(form="search", order="given", costs=True), seed="0")
    assert whole.trace == "3+2=5~1<,3*2=6~0"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(range(45)), st.sampled_from(FORMS), st.integers(0, 2**32))
def test_a_lesson_follows_from_its_seed_and_each_draw_from_its_own(which, form, seed):
    problem, name = problems()[which], str(seed)
    clean = trace_lesson(problem, form, seed=name)
    assert clean == trace_lesson(problem, form, seed=name)
    drop = TraceSpec(**{**vars(form), "drop": DropSpec(levels=[0.25, 0.0, 0.25, 0.25])})
    levels = {trace_lesson(problem, one, seed=name).facts["level"] for one in (drop, noisy(drop, kind="static"))}
    assert len(levels) == 1  # noise draws from a generator of its own
    dropped = trace_lesson(problem, drop, seed=name)
    assert dropped.answer == clean.answer
    assert dropped.facts["level"] != 4 or dropped.trace == ""


def test_a_list_of_orders_mixes_them():
    spec = TraceSpec(form="search", order=["distance", "factors", "random"])
    orders = Counter(trace_lesson(problems()[1], spec, seed=str(seed)).facts["order"] for seed in range(450))
    assert all(within(orders[order], 450, 1 / 3) for order in ("distance", "factors", "random"))


def test_what_the_teacher_does_not_find_it_says_so():
    problem = Problem(Countdown((3, 5, 7, 9), 1000), "short")
    lesson = trace_lesson(problem, TraceSpec(form="search", budget=5), seed="0")
    assert lesson.answer == "none"
    assert lesson.facts["nodes"] == 5
    assert trace_lesson(problem, TraceSpec(form="detours", k=2), seed="0")[:2] == ("", "none")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "detours"}, r"form detours needs k"),
        ({"form": "search", "k": 3}, r"form search has no k, got 3"),
        ({"form": "detours", "k": -1}, r"k must be 0 or more, got -1"),
        ({"form": "search", "width": 0}, r"width must be at least 1"),
        ({"form": "search", "skip": 2.0}, r"skip is a probability"),
        ({"form": "detours", "k": 1, "width": 2}, r"trace\.width is for form search and says nothing to detours"),
        ({"form": "solution", "costs": True}, r"form solution has no trace"),
        ({"form": "solution", "noise": NoiseSpec(kind="static")}, r"form solution has no trace"),
        ({"form": "search", "drop": DropSpec(levels=[0.0, 0.5, 0.0, 0.0])}, r"p2 drops costs, and there are none"),
        ({"form": "search", "order": []}, r"order is an empty list"),
    ],
)
def test_traces_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TraceSpec(**fields)


def test_tasks_and_orders_that_do_not_fit():
    with pytest.raises(ValueError, match=r"trace is for the tasks countdown, sudoku, .*, got sums"):
        FORMS[0].check_task("sums")
    with pytest.raises(ValueError, match=r"trace\.order of sudoku must be of first, fewest, random, got 'distance'"):
        TraceSpec(form="search", order=["first", "distance"]).check_task("sudoku")


@pytest.mark.parametrize(
    ("task", "style"),
    [
        ("countdown", "short"),
        ("sudoku", "short"),
        ("reasoning_gym:countdown", "gym"),
        ("reasoning_gym:mini_sudoku", "gym"),
    ],
)
def test_the_game_of_a_row(task, style):
    for row in load_task(task, size=2):
        problem = problem_of(row["verifier"])
        assert problem.style == style
        path = trace_lesson(problem, TraceSpec(form="detours", k=1), seed="0")
        assert read(path.trace)
    with pytest.raises(ValueError, match=r"a row of kind 'math' is none of them"):
        problem_of('{"kind": "math"}')
