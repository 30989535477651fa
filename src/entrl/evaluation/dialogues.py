"""What a model does in dialogues with an environment, in the form of `entrl.evaluation.answers`: success in place of
accuracy.

One greedy dialogue for each row and `samples` drawn ones, all through `ModelPolicy`. A right answer is one that the
environment accepted; no answer is a wrong one. Lengths count the tokens that the model wrote. `inquiry` holds, for the
greedy and the sampled dialogues, every metric of `entrl.environments.play.score` (questions, gains, repeats, ...).

Needs:   torch, transformers and trl
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from entrl.environments.model_policy import ModelPolicy
from entrl.environments.play import Episode, play, score
from entrl.evaluation.scores import summary
from entrl.settings.provenance import entrl_commit
from entrl.version import __version__


def evaluate_dialogues(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    factory: Callable[[], Any],
    *,
    samples: int = 8,
    k: Sequence[int] = (1,),
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_completion_length: int = 2048,
    max_tool_calling_iterations: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a model in memory on rows that `factory`'s environments can open; `labels` go into the result.

    k: of pass@k, each <= samples. max_completion_length: tokens of a whole dialogue, tools' included.
    """
    started = time.monotonic()
    rows = list(dataset)
    limits: dict[str, Any] = {
        "max_completion_length": max_completion_length,
        "max_tool_calling_iterations": max_tool_calling_iterations,
        "chat_template_kwargs": chat_template_kwargs or {},
    }
    greedy = ModelPolicy(model=model, tokenizer=tokenizer, name="greedy", **limits)
    sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    drawn = ModelPolicy(model=model, tokenizer=tokenizer, name="sampled", **sampling, **limits)
    once = play(factory, rows, greedy, batch=batch_size)
    often = play(factory, [row for row in rows for _ in range(samples)], drawn, batch=batch_size)
    problems = [
        _problem(row, once[i], greedy.lengths[i], often[i * samples : (i + 1) * samples], drawn.lengths[i * samples :])
        for i, row in enumerate(rows)
    ]
    return {
        "entrl": __version__,
        "commit": entrl_commit(),
        "model": None,
        "task": None,
        "split": None,
        "seed": seed,
        "n_problems": len(problems),
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_completion_length,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
        **summary(problems, k=k, seed=seed),
        "entropy": {},
        "missing_close_rate": None,
        "truncation_rate": 1 - fmean(drawn.finished),
        "greedy_truncation_rate": 1 - fmean(greedy.finished),
        "unverified": 0,
        "inquiry": {"greedy": score(once, seed=seed), "sampled": score(often, seed=seed)},
        "seconds": time.monotonic() - started,
        **(labels or {}),
        "problems": problems,
    }


def _problem(
    row: Mapping[str, Any], once: Episode, length: int, often: Sequence[Episode], lengths: Sequence[int]
) -> dict[str, Any]:
    return {
        "id": row["problem_id"],
        "prompt": row["prompt"][-1]["content"],
        "answer": row["answer"],
        "level": row.get("level", ""),
        "greedy_correct": once.correct,
        "n_correct": sum(e.correct for e in often),
        "n_samples": len(often),
        "greedy_length": length,
        "mean_length": fmean(lengths[: len(often)]),
        "greedy_score": once.score,
        "mean_score": fmean(e.score for e in often),
        "greedy_questions": once.questions,
        "mean_questions": fmean(e.questions for e in often),
    }
