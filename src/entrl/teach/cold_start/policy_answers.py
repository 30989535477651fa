"""A policy's own answers to the problems of a task, scored by the task's verifier; measured pass rates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from entrl.evaluation.answers import evaluate
from entrl.evaluation.asked import KEYS, settled
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.scoring import DEFAULT_SCORE, tags_of
from entrl.evaluation.writing import Asked, Sampling, encode
from entrl.maths.phases import ThinkTags, answer_text
from entrl.models.load import load_policy
from entrl.runs.specs import DataSpec, load_rows
from entrl.settings.names import load_object
from entrl.teach.answer_files import Row
from entrl.teach.cold_start.spec import SampleSpec, SamplingSpec

Policy = tuple[Any, Any]  # model and tokenizer


def sample_problems(spec: SampleSpec, base: Path | None) -> Any:
    data = DataSpec(task=spec.task, split=spec.split, seed=spec.data_seed, args=spec.args)
    return load_rows(spec.task, data, size=spec.size, base=base)


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A policy that answers problems. asked_ids: the prompt of each as the policy gets it."""

    spec: SampleSpec
    model: Any
    tokenizer: Any
    problems: Any
    asked_ids: list[list[int]]
    tags: ThinkTags | None

    @classmethod
    def of(cls, spec: SampleSpec, problems: Any, student: Policy) -> Self:
        """student: what is to be taught, for a policy that is not named."""
        model, tokenizer = student if spec.policy is None else load_policy(spec.policy)
        asked = {
            "think_open": "<think>",
            "think_close": "</think>",
            "chat_template_kwargs": {},
            **_asked(spec, tokenizer),
        }
        ids = [encode(tokenizer, prompt, asked["chat_template_kwargs"]) for prompt in problems["prompt"]]
        tags = tags_of(tokenizer, asked["think_open"], asked["think_close"])
        return cls(spec=spec, model=model, tokenizer=tokenizer, problems=problems, asked_ids=ids, tags=tags)

    def together(self, samples: int) -> int:
        """Problems in one batch of generation."""
        return max(1, self.spec.batch_size // samples)

    def answers(self, indices: Sequence[int], *, samples: int, seed: int) -> Iterator[list[Row]]:
        """For each of these problems its `samples` rows, in their order, with `truncated` in each."""
        spec = self.spec
        sampling = Sampling(
            samples=samples,
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens,
            seed=seed,
            greedy=False,
        )
        writer = TransformersWriter(model=self.model, tokenizer=self.tokenizer, sampling=sampling, rows=spec.batch_size)
        wanted = [Asked(index=i, prompt_ids=self.asked_ids[i]) for i in indices]
        found = {answered.index: answered.drawn for answered in writer.write(wanted)}
        drawn = [completion for i in indices for completion in found[i]]
        prompts = [self.asked_ids[i] for i in indices for _ in range(samples)]
        answers = [
            answer_text(c.ids, self.tags, self.tokenizer, prompt_ids=ids) for ids, c in zip(prompts, drawn, strict=True)
        ]
        repeated = [dict(self.problems[i]) for i in indices for _ in range(samples)]
        lengths = [len(c.ids) for c in drawn]
        rows = scored_rows(repeated, [c.text for c in drawn], lengths, source=spec.task, answers=answers)
        rows = [{**row, "truncated": c.truncated} for row, c in zip(rows, drawn, strict=True)]
        for place in range(0, len(rows), samples):
            yield rows[place : place + samples]


def sample_rows(spec: SampleSpec, problems: Any, student: Policy) -> list[Row]:
    """`samples` answers per problem, one after the other; one that hit the limit of tokens is left out.

    A truncated answer would teach not to end; its verdict still counts in the pass rate.
    """
    answering = Answering.of(spec, problems, student)
    found = answering.answers(range(len(answering.asked_ids)), samples=spec.samples, seed=spec.seed)
    rows = [row for mine in found for row in mine]
    rates = rates_of(rows)
    return [{**whole(row), "pass_rate": rates[row["problem_id"]]} for row in rows if not row["truncated"]]


def whole(row: Row) -> Row:
    """A row without what only its sampling wanted to know."""
    return {key: value for key, value in row.items() if key != "truncated"}


def _asked(spec: SamplingSpec, tokenizer: Any) -> dict[str, Any]:
    """Tags and template arguments: the file's, else those of the run that made the policy."""
    model = spec.policy or getattr(tokenizer, "name_or_path", None) or ""
    return settled(model, {key: getattr(spec, key) for key in KEYS})[0]


def rates_of(rows: Sequence[Row]) -> dict[str, float | None]:
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
