"""Which replicas of a pool are alive, and who gets work.

A replica that fails is tried again with doubling pauses; `retries` failures in a row give it up. While requests run the
working ones are looked at as well, because a machine that is gone resets no connection.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from entrl.engines import servers
from entrl.engines.faults import NoReplicaLeft, RolloutError
from entrl.engines.servers import Replica, Unreachable

MAX_PAUSE = 30.0  # seconds between two attempts to reach a replica
PROBE_TIMEOUT = 20.0  # seconds for /health and the like
WATCH_EVERY = 5.0  # seconds between looks at the health of replicas that are working
MISSES = 2  # looks in a row without an answer before a working replica is taken for dead

log = logging.getLogger(__name__)


@dataclass
class Counters:
    """Over the life of the pool."""

    requests: int = 0  # sent
    completions: int = 0  # returned to the caller
    repeated: int = 0  # requests sent again because the first one failed
    failures: int = 0  # of replicas
    returns: int = 0  # of replicas that had failed


@dataclass
class Call:
    """One run of the event loop: the client and who waits for whom in it."""

    client: httpx.AsyncClient
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    revivals: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    deaths: dict[str, asyncio.Event] = field(default_factory=dict)  # url -> set when its watcher gave it up


@dataclass(kw_only=True)
class Liveness:
    """State of the replicas over the life of a pool.

    retries, backoff, request_timeout, max_concurrency: as `ReplicaPool` takes them. bring_up: examine a replica and
    give it what it lacks; raises Unreachable where it does not answer, RolloutError where it is another server.
    """

    replicas: Sequence[Replica]
    retries: int
    backoff: float
    request_timeout: float
    max_concurrency: int
    bring_up: Callable[[Call, Replica], Awaitable[None]]
    counters: Counters = field(default_factory=Counters)

    def note_failure(self, replica: Replica, error: Unreachable) -> None:
        replica.failures += 1
        replica.last_error = str(error)
        replica.state = "down" if replica.failures <= self.retries else "lost"
        self.counters.failures += 1
        log.warning(
            "replica %s failed (%d in a row, given up after %d): %s",
            replica.url,
            replica.failures,
            self.retries + 1,
            error,
        )

    def note_return(self, replica: Replica) -> None:
        if replica.state != "up":
            if replica.lives:
                self.counters.returns += 1
                log.warning("replica %s is back", replica.url)
            replica.state = "up"
            replica.lives += 1

    def revive(self, call: Call, replica: Replica, *, at_once: bool = False) -> None:
        running = call.revivals.get(replica.url)
        if running is None or running.done():
            replica.state = "down"
            call.revivals[replica.url] = asyncio.create_task(self._retry(call, replica, at_once=at_once))

    async def _retry(self, call: Call, replica: Replica, *, at_once: bool) -> None:
        """Try to bring a replica up, with doubling pauses, until it is up or given up."""
        while replica.state == "down":
            if not at_once:
                await asyncio.sleep(min(self.backoff * 2 ** max(0, replica.failures - 1), MAX_PAUSE))
            at_once = False
            try:
                await self.bring_up(call, replica)
                call.deaths[replica.url] = asyncio.Event()
            except Unreachable as error:
                replica.failures += 1
                replica.last_error = str(error)
                if replica.failures > self.retries:
                    replica.state = "lost"
                    log.warning("replica %s is given up: %s", replica.url, error)
            except RolloutError as error:  # it came back as something else
                replica.state, replica.last_error = "lost", str(error)
                log.warning("replica %s is given up: %s", replica.url, error)
            except Exception as error:  # an answer nobody expected, a folder that is gone: nobody may wait for ever
                replica.state, replica.last_error = "lost", f"{type(error).__name__}: {error}"
                log.warning("replica %s is given up: %s", replica.url, replica.last_error)
        async with call.changed:
            call.changed.notify_all()

    def none_left(self) -> NoReplicaLeft:
        reasons = "; ".join(f"{replica.url}: {replica.last_error}" for replica in self.replicas)
        return NoReplicaLeft(
            f"no replica left of {len(self.replicas)}, each failed {self.retries + 1} times in a row or is not usable "
            f"({reasons}). Start them again with `entrl serve` and resume; where they are only slow, raise "
            f"request_timeout ({self.request_timeout:g} s)"
        )

    async def while_alive(self, call: Call, replica: Replica, request: Coroutine[Any, Any, Any]) -> Any:
        """The request's result, or Unreachable as soon as the replica's watcher gives it up."""
        asking = asyncio.ensure_future(request)
        dying = asyncio.ensure_future(call.deaths.setdefault(replica.url, asyncio.Event()).wait())
        try:
            await asyncio.wait({asking, dying}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Unreachable(f"no answer to GET /health for {MISSES} looks in a row while requests were running")
            return asking.result()
        finally:
            await cancel([asking, dying])

    @contextlib.asynccontextmanager
    async def watched(self, call: Call) -> AsyncIterator[None]:
        """While requests run, look at the replicas' health: a machine that is gone resets no connection."""

        async def watch(replica: Replica) -> None:
            misses = 0
            while True:
                await asyncio.sleep(WATCH_EVERY)
                if replica.state != "up" or not replica.in_flight:
                    misses = 0
                    continue
                try:
                    await servers.call(call.client, replica, "GET", "/health", timeout=PROBE_TIMEOUT)
                    misses = 0
                except Unreachable:
                    misses += 1
                if misses >= MISSES:
                    call.deaths.setdefault(replica.url, asyncio.Event()).set()
                    misses = 0

        watchers = [asyncio.create_task(watch(replica)) for replica in self.replicas]
        try:
            yield
        finally:
            await cancel(watchers)

    async def acquire(self, call: Call, avoid: Replica | None) -> Replica:
        """The least busy replica that is up, another than `avoid` if there is one. Raises NoReplicaLeft."""
        async with call.changed:
            while True:
                free = [r for r in self.replicas if r.state == "up" and r.in_flight < self.max_concurrency]
                if free:
                    chosen = min([r for r in free if r is not avoid] or free, key=lambda r: r.in_flight)
                    chosen.in_flight += 1
                    return chosen
                if all(r.state == "lost" for r in self.replicas):
                    raise self.none_left()
                await call.changed.wait()

    async def release(self, call: Call, replica: Replica) -> None:
        async with call.changed:
            replica.in_flight -= 1
            call.changed.notify_all()


async def cancel(tasks: Any) -> None:
    for task in (tasks := list(tasks)):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
