"""A study from its file to its results: tuning runs, the choice, the comparison, the analyses; one JSON, one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from entrl.runs.folder import write_json
from entrl_lab.replicate.analyses import analyse_all, check, task_runs
from entrl_lab.replicate.names import find_study
from entrl_lab.replicate.page import write_page
from entrl_lab.replicate.runner import RunsFailed, check_kept, finished, prepare, run_all, start_server
from entrl_lab.replicate.study import Run, Study, check_same_schedule, load_study
from entrl_lab.replicate.summary import print_summary, print_verdicts, summarise
from entrl_lab.replicate.tuning import choose


def replicate(
    file: str | Path,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    quick: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run what is missing of a study, write its JSON and its page, print the tables. Returns what was written.

    file: a study file, or the name of a folder under recipes; quick: its short version, which runs every analysis.
    jobs: runs at a time, each a process. Raises RunsFailed naming the runs that failed; the others are kept.
    """
    console = console or Console(soft_wrap=True)
    study = load_study(find_study(file, quick=quick))
    check(study)
    if any(not finished(study.run_dir(r)) for r in [*study.tuning_runs(), *study.runs({})]):
        start_server()  # its imports take about as long as the checks below
    changes = check_same_schedule(study)
    prepared = prepare(study, say=lambda text: console.print(text, highlight=False))
    _run(study, study.tuning_runs(), "tuning ", jobs, console)
    chosen, tuning = choose(study)
    runs = study.runs(chosen)
    _run(study, runs, "", jobs, console)
    result = summarise(study, changes, runs, tuning)
    if prepared:
        result["prepared"] = prepared
    if study.analyses:
        result["analyses"] = analyse_all(study, runs)
    target = Path(out) if out else study.out / "results.json"
    write_json(target, result)
    page = write_page(target.with_suffix(".html"), study, result, task_runs(study, runs))
    print_summary(result, console)
    print_verdicts(result, console)
    console.print(f"results {target}\npage {page}", highlight=False)
    return result


def _run(study: Study, runs: Sequence[Run], kind: str, jobs: int, console: Console) -> None:
    if not runs:
        return
    check_kept(study, runs)
    done = sum(finished(study.run_dir(r)) for r in runs)
    console.print(f"{len(runs)} {kind}runs, {done} finished already, {jobs} at a time", highlight=False)
    failures = run_all(study, runs, jobs=jobs, say=lambda text: console.print(text, highlight=False))
    if failures:
        raise RunsFailed("; ".join(f"{name}: {error}" for name, error in failures.items()))
