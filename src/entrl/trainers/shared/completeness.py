"""Whether a saved folder is whole: a list of its files with sizes and checksums, written last and in one move.

    entrl_complete.json    {"format": 1, "step": 14, "world_size": 2, "inexact": null, "files": {NAME: [BYTES, CRC32]}}

A folder without this marker was not written to its end. One whose files are not what the marker says was damaged
afterwards. CRC-32 finds any accident (a flipped bit, a cut file); it is no protection from somebody who means harm.
Files the marker does not name are nobody's business.

Needs:   the standard library; one folder that all ranks see
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
MARKER = "entrl_complete.json"
CARD = "README.md"  # of a model; words, which are brought up to date after the model is whole
CHUNK = 1 << 22  # bytes read at a time

Print = list[int]  # [bytes, CRC-32]


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a whole folder says of itself.

    inexact: why a run cannot go on from here as if it had not stopped, in words; None where it can
    """

    step: int
    world_size: int
    files: Mapping[str, Print]
    inexact: str | None = None


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None where it is something else."""
    digits = checkpoint.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdigit() and digits.isascii() else None


def file_names(folder: Path) -> list[str]:
    """Every file below the folder but the marker and the model card, relative, sorted."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if name not in (MARKER, CARD))


def fingerprint(file: Path, *, sync: bool = False) -> Print:
    """[bytes, CRC-32] of a file; `sync`: it is on the disk afterwards, not only with the operating system."""
    size, checksum = 0, 0
    with file.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        while chunk := stream.read(CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]


def fingerprints(folder: Path, names: Iterable[str]) -> dict[str, Print]:
    """Of freshly written files, each of them brought to the disk."""
    return {name: fingerprint(folder / name, sync=True) for name in names}


def mark(folder: Path, marker: Marker) -> None:
    """Say that the folder is whole. Everything else must have been written."""
    part = folder / f"{MARKER}.part"
    with part.open("w", encoding="utf-8") as stream:
        json.dump({"format": FORMAT, **asdict(marker)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(folder / MARKER)
    for changed in (folder, folder.parent):
        _sync_folder(changed)


def unmark(folder: Path) -> None:
    """Take the marker away before the files change."""
    (folder / MARKER).unlink(missing_ok=True)


def read_marker(folder: Path) -> Marker:
    """ValueError, saying what is wrong, where there is none or it cannot be read."""
    try:
        content: Any = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{MARKER} is missing: it was not written to its end") from None
    except OSError as error:  # a folder of that name, or the checkpoint itself is a file
        raise ValueError(f"{MARKER} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{MARKER} cannot be read as JSON") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{MARKER} is not what this version of entrl writes there")
    try:
        files = {str(name): [int(size), int(checksum)] for name, (size, checksum) in content.pop("files").items()}
        return Marker(files=files, **{**content, "step": int(content["step"])})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{MARKER} is damaged") from None


def flaw(folder: Path) -> str | None:
    """The first thing that is wrong with the folder, in words; None: it is whole and undamaged. Reads every byte."""
    try:
        marker = read_marker(folder)
    except ValueError as error:
        return str(error)
    for name, (size, checksum) in marker.files.items():
        try:
            there = (folder / name).stat().st_size
            if there != size:
                return f"{name} has {there} bytes instead of {size}"
            if fingerprint(folder / name) != [size, checksum]:
                return f"{name} is damaged: its bytes are not those that were written"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name} is missing"
    return None


def _sync_folder(folder: Path) -> None:
    """Bring names to the disk; where folders cannot be opened (not POSIX) there is nothing to do."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
