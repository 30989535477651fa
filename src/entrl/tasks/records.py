"""Files of records as people have them (JSON lines, a JSON array, CSV, parquet) -> dictionaries with their place."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrl.settings.json_lines import numbered_lines, read_text


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record; `where` is how an error names it, `name` what it is called when the file gives it no id."""

    where: str
    name: str
    values: dict[str, Any]


class Written(float):
    """A JSON number with a fraction or an exponent that keeps the digits its author wrote."""

    text: str

    def __new__(cls, text: str) -> "Written":
        value = super().__new__(cls, text)
        if value in (float("inf"), -float("inf")) or (value == 0 and text.lower().partition("e")[0].strip("-0.")):
            raise ValueError(f"{text[:40]} is beyond the range of numbers; write it as a string")
        value.text = text
        return value


def read_records(kind: str, file: Path, shown: str) -> list[Record]:
    """All records of a file; `shown` is its name in errors. ValueError says what is wrong where, and the next move."""
    return list(READERS[kind](file, shown))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; write null where there is no value")


def _parse(text: str, where: str, hint: str = "") -> Any:
    try:
        value = json.loads(text, parse_float=Written, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():  # half of a pair of surrogates is legal JSON and no text
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}{hint}") from error
    return value


def _json_lines(file: Path, shown: str) -> Iterator[Record]:
    for number, line in numbered_lines(file):
        where = f"{shown}:{number}"
        value = _parse(line, where, _line_hint(line.strip(), file))
        if not isinstance(value, dict):
            array = "; a file that is one JSON array is read as json:PATH" if isinstance(value, list) else ""
            raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}{array}")
        yield Record(where=where, name=f"line-{number}", values=value)


def _line_hint(line: str, file: Path) -> str:
    """What to do about a line that is no JSON."""
    if file.suffix.lower() in (".csv", ".tsv"):
        return ". This looks like CSV: write csv:PATH as the task"
    if line == "[":
        return ". This looks like one JSON array: write json:PATH as the task"
    if line.endswith(","):
        return ". One object a line, without commas between them"
    return ". One whole object a line" if line == "{" else ""


def _json(file: Path, shown: str) -> Iterator[Record]:
    hint = ". One object a line is read as jsonl:PATH" if file.suffix.lower() in (".jsonl", ".ndjson") else ""
    values = _parse(read_text(file), shown, hint)
    if not isinstance(values, list):
        raise ValueError(f"{shown} must be a JSON array of objects, got {type(values).__name__}{hint}")
    for number, value in enumerate(values, start=1):
        where = f"{shown}, item {number},"
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}")
        yield Record(where=where, name=f"item-{number}", values=value)


def _csv(file: Path, shown: str) -> Iterator[Record]:
    """A header and rows of equally many cells, quoted as RFC 4180 says; an empty cell is None.

    A column without a name (the index that pandas writes) is left out.
    """
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    start = 0
    try:
        header = next(reader, [])
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise ValueError(f"{shown}:1 has two columns {twice[0]!r}; rename one")
        start = reader.line_num
        for cells in reader:
            where, start = f"{shown}:{start + 1}", reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{where} has {len(cells)} cells, the header {len(header)}; quote cells that hold commas"
                )
            values = {name: cell or None for name, cell in zip(header, cells, strict=True) if name}
            yield Record(where=where, name=f"line-{where.rpartition(':')[2]}", values=values)
    except csv.Error as error:
        raise ValueError(f"{shown}:{start + 1} is not CSV: {error}") from error


def _parquet(file: Path, shown: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file).read()
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{shown} is no parquet file: {error}; name its kind as the task, such as jsonl:PATH"
        ) from error
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Record(where=f"{shown}, row {number},", name=f"row-{number}", values=values)


READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}
