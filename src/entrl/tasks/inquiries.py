"""Rows to play: the tasks `twenty_questions` and `diagram` of `entrl.tasks.load_task`.

    {"task": "twenty_questions", "rows": 8, "columns": 8}
    {"task": "twenty_questions", "tables": "animals", "user_noise": 0.1}
    {"task": "diagram", "slots": 3, "expertise": "mixed"}

A row holds what `reset` needs (table_id, target, user_noise, max_questions, seed) beside the columns of every task;
`verifier` is "": the environment knows what is right. The target is a function of the row, so all rollouts of a group
look for the same one.

Split: by a hash of the table's seed, never by the target; a task with one table (animals, a user's own, a diagram
world) splits by the episode's seed, that is both sides have the same table and different draws.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from entrl.environments.diagram import Expertise
from entrl.environments.diagram_worlds import SLOTS, World, find_world, values_listed, world_id, written
from entrl.environments.events import draw, pick
from entrl.environments.table_files import find_table
from entrl.environments.tables import Table
from entrl.environments.twenty_questions import game_prompt
from entrl.tasks.rows import Row, chat, digest, side_of


def twenty_questions_rows(
    *,
    split: str,
    size: int,
    seed: int,
    rows: int = 16,
    columns: int = 16,
    flip: float = 0.05,
    tables: str = "procedural",
    show: str = "table",
    user_noise: float = 0.0,
    max_questions: int = 20,
) -> list[Row]:
    """One row per game.

    rows, columns, flip: of procedural tables, one new table for each row. tables: `procedural`, `animals`,
    `loaded:FILE` (.json, .csv) or `loaded:module:function`. show: `table` puts every row into the prompt, `names` the
    names and the attributes only. user_noise: probability of a wrong answer. max_questions: budget.
    """
    if show not in ("table", "names"):
        raise ValueError(f"show must be 'table' or 'names', got {show!r}")
    _check(user_noise, max_questions)
    if tables != "procedural":
        find_table(tables)  # a missing file is reported before anything is made
    shape = f"procedural:rows={rows},columns={columns}"
    suffix = "" if flip == 0.05 else f",flip={flip!r}"
    found = []
    for number in _seeds(f"twenty_questions/{seed}", split, size):
        table_id = f"{shape},seed={number}{suffix}" if tables == "procedural" else tables
        table = find_table(table_id)
        target = _target(table, number)
        found.append(
            _row(
                prompt=chat(game_prompt(table, show)),
                target=target,
                problem_id=f"twenty_questions/{table_id}/{target}/{number}",
                level=f"{len(table.hypotheses)}x{len(table.questions)}",
                table_id=table_id,
                user_noise=float(user_noise),
                max_questions=max_questions,
                seed=number,
            )
        )
    return found


def diagram_rows(
    *,
    split: str,
    size: int,
    seed: int,
    slots: int | Sequence[str] = len(SLOTS),
    dependencies: bool = True,
    world: int = 0,
    expertise: str = "expert",
    opening: bool = True,
    show: str = "values",
    user_noise: float = 0.0,
    max_questions: int = 6,
) -> list[Row]:
    """One row per request.

    slots: how many of the nine from the first, or which. dependencies: the rules between slots. world: seed of the
    marginals; both sides of the split share it, and the rules. expertise: `expert`, `intermediate`, `novice`, or
    `mixed`, drawn per row. opening: the request names the value of one slot. show: `values` lists every slot with its
    values, `slots` the slots only. user_noise: probability that an answer is about another value. max_questions:
    budget.
    """
    if expertise not in (*get_args(Expertise), "mixed"):
        raise ValueError(f"expertise must be one of {', '.join(get_args(Expertise))} or mixed; got {expertise!r}")
    if show not in ("values", "slots"):
        raise ValueError(f"show must be 'values' or 'slots', got {show!r}")
    _check(user_noise, max_questions)
    table_id = world_id(slots=slots, dependencies=dependencies, world=world)
    place = find_world(table_id)
    found = []
    for number in _seeds(f"diagram/{seed}", split, size):
        truth = place.specification(draw(number, table_id, "target"))
        named = list(place.slots)[int(draw(number, table_id, "named") * len(place.slots))] if opening else ""
        user = get_args(Expertise)[int(draw(number, table_id, "user") * 3)] if expertise == "mixed" else expertise
        found.append(
            _row(
                prompt=chat(_request(place, truth, named, show)),
                target=written(truth),
                problem_id=f"{table_id}/{number}",
                level=user,
                table_id=table_id,
                user_noise=float(user_noise),
                max_questions=max_questions,
                seed=number,
                expertise=user,
                named=named,
            )
        )
    return found


def _request(place: World, truth: dict[str, str], named: str, show: str) -> str:
    """A vague wish, and what there is to ask."""
    wish = f"I need a diagram with {named}={truth[named]}." if named else "I need a diagram."
    slots = values_listed(place) if show == "values" else f"Slots: {' '.join(place.slots)}"
    return f"{wish} Ask me about one slot at a time, then submit all slots as slot=value; slot=value.\n\n{slots}"


def _check(user_noise: float, max_questions: int) -> None:
    if not 0 <= user_noise <= 1:
        raise ValueError(f"user_noise must be in [0, 1], got {user_noise}")
    if max_questions < 1:
        raise ValueError(f"max_questions must be >= 1, got {max_questions}")


def _row(*, prompt: list[dict[str, str]], target: str, problem_id: str, level: str, **columns: Any) -> Row:
    row: dict[str, Any] = {"prompt": prompt, "answer": target, "target": target, "verifier": ""}
    return row | {"problem_id": problem_id, "level": level} | columns  # type: ignore[return-value]


def _seeds(name: str, split: str, size: int) -> Iterator[int]:
    """`size` numbers of one side of the split; the first n do not depend on how many are asked for."""
    number = digest(name) % 2**30  # seeds start far apart
    for _ in range(size):
        while side_of(f"table/{number}") != split:
            number += 1
        yield number
        number += 1


def _target(table: Table, seed: int) -> str:
    prior = [1.0] * len(table.hypotheses) if table.prior is None else table.prior
    return table.hypotheses[pick(prior, draw(seed, table.table_id, "target"))]
