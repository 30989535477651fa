"""Errors of a disk in words: what could not be written, why, and what the run goes on from."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from entrl.errors import CannotWrite

OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # nobody gets these from reading
OF_A_FOLDER = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)  # ours where the file lies in the run folder
# torch and safetensors put the system's error into a text, or swallow it.
IN_WORDS = re.compile(r"\(os error (\d+)\)|PytorchStreamWriter|iostream error|unexpected pos")


def disk_error(error: BaseException, folder: Path) -> tuple[str, str | None] | None:
    """(why, path if known) where the error is of writing into the folder; None for any other."""
    if isinstance(error, OSError):
        path = None if error.filename is None else str(error.filename)
        inside = path is not None and Path(path).absolute().is_relative_to(folder.absolute())
        ours = error.errno in OF_A_DISK or (inside and error.errno in OF_A_FOLDER)
        return (os.strerror(error.errno or 0), path) if ours else None
    found = IN_WORDS.search(str(error)) if isinstance(error, RuntimeError) or _of_safetensors(error) else None
    if found is None:
        return None
    if found[1] is None:
        return "only part of a file was taken", None
    return (os.strerror(int(found[1])), None) if int(found[1]) in OF_A_DISK else None


def _of_safetensors(error: BaseException) -> bool:
    return type(error).__name__ == "SafetensorError"  # a class of its own, derived from Exception


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
        if isinstance(error, CannotWrite) or (found := disk_error(error, folder)) is None:
            raise
        why, path = found
        raise CannotWrite(
            f"cannot write {path or f'in {folder}'}: {why}{room(folder)}. Make room or make the folder writable; then "
            "resume=true goes on from the newest whole checkpoint (what is half-written is skipped)"
        ) from error
