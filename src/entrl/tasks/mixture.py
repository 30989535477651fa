"""Several tasks as one training set, by weight.

A task with weight w gets the share w / (sum of weights) of the rows, to within one row, and no row occurs twice. Where
no number of rows is asked for, the mixture is as large as the task that is used up first allows (the rule of TRL's
`DatasetMixtureConfig.fraction`). Tasks alternate by their shares, so every stretch of rows holds them in proportion.

Which rows, and their order, follow from the seed and from what each task is, not from the order they are written in.
The column `task` says where a row comes from. A column that a task lacks is None in its rows. Ids that two tasks share
are told apart by the task's name in front: `gsm8k/3f...` becomes `hard/gsm8k/3f...`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from entrl.tasks.files import FILE_TASKS

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "task"  # the column


@dataclass(frozen=True, kw_only=True)
class Source:
    """One task of a mixture.

    load: (rows or None for all) -> rows. endless: it generates as many as are asked for, so it needs a number.
    limit: rows taken at most.
    """

    name: str
    weight: float
    load: Callable[[int | None], "Dataset"]
    endless: bool = False
    limit: int | None = None


def source_names(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each `{task, ...}`, files by their own: the task's where it is the only one of it, else
    numbered. ValueError where two are the same.
    """
    keys = [json.dumps(task, sort_keys=True, default=str) for task in tasks]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"data.mixture has {twice} twice; write it once, with the sum of its weights")
    short = [_short(str(task["task"])) for task in tasks]
    alike = {name: sorted(k for k, s in zip(keys, short, strict=True) if s == name) for name in short}
    return [
        name if len(alike[name]) == 1 else f"{name}-{alike[name].index(key) + 1}"
        for key, name in zip(keys, short, strict=True)
    ]


def _short(task: str) -> str:
    kind, colon, name = task.partition(":")
    return name.rpartition("/")[2].rpartition(".")[0] or name if colon and kind in FILE_TASKS else task


def shares(weights: Sequence[float]) -> list[Fraction]:
    """Of the rows, exact for weights as they are written; ValueError for one that is not above 0."""
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"a weight of data.mixture must be finite and above 0, got {weight}; leave the task out")
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def row_counts(total: int, weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Rows of each task: `total` in all, each within one of its share; the largest remainders are rounded up."""
    exact = [total * share for share in shares(weights)]
    counts = [math.floor(x) for x in exact]
    rest = sorted(range(len(names)), key=lambda i: (counts[i] - exact[i], names[i]))
    for i in rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


def mixed(sources: Sequence[Source], *, size: int | None, seed: int) -> "Dataset":
    """The mixture, `size` rows of it or as many as it allows; ValueError names the task that it lacks rows of."""
    names, weights = [s.name for s in sources], [s.weight for s in sources]
    known = {s.name: s.load(s.limit) for s in sources if not s.endless}
    limits = {name: len(rows) for name, rows in known.items()}
    limits |= {s.name: s.limit for s in sources if s.endless and s.limit is not None}
    parts = shares(weights)
    most = min((math.floor(limits[n] / p) for n, p in zip(names, parts, strict=True) if n in limits), default=None)
    total = size if size is not None else most
    assert total is not None, "a mixture of endless tasks needs a size"
    counts = row_counts(total, weights, names)
    for name, count in zip(names, counts, strict=True):
        if name in limits and count > limits[name]:
            raise ValueError(
                f"data.mixture: {total} rows take {count} of {name!r}, which has {limits[name]}; set data.train_size "
                f"to {most} at most (leave it out for that), or lower its weight: no row is taken twice"
            )
    if none := [n for n, count in zip(names, counts, strict=True) if count == 0]:
        raise ValueError(f"data.mixture: {total} rows leave none for {none[0]!r}; raise its weight or data.train_size")
    taken = {}
    for source, count in zip(sources, counts, strict=True):
        rows = known[source.name] if source.name in known else source.load(count)
        taken[source.name] = rows.shuffle(seed=seed).select(range(count)) if len(rows) > count else rows
    return _in_turn(taken)


def _in_turn(taken: dict[str, "Dataset"]) -> "Dataset":
    """All rows, row j of n standing at (j + 1/2) / n of the way."""
    from datasets import concatenate_datasets

    names = sorted(taken)
    _refuse_two_kinds_of_prompts(taken)
    ids = [row_id for name in names for row_id in taken[name]["problem_id"]]
    prefixed = len(set(ids)) < len(ids)
    parts = [_named(taken[name], name, prefixed) for name in names]
    try:
        table = concatenate_datasets(parts)
    except ValueError as error:
        raise ValueError(
            f"data.mixture: a column has different types in {', '.join(names)}, such as numbers in one and text in the "
            f"other; rename it, or leave it out with the option drop_columns ({str(error)[:200]})"
        ) from error
    places = [((j + 0.5) / len(part), k) for k, part in enumerate(parts) for j in range(len(part))]
    return table.select(sorted(range(len(places)), key=lambda i: places[i]))


def _named(rows: "Dataset", name: str, prefixed: bool) -> "Dataset":
    if TASK in rows.column_names:
        raise ValueError(f"data.mixture: {name!r} has a column {TASK!r}, which says where a row comes from; rename it")
    if prefixed:
        ids = [f"{name}/{row_id}" for row_id in rows["problem_id"]]
        rows = rows.remove_columns("problem_id").add_column("problem_id", ids)  # pyright: ignore[reportCallIssue]
    return rows.add_column(TASK, [name] * len(rows))  # pyright: ignore[reportCallIssue]


def _refuse_two_kinds_of_prompts(taken: Mapping[str, "Dataset"]) -> None:
    kinds = {"texts" if isinstance(rows[0]["prompt"], str) else "messages": name for name, rows in taken.items()}
    if len(kinds) > 1:
        raise ValueError(
            f"data.mixture: the prompts of {kinds['texts']!r} are texts and those of {kinds['messages']!r} are "
            "messages; a training set has one kind"
        )
