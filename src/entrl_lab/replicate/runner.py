"""Runs of a study as processes: forked from a server that has imported everything already, so many at a time.

Importing torch, TRL and transformers takes seconds, which a study of many short runs would pay for every run. A fork
server imports them once; each run is then a fork of it. The server holds no model, so its children start clean.
One run is one process with its own log file; a run that dies leaves the others alone.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from entrl.cli.main import main
from entrl.runs.contents import contents
from entrl.runs.ours import read_manifest
from entrl.runs.recipe import Recipe
from entrl.settings.groups import flat
from entrl.settings.secrets import mask
from entrl.settings.yaml import parse_yaml
from entrl.teach.cold_start import ColdStart, is_made, load_cold_start
from entrl_lab.replicate.study import Run, Study

PRELOAD = [
    "entrl.runs.train",
    "entrl.trainers",
    "entrl.evaluation.answers",
    "entrl.report",
    "entrl_rewards.accuracy",
    "reasoning_gym",
]
PATIENCE_S = 20.0  # for an interrupted run to write its manifest before it is killed
SERVER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # runs share the machine: more threads than cores make every run slower
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking the driver in the server would spoil CUDA in its forks
}
# Groups that decide a run's numbers.
DECIDES = ("model", "data", "rewards", "controllers", "curriculum", "environment", "lora", "eval", "trainer")


class RunsFailed(RuntimeError):
    """Some runs of a study went wrong; the message names each with its log. The others are kept."""


def finished(folder: Path) -> bool:
    """True for a run that went to its end, with its evaluation on disk."""
    manifest = read_manifest(folder)
    return manifest is not None and (folder / "eval_after.json").is_file() and manifest["status"] == "finished"


def check_kept(study: Study, runs: Sequence[Run]) -> None:
    """ValueError for a finished run that was made with other settings than the study now asks for."""
    for run in runs:
        folder = study.run_dir(run)
        if not finished(folder) or not (folder / "recipe.yaml").is_file():
            continue
        was = flat(parse_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), name=str(folder)))
        recipe = study.recipe_of(run)
        now = flat(mask(recipe.resolved()))
        changed = sorted(k for k in was.keys() | now.keys() if _differs(k, was, now))
        changed += changed_contents(folder, recipe)
        if changed:
            raise ValueError(
                f"{folder} was run with other settings than {study.file} now asks for: {', '.join(changed)}; delete "
                "that folder to run it again, or give the study another `out`"
            )


def changed_contents(folder: Path, recipe: Recipe) -> list[str]:
    """Files of a finished run's recipe that are not what they were; models of offline runs are made anew, and aside."""
    was = (read_manifest(folder) or {}).get("contents")
    if was is None:
        return []
    now = contents(flat(recipe.resolved()), recipe.base, only=lambda key: not key.startswith("model."))
    return sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k) and not k.startswith("model."))


def _differs(key: str, was: dict[str, object], now: dict[str, object]) -> bool:
    if key == "trainer.output_dir" or key.split(".")[0] not in DECIDES:
        return False
    # an option that did not exist when the run was made has its default now, and a default is null or empty here
    return was.get(key) != now.get(key) and not (key not in was and now[key] in (None, [], {}, False, 0))


@contextmanager
def _server_environment() -> Iterator[None]:
    before = {k: os.environ.get(k) for k in SERVER_ENVIRONMENT}
    os.environ.update({k: before[k] or v for k, v in SERVER_ENVIRONMENT.items()})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]


def start_server() -> None:
    """Start the fork server without waiting for its imports; a second call changes nothing."""
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with _server_environment():
        forkserver.ensure_running()


def _in_child(commands: list[list[str]], log: str, folder: str) -> None:
    """The run itself: what `entrl COMMAND...` does, one after the other, with the output in its log."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a study started with nohup hands on that it is ignored
    os.chdir(folder)  # the fork server stands where it was started
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    code = 0
    for command in commands:
        sys.argv = ["entrl", *command]  # the manifest records it
        code = main(sys.argv[1:])
        if code:
            break
    sys.stdout.flush()
    sys.exit(code)


def start_run(study: Study, run: Run) -> BaseProcess:
    """Start one run from its beginning; an unfinished one in its folder is deleted."""
    commands = [["train", str(study.recipe_file(run)), *study.words(run), "overwrite=true"]]
    if run.arm.offline is not None:
        commands.insert(0, ["offline", str(run.arm.offline), *study.offline_words(run)])
    return _start(commands, log_of(study, run), name=run.name)


def _start(commands: list[list[str]], log: Path, *, name: str) -> BaseProcess:
    log.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("forkserver").Process(
        target=_in_child, args=(commands, str(log), os.getcwd()), name=name
    )
    process.start()
    return process


def prepare(study: Study, *, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Make the study's cold starts that are not made yet, one after the other; returns how each was made.

    Each is a process with a log beside its folder, as a run is. ValueError for one that is finished and was made
    from other settings than its file now has; RunsFailed when one goes wrong, with its log named.
    """
    starts = [load_cold_start(file) for file in study.prepare]
    missing = [start for start in starts if not is_made(start)]  # all are checked before the first is made
    if missing:
        start_server()
    for start, file in zip(starts, study.prepare, strict=True):
        if start not in missing:
            say(f"cold start {start.folder}: made already")
            continue
        began = time.monotonic()
        log = start.folder.with_name(start.folder.name + ".log")
        process = _start([["cold-start", str(file)]], log, name=start.name)
        with _terminable():
            try:
                process.join()
            except BaseException:
                _stop([process])
                raise
        if process.exitcode != 0:
            raise RunsFailed(f"cold start {file}: exit {process.exitcode}, see {log}")
        say(f"cold start {start.folder}: done, {time.monotonic() - began:.0f} s")
    return [_made(start) for start in starts]


def _made(start: ColdStart) -> dict[str, Any]:
    manifest = json.loads((start.folder / "manifest.json").read_text(encoding="utf-8"))
    kept = ("config_hash", "weights_sha256", "git", "rows", "steps", "seconds", "finished")
    return {"name": start.name, "folder": str(start.folder), **{k: manifest[k] for k in kept}}


def log_of(study: Study, run: Run) -> Path:
    folder = study.run_dir(run)
    return folder.with_name(folder.name + ".log")


def run_all(
    study: Study,
    runs: Sequence[Run],
    *,
    jobs: int,
    say: Callable[[str], None],
    done: Callable[[Run], None] = lambda run: None,
) -> dict[str, str]:
    """Run what is not finished, `jobs` at a time; returns run name -> what went wrong, empty when all is well.

    done: called with each run that has finished well.

    KeyboardInterrupt, and SIGTERM in its place, stops the runs that are under way; those start again next time,
    finished ones are kept.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    left = [r for r in runs if not finished(study.run_dir(r))]
    if left:
        start_server()
    failures: dict[str, str] = {}
    active: dict[BaseProcess, tuple[Run, float]] = {}
    with _terminable():
        try:
            while left or active:
                while left and len(active) < jobs:
                    run = left.pop(0)
                    active[start_run(study, run)] = run, time.monotonic()
                multiprocessing.connection.wait([p.sentinel for p in active])
                for process in [p for p in active if p.exitcode is not None]:
                    run, started = active.pop(process)
                    error = None if process.exitcode == 0 else f"exit {process.exitcode}, see {log_of(study, run)}"
                    if error:
                        failures[run.name] = error
                    else:
                        done(run)
                    say(f"{run.name}: {error or 'done'}, {time.monotonic() - started:.0f} s")
        except BaseException:
            _stop(list(active))
            raise
    return failures


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt: a study that is killed takes its runs along."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Interrupt, so that manifests say so; kill what does not listen."""
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
