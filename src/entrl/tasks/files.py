"""Your own problems: a file with one problem a line or row, as `jsonl:PATH`, `json:PATH`, `csv:PATH`, `parquet:PATH`.

    {"prompt": "What is 2 + 2?", "answer": "4"}

prompt      text, or chat messages with role and content (text, or a list of text parts) that end with the user's
            turn; one way throughout the file. `drop_last_turn: true` takes an assistant's last turn off
answer      text, or a number, which becomes plain text (1e-5 is "0.00001", 5.0 stays "5.0"); null or empty: no gold;
            for code the tests, as JSON text or as they are (`entrl.verify.code_tests`)
verifier    optional: math, exact, choice or code, as a word or an object such as {"kind": "choice", "letters":
            "ABCDE"}; null or no column: the option `verifier` of the task
problem_id  optional, unique; default the line or row number
level       optional
others      go to rewards under their names (see `entrl.tasks.columns`), apart from those named in `drop_columns`

`prompt_column` and `answer_column` name other columns for these two. A file holds one split: name another file for
evaluation, or set `test_every: 5` to hold out the problems whose text hashes to that side. Text is UTF-8, with or
without a byte order mark, with any line ends. `json:` is one array of objects.
"""

import json
import math
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from entrl.settings.names import suggest
from entrl.tasks.columns import extra_columns
from entrl.tasks.records import READERS, Record, Written, read_records
from entrl.tasks.rows import Row, digest
from entrl.verify.judge import file_verifier

FILE_TASKS = tuple(READERS)
ROLES = ("system", "developer", "user", "assistant", "tool")
# What other people's columns for these two are called, to be suggested where ours are missing.
OTHER_NAMES = {
    "prompt": ("prompts", "question", "problem", "messages", "conversations", "input", "instruction", "query"),
    "answer": ("answers", "solution", "gold", "gold_answer", "final_answer", "expected_answer", "target", "label"),
}


def file_rows(
    kind: str,
    path: str,
    *,
    split: str,
    size: int | None,
    seed: int,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    verifier: str = "math",
    test_every: int = 0,
    drop_columns: Sequence[str] = (),
    drop_last_turn: bool = False,
) -> list[Row]:
    """Rows of the file, in its order; with `size`, a sample drawn with `seed`. All of the file is checked."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder; name one file" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"task file {path!r} {what} (looked at {file.resolve()})")
    if test_every < 0 or test_every == 1:
        raise ValueError(
            f"task file {path!r}: test_every must be 0 (no split) or at least 2 (one problem in so many is held out), "
            f"got {test_every}"
        )
    records = read_records(kind, file, path)
    columns = {"prompt": prompt_column, "answer": answer_column}
    file_verifier(verifier, "option verifier of the task")
    rows = [_row(record, columns, verifier, drop_last_turn) for record in records]
    _check_alike(records, rows)
    own = {*columns, *columns.values(), "verifier", "problem_id", "level"}
    for name, values in extra_columns(records, own, drop_columns, from_text=kind == "csv").items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value  # type: ignore[literal-required]
    if test_every:
        rows = [r for r in rows if (_side(r, test_every) == "test") is (split == "test")]
    if size is not None and size < len(rows):
        rows = random.Random(seed).sample(rows, size)
    return rows


def _row(record: Record, columns: dict[str, str], verifier: str, drop_last_turn: bool) -> Row:
    values, where = record.values, record.where
    if missing := {ours: column for ours, column in columns.items() if column not in values}:
        likely = "".join(_likely(ours, column, values) for ours, column in missing.items())
        raise ValueError(
            f"{where} has no column {' and no '.join(map(repr, missing.values()))}; it has {sorted(values)}.{likely} "
            "Rename yours with the options prompt_column and answer_column"
        )
    prompt, answer = columns.values()
    judged = file_verifier(values.get("verifier"), where, default=verifier)
    gold = values[answer]
    if json.loads(judged)["kind"] == "code" and isinstance(gold, dict | list):
        gold = json.dumps(gold)
    return Row(
        prompt=_prompt(values[prompt], f"{where} column {prompt!r}", drop_last_turn),
        answer=_gold(gold, f"{where} column {answer!r}"),
        verifier=judged,
        problem_id=_word(values, "problem_id", where) or record.name,
        level=_word(values, "level", where),
    )


def _likely(ours: str, column: str, values: dict[str, Any]) -> str:
    """Which of the file's columns is meant: the same but for spaces and case, one with a usual name, or a close one."""
    for name in values:
        if name.strip().casefold() == column.casefold() or (column == ours and name in OTHER_NAMES[ours]):
            return f" Set {ours}_column: {json.dumps(name)}."
    return suggest(column, values)


def _check_alike(records: Sequence[Record], rows: Sequence[Row]) -> None:
    """One kind of prompt, since TRL reads the first row for all; and ids that occur once."""
    ids: dict[str, str] = {}
    for record, row in zip(records, rows, strict=True):
        if isinstance(row["prompt"], str) is not isinstance(rows[0]["prompt"], str):
            kinds = [("text" if isinstance(r["prompt"], str) else "chat messages") for r in (row, rows[0])]
            raise ValueError(
                f"{record.where} has {kinds[0]} as its prompt, {records[0].where} {kinds[1]}; write all one way"
            )
        if first := ids.get(row["problem_id"]):
            raise ValueError(
                f"{record.where} problem_id {row['problem_id']!r} occurs more than once, first in {first}; ids must be "
                "unique"
            )
        ids[row["problem_id"]] = record.where.rstrip(",")


def _prompt(value: Any, where: str, drop_last_turn: bool) -> str | list[dict[str, str]]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value:
        turns = [_turn(turn, f"{where}, message {i}") for i, turn in enumerate(value, start=1)]
        if turns[-1]["role"] == "assistant" and drop_last_turn and len(turns) > 1:
            turns.pop()
        last = turns[-1]
        if last["role"] == "assistant":
            cure = "leave it out, or set the option drop_last_turn: true"
            raise ValueError(f"{where} ends with an assistant's turn, which would show the model its answer; {cure}")
        if last["role"] not in ("user", "tool") or not last["content"].strip():
            raise ValueError(
                f"{where} ends with a {last['role']} turn {last['content'][:40]!r}; end with a user's text"
            )
        return turns
    empty = value is None or value in ("", []) or isinstance(value, str)
    got = "is empty" if empty else f"is {_shown(value)}, neither text nor a list of messages"
    raise ValueError(f"{where} {got}; give it a text, or leave the row out")


def _turn(turn: Any, where: str) -> dict[str, str]:
    """A message with its content as text; ValueError for what the model would not be shown."""
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        got = sorted(turn) if isinstance(turn, dict) else type(turn).__name__
        raise ValueError(f"{where} needs the keys role and content, got {got}")
    if turn["role"] not in ROLES:
        raise ValueError(f"{where} has the role {turn['role']!r}; known: {', '.join(ROLES)}")
    if more := sorted(k for k, v in turn.items() if k not in ("role", "content") and v is not None):
        raise ValueError(f"{where} has {more[0]!r}, which is not carried to the model; messages have role and content")
    content = turn["content"]
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where} has {_shown(content)} as its content; write text")
    return {"role": turn["role"], "content": content}


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(f"{where} has a part of type {kind!r}; only text is supported, as {{type: text, text: ...}}")


def _gold(value: Any, where: str) -> str | None:
    """The gold answer as text; None where there is none."""
    if value is None or isinstance(value, str):
        return value if value and value.strip() else None
    if not isinstance(value, bool) and isinstance(value, int | float | Decimal):
        return _plain(value, where)
    cures = {
        "bool": "write the word the model should give, in quotes",
        "list": "write the one answer that counts as text; alternatives are not supported",
        "dict": "write the answer as text and keep the rest in columns of its own",
    }
    cure = cures.get(type(value).__name__, "write it as text")
    raise ValueError(f"{where} is {_shown(value)}, which is no gold answer; {cure}")


def _plain(number: float | Decimal, where: str) -> str:
    """Digits without an exponent, as many as were written."""
    if not math.isfinite(number):
        raise ValueError(f"{where} is {number}; write null where there is no value")
    text = number.text if isinstance(number, Written) else str(number)
    return text if isinstance(number, int) else format(Decimal(text), "f")


def _word(values: dict[str, Any], name: str, where: str) -> str:
    """An id or a level as text, "" where there is none."""
    value = values.get(name)
    if isinstance(value, list | dict):
        raise ValueError(f"{where} column {name!r} is {_shown(value)}; write text or a number")
    return "" if value is None else value.text if isinstance(value, Written) else str(value)


def _shown(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "bool": "a boolean", "int": "a number", "Written": "a number"}
    kind = names.get(type(value).__name__, f"a {type(value).__name__}")
    return f"{kind} ({json.dumps(value, ensure_ascii=False, default=str)[:60]})"


def _side(row: Row, test_every: int) -> str:
    return "test" if digest(json.dumps(row["prompt"], sort_keys=True)) % test_every == 0 else "train"
