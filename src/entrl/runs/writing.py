"""Errors of a disk in words: what could not be written, why, and what the run goes on from."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from entrl.errors import CannotWrite

OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE)
# torch and safetensors put the system's error into a text, or swallow it.
IN_WORDS = re.compile(
    r"\(os error (\d+)\)|PytorchStreamWriter|inline_container|iostream error|unexpected pos|[Ff]ailed writing"
)


def disk_error(error: BaseException) -> tuple[str, str | None] | None:
    """(why, path if known) where the error is a disk's; None for any other."""
    if isinstance(error, CannotWrite):
        return None
    if isinstance(error, OSError):
        return (os.strerror(error.errno), error.filename) if error.errno in OF_A_DISK else None
    found = IN_WORDS.search(str(error)) if type(error).__module__.startswith(("safetensors", "builtins")) else None
    if found is None or not isinstance(error, (RuntimeError, Exception)) or isinstance(error, (ValueError, KeyError)):
        return None
    number = int(found[1]) if found[1] else None
    if number is not None and number not in OF_A_DISK:
        return None
    return (os.strerror(number) if number else "only part of a file was taken"), None


def room(folder: Path) -> str:
    """Free space where the folder is, in words."""
    there = next((f for f in (folder, *folder.absolute().parents) if f.is_dir()), None)
    return "" if there is None else f", {shutil.disk_usage(there).free / 2**20:,.0f} MiB are free there"


@contextlib.contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Turn a disk's error inside the `with` into CannotWrite; others pass."""
    try:
        yield
    except Exception as error:
        if (found := disk_error(error)) is None:
            raise
        why, path = found
        raise CannotWrite(
            f"cannot write {path or f'in {folder}'}: {why}{room(folder)}. Make room or make the folder writable; then "
            "resume=true goes on from the newest whole checkpoint (what is half-written is skipped)"
        ) from error
