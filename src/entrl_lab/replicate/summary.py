"""What a study measured, as named numbers: one run, means of an arm, differences paired over seeds with t intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from entrl.report.metrics import Number, find, numbers_of
from entrl.runs.folder import now
from entrl.settings.json_lines import json_lines
from entrl.settings.provenance import git_state
from entrl.settings.secrets import mask
from entrl.stats.law import ACCURACY
from entrl.stats.pairing import non_inferior, seed_differences
from entrl.version import __version__
from entrl_lab.replicate.credit import credits_of
from entrl_lab.replicate.study import Run, Study, Task

LAST_SHARE = 0.25  # training metrics are averaged over this last share of the steps
TRAINING_METRICS = (
    "policy_entropy/token_mean",
    "completions/mean_length",
    "reward",
    "reward_std",
    "grad_norm",
    "groups/without_spread",
    "step_time",
)


def training_end(folder: Path) -> dict[str, float]:
    """Means of training metrics over the last quarter of the steps, totals of tokens and seconds; of the whole run the
    shares of groups, and of rollouts with every group, whose completions all earn the same."""
    rows = [r for _, r in json_lines(folder / "metrics.jsonl") if r["kind"] == "train"]
    last = rows[-1]["step"]
    late = [r for r in rows if r["step"] > (1 - LAST_SHARE) * last]
    wanted = [*TRAINING_METRICS, *sorted({k for r in late for k in r if k.endswith("/selected")})]
    out = {"tokens": float(rows[-1]["tokens"]), "seconds": float(rows[-1]["seconds"])}
    for name in wanted:
        values = [r[name] for r in late if r.get(name) is not None]
        if values:
            out[f"train/{name}"] = sum(values) / len(values)
    flat = [r["groups/without_spread"] for r in rows if r.get("groups/without_spread") is not None]
    if flat:
        out |= {"train/flat_groups": sum(flat) / len(flat), "train/flat_rollouts": flat.count(1.0) / len(flat)}
    return out


def on_the_way(folder: Path) -> dict[str, float]:
    """`at/STEP/accuracy` of the evaluations made while training: the mean of the reward `accuracy`."""
    rows = [r for _, r in json_lines(folder / "metrics.jsonl") if r["kind"] == "eval"]
    return {f"at/{r['step']}/accuracy": r[ACCURACY] for r in rows if r.get(ACCURACY) is not None}


def by_level(problems: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`level/N/...`: accuracy on the verified problems of each level, where there are several."""
    levels = {str(p["level"]) for p in problems if p.get("level")}
    out = {}
    for level in sorted(levels) if len(levels) > 1 else ():
        own = [p for p in problems if str(p.get("level")) == level]
        if greedy := [p["greedy_correct"] for p in own if p.get("greedy_correct") is not None]:
            out[f"level/{level}/greedy_accuracy"] = sum(greedy) / len(greedy)
        if sampled := [p["n_correct"] / p["n_samples"] for p in own if p.get("n_samples")]:
            out[f"level/{level}/sampled_accuracy"] = sum(sampled) / len(sampled)
    return out


def numbers(folder: Path) -> dict[str, float]:
    """One run as named numbers: its evaluations, by level too, and where its training ended."""
    after = json.loads((folder / "eval_after.json").read_text(encoding="utf-8"))
    out = {number.name: number.read(after) for number in numbers_of([after])}
    for way, metrics in after.get("inquiry", {}).items():  # dialogues: how the questions went
        out |= {f"{name}/{way}": found["mean"] for name, found in metrics.items() if name != "success"}
    found = out | by_level(after.get("problems", [])) | on_the_way(folder) | training_end(folder)
    return {k: float(v) for k, v in found.items() if v is not None}


def summarise(
    study: Study,
    changes: Mapping[str, Any],
    found: Sequence[tuple[Run, Mapping[str, float]]],
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything the study measured, from the numbers of its finished runs.

    A study without `tasks` has `values`, `means`, `differences` and so on at the top; with them, under `tasks`.
    """
    head = {
        "entrl": __version__,
        "git": git_state(study.file.parent),
        "written": now(),
        "study": str(study.file.name),
        "seeds": study.seeds,
        "reference": study.reference,
        "margin": study.margin,
        "arms": {
            a.name: {
                "label": a.label or a.name,
                "recipe": (a.recipe or study.recipe).name,
                "set": mask(a.set),
                "why": a.why,
            }
            for a in study.arms
        },
    }
    blocks = {t.name: _of_task(study, t, changes[t.name], found, (tuning or {}).get(t.name)) for t in study.tasks}
    only = [t.name for t in study.tasks] == [""]
    return head | (blocks[""] if only else {"tasks": blocks})


def blocks_of(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """task -> its block of `summarise`; a study without tasks has one, named ""."""
    return dict(result["tasks"]) if "tasks" in result else {"": result}


def _of_task(
    study: Study,
    task: Task,
    changes: Mapping[str, Any],
    found: Sequence[tuple[Run, Mapping[str, float]]],
    tuning: Mapping[str, Any] | None,
) -> dict[str, Any]:
    values: dict[str, dict[str, Mapping[str, float]]] = {}
    of_task = _with_errors([(run, n) for run, n in found if run.task.name == task.name])
    for arm in study.arms_of(task):
        own = {str(run.seed): n for run, n in of_task if run.arm.name == arm.name}
        if own:
            values[arm.name] = own
    base = values.get(study.reference, {})
    block: dict[str, Any] = {
        "changed_options": changes,
        "values": values,
        "means": {name: _means(list(own.values())) for name, own in values.items()},
        "differences": {
            name: _paired(base, own, study.margin)
            for name, own in values.items()
            if name != study.reference and len(base.keys() & own.keys()) > 1
        },
    }
    told = credits_of(study, task, values)
    return block | ({"tuning": tuning} if tuning else {}) | ({"credit": told} if told else {})


def _with_errors(found: Sequence[tuple[Run, Mapping[str, float]]]) -> list[tuple[Run, Mapping[str, float]]]:
    """A run over puzzles names the errors that its answers had; those that only other runs had are 0 in it."""
    errors = sorted({key for _, n in found for key in n if key.startswith("errors/")})
    judged = {"legal_share", *errors}
    return [(run, {**n, **{e: 0.0 for e in errors if e not in n}} if judged & n.keys() else n) for run, n in found]


def _paired(
    base: Mapping[str, Mapping[str, float]], own: Mapping[str, Mapping[str, float]], margin: float
) -> dict[str, dict[str, Any]]:
    """Differences over the seeds both arms have."""
    common = [s for s in base if s in own]
    return _differences([base[s] for s in common], [own[s] for s in common], margin)


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
        if (number := find(key)) and number.more_is_better:
            entry["non_inferior"] = non_inferior(found.mean, found.lo, margin)
        out[key] = entry
    return out


def columns(block: Mapping[str, Any], reference: str) -> list[Number]:
    """The numbers that a table of means shows."""
    return [n for n in map(find, block["means"].get(reference, {})) if n is not None and n.main]


def cells(block: Mapping[str, Any], arm: str, number: Number) -> tuple[str, str, Mapping[str, Any] | None]:
    """An arm's mean as text, its difference from the reference as text, and that difference; "" and None for none."""
    if number.name not in block["means"][arm]:
        return "-", "", None
    mean, gap = number.text(block["means"][arm][number.name]), block["differences"].get(arm, {}).get(number.name)
    if gap is None:
        return mean, "", None
    diff, lo, hi = (number.text(gap[k], sign=True) for k in ("mean", "lo", "hi"))
    return mean, f"{diff} [{lo}, {hi}]", gap


def print_summary(result: Mapping[str, Any], console: Console) -> None:
    """Means per arm, and the differences from the reference with their intervals; one table per task."""
    for task, block in blocks_of(result).items():
        title = f"means over seeds {result['seeds']}; difference from {result['reference']}"
        shown = columns(block, result["reference"])
        table = Table("arm", *(n.label for n in shown), title=f"{task}: {title}" if task else title)
        for arm in block["means"]:
            table.add_row(arm, *(Text(_cell(*cells(block, arm, number))) for number in shown))
        console.print(table)


def _cell(mean: str, difference: str, gap: Mapping[str, Any] | None) -> str:
    told = "\nnot shown non-inferior" if gap is not None and gap.get("non_inferior") is False else ""
    return f"{mean}\n{difference}{told}" if difference else mean


def print_verdicts(result: Mapping[str, Any], console: Console) -> None:
    """One line per analysis and task, and what control arms say."""
    for task, block in blocks_of(result).items():
        for said in block.get("credit", []):
            console.print(f"{task}: {said}" if task else said, highlight=False, markup=False)
    for analysis in result.get("analyses", []):
        for task, found in analysis["tasks"].items():
            where = f" ({task})" if task else ""
            console.print(f"{analysis['title']}{where}: {found['verdict']}", highlight=False, markup=False)
