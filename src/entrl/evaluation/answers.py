r"""What a policy can do on a task: greedy and sampled accuracy, unbiased pass@k, lengths, entropies by phase.

pass@k: `scores.py`. n samples of a problem, c of them right.

Each problem gives a record (`records.py`), and the numbers are made of records alone. Every number with its set:
greedy accuracy is over problems, with the Wilson interval; sampled accuracy is the mean over problems of c / n, with a
bootstrap interval over problems; lengths are in tokens, the end token included; those by phase (`length`) are means
over sampled completions, an opening tag counted as thinking, a closing one as neither; entropies are means over all
tokens of a phase of all sampled completions, in nats, of the full vocabulary at the evaluation temperature (before
top_p). The missing-close rate is the share of sampled completions whose thinking never ends, the truncation rate the
share that ran into `max_new_tokens`. With two samples a problem and more, their diversity (`entrl.maths.diversity`,
over token ids, the end token included) is a mean over problems. `examples` holds one completion of each of the first
few problems as text, the greedy one where there is one: [[phase, text], ...].

What a completion answers is found as in training (`entrl.maths.phases.answer_text`): from its token ids and its prompt,
by `think_open` and `think_close`. A score that names `answer_texts` gets it; the texts beside it are whole completions.
`counts` are means over sampled completions of what the functions named there count in a completion's text. Answers to
puzzles also have their errors and the share of the plan that was legal (`plans.py`).
A completion that could not be verified (None) counts neither as right nor as wrong: it leaves n, and is counted
in `unverified`; golds that nothing can verify are counted beforehand, in `unverifiable_golds`. A problem with fewer
than k verified samples leaves pass@k; with none it leaves sampled accuracy.

Source:  interval: Wilson 1927
Needs:   entropies come out of the sampling pass itself, no second forward pass
"""

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from entrl.evaluation import records as kept
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.memory import rows_that_fit
from entrl.evaluation.plans import judged_answers, legal_share, plan_numbers
from entrl.evaluation.records import Record
from entrl.evaluation.result import check_k, head
from entrl.evaluation.scores import summary
from entrl.evaluation.scoring import (
    DEFAULT_SCORE,
    Count,
    Score,
    checked_golds,
    counters,
    scorer,
    scores,
    tags_of,
    warn_of_silence,
)
from entrl.evaluation.writing import Answered, Asked, Completion, Sampling, Writer, encode
from entrl.maths.diversity import group_means, group_sums
from entrl.maths.phases import ThinkTags, answer_text, closing_seen, phase_labels, phase_masks
from entrl.models.load import load_policy
from entrl.settings.groups import content_hash
from entrl.tasks import load_task

TAGGED: tuple[str, ...] = ("think", "answer")  # phases that the tags tell apart
PHASES: tuple[str, ...] = (*TAGGED, "all")
EXAMPLES = 3  # problems whose completion is kept as text
DIVERSITY = ("distinct_1", "distinct_2", "edit_distance", "unique")


def evaluate(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    *,
    samples: int = 8,
    k: Sequence[int] = (1,),
    greedy: bool = True,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    batch_size: int | str = "auto",
    seed: int = 0,
    score: Score | str = DEFAULT_SCORE,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    think_open: str = "<think>",
    think_close: str = "</think>",
    progress: bool = True,
    labels: Mapping[str, Any] | None = None,
    counts: Mapping[str, str] | None = None,
    partial: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a model in memory on rows of `load_task`; `labels` (model, task, split, ...) go into the result.

    counts: name -> "module:function" or "file.py:function", which counts something in the text of a completion.

    batch_size: answers written at once, or "auto": what fits in memory. partial: a folder that keeps each problem's
    record until the evaluation is finished, so that one that was killed goes on. The caller's random state, training
    mode and generation config are as before afterwards.
    """
    sampling = Sampling(
        samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed, greedy=greedy
    )
    work = Answers(
        model=model,
        batch_size=batch_size,
        tokenizer=tokenizer,
        dataset=dataset,
        sampling=sampling,
        k=k,
        score=score,
        chat_template_kwargs=chat_template_kwargs or {},
        think_open=think_open,
        think_close=think_close,
        labels=labels or {},
        counts=counts or {},
    )
    return kept.run(work, partial=None if partial is None else Path(partial), progress=progress)


def rows_of(
    batch_size: int | str, model: Any, tokens: int, *, processes: int, ranks: int, problems: int, per_problem: int
) -> int:
    """Answers in a batch: those that are given, or what fits and leaves no rank idle.

    tokens: of the longest row; processes: that share this machine's memory; ranks: that share the problems.
    """
    if batch_size == "auto":
        return kept.even(rows_that_fit(model, tokens, processes=processes), per_problem, problems, ranks)
    if isinstance(batch_size, str) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or 'auto', got {batch_size!r}")
    return batch_size


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


@dataclass(kw_only=True)
class Answers:
    """The `Work` of an evaluation on a task: questions out, records of what was written and how it was judged in."""

    tokenizer: Any
    dataset: Any
    sampling: Sampling
    k: Sequence[int] = (1,)
    score: Score | str = DEFAULT_SCORE
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    think_open: str = "<think>"
    think_close: str = "</think>"
    labels: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, str] = field(default_factory=dict)  # name -> "module:function" of a sample's text
    base: Path | None = None  # where files of `counts` are looked for first
    model: Any = None  # in memory, for transformers
    batch_size: int | str = "auto"  # of transformers
    writer: Writer | None = None  # another engine's
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        check_k(self.k, self.sampling.samples)
        if (self.model is None) == (self.writer is None):
            raise TypeError("an evaluation needs either a model in memory or a writer")
        self.check: Score = scorer(self.score)
        self.counters: dict[str, Count] = counters(self.counts, base=self.base)
        self.tags: ThinkTags | None = tags_of(self.tokenizer, self.think_open, self.think_close)
        self.golds = checked_golds(self.check, self.dataset)
        extra = self.chat_template_kwargs
        self.prompts = [encode(self.tokenizer, prompt, extra) for prompt in self.dataset["prompt"]]

    def fitting(self, processes: int, ranks: int = 1) -> int | None:
        if self.writer is not None:
            return None
        longest = max(map(len, self.prompts)) + self.sampling.max_new_tokens
        shared = {"processes": processes, "ranks": ranks, "problems": len(self.prompts)}
        return rows_of(self.batch_size, self.model, longest, per_problem=self.sampling.rows, **shared)

    def ready(self, batch: int | None) -> None:
        if batch is not None:
            how = {"model": self.model, "tokenizer": self.tokenizer, "sampling": self.sampling}
            self.writer = TransformersWriter(**how, rows=batch, say=self.say)

    @property
    def order(self) -> list[int]:
        """Longest prompts first: what does not fit in memory shows at once, and prompts of a batch are alike."""
        return sorted(range(len(self.prompts)), key=lambda i: (-len(self.prompts[i]), i))

    @property
    def unit(self) -> int | None:
        assert self.writer is not None
        return self.writer.unit

    @property
    def settings(self) -> dict[str, Any]:
        columns = [name for name in ("answer", "verifier") if name in self.dataset.column_names]
        asked = [self.prompts, *(self.dataset[name] for name in columns)]
        return {
            **self._head(),
            "k": list(self.k),
            "greedy": self.sampling.greedy,
            "score": self.score if isinstance(self.score, str) else repr(self.score),
            **({"counts": dict(self.counts)} if self.counts else {}),
            "problems": content_hash([list(values) for values in asked]),
            "batch_size": self.batch_size,
        }

    def _head(self) -> dict[str, Any]:
        asked = {
            "think_open": self.think_open,
            "think_close": self.think_close,
            "chat_template_kwargs": dict(self.chat_template_kwargs),
        }
        return {**head(self.sampling, problems=len(self.prompts), **asked), **self.labels}

    def records(self, indices: Sequence[int]) -> Generator[tuple[int, Record]]:
        assert self.writer is not None
        asked = [Asked(index=i, prompt_ids=self.prompts[i]) for i in indices]
        for answered in self.writer.write(asked):
            yield answered.index, self.record(answered)

    def record(self, answered: Answered) -> Record:
        """Counts and sums of one problem, of which every number is made."""
        row, prompt = self.dataset[answered.index], self.prompts[answered.index]
        greedy, drawn = answered.greedy, answered.drawn
        said = [*([] if greedy is None else [greedy]), *drawn]
        answers = [answer_text(c.ids, self.tags, self.tokenizer, prompt_ids=prompt) for c in said]
        one = self.dataset.select([answered.index])
        found = scores(self.check, [c.text for c in said], answers, one, times=len(said))
        right = None if greedy is None else found[0]
        verified = [s for s in found[len(said) - len(drawn) :] if s is not None]
        seen = signals(prompt, drawn, self.tags)
        judged = judged_answers(row, answers[len(said) - len(drawn) :])
        problem = {
            "id": row.get("problem_id", str(answered.index)),
            "prompt": row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"],
            "answer": row["answer"],
            "level": row.get("level", ""),
            "greedy_correct": None if right is None else bool(right),
            "n_correct": int(sum(verified)),
            "n_samples": len(verified),
            "greedy_length": None if greedy is None else len(greedy.ids),
            "mean_length": fmean(len(c.ids) for c in drawn),
            **{f"mean_{phase}_length": n if n is None else n / len(drawn) for phase, n in seen["length"].items()},
            **({} if judged is None else {"legal_share": legal_share(judged)}),
        }
        return {
            "problem": problem,
            "right": sum(s == 1 for s in found),
            "unverified": sum(s is None for s in found),
            "counts": {name: sum(count(c.text) for c in drawn) for name, count in self.counters.items()},
            "judged": judged,
            "truncated": sum(c.truncated for c in drawn),
            "greedy_truncated": None if greedy is None else greedy.truncated,
            "diversity": group_sums([c.ids for c in drawn], [answered.index] * len(drawn)),
            "example": self._example(problem, prompt, said[0], found[0]) if answered.index < EXAMPLES else None,
            **seen,
        }

    def _example(self, problem: Record, prompt: Sequence[int], said: Completion, score: float | None) -> Record:
        """A completion for a person to read, without special tokens; the phase is "" where nothing tells phases."""
        labels = [""] * len(said.ids) if self.tags is None else phase_labels(said.ids, self.tags, prompt_ids=prompt)
        parts = groupby(zip(labels, said.ids, strict=True), key=itemgetter(0))
        spans = [(phase, [token for _, token in same]) for phase, same in parts]
        text = [[phase, self.tokenizer.decode(ids, skip_special_tokens=True)] for phase, ids in spans]
        asked = {key: problem[key] for key in ("id", "prompt", "answer")}
        return {**asked, "right": None if score is None else score == 1, "tokens": len(said.ids), "text": text}

    def result(self, records: Sequence[Record], seconds: float) -> dict[str, Any]:
        drawn = len(records) * self.sampling.samples
        scored = len(records) * self.sampling.rows
        closed = None if self.tags is None else sum(r["closing_seen"] for r in records)
        warn_of_silence(drawn, closed, scored, sum(r["right"] for r in records), self.think_close)
        problems = [{**r["problem"], **_by_phase(r)} for r in records]
        greedy = [r["greedy_truncated"] for r in records]
        return {
            **self._head(),
            **summary(problems, k=self.k, seed=self.sampling.seed),
            "length": _lengths(problems),
            "entropy": _entropies(records),
            **({"counts": self._counted(records)} if self.counts else {}),
            **plan_numbers([r["judged"] for r in records], [p["level"] for p in problems]),
            "missing_close_rate": None if self.tags is None else sum(r["open"] for r in records) / drawn,
            **({"diversity": _diversity(records)} if self.sampling.samples > 1 else {}),
            "truncation_rate": sum(r["truncated"] for r in records) / drawn,
            "greedy_truncation_rate": fmean(greedy) if self.sampling.greedy else None,
            "unverified": sum(r["unverified"] for r in records),
            "unverifiable_golds": None if self.golds is None else len(self.golds.bad),
            "seconds": seconds,
            "examples": [r["example"] for r in records if r["example"] is not None],
            "problems": problems,
        }

    def _counted(self, records: Sequence[Record]) -> dict[str, float]:
        """Of a sampled completion, mean."""
        drawn = len(records) * self.sampling.samples
        return {name: math.fsum(r["counts"][name] for r in records) / drawn for name in self.counts}


def signals(prompt: Sequence[int], drawn: Sequence[Completion], tags: ThinkTags | None) -> Record:
    """Of one problem's samples: by phase the sum of entropies (nats), the number of tokens that have one, and of all
    (`length`); samples whose thinking never ends (`open`) and that hold a closing tag (`closing_seen`). None without
    tags."""
    masks = None if tags is None else [phase_masks(c.ids, tags, prompt_ids=prompt) for c in drawn]
    sums, tokens = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0)
    for at, completion in enumerate(drawn):
        if completion.entropies is None:
            continue
        entropy_T = completion.entropies.double()
        parts = {"all": entropy_T}
        if masks is not None:
            parts |= {name: entropy_T[getattr(masks[at], name)] for name in TAGGED}
        for name, part_T in parts.items():
            sums[name] += part_T.sum().item()
            tokens[name] += len(part_T)
    if tags is None or masks is None:
        length = dict.fromkeys(TAGGED)
        return {"entropy": sums, "tokens": tokens, "length": length, "open": None, "closing_seen": None}
    seen = sum(closing_seen(c.ids, tags, prompt_ids=prompt) for c in drawn)
    length = {name: sum(int(getattr(m, name).sum()) for m in masks) for name in TAGGED}
    ends = {"open": sum(not m.closed for m in masks), "closing_seen": seen}
    return {"entropy": sums, "tokens": tokens, "length": length, **ends}


def _lengths(problems: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Tokens of a phase, mean over samples; None without tags."""
    by_phase = {phase: [p[f"mean_{phase}_length"] for p in problems] for phase in TAGGED}
    return {phase: None if None in values else fmean(values) for phase, values in by_phase.items()}


def _entropies(records: Sequence[Record]) -> dict[str, float | None]:
    """Means over all tokens of a phase; None where there are none, or nobody knows."""
    found: dict[str, float | None] = {}
    for name in PHASES:
        tokens = sum(r["tokens"][name] for r in records)
        found[name] = math.fsum(r["entropy"][name] for r in records) / tokens if tokens else None
    return found


def _by_phase(record: Record) -> dict[str, float | None]:
    """Of one problem: the mean entropy of a token of thinking, and of the answer (nats)."""
    tokens, sums = record["tokens"], record["entropy"]
    return {f"{name}_entropy": sums[name] / tokens[name] if tokens[name] else None for name in TAGGED}


def _diversity(records: Sequence[Record]) -> dict[str, float | None]:
    """How much a problem's samples differ, mean over problems; None where no completion is long enough."""
    names = records[0]["diversity"]
    means = group_means({name: math.fsum(r["diversity"][name] for r in records) for name in names})
    values = {name: means[f"diversity/{name}"] for name in DIVERSITY}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
