"""A cold start: answers -> a curated choice of them -> TRL SFT -> a model RL can start from.

    model:    {path, dtype, ...}       what is taught, as in a recipe
    answers:  {lessons: {...}}         where the answers come from (entrl.answers)
    sft:      trl.SFTConfig fields verbatim
    threads:  torch threads while teaching, null = torch's own choice; another count may give other weights
    out:      the folder that is written

    out/recipe.yaml  manifest.json  train.jsonl  report.json  model/

A folder that is finished and was made from the same settings is kept; one that was interrupted is begun again.
"""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from entrl import __version__
from entrl.answers import LessonsSpec, lesson_rows
from entrl.recipe import (
    REMOVED_MODEL_KEYS,
    ModelSpec,
    _build,
    _check_keys,
    _Dumper,
    _nearby,
    _plain,
    _typed,
    apply_override,
    parse_yaml,
)
from entrl.run_folder import append_lines, flat, git_state, now, read_json, versions, write_json, write_text

OWNED_SFT_KEYS = {
    "output_dir": "set `out`",
    "resume_from_checkpoint": "remove it: a cold start that was interrupted is begun again",
    "model_init_kwargs": "set model.dtype, model.attn_implementation, ... instead",
    "trust_remote_code": "set model.trust_remote_code",
}
SFT_DEFAULTS = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "completion_only_loss": True}
WRITTEN = ("recipe.yaml", "manifest.json", "train.jsonl", "report.json", "model")


@dataclass(frozen=True, kw_only=True)
class AnswersSpec:
    lessons: LessonsSpec


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Everything a cold start is made of. `base` is where its relative files are looked for."""

    name: str
    base: Path
    model: ModelSpec
    answers: AnswersSpec
    out: str
    sft: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be >= 1, got {self.threads}; leave it out for torch's own choice")

    @property
    def folder(self) -> Path:
        return Path(self.out)

    @property
    def model_dir(self) -> Path:
        """What a recipe names as model.path."""
        return self.folder / "model"

    def resolved(self) -> dict[str, Any]:
        """With our defaults filled in; reading it back gives the same cold start."""
        skip = ("name", "base")
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in skip}

    def config_hash(self) -> str:
        """Of everything that decides the weights; not of where they are written.

        Settings that are null do not count: an option that did not exist when a folder was made leaves it valid.
        """
        content = {k: v for k, v in flat(self.resolved()).items() if k != "out" and v is not None}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_cold_start(path: str | Path, overrides: Sequence[str] = ()) -> ColdStart:
    """Read a cold start's file, apply `key=value` overrides, check everything that needs no model."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no cold start {path}{_nearby(path)}")
    content = parse_yaml(path.read_text(encoding="utf-8"), name=str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a mapping of groups")
    for override in overrides:
        apply_override(content, override)
    return make_cold_start(content, name=path.stem, base=path.resolve().parent)


def make_cold_start(content: Mapping[str, Any], *, name: str, base: Path) -> ColdStart:
    """Plain objects -> `ColdStart`."""
    known = [f.name for f in dataclasses.fields(ColdStart) if f.name not in ("name", "base")]
    _check_keys(content, known, where="cold start")
    for group in ("model", "answers", "out"):
        if content.get(group) is None:
            raise ValueError(f"the cold start {name} has no {group!r}; see docs/cold_start.md")
    if not isinstance(content["out"], str):
        raise ValueError(f"out must be a folder, got {content['out']!r}")
    return ColdStart(
        name=name,
        base=base,
        model=_build(ModelSpec, content["model"], "model", removed=REMOVED_MODEL_KEYS),
        answers=_answers(content["answers"]),
        out=content["out"],
        sft=_checked_sft(content.get("sft") or {}),
        threads=_typed(content.get("threads"), int | None, "threads"),
    )


def _answers(group: Any) -> AnswersSpec:
    _check_keys(group, [f.name for f in dataclasses.fields(AnswersSpec)], where="answers")
    if "lessons" not in group:
        raise ValueError("answers names no source; write answers: {lessons: {...}}")
    return AnswersSpec(lessons=_build(LessonsSpec, group["lessons"] or {}, "answers.lessons"))


def _checked_sft(group: Any) -> dict[str, Any]:
    """The `sft` group with our defaults; values are checked against TRL's annotations."""
    from trl import SFTConfig

    if not isinstance(group, Mapping):
        raise ValueError(f"sft must be a mapping of SFTConfig fields, got {group!r}")
    for key in group:
        if key in OWNED_SFT_KEYS:
            raise ValueError(f"sft.{key} is set elsewhere: {OWNED_SFT_KEYS[key]}")
    hints = typing.get_type_hints(SFTConfig)
    known = [f.name for f in dataclasses.fields(SFTConfig) if f.init]
    _check_keys(group, known, where="sft")
    return {key: _typed(value, hints.get(key, Any), f"sft.{key}") for key, value in {**SFT_DEFAULTS, **group}.items()}


# --- running ------------------------------------------------------------------------------------------------------


def made_from(folder: Path) -> str | None:
    """The hash of the settings a finished folder was made from; None for one that is missing or not finished."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None or manifest.get("status") != "finished":
        return None
    return manifest.get("config_hash")


def is_made(start: ColdStart) -> bool:
    """True when the folder is finished and was made from these settings.

    ValueError when it is finished and was made from others: runs that started from it would not be comparable with
    runs that start from the new one.
    """
    found = made_from(start.folder)
    if found is not None and found != start.config_hash():
        changed = ", ".join(_changed(start)) or "unknown"
        raise ValueError(
            f"{start.folder} was made with other settings ({changed}); overwrite=true makes it anew, or set another "
            "`out`. Runs that started from the old one are not comparable with new ones"
        )
    return found is not None


def _changed(start: ColdStart) -> list[str]:
    file = start.folder / "recipe.yaml"
    if not file.is_file():
        return []
    was, is_now = flat(parse_yaml(file.read_text(encoding="utf-8"), name=str(file))), flat(start.resolved())
    return sorted(k for k in was.keys() | is_now.keys() if was.get(k) != is_now.get(k) and k != "out")


def cold_start(start: ColdStart, *, overwrite: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Make the folder unless it is made already; returns its manifest."""
    console = console or Console(soft_wrap=True)
    if not overwrite and is_made(start):
        console.print(f"{start.folder} is finished and was made from these settings: kept", highlight=False)
        return read_json(start.folder / "manifest.json")
    _clear(start.folder)
    write_text(start.folder / "recipe.yaml", yaml.dump(start.resolved(), Dumper=_Dumper, sort_keys=False))
    manifest = {
        "entrl": __version__,
        "name": start.name,
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "config_hash": start.config_hash(),
        "command": sys.argv,
        "started": now(),
        "status": "running",
    }
    write_json(start.folder / "manifest.json", manifest)
    try:
        manifest |= _make(start, console)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        manifest |= {"status": status, "finished": now(), "error": f"{type(error).__name__}: {error}"}
        write_json(start.folder / "manifest.json", manifest)
        raise
    manifest |= {"status": "finished", "finished": now()}
    write_json(start.folder / "manifest.json", manifest)
    console.print(f"model {start.model_dir}, {manifest['seconds']['sft']:.0f} s of SFT", highlight=False)
    return manifest


def _clear(folder: Path) -> None:
    """Delete what a cold start writes, nothing else."""
    if not (folder / "manifest.json").is_file() and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a cold start's folder; set `out` to another place")
    folder.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _make(start: ColdStart, console: Console) -> dict[str, Any]:
    from entrl.run import load_model
    from entrl.run_log import be_quiet

    be_quiet()
    with _threads(start.threads):
        began = time.perf_counter()
        model, tokenizer = load_model(start)  # type: ignore[arg-type]  # reads .model alone
        rows = lesson_rows(start.answers.lessons, tokenizer)
        append_lines(start.folder / "train.jsonl", rows)
        report = {"answers": len(rows), "taken": len(rows), "by_level": by_level(rows)}
        write_json(start.folder / "report.json", report)
        console.print(f"{len(rows)} answers to teach", highlight=False)
        taught = time.perf_counter()
        steps = teach(model, tokenizer, rows, start)
        ended = time.perf_counter()
    model.config.use_cache = True  # the trainer turned it off
    model.save_pretrained(start.model_dir)
    tokenizer.save_pretrained(start.model_dir)
    return {
        "steps": steps,
        "rows": len(rows),
        "weights_sha256": weights_sha256(start.model_dir),
        "seconds": {"answers": round(taught - began, 1), "sft": round(ended - taught, 1)},
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def teach(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], start: ColdStart) -> int:
    """SFT on prompt and completion; returns the optimiser steps. TRL appends the end token."""
    import tempfile

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    table = Dataset.from_list([_pair(row) for row in rows])
    with tempfile.TemporaryDirectory() as scratch:  # the trainer wants a folder, what is kept lies in `out`
        args = SFTConfig(output_dir=scratch, **start.sft)
        trainer = SFTTrainer(model=model.train(), args=args, train_dataset=table, processing_class=tokenizer)
        trainer.train()
    model.eval()
    return trainer.state.global_step


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL reads: both sides text, or both sides messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) or not isinstance(completion, str):
        return {"prompt": prompt, "completion": completion}
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": completion}]}


def by_level(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Per level: answers, share of right ones among the verified, mean length in tokens."""
    found = {}
    for level in sorted({row["level"] for row in rows}):
        mine = [row for row in rows if row["level"] == level]
        verified = [row["correct"] for row in mine if row["correct"] is not None]
        found[level] = {
            "answers": len(mine),
            "accuracy": sum(verified) / len(verified) if verified else None,
            "mean_length": math.fsum(row["length"] for row in mine) / len(mine),
        }
    return found


def weights_sha256(folder: Path) -> str:
    """Of the bytes of every weight file in name order, in hexadecimal."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()
