"""Can the golds be verified at all: asked of every row before anything is generated, not found out one by one.

A gold that no check can read scores nothing for any completion: such rows train nothing and leave a benchmark over
fewer problems than its name says.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entrl.puzzles import KINDS as PUZZLE_KINDS
from entrl.verify.judge import gold_problem, read_verifier
from entrl.verify.mathematics import is_words

LIMIT_S = 60.0  # seconds after which no further ones are read, our choice
LOOKED_AT = 200  # different golds among which mathematics is looked for
NAMED = 3  # unverifiable golds that a line names
PLAIN = re.compile(r"\s*[-+]?\d{1,30}(\.\d{1,30})?\s*")  # a number that every kind but `choice` can read


@dataclass(frozen=True, kw_only=True)
class BadGold:
    row: int  # from 0
    name: str  # the row's problem_id, or "row N" from 1
    why: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class GoldCheck:
    """What was found in the golds of one data set."""

    rows: int
    bad: list[BadGold] = field(default_factory=list)
    unread: int = 0  # rows whose gold was not reached in time
    words: str | None = None  # a gold of kind `math`, where none of those looked at is mathematics
    kinds: frozenset[str] = frozenset()  # of verifier, that some row asks for

    def problems(self, what: str) -> list[str]:
        """Why nothing may start: no row has a gold to verify, or one has a gold that is no letter of its choices."""
        letters = [b for b in self.bad if b.kind == "choice"]
        if letters:
            return [
                f"{what}: {_listed(letters)}; every completion of such a row would score 0. Put the letter of the "
                "right option into the column answer, or name the letters there are in the row's verifier"
            ]
        if self.rows and len(self.bad) == self.rows:
            return [
                f"{what}: none of its {self.rows:,} gold answers can be verified: {_listed(self.bad)}. Clean the "
                "column answer, or choose another verifier kind (exact compares texts)"
            ]
        return []

    def warnings(self, what: str, effect: str) -> list[str]:
        """Lines for the user; effect: what becomes of rows that cannot be verified."""
        found = []
        if self.bad:
            found.append(
                f"{what}: {len(self.bad):,} of {self.rows:,} gold answers cannot be verified, {effect}: "
                f"{_listed(self.bad)}"
            )
        if self.unread:
            found.append(f"{what}: {self.unread:,} of {self.rows:,} gold answers were not read within {LIMIT_S:g} s")
        if self.words is not None:
            found.append(
                f"{what}: the verifier is math and no gold answer reads as mathematics (such as {self.words[:80]!r}), "
                "so answers are compared with them as texts. If that is meant, say verifier: exact or choice; if not, "
                "mend the column answer"
            )
        return found


def _listed(bad: Sequence[BadGold]) -> str:
    more = f", and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return "; ".join(f"{b.name}: {b.why}" for b in bad[:NAMED]) + more


def check_golds(rows: Any, *, default: str = "auto", limit_s: float = LIMIT_S, nulls: bool = True) -> GoldCheck:
    """Read the golds of a data set with the columns `answer`, and where it has them `verifier` and `problem_id`.

    default: a kind other than auto overrules the column's. nulls: rows without a gold count among the bad; else they do
    not count at all. Raises ValueError for a `verifier` that is none.
    """
    columns = rows.column_names
    count = len(rows)
    golds: Sequence[Any] = rows["answer"] if "answer" in columns else [None] * count
    verifiers = rows["verifier"] if "verifier" in columns else [None] * count
    ids = rows["problem_id"] if "problem_id" in columns else [None] * count
    kinds = [read_verifier(column, i, default=default) for i, column in enumerate(verifiers)]
    jobs = {
        _key(kind, gold, spec): (kind, str(gold), dict(spec))
        for gold, (kind, spec) in zip(golds, kinds, strict=True)
        if gold is not None and kind != "reasoning_gym"  # there the entry decides, and has its answer
    }
    why = dict(_read(jobs, limit_s=limit_s))
    bad, unread = [], 0
    for i, (gold, (kind, spec)) in enumerate(zip(golds, kinds, strict=True)):
        key = _key(kind, gold, spec)
        unread += key in jobs and key not in why
        if problem := "it has no gold answer" if gold is None else why.get(key):
            name = f"row {i + 1}" if ids[i] is None else f"row {i + 1} ({ids[i]})"
            bad.append(BadGold(row=i, name=name, why=problem, kind="none" if gold is None else kind))
    if not nulls:
        count, bad = sum(gold is not None for gold in golds), [b for b in bad if b.kind != "none"]
    maths = [gold for key, (kind, gold, _) in jobs.items() if kind == "math" and why.get(key, "unread") is None]
    words = bool(maths) and all(map(is_words, maths[:LOOKED_AT]))
    return GoldCheck(
        rows=count,
        bad=bad,
        unread=unread,
        words=maths[0] if words else None,
        kinds=frozenset(kind for kind, _ in kinds),
    )


def _key(kind: str, gold: Any, spec: Mapping[str, Any]) -> tuple[str, str, str]:
    told = spec.get("letters") if kind == "choice" else dict(spec) if kind in PUZZLE_KINDS else None
    return kind, str(gold), json.dumps(told)


def _read(
    jobs: Mapping[tuple[str, str, str], tuple[str, str, dict[str, Any]]], *, limit_s: float
) -> Iterator[tuple[tuple[str, str, str], str | None]]:
    """Each different gold once, with why it cannot be verified; no more after the limit but plain numbers."""
    end = time.monotonic() + limit_s
    for key, (kind, gold, spec) in jobs.items():
        if kind not in ("choice", "code") and PLAIN.fullmatch(gold):
            yield key, None
        elif time.monotonic() < end:
            yield key, gold_problem(kind, gold, spec)


def gold_kind(rewards: Iterable[Any]) -> str | None:
    """The kind of verifier by which some of these rewards judge golds ("auto": each row says), None where none does."""
    return next((kind for reward in rewards if (kind := getattr(reward, "judges", None)) is not None), None)
