"""One writer for a folder: a lock that the system drops when its owner ends, however it ends.

`flock` on `run.lock`, held by rank 0 for as long as the run lasts. The file stays behind and says who wrote last;
only the lock on it counts, never that it exists. Reading a folder (report, eval, compare, serve) asks for no lock.

Network file systems: Linux hands flock on NFS to the server, so runs on two machines see each other; Lustre needs the
mount option `flock` (`localflock` sees one machine alone). Where a file system has no locks the run says so and goes
on.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from entrl.settings.secrets import mask_words

LOCK = "run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class FolderLock:
    """The lock on one folder; `take` it, then `release` it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / LOCK
        self._handle: int | None = None

    def take(self, say: Callable[[str], None], *, elsewhere: str = "trainer.output_dir=...") -> None:
        """Lock the folder, made where it is missing; ValueError naming the owner where another process holds it."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # a file system that takes no folders, such as /proc
            raise ValueError(
                f"{self.file.parent} cannot be made, its file system takes no folders; take {elsewhere}"
            ) from None
        handle = self._open()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, *NO_LOCKS):
                os.close(handle)
                raise
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise ValueError(
                    f"{self.file.parent} is being written by {self._owner()}; wait until it ends, end it, or take "
                    f"{elsewhere} to write elsewhere"
                ) from None
            say(f"warning: {self.file.parent} cannot be locked here ({error.strerror}): start one run in it at a time")
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(_this_process()) + "\n").encode(), 0)
        self._handle = handle
        os.register_at_fork(after_in_child=self._close)  # a worker that outlives the run must not hold its lock

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self.file, flags, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ValueError(f"{self.file} is a link; remove it, a lock must lie in the folder itself") from None
            raise

    def _owner(self) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(self.file.read_text(encoding="utf-8"))
            return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({' '.join(owner['command'])})"
        return "another process"

    def release(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        """Closing a copy leaves the lock with whoever has the others."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None], *, elsewhere: str) -> Iterator[None]:
    """Hold the folder's lock inside a `with`."""
    lock = FolderLock(folder)
    lock.take(say, elsewhere=elsewhere)
    try:
        yield
    finally:
        lock.release()


def _this_process() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": mask_words([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
    }
