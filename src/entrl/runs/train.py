"""One training run: the order in which things are built, evaluated and written.

Rank 0 alone writes and prints. Decisions that look at the disk are taken on rank 0 and broadcast, so that every
rank starts, or stops with the same error.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, set_seed

from entrl.engines.faults import RolloutError
from entrl.errors import said
from entrl.models.load import load_model, load_policy, new_adapter
from entrl.models.quantization import keep_adapter_in_float32
from entrl.report import write_report
from entrl.report.read import read_run
from entrl.report.summary import before_after
from entrl.report.verdict import verdict_of
from entrl.runs.best import BestCheckpoint, best_of
from entrl.runs.card import draft_card, finish_run_card
from entrl.runs.contents import contents, refuse_changed
from entrl.runs.doctor import consult
from entrl.runs.ending import Ending, launcher_patience
from entrl.runs.evaluate import evaluate_into
from entrl.runs.folder import RunFolder, make_manifest, now, read_json, write_text
from entrl.runs.law_watch import DenseEvaluation, LawWatch, evaluation_steps, interventions
from entrl.runs.lock import FolderLock
from entrl.runs.log import ProgressLine, RunLog, be_quiet, listen_first
from entrl.runs.plan import Prepared, check_rows, missing_here, prepare, recipe_warnings
from entrl.runs.recipe import Recipe
from entrl.runs.sandboxed import UNSAFE, sandbox_note
from entrl.runs.serve import find_api_key
from entrl.runs.together import alone_on_main, failed_elsewhere, lost_ranks, main_first, refuse_left_over, together
from entrl.runs.under_way import Run
from entrl.runs.watchdog import Watchdog
from entrl.runs.wording import escape_completion_tables, say
from entrl.runs.writing import in_words
from entrl.settings.groups import flat
from entrl.settings.secrets import hand_over_hub_token, mask_text
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.grpo.vllm import end_engine
from entrl.trainers.refusals.schedule import describe_schedule
from entrl.trainers.shared.checkpoint import complete
from entrl.trainers.shared.completeness import read_marker, unmark

USER_ERRORS = (ValueError, TypeError, OSError, RolloutError)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a finished run lies and what its evaluations say (None without an `eval` group)."""

    run_dir: Path
    model_dir: Path
    report: Path | None
    eval_before: dict[str, Any] | None
    eval_after: dict[str, Any] | None


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Run a recipe to its end; see the module docstring for what it leaves behind."""
    refuse_left_over(os.environ)
    be_quiet()
    escape_completion_tables()
    prepared = prepare(recipe)  # joins the process group, if there is one
    together(lambda: refuse_problems(recipe, prepared))
    console = console or Console(quiet=not PartialState().is_main_process, soft_wrap=True)
    dataset, code = together(lambda: load_checked_data(recipe, prepared, console))
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
            ranks = PartialState().num_processes
            return folder.open(recipe, resume=resume, overwrite=overwrite, ranks=ranks, say=run.say), False

    try:
        run.start, finished = alone_on_main(begin)
        if finished:
            run.say(f"{folder.path} is finished with these settings: nothing is left to do")
            return read_result(folder, folder.path / "report.html")
        run.manifest = make_manifest(recipe, prepared.args, run.start) | {"contents": files}
        run.manifest |= code
        if run.is_trained:
            run.manifest |= {k: v for k, v in (folder.manifest() or {}).items() if k in ("best", "warnings")}
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
            if run.recipe.doctor != "off" and run.start is None:
                alone_on_main(lambda: consult(run.recipe, run.say), "doctor")
            with run.keeping_warnings():
                return _train_in(run)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        lost = "lost the other ranks, one of which failed: " if lost_ranks(error) else ""
        words = f"{lost}{type(error).__name__}: {said(error)}"
        with contextlib.suppress(RuntimeError):  # of a store that is gone
            if status == "interrupted" and (elsewhere := failed_elsewhere()):  # so the launcher ended this rank
                status, words = "failed", elsewhere
        with contextlib.suppress(OSError):  # a disk that takes nothing is what the error says
            run.note(status=status, finished=now(), error=mask_text(words))
        raise


def _train_in(run: Run) -> RunResult:
    folder = run.folder
    untrained = lambda: load_model(run.recipe.model, run.prepared.lora)  # noqa: E731
    evaluate_into(run, untrained, "before", keep=True)  # a run that starts has no file, one that goes on may
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
    alone_on_main(lambda: finish_run_card(folder.path))
    report = alone_on_main(lambda: write_report([folder.path], folder.path / "report.html"))
    result = read_result(folder, report)
    describe_end(run.console, result)
    return result


def read_result(folder: RunFolder, report: Path | None) -> RunResult:
    """What lies in a finished run's folder."""
    before, after = (read_json(folder.path / f"eval_{when}.json") for when in ("before", "after"))
    return RunResult(run_dir=folder.path, model_dir=folder.model, report=report, eval_before=before, eval_after=after)


def refuse_problems(recipe: Recipe, prepared: Prepared) -> None:
    prepared.raise_first()
    if missing := missing_here(recipe, prepared.args):
        raise ValueError(missing[0])
    sandbox_note(prepared.reward_funcs)  # SandboxError where code would have to run and nothing is safe


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
    alone_on_main(lambda: unmark(model))

    def save() -> None:
        trainer.save_model(str(model))
        if trainer.accelerator.is_main_process:
            trainer.processing_class.save_pretrained(model)
            draft_card(trainer, model, name=run.recipe.name)
            finish_run_card(run.folder.path)

    together(save, "model")
    complete(model, trainer.accelerator, step=trainer.state.global_step)
    run.ending.saved_model()
    end_engine(getattr(trainer, "vllm_generation", None))
    trainer.accelerator.free_memory()  # it would hold model and optimiser beside the one that is evaluated


def load_checked_data(recipe: Recipe, prepared: Prepared, console: Console) -> tuple[Any, dict[str, str]]:
    """The training set and where code is run; rank 0 first, so that a download happens once.

    What recipe and rows lack is said first. SandboxError where rows ask for code to be run and nothing is safe.
    """
    with main_first():
        dataset = recipe.load_data()
    found = check_rows(recipe, prepared, dataset, trial=PartialState().is_main_process)
    if found.problems:
        raise ValueError(found.problems[0])
    code = sandbox_note(prepared.reward_funcs, rows_ask=found.runs_code)
    for warning in (*recipe_warnings(recipe, prepared, prepared.args.world_size), *found.warnings):
        say(console, f"warning: {warning}")
    return dataset, code


def check_trained(step: int, planned: int) -> None:
    """Refuse to call a run finished that stopped before its last step; transformers returns quietly."""
    if step < planned:
        raise ValueError(
            f"training ended at step {step} of {planned}, so the run is not finished; were there prompts enough for "
            "each step?"
        )


def load_trained(folder: RunFolder, recipe: Recipe) -> tuple[Any, Any]:
    """What the run saved, an adapter on its base: the evaluation is of the files, not of the memory."""
    spec = recipe.model
    return load_policy(str(folder.model), dtype=spec.dtype, device="cpu", quantization=spec.quantization)


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
        say=run.warn,
    )
    warned = lambda: run.manifest.get("warnings") or []  # noqa: E731
    watchdog = Watchdog(history=folder.path / "metrics.jsonl", say=run.say, warned=warned)
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
        curriculum=prepared.course,
        environment_factory=prepared.environment,
        # the watch writes into what the log then saves
        callbacks=[watch, DenseEvaluation(dense), BestCheckpoint(), log, progress, watchdog, run.ending],
    )
    keep_adapter_in_float32(trainer.model)
    if dense and recipe.eval is not None:
        trainer.evaluation_seed = recipe.eval.seed
    listen_first(trainer, watch)
    log.trainer = trainer
    trainer.checkpoint_files.append(log.into_checkpoint)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer, progress


def describe_start(run: Run) -> None:
    run.say(run.recipe.to_yaml())
    for loaded in (*run.prepared.rewards, *run.prepared.controllers, *filter(None, [run.prepared.curriculum])):
        run.say(f"using {loaded.source} from {loaded.file}")
    for note in run.prepared.notes:
        run.say(note)
    if tier := run.manifest.get("sandbox"):
        run.say(f"code of the model runs in the sandbox {tier}" if tier != "unsafe" else UNSAFE)
    s = describe_schedule(run.prepared.args, run.prepared.args.world_size)
    parts = f"{s.per_device_rows} rows x {s.gradient_accumulation_steps} micro-steps x {s.world_size} process(es)"
    run.say(f"optimiser step: {parts} = {s.rows_per_step} rows")  # whoever starts more processes should see it
    if patience := launcher_patience():
        run.say(f"note: {patience}")
    where = "from the start" if run.start is None else f"from {run.start.name}"
    run.say(f"run folder {run.recipe.run_dir}, {where}")


def describe_end(console: Console, result: RunResult) -> None:
    """The verdict that the report begins with, and the numbers it rests on."""
    if result.eval_before and result.eval_after:
        console.print(before_after_table(result))
    verdict = verdict_of(read_run(result.run_dir))
    notes = f"; {'; '.join(verdict.health.notes)}" * bool(verdict.health.notes)
    say(console, f"result {verdict.headline}")
    for sentence in (*verdict.results, *verdict.entropies):
        say(console, f"       {sentence}")
    say(console, f"cost   {verdict.cost}")
    say(console, f"health {verdict.health_words}{notes}")
    say(console, f"model  {result.model_dir}")
    say(console, f"report {result.report}")


def before_after_table(result: RunResult) -> Table:
    """The report's before/after table; intervals of the changes alone, so that it fits a terminal."""
    table = Table("", "before", "after", "change", title="evaluation on problems not trained on")
    for label, (cell,) in before_after([result]):
        table.add_row(label, *(text.partition(" [")[0] for text in (cell.before, cell.after)), Text(cell.change))
    return table
