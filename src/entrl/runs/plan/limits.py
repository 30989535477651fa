"""A time limit on somebody else's code that is tried: a template, a reward."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns or raises; ValueError after `seconds`.

    A thread cannot be ended: what hangs goes on beside until the process ends, which it does not hold up.
    """
    done: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if thread.is_alive():
        raise ValueError(f"{what} did not come back within {seconds:g} s; mend the loop or the wait in it")
    return done[0]
