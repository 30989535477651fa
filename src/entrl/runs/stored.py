"""Completions that were kept, as a reward is called with them: of a run folder, or of a file of one's own.

A run's `completions.jsonl` has tokens, entropies, phases and groups, and no columns of the data: they are looked up in
the run's own task by the prompt. A file of one's own has a line for each completion:

    {"prompt": "1+1=", "completion": "2", "answer": "2", "step": 0, "group": 0, ...}

`prompt` and `completion` are texts or messages; `step` is the rollout and `group` the prompt's in it, both optional;
every other key is a column.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from entrl.models.load import load_tokenizer
from entrl.runs.plan.rows import as_shown
from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.reward_call import completion_row
from entrl.tasks.records import read_records

OURS = ("step", "prompt", "tokens", "entropies", "phases", "rewards", "reward", "advantage", "group", "truncated")
BATCH = 64  # completions of a call where the file names no rollouts


@dataclass(kw_only=True)
class Stored:
    """Completions in their order; `calls` cuts them into what a reward sees at once."""

    rows: list[dict[str, Any]]  # keywords of a reward, in the singular: prompt, completion, group_index, columns
    steps: list[Any]
    tokenizer: Any = None
    recipe: Recipe | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> set[str]:
        return set(self.rows[0]) - {"prompt", "completion"}

    def calls(self) -> Iterator[list[dict[str, Any]]]:
        """One per rollout; batches of a file that names none."""
        if None in self.steps:
            yield from (self.rows[i : i + BATCH] for i in range(0, len(self.rows), BATCH))
            return
        for _, part in groupby(zip(self.steps, self.rows, strict=True), key=lambda pair: pair[0]):
            yield [row for _, row in part]


def read_stored(path: Path, *, limit: int | None = None) -> Stored:
    """Of a run folder or a file; ValueError or FileNotFoundError for what holds no completions."""
    file = path / "completions.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; name a run folder, or a file with a prompt and a completion a line")
    records = [record.values | {"": record.where} for record in read_records("jsonl", file, str(file))][:limit]
    if not records:
        raise ValueError(f"{file} holds no completions; trainer.sample_completions says how many a run keeps")
    run = path if path.is_dir() else path.parent
    stored = Stored(rows=[], steps=[record.get("step") for record in records])
    if (run / "recipe.yaml").is_file():
        _read_run(stored, run)
    columns = _columns_of_task(stored) if stored.recipe is not None and "tokens" in records[0] else {}
    stored.rows = [_row(record, stored, columns) for record in records]
    if columns and (lost := sum(not row.pop("found", True) for row in stored.rows)):
        stored.notes.append(f"{lost} of {len(stored.rows)} prompts are not in the run's task: their columns are None")
    return stored


def _read_run(stored: Stored, run: Path) -> None:
    try:
        stored.recipe = load_recipe(run / "recipe.yaml")
        model = run / "model"
        stored.tokenizer = load_tokenizer(str(model) if model.is_dir() else stored.recipe.model.path)
    except (OSError, ValueError) as error:
        stored.notes.append(f"the run's recipe or tokenizer cannot be had: {str(error).splitlines()[0][:160]}")


def _columns_of_task(stored: Stored) -> dict[str, dict[str, Any]]:
    """Prompt as the model was shown it -> the row of the run's task."""
    assert stored.recipe is not None
    try:
        data = stored.recipe.load_data()
        texts = as_shown(stored.tokenizer, data, stored.recipe.trainer.get("chat_template_kwargs") or {})
    except (OSError, ValueError, AttributeError) as error:
        stored.notes.append(f"the columns of the run's data cannot be had: {str(error).splitlines()[0][:160]}")
        return {}
    return {text: dict(row) for text, row in zip(texts, data, strict=True)}


def _row(record: dict[str, Any], stored: Stored, columns: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if "tokens" in record:
        return _of_run(record, stored, columns)
    lacking = [name for name in ("prompt", "completion") if not record.get(name)]
    if lacking:
        raise ValueError(f"{record['']} has no {' and no '.join(lacking)}; write both, as text or as messages")
    given = {name: value for name, value in record.items() if name and name not in ("step", "group")}
    group = {} if record.get("group") is None else {"group_index": record["group"]}
    return given | group


def _of_run(record: dict[str, Any], stored: Stored, columns: dict[str, dict[str, Any]]) -> dict[str, Any]:
    import torch

    special = set() if stored.tokenizer is None else set(stored.tokenizer.all_special_tokens)
    tokens, phases = record["tokens"], record["phases"]
    text = "".join(token for token in tokens if token not in special)
    found = columns.get(record["prompt"])
    known = {name: None for name in next(iter(columns.values()), {})} | (found or {}) if columns else {}
    prompt = known.pop("prompt", None) or record["prompt"]
    answer = "".join(t for t, phase in zip(tokens, phases, strict=True) if phase == "answer" and t not in special)
    own = {name: value for name, value in record.items() if name and name not in OURS}
    tokenized: dict[str, Any] = {}
    if record.get("entropies") is not None:
        tokenized["token_entropies"] = torch.tensor(record["entropies"])
    if stored.tokenizer is not None:
        for name, part in (("prompt_ids", record["prompt"]), ("completion_ids", "".join(tokens))):
            tokenized[name] = stored.tokenizer(part, add_special_tokens=False)["input_ids"]
    made = completion_row(
        prompt,
        text,
        group=record["group"],
        truncated=record["truncated"],
        answer=answer,
        columns=known | own,
        mask=[phase != "tool" for phase in phases],
        **tokenized,
    )
    return made | ({"found": found is not None} if columns else {})
