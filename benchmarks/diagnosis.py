"""Records the runs of `diagnosis_runs.py` and judges the rule table (`entrl.diagnosis.rules`) on them.

With `--round 2` those of `diagnosis_runs_2.py`, all of which judge (diagnosis_2.jsonl, diagnosis_2.json).

    python benchmarks/diagnosis.py record          # goes on where it was stopped; diagnosis.jsonl, a line per run
    python benchmarks/diagnosis.py judge           # confusion matrix of the half that judges; diagnosis.json
    python benchmarks/diagnosis.py judge --half sets
    python benchmarks/diagnosis.py record --round 2
    python benchmarks/diagnosis.py judge --round 2
    python benchmarks/diagnosis.py keep RUN ...    # of whole runs of studies; diagnosis_studies.jsonl

Of each run the metrics that a rule may read are kept, by name, a value per logged step (null: logged, and no finite
number; left out: not logged). A run is a fork of this process, which has the libraries imported.
"""

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diagnosis_runs as first  # noqa: E402
import diagnosis_runs_2 as second  # noqa: E402
from diagnosis_runs import HEALTHY, SAME, SYMPTOMS, Run, judges  # noqa: E402

from entrl.settings.provenance import git_state  # noqa: E402


class Round(NamedTuple):
    runs: tuple[Run, ...]
    judging: frozenset[str]  # names
    kept: Path
    result: Path


FIRST, SECOND = (
    Round(
        runs,
        frozenset(judging),
        ROOT / "benchmarks" / f"diagnosis{name}.jsonl",
        ROOT / "benchmarks" / f"diagnosis{name}.json",
    )
    for runs, judging, name in (
        (first.RUNS, judges(), ""),
        (second.RUNS, {run.name for run in second.RUNS}, "_2"),
    )
)
STUDIES = ROOT / "benchmarks" / "diagnosis_studies.jsonl"
LIMIT_S = 600
METRICS = re.compile(
    r"step|loss|grad_norm|reward|reward_std|learning_rate|entropy|kl|rewards/.*/mean|groups/without_spread"
    r"|completions/(clipped_ratio|thinking_closed|mean_length)|pear/(missing_close|alpha)"
    r"|policy_entropy/(token|response)_mean|clip_ratio/region_mean|.*/abs_log_ratio"
)
OURS = ("entrl", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "scipy", "jinja2", "rich", "numpy")
FIGURES = 5  # significant digits kept


def recorded(kept: Path = FIRST.kept) -> dict[str, dict[str, Any]]:
    lines = kept.read_text().splitlines() if kept.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


# --- recording ------------------------------------------------------------------------------------------------------


def record(which: Round = FIRST) -> None:
    import entrl.runs.train  # before the forks  # noqa: F401

    known, commit = recorded(which.kept), git_state(ROOT)
    for run in which.runs:
        if run.name in known:
            continue
        row = record_one(run) | {"commit": commit["commit"], "dirty": commit["dirty"]}
        with which.kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{run.name:<32} {row['status']:<12} {row['steps']} steps {row['cpu_s']} s of CPU {row['error']}",
            flush=True,
        )


def record_one(run: Run) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="diagnosis-"))
    begin, spent = time.monotonic(), _cpu_of_forks()
    process = multiprocessing.get_context("fork").Process(target=_train, args=(run, folder))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
    try:
        manifest = _json(folder / "run" / "manifest.json")
        rows = [json.loads(line) for line in _text(folder / "run" / "metrics.jsonl").splitlines()]
        said = _text(folder / "said").strip().splitlines()
        import_what_it_did(_text(folder / "modules").split())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [row for row in rows if row["kind"] == "train"]
    error = str(manifest.get("error") or ("" if manifest.get("status") == "finished" else " ".join(said[-1:])))
    return {
        "name": run.name,
        "status": str(manifest.get("status") or "not started"),
        "error": error.replace(str(folder), "FOLDER")[:300],
        "steps": len(rows),
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_s": round(_cpu_of_forks() - spent, 1),
        "warnings": [text.replace(str(folder), "FOLDER")[:300] for text in manifest.get("warnings") or []],
        "metrics": columns(rows),
    }


def _cpu_of_forks() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keep(folders: list[Path]) -> None:
    """Finished runs of studies, in the order they are named; what was kept before goes."""
    lines = []
    for folder in folders:
        manifest, text = _json(folder / "manifest.json"), _text(folder / "metrics.jsonl")
        rows = [row for row in map(json.loads, text.splitlines()) if row["kind"] == "train"]
        name, commit = "/".join(folder.resolve().parts[-2:]), (manifest.get("git") or {}).get("commit")
        head = {"name": name, "status": manifest.get("status"), "commit": commit, "steps": len(rows)}
        lines.append(json.dumps({**head, "metrics": columns(rows)}) + "\n")
    STUDIES.write_text("".join(lines))


def _train(run: Run, folder: Path) -> None:
    from entrl.cli.main import main

    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    recipe = str(ROOT / "recipes" / f"{run.recipe}.yaml")
    try:
        code = main(["train", recipe, "eval=null", f"trainer.output_dir={folder / 'run'}", *run.change])
    finally:
        (folder / "modules").write_text(" ".join(sys.modules))
    sys.exit(code)


def import_what_it_did(names: list[str]) -> None:
    """So that the next forks have it: imports are most of what a short run costs."""
    for name in names:
        if name not in sys.modules and name.startswith(OURS):
            with contextlib.suppress(Exception):  # of a package's optional parts
                importlib.import_module(name)


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """name -> a value per row; None: no finite number, "": not logged."""
    names = dict.fromkeys(name for row in rows for name in row if METRICS.fullmatch(name))
    return {name: [_short(row[name]) if name in row else "" for row in rows] for name in names}


def rows_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows again, as metrics.jsonl has them."""
    found = [{n: values[i] for n, values in row["metrics"].items() if values[i] != ""} for i in range(row["steps"])]
    return [{"kind": "train", **one} for one in found]


def _short(value: Any) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.{FIGURES}g}")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    return json.loads(_text(path) or "{}")


# --- judging --------------------------------------------------------------------------------------------------------


def named(row: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """(what the watchdog would have said, symptom -> step; what `advise` and the report say afterwards)."""
    from entrl.diagnosis.curves import Curves
    from entrl.diagnosis.rules import findings

    curves, said = Curves(), {}
    for one in rows_of(row):
        curves.append(one)
        for found in findings(curves):
            said.setdefault(found.rule.symptom, one["step"])
    return said, [found.rule.symptom for found in findings(curves)]


def same(names: Iterable[str], shows: Iterable[str]) -> set[str]:
    return {name if name in shows else SAME.get(name, name) for name in names}


def judge(half: str, which: Round = FIRST) -> dict[str, Any]:
    """Each run's labels and what was named of it; the table: of each label, how often each symptom was named, by the
    watchdog at any step or afterwards."""
    known = recorded(which.kept)
    half_of = [run for run in which.runs if (run.name in which.judging) == (half == "judges")]
    runs = {}
    for run in (run for run in half_of if run.name in known):
        said, after = named(known[run.name])
        names = same([*said, *after], run.shows)
        runs[run.name] = {
            "label": run.label,
            "said": said,
            "after": after,
            "missed": sorted(set(run.shows) - names),
            "missed_after": sorted(set(run.shows) - same(after, run.shows)),
            "false": sorted(names - set(run.shows) - set(run.may)),
            "late": sorted(
                s for s in run.shows if min((at for n, at in said.items() if same([n], [s]) == {s}), default=0) > 10
            ),
        }
    return {
        "half": half,
        "not_recorded": [run.name for run in half_of if run.name not in known],
        "matrix": {label: _counts([r for r in runs.values() if r["label"] == label]) for label in (*SYMPTOMS, HEALTHY)},
        "runs": runs,
        "studies": {}
        if which is not FIRST
        else {n: dict(zip(("said", "after"), named(row), strict=True)) for n, row in recorded(STUDIES).items()},
    }


def _counts(runs: list[dict[str, Any]]) -> dict[str, int]:
    names = [same([*r["said"], *r["after"]], [r["label"]]) for r in runs]
    counts = {s: sum(s in found for found in names) for s in SYMPTOMS}
    return {"runs": len(runs), **counts, "nothing": sum(not found for found in names)}


def table(found: dict[str, Any]) -> str:
    """The matrix in Markdown: a row per label, a column per symptom that was named."""
    names = [*SYMPTOMS, "nothing"]
    lines = [f"| built to show | runs | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for label, row in found["matrix"].items():
        lines.append(f"| {label} | {row['runs']} | {' | '.join(str(row[n] or '') for n in names)} |")
    told = [
        f"{word}: " + (", ".join(f"{n} ({', '.join(r[key])})" for n, r in found["runs"].items() if r[key]) or "none")
        for key, word in (
            ("missed", "missed"),
            ("missed_after", "not named any more afterwards"),
            ("late", "named after step 10"),
            ("false", "false alarms"),
        )
    ]
    return "\n".join([*lines, "", *told, f"not recorded: {', '.join(found['not_recorded']) or 'none'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "judge", "keep"))
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--half", choices=("judges", "sets"), default="judges")
    parser.add_argument("--round", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    which = (FIRST, SECOND)[options.round - 1]
    if options.what == "record":
        record(which)
        return
    if options.what == "keep":
        keep(options.runs)
        return
    found = judge(options.half, which)
    if options.half == "judges":
        which.result.write_text(json.dumps({"commit": git_state(ROOT), **found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
