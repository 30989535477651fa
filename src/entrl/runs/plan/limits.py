"""A time limit on somebody else's code that is tried: a template, a reward."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

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
        raise ValueError(f"{what} did not come back within {seconds:g} s; mend the loop or the wait in it") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
