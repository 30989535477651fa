r"""Accuracy: 1 for a right answer, 0 for a wrong one, None where it could not be checked.

    r(y) = [ score(answer part of y, gold) >= threshold ]

The answer part is what follows the last `</think>` (or the first, see `close`). Without a closing tag it is
the whole text, unless the text opened `<think>` and never closed it, or `require_close` is set: then there is
no answer and r = 0. How the answer is scored depends on the row's `verifier` column (JSON or a dict, key `kind`):

    math            math-verify: \boxed{}, LaTeX and plain expressions, compared as mathematics (default)
    reasoning_gym   the score_answer of the dataset that made the problem; <answer> tags are taken off
    exact           equal after squeezing white space
    choice          the letter in \boxed{}, after "answer is" or "Answer:", or alone

A prediction that cannot be parsed is wrong. A check that crashed or ran out of time gives None and is counted
in `accuracy/verify_crash` and `accuracy/verify_timeout` (items of one call on one rank; TRL averages over calls and
ranks), with a warning naming the item.

Source:  math-verify 0.9 (`parse`, `verify`), reasoning-gym 0.1.25 (`score_answer`)
Differs: math-verify's own timeout needs the main thread and signals; ours is a killed child process. The
         scores of reasoning-gym are graded; here they are cut at `threshold`, since
         PEAR and pass@k need right or wrong. `partial_credit` gives the graded score
Needs:   the dataset column `answer`; the column `verifier` for anything but mathematics
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from entrl.verify import Verdict, shared_pool
from entrl.verify.answers import answer_part, completion_text
from entrl.verify.judge import CHECK, IMPORTS, INLINE, KINDS, check, read_verifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One float per completion as TRL calls it; `score` for everybody else."""

    __name__: ClassVar[str] = "accuracy"  # the name TRL logs
    columns: ClassVar[tuple[str, ...]] = ("answer",)  # of the data set; a run without it stops before training

    kind: Literal["auto", "math", "reasoning_gym", "exact", "choice"] = "auto"  # auto: the row decides, else math
    timeout_s: float = 5.0  # seconds of wall clock per item, our choice
    threshold: float = 0.99  # a graded score from here on counts as right, our choice
    partial_credit: bool = False  # give the graded score itself
    close: Literal["last", "first"] = "last"  # which closing tag ends the thinking
    require_close: bool = False  # no closing tag: no answer
    open_tag: str = "<think>"
    close_tag: str = "</think>"
    workers: int = 2  # child processes of this rank

    def __post_init__(self) -> None:
        if self.kind != "auto" and self.kind not in KINDS:
            raise ValueError(f"kind must be auto, {', '.join(KINDS)}, got {self.kind!r}")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be > 0 seconds, got {self.timeout_s}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")
        if self.close not in ("last", "first"):
            raise ValueError(f"close must be 'last' or 'first', got {self.close!r}")
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        answer: Sequence[Any] | None = None,
        verifier: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if answer is None:
            raise TypeError(
                f"the accuracy reward needs the dataset column 'answer'; the row has {sorted(columns)}. "
                "Rename your gold column to 'answer'"
            )
        verdicts = self.verdicts([completion_text(c) for c in completions], answer, verifier)
        if log_metric is not None:
            for status in ("timeout", "crash"):
                count = sum(v is not None and v.status == status for v in verdicts)
                log_metric(f"accuracy/verify_{status}", float(count))
        return [self._number(v) for v in verdicts]

    def score(
        self, texts: Sequence[str], answers: Sequence[Any], verifiers: Sequence[Any] | None = None
    ) -> list[float | None]:
        """1.0, 0.0, or None where the check failed or the gold answer is None."""
        return [self._number(v) for v in self.verdicts(texts, answers, verifiers)]

    def verdicts(
        self, texts: Sequence[str], answers: Sequence[Any], verifiers: Sequence[Any] | None = None
    ) -> list[Verdict | None]:
        """How each check ended, with its graded score; None for a row without a gold answer."""
        if verifiers is None:
            verifiers = [None] * len(texts)
        if not len(texts) == len(answers) == len(verifiers):
            raise ValueError(
                f"{len(texts)} texts, {len(answers)} answers and {len(verifiers)} verifiers: lengths must be equal"
            )
        found: list[Verdict | None] = [None] * len(texts)
        jobs: dict[int, tuple[str, str, str, dict[str, Any]]] = {}
        for i, (text, gold, column) in enumerate(zip(texts, answers, verifiers, strict=True)):
            if gold is None:
                continue
            kind, spec = read_verifier(column, i, default=self.kind)
            part = self.answer_part(text)
            if not part:
                found[i] = Verdict(status="ok", value=0.0)
            elif kind in INLINE:
                found[i] = Verdict(status="ok", value=check(kind, part, str(gold), spec))
            else:
                jobs[i] = kind, part, str(gold), spec
        self._run(jobs, found)
        return found

    def answer_part(self, text: str) -> str:
        """The text after the thinking, stripped; "" where there is none."""
        return answer_part(
            text,
            open_tag=self.open_tag,
            close_tag=self.close_tag,
            close=self.close,
            require_close=self.require_close,
        )

    def _run(self, jobs: Mapping[int, tuple[Any, ...]], found: list[Verdict | None]) -> None:
        if not jobs:
            return
        imports = sorted({IMPORTS[job[0]] for job in jobs.values()})
        pool = shared_pool(self.workers)
        results = pool.run(CHECK, list(jobs.values()), timeout_s=self.timeout_s, imports=imports)
        for i, verdict in zip(jobs, results, strict=True):
            found[i] = verdict
            if verdict.status != "ok":
                kind, part, gold, _ = jobs[i]
                logger.warning(
                    "accuracy: item %d was not verified (%s: %s): it scores None, not wrong; %s, gold %r, end %r",
                    i, verdict.status, verdict.detail, kind, gold[:80], part[-80:],
                )  # fmt: skip

    def _number(self, verdict: Verdict | None) -> float | None:
        if verdict is None or verdict.status != "ok":
            return None
        return float(verdict.value) if self.partial_credit else float(verdict.value >= self.threshold)


reward = Accuracy()
