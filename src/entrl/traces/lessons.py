"""A lesson: the trace of one problem and its answer, as `answers.lessons.trace` of a cold start asks for it.

Every draw of a lesson (order, search, branches, skips, drops, noise) has a generator of its own, which the seed, the
problem and the number of the lesson decide. So the same lesson with and without noise differs by the noise alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from entrl.traces.countdown import Countdown, FaultyCountdown
from entrl.traces.detours import detours
from entrl.traces.dropping import DropSpec, drop_trace
from entrl.traces.game import Game, Move
from entrl.traces.noise import NoiseSpec, static_noise
from entrl.traces.problems import TASKS, Problem
from entrl.traces.search import search, skip_branches, solve, walk
from entrl.traces.steps import Step, write
from entrl.traces.sudoku import FaultySudoku, Sudoku

NOTHING = "none"  # the answer of a search that found nothing
FAULTY_RUNS = 10  # of the forms that need a solution: so many sets of faults are tried until one leads to any


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """How the lessons of a search problem are written."""

    form: Literal["search", "detours", "solution"]
    k: int | None = None  # detours: wrong branches
    order: str | list[str] | None = None  # what is tried first (None: the game's default); a list: one per lesson
    width: int | None = None  # search: moves tried at a node
    budget: int | None = None  # search: steps until the teacher gives up (BUDGET)
    skip: float = 0.0  # search: probability of leaving a failed branch out
    keep_unsolved: bool = True  # teach lessons whose search found nothing, and says so
    costs: bool = False
    drop: DropSpec | None = None
    noise: NoiseSpec | None = None

    def __post_init__(self) -> None:
        if (self.form == "detours") != (self.k is not None):
            what = "needs k, the number of wrong branches" if self.k is None else f"has no k, got {self.k}"
            raise ValueError(f"trace.form {self.form} {what}; `detours` has wrong branches, others have none to count")
        if self.k is not None and self.k < 0:
            raise ValueError(f"trace.k must be 0 or more, got {self.k}")
        for name in ("width", "budget"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"trace.{name} must be at least 1, got {value}; leave it out for no limit of yours")
        if not 0 <= self.skip <= 1:
            raise ValueError(f"trace.skip is a probability and must be in [0, 1], got {self.skip}")
        set_here = {"width": self.width, "budget": self.budget, "skip": self.skip or None}
        if self.form != "search" and (odd := [key for key, value in set_here.items() if value is not None]):
            raise ValueError(f"trace.{odd[0]} is for form search and says nothing to {self.form}; leave it out")
        if self.form == "solution" and (self.costs or self.drop or (self.noise and self.noise.kind == "static")):
            raise ValueError("trace.form solution has no trace for costs, drop or static noise; leave them out")
        if self.drop is not None and self.drop.levels and self.drop.levels[1] and not self.costs:
            raise ValueError("trace.drop.levels: p2 drops costs, and there are none; set trace.costs: true, or p2 to 0")
        if self.order is not None and not self.orders():
            raise ValueError("trace.order is an empty list; name what is tried first, or leave it out")

    def orders(self) -> list[str]:
        """Those to draw from; [] for the game's default."""
        return [self.order] if isinstance(self.order, str) else list(self.order or [])

    def check_task(self, task: str | None) -> None:
        """ValueError for a task whose rows have no search, or an order that its game does not have."""
        if task not in TASKS:
            raise ValueError(f"trace is for the tasks {', '.join(TASKS)}, got {task or 'none'}; name one of them")
        for order in self.orders():
            if order not in TASKS[task].ORDERS:
                raise ValueError(f"trace.order of {task} must be of {', '.join(TASKS[task].ORDERS)}, got {order!r}")


BUDGET = 200  # steps; a full search of three numbers takes at most about 60, of a mini Sudoku mostly under 30


class Lesson(NamedTuple):
    trace: str
    answer: str
    facts: dict[str, str | int | bool | None]  # what `train.jsonl` keeps of it


def trace_lesson(problem: Problem, spec: TraceSpec, *, seed: str) -> Lesson:
    """The lesson of a problem; `seed` names it and decides every draw."""

    def drawn(what: str) -> random.Random:
        return random.Random(f"{seed}/{what}")

    order = drawn("order").choice(spec.orders() or [problem.game.ORDERS[0]])
    touched = spec.noise if spec.noise is not None and drawn("touched").random() < spec.noise.contamination else None
    dynamic = touched is not None and touched.kind == "dynamic"
    game, steps, path = problem.game, [], None
    for run in range(FAULTY_RUNS if dynamic and spec.form != "search" else 1):
        if dynamic:
            assert touched is not None
            game = faulty(problem.game, touched.intensity, seed=f"{seed}/faults/{run}")
        steps, path = _searched(game, spec, order, drawn)
        if path is not None:
            break
    facts = _facts(problem.game, steps) | {"order": order, "noise": touched.kind if touched else None}
    facts["solved"] = path is not None  # of a faulty run, as it believes
    steps = skip_branches(steps, spec.skip, drawn("skip"))
    steps = steps if spec.costs else [step for step in steps if step.kind != "cost"]
    if spec.drop is not None:
        facts["level"], steps = drop_trace(steps, spec.drop, drawn("drop"))
    text = write(steps)
    if touched is not None and touched.kind == "static":
        text = static_noise(steps, problem.game, touched, drawn("noise"))
    return Lesson(text, NOTHING if path is None else game.answer(path, problem.style), facts)


def _searched(
    game: Game, spec: TraceSpec, order: str, drawn: Callable[[str], random.Random]
) -> tuple[list[Step], list[Move] | None]:
    """The steps of one run, costs included, and the path to what it takes for the solution."""
    if spec.form == "search":
        return search(game, order=order, width=spec.width, budget=spec.budget or BUDGET, rng=drawn("search"))
    path = solve(game, order=order, rng=drawn("search"))
    if path is None or spec.form == "solution":
        return [], path
    assert spec.k is not None
    return detours(game, path, spec.k, order=order, rng=drawn("branches")), path


def _facts(game: Game, steps: list[Step]) -> dict[str, str | int | bool | None]:
    done = walk(game, steps, strict=False)
    return {"nodes": done.nodes, "backtracks": done.backtracks, "wrong_branches": len(done.wrong_branches)}


def faulty(game: Game, intensity: float, *, seed: str) -> Game:
    """The game on a faulty machine, the same one for the same seed."""
    if isinstance(game, Countdown):
        return FaultyCountdown(game.numbers, game.target, intensity, seed)
    assert isinstance(game, Sudoku)
    path = solve(game, order="fewest", rng=random.Random(seed))
    solution = list(game.start)
    for cell, digit in path or ():
        solution[cell] = digit
    return FaultySudoku(game.start, game.side, tuple(solution), intensity, seed)
