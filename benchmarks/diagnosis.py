"""Records the runs of `diagnosis_runs.py` and judges the rule table (`entrl.diagnosis.rules`) on them.

    python benchmarks/diagnosis.py record          # goes on where it was stopped; diagnosis.jsonl, a line per run
    python benchmarks/diagnosis.py judge           # confusion matrix of the half that judges; diagnosis.json
    python benchmarks/diagnosis.py judge --half sets

Of each run the metrics that a rule may read are kept, by name, a value per logged step (null: logged, and no finite
number; left out: not logged). A run is a fork of this process, which has the libraries imported.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from diagnosis_runs import HEALTHY, RUNS, SAME, SYMPTOMS, Run, judges  # noqa: E402

from entrl.settings.provenance import git_state  # noqa: E402

KEPT = ROOT / "benchmarks" / "diagnosis.jsonl"
RESULT = ROOT / "benchmarks" / "diagnosis.json"
LIMIT_S = 600
METRICS = re.compile(
    r"step|loss|grad_norm|reward|reward_std|learning_rate|entropy|kl|rewards/.*/mean|groups/without_spread"
    r"|completions/(clipped_ratio|thinking_closed|mean_length)|pear/(missing_close|alpha)"
    r"|policy_entropy/(token|response)_mean|clip_ratio/region_mean|.*/abs_log_ratio"
)
FIGURES = 5  # significant digits kept


def recorded() -> dict[str, dict[str, Any]]:
    lines = KEPT.read_text().splitlines() if KEPT.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines)}


# --- recording ------------------------------------------------------------------------------------------------------


def record() -> None:
    import entrl.runs.train  # before the forks  # noqa: F401

    known, commit = recorded(), git_state(ROOT)
    for run in RUNS:
        if run.name in known:
            continue
        row = record_one(run) | {"commit": commit["commit"], "dirty": commit["dirty"]}
        with KEPT.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{run.name:<32} {row['status']:<12} {row['steps']} steps {row['seconds']} s {row['error']}", flush=True)


def record_one(run: Run) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="diagnosis-"))
    begin = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_train, args=(run, folder))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
    try:
        manifest = _json(folder / "run" / "manifest.json")
        rows = [json.loads(line) for line in _text(folder / "run" / "metrics.jsonl").splitlines()]
        said = _text(folder / "said").strip().splitlines()
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
        "warnings": [text.replace(str(folder), "FOLDER")[:300] for text in manifest.get("warnings") or []],
        "metrics": columns(rows),
    }


def _train(run: Run, folder: Path) -> None:
    from entrl.cli.main import main

    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    recipe = str(ROOT / "recipes" / f"{run.recipe}.yaml")
    sys.exit(main(["train", recipe, "eval=null", f"trainer.output_dir={folder / 'run'}", *run.change]))


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


def named(row: dict[str, Any]) -> list[str]:
    """Symptoms that the rule table sees in a recorded run."""
    from entrl.diagnosis.rules import findings

    return [found.rule.symptom for found in findings(rows_of(row))]


def judge(half: str) -> dict[str, Any]:
    """Each run's labels and what was named; the table: of each label, how often each symptom was named."""
    known, held = recorded(), judges()
    mine = [run for run in RUNS if (run.name in held) == (half == "judges") and run.name in known]
    runs = {run.name: {"label": run.label, "shows": run.shows, "may": run.may, "named": named(known[run.name])}
            for run in mine}  # fmt: skip
    for found in runs.values():
        said = {SAME.get(name, name) for name in found["named"]}
        found["missed"] = sorted(set(found["shows"]) - said)
        found["false"] = sorted(said - set(found["shows"]) - set(found["may"]))
    matrix = {
        label: {s: sum(s in (SAME.get(n, n) for n in r["named"]) for r in runs.values() if r["label"] == label)
                for s in (*SYMPTOMS, "thinking not closed")}
        | {"runs": sum(r["label"] == label for r in runs.values()),
           "nothing": sum(not r["named"] for r in runs.values() if r["label"] == label)}
        for label in (*SYMPTOMS, HEALTHY)
    }  # fmt: skip
    return {
        "half": half,
        "missed": {name: r["missed"] for name, r in runs.items() if r["missed"]},
        "false_alarms": {name: r["false"] for name, r in runs.items() if r["false"]},
        "matrix": matrix,
        "runs": runs,
    }


def table(found: dict[str, Any]) -> str:
    """The matrix in Markdown: a row per label, a column per symptom that was named."""
    names = [*SYMPTOMS, "thinking not closed", "nothing"]
    lines = [f"| built to show | runs | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for label, row in found["matrix"].items():
        lines.append(f"| {label} | {row['runs']} | {' | '.join(str(row[n] or '') for n in names)} |")
    missed = ", ".join(f"{name} ({', '.join(what)})" for name, what in found["missed"].items())
    alarms = ", ".join(f"{name} ({', '.join(what)})" for name, what in found["false_alarms"].items())
    return "\n".join([*lines, "", f"missed: {missed or 'none'}; false alarms: {alarms or 'none'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "judge"))
    parser.add_argument("--half", choices=("judges", "sets"), default="judges")
    options = parser.parse_args()
    if options.what == "record":
        record()
        return
    found = judge(options.half)
    if options.half == "judges":
        RESULT.write_text(json.dumps({"commit": git_state(ROOT), **found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
