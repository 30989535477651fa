"""Limits on somebody else's code that is tried: of time (a template), of what it does to this process (a reward)."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

from entrl.errors import TimeIsUp, told

T = TypeVar("T")
LOOK_S = 0.05  # between two looks at a process whose end nobody tells
PR_SET_PDEATHSIG = 1


class NotBack(ValueError):
    """What was tried has not come back: it took too long, ended its process, or raised what is no Exception."""


def within(seconds: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns or raises; NotBack after `seconds`.

    An alarm ends loops and waits of Python. Beside the main thread, where there is none, `work` has no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    except TimeIsUp:
        raise NotBack(_late(what, seconds)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def apart(seconds: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns or raises, found out in a fork of this process, so that nothing it does reaches this one.

    NotBack where it is not back after `seconds`, whatever holds it up, ends its process (`os._exit`, a crash), or
    raises what is no Exception, such as KeyboardInterrupt. The fork dies with the thread that calls.
    Linux alone: elsewhere a fork of a process with threads is not safe.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forks beside threads
        process = context.Process(target=_tell, args=(work, what, sending, os.getpid()))
        process.start()
    sending.close()
    assert process.pid is not None
    try:
        ready = _wait(process.pid, receiving, seconds)
        answer = _received(receiving)
    finally:
        _end(process)
        receiving.close()
    if answer is not None:
        fine, value = answer
        if fine:
            return value
        raise value
    if ready:
        raise NotBack(f"{what} ended its process ({_end_of(process.exitcode)}); raise an error there instead")
    raise NotBack(_late(what, seconds))


def _wait(pid: int, receiving: Any, seconds: float) -> bool:
    """Whether it has said something or has ended in time; not collected.

    multiprocessing's sentinel is a pipe, which what the process has started holds open.
    """
    try:
        over = os.pidfd_open(pid)
    except OSError:  # an old kernel, or a container that forbids it
        end = time.monotonic() + seconds
        while not (ready := _over(pid) or receiving.poll(LOOK_S)) and time.monotonic() < end:
            pass
        return ready
    try:
        return bool(multiprocessing.connection.wait([receiving, over], seconds))
    finally:
        os.close(over)


def _over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _late(what: str, seconds: float) -> str:
    return f"{what} did not come back within {seconds:g} s; mend the loop or the wait in it"


def _received(receiving: Any) -> tuple[bool, Any] | None:
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


def _tell(work: Callable[[], Any], what: str, sending: Any, parent: int) -> None:
    """In the fork, which has one thread: libgomp's are gone, and to wait for them would be for ever."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended before it was asked for
        os._exit(1)
    import torch

    os.setsid()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        answer: tuple[bool, Any] = True, work()
    except Exception as error:
        answer = False, error
    except BaseException as error:  # nobody's Ctrl-C: the terminal does not reach this session
        answer = False, NotBack(f"{what} raised {told(error)}; raise an Exception there instead")
    with contextlib.suppress(Exception):  # whatever has become of them
        sys.stdout.flush()
        sys.stderr.flush()
    try:
        pickle.loads(pickle.dumps(answer))  # some can be sent and not received
    except BaseException as error:
        raised = answer[1] if isinstance(answer[1], BaseException) else error
        answer = False, ValueError(f"{what}: {told(raised)}")
    sending.send(answer)
