"""Run a checker in child processes that can be killed: a hanging or crashing item costs that item only.

    verdicts = VerifierPool(2).run("package.module:function", [(arguments of item 0), ...], timeout_s=5.0)

Each item gets one `Verdict`: ok with the function's value, timeout, or crash (the child died, ran out of memory, said
what no item was asked, or the function raised). Nothing here turns a failure into a value, so nothing can be taken for
a wrong answer.

The children are fresh interpreters that speak JSON lines over pipes. So they need no main guard in the caller's
script, share no thread or lock with the parent, hold no GPU context, and import only what the function's
module imports. A timeout is a SIGKILL, which also ends a loop inside C code; the child is replaced and the rest
of its batch goes on. POSIX only.

It contains accidents (hangs, segfaults, memory) and is no sandbox: the checks themselves run nothing of what they read
(`entrl.verify.gym_scorers`). Should a library under them be fooled all the same, there is little in reach: no
environment, no descriptor of the parent, no new process, no socket, no writing (`worker`).
Each reply repeats a number that came with its item, so a line that a scorer writes to a descriptor settles nothing.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from entrl.sandbox.groups import end_group, ended

logger = logging.getLogger(__name__)

START_S = 120.0  # seconds a child may take to start and import; generous, as it is not an item's fault
MAX_BATCH = 32  # items sent at once: amortises the pipe, keeps the children evenly busy
MAX_LINE = 1 << 20  # bytes of one reply; a child that says more is not answering
KEPT = ("LD_LIBRARY_PATH", "PYTHONHOME")  # of the environment: without them some interpreters do not start
SET = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
MEMORY_BYTES = 8 * 2**30  # address space of a child; an answer such as 9^9^9^9 must not take the machine down
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from entrl.verify.worker import main; main()"


class VerifierError(RuntimeError):
    """The children cannot be started or cannot import the checker: no item's fault, so it stops the run."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one item."""

    status: Literal["ok", "timeout", "crash"]
    value: Any = None  # JSON value, only with ok
    detail: str = ""  # why, with timeout and crash


@dataclass
class _Child:
    """One process and the batch it works on; `todo[0]` is the item whose clock is running."""

    process: subprocess.Popen[bytes]
    todo: deque[int] = field(default_factory=deque)
    nonces: deque[str] = field(
        default_factory=deque
    )  # what the replies to come must repeat: of `todo`, and the batch's
    loaded: bool = False
    deadline: float = 0.0  # on the monotonic clock
    unread: bytes = b""

    def lines(self) -> list[bytes] | None:
        """Complete lines that are waiting; None when the process has closed its end, or says no end of things."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *whole, self.unread = (self.unread + data).split(b"\n")
        return whole if data and len(self.unread) <= MAX_LINE else None

    def read(self, line: bytes) -> dict[str, Any] | None:
        """The next reply; None for a line that does not repeat its nonce, which the worker did not write."""
        try:
            message = json.loads(line)
        except ValueError:
            return None
        expected = self.nonces.popleft() if self.nonces else None
        known = isinstance(message, dict) and expected is not None and message.get("nonce") == expected
        return message if known else None

    def kill(self, *, patience_s: float = 0.0) -> int:
        """End it and whatever it started; the exit code, negative for a signal."""
        ended(self.process, patience_s)  # it closed its pipe: let it finish dying, for the true exit code
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return end_group(self.process)


class VerifierPool:
    """`workers` children, started at the first `run` and kept; safe to use from threads and after a fork."""

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        self.workers = workers
        self.started = 0  # children started so far; more than `workers` means some were replaced
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()
        atexit.register(self.close)

    def run(
        self,
        target: str,
        items: Sequence[Sequence[Any]],
        *,
        timeout_s: float = 5.0,
        imports: Sequence[str] = (),
    ) -> list[Verdict]:
        """Call `target` ("module:attribute") on every item; `imports` are loaded before any clock starts."""
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be > 0 seconds, got {timeout_s}")
        if self._owner != os.getpid():  # forked: the children and the lock belong to the parent
            self._owner, self._idle, self._lock = os.getpid(), [], threading.Lock()
        with self._lock:
            head = {"target": target, "imports": list(imports), "timeout_s": timeout_s}
            return _Run(self, items, head, timeout_s).finish()

    def close(self) -> None:
        """Kill the children; the next `run` starts new ones."""
        if self._owner == os.getpid():
            while self._idle:
                self._idle.pop().kill()

    def _take(self) -> _Child:
        return self._idle.pop() if self._idle else self._start()

    def _start(self) -> _Child:
        self.started += 1
        path = [os.path.abspath(entry) for entry in sys.path]  # "" and relative ones: of our working directory
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(path), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=SET | {name: os.environ[name] for name in KEPT if name in os.environ},  # no token, no key, no home
            start_new_session=True,  # Ctrl-C reaches the parent only; killpg reaches grandchildren
        )
        return _Child(process)


class _Run:
    """One call of `VerifierPool.run`: a queue of item numbers, the children at work, the verdicts so far."""

    def __init__(self, pool: VerifierPool, items: Sequence[Any], head: dict[str, Any], timeout_s: float) -> None:
        self.pool, self.items, self.head, self.timeout_s = pool, items, head, timeout_s
        self.queue = deque(range(len(items)))
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self.batch = max(1, min(MAX_BATCH, -(-len(items) // pool.workers)))
        self.selector = selectors.DefaultSelector()
        self.failed_starts = 0

    def finish(self) -> list[Verdict]:
        try:
            while self.queue or self.selector.get_map():
                while self.queue and len(self.selector.get_map()) < self.pool.workers:
                    self._send(self.pool._take())
                self._wait()
        except BaseException:
            for key in list(self.selector.get_map().values()):
                key.data.kill()  # busy with a batch nobody waits for
            raise
        finally:
            self.selector.close()
        assert None not in self.verdicts
        return [verdict for verdict in self.verdicts if verdict is not None]

    def _send(self, child: _Child) -> None:
        child.todo = deque(self.queue.popleft() for _ in range(min(self.batch, len(self.queue))))
        child.loaded = False
        child.deadline = time.monotonic() + START_S
        child.nonces = deque(secrets.token_hex(8) for _ in range(len(child.todo) + 1))
        items = [list(self.items[i]) for i in child.todo]
        message = {**self.head, "items": items, "nonces": list(child.nonces)}
        assert child.process.stdin is not None
        try:
            child.process.stdin.write(json.dumps(message).encode() + b"\n")
            child.process.stdin.flush()
        except BrokenPipeError:  # it died while idle
            self._replace(child)
            return
        self.selector.register(child.process.stdout, selectors.EVENT_READ, child)  # type: ignore[arg-type]

    def _wait(self) -> None:
        children = [key.data for key in self.selector.get_map().values()]
        if not children:
            return
        patience = min(child.deadline for child in children) - time.monotonic()
        ready = {id(key.data) for key, _ in self.selector.select(max(0.0, patience))}
        for child in children:
            # Messages first: an item that answered while this process slept is no timeout.
            if id(child) in ready:
                self._read(child)
            elif time.monotonic() >= child.deadline:
                self._drop(child, timed_out=True)

    def _read(self, child: _Child) -> None:
        lines = child.lines()
        if lines is None:
            self._drop(child, timed_out=False)
            return
        for line in lines:
            message = child.read(line)
            if message is None:
                self._drop(child, forged=True)
                return
            if "load_error" in message:
                raise VerifierError(f"a verifier process cannot load {self.head['target']}: {message['load_error']}")
            if "loaded" in message:
                child.loaded, self.failed_starts = True, 0
            else:
                self._settle(child, message)
        child.deadline = time.monotonic() + (self.timeout_s if child.loaded else START_S)
        if child.loaded and not child.todo:
            self.selector.unregister(child.process.stdout)  # type: ignore[arg-type]
            self.pool._idle.append(child)

    def _settle(self, child: _Child, message: dict[str, Any]) -> None:
        item = child.todo.popleft()
        if "error" in message:
            self.verdicts[item] = Verdict(status="crash", detail=message["error"])
        else:
            self.verdicts[item] = Verdict(status="ok", value=message["value"])

    def _drop(self, child: _Child, *, timed_out: bool = False, forged: bool = False) -> None:
        """Kill and replace; the running item gets its verdict, the others go back to the head of the queue."""
        self.selector.unregister(child.process.stdout)  # type: ignore[arg-type]
        if not child.loaded or not child.todo:
            self._replace(child)
            return
        code = child.kill(patience_s=0.0 if timed_out or forged else 2.0)
        item = child.todo.popleft()
        if timed_out:
            detail = f"no answer after {self.timeout_s:g} s"
            self.verdicts[item] = Verdict(status="timeout", detail=detail)
        elif forged:
            detail = "the verifier process wrote a line that answers no item; its scorer may have been fooled"
            self.verdicts[item] = Verdict(status="crash", detail=detail)
        else:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.verdicts[item] = Verdict(status="crash", detail=f"the verifier process died: {how}")
        self.queue.extendleft(reversed(child.todo))

    def _replace(self, child: _Child) -> None:
        """It died before any item began: nobody's verdict, but give up when it happens again and again."""
        code = child.kill()
        self.queue.extendleft(reversed(child.todo))
        self.failed_starts += 1
        if self.failed_starts > 2 * self.pool.workers:
            raise VerifierError(
                f"verifier processes die before their first item (exit code {code}); "
                f"try: {sys.executable} -c 'import {self.head['target'].partition(':')[0]}'"
            )


@functools.cache
def shared_pool(workers: int = 2) -> VerifierPool:
    """The pool of this process for a number of workers; rewards share it instead of owning children."""
    return VerifierPool(workers)
