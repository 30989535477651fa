"""A study from its file to its results: tuning runs, the choice, the comparison, the analyses; one JSON, one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from entrl.runs.folder import write_json, write_text
from entrl.settings.names import suggest
from entrl_lab.replicate.analyses import analyse_all, check, task_runs
from entrl_lab.replicate.names import find_study
from entrl_lab.replicate.page import write_page
from entrl_lab.replicate.picture import picture
from entrl_lab.replicate.rows import Rows, commits
from entrl_lab.replicate.runner import RunsFailed, check_kept, finished, prepare, run_all, start_server
from entrl_lab.replicate.study import Run, Study, check_same_schedule, load_study
from entrl_lab.replicate.summary import print_summary, print_verdicts, summarise
from entrl_lab.replicate.tables import by_arm, markdown
from entrl_lab.replicate.tuning import choose


def replicate(
    file: str | Path,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    quick: bool = False,
    arms: Sequence[str] | None = None,
    report_only: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run what is missing of a study, write its JSON, tables, picture and page. Returns what is in the JSON.

    file: a study file, or the name of a folder under recipes; quick: its short version, which runs every analysis.
    jobs: runs at a time, each a process. arms: only these are run; None = all. report_only: nothing is run. What is
    not there then is listed under `missing`, and the results are of the rest. Raises RunsFailed naming the runs that
    failed; the others are kept.
    """
    console = console or Console(soft_wrap=True)
    study = load_study(find_study(file, quick=quick))
    check(study)
    wanted = _wanted(study, arms)
    rows = Rows(study)
    if not report_only and any(run not in rows for run in [*study.tuning_runs(), *study.runs({})]):
        start_server()  # its imports take about as long as the checks below
    changes = check_same_schedule(study)
    prepared = [] if report_only else prepare(study, say=lambda text: console.print(text, highlight=False))
    if not report_only:
        _run(study, study.tuning_runs(), rows, "tuning ", jobs, console)
    chosen, tuning = choose(study)
    runs = study.runs(chosen)
    rows.check(runs)
    if report_only:
        check_kept(study, runs)
    else:
        _run(study, [r for r in runs if r.arm.name in wanted], rows, "", jobs, console)
    there = [r for r in runs if r in rows]
    if not there:
        raise ValueError(f"no run of {study.file} is finished; leave out report_only (--report-only) to run them")
    result = _results(study, changes, runs, there, rows, tuning)
    if prepared:
        result["prepared"] = prepared
    _write(study, result, there, Path(out) if out else study.out / "results.json", console)
    return result


def _wanted(study: Study, arms: Sequence[str] | None) -> set[str]:
    names = [a.name for a in study.arms]
    if unknown := [a for a in arms or [] if a not in names]:
        raise ValueError(
            f"no arm {unknown[0]!r} in {study.file}.{suggest(unknown[0], names)} There are {', '.join(names)}"
        )
    return set(arms or names)


def _results(
    study: Study, changes: dict[str, Any], runs: Sequence[Run], there: Sequence[Run], rows: Rows, tuning: dict[str, Any]
) -> dict[str, Any]:
    """From the lines and folders of the runs that are there, which are not always all."""
    found = [(run, rows.of(run)) for run in there]
    measured = [(run, row["numbers"]) for run, row in found]
    result = {**summarise(study, changes, measured, tuning), "commits": commits([row for _, row in found])}
    if missing := [r.name for r in runs if r not in rows]:
        result["missing"] = missing
    if study.analyses:
        result["analyses"] = analyse_all(study, measured)
    return result


def _write(study: Study, result: dict[str, Any], there: Sequence[Run], target: Path, console: Console) -> None:
    """JSON, tables and picture where they are asked for; the page, which is large, stays with the runs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    write_text(target.with_suffix(".md"), markdown(study, result))
    if drawn := picture(result):
        write_text(target.with_suffix(".svg"), drawn)
    study.out.mkdir(parents=True, exist_ok=True)
    page = study.out / target.with_suffix(".html").name
    write_page(page, study, result, task_runs(study, [(r, {}) for r in there]))
    print_summary(result, console)
    print_verdicts(result, console)
    if missing := result.get("missing"):
        console.print(f"missing runs, {len(missing)}: {by_arm(missing)}", highlight=False)
    console.print(f"results {target}\npage {page}", highlight=False)


def _run(study: Study, runs: Sequence[Run], rows: Rows, kind: str, jobs: int, console: Console) -> None:
    if not runs:
        return
    check_kept(study, runs)
    for run in runs:  # of a start that was killed between a run's end and its line
        if not run.tuning and finished(study.run_dir(run)):
            rows.add(run)
    left = [r for r in runs if r not in rows]
    console.print(
        f"{len(runs)} {kind}runs, {len(runs) - len(left)} finished already, {jobs} at a time", highlight=False
    )
    say = lambda text: console.print(text, highlight=False)  # noqa: E731
    failures = run_all(study, left, jobs=jobs, say=say, done=lambda run: None if run.tuning else rows.add(run))
    if failures:
        raise RunsFailed("; ".join(f"{name}: {error}" for name, error in failures.items()))
