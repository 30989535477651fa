"""Verdicts on answer parts, several at a time: what may hang is checked in a child process (`entrl.verify`)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from entrl.verify import Verdict, shared_pool
from entrl.verify.judge import CHECK, IMPORTS, quick_check, read_verifier
from entrl_rewards.code import Code

logger = logging.getLogger(__name__)


def check_answers(
    parts: Sequence[str],
    golds: Sequence[Any],
    verifiers: Sequence[Any] | None,
    *,
    kind: str,
    timeout_s: float,
    workers: int,
) -> list[Verdict | None]:
    """One verdict per answer part, None without a gold. kind: of rows whose verifier does not say."""
    if verifiers is None:
        verifiers = [None] * len(parts)
    if not len(parts) == len(golds) == len(verifiers):
        raise ValueError(
            f"{len(parts)} texts, {len(golds)} answers and {len(verifiers)} verifiers: lengths must be equal"
        )
    found: list[Verdict | None] = [None] * len(parts)
    jobs: dict[int, tuple[str, str, str, dict[str, Any]]] = {}
    for i, (part, gold, column) in enumerate(zip(parts, golds, verifiers, strict=True)):
        if gold is None:
            continue
        of, spec = read_verifier(column, i, default=kind)
        if part:
            jobs[i] = of, part, str(gold), spec
        else:
            found[i] = Verdict(status="ok", value=0.0)
    verdicts = _run(list(jobs.values()), timeout_s=timeout_s, workers=workers)
    for (i, (of, part, gold, _)), verdict in zip(jobs.items(), verdicts, strict=True):
        found[i] = verdict
        if verdict.status != "ok":
            logger.warning(
                "accuracy: item %d was not verified (%s: %s): it scores None, not wrong; %s, gold %r, end %r",
                i, verdict.status, verdict.detail, of, gold[:80], part[-80:],
            )  # fmt: skip
    return found


def _run(jobs: Sequence[tuple[str, str, str, dict[str, Any]]], *, timeout_s: float, workers: int) -> list[Verdict]:
    """One verdict per job; only those that may hang go to a child process."""
    verdicts = [None if job[0] == "code" else settled(*job) for job in jobs]
    programs = [i for i, job in enumerate(jobs) if job[0] == "code"]
    if programs:
        code = Code(credit="fraction", timeout_s=timeout_s, workers=workers)
        parts, golds = [jobs[i][1] for i in programs], [jobs[i][2] for i in programs]
        for i, verdict in zip(programs, code.verdicts(parts, golds), strict=True):
            verdicts[i] = verdict
    slow = [job for job, verdict in zip(jobs, verdicts, strict=True) if verdict is None]
    if slow:
        imports = sorted({IMPORTS[job[0]] for job in slow})
        late = iter(shared_pool(workers).run(CHECK, slow, timeout_s=timeout_s, imports=imports))
        verdicts = [next(late) if verdict is None else verdict for verdict in verdicts]
    return [verdict for verdict in verdicts if verdict is not None]


def settled(kind: str, part: str, gold: str, spec: Mapping[str, Any]) -> Verdict | None:
    """The verdict where it needs no child process, None where the check may hang."""
    try:
        score = quick_check(kind, part, gold, spec)
    except ValueError as error:  # a gold that cannot be read: the row's fault, not the answer's
        return Verdict(status="crash", detail=f"{type(error).__name__}: {error}")
    return None if score is None else Verdict(status="ok", value=score)
