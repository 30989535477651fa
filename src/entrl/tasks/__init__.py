"""Problems with verifiers: one function turns a task name into rows TRL can train on.

    load_task("sums", split="train", size=1000, seed=0)
    load_task({"task": "reasoning_gym:countdown", "max_numbers": 4}, split="test", size=200, seed=0)

Every row has `prompt` (a string, or chat messages), `answer` (the gold answer, a string; None where a file has none),
`verifier` (JSON that `entrl_rewards.accuracy` reads), `problem_id` and `level` (a string; "" where the task has no
levels). A file's other columns go with them to the rewards.

Kinds:   `sums` (the tiny reasoner's task), `additions` (the overthinker's), `functions` (programs), `hanoi`,
         `checkers`, `river`, `blocks` (puzzles with a dial), `graph_path` (paths through graphs), `countdown` and
         `sudoku` (asked in a line, see `docs/search_traces.md`), `reasoning_gym:NAME`, files of your own
         (`jsonl:PATH`, `json:PATH`, `csv:PATH`, `parquet:PATH`, see `entrl.tasks.files`), benchmarks of the hub by
         name; `twenty_questions` and `diagram`, which are played in an environment (see `entrl.tasks.inquiries`)
Split:   procedural tasks put a problem in train or test by a hash of its text, so the two never share one,
         whatever the seeds and sizes (see `entrl.tasks.rows.side_of`)
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from entrl.settings.arguments import argument_hints
from entrl.settings.groups import typed
from entrl.settings.names import suggest
from entrl.tasks.additions import additions_rows
from entrl.tasks.countdown import countdown_rows
from entrl.tasks.files import FILE_TASKS, file_rows
from entrl.tasks.functions import functions_rows
from entrl.tasks.graph_paths import graph_path_rows
from entrl.tasks.hub import BENCHMARKS, benchmark_rows
from entrl.tasks.puzzles import blocks_rows, checkers_rows, hanoi_rows, river_rows
from entrl.tasks.reasoning_gym_rows import chat_rows
from entrl.tasks.rows import Row, as_dataset
from entrl.tasks.sudoku import sudoku_rows
from entrl.tasks.sums import sums_rows

if TYPE_CHECKING:  # a second to import, and readers of run folders need only `entrl.settings.json_lines`
    from datasets import Dataset

Split = Literal["train", "test"]
PROCEDURAL: dict[str, Callable[..., list[Row]]] = {
    "sums": sums_rows,
    "additions": additions_rows,
    "functions": functions_rows,
    "hanoi": hanoi_rows,
    "checkers": checkers_rows,
    "river": river_rows,
    "blocks": blocks_rows,
    "graph_path": graph_path_rows,
    "countdown": countdown_rows,
    "sudoku": sudoku_rows,
}
INQUIRIES = ("twenty_questions", "diagram")
FEW = ("additions", "hanoi", "checkers", "blocks")  # generated, and there are no more than some thousands of them

__all__ = ["FILE_TASKS", "Row", "Split", "is_endless", "is_soon_made", "load_task", "task_names"]


def task_names() -> list[str]:
    """Names `load_task` knows, with the two families written as patterns."""
    return [*PROCEDURAL, *BENCHMARKS, *INQUIRIES, "reasoning_gym:NAME", *(f"{kind}:PATH" for kind in FILE_TASKS)]


def is_endless(task: str) -> bool:
    """True for a task that generates its problems: it has as many as are asked for, and none repeats."""
    return task.partition(":")[0] in (*PROCEDURAL, "reasoning_gym", *INQUIRIES)


def is_soon_made(task: str) -> bool:
    """True for a generated task that has few problems: all that a run asks for can be made to look at them."""
    return task.partition(":")[0] in FEW


def load_task(
    spec: str | Mapping[str, Any], *, split: Split = "train", size: int | None = None, seed: int = 0
) -> "Dataset":
    """Rows of a task; `spec` is a name, or a mapping with the key `task` and that task's own options.

    `size` None means all rows of a file or benchmark; a procedural task has no end and needs a number.
    """
    options = dict(spec) if isinstance(spec, Mapping) else {"task": spec}
    if "task" not in options:
        raise ValueError(f"a task needs the key `task`, got {sorted(options)}; known: {', '.join(task_names())}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be >= 1, got {size}; leave it out for all rows")
    for key in ("split", "size", "seed"):
        if key in options:
            raise ValueError(f"{key!r} is an argument of load_task, not an option of the task; move it out")
    name = str(options.pop("task"))
    kind, _, argument = name.partition(":")
    builder, arguments, open_ended = _builder(kind, argument, name)
    if not open_ended:
        _check_options(name, builder, options)
    if is_endless(name) and size is None:
        raise ValueError(f"task {name!r} generates problems without end; say how many with `size`")
    return as_dataset(builder(*arguments, split=split, size=size, seed=seed, **options), name=name)


def _builder(kind: str, argument: str, name: str) -> tuple[Callable[..., list[Row]], tuple[str, ...], bool]:
    """The function behind a name, its leading arguments, and whether it checks its options by itself."""
    if name in PROCEDURAL:
        return PROCEDURAL[name], (), False
    if kind == "reasoning_gym" and argument:
        return chat_rows, (argument,), True
    if kind in FILE_TASKS and argument:
        return file_rows, (kind, argument), False
    if name in BENCHMARKS:
        return benchmark_rows, (name,), False
    if name in INQUIRIES:
        from entrl.tasks import inquiries  # brings the games

        return getattr(inquiries, f"{name}_rows"), (), False
    if name.endswith(tuple(f".{kind}" for kind in FILE_TASKS)):
        raise ValueError(f"unknown task {name!r}. For a file of your own write {name.rpartition('.')[2]}:{name}")
    hint = suggest(name, [*PROCEDURAL, *INQUIRIES, *BENCHMARKS])
    raise ValueError(f"unknown task {name!r}.{hint} Known: {', '.join(task_names())}")


def _check_options(name: str, builder: Callable[..., list[Row]], options: dict[str, Any]) -> None:
    """Names and types; the values stay as they are written, for rows and their ids hold them."""
    parameters, hints = inspect.signature(builder).parameters.values(), argument_hints(builder)
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("split", "size", "seed")]
    for key, value in options.items():
        if key not in known:
            hint = suggest(key, known)
            raise ValueError(f"task {name!r} has no option {key!r}.{hint} It takes: {', '.join(known) or 'none'}")
        typed(value, hints[key], f"task {name!r}: {key}")
