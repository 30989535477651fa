"""Pass rates per problem: counts that fade, and the one file they are kept in.

    trials <- decay * trials + n        passes <- decay * passes + k        at each try of n completions, k passed

The file holds JSON lines and is only appended to, under a lock:

    {"run": "...", "start": true}                                    what this run wrote before counts no more
    {"run": "...", "rollout": 3, "groups": [["p7#...", 8, 2], ...]}  problem, completions judged, passes

A problem is its problem_id and 16 hex digits of the SHA-256 of its prompt: files of problems number their lines alike.
Of two lines with one run and rollout the later counts: after a resume a rollout is made, and written, again. So killed
runs leave nothing to mend, and any number of runs may share a file. A file with a line of another form is somebody
else's: it is refused, and not touched.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from entrl.errors import CannotWrite

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of such file systems
OPENING = b'{"run": "'  # of every line
KEY = re.compile(r"#[0-9a-f]{16}$")
PAUSE_S, SAY_S, PATIENCE_S = 0.02, 1.0, 600.0  # for a lock: between two tries, until a word of it, until an error
BLOCK = 1 << 16  # bytes


def problem_key(problem_id: str, prompts: Sequence[Any]) -> str:
    """What stands for a problem in every run: its id and what it asks. prompts: of its rows, texts or messages."""
    asked = json.dumps(list(prompts), sort_keys=True)
    return f"{problem_id}#{hashlib.sha256(asked.encode()).hexdigest()[:16]}"


class Group(NamedTuple):
    """The completions of one prompt in one rollout."""

    problem: str  # `problem_key`
    trials: int  # completions judged
    passes: int


Line = tuple[str, int, list[Group] | None]  # run, rollout, groups; None: the run starts


class Count(NamedTuple):
    """What is known of one problem; the first two fade."""

    trials: float = 0.0
    passes: float = 0.0
    failed: int = 0  # completions judged since the last that passed


@dataclass(kw_only=True)
class PassRates:
    """Problem -> counts. decay: in (0, 1], what older trials weigh once a problem is tried again."""

    decay: float
    counts: dict[str, Count] = field(default_factory=dict)

    def add(self, groups: Iterable[Group]) -> None:
        for problem, trials, passes in groups:
            if trials == 0:
                continue
            old = self.counts.get(problem, Count())
            failed = 0 if passes else old.failed + trials
            self.counts[problem] = Count(self.decay * old.trials + trials, self.decay * old.passes + passes, failed)

    def of(self, problem: str) -> Count:
        return self.counts.get(problem, Count())

    def state_dict(self) -> dict[str, Any]:
        return {problem: list(count) for problem, count in self.counts.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        self.counts = {problem: Count(t, p, int(f)) for problem, (t, p, f) in state.items()}


class PassRateFile:
    """The file, as one run reads and writes it. run: what names this run among those that share the file."""

    def __init__(self, path: Path, *, run: str) -> None:
        self.path, self.run = path, run
        self._ours = False  # once its lines have been looked at

    def check(self) -> None:
        """ValueError, before a run, for a file that cannot be read as ours or added to; nothing is changed or made."""
        try:
            self.others()
            near = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
            usable = near.is_file() if near == self.path else near.is_dir()
            if usable and os.access(near, os.W_OK | (os.X_OK if near.is_dir() else os.R_OK)):
                return
            why = (
                f"{near} may not be written"
                if usable
                else f"{near} is not a {'file' if near == self.path else 'folder'}"
            )
        except OSError as error:
            why = error.strerror or str(error)
        raise ValueError(
            f"curriculum.file {self.path} cannot be kept: {why}; name a file in a folder that may be written, or leave "
            "it out for one in the run folder"
        )

    def others(self) -> list[list[Group]]:
        """The rollouts of all other runs, in the order they were first written.

        Changes nothing: a last line that a kill cut off is passed over. ValueError names a line of another form.
        """
        if not self.path.exists():
            return []
        kept: dict[tuple[str, int], list[Group]] = {}
        for run, rollout, groups in self._lines(self.path.read_bytes()):
            if groups is None:
                kept = {key: found for key, found in kept.items() if key[0] != run}
            elif run != self.run:
                kept[run, rollout] = groups
        self._ours = True
        return list(kept.values())

    def append(self, rollout: int, groups: Sequence[Group], *, start: bool) -> None:
        """Add one rollout; start: the run's first, which replaces what a run of this name wrote before.

        ValueError for a file of another form, which stays as it is; a last line that a kill cut off is cut away.
        """
        lines: list[dict[str, Any]] = [{"run": self.run, "start": True}] if start else []
        lines.append({"run": self.run, "rollout": rollout, "groups": [list(group) for group in groups]})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if not self._ours:
            self.others()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            _lock(file.fileno(), self.path)
            self._end_line(file.fileno())
            file.write(text.encode())
            file.flush()

    def _lines(self, content: bytes) -> Iterator[Line]:
        """The lines; the last one without a line feed may be whole or cut off, and nothing else."""
        *ended, tail = content.split(b"\n")
        for number, line in enumerate(ended, start=1):
            if line.strip():
                yield self._read(line, number)
        if tail and not _is_cut(tail):
            yield self._read(tail, len(ended) + 1)

    def _end_line(self, handle: int) -> None:
        """Make the file end in a line feed: behind a whole line one is added, a line that was cut off goes."""
        tail, end = _tail(handle), os.fstat(handle).st_size
        if not tail:
            return
        if _is_cut(tail):
            os.ftruncate(handle, end - len(tail))
            return
        self._read(tail, self.path.read_bytes().count(b"\n") + 1)
        os.write(handle, b"\n")

    def _read(self, line: bytes, number: int) -> Line:
        try:
            row = json.loads(line)
            run = str(row["run"])
            if row.get("start"):
                return run, 0, None
            groups = [Group(str(problem), int(trials), int(passes)) for problem, trials, passes in row["groups"]]
            if all(0 <= group.passes <= group.trials and KEY.search(group.problem) for group in groups):
                return run, int(row["rollout"]), groups
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        raise ValueError(
            f"{self.path}:{number} is no line of pass rates (run, rollout, groups of problem_id#digest, trials, "
            "passes; older files have no digest of the prompt); name another curriculum.file, or take the line out"
        )


def _lock(handle: int, path: Path) -> None:
    """Until the file is closed. A file system without locks is gone on with: a line is one write in append mode."""
    begun, said = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - begun
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None
        if waited >= PATIENCE_S:
            raise CannotWrite(
                f"{path} has been locked by another run for {waited:.0f} s; end the process that holds it (lsof shows "
                "it), or name another curriculum.file, then go on with resume=true"
            )
        if waited >= SAY_S and not said:
            print(f"waiting for the lock of {path}, held by another run", file=sys.stderr, flush=True)
            said = True
        time.sleep(PAUSE_S)


def _is_cut(tail: bytes) -> bool:
    """Whether this is the beginning of a line of ours and not all of it."""
    if not (tail.startswith(OPENING) or OPENING.startswith(tail)):
        return False
    try:
        json.loads(tail)
    except ValueError:
        return True
    return False


def _tail(handle: int) -> bytes:
    """What stands behind the last line feed."""
    tail, end = b"", os.fstat(handle).st_size
    while end:
        first = max(0, end - BLOCK)
        _, found, rest = os.pread(handle, end - first, first).rpartition(b"\n")
        tail = rest + tail
        if found:
            break
        end = first
    return tail
