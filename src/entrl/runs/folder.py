"""The run folder: what lies where, whether a run may start there, and the manifest that says what was run.

    recipe.yaml  manifest.json  metrics.jsonl  completions.jsonl  eval_before.json  eval_after.json
    checkpoints/  model/  report.html

Files that must not be read half-written are replaced in one move. A resumed run cuts metrics and completions back to
its checkpoint: no step is written twice (`entrl.runs.checkpoints`).
"""

import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from entrl.runs import checkpoints
from entrl.runs.log_lengths import cut_logs
from entrl.runs.longer import only_longer, refuse_other_steps
from entrl.runs.ours import clear, read_manifest, refuse_foreign, refuse_linked_model
from entrl.runs.recipe import Recipe, deciding, make_recipe
from entrl.settings.groups import flat
from entrl.settings.json_lines import finite
from entrl.settings.provenance import git_state, versions
from entrl.settings.secrets import mask, mask_words, without_masked
from entrl.settings.yaml import parse_yaml
from entrl.trainers.shared.checkpoint import refuse_other_ranks
from entrl.trainers.shared.completeness import read_marker, unmark
from entrl.version import __version__

PARTIAL = ("eval_before.partial", "eval_after.partial")  # records of an evaluation that is not finished
OF_THE_START = ("eval_before.json", "eval_before.partial")  # they stay where a run that was killed starts over
OURS = (
    "recipe.yaml",
    "manifest.json",
    "metrics.jsonl",
    "completions.jsonl",
    "pass_rates.jsonl",
    "eval_before.json",
    "eval_after.json",
    *PARTIAL,
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


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add JSON lines; each call writes whole lines and flushes them."""
    lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)


def holds_run(path: Path) -> str | None:
    """What to do about a folder in which a run lies, None for one where none does."""
    manifest = read_manifest(path)
    if manifest is None:
        return None
    finished = manifest.get("status") == "finished"
    go_on = f"resume=true to {'train on with a larger trainer.max_steps' if finished else 'go on with it'}, "
    return (
        f"{path} holds a run already ({manifest.get('status')}); add {go_on}overwrite=true to delete it, or "
        "trainer.output_dir=... to write elsewhere"
    )


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
        return read_manifest(self.path)

    def refuse_foreign(self) -> None:
        """ValueError for a folder that is somebody else's, before anything is written into it."""
        refuse_foreign(self.path, kind="a run folder", place="trainer.output_dir")

    def is_finished(self, recipe: Recipe) -> bool:
        """Whether a run with these settings went to its end here, its report written."""
        manifest = self.manifest() or {}
        done = manifest.get("status") == "finished" and (self.path / "report.html").is_file()
        return done and manifest.get("config_hash") == recipe.config_hash()

    def open(
        self,
        recipe: Recipe,
        *,
        resume: bool,
        overwrite: bool,
        ranks: int = 1,
        say: Callable[[str], None] = print,
    ) -> Path | None:
        """Make the folder ready; returns what to go on from, None for a run from the start.

        That is a checkpoint, or `model` where training is over and only evaluation and report are left.
        ranks: processes of this run, which must be those of a checkpoint that training goes on from
        say: takes the lines about checkpoints that are skipped
        """
        if resume and overwrite:
            raise ValueError("resume=true and overwrite=true exclude each other; name one")
        manifest = self.manifest()
        if manifest is None:
            self.refuse_foreign()
        elif resume:
            refuse_linked_model(self.path)
            return self._resumed(recipe, manifest, ranks, say)
        elif not overwrite:
            raise ValueError(holds_run(self.path))
        self._clear()
        return None

    def _clear(self, *, keep: Sequence[str] = ()) -> None:
        """Delete what a run writes, nothing else; the manifest last, so that a kill in here leaves a run folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "manifest.json", {"entrl": __version__, "config_hash": None, "status": STARTING})
        if left := clear(self.path, sorted(set(OURS) - set(keep), key=lambda name: (name == "manifest.json", name))):
            print(f"left in {self.path}, not written by a run: {', '.join(left)}", file=sys.stderr)

    def _resumed(self, recipe: Recipe, manifest: dict[str, Any], ranks: int, say: Callable[[str], None]) -> Path | None:
        if manifest.get("status") == STARTING:  # killed before anything was kept
            self._clear()
            return None
        finished = manifest.get("status") == "finished"
        same = manifest.get("config_hash") == recipe.config_hash()
        if finished and same and (self.path / "report.html").is_file():
            raise self._nothing_left()
        if not same and only_longer(self._changed(recipe)):
            return self._train_on(recipe, manifest, ranks, say)
        if not same:
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
            self._clear(keep=OF_THE_START)
            return None
        marker = read_marker(checkpoint)
        refuse_other_ranks(checkpoint, marker.world_size, ranks)
        if (reason := marker.inexact) is not None:
            raise ValueError(
                f"{self.path} cannot be resumed as if it had not stopped: {reason}; add overwrite=true to run it "
                "again, or start a new run from its weights (model.path)"
            )
        cut_logs(self.path, checkpoint, say=say)
        return checkpoint

    def _nothing_left(self) -> ValueError:
        return ValueError(
            f"{self.path} is finished, there is nothing to resume; raise trainer.max_steps to train on, or set "
            "trainer.output_dir to run it once more elsewhere"
        )

    def _changed(self, recipe: Recipe) -> list[str]:
        """Dotted names of settings that differ from the recipe the folder was started with."""
        file = self.path / "recipe.yaml"
        if not file.is_file():
            return []
        before, after = flat(deciding(self._settings())), flat(deciding(mask(recipe.resolved())))
        return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))

    def _settings(self) -> dict[str, Any]:
        """Of the run that was started here."""
        file = self.path / "recipe.yaml"
        return parse_yaml(file.read_text(encoding="utf-8"), name=str(file))

    def _train_on(self, recipe: Recipe, manifest: dict[str, Any], ranks: int, say: Callable[[str], None]) -> Path:
        """The checkpoint another length of training goes on from; ValueError where its steps would be others."""
        newest = checkpoints.newest_whole(self.checkpoints, say=say)
        if newest is None or read_marker(newest).inexact is not None:
            raise ValueError(
                f"{self.path} keeps no checkpoint to train on from; start a new run in another trainer.output_dir, "
                f"from these weights: model.path={self.model}"
            )
        refuse_other_ranks(newest, read_marker(newest).world_size, ranks)
        steps = read_marker(newest).step
        ended = manifest.get("steps") == steps
        refuse_other_steps(flat(self._settings()), flat(mask(recipe.resolved())), steps, ended=ended)
        unmark(self.model)  # of the shorter run, as are these
        clear(self.path, ("eval_after.json", "eval_after.partial", "report.html"))
        cut_logs(self.path, newest, say=say)
        say(f"training on after step {steps}")
        return newest


def read_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe of a run folder."""
    content = parse_yaml((run_dir / "recipe.yaml").read_text(encoding="utf-8"), name=str(run_dir / "recipe.yaml"))
    return make_recipe(without_masked(content), name=run_dir.name, base=Path.cwd())


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
        "command": mask_words(sys.argv),
        "resumed_from": None if resumed_from is None else resumed_from.name,
        "started": now(),
        "finished": None,
        "status": "running",
    }


def read_json(path: Path) -> Any:
    """What a JSON file holds, None where there is none; ValueError naming one that holds no JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it was cut off or edited: restore or remove it") from None
