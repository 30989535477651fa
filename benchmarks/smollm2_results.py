"""One row of recipes/smollm2/results.json: what a finished run measured, with intervals.

    python benchmarks/smollm2_results.py RUN [--before RUN] [--out recipes/smollm2/results.json]

Differences are after minus before over the same test problems, 95 % percentile bootstrap over problems
(`entrl.stats.pairing`); the entropy of a problem is the mean over its tokens of a phase. Reward and phase entropies of
the rollouts: means over the first and the last sixth of the logged steps, 95 % Student intervals over those steps.

--again: evaluations of the start and of the trained model by `entrl eval`, with draws of their own; for a row that is
there already

--before: a run of the same start whose evaluation before training is taken, where RUN has `eval.before: false`
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean

import numpy as np

from entrl.runs.folder import read_json
from entrl.settings.json_lines import json_lines
from entrl.stats.intervals import bootstrap_interval, mean_interval
from entrl.stats.pairing import paired_difference

PHASES = ("think_entropy", "answer_entropy")  # evaluations of 0a68027 and before have none
PAIRED = ("sampled_accuracy", "greedy_correct", "mean_length", *PHASES)
SHARE = 6  # the first and the last sixth of the steps
FEW = 5  # steps below which an interval over steps says nothing


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--again", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.again is None:
        row = measured(options.run, options.before or options.run)
    else:
        before, after = map(read_json, options.again)
        row = read_json(options.out)[options.run.name]
        row["evaluated again"] = {"commit": after["commit"], **compared(before, after)}
    print(json.dumps(row, indent=2))
    if options.out is not None:
        rows = read_json(options.out) or {}
        rows[row["run"]] = row
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def measured(run: Path, start: Path) -> dict:
    manifest = read_json(run / "manifest.json")
    before, after = read_json(start / "eval_before.json"), read_json(run / "eval_after.json")
    logged = [row for _, row in json_lines(run / "metrics.jsonl")]
    row = {
        "run": manifest["name"],
        "commit": manifest["git"]["commit"],
        "dirty": manifest["git"]["dirty"],
        "versions": manifest["versions"],
        "status": manifest["status"],
        "steps": manifest.get("steps"),
        "seconds": {"started": manifest["started"], "finished": manifest.get("finished")},
        "rollouts": rollouts(logged),
    }
    if before is None or after is None:
        return row
    row["evaluation"] = {"before_from": start.name, **compared(before, after)}
    return row


def compared(before: dict, after: dict) -> dict:
    return {
        "problems": after["n_problems"],
        "samples": after["samples"],
        **{when: numbers(found) for when, found in (("before", before), ("after", after))},
        "sampled accuracy by kind of sum": {"before": by_kind(before), "after": by_kind(after)},
        "after - before": {
            name: paired_difference(before, after, metric=name)._asdict()
            for name in PAIRED
            if all(name == PAIRED[0] or name in found["problems"][0] for found in (before, after))
        },
    }


def numbers(found: dict) -> dict:
    by_phase = {name: bootstrapped(found, name) for name in PHASES if name in found["problems"][0]}
    names = ("greedy_accuracy", "greedy_accuracy_ci", "sampled_accuracy", "sampled_accuracy_ci", "pass_at_k", "entropy")
    more = ("mean_length_sampled", "missing_close_rate", "truncation_rate", "seconds")
    return {name: found[name] for name in (*names, *more)} | by_phase


def bootstrapped(found: dict, name: str) -> dict:
    """Mean over problems with its interval."""
    values = np.array([p[name] for p in found["problems"] if p[name] is not None])
    lo, hi = bootstrap_interval(values, seed=0)
    return {"mean": float(values.mean()), "lo": lo, "hi": hi, "problems": len(values)}


def by_kind(found: dict) -> dict:
    """Sums of two terms by sign and by whether a term has two digits."""
    kinds: dict[str, list[float]] = {}
    for problem in found["problems"]:
        left, sign, right = re.search(r"(-?\d+) ([+-]) (\d+)", problem["prompt"]).groups()
        digits = "two digits" if max(len(left.lstrip("-")), len(right)) > 1 else "one digit"
        kinds.setdefault(f"{digits} {sign}", []).append(problem["n_correct"] / problem["n_samples"])
    return {kind: {"mean": fmean(values), "problems": len(values)} for kind, values in sorted(kinds.items())}


def rollouts(logged: list[dict]) -> dict:
    """Means over the steps at either end, with intervals."""
    steps = [row for row in logged if "reward" in row]
    n = max(2, len(steps) // SHARE)
    found = {}
    for name in sorted({key for row in steps for key in row}):
        parts = [
            [row[name] for row in part if isinstance(row.get(name), int | float)] for part in (steps[:n], steps[-n:])
        ]
        if wanted(name) and all(len(part) == n for part in parts):
            found[name] = {when: interval(part) for when, part in zip(("first", "last"), parts, strict=True)}
    return {"steps of each end": n, **found}


def wanted(name: str) -> bool:
    kinds = ("policy_entropy/", "sampler/gap")
    return name in ("reward", "entropy", "completions/mean_length", "step_time") or name.startswith(kinds)


def interval(values: list[float]) -> dict:
    if len(values) < FEW:
        return {"mean": fmean(values)}
    found = mean_interval(values)
    return {"mean": fmean(values), "lo": found.lo, "hi": found.hi}


if __name__ == "__main__":
    sys.exit(main())
