"""Ranks that wait for each other without a collective, for as long as it takes.

A collective ends the whole run when one rank comes later than the process group's timeout (`ddp_timeout`, half an
hour), whatever that rank was at: evaluating, downloading, writing a hundred GB. Here a rank that waits asks the group's
key-value store, over and over: no timeout applies, signals get through between two questions, and a rank that fails
leaves its words there for the others. Data goes through a collective only once everybody has arrived.

Every rank goes through the same meetings in the same order; they are counted by name.

Needs:   torch's default process group (gloo, nccl), whose store answers as long as the launcher or rank 0 lives;
         nothing with one process
"""

import atexit
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from entrl.engines.faults import AdapterRefused, NoReplicaLeft, ReplicaMismatch, RolloutError, StaleVersion
from entrl.errors import CannotWrite, said

T = TypeVar("T")
SHORTEST_S, LONGEST_S = 0.01, 0.5  # between two questions
GRACE_S = 10.0  # a rank that failed waits this long for the others, which then end with its words
BEAT_S = 10.0  # each rank shows this often that it lives
JOIN_S = 5.0  # of a store that does not answer
SILENT_BEATS = 60  # missed in a row: that rank, or its machine, is gone
# Errors that other ranks raise as rank 0 did; whatever is not named here they raise as a ValueError.
KINDS = (FileNotFoundError, TypeError, ConnectionError, CannotWrite, RuntimeError)
KINDS += (RolloutError, ReplicaMismatch, AdapterRefused, StaleVersion, NoReplicaLeft)

_meetings: Counter[str] = Counter()
_beating: list[threading.Thread] = []


class OtherRankFailed(RuntimeError):
    """Another rank failed where this one did not; the message is that rank's."""


def hush(error: BaseException) -> BaseException:
    """Mark an error that another rank says as well."""
    error.said_elsewhere = True  # pyright: ignore[reportAttributeAccessIssue]
    return error


def together(action: Callable[[], T], name: str = "together") -> T:
    """Do it on every rank; the result is this rank's own, once all are through.

    When one fails every rank raises: its own error, or OtherRankFailed with the words of the first that failed.
    """
    if _state().num_processes == 1:
        return action()
    meeting = _Meeting(name)
    try:
        result = action()
    except BaseException as error:
        meeting.fail(error)
        raise
    meeting.arrive()
    if found := meeting.wait():
        raise hush(OtherRankFailed(f"rank {found.rank} failed: {found.kind}: {found.words}"))
    return result


def wait_for_all(name: str = "together") -> None:
    """Return once every rank is here; OtherRankFailed where one came here no more and said why."""
    together(lambda: None, name)


def alone_on_main(action: Callable[[], T], name: str = "main") -> T:
    """Do it on rank 0, however long it takes; its result, or an error of the same kind and words, is every rank's."""
    from accelerate.utils import broadcast_object_list

    state = _state()
    if state.num_processes == 1:
        return action()
    meeting = _Meeting(name)
    outcome: list[Any] = [None]
    if state.is_main_process:
        try:
            outcome = [action()]
        except BaseException as error:
            meeting.fail(error)
            raise
    meeting.arrive()
    if found := meeting.wait():
        raise hush(found.error())
    return broadcast_object_list(outcome)[0]


@contextlib.contextmanager
def main_first(name: str = "main_first") -> Iterator[None]:
    """Rank 0 before the others, which go on also when it fails (accelerate's own would leave them waiting)."""
    state = _state()
    if state.num_processes == 1:
        yield
        return
    meeting = _Meeting(name)
    if not state.is_main_process:
        meeting.wait(for_main=True)
    try:
        yield
    finally:
        if state.is_main_process:
            meeting.arrive()


def failed_elsewhere() -> str | None:
    """The words of another rank that failed in one of these meetings, for whoever works for hours between two."""
    state = _state()
    if state.num_processes == 1:
        return None
    store = _store()
    if not store.check(["failure"]):
        return None
    rank, text = json.loads(store.get("failure"))
    return None if rank == state.process_index else f"rank {rank} failed: {text}"


class _Failure:
    """What a rank left behind."""

    def __init__(self, rank: int, kind: str, words: str) -> None:
        self.rank, self.kind, self.words = rank, kind, words

    def error(self) -> Exception:
        """As the rank raised it, where that is a kind with one meaning on every rank."""
        if self.kind in ("RunStopped", "KeyboardInterrupt"):
            return OtherRankFailed(f"rank {self.rank} ended: {self.words or self.kind}")
        return {kind.__name__: kind for kind in KINDS}.get(self.kind, ValueError)(self.words)


class _Meeting:
    """One place that every rank comes to, once."""

    def __init__(self, name: str) -> None:
        state = _state()
        self.rank, self.ranks = state.process_index, state.num_processes
        self.store = _store()
        self.place = f"{name}/{_meetings[name]}"
        _meetings[name] += 1
        _show_life(self.rank)

    def arrive(self, failure: str = "") -> None:
        if failure:
            self.store.add(f"{self.place}/failed", 1)
        self.store.set(f"{self.place}/{self.rank}", failure)
        self.store.add(f"{self.place}/arrived", 1)

    def fail(self, error: BaseException) -> None:
        """Leave the words of an error that will be raised; marked as said where an earlier rank says the same."""
        text = json.dumps([type(error).__name__, said(error)])
        with contextlib.suppress(RuntimeError):  # a store that is gone: so are the others
            self.arrive(text)
            if not isinstance(error, Exception):
                return  # a signal: at once, and no failure
            if not self.store.check(["failure"]):
                self.store.set("failure", json.dumps([self.rank, f"{type(error).__name__}: {said(error)}"]))
            until = time.monotonic() + GRACE_S
            while self._arrived() < self.ranks and time.monotonic() < until:
                time.sleep(SHORTEST_S)
            if any(self.left_by(rank) == text for rank in range(self.rank)):
                hush(error)

    def wait(self, *, for_main: bool = False) -> _Failure | None:
        """Until all are here, or rank 0 is; at once with what a rank that failed has left."""
        pause, watch = SHORTEST_S, _Watch(self, range(1 if for_main else self.ranks))
        self.store.set(f"waits/{self.rank}", self.place)
        while True:
            found = self._first_failure() if self.store.add(f"{self.place}/failed", 0) else None
            here = self.store.check([f"{self.place}/0"]) if for_main else self._arrived() == self.ranks
            if found is not None or here:
                self.store.set(f"waits/{self.rank}", "")
                return found
            watch.look()
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_S)

    def _arrived(self) -> int:
        return self.store.add(f"{self.place}/arrived", 0)

    def left_by(self, rank: int) -> str | None:
        """What it said on arriving; None before."""
        key = f"{self.place}/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else None

    def _first_failure(self) -> _Failure | None:
        for rank in range(self.ranks):
            if text := self.left_by(rank):
                return _Failure(rank, *json.loads(text))
        return None


class _Watch:
    """Notices, while this rank waits, that another will not come: it lives no more, or waits somewhere else itself.

    Looks are counted instead of seconds, so that a machine that was suspended accuses nobody when it goes on.
    """

    def __init__(self, meeting: _Meeting, ranks: Iterable[int]) -> None:
        self.meeting, self.ranks = meeting, ranks
        self.seen: Counter[int] = Counter()
        self.silent: Counter[int] = Counter()
        self.elsewhere: dict[int, str] = {}
        self.next = time.monotonic() + BEAT_S

    def look(self) -> None:
        """OtherRankFailed, or RuntimeError where ranks wait for each other."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + BEAT_S
        for rank in self.ranks:
            if self.meeting.left_by(rank) is None:
                self._check_life(rank)
                self._check_place(rank)

    def _check_life(self, rank: int) -> None:
        beats = self.meeting.store.add(f"beats/{rank}", 0)
        alive = beats != self.seen[rank] or beats == 0  # 0: it has not come to its first meeting
        self.seen[rank], self.silent[rank] = beats, 0 if alive else self.silent[rank] + 1
        if self.silent[rank] >= SILENT_BEATS:
            raise OtherRankFailed(
                f"rank {rank} has shown no sign of life for {SILENT_BEATS * BEAT_S:.0f} s: its process or machine is "
                "gone; the same command with resume=true goes on from the last whole checkpoint"
            )

    def _check_place(self, rank: int) -> None:
        store, key = self.meeting.store, f"waits/{rank}"
        place = store.get(key).decode() if store.check([key]) else ""
        if place and place != self.meeting.place and place == self.elsewhere.get(rank):
            raise RuntimeError(
                f"ranks wait for each other: rank {self.meeting.rank} at {self.meeting.place}, rank {rank} at {place}. "
                "Something was done on some ranks only, such as a callback that saves; do it on all"
            )
        self.elsewhere[rank] = place


def _show_life(rank: int) -> None:
    """Beat from now on, on a connection of its own.

    The thread ends before the interpreter does: one that comes back from the store after that takes the whole rank
    with it ("terminate called without an active exception", exit code -6).
    """
    if _beating:
        return
    store, over = _store().clone(), threading.Event()

    def beat() -> None:
        with contextlib.suppress(Exception):  # the store is gone, and with it whoever would look
            while not over.wait(BEAT_S):
                store.add(f"beats/{rank}", 1)

    def end() -> None:
        over.set()
        thread.join(JOIN_S)

    thread = threading.Thread(target=beat, name="entrl-beats", daemon=True)
    _beating.append(thread)
    atexit.register(end)
    store.add(f"beats/{rank}", 1)
    thread.start()


def _state() -> Any:
    from accelerate import PartialState  # the command line reads this module before anything heavy

    return PartialState()


def _store() -> Any:
    from torch.distributed import PrefixStore, distributed_c10d

    store = distributed_c10d._get_default_store()  # torch's only door to it, also for its own checkpointing
    if store is None:
        raise ValueError("this process group has no key-value store to wait by (backend mpi); launch with gloo or nccl")
    return PrefixStore("entrl", store)
