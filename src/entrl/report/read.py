"""Run folder -> plain values: what a run wrote, with what is missing or damaged said in words.

A run that was killed leaves a half-written last line; a resumed run repeats steps; a diverged run logs NaN. None of
these stops a report: the reader keeps what can be read, and `notes` says what it left out. A folder without a
manifest and without metrics is not a run folder, and that is an error.

Needs: the run folder of `entrl.runs` (manifest.json, recipe.yaml, metrics.jsonl, completions.jsonl, eval_*.json).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrl.settings.json_lines import finite, is_number, numbered_lines
from entrl.settings.secrets import mask, mask_text, mask_words
from entrl.settings.yaml import parse_yaml

X_AXES = ("step", "tokens", "seconds", "forward_passes")  # what a row counts, besides its metrics
NOT_METRICS = {*X_AXES, "kind", "optimizer_steps"}
FILES = ("manifest.json", "recipe.yaml", "metrics.jsonl")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything a report or a comparison reads from one run."""

    path: Path
    name: str
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    train: list[dict[str, Any]]  # rows of metrics.jsonl by ascending step; NaN and infinities are None
    evals: list[dict[str, Any]]  # rows of kind "eval"
    completions: list[dict[str, Any]]
    eval_before: dict[str, Any] | None
    eval_after: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)  # what could not be read


def read_run(path: str | Path) -> RunRecord:
    """Read one run folder; raises FileNotFoundError naming what is missing where it is none."""
    path = Path(path)
    _refuse_other_folders(path)
    notes: list[str] = [f"{name} is missing" for name in FILES if not (path / name).is_file()]
    recipe_text = _read_text(path / "recipe.yaml")
    rows = read_json_lines(path / "metrics.jsonl", notes)
    return RunRecord(
        path=path,
        name=path.resolve().name,
        manifest=_without_secrets(_read_json(path / "manifest.json", notes) or {}),
        recipe=mask(_read_recipe(recipe_text, notes)),  # as text a masked value need not be YAML any more
        recipe_text=mask_text(recipe_text),
        train=_rows_of_kind(rows, "train", notes),
        evals=_rows_of_kind(rows, "eval", notes),
        completions=[c for c in read_json_lines(path / "completions.jsonl", notes) if c.get("tokens")],
        eval_before=_read_json(path / "eval_before.json", notes),
        eval_after=_read_json(path / "eval_after.json", notes),
        notes=notes,
    )


def _without_secrets(manifest: dict[str, Any]) -> dict[str, Any]:
    """As new manifests are written; older ones hold the command as it was typed."""
    command = manifest.get("command")
    words = {"command": mask_words([str(word) for word in command])} if isinstance(command, list) else {}
    return mask(manifest) | words


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Several runs, with names that tell them apart."""
    if not paths:
        raise ValueError("no run folder given; name at least one folder that `entrl train` wrote")
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    parts = [run.path.resolve().parts for run in runs]
    depth = next((d for d in range(2, max(map(len, parts)) + 1) if len({p[-d:] for p in parts}) == len(parts)), 1)
    if depth == 1:
        raise ValueError(f"the same run folder is named twice among {', '.join(map(str, paths))}; name each once")
    return [RunRecord(**{**vars(run), "name": "/".join(p[-depth:])}) for run, p in zip(runs, parts, strict=True)]


def read_json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that is none is left out and noted."""
    rows: list[dict[str, Any]] = []
    lines = list(numbered_lines(path, errors="replace")) if path.is_file() else []
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(finite(row))
        else:
            last = number == lines[-1][0]
            where = "the half-written last line" if last else f"line {number}, which is not a JSON object"
            notes.append(f"{path.name}: left out {where}")
    return rows


def series(rows: Sequence[dict[str, Any]], metric: str, axis: str = "step") -> tuple[list[float], list[float]]:
    """(x, y) of one metric, points without a number left out."""
    points = [(row.get(axis), row.get(metric)) for row in rows]
    kept = [(float(x), float(y)) for x, y in points if is_number(x) and is_number(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def metric_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names that hold a number in at least one row, in the order they first appear."""
    names: dict[str, None] = {}
    for row in rows:
        names.update((key, None) for key, value in row.items() if key not in NOT_METRICS and is_number(value))
    return list(names)


def _refuse_other_folders(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; name a run folder that `entrl train` wrote")
    if not any((path / name).is_file() for name in ("manifest.json", "metrics.jsonl")):
        missing = ", ".join(name for name in FILES if not (path / name).is_file())
        inside = sorted(p.parent.name for name in ("manifest.json", "metrics.jsonl") for p in path.glob(f"*/{name}"))
        hint = f"; did you mean one of {', '.join(dict.fromkeys(inside[:6]))} inside it?" if inside else ""
        raise FileNotFoundError(f"{path} is not a run folder: {missing} missing{hint}")


def _rows_of_kind(rows: list[dict[str, Any]], kind: str, notes: list[str]) -> list[dict[str, Any]]:
    """Rows by step; where a resumed run repeated a step, the later row counts."""
    mine = [row for row in rows if row.get("kind", "train") == kind and is_number(row.get("step"))]
    by_step: dict[float, dict[str, Any]] = {}
    repeats = 0
    for row in mine:
        earlier = by_step.get(row["step"], {})
        repeated = any(is_number(row.get(key)) for key in earlier if key not in NOT_METRICS)
        # TRL logs the end-of-training summary as a second row of the last step: other names, so both are kept
        by_step[row["step"]] = row if repeated else {**earlier, **row}
        repeats += repeated
    if repeats:
        notes.append(f"metrics.jsonl: {repeats} {kind} rows repeat a step (resumed run); the later row counts")
    return [by_step[step] for step in sorted(by_step)]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(_read_text(path))
    except ValueError:
        notes.append(f"{path.name} is not valid JSON and was left out")
        return None
    return finite(value) if isinstance(value, dict) else None


def _read_recipe(text: str, notes: list[str]) -> dict[str, Any]:
    try:
        recipe = parse_yaml(text, name="recipe.yaml")
    except ValueError:
        notes.append("recipe.yaml is not valid YAML; shown as text only")
        return {}
    return recipe if isinstance(recipe, dict) else {}
