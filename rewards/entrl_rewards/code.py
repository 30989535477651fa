r"""Code: does the program in a completion pass its tests.

    r(y) = [ passed cases = all cases ]          credit: all (default)
    r(y) =   passed cases / all cases            credit: fraction

The program is the last ```python block of the answer part of y; none, and r = 0 (after a `prefix`: the answer itself).
It runs in `entrl.sandbox`, in a fresh interpreter with the standard library only: once per case with standard input,
once for all cases that call a function. What is expected stays here, and is compared here (`entrl.verify.code_tests`:
shapes of the tests, what counts as equal).
A program that fails, hangs, takes too much memory or prints too much fails the case; a sandbox that fails stops the
run.

Source:  the rewards of open-r1 (`code_reward`) and verl (`prime_code`), by what they pay; nothing is taken from them
Differs: they run tests beside the program, or compare inside its process; asserts that are no data still do here
         (`beside` in `entrl.verify.code_tests`). Printed and returned numbers with a point are equal within 1e-6
Needs:   the dataset column `answer` (or `column`) with the tests; answer_texts where thinking has tags
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from entrl.sandbox import Limits, Sandbox, open_sandbox
from entrl.verify import Verdict
from entrl.verify.answers import answer_part, completion_text
from entrl.verify.code_tests import CodeTests, last_program, read_tests
from entrl_rewards.code_runs import run_tests
from entrl_rewards.options import check_choices, check_ranges


@dataclass(frozen=True, kw_only=True)
class Code:
    """One float per completion as TRL calls it; `score` (1, 0 or None) for evaluations."""

    __name__: ClassVar[str] = "code"  # the name TRL logs
    judges: ClassVar[str] = "code"  # the kind of verifier the golds are meant for

    credit: Literal["all", "fraction"] = "all"
    column: str = "answer"  # of the data set, with the tests
    timeout_s: float = 5.0  # wall clock of one process, our choice
    memory_mib: int = 512  # address space of one process, our choice
    max_cases: int = 25  # the first ones of a row that are run, our choice
    workers: int = 4  # processes at a time, of this rank
    tier: Literal["bubblewrap", "landlock"] | None = None  # None: the strongest that works here

    def __post_init__(self) -> None:
        check_choices(self)
        rules = {name: (getattr(self, name) > 0, "> 0") for name in ("timeout_s", "memory_mib", "max_cases", "workers")}
        check_ranges(self, rules)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        answer_texts: Sequence[str] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **row: Any,
    ) -> list[float | None]:
        if self.column not in row:
            raise TypeError(
                f"the code reward needs the dataset column {self.column!r}; the row has {sorted(row)}. Name the column "
                "that holds the tests with the option column"
            )
        parts = answer_texts or [answer_part(completion_text(c)) for c in completions]
        verdicts = self.verdicts(parts, row[self.column])
        if log_metric is not None:
            judged = [v for v in verdicts if v is not None]
            log_metric("code/without_program", float(sum(v.detail == NO_PROGRAM for v in judged)))
            log_metric("code/timeout", float(sum(v.detail.startswith("timeout") for v in judged)))
        whole = self.credit == "all"
        return [None if v is None else float(v.value == 1) if whole else float(v.value) for v in verdicts]

    def score(
        self,
        texts: Sequence[str],
        answers: Sequence[Any],
        verifiers: Sequence[Any] | None = None,
        *,
        answer_texts: Sequence[str] | None = None,
    ) -> list[float | None]:
        """1.0 where all cases pass, 0.0 where one fails, None without tests."""
        parts = [answer_part(t) for t in texts] if answer_texts is None else answer_texts
        return [None if v is None else float(v.value == 1) for v in self.verdicts(parts, answers)]

    def verdicts(self, parts: Sequence[str], golds: Sequence[Any]) -> list[Verdict | None]:
        """The share of passed cases of each answer part; None for a row without tests. ValueError for bad tests."""
        tests = [None if gold is None else self._tests(gold, i) for i, gold in enumerate(golds)]
        programs = [program_of(part, of) for part, of in zip(parts, tests, strict=True)]
        runs = [i for i, program in enumerate(programs) if program.strip() and tests[i] is not None]
        found: list[Verdict | None] = [
            None if of is None else Verdict(status="ok", value=0.0, detail=NO_PROGRAM) for of in tests
        ]
        if runs:
            ready = [of for i in runs if (of := tests[i]) is not None]
            stop = self.credit == "all"
            passed = run_tests([programs[i] for i in runs], ready, box=self.sandbox, stop_at_first=stop)
            for i, verdict in zip(runs, passed, strict=True):
                found[i] = verdict
        return found

    @property
    def sandbox(self) -> Sandbox:
        """Where the programs run; SandboxError where none works."""
        seconds = max(1, round(self.timeout_s + 0.5))
        limits = Limits(wall_s=self.timeout_s, cpu_s=seconds, memory_mib=self.memory_mib)
        return open_sandbox(limits=limits, workers=self.workers, tier=self.tier)

    def _tests(self, gold: Any, row: int) -> CodeTests:
        try:
            found = read_tests(gold)
        except ValueError as error:
            raise ValueError(f"completion {row}: {error}") from error
        return CodeTests(cases=found.cases[: self.max_cases], prefix=found.prefix)


def program_of(answer: str, tests: CodeTests | None) -> str:
    """The last code block; where the tests have a beginning (`prefix`), an answer without a block goes on from it."""
    return last_program(answer) or (answer if tests is not None and tests.prefix else "")


NO_PROGRAM = "no program in the answer"
reward = Code()
