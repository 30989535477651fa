"""Several ranks, one outcome: whichever rank fails says so with its number, and the others stop with it."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
# What a rank sees when another one has ended.
LOST = re.compile(r"[Cc]onnection (?:closed|reset) by (?:remote )?peer|Socket closed|remote process exited|Broken pipe")


class OtherRankFailed(RuntimeError):
    """Another rank failed where this one did not; the message is that rank's."""


def hush(error: BaseException) -> BaseException:
    """Mark an error that another rank says as well."""
    error.said_elsewhere = True  # pyright: ignore[reportAttributeAccessIssue]
    return error


def is_hushed(error: BaseException) -> bool:
    return getattr(error, "said_elsewhere", False)


def rank_prefix() -> str:
    """'rank 1: ' under a launcher that started several processes, else ''."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"rank {os.environ.get('RANK', '0')}: " if several else ""


def lost_ranks(error: BaseException) -> bool:
    """Whether the error only says that another rank has ended."""
    return isinstance(error, (RuntimeError, ConnectionError)) and LOST.search(str(error)) is not None


def together(action: Callable[[], T]) -> T:
    """Do it on every rank; when one fails every rank raises: its own error, or OtherRankFailed with the first one's."""
    from accelerate import PartialState  # the command line reads this module before anything heavy
    from accelerate.utils import gather_object

    state = PartialState()
    if state.num_processes == 1:
        return action()
    own: Exception | None = None
    results: list[T] = []
    try:
        results.append(action())
    except Exception as error:  # raised again below, once the other ranks know
        own = error
    texts = gather_object(["" if own is None else f"{type(own).__name__}: {own}"])
    if own is not None:
        raise own if texts.index(texts[state.process_index]) == state.process_index else hush(own)
    for rank, text in enumerate(texts):
        if text:
            raise hush(OtherRankFailed(f"rank {rank} failed: {text}"))
    return results[0]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 before the others, which go on also when it fails (accelerate's own would leave them waiting)."""
    from accelerate import PartialState

    state = PartialState()
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_main_process:
            state.wait_for_everyone()
