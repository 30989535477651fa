"""Remote score: a reward that another process computes, asked over HTTP.

    POST url  {"prompt": ..., "completion": ..., <columns>}   ->   {"score": 0.7}

One request per completion, `at_once` of them at a time. One that is not answered in `timeout_s`, or with 408, 425,
429 or 5xx, is sent again up to `retries` times, after pauses that double. What is not answered then gets None (it does
not apply), unless more than `most_failed` of a call failed, which stops the run. The same request is not sent twice.

Source:  the protocol is ours; what it needs of TRL 1.16 is that it awaits coroutine functions, several together
Differs: nothing
Needs:   httpx; whatever columns `columns` names

Logged: `<name>/failed`, `retried`, `cached`, `asked` (completions of a call) and `seconds` (of a call).
"""

import asyncio
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from entrl_rewards.options import check_ranges

AGAIN = frozenset({408, 425, 429})  # and 5xx: answers that another try may change
OF_ONE = frozenset({400, 413, 422})  # what one body is answered: too long for a judge's context, for instance


class NotAnswered(RuntimeError):
    """No usable answer, after every try; final: where no further one would change it."""

    def __init__(self, words: str, *, final: bool = False) -> None:
        super().__init__(words)
        self.final = final


class Refused(ValueError):
    """An answer that no further try would change."""


@dataclass(kw_only=True)
class RemoteState:
    """What lasts between calls; not in checkpoints, where `cache_file` takes its place."""

    cache: dict[str, float] = field(default_factory=dict)  # digest of a request -> its score
    read: bool = False  # whether the file has been
    last: str = ""  # why the latest request had no answer
    counts: dict[str, int] = field(default_factory=lambda: {"asked": 0, "cached": 0, "retried": 0, "failed": 0})


@dataclass(frozen=True, kw_only=True)
class RemoteExpert:
    """Options of a request that rarely need another value."""

    pause_s: float = 1.0  # before the first further try; doubles
    most_failed: float = 0.5  # share of a call without an answer from which on the run stops; 1: never

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "pause_s": (0 <= self.pause_s < math.inf, "at least 0 seconds, and finite"),
                "most_failed": (0 <= self.most_failed <= 1, "a share in [0, 1]"),
            },
        )


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Asks, waits, tries again, counts. A subclass says what is sent (`request`) and what comes back (`score_of`)."""

    url: str = "http://127.0.0.1:8000/score"
    timeout_s: float = 30.0  # of one request
    retries: int = 3  # further tries
    at_once: int = 16  # requests under way together
    cache_file: str | None = None  # scores are kept there too, a line each, and read by the next run
    api_key_env: str | None = None  # the environment variable with the key, sent as a bearer token
    expert: RemoteExpert = field(default_factory=RemoteExpert)

    _state: RemoteState = field(default_factory=RemoteState, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "url": (self.url.startswith(("http://", "https://")), "an address with http:// or https://"),
                "timeout_s": (0 < self.timeout_s < math.inf, "above 0 seconds, and finite"),
                "retries": (self.retries >= 0, "at least 0"),
                "at_once": (self.at_once >= 1, "at least 1"),
            },
        )

    def request(self, prompt: Any, completion: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON body for one completion; row: its columns."""
        raise NotImplementedError

    def score_of(self, answer: Any) -> float:
        """The score in an answer's JSON; ValueError, KeyError or TypeError where there is none, a failure."""
        raise NotImplementedError

    async def __call__(self, *, prompts: list[Any], completions: list[Any], **row: Any) -> list[float | None]:
        columns = {name: column for name, column in row.items() if isinstance(column, list)}
        bodies = [
            self.request(prompt, completion, {name: column[i] for name, column in columns.items() if i < len(column)})
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        before, start = dict(self._state.counts), time.monotonic()
        scores = await self._ask_all(bodies)
        log = row.get("log_metric")
        if log is not None:
            for name, count in self._state.counts.items():
                log(f"{self.__name__}/{name}", float(count - before[name]))  # pyright: ignore[reportAttributeAccessIssue]
            log(f"{self.__name__}/seconds", time.monotonic() - start)  # pyright: ignore[reportAttributeAccessIssue]
        failed = sum(score is None for score in scores)
        if failed > self.expert.most_failed * len(scores):
            raise NotAnswered(
                f"{self.url} gave no answer for {failed} of {len(scores)} completions ({self._state.counts['retried']} "
                f"further tries so far; the latest: {self._state.last}); see that it runs, raise timeout_s "
                f"({self.timeout_s:g}) or retries ({self.retries}), or lower at_once ({self.at_once})"
            )
        return scores

    async def _ask_all(self, bodies: list[dict[str, Any]]) -> list[float | None]:
        """Scores in the order of `bodies`; equal bodies are sent once."""
        import httpx

        self._read_cache()
        keys = [hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest() for body in bodies]
        fresh = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._state.cache}
        self._state.counts["asked"] += len(bodies)
        self._state.counts["cached"] += len(bodies) - len(fresh)
        room = asyncio.Semaphore(self.at_once)
        limits = httpx.Limits(max_connections=self.at_once)
        async with httpx.AsyncClient(timeout=self.timeout_s, limits=limits, headers=self._headers()) as client:
            asked = (self._ask(client, room, body) for body in fresh.values())
            found = await asyncio.gather(*asked, return_exceptions=True)
        answered = {key: score for key, score in zip(fresh, found, strict=True) if isinstance(score, float)}
        self._state.cache.update(answered)
        self._write_cache(answered)  # what was paid for stays, whatever the others came to
        for raised in found:
            if isinstance(raised, BaseException):
                raise raised
        return [self._state.cache.get(key) for key in keys]

    async def _ask(self, client: Any, room: asyncio.Semaphore, body: dict[str, Any]) -> float | None:
        async with room:
            for attempt in range(self.retries + 1):
                if attempt:
                    self._state.counts["retried"] += 1
                    await asyncio.sleep(self.expert.pause_s * 2 ** (attempt - 1))
                try:
                    return await self._once(client, body)
                except NotAnswered as error:
                    self._state.last = str(error)
                    if error.final:
                        break
        self._state.counts["failed"] += 1
        return None

    async def _once(self, client: Any, body: dict[str, Any]) -> float:
        import httpx

        try:
            async with asyncio.timeout(self.timeout_s):  # httpx's own is of each read
                answer = await client.post(self.url, json=body)
        except (httpx.RequestError, TimeoutError) as error:
            raise NotAnswered(f"{type(error).__name__} {error}".strip()) from error
        if answer.status_code in AGAIN or answer.status_code >= 500:
            raise NotAnswered(f"status {answer.status_code}")
        if answer.status_code in OF_ONE:
            raise NotAnswered(f"status {answer.status_code}: {answer.text[:200]!r}", final=True)
        if answer.status_code >= 300:
            raise Refused(
                f"{self.url} answers {answer.status_code}: {answer.text[:200]!r}; correct url, api_key_env or what is "
                "sent"
            )
        try:
            score = float(self.score_of(answer.json()))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise NotAnswered(f"no score in {answer.text[:200]!r}") from error
        if not math.isfinite(score):
            raise NotAnswered(f"the score {score}")
        return score

    def _headers(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env)
        if not key:
            raise Refused(f"api_key_env names {self.api_key_env}, which is not set in the environment; set it")
        return {"Authorization": f"Bearer {key}"}

    def _read_cache(self) -> None:
        if self.cache_file is None or self._state.read:
            return
        self._state.read = True
        file = Path(self.cache_file)
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                key, score = json.loads(line)
                self._state.cache[str(key)] = float(score)
            except (ValueError, TypeError):  # the last line of a run that was killed
                continue

    def _write_cache(self, scores: Mapping[str, float]) -> None:
        if self.cache_file is None or not scores:
            return
        file = Path(self.cache_file)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as opened:  # one write: lines of several ranks do not mix
            opened.write("".join(f"{json.dumps([key, score])}\n" for key, score in scores.items()))


@dataclass(frozen=True, kw_only=True)
class RemoteScore(Remote):
    """A scoring service of one's own: prompt, completion and the columns named, and a score back."""

    __name__: ClassVar[str] = "remote"

    columns: tuple[str, ...] = ()  # of the data set, sent along

    def request(self, prompt: Any, completion: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completion} | {name: row[name] for name in self.columns}

    def score_of(self, answer: Any) -> float:
        return answer["score"]


reward = RemoteScore()
