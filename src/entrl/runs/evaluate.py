"""Evaluations of a run and of `entrl eval`: every rank answers its share of the problems, on a whole copy of the model.

Nothing collective spans the work. Ranks wait for each other by asking the process group's store, so no timeout of the
group ends an evaluation however long it is; records are gathered once all have arrived. Under ZeRO-3 the copy is loaded
outside of DeepSpeed, as one process alone would, and it is freed before training begins.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from entrl.evaluation.answers import Answers
from entrl.evaluation.dialogues import Dialogues
from entrl.evaluation.records import Done, Partial, Work, clear_records, idle_ranks, refuse_foreign_records, work_off
from entrl.evaluation.result import of_tasks
from entrl.evaluation.writing import Sampling
from entrl.models.load import tokenizer_of
from entrl.models.whole import whole_models
from entrl.runs.folder import write_json
from entrl.runs.specs import DIALOGUES_BY, EvalSpec, load_rows
from entrl.runs.together import (
    OtherRankFailed,
    alone_on_main,
    failed_elsewhere,
    hush,
    main_first,
    rank_prefix,
    together,
)
from entrl.runs.under_way import Run

Policy = tuple[Any, Any]  # model and tokenizer
WEIGHTS = ("*.safetensors", "*.bin", "adapter_config.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated. path: where an engine reads it; load: the model in memory; tokenizer: the same without it;
    run_dir: of the run it belongs to, beside which the key of the run's servers lies."""

    path: str
    load: Callable[[], Policy]
    tokenizer: Callable[[], Any]
    dtype: str = "auto"
    run_dir: Path | None = None

    def engine(self, sampling: Sampling, tokenizer: Any, spec: EvalSpec, say: Callable[[str], None]) -> Any:
        from entrl.evaluation.engine import open_engine  # brings vLLM's client

        how = {"servers": spec.servers, "dtype": self.dtype, "say": say, "api_key": self._api_key()}
        return open_engine(self.path, sampling=sampling, tokenizer=tokenizer, **how)

    def _api_key(self) -> str | None:
        from entrl.runs.serve import find_api_key

        folder = Path(self.path).expanduser()
        places = [self.run_dir] if self.run_dir else [folder, *folder.parents[:2]]
        return next((key for place in places if (key := find_api_key(place))), None)

    @property
    def state(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of its files: records of other weights in the same place are not mixed with these."""
        folder = Path(self.path).expanduser()
        files = sorted({f for pattern in WEIGHTS for f in folder.glob(pattern)}) if folder.is_dir() else []
        return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How it is asked, beside what its `EvalSpec` says. length: tokens of an answer, or of a whole dialogue."""

    length: int
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)  # think_open, think_close
    base: Path | None = None  # the recipe's folder
    environment: Callable[[], Any] | None = None
    max_tool_calling_iterations: int | None = None

    def sampling(self, spec: EvalSpec) -> Sampling:
        return Sampling(
            samples=spec.samples,
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens or self.length,
            seed=spec.seed,
            greedy=spec.greedy,
        )


def evaluate_subject(
    spec: EvalSpec,
    subject: Subject,
    asking: Asking,
    *,
    rows: Callable[[EvalSpec], Any],
    partial: Path | None = None,
    say: Callable[[str], None] = print,
    labels: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The evaluation, the same on every rank; of several tasks, a result for each.

    rows: loads the problems of one task. partial: a folder for what is finished; it stays, for the caller to remove.
    """
    if asking.environment is not None and spec.engine != "transformers":
        raise ValueError(DIALOGUES_BY)
    if partial is not None:
        alone_on_main(lambda: refuse_foreign_records(partial), "evaluation's place")
    parts, results = spec.parts, {}
    labels = {"model": subject.path, **(labels or {})}
    with whole_models(), contextlib.ExitStack() as until_done:
        with main_first("evaluation rows"):
            problems = {name: rows(part) for name, part in parts.items()}
        if spec.engine == "transformers":
            model, tokenizer = together(subject.load, "evaluation model")
            held: dict[str, Any] = {"model": model.to(PartialState().device), "batch_size": spec.batch_size}
        else:
            tokenizer, held = subject.tokenizer(), {}
            first = asking.sampling(next(iter(parts.values())))
            free()  # of what trained before
            opened = lambda: until_done.enter_context(subject.engine(first, tokenizer, spec, say))  # noqa: E731
            writer = together(opened, "evaluation engine")
        for number, (name, part) in enumerate(parts.items()):
            if spec.engine != "transformers":
                held["writer"] = writer.as_asked(asking.sampling(part))
            own = {**labels, "task": part.task, "split": part.split, "engine": spec.engine}
            work = _work(part, asking, {**held, "tokenizer": tokenizer, "labels": own}, problems[name], say)
            kept = partial if partial is None or not spec.tasks else partial / str(number)
            results[name] = everywhere(work, kept, state=subject.state, say=say)
    return results[spec.task] if not spec.tasks else of_tasks(results, labels)


def _work(spec: EvalSpec, asking: Asking, held: dict[str, Any], rows: Any, say: Callable[[str], None]) -> Work:
    common = {
        **held,
        "sampling": asking.sampling(spec),
        "k": spec.k,
        "chat_template_kwargs": asking.chat_template_kwargs,
    }
    if asking.environment is None:
        return Answers(dataset=rows, say=say, counts=spec.counts, base=asking.base, **asking.tags, **common)
    limit = asking.max_tool_calling_iterations
    return Dialogues(rows=list(rows), factory=asking.environment, max_tool_calling_iterations=limit, **common)


def everywhere(
    work: Work, folder: Path | None, *, state: Any = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Work an evaluation off on all ranks; the result is every rank's. state: of what is evaluated, for `folder`."""
    ranks = PartialState()
    settings = {**work.settings, "state": state}
    partial = None if folder is None else Partial(folder=folder, settings=settings)
    mine = work.fitting(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), ranks.num_processes)
    fitting = min(gather_object([mine]), key=lambda n: n or 0)

    def prepare() -> int | None:
        if partial is None:
            return fitting
        partial.prepare(say)
        return partial.batch(lambda: fitting)

    work.ready(alone_on_main(prepare, "evaluation begins"))
    if ranks.is_main_process and (words := idle_ranks(work, ranks.num_processes)):
        say(words)
    how = {"rank": ranks.process_index, "ranks": ranks.num_processes, "progress": ranks.is_main_process}
    done = together(lambda: work_off(work, partial=partial, between=_end_with_others, **how), "evaluation")
    total = Done()
    for other in gather_object([done]):
        total.add(other)
    return alone_on_main(lambda: work.result(total.in_order(len(work.order)), total.seconds), "evaluation ends")


def _end_with_others() -> None:
    if words := failed_elsewhere():
        raise hush(OtherRankFailed(words))


def written(result: dict[str, Any], file: Path, partial: Path | None) -> None:
    """Write an evaluation, on rank 0; `partial`, its records, goes then."""

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
        if partial is not None:
            clear_records(partial)

    alone_on_main(write, "evaluation written")


def free() -> None:
    """Give back the memory of what nobody holds any more."""
    gc.unfreeze()  # an engine in this process has hidden what was there from the collector
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- of a run ------------------------------------------------------------------------------------------------------


def evaluate_into(run: Run, load: Callable[[], Policy], when: str, *, keep: bool) -> None:
    """Evaluate what `load` gives and write eval_<when>.json, from where an earlier start got. `keep`: of this model
    there may be an evaluation, or part of one, already."""
    spec = run.recipe.eval
    if spec is None or (when == "before" and not spec.before):
        return
    file = run.folder.path / f"eval_{when}.json"
    partial = file.with_suffix(".partial")

    def is_there() -> bool:
        if not keep:
            clear_records(partial)
        return keep and file.is_file()

    if alone_on_main(is_there, "evaluation there"):
        return
    run.say(f"evaluating {when} training ...")
    free()  # of what a trainer held, its optimiser and engine
    written(evaluate_run(run, load, when, partial), file, partial)
    free()


def evaluate_run(run: Run, load: Callable[[], Policy], when: str, partial: Path) -> dict[str, Any]:
    """The recipe's `eval` group: problems answered in one go, or dialogues with its environment."""
    spec, args, model = run.recipe.eval, run.prepared.args, run.recipe.model
    assert spec is not None
    path = model.path if when == "before" else str(run.folder.model)
    how = {"dtype": model.dtype, "run_dir": run.folder.path}
    subject = Subject(path=path, load=load, tokenizer=lambda: tokenizer_of(model), **how)
    asking = Asking(
        length=args.max_completion_length,
        chat_template_kwargs=args.chat_template_kwargs or {},
        tags={"think_open": args.think_open, "think_close": args.think_close},
        base=run.recipe.base,
        environment=run.prepared.environment,
        max_tool_calling_iterations=args.max_tool_calling_iterations,
    )

    def say(text: str) -> None:
        if PartialState().is_main_process:
            run.say(text)
        else:
            print(f"{rank_prefix()}{text}", file=sys.stderr)

    def rows(part: EvalSpec) -> Any:
        return load_rows(part.task, part, size=part.size, base=run.recipe.base)

    return evaluate_subject(spec, subject, asking, rows=rows, partial=partial, say=say)
