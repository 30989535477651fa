"""One program in one fresh interpreter: started, fed, read, cut, ended."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass, field

from entrl.errors import SandboxError
from entrl.sandbox.groups import end_group, ended
from entrl.sandbox.limits import Limits, Outcome, Status, Tier
from entrl.sandbox.tiers import ENVIRONMENT, MARKER, command, order

START_S = 60.0  # seconds an interpreter may take to start on a machine that is busy with training
CHUNK = 1 << 16


def run_program(program: str, stdin: bytes, *, tier: Tier, limits: Limits) -> Outcome:
    """Run Python source. SandboxError where the interpreter ended, or hung, before the program began.

    In `landlock` the program dies with the thread that called, as far as the kernel knows a parent.
    """
    process = subprocess.Popen(
        command(tier, limits),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=ENVIRONMENT,
        start_new_session=True,  # a process group to kill, no terminal, no Ctrl-C of ours
    )
    try:
        return _Watch(process, order(tier, limits, program) + stdin, tier, limits).outcome()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With what the program left behind."""
    end_group(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


@dataclass
class _Watch:
    """What was written to a process and read from it so far."""

    process: subprocess.Popen[bytes]
    unsent: bytes
    tier: Tier
    limits: Limits
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    began: float | None = None  # monotonic clock, at the marker
    deadline: float = 0.0  # of the start, then of the program

    def outcome(self) -> Outcome:
        started = time.monotonic()
        status = self._watch(started)
        if self.began is None:
            self._blame_sandbox(status)
        assert self.began is not None
        if status is None and not self._ended_in_time():
            status = "timeout"
        seconds = time.monotonic() - self.began
        _end(self.process)
        code = self._exit_code()
        if status is None:
            status = "timeout" if self._out_of_cpu(code, seconds) else "error" if code else "ok"
        kept = self.limits.output_kib * 1024
        return Outcome(
            status=status,
            stdout=bytes(self.stdout[:kept]),
            stderr=bytes(self.stderr[: kept // 16]),
            exit_code=code,
            seconds=seconds,
        )

    def _watch(self, started: float) -> Status | None:
        """Move bytes until both outputs are closed (None) or a limit is met."""
        with selectors.DefaultSelector() as selector:
            for pipe, event in self._pipes():
                os.set_blocking(pipe, False)
                selector.register(pipe, event)
            outputs = 2
            self.deadline = started + START_S
            while outputs:
                if (left := self.deadline - time.monotonic()) <= 0:
                    return "timeout"
                for key, _ in selector.select(left):
                    if key.fd == self._stdin():
                        if not self._send():
                            selector.unregister(key.fd)
                            self.process.stdin.close()  # type: ignore[union-attr]
                    elif not self._receive(key.fd):
                        selector.unregister(key.fd)
                        outputs -= 1
                if self.began is None and self._marked():
                    self.began = time.monotonic()
                    self.deadline = self.began + self.limits.wall_s
                if self._too_much():
                    return "output"
        return None

    def _pipes(self) -> list[tuple[int, int]]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout.fileno(), self.process.stderr.fileno()
        return [(self._stdin(), selectors.EVENT_WRITE), (out, selectors.EVENT_READ), (err, selectors.EVENT_READ)]

    def _stdin(self) -> int:
        assert self.process.stdin is not None
        return -1 if self.process.stdin.closed else self.process.stdin.fileno()

    def _send(self) -> bool:
        """Whether there is more to send."""
        try:
            sent = os.write(self._stdin(), self.unsent[:CHUNK])
        except BrokenPipeError:  # it reads no more
            return False
        except BlockingIOError:  # it has filled its own input since it was ready
            return True
        self.unsent = self.unsent[sent:]
        return bool(self.unsent)

    def _receive(self, pipe: int) -> bool:
        """Whether the pipe is still open."""
        try:
            data = os.read(pipe, CHUNK)
        except BlockingIOError:  # it has read its own output since it was ready
            return True
        assert self.process.stdout is not None
        (self.stdout if pipe == self.process.stdout.fileno() else self.stderr).extend(data)
        return bool(data)

    def _marked(self) -> bool:
        at = self.stderr.find(MARKER)
        if at < 0:
            return False
        del self.stderr[: at + len(MARKER)]
        return True

    def _too_much(self) -> bool:
        kept = self.limits.output_kib * 1024
        return len(self.stdout) > kept or len(self.stderr) > max(kept // 16, CHUNK)

    def _ended_in_time(self) -> bool:
        """It has closed its outputs; a program may do so and go on."""
        return ended(self.process, max(0.1, self.deadline - time.monotonic())) is not None

    def _out_of_cpu(self, code: int, seconds: float) -> bool:
        """The first process of a namespace, as bubblewrap's is, is spared SIGXCPU and gets SIGKILL a second later."""
        return code == -signal.SIGXCPU or (code == -signal.SIGKILL and seconds >= self.limits.cpu_s)

    def _exit_code(self) -> int:
        """Of the program that has ended, negative for a signal; bubblewrap tells signals as a shell does."""
        code = self.process.returncode
        return 128 - code if self.tier == "bubblewrap" and code > 128 else code

    def _blame_sandbox(self, status: Status | None) -> None:
        _end(self.process)
        said = self.stderr.decode(errors="replace").strip().splitlines()
        why = f"it did not start within {START_S:g} s" if status == "timeout" else (said[-1] if said else "no reason")
        raise SandboxError(
            f"the sandbox ({self.tier}) could not start a program (exit code {self.process.returncode}): {why}; "
            "`entrl sandbox` shows which tiers work here"
        )
