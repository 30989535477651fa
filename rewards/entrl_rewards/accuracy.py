r"""Accuracy: 1 for a right answer, 0 for a wrong one, None where it could not be checked.

    r(y) = [ score(answer part of y, gold) >= threshold ]

The answer part is what EntropyGRPOTrainer delivers as `answer_texts`: found by token ids and by what the prompt opened
or closed (`entrl.maths.phases`), with the trainer's own tags. `entrl.evaluation.answers` hands it to `score` the same
way. Where only texts are known (stock TRL) it is what follows the last closing tag; without one it is the whole text,
unless the text or its prompt opened the thinking, or `require_close` is set: then there is no answer and r = 0. How the
answer is scored depends on the row's `verifier` column (JSON or a dict, key `kind`):

    math            \boxed{}, LaTeX and plain expressions, compared by `entrl.verify.mathematics` (default)
    reasoning_gym   the score_answer of the dataset that made the problem; <answer> tags are taken off
    exact           equal after squeezing white space
    choice          the letter in \boxed{}, after "answer is" or "Answer:", or alone
    puzzle          the last list of moves solves the puzzle; graph_path: it is a path (docs/puzzles.md)
    countdown       an expression with exactly the target and exactly the given numbers; <answer> tags are taken off
    sudoku          the filled grid; <answer> tags are taken off
    code            the share of passed tests of the last ```python block, run in a sandbox (`entrl_rewards.code`)

A prediction that cannot be parsed is wrong. A check that crashed or ran out of time gives None and is counted
in `accuracy/verify_crash` and `accuracy/verify_timeout` (items of one call on one rank; TRL averages over calls and
ranks), with a warning naming the item.

Source:  mathematics: ours, with math-verify 0.9 (`parse`, `verify`) for sums, integrals, limits and determinants alone;
         reasoning-gym 0.1.25 (`score_answer`)
Differs: math-verify's own timeout needs the main thread and signals; ours is a killed child process. The
         scores of reasoning-gym are graded; here they are cut at `threshold`, since
         PEAR and pass@k need right or wrong. `partial_credit` gives the graded score
Needs:   the dataset column `answer`; the column `verifier` for anything but mathematics; answer_texts, without which
         tags that are special tokens cannot be seen (TRL's texts lack them)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from entrl.verify import Verdict
from entrl.verify.answers import answer_part, completion_text, prompt_end
from entrl.verify.judge import KINDS
from entrl_rewards.accuracy_checks import check_answers


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One float per completion as TRL calls it; `score` for everybody else."""

    __name__: ClassVar[str] = "accuracy"  # the name TRL logs
    columns: ClassVar[tuple[str, ...]] = ("answer",)  # of the data set; a run without it stops before training
    # Option -> the trainer's key that decides in its place.
    text_options: ClassVar[dict[str, str | None]] = {
        "open_tag": "think_open",
        "close_tag": "think_close",
        "close": None,
        "require_close": None,
    }

    kind: Literal[
        "auto", "math", "reasoning_gym", "exact", "choice", "countdown", "sudoku", "puzzle", "graph_path", "code"
    ] = "auto"  # auto: the row decides, else math
    timeout_s: float = 5.0  # seconds of wall clock per item, our choice
    threshold: float = 0.99  # a graded score from here on counts as right, our choice
    partial_credit: bool = False  # give the graded score itself
    workers: int = 2  # child processes of this rank
    # Where only texts are known; a trainer or an evaluation of ours has settings of its own for them.
    open_tag: str | None = None  # None: <think>
    close_tag: str | None = None  # None: </think>
    close: Literal["last", "first"] | None = None  # which closing tag ends the thinking; None: the last
    require_close: bool | None = None  # no closing tag: no answer; None: False

    def __post_init__(self) -> None:
        if self.kind != "auto" and self.kind not in KINDS:
            raise ValueError(f"kind must be auto, {', '.join(KINDS)}, got {self.kind!r}")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be > 0 seconds, got {self.timeout_s}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")
        if self.close not in ("last", "first", None):
            raise ValueError(f"close must be 'last' or 'first', got {self.close!r}")
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")

    @property
    def judges(self) -> str:
        """The kind of verifier that golds are meant for; "auto" where each row says."""
        return self.kind

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        answer: Sequence[Any] | None = None,
        verifier: Sequence[Any] | None = None,
        answer_texts: Sequence[str] | None = None,
        prompts: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if answer is None:
            given = columns if prompts is None else {**columns, "prompts": prompts}
            raise TypeError(
                f"the accuracy reward needs the dataset column 'answer'; the row has {sorted(given)}. "
                "Rename your gold column to 'answer'"
            )
        if answer_texts is None:
            ends = [""] * len(completions) if prompts is None else [prompt_end(p) or "" for p in prompts]
            texts = [completion_text(c) for c in completions]
            answer_texts = [self.answer_part(t, prompt=p) for t, p in zip(texts, ends, strict=True)]
        verdicts = self.verdicts([], answer, verifier, answer_texts=answer_texts)
        if log_metric is not None:
            for status in ("timeout", "crash"):
                count = sum(v is not None and v.status == status for v in verdicts)
                log_metric(f"accuracy/verify_{status}", float(count))
        return [self._number(v) for v in verdicts]

    def score(
        self,
        texts: Sequence[str],
        answers: Sequence[Any],
        verifiers: Sequence[Any] | None = None,
        *,
        answer_texts: Sequence[str] | None = None,
    ) -> list[float | None]:
        """1.0, 0.0, or None where the check failed or the gold answer is None."""
        return [self._number(v) for v in self.verdicts(texts, answers, verifiers, answer_texts=answer_texts)]

    def verdicts(
        self,
        texts: Sequence[str],
        answers: Sequence[Any],
        verifiers: Sequence[Any] | None = None,
        *,
        answer_texts: Sequence[str] | None = None,
    ) -> list[Verdict | None]:
        """How each check ended, with its graded score; None for a row without a gold answer.

        answer_texts: what each text answers, where more is known of it than the text
        (`entrl.maths.phases.answer_text`).
        """
        parts = [self.answer_part(t) for t in texts] if answer_texts is None else answer_texts
        limits = {"timeout_s": self.timeout_s, "workers": self.workers}
        return check_answers(parts, answers, verifiers, kind=self.kind, **limits)

    def answer_part(self, text: str, *, prompt: str = "") -> str:
        """The text after the thinking, stripped; "" where there is none. prompt: what the text follows."""
        opening = self.open_tag or "<think>"
        return answer_part(
            text,
            open_tag=opening,
            close_tag=self.close_tag or "</think>",
            close=self.close or "last",
            require_close=bool(self.require_close) or prompt.rstrip().endswith(opening),
        )

    def _number(self, verdict: Verdict | None) -> float | None:
        if verdict is None or verdict.status != "ok":
            return None
        return float(verdict.value) if self.partial_credit else float(verdict.value >= self.threshold)


reward = Accuracy()
