"""Limits on somebody else's code that is tried: of time (a template), of what it does to this process (a reward)."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class _TimeIsUp(BaseException):
    """Not an Exception: the code that is tried must not catch it by accident."""


def within(seconds: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns or raises; ValueError after `seconds`.

    An alarm ends loops and waits of Python. Beside the main thread, where there is none, `work` has no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    except _TimeIsUp:
        raise ValueError(_late(what, seconds)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def apart(seconds: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns or raises, found out in a fork of this process, so that nothing it does reaches this one.

    ValueError where it is not back after `seconds`, whatever holds it up, or ends its process: `os._exit`, a crash.
    Linux alone: elsewhere a fork of a process with threads is not safe.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forks beside threads
        process = context.Process(target=_tell, args=(work, sending))
        process.start()
    sending.close()
    assert process.pid is not None
    over = os.pidfd_open(process.pid)  # multiprocessing's sentinel is a pipe, which what it has started holds open
    try:
        ready = multiprocessing.connection.wait([receiving, over], seconds)
        told = _told(receiving)
    finally:
        _end(process)
        os.close(over)
        receiving.close()
    if told is not None:
        fine, answer = told
        if fine:
            return answer
        raise answer
    if ready:
        raise ValueError(
            f"{what} ended its process ({_end_of(process.exitcode)}); raise an error there, or return None"
        )
    raise ValueError(_late(what, seconds))


def _late(what: str, seconds: float) -> str:
    return f"{what} did not come back within {seconds:g} s; mend the loop or the wait in it"


def _told(receiving: Any) -> tuple[bool, Any] | None:
    try:
        return receiving.recv() if receiving.poll() else None
    except EOFError:  # it ended before
        return None


def _end(process: Any) -> None:
    """With what it has started. The group is killed before anybody asks whether it lives: to ask is to collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own
    process.kill()  # where it has not come so far
    process.join()


def _end_of(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def _tell(work: Callable[[], Any], sending: Any) -> None:
    """In the fork, which has one thread: libgomp's are gone, and to wait for them would be for ever."""
    import torch

    os.setsid()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        told: tuple[bool, Any] = True, work()
    except Exception as error:
        told = False, error
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        sending.send(told)
    except Exception as error:  # it cannot be pickled
        sending.send((False, ValueError(f"{type(told[1]).__name__}: {told[1]} ({error})")))
