"""A pool of vLLM servers that generate for one training run and are sent nothing but its LoRA adapter.

    pool = ReplicaPool(urls, key, base_model="org/model", lora_rank=16)
    pool.check()                                 once, before training
    pool.publish(version, folder)                after each update: load under a new name, switch, unload the old one
    pool.generate(prompts, n, sampling, version) n completions of every prompt, all of that version, or an error
    pool.stream(work, version)                   items with a sampling each, answered in the order they finish

Work is cut into items (one prompt, some of its samples). An item belongs to one coroutine which asks one replica at a
time, so a completion can be neither lost nor counted twice: when a replica dies, restarts, stalls or answers late, its
connection is closed (the server drops the request) and the item is asked of another, with the same seed. A replica
that failed is tried again with doubling pauses; before it gets work again it is examined like a new one and given the
current adapter. `retries` failures in a row give it up; when all are given up the call raises NoReplicaLeft.
"""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrl.engines import liveness, servers
from entrl.engines.adapters import adapter_name, check_folder
from entrl.engines.background import all_of, as_it_comes
from entrl.engines.completions import (
    Completion,
    WorkItem,
    checked_sampling,
    make_items,
    read_answer,
    request_body,
)
from entrl.engines.faults import (
    ReplicaMismatch,
    RolloutError,
    StaleVersion,
)
from entrl.engines.liveness import Call, Counters, cancel
from entrl.engines.servers import Replica, Unreachable

RETURN_TIMEOUT = 3.0  # seconds `publish` waits for a replica that failed before: a dead machine must not hold it up


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What publishing one version took."""

    version: int
    name: str
    adapter_bytes: int  # of one copy
    bytes_sent: int  # read or received by all replicas together
    seconds: dict[str, float]  # per replica that has it now: hand over and load
    wall_seconds: float  # of the whole call
    uploaded: bool  # over HTTP; False: read from a shared folder
    missing: list[str]  # replicas that could not be reached; they get it when they are back


@dataclass(frozen=True, kw_only=True)
class _Published:
    version: int
    name: str
    folder: Path


class ReplicaPool:
    """See the top of this file. Calls are taken one at a time; a second thread waits.

    urls: of the servers, such as http://127.0.0.1:8000. api_key: theirs (None: they have none).
    base_model: folder or hub id the adapter was made for. lora_rank: the adapter's; None: only the base is asked.
    request_timeout: seconds one completion request may take, waiting in the server's queue included.
    retries: failures in a row after which a replica is given up. backoff: seconds before a new attempt; doubles.
    adapter_folder: a folder the servers can read, inside which every published adapter lies; None: it is uploaded.
    max_concurrency: requests at a time per replica. samples_per_request: completions of one prompt per request (None:
    all). run_id: part of the adapters' names; never used twice on a living server, so by default a random one.
    processed: refuse servers whose log-probs are not those of the distribution sampled from.
    """

    def __init__(
        self,
        urls: Sequence[str],
        api_key: str | None,
        *,
        base_model: str,
        lora_rank: int | None = None,
        request_timeout: float = 600.0,
        retries: int = 6,
        backoff: float = 1.0,
        adapter_folder: str | Path | None = None,
        max_concurrency: int = 64,
        samples_per_request: int | None = None,
        run_id: str | None = None,
        processed: bool = True,
    ) -> None:
        self.replicas = [Replica(url=url) for url in servers.checked_urls(urls)]
        if request_timeout <= 0 or backoff <= 0:
            raise ValueError(f"request_timeout and backoff are seconds > 0, got {request_timeout} and {backoff}")
        if retries < 0 or max_concurrency < 1:
            raise ValueError(f"retries must be >= 0 and max_concurrency >= 1, got {retries} and {max_concurrency}")
        if samples_per_request is not None and samples_per_request < 1:
            raise ValueError(f"samples_per_request must be >= 1 or None, got {samples_per_request}")
        self.api_key = api_key
        self.base_model = base_model
        self.lora_rank = lora_rank
        self.request_timeout = request_timeout
        self.retries = retries
        self.backoff = backoff
        self.adapter_folder = None if adapter_folder is None else Path(adapter_folder).absolute()
        self.max_concurrency = max_concurrency
        self.samples_per_request = samples_per_request
        self.run_id = run_id or secrets.token_hex(4)
        self.processed = processed
        self._published: _Published | None = None
        self._liveness = liveness.Liveness(
            replicas=self.replicas,
            retries=retries,
            backoff=backoff,
            request_timeout=request_timeout,
            max_concurrency=max_concurrency,
            bring_up=self._bring_up,
        )
        self._lock = threading.Lock()
        adapter_name(self.run_id, 0)  # says what is wrong with it

    @property
    def counters(self) -> Counters:
        """Requests, completions, failures; over the life of the pool."""
        return self._liveness.counters

    @property
    def version(self) -> int | None:
        """The version completions are drawn from; None before the first `publish`."""
        return None if self._published is None else self._published.version

    # --- the three calls ----------------------------------------------------------------------------------------

    def check(self, *, wait: float = 0.0) -> list[dict[str, Any]]:
        """Examine every replica; what each tells about itself. All must be there within `wait` seconds.

        Raises ReplicaMismatch (wrong key, base model, adapter rank, log-probs mode) or RolloutError (no answer).
        """
        return self._run(lambda call: self._check(call, time.monotonic() + wait))

    def publish(self, version: int, folder: str | Path) -> SyncReport:
        """Load the adapter in `folder` as `version` on all replicas, switch to it, unload the version before.

        The old version's requests have drained when this runs: calls are taken one at a time. Raises AdapterRefused,
        NoReplicaLeft, or ValueError where the version does not grow or the folder is not shared.
        """
        folder = Path(folder).absolute()
        if self.version is not None and version <= self.version:
            raise ValueError(f"version {version} does not follow {self.version}; versions grow, servers cache by name")
        if self.adapter_folder is not None and not folder.is_relative_to(self.adapter_folder):
            raise ValueError(f"{folder} is not inside {self.adapter_folder}, which the servers share; save it there")
        size = check_folder(folder, rank=self.lora_rank)
        new = _Published(version=version, name=adapter_name(self.run_id, version), folder=folder)
        return self._run(lambda call: self._publish(call, new, size))

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Mapping[str, Any], version: int | None
    ) -> list[list[Completion]]:
        """Per prompt (token ids) its `n` completions, in order.

        sampling: max_tokens, and what of temperature, top_p, top_k, min_p, ... is not neutral; seed: of this call
        (None: a random one); entrl: options of our recorder, {"record": True} for entropies. version: the one
        published, or None for the base model. Raises StaleVersion, NoReplicaLeft, or RolloutError for a request
        that servers refuse.
        """
        settings = checked_sampling(sampling)
        self._check_version(version)
        seed = secrets.randbits(62) if settings.get("seed") is None else int(settings["seed"])
        # A caller's own seed decides alone: a resumed run publishes other versions and draws what it would have drawn.
        in_seed = version if settings.get("seed") is None else None
        items = make_items(prompts, n, chunk=self.samples_per_request, seed=seed, version=in_seed)
        found: dict[str, list[Completion]] = {}

        def keep(item: WorkItem, completions: list[Completion]) -> None:
            found[item.key] = completions

        self._run(lambda call: self._generate(call, [(item, settings) for item in items], version, keep))
        completions: list[list[Completion]] = [[] for _ in prompts]
        for item in items:  # made in order of prompt and first sample
            completions[item.prompt].extend(found[item.key])
        assert all(len(of_prompt) == n for of_prompt in completions)
        self.counters.completions += n * len(completions)
        return completions

    def stream(
        self, work: Sequence[tuple[WorkItem, Mapping[str, Any]]], version: int | None
    ) -> Iterator[tuple[WorkItem, list[Completion]]]:
        """Each item with its completions, as they finish. Sampling and errors as in `generate`; seeds: the items'."""
        asked = [(item, checked_sampling(sampling)) for item, sampling in work]
        self._check_version(version)

        def run(put: Callable[[Any], None]) -> Coroutine[Any, Any, Any]:
            done = lambda item, completions: put((item, completions))  # noqa: E731
            return self._with_call(lambda call: self._generate(call, asked, version, done))

        with self._lock:
            for item, completions in as_it_comes(run):
                self.counters.completions += len(completions)
                yield item, completions

    def withdraw(self) -> None:
        """Unload the published adapter everywhere it can be reached."""
        now, self._published = self._published, None
        if now is not None:
            up = [replica for replica in self.replicas if replica.state == "up"]
            self._run(lambda call: all_of([self._unload(call, replica, now.name) for replica in up]))

    def _check_version(self, version: int | None) -> None:
        if version is not None and version != self.version:
            raise StaleVersion(f"version {version} was asked for, the replicas hold {self.version}; publish it first")

    def _run(self, work: Callable[[Call], Coroutine[Any, Any, Any]]) -> Any:
        """Run `work` in an event loop, in a thread of its own where this one already runs one (notebooks)."""
        with self._lock:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(self._with_call(work))
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(asyncio.run, self._with_call(work)).result()

    async def _with_call(self, work: Callable[[Call], Coroutine[Any, Any, Any]]) -> Any:
        async with servers.make_client(self.api_key) as client:
            call = Call(client)
            try:
                return await work(call)
            finally:
                await cancel(call.revivals.values())
                for replica in self.replicas:
                    replica.in_flight = 0

    # --- check and publish --------------------------------------------------------------------------------------

    async def _check(self, call: Call, deadline: float) -> list[dict[str, Any]]:
        async def one(replica: Replica) -> None:
            while True:
                try:
                    return await self._bring_up(call, replica)
                except Unreachable as error:
                    if time.monotonic() > deadline:
                        raise RolloutError(
                            f"replica {replica.url} does not answer: {error}. Start it with `entrl serve` and wait "
                            "for 'ready', or take it out of trainer.vllm_replicas"
                        ) from None
                    await asyncio.sleep(min(self.backoff, 1.0))

        await all_of([one(replica) for replica in self.replicas])
        return [{"url": r.url, "base_model": r.base_id, **r.info} for r in self.replicas]

    async def _publish(self, call: Call, new: _Published, size: int) -> SyncReport:
        started = time.monotonic()
        before, seconds, sent = self._published, {}, []

        async def one(replica: Replica) -> None:
            since = time.monotonic()
            try:
                # Always: it may have been replaced by another server while nobody asked.
                await self._examine(call, replica, RETURN_TIMEOUT if replica.failures else None)
                sent.append(await self._load(call, replica, new))
            except Unreachable as error:
                self._liveness.note_failure(replica, error)
                return
            except ReplicaMismatch as error:  # another server took its place; the others go on
                replica.state, replica.last_error = "lost", str(error)
                liveness.log.warning("replica %s is given up: %s", replica.url, error)
                return
            self._liveness.note_return(replica)
            seconds[replica.url] = time.monotonic() - since

        pause = self.backoff
        for attempt in range(self.retries + 1):
            await all_of([one(replica) for replica in self.replicas])
            if seconds or attempt == self.retries:
                break
            await asyncio.sleep(min(pause, liveness.MAX_PAUSE))
            pause *= 2
        if not seconds:
            raise self._liveness.none_left()
        self._published = new
        up = [replica for replica in self.replicas if replica.state == "up"]
        if before is not None:
            await all_of([self._unload(call, replica, before.name) for replica in up])
        return SyncReport(
            version=new.version,
            name=new.name,
            adapter_bytes=size,
            bytes_sent=sum(sent),
            seconds=seconds,
            wall_seconds=time.monotonic() - started,
            uploaded=self.adapter_folder is None,
            missing=[replica.url for replica in self.replicas if replica.state != "up"],
        )

    async def _examine(self, call: Call, replica: Replica, timeout: float | None = None) -> list[str]:
        """The adapters it has; raises unless it is alive and the server this run needs."""
        adapters = await servers.look(call.client, replica, timeout=timeout or liveness.PROBE_TIMEOUT)
        servers.check_identity(replica, base_model=self.base_model, lora_rank=self.lora_rank, processed=self.processed)
        if self.processed and replica.info.get("logprobs_mode") is None:
            await servers.check_processed(call.client, replica, timeout=self.request_timeout)
        return adapters

    async def _bring_up(self, call: Call, replica: Replica) -> None:
        """Examine it and see that it holds the current adapter and none of this run's old ones."""
        adapters = await self._examine(call, replica)
        now = self._published
        if now is not None and now.name not in adapters:
            await self._load(call, replica, now)
        for name in adapters:
            if name.startswith(f"entrl-{self.run_id}-v") and (now is None or name != now.name):
                await self._unload(call, replica, name)
        self._liveness.note_return(replica)

    async def _load(self, call: Call, replica: Replica, adapter: _Published) -> int:
        return await servers.load_adapter(
            call.client,
            replica,
            adapter.name,
            adapter.folder,
            upload=self.adapter_folder is None,
            timeout=self.request_timeout,
        )

    async def _unload(self, call: Call, replica: Replica, name: str) -> None:
        with contextlib.suppress(Unreachable):  # it will be examined before it gets work again
            await servers.unload_adapter(call.client, replica, name, timeout=liveness.PROBE_TIMEOUT)

    # --- generate -----------------------------------------------------------------------------------------------

    async def _generate(
        self,
        call: Call,
        work: Sequence[tuple[WorkItem, Mapping[str, Any]]],
        version: int | None,
        done: Callable[[WorkItem, list[Completion]], None],
    ) -> None:
        room = asyncio.Semaphore(len(self.replicas) * self.max_concurrency)  # a free replica wakes only those in it

        async def one(item: WorkItem, sampling: Mapping[str, Any]) -> None:
            avoid: Replica | None = None
            async with room:
                while True:
                    replica = await self._liveness.acquire(call, avoid)
                    try:
                        return done(item, await self._ask(call, replica, item, sampling, version))
                    except Unreachable:
                        avoid = replica
                        self.counters.repeated += 1
                    finally:
                        await self._liveness.release(call, replica)

        new = [replica for replica in self.replicas if replica.state == "unchecked"]
        for replica in self.replicas:
            if replica.state != "up":
                replica.failures = min(replica.failures, self.retries)  # one that was given up gets one more look
                self._liveness.revive(call, replica, at_once=True)
        if new:  # one that is a moment faster should not get all the work
            await asyncio.wait([call.revivals[replica.url] for replica in new], timeout=liveness.PROBE_TIMEOUT)
        async with self._liveness.watched(call):
            await all_of([one(item, sampling) for item, sampling in work])

    async def _ask(
        self, call: Call, replica: Replica, item: WorkItem, sampling: Mapping[str, Any], version: int | None
    ) -> list[Completion]:
        """One attempt at one replica. Raises Unreachable, having noted the failure against the replica."""
        life = replica.lives
        model = replica.base_id if version is None or self._published is None else self._published.name
        self.counters.requests += 1
        try:
            answer = await self._liveness.while_alive(
                call,
                replica,
                servers.complete(
                    call.client, replica, request_body(item, model, sampling), timeout=self.request_timeout
                ),
            )
        except Unreachable as error:
            if replica.state == "up" and replica.lives == life:  # many requests fail with one replica; it counts once
                self._liveness.note_failure(replica, error)
                if replica.state == "down":
                    self._liveness.revive(call, replica)
            raise
        replica.failures = 0
        replica.answered += item.samples
        recorded = bool((sampling.get("entrl") or {}).get("record"))
        return read_answer(answer, item, model=model, version=version, recorded=recorded, url=replica.url)
