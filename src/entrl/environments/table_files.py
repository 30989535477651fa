"""The table behind an id: one of ours, or a user's own file or function.

    animals_of_mine.json     {"hypotheses": [...], "questions": [...], "values": [[0, 1], ...]}, with any of "answers",
                             "prior", "likelihood" (question -> rows of probabilities);
                             or {"mizo": {"wings": true, ...}, ...}
    animals_of_mine.csv      a header `name,wings,fur`, then one row each; a column `prior` is the prior
    module:function          or `file.py:function`: returns a `Table`, a mapping as the JSON, or any object with
                             `hypotheses`, `questions`, `likelihood(question)`, `prior` and, if wanted, `answers` and
                             `render(question, answer)`

Cells are answers: 0/1, true/false, yes/no, or names of `answers`; without `answers`, names are collected in order.

Source:  method card information-gain, section 11 (the contract)
Needs:   numpy
"""

import csv
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entrl.beliefs import BeliefError, ShapeMismatch, UnknownAnswer
from entrl.environments.tables import YES_NO, Table, animals, procedural_table
from entrl.errors import named
from entrl.settings.names import find_file, load_object, suggest

_PROCEDURAL = re.compile(r"procedural:rows=(\d+),columns=(\d+),seed=(\d+)(?:,flip=([0-9.e-]+))?")


@functools.lru_cache(maxsize=4096)
def find_table(table_id: str) -> Table:
    """The table behind an id: `procedural:rows=8,columns=8,seed=17`, `animals`, or `loaded:` and a file or function."""
    if table_id == "animals":
        return animals()
    if match := _PROCEDURAL.fullmatch(table_id):
        rows, columns, seed = map(int, match.groups()[:3])
        return procedural_table(seed, rows=rows, columns=columns, flip=float(match[4] or 0.05))
    if table_id.startswith("loaded:"):
        table = load_table(table_id.removeprefix("loaded:"))
        _OPENED.add(table_id)
        return table
    raise ValueError(
        f"unknown table {table_id!r}; write 'procedural:rows=8,columns=8,seed=17', 'animals', or 'loaded:FILE.json', "
        "'loaded:FILE.csv', 'loaded:module:function'"
    )


_OPENED: set[str] = set()  # `loaded:` ids that this process was told to open; opening one can import and call code


def table_of_row(table_id: str) -> Table:
    """`find_table` for an id that stands in a data row: `loaded:` only where the recipe's task named it before."""
    if table_id.startswith("loaded:") and table_id not in _OPENED:
        raise ValueError(
            f"a row names the table {table_id!r}, which no recipe has opened; rows may not open files or call "
            "functions. Write it as `tables` of the task twenty_questions, or call entrl.environments.find_table first"
        )
    return find_table(table_id)


def load_table(source: str, *, base: Path | None = None) -> Table:
    """The table of a file or function. ValueError says what is wrong with it and where; FileNotFoundError."""
    table_id = f"loaded:{source}"
    try:
        if source.endswith(".json"):
            return _from_json(_read_json(find_file(source, base)), table_id)
        if source.endswith(".csv"):
            return _from_csv(find_file(source, base), table_id)
        if ":" in source:
            with named(f"table {source!r}"):
                return _from_python(load_object(source, base=base).value, table_id)
    except BeliefError as error:
        raise type(error)(f"table {source!r}: {error}") from error
    raise ValueError(f"cannot load a table from {source!r}; give FILE.json, FILE.csv or module:function")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error


def _from_json(content: Any, table_id: str) -> Table:
    if not isinstance(content, Mapping) or not content:
        raise ShapeMismatch(f"a table is an object, got {type(content).__name__}; see entrl.environments.table_files")
    if "hypotheses" not in content:
        return _from_rows(content, table_id)
    known = {"hypotheses", "questions", "values", "answers", "prior", "likelihood"}
    for key in content:
        if key not in known:
            raise ShapeMismatch(f"unknown key {key!r}.{suggest(key, known)} A table has {', '.join(sorted(known))}")
    for key in ("hypotheses", "questions"):
        if not isinstance(content.get(key), Sequence) or isinstance(content[key], str):
            raise ShapeMismatch(f"{key!r} must be a list of names")
    names, questions = tuple(content["hypotheses"]), tuple(content["questions"])
    prior = content.get("prior")
    if "likelihood" in content:
        return _soft(table_id, names, questions, content["likelihood"], content.get("answers"), prior)
    if "values" not in content:
        raise ShapeMismatch("the table has neither 'values' nor 'likelihood'")
    return _hard(table_id, names, questions, content["values"], content.get("answers"), prior)


def _from_rows(content: Mapping[str, Any], table_id: str) -> Table:
    """{"mizo": {"wings": true, ...}, ...}: each row says everything."""
    for name, row in content.items():
        if not isinstance(row, Mapping):
            raise ShapeMismatch(f"row {name!r} is a {type(row).__name__}; it should be {{attribute: answer, ...}}")
    questions = tuple(next(iter(content.values())))
    for name, row in content.items():
        if odd := sorted(set(row) ^ set(questions)):
            raise ShapeMismatch(f"row {name!r} and the first row differ in {', '.join(map(repr, odd))}; each says all")
    values = [[row[question] for question in questions] for row in content.values()]
    return _hard(table_id, tuple(content), questions, values, None, None)


def _from_csv(path: Path, table_id: str) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(map(str.strip, line))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} is no CSV: {error}") from error
    if len(lines) < 2 or len(lines[0]) < 2:
        raise ShapeMismatch(f"{path.name} needs a header 'name,attribute,...' and at least one row")
    header = lines[0]
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise ShapeMismatch(f"row {number} has {len(line)} cells, the header {len(header)}")
    columns = [i for i in range(1, len(header)) if header[i].casefold() != "prior"]
    prior = None
    if len(columns) < len(header) - 1:
        at = next(i for i in range(1, len(header)) if i not in columns)
        prior = [_number(line[at], number) for number, line in enumerate(lines[1:], 2)]
    names, questions = tuple(line[0] for line in lines[1:]), tuple(header[i] for i in columns)
    return _hard(table_id, names, questions, [[line[i] for i in columns] for line in lines[1:]], None, prior)


def _number(cell: str, row: int) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise ShapeMismatch(f"row {row}: prior {cell!r} is no number") from error


def _from_python(value: Any, table_id: str) -> Table:
    made: Any = value() if callable(value) and not hasattr(value, "hypotheses") else value
    if isinstance(made, Table):
        return dataclasses.replace(made, table_id=table_id)
    if isinstance(made, Mapping):
        return _from_json(made, table_id)
    lacking = [name for name in ("hypotheses", "questions", "likelihood") if not hasattr(made, name)]
    if lacking:
        raise ShapeMismatch(f"a {type(made).__name__} has no {', '.join(lacking)}; return a Table, or what a table has")
    names, questions = tuple(made.hypotheses), tuple(made.questions)
    likelihood = {question: made.likelihood(question) for question in questions}
    return _soft(
        table_id, names, questions, likelihood, getattr(made, "answers", None), getattr(made, "prior", None),
        getattr(made, "render", None),
    )  # fmt: skip


def _hard(
    table_id: str, names: tuple[str, ...], questions: tuple[str, ...], cells: Any, answers: Any, prior: Any
) -> Table:
    if not isinstance(cells, Sequence) or len(cells) != len(names):
        raise ShapeMismatch(f"'values' must have one row for each of the {len(names)} hypotheses")
    for name, row in zip(names, cells, strict=True):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(questions):
            raise ShapeMismatch(f"row {name!r} must have {len(questions)} cells, one for each question")
    given = tuple(answers) if answers is not None else _answers([cell for row in cells for cell in row])
    values = [
        [_index(cell, given, f"row {name!r}, {question!r}") for question, cell in zip(questions, row, strict=True)]
        for name, row in zip(names, cells, strict=True)
    ]
    array = np.array(values, dtype=np.int64).reshape(len(names), len(questions))
    return Table(
        table_id=table_id,
        hypotheses=names,
        questions=questions,
        values=array,
        answers=given,
        prior=prior,
        own_answers=None if answers is not None else _own_answers(array, given),
    )


def _own_answers(values: Any, answers: tuple[str, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Of an alphabet that was collected from all columns, what each column has; a yes or no brings the other along."""
    if len(answers) <= 2:
        return None
    truth = {0, 1} if answers[:2] == YES_NO else set()
    found = [set(column.tolist()) for column in values.T]
    return tuple(tuple(sorted(own | (truth if own & truth else set()))) for own in found)


_TRUTH = {"0": 0, "false": 0, "no": 0, "1": 1, "true": 1, "yes": 1}


def _answers(cells: list[Any]) -> tuple[str, ...]:
    """no and yes if nothing else occurs, then other names in the order of the table."""
    texts = [str(cell).strip().casefold() for cell in cells]
    others = tuple(dict.fromkeys(text for text in texts if text and text not in _TRUTH))
    return others if others and not any(text in _TRUTH for text in texts) else (*YES_NO, *others)


def _index(cell: Any, answers: tuple[str, ...], where: str) -> int:
    text = str(cell).strip().casefold()
    names = [str(answer).casefold() for answer in answers]
    if text in names:
        return names.index(text)
    if names[:2] == list(YES_NO) and text in _TRUTH:
        return _TRUTH[text]
    if isinstance(cell, int) and not isinstance(cell, bool) and 0 <= cell < len(answers):
        return cell
    raise UnknownAnswer(f"{where}: {cell!r} is none of the answers {', '.join(map(str, answers))}")


def _soft(
    table_id: str,
    names: tuple[str, ...],
    questions: tuple[str, ...],
    likelihood: Mapping[str, Any],
    answers: Any,
    prior: Any,
    rendering: Callable[[str, int], str] | None = None,
) -> Table:
    if not isinstance(likelihood, Mapping) or set(likelihood) != set(questions):
        raise ShapeMismatch("'likelihood' must have one entry for each question")
    try:
        tables = [np.asarray(likelihood[question], dtype=np.float64) for question in questions]
    except (TypeError, ValueError) as error:
        raise ShapeMismatch(f"a likelihood is no table of numbers: {error}") from error
    for question, one in zip(questions, tables, strict=True):
        if one.ndim != 2 or one.shape[0] != len(names) or one.shape[1] != tables[0].shape[1]:
            raise ShapeMismatch(
                f"the likelihood of {question!r} has shape {one.shape}; it needs a row for each of the {len(names)} "
                "hypotheses, and as many columns as the first question has"
            )
    count = tables[0].shape[1] if tables else 0
    default = YES_NO if count == 2 else tuple(str(i) for i in range(count))
    given = tuple(answers) if answers is not None else default
    if len(given) != count:
        raise ShapeMismatch(f"{len(given)} answer names for {count} columns of the likelihoods")
    stacked = np.stack(tables) if tables else np.zeros((0, len(names), 0))
    return Table(
        table_id=table_id,
        hypotheses=names,
        questions=questions,
        values=stacked.argmax(2).T if tables else np.zeros((len(names), 0), dtype=np.int64),
        answers=given,
        prior=prior,
        likelihoods=stacked,
        rendering=rendering,
    )
