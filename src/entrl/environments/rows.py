"""Rows to play: the tasks `twenty_questions` and `diagram` of `entrl.tasks.load_task`.

    {"task": "twenty_questions", "rows": 8, "columns": 8}
    {"task": "twenty_questions", "tables": "animals", "user_noise": 0.1}

A row holds what `reset` needs (table_id, target, user_noise, max_questions, seed) beside the columns of every task;
`verifier` is "": the environment knows what is right. The target is a function of the row, so all rollouts of a group
look for the same one.

Split: by a hash of the table's seed, never by the target; a task with one table (animals, a user's own) splits by the
episode's seed, that is both sides have the same table and different draws.
"""

import functools
from collections.abc import Iterator
from typing import Any

from entrl.environments.events import draw, pick
from entrl.environments.tables import YES_NO, Table, find_table
from entrl.tasks.rows import Row, chat, digest

TEST_EVERY = 5  # one seed in five is a test seed
INSTRUCTION = "Find the hidden one. Ask about one attribute at a time, then submit its name."


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
                prompt=chat(_prompt(table, show)),
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
        while (digest(f"table/{number}") % TEST_EVERY == 0) is not (split == "test"):
            number += 1
        yield number
        number += 1


def _target(table: Table, seed: int) -> str:
    prior = [1.0] * len(table.hypotheses) if table.prior is None else table.prior
    return table.hypotheses[pick(prior, draw(seed, table.table_id, "target"))]


@functools.lru_cache(maxsize=64)
def _prompt(table: Table, show: str) -> str:
    between = ", " if any(" " in question for question in table.questions) else " "
    if show == "names":
        words, names = (between.join(table.questions), " ".join(table.hypotheses))
        return f"{INSTRUCTION}\n\nAttributes: {words}\nNames: {names}"
    cell = _word if table.answers[:2] == YES_NO else _pair
    lines = []
    for name, values in zip(table.hypotheses, table.values, strict=True):
        words = [cell(table, question, value) for question, value in zip(table.questions, values, strict=True)]
        lines.append(f"{name}: {between.join(word for word in words if word)}".rstrip())
    return f"{INSTRUCTION}\n\n" + "\n".join(lines)


def _word(table: Table, question: str, value: int) -> str:
    """Only what is true; a third answer is named."""
    return ("", question)[value] if value < 2 else f"{question}={table.answers[value]}"


def _pair(table: Table, question: str, value: int) -> str:
    return f"{question}={table.answers[value]}"
