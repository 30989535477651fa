"""Where the answers of a cold start come from: one row per answer, ready to be curated and taught.

problem_id, source, level, prompt, completion
correct      1, 0, or null where nobody checked
length       tokens, the end token included
pass_rate    of the problem, where it was measured apart from these answers
trace        of lessons with a search: order, solved, nodes, backtracks, wrong_branches, level (of dropping), noise
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entrl.puzzles import puzzle_of
from entrl.puzzles.plans import plan_line, plan_text, slipped_plan
from entrl.tasks import load_task
from entrl.tasks.reasoning_gym_rows import ANSWER_TAGS
from entrl.tasks.rechecks import Overthinking, overthinking_lesson
from entrl.tasks.traces import THINK_CLOSE, THINK_OPEN, lesson
from entrl.teach.answer_files import Row, read_answers, token_count, with_lengths
from entrl.teach.cold_start.policy_answers import Policy, measured_rates, sample_problems, sample_rows, scored_rows
from entrl.teach.cold_start.rejection import Kept, rejection_rows
from entrl.teach.cold_start.spec import TIERS, AnswersSpec, LessonsSpec
from entrl.traces import TraceSpec, problem_of, trace_lesson


def collect(
    spec: AnswersSpec,
    file: Path | None,
    student: Policy,
    *,
    base: Path | None,
    say: Callable[[str], None],
    kept: Kept | None = None,
) -> list[Row]:
    """Every answer there is to choose from. student: what is to be taught, for policies that are not named.

    kept: where rejection sampling keeps what it has drawn.
    """
    if file is not None:
        return with_lengths(read_answers(file), student[1])
    if spec.lessons is not None:
        problems = lesson_problems(spec.lessons)
        rows = lesson_rows(spec.lessons, problems, student[1])
        if spec.lessons.trace is not None:
            say(trace_summary(rows, spec.lessons.trace))
            rows = taught_traces(rows, spec.lessons.trace)
    else:
        assert spec.sample is not None  # AnswersSpec has exactly one
        problems = sample_problems(spec.sample, base)
        if spec.sample.rejection is not None:
            assert kept is not None  # a cold start has a folder
            return rejection_rows(spec.sample, problems, student, kept=kept, say=say)
        say(f"sampling {spec.sample.samples} answers to each of {len(problems)} problems")
        rows = sample_rows(spec.sample, problems, student)
    if spec.pass_rate is None:
        return rows
    say(f"measuring pass rates of {len(problems)} problems with {spec.pass_rate.samples} answers each")
    rates = measured_rates(spec.pass_rate, problems, student)
    return [{**row, "pass_rate": rates[row["problem_id"]]} for row in rows]


# --- scripted lessons ---------------------------------------------------------------------------------------------


def lesson_problems(spec: LessonsSpec) -> Any:
    task: dict[str, Any] = {"task": "sums", "terms": spec.terms or TIERS}
    if spec.task is not None:
        task = {"task": spec.task, **(spec.args or {})}
    return load_task(task, split="train", size=spec.problems, seed=spec.seed)


def lesson_rows(spec: LessonsSpec, problems: Any, tokenizer: Any) -> list[Row]:
    """The lessons of one problem stand together; `correct` says whether the script's slips spoilt the answer."""
    if spec.trace is not None:
        return trace_rows(spec, spec.trace, problems, tokenizer)
    if spec.gold:
        return gold_rows(spec, problems, tokenizer)
    rng, mixtures = random.Random(spec.seed), spec.mixtures()
    pairs = [(dict(problem), mixtures[j % len(mixtures)]) for problem in problems for j in range(spec.per_problem)]
    if spec.rechecks:
        texts = [overthinking_lesson(problem["prompt"], rng, style=Overthinking()) for problem, _ in pairs]
    else:
        texts = [lesson(problem["prompt"], rng, mixture=mixture) for problem, mixture in pairs]
    lengths = [token_count(text, tokenizer) for text in texts]
    return scored_rows([problem for problem, _ in pairs], texts, lengths, source=spec.task or "sums")


def gold_rows(spec: LessonsSpec, problems: Any, tokenizer: Any) -> list[Row]:
    """Lessons of the answer alone, or with slips in it. ValueError for a row that brings none."""
    rows = [dict(problem) for problem in problems for _ in range(spec.per_problem)]
    if lacking := [row["problem_id"] for row in rows if not row["answer"]]:
        raise ValueError(
            f"answers.lessons.gold teaches the answers that the task {spec.task or 'sums'} brings, and {lacking[0]} "
            "brings none; take smaller problems, or a file of answers"
        )
    answers = [row["answer"] for row in rows]
    if spec.slips:
        answers = [_slipped(spec, row, i % spec.per_problem) for i, row in enumerate(rows)]
    pairs = zip(answers, rows, strict=True)
    texts = [f"{THINK_OPEN}{THINK_CLOSE}{_as_asked(answer, row['prompt'])}" for answer, row in pairs]
    lengths = [token_count(text, tokenizer) for text in texts]
    return scored_rows(rows, texts, lengths, source=spec.task or "sums")


def _slipped(spec: LessonsSpec, row: Row, copy: int) -> str:
    """The plan of a puzzle with slips, in the form of the right answer."""
    rng = random.Random(f"{spec.seed}/{row['problem_id']}/{copy}")
    write = plan_line if (spec.args or {}).get("form") == "line" else plan_text
    return write(slipped_plan(puzzle_of(row["verifier"]), spec.slips, rng))


def trace_rows(spec: LessonsSpec, trace: TraceSpec, problems: Any, tokenizer: Any) -> list[Row]:
    """Lessons with a search; `correct` says whether the teacher found a solution, and noise left it one."""
    asked = [(dict(problem), copy) for problem in problems for copy in range(spec.per_problem)]
    lessons = [
        trace_lesson(problem_of(row["verifier"]), trace, seed=f"{spec.seed}/{row['problem_id']}/{copy}")
        for row, copy in asked
    ]
    rows = [row for row, _ in asked]
    texts = [
        f"{THINK_OPEN}{lesson.trace}{THINK_CLOSE}{_as_asked(lesson.answer, row['prompt'])}"
        for row, lesson in zip(rows, lessons, strict=True)
    ]
    lengths = [token_count(text, tokenizer) for text in texts]
    scored = scored_rows(rows, texts, lengths, source=spec.task or "")
    return [{**row, "trace": lesson.facts} for row, lesson in zip(scored, lessons, strict=True)]


def _as_asked(answer: str, prompt: Any) -> str:
    """In <answer> tags where the prompt wants them."""
    wants_tags = not isinstance(prompt, str) and ANSWER_TAGS in prompt[-1]["content"]
    return f"<answer>{answer}</answer>" if wants_tags else answer


def taught_traces(rows: Sequence[Row], trace: TraceSpec) -> list[Row]:
    """The lessons that are kept. ValueError where the teacher found nothing at all."""
    kept = [row for row in rows if trace.keep_unsolved or row["trace"]["solved"]]
    if not kept:
        raise ValueError(
            f"the teacher solved none of {len(rows)} lessons, and trace.keep_unsolved is false; raise trace.budget or "
            "trace.width, or take easier problems"
        )
    return kept


def trace_summary(rows: Sequence[Row], trace: TraceSpec) -> str:
    """How often the teacher came to a right answer, and where it had fewer wrong branches than asked."""
    right = sum(row["correct"] or 0 for row in rows)
    text = f"teacher: {right} of {len(rows)} lessons end in a right answer"
    fewer = sum(row["trace"]["wrong_branches"] < (trace.k or 0) for row in rows)
    return f"{text}; {fewer} have fewer than k={trace.k} wrong branches, all that there are" if fewer else text
