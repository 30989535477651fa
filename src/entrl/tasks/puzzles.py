"""Rows of the puzzles with a dial: `hanoi`, `checkers`, `river`, `blocks` (docs/puzzles.md).

Every row is another instance; instances of one size differ in names (`entrl.puzzles.naming`). Sizes are dealt out in
turn, so that each has the same number of rows up to one. `answer` is a shortest plan where the search finds one among
`entrl.puzzles.plans.STATES` states, else "": answers are judged without it.
"""

import functools
import math
import random
from collections.abc import Iterator, Sequence

from entrl.puzzles import PUZZLES
from entrl.puzzles.blocks import Goal
from entrl.puzzles.plans import plan_line, plan_text, shortest_plan
from entrl.puzzles.puzzle import Puzzle
from entrl.tasks.rows import Form, Row, chat, digest, short_prompt, side_of, verifier_json


def hanoi_rows(
    *, split: str, size: int, seed: int, n: int | Sequence[int] = 3, form: Form = "chat", system: str = ""
) -> list[Row]:
    """n: disks, or several sizes. ValueError where a size has too few instances."""
    return _rows("hanoi", n, split=split, size=size, seed=seed, form=form, system=system)


def checkers_rows(
    *, split: str, size: int, seed: int, n: int | Sequence[int] = 2, form: Form = "chat", system: str = ""
) -> list[Row]:
    """n: checkers of each colour, or several sizes. ValueError where a size has too few instances."""
    return _rows("checkers", n, split=split, size=size, seed=seed, form=form, system=system)


def river_rows(
    *,
    split: str,
    size: int,
    seed: int,
    n: int | Sequence[int] = 2,
    boat: int = 3,
    form: Form = "chat",
    system: str = "",
) -> list[Row]:
    """n: pairs, or several sizes; boat: how many it holds. ValueError where there is no solution."""
    return _rows("river", n, split=split, size=size, seed=seed, form=form, system=system, boat=boat)


def blocks_rows(
    *,
    split: str,
    size: int,
    seed: int,
    n: int | Sequence[int] = 4,
    goal: Goal = "empty",
    form: Form = "chat",
    system: str = "",
) -> list[Row]:
    """n: blocks, or several sizes; goal: where the goal stack stands. ValueError for n below 2."""
    return _rows("blocks", n, split=split, size=size, seed=seed, form=form, system=system, goal=goal)


def levels_of(task: str, key: str, value: int | Sequence[int]) -> list[int]:
    """One number or several different ones, as a list."""
    levels = [value] if isinstance(value, int) else list(value)
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(
            f"task {task!r}: {key} must be a number, or different numbers such as [2, 3, 4], got {value!r}"
        )
    return levels


def dealt(tiers: Sequence[Sequence[Row]], size: int) -> list[Row]:
    """`size` rows, one of each tier in turn."""
    return [tiers[i % len(tiers)][i // len(tiers)] for i in range(size)]


def _rows(
    name: str, n: int | Sequence[int], *, split: str, size: int, seed: int, form: Form, system: str, **options: object
) -> list[Row]:
    levels = levels_of(name, "n", n)
    each = math.ceil(size / len(levels))
    tiers = [
        _tier(name, level, split=split, size=each, seed=seed, form=form, system=system, **options) for level in levels
    ]
    return dealt(tiers, size)


def _tier(
    name: str, n: int, *, split: str, size: int, seed: int, form: Form, system: str, **options: object
) -> list[Row]:
    kind = PUZZLES[name]
    rows: list[Row] = []
    for index in _indices(kind.count(n, **options), random.Random(f"{name}/{n}/{seed}")):
        row = _row(kind.instance(index, n, **options), form, system)
        if side_of(row["problem_id"]) == split:
            rows.append(row)
        if len(rows) == size:
            return rows
    raise ValueError(
        f"task {name!r} with n = {n} has {len(rows)} {split} instances, asked for {size}; ask for at most "
        f"{len(rows)}, or for several sizes (n: [2, 3, 4])"
    )


def _indices(count: int, draw: random.Random) -> Iterator[int]:
    """All numbers below `count` in an order drawn; how far it is followed does not change it."""
    seen: set[int] = set()
    while len(seen) < count:
        if (index := draw.randrange(count)) not in seen:
            seen.add(index)
            yield index


def _row(puzzle: Puzzle, form: Form, system: str) -> Row:
    verifier = verifier_json("puzzle", **puzzle.spec())
    line = form == "line"
    written = plan_line if line else plan_text
    return Row(
        prompt=short_prompt(puzzle.line(), system=system) if line else chat(puzzle.prompt(), system=system),
        answer=written(shortest_plan(puzzle)) if _has_plan(puzzle.plain()) else "",
        verifier=verifier,
        problem_id=f"{puzzle.name}/{digest(verifier):016x}",
        level=str(puzzle.n),
    )


@functools.lru_cache(maxsize=64)
def _has_plan(puzzle: Puzzle) -> bool:
    try:
        shortest_plan(puzzle)
    except ValueError:  # too many states
        return False
    return True
