"""Where the answers of a cold start come from: one row per answer, ready to be curated and taught.

    problem_id, source, prompt, completion, length (tokens, the end token included), level
    correct (1, 0, or null: not verified)

`lessons` writes the nursery's scripted traces for the task `sums`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from entrl.evaluate import DEFAULT_SCORE
from entrl.load import load_object
from entrl.nursery.traces import Mixture, lesson
from entrl.tasks import load_task

END_TOKENS = 1  # what a scripted completion lacks and SFT appends


@dataclass(frozen=True, kw_only=True)
class LessonsSpec:
    """Scripted traces for sums: problems dealt out over tiers of difficulty, in the order they are taught."""

    terms: list[int] = field(default_factory=lambda: [2, 4, 6])  # tiers of difficulty: numbers of terms
    problems: int = 9600
    per_problem: int = 1  # lessons written for each problem
    think: float = Mixture().think  # see nursery.traces.Mixture
    check: float = Mixture().check
    slip: float = Mixture().slip
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("problems", "per_problem"):
            if getattr(self, name) < 1:
                raise ValueError(f"answers.lessons.{name} must be >= 1, got {getattr(self, name)}")
        Mixture(think=self.think, check=self.check, slip=self.slip)


def lesson_rows(spec: LessonsSpec, tokenizer: Any) -> list[dict[str, Any]]:
    """The lessons of one problem stand together; `correct` says whether the script's slips spoilt the answer."""
    problems = load_task({"task": "sums", "terms": spec.terms}, split="train", size=spec.problems, seed=spec.seed)
    rng = random.Random(spec.seed)
    mixture = Mixture(think=spec.think, check=spec.check, slip=spec.slip)
    rows = [dict(problem) for problem in problems for _ in range(spec.per_problem)]
    texts = [lesson(row["prompt"], rng, mixture=mixture) for row in rows]
    return answer_rows(rows, texts, [token_count(text, tokenizer) for text in texts], source="sums")


def answer_rows(
    problems: Sequence[dict[str, Any]], texts: Sequence[str], lengths: Sequence[int], *, source: str
) -> list[dict[str, Any]]:
    """Answers to problems (rows of `load_task`, one per answer) with the verdict of their verifier."""
    score = load_object(DEFAULT_SCORE).value.score
    verdicts = score(texts, [p["answer"] for p in problems], [p["verifier"] for p in problems])
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


def token_count(text: str, tokenizer: Any) -> int:
    """Tokens of a completion that has no end token yet, counted with it."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + END_TOKENS
