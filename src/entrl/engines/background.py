"""What goes on beside the caller: an event loop in a thread, coroutines together, processes that end with theirs."""

import asyncio
import ctypes
import queue
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def as_it_comes(work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, Any]]) -> Iterator[Any]:
    """What `work` gives to the function it is called with, in that order; then its error, if it raised one.

    Whoever stops reading early cancels the work: nothing goes on in the background.
    """
    ready: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def run() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        await work(lambda found: ready.put((found,)))

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(lambda: asyncio.run(run()))
        future.add_done_callback(lambda _: ready.put(()))
        try:
            while found := ready.get():
                yield found[0]
        finally:
            if not future.done():
                for loop, task in running:
                    if task is not None:
                        loop.call_soon_threadsafe(task.cancel)
        future.result()


async def all_of(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them together; the first that raises stops the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def end_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Called in a child: let it end when its parent does (on Linux: the thread that started it), even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, how)  # PR_SET_PDEATHSIG
