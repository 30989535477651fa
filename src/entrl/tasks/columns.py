"""The columns of a file that are not the task's own: they go to rewards under their names, one type a column.

Numbers, text, booleans and null reach a reward as they are, and so do lists of one of these. A column of objects or of
lists inside lists arrives as JSON text: a table fills the keys that one object lacks and another has. Of a CSV file, a
column whose every cell is written as a number holds numbers. Whatever differs within a column is refused.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

from entrl.settings.names import suggest
from entrl.tasks.records import Record

# Names that TRL or the trainer passes to rewards itself, or that steer them: a column of that name would be lost, or
# would stand in for the real thing. `entrl_` is the prefix of the trainer's own row keys.
RESERVED = frozenset(
    {
        *("prompts", "completion", "completions", "completion_ids", "prompt_ids", "trainer_state"),
        *("log_extra", "log_metric", "environment", "environments"),
        *("token_entropies", "token_logprobs", "token_mask", "group_index", "truncated"),
        *("answer_texts", "think_tags", "gather", "training", "tokenizer"),
    }
)
PREFIX = "entrl_"
IMAGES = ("image", "images")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
LARGEST = 2**63  # integers of a table are below
# Two types of which the second holds what the first does.
WIDER = (
    ("integer", "number"),
    ("list of integer", "list of number"),
    *(("list of nothing", f"list of {kind}") for kind in ("boolean", "integer", "number", "text")),
)
CURE = "leave it out with the option drop_columns"


def extra_columns(
    records: Sequence[Record], own: Collection[str], drop: Sequence[str], *, from_text: bool
) -> dict[str, list[Any]]:
    """Column name -> its values, None where a record has none; ValueError names the column and the line.

    own: columns of the task, which are not repeated here. drop: columns to leave out. from_text: cells are text and
    may mean numbers.
    """
    names = list(dict.fromkeys(name for record in records for name in record.values))
    if unknown := [name for name in drop if name not in names]:
        raise ValueError(f"drop_columns names {unknown[0]!r}, which the file has not.{suggest(unknown[0], names)}")
    found = {}
    for name in names:
        if name in own or name in drop:
            continue
        where = next(record.where for record in records if name in record.values)
        if name in IMAGES:
            raise ValueError(f"{where} has the column {name!r}: prompts with images are not supported; {CURE}")
        if name in RESERVED or name.startswith(PREFIX):
            raise ValueError(f"{where} has the column {name!r}, a name that training uses itself; rename it, or {CURE}")
        values = [record.values.get(name) for record in records]
        wheres = [record.where for record in records]
        found[name] = _one_type(name, _numbers(values) if from_text else values, wheres)
    return found


def _numbers(cells: list[Any]) -> list[Any]:
    """Cells as numbers where all that are not empty are written as numbers; 007 and 1,5 are text."""
    written = [cell for cell in cells if cell is not None]
    if not written or not all(NUMBER.fullmatch(cell) and math.isfinite(float(cell)) for cell in written):
        return cells
    return [None if cell is None else int(cell) if cell.lstrip("-").isdigit() else float(cell) for cell in cells]


def _one_type(name: str, values: list[Any], wheres: Sequence[str]) -> list[Any]:
    """The values as a table can hold them."""
    first: dict[str, str] = {}  # type -> the first place that has it
    for value, where in zip(values, wheres, strict=True):
        if value is not None:
            first.setdefault(_type(value, f"{where} column {name!r}"), where)
    for narrow, wide in WIDER:
        if narrow in first and wide in first:
            del first[narrow]
    if len(first) > 1 and all(kind == "object" or kind.startswith("list of ") for kind in first):
        first = {"object": ""}
    if len(first) > 1:
        (one, here), (other, there) = list(first.items())[:2]
        raise ValueError(
            f"column {name!r} mixes types: {one} in {here.rstrip(',')}, {other} in {there.rstrip(',')}; write all one "
            f"way, or {CURE}"
        )
    convert = _CONVERT.get(next(iter(first), ""), lambda value: value)
    return [None if value is None else convert(value) for value in values]


def _type(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float | Decimal):
        if (isinstance(value, int) and abs(value) >= LARGEST) or not math.isfinite(value):
            why = "write null where there is no value" if not math.isfinite(value) else "write it as a string"
            raise ValueError(f"{where} holds {value}, which a table cannot hold; {why}")
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        kinds = {_type(item, where) for item in value if item is not None}
        kinds = {"number"} if kinds == {"integer", "number"} else kinds
        flat = len(kinds) <= 1 and not any(kind == "object" or kind.startswith("list") for kind in kinds)
        return f"list of {next(iter(kinds), 'nothing')}" if flat else "object"
    raise ValueError(f"{where} holds a {type(value).__name__}; write it as text or a number, or {CURE}")


def _floats(values: list[Any]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


_CONVERT: dict[str, Callable[[Any], Any]] = {"number": float, "list of number": _floats, "object": _as_json}
