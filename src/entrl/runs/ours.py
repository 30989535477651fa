"""What in a folder is ours: whether a run may write there, and what an overwrite deletes.

A folder is ours by its manifest: an object with the version of entrl that wrote it, the hash of its settings and its
status. In it only what a run writes is deleted: of a model what its marker lists, and where a killed run left none what
such folders are known to hold; checkpoints by their number. Whatever else lies there stays, and a link is removed
without touching what it points to.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from entrl.evaluation.records import clear_records
from entrl.runs.lock import LOCK
from entrl.trainers.shared.completeness import CARD, MARKER

MANIFEST = "manifest.json"
OURS = ("entrl", "config_hash", "status")  # keys of every manifest of ours
FIRST = (LOCK, f"{MANIFEST}.part")  # all that a run killed in its first moment leaves
CHECKPOINTS = re.compile(r"checkpoint-\d+|windows|completions|runs|README\.md")
SAVED = (  # what save_pretrained, the trainer and PEFT write into a model's folder
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "config.json", "generation_config.json",
    "adapter_config.json", "README.md", "chat_template.*", "additional_chat_templates", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model", "*processor_config.json",
    "trainer_state.json", "training_args.bin", MARKER,
)  # fmt: skip


def read_manifest(folder: Path, *, place: str = "trainer.output_dir") -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none; ValueError for one that is not ours or cannot be read."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    move = f"nothing in that folder was touched; move it away, or set {place} to another place"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        what = "is empty" if not file.stat().st_size else f"is not JSON ({error})"
        raise ValueError(f"{file} {what}, so nobody can tell what lies in {folder}; {move}") from None
    missing = [key for key in OURS if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{file} is no manifest of entrl: it has no {', '.join(missing)}; {move}")
    return found


def refuse_foreign(folder: Path, *, kind: str, place: str) -> None:
    """ValueError for a folder that holds something and no manifest, or that lies in a file.

    kind: what it should be. place: the key that says where it is.
    """
    there = nearest(folder)
    if not there.is_dir():
        below = "" if there == folder.absolute() else f", so {folder} cannot lie in it"
        raise ValueError(f"{there} is not a folder{below}; set {place} to another place")
    if there != folder.absolute():
        return
    if read_manifest(folder, place=place) is None and any(entry.name not in FIRST for entry in folder.iterdir()):
        raise ValueError(f"{folder} exists and is not {kind}; set {place} to another place")


def nearest(folder: Path) -> Path:
    """The folder, or the lowest of its parents that is there, were it a file or a link to nothing."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists() or p.is_symlink())


def clear(folder: Path, names: Iterable[str]) -> list[str]:
    """Delete what a run of ours wrote under these names; what somebody else put between it stays, and is named."""
    folder.mkdir(parents=True, exist_ok=True)
    left: list[str] = []
    for name in names:
        target = folder / name
        if target.is_dir() and not target.is_symlink() and target.suffix == ".partial":
            left += [f"{name}/{kept}" for kept in clear_records(target)]
        elif target.is_dir() and not target.is_symlink():
            left += [f"{name}/{kept}" for kept in _clear_inside(target, _written(target))]
        else:
            target.unlink(missing_ok=True)  # of a link, the link
    return left


def _written(folder: Path) -> Callable[[Path], bool]:
    """Whether an entry of `checkpoints` or of a model's folder is a run's own."""
    if folder.name == "checkpoints":
        return lambda entry: CHECKPOINTS.fullmatch(entry.name) is not None
    try:
        listed = {name.partition("/")[0] for name in json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return lambda entry: any(entry.match(pattern) for pattern in SAVED)
    return lambda entry: entry.name in listed or entry.name in (MARKER, CARD)


def _clear_inside(folder: Path, written: Callable[[Path], bool]) -> list[str]:
    """Names in the folder that no run wrote; the others are deleted, and the folder when it is empty."""
    for entry in list(folder.iterdir()):
        if not written(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    left = sorted(entry.name for entry in folder.iterdir())
    if not left:
        folder.rmdir()
    return left


def refuse_linked_model(folder: Path) -> None:
    """ValueError where `model` is a link: the run would write its weights over what it points to."""
    model = folder / "model"
    if model.is_symlink():
        raise ValueError(
            f"{model} is a link to {model.readlink()}, and the trained weights would be written there; remove the link"
        )
