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

from entrl.evaluation.answers import evaluate
from entrl.evaluation.asked import KEYS, settled
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.scoring import DEFAULT_SCORE, tags_of
from entrl.evaluation.writing import Asked, Sampling, encode
from entrl.maths.phases import answer_text
from entrl.models.load import load_policy
from entrl.runs.specs import DataSpec, load_rows
from entrl.settings.names import load_object
from entrl.tasks import load_task
from entrl.tasks.reasoning_gym_rows import ANSWER_TAGS
from entrl.tasks.rechecks import Overthinking, overthinking_lesson
from entrl.tasks.traces import THINK_CLOSE, THINK_OPEN, lesson
from entrl.teach.answer_files import Row, read_answers, token_count, with_lengths
from entrl.teach.cold_start.spec import TIERS, AnswersSpec, LessonsSpec, SampleSpec, SamplingSpec
from entrl.traces import TraceSpec, problem_of, trace_lesson

Policy = tuple[Any, Any]  # model and tokenizer


def collect(
    spec: AnswersSpec, file: Path | None, student: Policy, *, base: Path | None, say: Callable[[str], None]
) -> list[Row]:
    """Every answer there is to choose from. student: what is to be taught, for policies that are not named."""
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
    rng, mixtures = random.Random(spec.seed), spec.mixtures()
    pairs = [(dict(problem), mixtures[j % len(mixtures)]) for problem in problems for j in range(spec.per_problem)]
    if spec.rechecks:
        texts = [overthinking_lesson(problem["prompt"], rng, style=Overthinking()) for problem, _ in pairs]
    else:
        texts = [lesson(problem["prompt"], rng, mixture=mixture) for problem, mixture in pairs]
    lengths = [token_count(text, tokenizer) for text in texts]
    return scored_rows([problem for problem, _ in pairs], texts, lengths, source=spec.task or "sums")


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


# --- a policy's own answers ---------------------------------------------------------------------------------------


def sample_problems(spec: SampleSpec, base: Path | None) -> Any:
    data = DataSpec(task=spec.task, split=spec.split, seed=spec.data_seed, args=spec.args)
    return load_rows(spec.task, data, size=spec.size, base=base)


def sample_rows(spec: SampleSpec, problems: Any, student: Policy) -> list[Row]:
    """`samples` answers per problem, one after the other; one that hit the limit of tokens is left out.

    A truncated answer would teach not to end; its verdict still counts in the pass rate.
    """
    model, tokenizer = student if spec.policy is None else load_policy(spec.policy)
    asked = {"think_open": "<think>", "think_close": "</think>", "chat_template_kwargs": {}, **_asked(spec, tokenizer)}
    extra = asked["chat_template_kwargs"]
    asked_ids = [encode(tokenizer, prompt, extra) for prompt in problems["prompt"]]
    sampling = Sampling(
        samples=spec.samples,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=spec.max_new_tokens,
        seed=spec.seed,
        greedy=False,
    )
    writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=spec.batch_size)
    found = {a.index: a for a in writer.write([Asked(index=i, prompt_ids=ids) for i, ids in enumerate(asked_ids)])}
    prompts = [ids for ids in asked_ids for _ in range(spec.samples)]
    drawn = [completion for i in range(len(asked_ids)) for completion in found[i].drawn]
    repeated = [dict(problem) for problem in problems for _ in range(spec.samples)]
    tags = tags_of(tokenizer, asked["think_open"], asked["think_close"])
    answers = [answer_text(c.ids, tags, tokenizer, prompt_ids=ids) for ids, c in zip(prompts, drawn, strict=True)]
    lengths = [len(c.ids) for c in drawn]
    rows = scored_rows(repeated, [c.text for c in drawn], lengths, source=spec.task, answers=answers)
    rates = _rates(rows)
    return [
        {**row, "pass_rate": rates[row["problem_id"]]}
        for row, completion in zip(rows, drawn, strict=True)
        if not completion.truncated
    ]


def _asked(spec: SamplingSpec, tokenizer: Any) -> dict[str, Any]:
    """Tags and template arguments: the file's, else those of the run that made the policy."""
    model = spec.policy or getattr(tokenizer, "name_or_path", None) or ""
    return settled(model, {key: getattr(spec, key) for key in KEYS})[0]


def _rates(rows: Sequence[Row]) -> dict[str, float | None]:
    """problem_id -> right answers over verified ones; None without any."""
    verdicts: dict[str, list[int]] = {}
    for row in rows:
        verdicts.setdefault(row["problem_id"], []).extend([] if row["correct"] is None else [row["correct"]])
    return {problem: sum(v) / len(v) if v else None for problem, v in verdicts.items()}


def measured_rates(spec: SamplingSpec, problems: Any, student: Policy) -> dict[str, float | None]:
    """problem_id -> share of a policy's samples that are right; None where none could be verified."""
    model, tokenizer = student if spec.policy is None else load_policy(spec.policy)
    found = evaluate(
        model,
        tokenizer,
        problems,
        samples=spec.samples,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
        seed=spec.seed,
        progress=False,
        **_asked(spec, tokenizer),
    )
    return {p["id"]: p["n_correct"] / p["n_samples"] if p["n_samples"] else None for p in found["problems"]}


def scored_rows(
    problems: Sequence[Row],
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    source: str,
    answers: Sequence[str] | None = None,
) -> list[Row]:
    """Texts for problems (rows of `load_task`, one per text) with the verdict of their verifier.

    answers: what each text answers; None reads it off the text, by <think> and </think>.
    """
    score = load_object(DEFAULT_SCORE).value.score
    golds, verifiers = [p["answer"] for p in problems], [p["verifier"] for p in problems]
    verdicts = score(texts, golds, verifiers, answer_texts=answers)
    return [
        {
            "problem_id": problem["problem_id"],
            "source": source,
            "level": problem["level"],
            "prompt": problem["prompt"],
            "completion": text,
            "correct": None if verdict is None else int(verdict),
            "length": length,
        }
        for problem, text, length, verdict in zip(problems, texts, lengths, verdicts, strict=True)
    ]
