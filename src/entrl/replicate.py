"""A comparison of training methods that means something: arms x paired seeds, one schedule, intervals, one JSON.

A study is a YAML file:

    recipe: grpo.yaml                 the recipe every arm starts from, relative to the study
    out: runs/tiny-study              one run folder per arm and seed below it
    seeds: [1, 2, 3]
    reference: grpo                   arm the others are compared with
    margin: 0.02                      accepted loss of accuracy, fixed before the first run
    eval: {size: 300, samples: 8}     evaluation of every arm, in place of the recipes' own
    arms:
      grpo: {}
      clip-cov: {recipe: clip-cov.yaml}
      hotter: {set: {trainer.temperature: 1.2}, why: "..."}

Arms share the schedule: `trainer` options may differ between arms only by what an arm names under `set` (checked before
anything runs). Each arm and seed is a run of its own process, so the study goes on where it was stopped: finished
runs are kept, others start again. Differences are paired over seeds, with Student's t interval.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from entrl import __version__
from entrl.intervals import non_inferior, seed_differences
from entrl.recipe import Recipe, load_recipe, parse_yaml
from entrl.run_folder import flat, git_state, now, write_json

ACCURACIES = ("greedy_accuracy", "sampled_accuracy", "pass_at_k")  # judged by the margin; higher is better
LAST_SHARE = 0.25  # training metrics are averaged over this last share of the steps
TRAINING_METRICS = ("policy_entropy/token_mean", "completions/mean_length", "reward", "step_time")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method: a recipe and what it changes of it. `set` holds dotted recipe keys."""

    name: str
    recipe: Path
    set: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    def overrides(self) -> list[str]:
        return [f"{key}={json.dumps(value)}" for key, value in self.set.items()]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A parsed study file."""

    file: Path
    out: Path
    seeds: list[int]
    reference: str
    margin: float
    arms: list[Arm]
    eval: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [a.name for a in self.arms]
        if self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is no arm of {self.file}; arms: {', '.join(names)}")
        if len(self.seeds) < 2 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be two or more different integers, got {self.seeds}")
        if self.margin <= 0:
            raise ValueError(f"margin must be > 0 (accuracy you would give up), got {self.margin}")

    def recipe_of(self, arm: Arm, seed: int) -> Recipe:
        return load_recipe(arm.recipe, self.words(arm, seed))

    def words(self, arm: Arm, seed: int) -> list[str]:
        """Overrides of `entrl train` for one run."""
        shared = [f"eval.{key}={json.dumps(value)}" for key, value in self.eval.items()]
        folder = self.run_dir(arm, seed)
        # the data order is part of what seeds pair: arms with one seed see the same problems in the same order
        own = [f"trainer.seed={seed}", f"data.seed={seed}", f"trainer.output_dir={json.dumps(str(folder))}"]
        return [*shared, *arm.overrides(), *own]

    def run_dir(self, arm: Arm, seed: int) -> Path:
        return self.out / f"{arm.name}-{seed}"


def load_study(file: str | Path) -> Study:
    """Read a study; ValueError for unknown keys."""
    file = Path(file)
    content = parse_yaml(file.read_text(encoding="utf-8"), name=str(file))
    known = {"recipe", "out", "seeds", "reference", "margin", "eval", "arms"}
    if not isinstance(content, dict) or content.keys() - known:
        found = sorted(content.keys() - known) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file}: unknown keys {found}; a study has {', '.join(sorted(known))}")
    if missing := known - {"eval"} - content.keys():
        raise ValueError(f"{file}: missing keys {sorted(missing)}")
    arms = []
    for name, entry in content["arms"].items():
        entry = entry or {}
        if unknown := entry.keys() - {"recipe", "set", "why"}:
            raise ValueError(f"{file}: arm {name!r} has unknown keys {sorted(unknown)}; known: recipe, set, why")
        recipe = file.parent / entry.get("recipe", content["recipe"])
        arms.append(Arm(name=name, recipe=recipe, set=entry.get("set", {}), why=entry.get("why", "")))
    return Study(
        file=file,
        out=Path(content["out"]),
        seeds=list(content["seeds"]),
        reference=content["reference"],
        margin=float(content["margin"]),
        eval=content.get("eval") or {},
        arms=arms,
    )


def check_same_schedule(study: Study) -> dict[str, dict[str, list[Any]]]:
    """What each arm changes of the reference's `trainer` options; ValueError for a change no arm declares."""
    seed = study.seeds[0]
    reference = next(a for a in study.arms if a.name == study.reference)
    base = flat(study.recipe_of(reference, seed).trainer)
    changes = {}
    for arm in study.arms:
        mine = flat(study.recipe_of(arm, seed).trainer)
        keys = [k for k in sorted(base.keys() | mine.keys()) if base.get(k) != mine.get(k) and k != "output_dir"]
        undeclared = [k for k in keys if f"trainer.{k}" not in arm.set]
        if undeclared:
            raise ValueError(
                f"arm {arm.name!r} trains with other options than {study.reference!r}: {undeclared}; a comparison "
                "needs one schedule. Bring the recipes together, or name the option under the arm's `set`"
            )
        changes[arm.name] = {k: [base.get(k, "TRL's default"), mine.get(k, "TRL's default")] for k in keys}
    return changes


def finished(folder: Path) -> bool:
    """True for a run that went to its end, with its evaluation on disk."""
    manifest = folder / "manifest.json"
    if not manifest.is_file() or not (folder / "eval_after.json").is_file():
        return False
    return json.loads(manifest.read_text(encoding="utf-8")).get("status") == "finished"


def run_one(study: Study, arm: Arm, seed: int) -> str | None:
    """Train and evaluate one arm with one seed in a process of its own; returns an error text or None."""
    folder = study.run_dir(arm, seed)
    if finished(folder):
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "entrl", "train", str(arm.recipe), *study.words(arm, seed), "overwrite=true"]
    with (study.out / f"{arm.name}-{seed}.log").open("w", encoding="utf-8") as log:
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    return None if done.returncode == 0 else f"exit {done.returncode}, see {study.out / f'{arm.name}-{seed}.log'}"


def training_end(folder: Path) -> dict[str, float]:
    """Means of training metrics over the last quarter of the steps, totals of tokens and seconds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [r for r in rows if r["kind"] == "train"]
    last = rows[-1]["step"]
    late = [r for r in rows if r["step"] > (1 - LAST_SHARE) * last]
    wanted = [*TRAINING_METRICS, *sorted({k for r in late for k in r if k.endswith("/selected")})]
    out = {"tokens": float(rows[-1]["tokens"]), "seconds": float(rows[-1]["seconds"])}
    for name in wanted:
        values = [r[name] for r in late if r.get(name) is not None]
        if values:
            out[f"train/{name}"] = sum(values) / len(values)
    return out


def numbers(folder: Path) -> dict[str, float]:
    """One run as named numbers: its evaluation, and where its training ended."""
    after = json.loads((folder / "eval_after.json").read_text(encoding="utf-8"))
    out = {name: after[name] for name in ("greedy_accuracy", "sampled_accuracy", "mean_length_greedy")}
    out["mean_length_sampled"] = after["mean_length_sampled"]
    out |= {f"pass_at_k/{k}": v for k, v in after["pass_at_k"].items()}
    out |= {f"entropy/{k}": v for k, v in after["entropy"].items()}
    out |= {name: after[name] for name in ("missing_close_rate", "truncation_rate")}
    return {k: float(v) for k, v in (out | training_end(folder)).items() if v is not None}


def summarise(study: Study, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the study measured, from the run folders on disk."""
    values = {a.name: [numbers(study.run_dir(a, s)) for s in study.seeds] for a in study.arms}
    return {
        "entrl": __version__,
        "git": git_state(study.file.parent),
        "commits": _commits(study),
        "written": now(),
        "study": str(study.file.name),
        "seeds": study.seeds,
        "reference": study.reference,
        "margin": study.margin,
        "changed_options": changes,
        "arms": {a.name: {"recipe": a.recipe.name, "set": dict(a.set), "why": a.why} for a in study.arms},
        "values": {name: dict(zip(map(str, study.seeds), rows, strict=True)) for name, rows in values.items()},
        "means": {name: _means(rows) for name, rows in values.items()},
        "differences": {
            name: _differences(values[study.reference], rows, study.margin)
            for name, rows in values.items()
            if name != study.reference
        },
    }


def _commits(study: Study) -> list[str]:
    """Commits the runs were made from, each once; a run from a changed tree is marked."""
    found = set()
    for arm in study.arms:
        for seed in study.seeds:
            manifest = json.loads((study.run_dir(arm, seed) / "manifest.json").read_text(encoding="utf-8"))
            git = manifest["git"]
            found.add(f"{git['commit']}{' (changed)' if git['dirty'] else ''}")
    return sorted(found)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [k for k in rows[0] if all(k in r for r in rows)]
    return {k: sum(r[k] for r in rows) / len(rows) for k in shared}


def _differences(
    base: Sequence[Mapping[str, float]], rows: Sequence[Mapping[str, float]], margin: float
) -> dict[str, dict[str, Any]]:
    out = {}
    for key in (k for k in base[0] if all(k in r for r in [*base, *rows])):
        found = seed_differences([r[key] for r in base], [r[key] for r in rows])
        entry: dict[str, Any] = {"mean": found.mean, "lo": found.lo, "hi": found.hi}
        if key.split("/")[0] in ACCURACIES:
            entry["non_inferior"] = non_inferior(found.mean, found.lo, margin)
        out[key] = entry
    return out


def print_summary(result: Mapping[str, Any], console: Console) -> None:
    """Means per arm, and the differences from the reference with their intervals."""
    shown = ["greedy_accuracy", "sampled_accuracy", "pass_at_k/8", "mean_length_sampled", "entropy/all"]
    table = Table("arm", *shown, title=f"means over seeds {result['seeds']}; difference from {result['reference']}")
    for arm, means in result["means"].items():
        cells = []
        for key in shown:
            cell = f"{means[key]:.3f}" if key in means else "-"
            gap = result["differences"].get(arm, {}).get(key)
            if gap is not None:
                cell += f"\n{gap['mean']:+.3f} [{gap['lo']:+.3f}, {gap['hi']:+.3f}]"
                if gap.get("non_inferior") is False:
                    cell += " not shown non-inferior"
            cells.append(cell)
        table.add_row(arm, *cells)
    console.print(table)


def replicate(
    file: str | Path, *, out: str | Path | None = None, jobs: int = 1, console: Console | None = None
) -> dict[str, Any]:
    """Run what is missing of a study, write its JSON and print the table. Returns what was written.

    jobs: runs at a time, each a process. Raises RuntimeError naming the runs that failed; the others are kept.
    """
    console = console or Console(soft_wrap=True)
    study = load_study(file)
    changes = check_same_schedule(study)
    # seed by seed, so that a study stopped early holds whole pairs
    todo = [(arm, seed) for seed in study.seeds for arm in study.arms]
    left = [(a, s) for a, s in todo if not finished(study.run_dir(a, s))]
    console.print(f"{len(todo)} runs, {len(todo) - len(left)} finished already, {jobs} at a time", highlight=False)
    failures = _run_all(study, left, jobs, lambda text: console.print(text, highlight=False))
    if failures:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in failures.items()))
    result = summarise(study, changes)
    target = Path(out) if out else study.out / "results.json"
    write_json(target, result)
    print_summary(result, console)
    console.print(f"results {target}", highlight=False)
    return result


def _run_all(study: Study, left: Sequence[tuple[Arm, int]], jobs: int, say: Callable[[str], None]) -> dict[str, str]:
    failures: dict[str, str] = {}

    def job(item: tuple[Arm, int]) -> None:
        arm, seed = item
        started = time.monotonic()
        error = run_one(study, arm, seed)
        if error:
            failures[f"{arm.name}-{seed}"] = error
        say(f"{arm.name} seed {seed}: {error or 'done'}, {time.monotonic() - started:.0f} s")

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(job, left))
    return failures
