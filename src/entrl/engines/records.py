"""What an engine process remembers about the tokens it sampled, and how it is asked for. Importable without vLLM.

A request carries its wishes (`entrl.engines.recording`), the sampler plugin of `entrl.engines.sampler` writes, `take`
reads: in the same process, or in the workers of a server through `WorkerExtension` (`--worker-extension-cls
entrl.engines.records.WorkerExtension`) and `collective_rpc`.

A sampler plugin runs before the token is drawn and is not told when a request ends, so a record of T values holds the
T-1 ids that came before its last value, never the last id. That is enough: a distribution depends only on the prompt
and the ids before it, so any record of the same prompt that starts with a completion's first T-1 ids and has T values
is that completion's record, whichever of n siblings wrote it, and whatever an engine sampled beyond its end.
"""

import math
import os
import signal
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from entrl.engines.background import end_with_parent

MAX_TOKENS = 2**25  # kept per process, 12 bytes each; 4,096 sequences of 8,192 tokens
MAX_TOKENS_VARIABLE = "ENTRL_RECORDS_MAX_TOKENS"
REMEMBERED_DROPS = 10_000  # keys whose loss can still be told from never having been recorded


class RecordError(LookupError):
    """A record that was asked for is not there, or is not one to train on."""


# ---- what is answered


@dataclass
class SamplerRecord:
    """One sequence of T sampled tokens. From `take`, the T-1 ids before the last value; from `match`, all T."""

    token_ids: list[int]
    entropies: list[float]  # T, nats, full vocabulary, after temperature, before any truncation
    kept_mass: list[float]  # T, share of that distribution the sampler could draw from; 1.0 without truncation
    prompt_ids: list[int] = field(default_factory=list)  # empty where all sequences of the key have one prompt


def take(key: str) -> list[SamplerRecord]:
    """All sequences recorded under the key in this process, in the order they started, and forget them.

    Finished and running ones; a sequence that is preempted may also leave a shorter record of its beginning.
    RecordError when nothing is there: never recorded, taken before, or dropped for want of room.
    """
    return STORE.take(key)


def match(
    records: Sequence[SamplerRecord], token_ids: Sequence[int], prompt_ids: Sequence[int] | None = None
) -> SamplerRecord:
    """The record of one completion by its exact ids, cut to its length. See `match_all`."""
    return match_all(records, [token_ids], None if prompt_ids is None else [prompt_ids])[0]


def match_all(
    records: Sequence[SamplerRecord],
    token_ids: Sequence[Sequence[int]],
    prompt_ids: Sequence[Sequence[int]] | None = None,
) -> list[SamplerRecord]:
    """One record per completion, in their order.

    prompt_ids: of each completion; needed when the records come from more than one prompt. RecordError when a
    completion has no record, or when its record has a hole or was written where it could not be trusted.
    """
    prompts = {tuple(r.prompt_ids) for r in records}
    if len(prompts) > 1 and prompt_ids is None:
        raise RecordError(
            f"these records come from {len(prompts)} prompts, and equal completions of different prompts have "
            "different entropies; give prompt_ids"
        )
    wanted = [()] * len(token_ids) if prompt_ids is None or prompts == {()} else [tuple(p) for p in prompt_ids]
    if len(wanted) != len(token_ids):
        raise ValueError(f"{len(token_ids)} completions but {len(wanted)} prompts; give one prompt per completion")
    alone = prompt_ids is None
    by_prompt: dict[tuple[int, ...], list[SamplerRecord]] = {}
    exact: dict[tuple[tuple[int, ...], tuple[int, ...]], SamplerRecord] = {}
    for record in records:
        prompt = () if alone else tuple(record.prompt_ids)
        by_prompt.setdefault(prompt, []).append(record)
        if record.entropies:
            exact.setdefault((prompt, tuple(record.token_ids[: len(record.entropies) - 1])), record)
    return [
        _cut(exact.get((prompt, tuple(ids[:-1]))) or _longer(by_prompt.get(prompt, []), ids), ids)
        for prompt, ids in zip(wanted, token_ids, strict=True)
    ]


def _longer(records: list[SamplerRecord], token_ids: Sequence[int]) -> SamplerRecord:
    """A record that goes on beyond the completion: an engine that schedules ahead samples past a stop."""
    count = len(token_ids)
    if not count:
        return SamplerRecord([], [], [])
    for record in records:
        if len(record.entropies) >= count and record.token_ids[: count - 1] == list(token_ids[:-1]):
            return record
    shown = ", ".join(map(str, token_ids[:8])) + (", ..." if count > 8 else "")
    raise RecordError(
        f"none of {len(records)} records of this prompt belongs to the completion [{shown}] of {count} tokens; was it "
        "generated under another key, or by an engine that does not load the plugin?"
    )


def _cut(record: SamplerRecord, token_ids: Sequence[int]) -> SamplerRecord:
    count = len(token_ids)
    found = SamplerRecord(list(token_ids), record.entropies[:count], record.kept_mass[:count], record.prompt_ids)
    if not all(map(math.isfinite, found.entropies)):
        raise RecordError(
            f"the record of a completion of {count} tokens has no value at position "
            f"{next(i for i, h in enumerate(found.entropies) if not math.isfinite(h))}: its sequence was resumed after "
            "its beginning had been taken or dropped, or its logits held a NaN; take a key only when its requests ended"
        )
    return found


# ---- what is kept


class Trace:
    """One sequence while it is being written. `output` is the engine's own live list of its generated ids, or None.

    With a live list, only positions it has grown past count: the logits of an unfinished prefill reach a sampler too,
    and their token is thrown away.
    """

    __slots__ = ("_bucket", "_limit", "entropies", "frozen", "ids", "kept", "output", "problem", "prompt_ids")

    def __init__(self, bucket: "Bucket", prompt_ids: Sequence[int], output: list[int] | None = None) -> None:
        self._bucket = bucket
        self._limit: int | None = None
        self.prompt_ids: Sequence[int] = prompt_ids
        self.output = output
        self.ids = array("i")  # ids before the next value
        self.entropies = array("f")
        self.kept = array("f")
        self.frozen = False  # nobody writes here any more
        self.problem = ""  # why nothing of this sequence may be trusted

    def follow(self, ids: Sequence[int]) -> None:
        """`ids`: all tokens generated before the value that is written next."""
        self.ids.extend(ids[len(self.ids) :])

    def write(self, position: int, entropy: float, kept_mass: float) -> None:
        """Values of the token at `position`; a second write replaces the first, a jump leaves NaNs."""
        while len(self.entropies) <= position:
            self.entropies.append(math.nan)
            self.kept.append(math.nan)
            self._bucket.grow(1)
        self.entropies[position], self.kept[position] = entropy, kept_mass

    def freeze(self) -> None:
        """The sequence left the batch: what its live list confirms now is what counts."""
        self.frozen = True
        if self.output is not None:
            self._limit, self.output = len(self.output), None

    def adopt(self, ids: Sequence[int]) -> None:
        """Go on where a preempted sequence with these generated ids stopped: take over the values of its trace."""
        count = len(ids)
        self.follow(ids)
        for other in self._bucket.traces:
            if other is not self and len(other) >= count and other.ids[: count - 1] == self.ids[: count - 1]:
                if list(other.prompt_ids) != list(self.prompt_ids):
                    continue
                for position in range(count):
                    self.write(position, other.entropies[position], other.kept[position])
                self.problem = self.problem or other.problem
                if other.frozen and len(other) == count:  # what it could answer for, this one answers for too
                    self._bucket.drop(other)
                return

    def __len__(self) -> int:
        limit = self._limit if self.output is None else len(self.output)
        return len(self.entropies) if limit is None else min(limit, len(self.entropies))

    def record(self) -> SamplerRecord:
        count = len(self)
        return SamplerRecord(
            self.ids[: max(0, count - 1)].tolist(),
            self.entropies[:count].tolist(),
            self.kept[:count].tolist(),
            list(self.prompt_ids),
        )


class Bucket:
    """All traces of one key."""

    def __init__(self, store: "RecordStore") -> None:
        self._store: RecordStore | None = store
        self.traces: list[Trace] = []
        self.tokens = 0

    def grow(self, count: int) -> None:
        self.tokens += count
        if self._store is not None:
            self._store.grow(count)

    def drop(self, trace: Trace) -> None:
        self.traces.remove(trace)
        self.grow(-len(trace.entropies) - len(trace.prompt_ids))

    def leave(self) -> None:
        """The store forgets it; sequences that still run go on writing here and are lost with it."""
        self._store = None


class RecordStore:
    """Traces by key, oldest key dropped when there are more than `max_tokens` tokens. Not for several threads."""

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ValueError(f"the store must hold at least one token, got {max_tokens}; raise {MAX_TOKENS_VARIABLE}")
        self.max_tokens = max_tokens
        self.tokens = 0
        self.dropped = 0  # keys lost for want of room
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._lost: OrderedDict[str, None] = OrderedDict()
        self._drains: WeakSet[Any] = WeakSet()

    def drain_from(self, recorder: Any) -> None:
        """`recorder.drain()` is called before anything is taken: values may still be on their way from a device."""
        self._drains.add(recorder)

    def open(self, key: str, prompt_ids: Sequence[int], output: list[int] | None) -> Trace:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self)
            self._lost.pop(key, None)
        trace = Trace(bucket, prompt_ids, output)
        bucket.traces.append(trace)
        bucket.grow(len(prompt_ids))
        return trace

    def grow(self, count: int) -> None:
        self.tokens += count
        while self.tokens > self.max_tokens and self._buckets:
            key, bucket = self._buckets.popitem(last=False)
            self._forget(bucket)
            self.dropped += 1
            self._lost[key] = None
            while len(self._lost) > REMEMBERED_DROPS:
                self._lost.popitem(last=False)

    def _forget(self, bucket: Bucket) -> None:
        bucket.leave()
        self.tokens -= bucket.tokens

    def take(self, key: str) -> list[SamplerRecord]:
        for recorder in list(self._drains):
            recorder.drain()
        bucket = self._buckets.pop(key, None)
        if bucket is None and key in self._lost:
            raise RecordError(
                f"the records of {key!r} were dropped: this process holds at most {self.max_tokens:,} tokens and has "
                f"dropped {self.dropped} keys; take records as soon as requests end, abort none without taking them, "
                f"or raise {MAX_TOKENS_VARIABLE}"
            )
        if bucket is None:
            raise RecordError(
                f"nothing was recorded under {key!r} in this process: the request did not ask for it, its records "
                "were taken before, or the engine runs without the plugin (entrl not installed there, or speculative "
                "decoding, with which vLLM leaves plugins out silently)"
            )
        self._forget(bucket)
        problems = {trace.problem for trace in bucket.traces} - {""}
        if problems:
            raise RecordError(f"the records of {key!r} cannot be trusted: {'; '.join(sorted(problems))}")
        return [trace.record() for trace in bucket.traces if len(trace)]

    def __len__(self) -> int:
        return len(self._buckets)


def _limit() -> int:
    text = os.environ.get(MAX_TOKENS_VARIABLE, str(MAX_TOKENS))
    if not text.isdigit():
        raise ValueError(f"{MAX_TOKENS_VARIABLE} must be a number of tokens, got {text!r}")
    return int(text)


STORE = RecordStore(_limit())  # one per process: engines in one process share it, told apart by their requests' keys


# ---- how a server is asked


class WorkerExtension:
    """Mixed into vLLM's worker class, so that `collective_rpc("entrl_take", args=(keys,))` reaches every worker."""

    def entrl_take(self, keys: list[str]) -> list[dict[str, Any]] | None:
        """One object per key, of plain numbers and text; None from a worker whose copy does not count.

        {"key", "records": [{"token_ids", "entropies", "kept_mass", "prompt_ids"}], "error": "" or why there are none}.
        Never raises: an exception here would be an exception in the engine. `unpack` reads the answers. Every worker
        forgets its copy; all ranks of a tensor-parallel group sample alike, so the first one of the last pipeline
        stage answers.
        """
        answers = [_answer(key, take) for key in keys]
        return answers if _answers_for_all() else None

    def entrl_end_with_parent(self) -> None:
        """For an engine that lives for one caller's sake; see `end_with_parent`."""
        end_with_parent(signal.SIGKILL)


def _answer(key: str, take_key: Callable[[str], list[SamplerRecord]]) -> dict[str, Any]:
    try:
        records = take_key(key)
    except RecordError as error:
        return {"key": key, "records": [], "error": str(error)}
    one_prompt = len({tuple(r.prompt_ids) for r in records}) <= 1  # then nobody needs them to tell records apart
    return {
        "key": key,
        "records": [
            {
                "token_ids": r.token_ids,
                "entropies": r.entropies,
                "kept_mass": r.kept_mass,
                "prompt_ids": [] if one_prompt else r.prompt_ids,
            }
            for r in records
        ],
        "error": "",
    }


def _answers_for_all() -> bool:
    from vllm.distributed.parallel_state import (  # pyright: ignore[reportMissingImports]
        get_pp_group,
        get_tensor_model_parallel_rank,
    )

    return bool(get_pp_group().is_last_rank) and get_tensor_model_parallel_rank() == 0


def unpack(replies: Sequence[list[dict[str, Any]] | None]) -> dict[str, list[SamplerRecord]]:
    """Key -> records out of what `collective_rpc("entrl_take", ...)` returned, one reply per worker.

    Of several data-parallel engines only the one that ran a request knows its key. RecordError when none does.
    """
    found: dict[str, list[SamplerRecord]] = {}
    errors: dict[str, str] = {}
    for reply in replies:
        for answer in reply or []:
            if answer["error"]:
                errors[answer["key"]] = answer["error"]
            else:
                found.setdefault(answer["key"], []).extend(SamplerRecord(**r) for r in answer["records"])
    missing = [error for key, error in errors.items() if key not in found]
    if missing:
        raise RecordError("; ".join(missing))
    if all(reply is None for reply in replies):
        raise RecordError("no worker answered; is --worker-extension-cls entrl.engines.records.WorkerExtension set?")
    return found
