r"""What a policy can do on a task: greedy and sampled accuracy, unbiased pass@k, lengths, entropies by phase.

    pass@k = mean over problems of 1 - C(n - c, k) / C(n, k)      n samples of a problem, c of them right

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

Source:  pass@k: Chen et al. 2021 (arXiv 2107.03374), section 2.1. Interval: Wilson 1927
Needs:   one process; entropies come out of the sampling pass itself, no second forward pass
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

import entrl
from entrl.evaluation.scores import pass_at_k
from entrl.evaluation.scoring import DEFAULT_SCORE, Score, checked_golds, scorer, scores, tags_of, warn_of_silence
from entrl.maths.diversity import group_diversity
from entrl.maths.phases import ThinkTags, answer_text, phase_masks
from entrl.maths.signals import entropy_from_logits
from entrl.models.load import load_policy
from entrl.settings.provenance import entrl_commit
from entrl.stats.intervals import bootstrap_interval, wilson_interval
from entrl.tasks import load_task


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One generated answer; ids up to and with the first end token."""

    ids: list[int]
    text: str
    truncated: bool
    entropies: Tensor | None  # (T,) nats, None for greedy


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
    _check(samples=samples, k=k, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    started = time.monotonic()
    check, tags = scorer(score), tags_of(tokenizer, think_open, think_close)
    golds = checked_golds(check, dataset)
    prompts = [_encode(tokenizer, prompt, chat_template_kwargs or {}) for prompt in dataset["prompt"]]
    with _as_sampler(model, tokenizer, seed), Progress(transient=True, disable=not progress) as bar:
        writer = _Writer(model, tokenizer, max_new_tokens, batch_size, bar)
        greedy = writer.write("greedy", prompts, [len(ids) for ids in prompts])
        # Rows of a batch wait for its longest one: batch those that were long before.
        hints = [len(ids) + len(g.ids) for ids, g in zip(prompts, greedy, strict=True) for _ in range(samples)]
        rows = [ids for ids in prompts for _ in range(samples)]
        drawn = writer.write("sampling", rows, hints, temperature=temperature, top_p=top_p)

    def judged(asked: list[list[int]], said: list[Completion], times: int) -> list[float | None]:
        answers = [answer_text(c.ids, tags, tokenizer, prompt_ids=ids) for ids, c in zip(asked, said, strict=True)]
        return scores(check, [c.text for c in said], answers, dataset, times=times)

    greedy_scores, drawn_scores = judged(prompts, greedy, 1), judged(rows, drawn, samples)
    warn_of_silence(rows, [c.ids for c in drawn], [*greedy_scores, *drawn_scores], tags, think_close)
    problems = _problems(dataset, greedy, greedy_scores, drawn, drawn_scores, samples)
    return {
        "entrl": entrl.__version__,
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


def summary(problems: Sequence[Mapping[str, Any]], *, k: Sequence[int], seed: int) -> dict[str, Any]:
    """The aggregates of a list of problems; None where no problem is verified."""
    greedy = [p["greedy_correct"] for p in problems if p["greedy_correct"] is not None]
    shares = [p["n_correct"] / p["n_samples"] for p in problems if p["n_samples"]]
    counts = [(p["n_samples"], p["n_correct"]) for p in problems if p["n_samples"]]
    reach = {str(j): [pass_at_k(n, c, j) for n, c in counts if n >= j] for j in k}
    return {
        "greedy_accuracy": fmean(greedy) if greedy else None,
        "greedy_accuracy_ci": list(wilson_interval(sum(greedy), len(greedy))) if greedy else None,
        "sampled_accuracy": fmean(shares) if shares else None,
        "sampled_accuracy_ci": list(bootstrap_interval(np.array(shares), seed=seed)) if shares else None,
        "pass_at_k": {j: fmean(values) if values else None for j, values in reach.items()},
        "mean_length_greedy": fmean(p["greedy_length"] for p in problems),
        "mean_length_sampled": fmean(p["mean_length"] for p in problems),
    }


class _Entropies(LogitsProcessor):
    """Writes down each decode step's entropy and changes nothing; generate calls it before temperature and top_p."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.steps: list[Tensor] = []  # (B,) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(entropy_from_logits(scores, temperature=self.temperature))
        return scores


@dataclass
class _Writer:
    """Batched generation: rows sorted by a length hint, answers in the order they were asked for."""

    model: Any
    tokenizer: Any
    max_new_tokens: int
    batch_size: int
    bar: Progress

    def write(
        self, title: str, prompts: list[list[int]], hints: list[int], *, temperature: float = 0.0, top_p: float = 1.0
    ) -> list[Completion]:
        """temperature 0 is greedy."""
        found: list[Completion | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: (hints[i], i))
        task = self.bar.add_task(title, total=len(prompts))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, completion in zip(batch, self._batch([prompts[i] for i in batch], temperature, top_p), strict=True):
                found[i] = completion
            self.bar.advance(task, len(batch))
        return [c for c in found if c is not None]

    def _batch(self, prompts: list[list[int]], temperature: float, top_p: float) -> list[Completion]:
        ids_BT, mask_BT = _left_pad(prompts, self.tokenizer.pad_token_id, self.model.device)
        recorder = _Entropies(temperature) if temperature > 0 else None
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=self.max_new_tokens,
            logits_processor=LogitsProcessorList([recorder] if recorder else []),
            **(how if recorder else {"do_sample": False}),
        )
        rows = out_BT[:, ids_BT.shape[1] :].tolist()
        entropy_BT = torch.stack(recorder.steps, dim=1).float().cpu() if recorder else [None] * len(rows)
        return [self._cut(row, entropy_T) for row, entropy_T in zip(rows, entropy_BT, strict=True)]

    def _cut(self, row: list[int], entropy_T: Tensor | None) -> Completion:
        ends = _end_ids(self.model, self.tokenizer)
        length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        ids = row[:length]
        return Completion(
            ids=ids,
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            truncated=length is None,
            entropies=None if entropy_T is None else entropy_T[: len(ids)],
        )


@contextlib.contextmanager
def _as_sampler(model: Any, tokenizer: Any, seed: int) -> Iterator[None]:
    """Evaluation mode, a seeded random state of our own, and none of the model's own sampling defaults."""
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token; set tokenizer.pad_token, for instance to its eos_token")
    devices = [model.device] if model.device.type == "cuda" else []
    # A peft model copies its own generation config onto its base in `generate`.
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs, training = [owner.generation_config for owner in owners], model.training
    ends = sorted(_end_ids(model, tokenizer))
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            # Its top_k, repetition penalty and the like would be filled in where we stay silent.
            model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
            yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config
        model.train(training)


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = set(given if isinstance(given, list) else [given]) | {tokenizer.eos_token_id}
    return {i for i in ids if i is not None}


def _encode(tokenizer: Any, prompt: Any, chat_template_kwargs: Mapping[str, Any]) -> list[int]:
    """As TRL does: a string as it is, messages through the chat template with the generation prompt."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return list(
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
        )["input_ids"]
    )


def _left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT


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


def _check(*, samples: int, k: Sequence[int], temperature: float, top_p: float, max_new_tokens: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; greedy accuracy is always reported as well")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    for j in k:
        if not 1 <= j <= samples:
            raise ValueError(f"pass@{j} needs at least {j} samples a problem and k >= 1, got samples={samples}")
