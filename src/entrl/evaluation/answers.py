r"""What a policy can do on a task: greedy and sampled accuracy, unbiased pass@k, lengths, entropies by phase.

pass@k: `scores.py`. n samples of a problem, c of them right.

Every number with its set: greedy accuracy is over problems, with the Wilson interval; sampled accuracy is the mean
over problems of c / n, with a bootstrap interval over problems; lengths are in tokens, the end token included;
entropies are means over all tokens of a phase of all sampled completions, in nats, of the full vocabulary at the
evaluation temperature (before top_p). The missing-close rate is the share of sampled completions whose thinking
never ends, the truncation rate the share that ran into `max_new_tokens`. With two samples a problem and more, their
diversity (`entrl.maths.diversity`, over token ids, the end token included) is a mean over problems.

What a completion answers is found as in training (`entrl.maths.phases.answer_text`): from its token ids and its prompt,
by `think_open` and `think_close`. A score that names `answer_texts` gets it; the texts beside it are whole completions.
A completion that could not be verified (None) counts neither as right nor as wrong: it leaves n, and is counted
in `unverified`; golds that nothing can verify are counted beforehand, in `unverifiable_golds`. A problem with fewer
than k verified samples leaves pass@k; with none it leaves sampled accuracy.

Source:  interval: Wilson 1927
Needs:   one process; entropies come out of the sampling pass itself, no second forward pass
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from rich.progress import Progress

from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.scores import summary
from entrl.evaluation.scoring import DEFAULT_SCORE, Score, checked_golds, scorer, scores, tags_of, warn_of_silence
from entrl.evaluation.writing import Asked, Completion, Sampling, encode
from entrl.maths.diversity import group_diversity
from entrl.maths.phases import ThinkTags, answer_text, phase_masks
from entrl.models.load import load_policy
from entrl.settings.provenance import entrl_commit
from entrl.tasks import load_task
from entrl.version import __version__


def evaluate(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    *,
    samples: int = 8,
    k: Sequence[int] = (1,),
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    batch_size: int = 256,
    seed: int = 0,
    score: Score | str = DEFAULT_SCORE,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    think_open: str = "<think>",
    think_close: str = "</think>",
    progress: bool = True,
    labels: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a model in memory on rows of `load_task`; `labels` (model, task, split, ...) go into the result.

    The caller's random state, training mode and generation config are as before afterwards.
    """
    sampling = Sampling(samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    check_k(k, samples)
    started = time.monotonic()
    check, tags = scorer(score), tags_of(tokenizer, think_open, think_close)
    golds = checked_golds(check, dataset)
    prompts = [encode(tokenizer, prompt, chat_template_kwargs or {}) for prompt in dataset["prompt"]]
    writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=batch_size)
    # Rows of a batch wait for its longest prompt.
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    with Progress(transient=True, disable=not progress) as bar:
        asked = [Asked(index=i, prompt_ids=prompts[i]) for i in order]
        found = {a.index: a for a in bar.track(writer.write(asked), total=len(asked), description="evaluating")}
    greedy = [g for i in range(len(prompts)) if (g := found[i].greedy) is not None]
    rows = [ids for ids in prompts for _ in range(samples)]
    drawn = [c for i in range(len(prompts)) for c in found[i].drawn]

    def judged(asked: list[list[int]], said: list[Completion], times: int) -> list[float | None]:
        answers = [answer_text(c.ids, tags, tokenizer, prompt_ids=ids) for ids, c in zip(asked, said, strict=True)]
        return scores(check, [c.text for c in said], answers, dataset, times=times)

    greedy_scores, drawn_scores = judged(prompts, greedy, 1), judged(rows, drawn, samples)
    warn_of_silence(rows, [c.ids for c in drawn], [*greedy_scores, *drawn_scores], tags, think_close)
    problems = _problems(dataset, greedy, greedy_scores, drawn, drawn_scores, samples)
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
        "max_new_tokens": max_new_tokens,
        "think_open": think_open,
        "think_close": think_close,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
        **summary(problems, k=k, seed=seed),
        **_signals(rows, drawn, tags),
        **({"diversity": _diversity(drawn, samples)} if samples > 1 else {}),
        "truncation_rate": fmean(c.truncated for c in drawn),
        "greedy_truncation_rate": fmean(c.truncated for c in greedy),
        "unverified": sum(s is None for s in [*greedy_scores, *drawn_scores]),
        "unverifiable_golds": None if golds is None else len(golds.bad),
        "seconds": time.monotonic() - started,
        **(labels or {}),
        "problems": problems,
    }


def evaluate_path(
    path: str,
    *,
    task: str | Mapping[str, Any],
    split: str = "test",
    size: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Load a folder, adapter folder, shipped asset or hub id, and evaluate it; `options` as in `evaluate`."""
    dataset = load_task(task, split=split, size=size, seed=seed)  # type: ignore[arg-type]
    model, tokenizer = load_policy(path, dtype=dtype, device=device)
    labels = {"model": path, "task": task_label(task), "split": split}
    return evaluate(
        model, tokenizer, dataset, seed=seed, **{**options, "labels": {**labels, **(options.get("labels") or {})}}
    )


def task_label(task: str | Mapping[str, Any]) -> str:
    """How a task is written into results: its name, or its options as JSON where it has any."""
    if isinstance(task, str):
        return task
    return str(task["task"]) if set(task) == {"task"} else json.dumps(dict(task), sort_keys=True)


def _problems(
    dataset: Any,
    greedy: list[Completion],
    greedy_scores: list[float | None],
    drawn: list[Completion],
    drawn_scores: list[float | None],
    samples: int,
) -> list[dict[str, Any]]:
    problems = []
    for i, row in enumerate(dataset):
        mine = range(i * samples, (i + 1) * samples)
        verified = [s for s in (drawn_scores[j] for j in mine) if s is not None]
        right = greedy_scores[i]
        problems.append(
            {
                "id": row.get("problem_id", str(i)),
                "prompt": row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"],
                "answer": row["answer"],
                "level": row.get("level", ""),
                "greedy_correct": None if right is None else bool(right),
                "n_correct": int(sum(verified)),
                "n_samples": len(verified),
                "greedy_length": len(greedy[i].ids),
                "mean_length": fmean(len(drawn[j].ids) for j in mine),
            }
        )
    return problems


def _signals(prompts: list[list[int]], drawn: list[Completion], tags: ThinkTags | None) -> dict[str, Any]:
    """Phase entropies and the missing-close rate; None per phase where the tokenizer cannot spell the tags."""
    every = torch.cat([c.entropies for c in drawn if c.entropies is not None])
    found: dict[str, float | None] = {"think": None, "answer": None, "all": every.mean().item()}
    if tags is None:
        return {"entropy": found, "missing_close_rate": None}
    masks = [phase_masks(c.ids, tags, prompt_ids=ids) for ids, c in zip(prompts, drawn, strict=True)]
    for name in ("think", "answer"):
        mask = torch.cat([getattr(m, name) for m in masks])
        found[name] = every[mask].mean().item() if mask.any() else None
    return {"entropy": found, "missing_close_rate": fmean(not m.closed for m in masks)}


def _diversity(drawn: list[Completion], samples: int) -> dict[str, float | None]:
    """How much a problem's samples differ, mean over problems; None where no completion is long enough."""
    found = group_diversity([c.ids for c in drawn], samples)
    values = {name: found[f"diversity/{name}"] for name in ("distinct_1", "distinct_2", "edit_distance", "unique")}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def check_k(k: Sequence[int], samples: int) -> None:
    for j in k:
        if not 1 <= j <= samples:
            raise ValueError(f"pass@{j} needs at least {j} samples a problem and k >= 1, got samples={samples}")
