"""Your own problems: a JSON-lines file with one problem a line.

    {"prompt": "What is 2 + 2?", "answer": "4"}

Required: `prompt` (a string, or chat messages) and `answer` (a string or a number). Optional: `verifier` (an object
or its JSON, of kind math, exact or choice; default math), `problem_id` (default the line number), `level`. Name
other columns with the options `prompt_column`, `answer_column`. A file holds one split: name another file for
evaluation, or set `test_every: 5` to hold out the problems whose text hashes to that side.
"""

import json
import random
from pathlib import Path
from typing import Any

from entrl.tasks.rows import Row, digest, verifier_json
from entrl.verify.judge import file_verifier


def jsonl_rows(
    path: str,
    *,
    split: str,
    size: int | None,
    seed: int,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    verifier: str = "math",
    test_every: int = 0,
) -> list[Row]:
    """Rows of the file, in its order; with `size`, a sample drawn with `seed`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"task file {path!r} does not exist (looked at {file.resolve()})")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            rows.append(_row(line, f"{path}:{number}", number, prompt_column, answer_column, verifier))
    if test_every:
        rows = [r for r in rows if (_side(r, test_every) == "test") is (split == "test")]
    if size is not None and size < len(rows):
        rows = random.Random(seed).sample(rows, size)
    return rows


def _row(line: str, where: str, number: int, prompt_column: str, answer_column: str, verifier: str) -> Row:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}")
    for column in (prompt_column, answer_column):
        if column not in record:
            raise ValueError(
                f"{where} has no column {column!r}; it has {sorted(record)}. "
                "Rename yours with the options prompt_column and answer_column"
            )
    return Row(
        prompt=record[prompt_column],
        answer=str(record[answer_column]),
        verifier=file_verifier(record.get("verifier", verifier_json(verifier)), where),
        problem_id=str(record.get("problem_id", f"line-{number}")),
        level=str(record.get("level", "")),
    )


def _side(row: Row, test_every: int) -> str:
    return "test" if digest(json.dumps(row["prompt"], sort_keys=True)) % test_every == 0 else "train"
