"""One training run: the order in which things are built, evaluated and written.

Rank 0 alone writes and prints. Decisions that look at the disk are taken on rank 0 and broadcast, so that every
rank starts, or stops with the same error.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, set_seed

from entrl.engines.faults import RolloutError
from entrl.errors import CannotWrite
from entrl.evaluation.answers import evaluate
from entrl.evaluation.dialogues import evaluate_dialogues
from entrl.models.load import load_model, load_policy, new_adapter
from entrl.report import write_report
from entrl.report.summary import before_after
from entrl.runs.best import BestCheckpoint, best_of
from entrl.runs.card import draft_card, finish_run_card
from entrl.runs.contents import contents, refuse_changed
from entrl.runs.ending import Ending
from entrl.runs.folder import RunFolder, make_manifest, now, read_json, write_json, write_text
from entrl.runs.law_watch import DenseEvaluation, LawWatch, evaluation_steps, interventions
from entrl.runs.lock import FolderLock
from entrl.runs.log import ProgressLine, RunLog, be_quiet, listen_first
from entrl.runs.plan import Prepared, check_rows, missing_engine, prepare
from entrl.runs.recipe import Recipe
from entrl.runs.serve import find_api_key
from entrl.runs.together import hush, lost_ranks, main_first, together
from entrl.runs.wording import escape_completion_tables, say
from entrl.runs.writing import in_words
from entrl.settings.groups import flat
from entrl.settings.secrets import hand_over_hub_token, mask_text
from entrl.stats.pairing import paired_difference
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.refusals.schedule import describe_schedule
from entrl.trainers.shared.checkpoint import complete
from entrl.trainers.shared.completeness import read_marker, unmark

USER_ERRORS = (ValueError, TypeError, OSError, RolloutError)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a finished run lies and what its evaluations say (None without an `eval` group)."""

    run_dir: Path
    model_dir: Path
    report: Path | None
    eval_before: dict[str, Any] | None
    eval_after: dict[str, Any] | None


def on_main(action: Callable[[], T]) -> T:
    """Run on rank 0, hand the result to every rank; an error of rank 0 is raised on every rank, and said by rank 0."""
    state = PartialState()
    outcome: list[Any] = [None, None, None]
    own: Exception | None = None
    if state.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:  # raised again below, once the other ranks know
            own, outcome[1:] = error, [type(error).__name__, str(error)]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if own is not None:
        raise own
    if outcome[1] is not None:
        known = {e.__name__: e for e in (FileNotFoundError, TypeError, ConnectionError, CannotWrite, RuntimeError)}
        raise hush(known.get(outcome[1], ValueError)(outcome[2]))
    return outcome[0]


@dataclass(kw_only=True)
class Run:
    """A run under way: what was asked for, where it is written, who listens."""

    recipe: Recipe
    prepared: Prepared
    folder: RunFolder
    console: Console
    ending: Ending
    dataset: Any
    start: Path | None = None  # the checkpoint it goes on from, or its own trained model
    manifest: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def evaluation_rows(self) -> Any:
        """Of the `eval` group; read once."""
        return self.recipe.load_eval_data()

    @property
    def is_trained(self) -> bool:
        """Whether the files of a whole model were there at the start: evaluation and report are left."""
        return self.start == self.folder.model

    def say(self, text: str) -> None:
        say(self.console, text)

    def note(self, **changes: Any) -> None:
        """Write the manifest anew, with changes."""
        self.manifest.update(changes)
        if PartialState().is_main_process:
            write_json(self.folder.path / "manifest.json", self.manifest)


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Run a recipe to its end; see the module docstring for what it leaves behind."""
    be_quiet()
    escape_completion_tables()
    prepared = prepare(recipe)  # joins the process group, if there is one
    together(lambda: refuse_problems(prepared))
    console = console or Console(quiet=not PartialState().is_main_process, soft_wrap=True)
    dataset = together(lambda: load_checked_data(recipe, prepared, console))
    folder, files = RunFolder(path=recipe.run_dir), contents(flat(recipe.resolved()), recipe.base)
    run = Run(recipe=recipe, prepared=prepared, folder=folder, console=console, ending=Ending(), dataset=dataset)
    lock = FolderLock(folder.path)

    def begin() -> tuple[Path | None, bool]:
        with in_words(folder.path):
            folder.refuse_foreign()
            lock.take(run.say)
            if resume:
                refuse_changed((folder.manifest() or {}).get("contents"), files, folder.path)
            if resume and folder.is_finished(recipe):
                return None, True
            return folder.open(recipe, resume=resume, overwrite=overwrite, say=run.say), False

    try:
        run.start, finished = on_main(begin)
        if finished:
            run.say(f"{folder.path} is finished with these settings: nothing is left to do")
            return read_result(folder, folder.path / "report.html")
        run.manifest = make_manifest(recipe, prepared.args, run.start) | {"contents": files}
        if run.is_trained:
            run.manifest |= {k: v for k, v in (folder.manifest() or {}).items() if k == "best"}
        with run.ending.listening():
            return _noted(run)
    finally:
        lock.release()


def _noted(run: Run) -> RunResult:
    """The run, with its manifest kept up to date however it ends."""
    try:
        with in_words(run.folder.path):
            run.note()  # first of all files: a folder without it would be taken for somebody else's
            if PartialState().is_main_process:
                write_text(run.folder.path / "recipe.yaml", run.recipe.to_yaml())
                describe_start(run)
            return _train_in(run)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        lost = "lost the other ranks, one of which failed: " if lost_ranks(error) else ""
        with contextlib.suppress(OSError):  # a disk that takes nothing is what the error says
            run.note(status=status, finished=now(), error=mask_text(f"{lost}{type(error).__name__}: {error}"))
        raise


def _train_in(run: Run) -> RunResult:
    folder = run.folder
    untrained = lambda: load_model(run.recipe.model, run.prepared.lora)  # noqa: E731
    evaluate_into(run, untrained, "before", keep=run.start is not None)
    if not run.is_trained:
        train_model(run)
    try:
        evaluate_into(run, lambda: load_trained(folder, run.recipe), "after", keep=run.is_trained)
    except USER_ERRORS as error:
        raise ValueError(
            f"training is over and its model is in {folder.model}, but the evaluation after it failed: {error}; once "
            "that is mended, resume=true evaluates and writes the report, and trains nothing again"
        ) from error
    run.note(status="finished", finished=now(), steps=read_marker(folder.model).step)
    on_main(lambda: finish_run_card(folder.path))
    report = on_main(lambda: write_report([folder.path], folder.path / "report.html"))
    result = read_result(folder, report)
    describe_end(run.console, result)
    return result


def read_result(folder: RunFolder, report: Path | None) -> RunResult:
    """What lies in a finished run's folder."""
    before, after = (read_json(folder.path / f"eval_{when}.json") for when in ("before", "after"))
    return RunResult(run_dir=folder.path, model_dir=folder.model, report=report, eval_before=before, eval_after=after)


def refuse_problems(prepared: Prepared) -> None:
    prepared.raise_first()
    if problem := missing_engine(prepared.args):
        raise ValueError(problem)


def train_model(run: Run) -> None:
    """Train, or go on from a checkpoint, and leave the whole model in the folder."""
    if run.start is not None:
        run.prepared.args.eval_on_start = False  # it has been done
    trainer, progress = build_trainer(run)
    try:
        trainer.train(resume_from_checkpoint=None if run.start is None else str(run.start))
    finally:
        progress.stop()
    if run.ending.saved is not None:
        run.ending.raise_if_asked()
    check_trained(trainer.state.global_step, trainer.state.max_steps)
    if (best := best_of(trainer.args, trainer.state, say=run.say)) is not None:
        run.note(best=best)
    model = run.folder.model
    on_main(lambda: unmark(model))
    trainer.save_model(str(model))
    if trainer.accelerator.is_main_process:
        trainer.processing_class.save_pretrained(model)
        draft_card(trainer, model, name=run.recipe.name)
        finish_run_card(run.folder.path)
    complete(model, trainer.accelerator, step=trainer.state.global_step)
    run.ending.saved_model()


def load_checked_data(recipe: Recipe, prepared: Prepared, console: Console) -> Any:
    """The training set; rank 0 first, so that a download happens once. What the rows lack is said before training."""
    with main_first():
        dataset = recipe.load_data()
    found = check_rows(recipe, prepared, dataset)
    if found.problems:
        raise ValueError(found.problems[0])
    for warning in found.warnings:
        say(console, f"warning: {warning}")
    return dataset


def check_trained(step: int, planned: int) -> None:
    """Refuse to call a run finished that stopped before its last step; transformers returns quietly."""
    if step < planned:
        raise ValueError(
            f"training ended at step {step} of {planned}, so the run is not finished; were there prompts enough for "
            "each step?"
        )


def load_trained(folder: RunFolder, recipe: Recipe) -> tuple[Any, Any]:
    """What the run saved, an adapter on its base: the evaluation is of the files, not of the memory."""
    return load_policy(str(folder.model), dtype=recipe.model.dtype, device="cpu")


def build_trainer(run: Run) -> tuple[Any, ProgressLine]:
    """The trainer with our logging in place of TRL's."""
    recipe, prepared, folder = run.recipe, run.prepared, run.folder
    if prepared.args.vllm_replicas:
        variable = prepared.args.vllm_api_key_env
        if key := find_api_key(recipe.run_dir, variable):  # what `entrl serve` made for this recipe, where none is set
            os.environ[variable] = key
    hand_over_hub_token(prepared.args)
    set_seed(prepared.args.seed)  # before the adapter draws its first weights
    model, tokenizer = together(lambda: load_model(recipe.model, prepared.lora))
    log, progress = RunLog(folder.path), ProgressLine(run.console)
    watch = LawWatch(
        active=interventions(prepared.args, prepared.controller_objects, prepared.reward_funcs),
        history=folder.path / "metrics.jsonl",
        say=lambda text: run.say(f"warning: {text}"),
    )
    dense = evaluation_steps(None if recipe.eval is None else recipe.eval.at, prepared.args.max_steps)
    trainer = EntropyGRPOTrainer(
        model,
        prepared.reward_funcs,
        prepared.args,
        run.dataset,
        run.evaluation_rows if prepared.args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=new_adapter(model, prepared.lora),
        controllers=prepared.controller_objects,
        environment_factory=prepared.environment,
        # the watch writes into what the log then saves
        callbacks=[watch, DenseEvaluation(dense), BestCheckpoint(), log, progress, run.ending],
    )
    if dense and recipe.eval is not None:
        trainer.evaluation_seed = recipe.eval.seed
    listen_first(trainer, watch)
    log.trainer = trainer
    trainer.checkpoint_files.append(log.into_checkpoint)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer, progress


def evaluate_into(run: Run, load: Callable[[], tuple[Any, Any]], when: str, *, keep: bool) -> None:
    """Evaluate what `load` gives on rank 0 and write eval_<when>.json; the other ranks wait. `keep`: once is enough."""
    spec = run.recipe.eval
    if spec is None or (when == "before" and not spec.before):
        return
    file = run.folder.path / f"eval_{when}.json"

    def evaluated() -> None:
        if keep and file.is_file():
            return
        run.say(f"evaluating {when} training ...")
        model, tokenizer = load()
        name = run.recipe.model.path if when == "before" else str(run.folder.model)
        write_json(file, evaluate_spec(run, model, tokenizer, name=name))

    on_main(evaluated)


def evaluate_spec(run: Run, model: Any, tokenizer: Any, *, name: str) -> dict[str, Any]:
    """The recipe's `eval` group: problems answered in one go, or dialogues with its environment."""
    spec, args = run.recipe.eval, run.prepared.args
    assert spec is not None
    common: dict[str, Any] = {
        "samples": spec.samples,
        "k": spec.k,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "batch_size": spec.batch_size,
        "seed": spec.seed,
        "chat_template_kwargs": args.chat_template_kwargs,
        "labels": {"model": name, "task": spec.task, "split": spec.split},
    }
    length = spec.max_new_tokens or args.max_completion_length
    model, rows = model.to(PartialState().device), run.evaluation_rows
    if run.prepared.environment is not None:
        limits = {"max_completion_length": length, "max_tool_calling_iterations": args.max_tool_calling_iterations}
        return evaluate_dialogues(model, tokenizer, rows, run.prepared.environment, **common, **limits)
    tags = {"think_open": args.think_open, "think_close": args.think_close}
    return evaluate(model, tokenizer, rows, max_new_tokens=length, **common, **tags)


def describe_start(run: Run) -> None:
    run.say(run.recipe.to_yaml())
    for loaded in (*run.prepared.rewards, *run.prepared.controllers):
        run.say(f"using {loaded.source} from {loaded.file}")
    for note in run.prepared.notes:
        run.say(note)
    s = describe_schedule(run.prepared.args, run.prepared.args.world_size)
    parts = f"{s.per_device_rows} rows x {s.gradient_accumulation_steps} micro-steps x {s.world_size} process(es)"
    run.say(f"optimiser step: {parts} = {s.rows_per_step} rows")  # whoever starts more processes should see it
    where = "from the start" if run.start is None else f"from {run.start.name}"
    run.say(f"run folder {run.recipe.run_dir}, {where}")


def describe_end(console: Console, result: RunResult) -> None:
    if result.eval_before and result.eval_after:
        console.print(before_after_table(result))
        say(console, gain_line(result.eval_before, result.eval_after))
    say(console, f"model  {result.model_dir}")
    say(console, f"report {result.report}")


def before_after_table(result: RunResult) -> Table:
    """The report's before/after table; intervals of the changes alone, so that it fits a terminal."""
    table = Table("", "before", "after", "change", title="evaluation on problems not trained on")
    for label, (cell,) in before_after([result]):
        table.add_row(label, *(text.partition(" [")[0] for text in (cell.before, cell.after)), Text(cell.change))
    return table


def gain_line(before: dict[str, Any], after: dict[str, Any]) -> str:
    judged = [{p["id"] for p in e["problems"] if p["greedy_correct"] is not None} for e in (before, after)]
    if not set.intersection(*judged):
        return "greedy accuracy: no problem was judged both before and after training, so there is no gain to tell"
    found = paired_difference(before, after, metric="greedy_correct")
    diff, low, high = found[0], found[1], found[2]
    verdict = "excludes 0" if low > 0 or high < 0 else "includes 0"
    return f"greedy accuracy {diff:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] over the same problems, {verdict}"
