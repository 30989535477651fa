"""What a model does in dialogues with an environment, in the form of `entrl.evaluation.answers`: success in place of
accuracy.

One greedy dialogue for each row and `samples` drawn ones, all through `ModelPolicy`. A right answer is one that the
environment accepted; no answer is a wrong one. Lengths count the tokens that the model wrote. `inquiry` holds, for the
greedy and the sampled dialogues, every metric of `entrl.environments.play.score` (questions, gains, repeats, ...).

Needs:   torch, transformers and trl
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from entrl.environments.model_policy import ModelPolicy
from entrl.environments.play import Episode, play, score_values, values_of
from entrl.evaluation import records as kept
from entrl.evaluation.answers import rows_of
from entrl.evaluation.records import Record
from entrl.evaluation.result import check_k, head
from entrl.evaluation.scores import summary
from entrl.evaluation.writing import Sampling
from entrl.settings.groups import content_hash


def evaluate_dialogues(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    factory: Callable[[], Any],
    *,
    samples: int = 8,
    k: Sequence[int] = (1,),
    greedy: bool = True,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_completion_length: int = 2048,
    max_tool_calling_iterations: int | None = None,
    batch_size: int | str = "auto",
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    progress: bool = True,
    partial: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a model in memory on rows that `factory`'s environments can open; `labels` go into the result.

    k: of pass@k, each <= samples. max_completion_length: tokens of a whole dialogue, tools' included. batch_size,
    partial: as in `evaluate`.
    """
    sampling = Sampling(
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_completion_length,
        seed=seed,
        greedy=greedy,
    )
    work = Dialogues(
        model=model,
        tokenizer=tokenizer,
        rows=list(dataset),
        factory=factory,
        sampling=sampling,
        k=k,
        batch_size=batch_size,
        max_tool_calling_iterations=max_tool_calling_iterations,
        chat_template_kwargs=chat_template_kwargs or {},
        labels=labels or {},
    )
    return kept.run(work, partial=None if partial is None else Path(partial), progress=progress)


@dataclass(kw_only=True)
class Dialogues:
    """The `Work` of an evaluation with an environment; a unit is played side by side, drawn from a seed of its own."""

    model: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    factory: Callable[[], Any]
    sampling: Sampling
    batch_size: int | str = "auto"  # dialogues side by side
    k: Sequence[int] = (1,)
    max_tool_calling_iterations: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_k(self.k, self.sampling.samples)
        if not self.rows:
            raise ValueError("no rows to play; give the task a size >= 1")
        self.batch = 1

    def fitting(self, processes: int, ranks: int = 1) -> int:
        tokens = 2 * self.sampling.max_new_tokens  # the prompt is not known before `reset`
        shared = {"processes": processes, "ranks": ranks, "problems": len(self.rows)}
        return rows_of(self.batch_size, self.model, tokens, per_problem=self.sampling.samples, **shared)

    def ready(self, batch: int | None) -> None:
        self.batch = batch or 1

    @property
    def order(self) -> range:
        return range(len(self.rows))

    @property
    def unit(self) -> int:
        return max(1, self.batch // self.sampling.samples)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **self._head(),
            "k": list(self.k),
            "greedy": self.sampling.greedy,
            "max_tool_calling_iterations": self.max_tool_calling_iterations,
            "problems": content_hash(self.rows),
            "batch_size": self.batch_size,
        }

    def _head(self) -> dict[str, Any]:
        asked = {"chat_template_kwargs": dict(self.chat_template_kwargs)}
        return {**head(self.sampling, problems=len(self.rows), **asked), **self.labels}

    def records(self, indices: Sequence[int]) -> Generator[tuple[int, Record]]:
        for start in range(0, len(indices), self.unit):
            yield from self._played(indices[start : start + self.unit])

    def _played(self, unit: Sequence[int]) -> Generator[tuple[int, Record]]:
        samples, rows = self.sampling.samples, [self.rows[i] for i in unit]
        drawn = self._policy("sampled", unit[0])
        often = play(self.factory, [row for row in rows for _ in range(samples)], drawn, batch=self.batch)
        greedy, once = self._policy("greedy", None), None
        if self.sampling.greedy:
            once = play(self.factory, rows, greedy, batch=self.batch)
        for at, index in enumerate(unit):
            mine = slice(at * samples, (at + 1) * samples)
            record = {
                "problem": _problem(rows[at], often[mine], drawn.lengths[mine]),
                "sampled": [values_of(e) for e in often[mine]],
                "finished": sum(drawn.finished[mine]),
                "greedy": None,
                "greedy_finished": None,
            }
            if once is not None:
                record["problem"] |= {
                    "greedy_correct": once[at].correct,
                    "greedy_length": greedy.lengths[at],
                    "greedy_score": once[at].score,
                    "greedy_questions": once[at].questions,
                }
                record |= {"greedy": values_of(once[at]), "greedy_finished": greedy.finished[at]}
            yield index, record

    def _policy(self, name: str, first: int | None) -> ModelPolicy:
        """first: of a unit that is drawn; None is greedy."""
        drawn: dict[str, Any] = {}
        if first is not None:
            seed = int(np.random.SeedSequence([self.sampling.seed % 2**64, first]).generate_state(1)[0])
            drawn = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "seed": seed}
        return ModelPolicy(
            model=self.model,
            tokenizer=self.tokenizer,
            name=name,
            max_completion_length=self.sampling.max_new_tokens,
            max_tool_calling_iterations=self.max_tool_calling_iterations,
            chat_template_kwargs=self.chat_template_kwargs,
            **drawn,
        )

    def result(self, records: Sequence[Record], seconds: float) -> dict[str, Any]:
        problems, seed = [r["problem"] for r in records], self.sampling.seed
        drawn = len(records) * self.sampling.samples
        ended = [r["greedy_finished"] for r in records]
        inquiry = {"sampled": score_values([v for r in records for v in r["sampled"]], seed=seed)}
        if self.sampling.greedy:
            inquiry = {"greedy": score_values([r["greedy"] for r in records], seed=seed), **inquiry}
        return {
            **self._head(),
            **summary(problems, k=self.k, seed=seed),
            "entropy": {},
            "missing_close_rate": None,
            "truncation_rate": 1 - sum(r["finished"] for r in records) / drawn,
            "greedy_truncation_rate": 1 - fmean(ended) if self.sampling.greedy else None,
            "unverified": 0,
            "inquiry": inquiry,
            "seconds": seconds,
            "problems": problems,
        }


def _problem(row: Mapping[str, Any], often: Sequence[Episode], lengths: Sequence[int]) -> dict[str, Any]:
    return {
        "id": row["problem_id"],
        "prompt": row["prompt"][-1]["content"],
        "answer": row["answer"],
        "level": row.get("level", ""),
        "greedy_correct": None,
        "n_correct": sum(e.correct for e in often),
        "n_samples": len(often),
        "greedy_length": None,
        "mean_length": fmean(lengths),
        "mean_score": fmean(e.score for e in often),
        "mean_questions": fmean(e.questions for e in often),
    }
