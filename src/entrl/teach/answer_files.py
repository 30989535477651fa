"""Answers in files, and the choice among them: `entrl curate`.

A file of answers holds JSON lines with problem_id, prompt and completion (text, or chat messages); wherever it is
curated also correct (1, 0, or null where nobody checked) or pass_rate (of the problem); and where it likes source
(default: all one), length (in any unit) and level.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from entrl.models.load import load_tokenizer
from entrl.runs.folder import append_lines, write_json
from entrl.settings.json_lines import json_lines
from entrl.teach.curation import CurationSpec, curate

REQUIRED = ("problem_id", "prompt", "completion")
END_TOKENS = 1  # what a completion given as text lacks and SFT appends

Row = dict[str, Any]


def read_answers(file: Path) -> list[Row]:
    """Rows of a JSON-lines file; ValueError names the line that is no answer."""
    rows = []
    for number, row in json_lines(file):
        missing = [key for key in REQUIRED if row.get(key) is None] if isinstance(row, dict) else list(REQUIRED)
        if missing:
            raise ValueError(f"{file}:{number} lacks {', '.join(missing)}; an answer has {', '.join(REQUIRED)}")
        given = {key: value for key, value in row.items() if value is not None or key not in ("source", "level")}
        rows.append({**given, "problem_id": str(row["problem_id"])})
    if not rows:
        raise ValueError(f"{file} holds no answers")
    return rows


def with_lengths(rows: Sequence[Row], tokenizer: Any = None) -> list[Row]:
    """Rows that all have a `length`: their own, else tokens, else (without a tokenizer) characters."""
    given = sum(row.get("length") is not None for row in rows)
    if given == len(rows):
        return list(rows)
    if given:
        raise ValueError(f"{given} of {len(rows)} answers have a length; give it to all or to none, units may differ")
    texts = [completion_text(row) for row in rows]
    counts = [len(text) if tokenizer is None else token_count(text, tokenizer) for text in texts]
    return [{**row, "length": count} for row, count in zip(rows, counts, strict=True)]


def completion_text(row: Mapping[str, Any]) -> str:
    """A completion as text; messages one after the other."""
    completion = row["completion"]
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def token_count(text: str, tokenizer: Any) -> int:
    """Tokens of a completion that has no end token yet, counted with it."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + END_TOKENS


def curate_file(
    file: Path, out: Path, spec: CurationSpec, *, tokenizer: str | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Choose from a file of answers ; writes out/train.jsonl and report.json.

    tokenizer: a model whose tokens are counted where the file has no lengths; None counts characters. Returns the
    report, with `unit` saying what lengths are in.
    """
    rows = read_answers(file)
    own = all(row.get("length") is not None for row in rows)
    unit = "as in the file" if own else "characters" if tokenizer is None else "tokens"
    rows, report = choose(with_lengths(rows, None if tokenizer is None or own else load_tokenizer(tokenizer)), spec)
    report["unit"] = unit
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.jsonl").unlink(missing_ok=True)
    write_choice(out, rows, report)
    console = console or Console(soft_wrap=True)
    print_choice(report, console)
    console.print(f"lengths: {unit}; written to {out / 'train.jsonl'}", highlight=False)
    return report


def choose(rows: Sequence[dict[str, Any]], spec: CurationSpec | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows to teach, in their order, and what report.json says about them."""
    if spec is None:
        report: dict[str, Any] = {"answers": len(rows), "taken": len(rows)}
        taken = list(rows)
    else:
        found = curate(rows, spec)
        report, taken = found.report, [rows[i] for i in found.indices]
    return taken, {**report, "levels": by_level(taken)}


def write_choice(folder: Path, rows: Sequence[dict[str, Any]], report: Mapping[str, Any]) -> None:
    """train.jsonl and report.json of an empty place."""
    append_lines(folder / "train.jsonl", rows)
    write_json(folder / "report.json", report)


def by_level(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Per level: answers, share of right ones among the verified, mean length in tokens."""
    found = {}
    for level in sorted({str(row.get("level", "")) for row in rows}):
        mine = [row for row in rows if str(row.get("level", "")) == level]
        verified = [row["correct"] for row in mine if row.get("correct") is not None]
        found[level] = {
            "answers": len(mine),
            "accuracy": sum(verified) / len(verified) if verified else None,
            "mean_length": math.fsum(row["length"] for row in mine) / len(mine),
        }
    return found


def print_choice(report: Mapping[str, Any], console: Console) -> None:
    """The table of a choice: per source and bracket what there was, what was taken, and how long it is."""
    console.print(f"{report['taken']} of {report['answers']} answers taken", highlight=False)
    if "brackets" not in report:
        return
    heads = ("source", "pass rate", "problems", "answers", "taken", "median length", "taken", "target")
    table = Table(*heads)
    for cell in report["brackets"]:
        lengths = (cell["median_length"], cell["median_length_taken"], cell["target"])
        table.add_row(
            cell["source"] or "-",
            f"{cell['pass_rate']:.3f}",
            *(str(cell[key]) for key in ("problems", "available", "taken")),
            *("-" if value is None else f"{value:.1f}" for value in lengths),
        )
    console.print(table)
    if report["unrated"]:
        console.print(f"{report['unrated']} answers have no pass rate and were left out", highlight=False)
    if lacking := report["lacking"]:
        short = ", ".join(f"{int(b)}: {n}" for b, n in lacking.items())
        console.print(f"brackets that lack answers of the {report['asked']} asked for: {short}", highlight=False)
    for name, source in report["sources"].items():
        if source["substituted"]:
            ends = " and ".join(source["substituted"])
            console.print(f"source {name!r}: {ends} of the nearest pass rate there is", highlight=False)
