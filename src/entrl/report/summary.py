"""What a reader should know before looking at a curve: facts of the run, warnings, before and after."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from entrl.report.metrics import Number, by_task, numbers_of
from entrl.report.read import RunRecord, metric_names, series
from entrl.settings.json_lines import is_number
from entrl.stats.pairing import paired_difference

TRUNCATED_SHARE = 0.10  # above it, length and accuracy say more about the limit than about the policy
ENTROPY_LEFT = 0.30  # below this share of the start, sampling has little left to explore
FLAT_GROUPS = 0.80  # above it, most of the compute gives no gradient
ENTROPY_METRICS = ("policy_entropy/token_mean", "policy_entropy/response_mean", "entropy")


class Cell(NamedTuple):
    """One metric before, after, and the change, as text; `note` says why a change has no interval."""

    before: str
    after: str
    change: str
    better: bool | None  # None where the interval holds 0, is missing, or no direction is better
    note: str = ""


class TableRow(NamedTuple):
    label: str
    cells: list[Cell]


class Evaluated(Protocol):
    """A run folder that was read, or a run that has just ended."""

    @property
    def eval_before(self) -> dict[str, Any] | None: ...
    @property
    def eval_after(self) -> dict[str, Any] | None: ...


def before_after(runs: Sequence[Evaluated]) -> list[TableRow]:
    """The table's lines, one cell per run; lines nobody can fill are left out."""
    table, tasks = [], [(by_task(run.eval_before), by_task(run.eval_after)) for run in runs]
    for task in dict.fromkeys(name for pair in tasks for results in pair for name in results):
        found = [(before.get(task), after.get(task)) for before, after in tasks]
        for number in numbers_of([e for pair in found for e in pair if e]):
            cells = [_cell(number, before, after) for before, after in found]
            if any(cell.before != "–" or cell.after != "–" for cell in cells):
                table.append(TableRow(f"{task}: {number.label}" if task else number.label, cells))
    return table


def _cell(number: Number, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Cell:
    old, new = (number.read(e) if e else None for e in (before, after))
    change, better, note = "–", None, ""
    if before and after and old is not None and new is not None:
        change, better, note = _change(number, before, after, new - old)
    return Cell(with_interval(number, before, old), with_interval(number, after, new), change, better, note)


def _change(
    number: Number, before: Mapping[str, Any], after: Mapping[str, Any], plain: float
) -> tuple[str, bool | None, str]:
    if not number.problem:
        return number.text(plain, sign=True), None, "no interval: not recorded per problem"
    try:
        paired = paired_difference(before, after, number.problem)
    except ValueError as reason:
        return number.text(plain, sign=True), None, f"not paired: {reason}"
    diff, lo, hi = (number.text(value, sign=True) for value in paired[:3])
    text = f"{diff} [{lo}, {hi}]"
    note = f"paired over {paired.n} problems" + (
        f", {paired.unverified} unverified left out" if paired.unverified else ""
    )
    if number.more_is_better is None or paired.lo <= 0 <= paired.hi:
        return text, None, note
    return text, (paired.diff > 0) == number.more_is_better, note


def with_interval(number: Number, evaluation: Mapping[str, Any] | None, value: float | None) -> str:
    if value is None:
        return "–"
    ends = evaluation.get(number.interval) if evaluation and number.interval else None
    if isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends)):
        return f"{number.text(value)} [{number.text(ends[0])}, {number.text(ends[1])}]"
    return number.text(value)


def run_facts(run: RunRecord) -> dict[str, str]:
    """What was run, as label -> text."""
    manifest, recipe = run.manifest, run.recipe
    git = manifest.get("git") if isinstance(manifest.get("git"), dict) else {}
    commit = str((git or {}).get("commit") or "unknown")[:10] + (" + changes" if (git or {}).get("dirty") else "")
    last = run.train[-1] if run.train else {}
    facts = {
        "Recipe": _recipe_name(manifest),
        "Model": _model(recipe),
        "Rewards": _uses(recipe.get("rewards")) or "unknown",
        "Controllers": _uses(recipe.get("controllers")) or "none",
        "Commit": commit,
        "Seed": str(manifest.get("seed", "unknown")),
        "Processes": " ".join(str(manifest[key]) for key in ("world_size", "backend") if manifest.get(key) is not None),
        "Wall time": wall_time(run),
        "Steps": f"{last['step']:,}" if is_number(last.get("step")) else "0",
        "Tokens generated": f"{last['tokens']:,.0f}" if is_number(last.get("tokens")) else "not recorded",
        "Config hash": str(manifest.get("config_hash", ""))[:12],
    }
    return {label: text for label, text in facts.items() if text}


def _recipe_name(manifest: dict[str, Any]) -> str:
    command = manifest.get("command") or []
    words = command.split() if isinstance(command, str) else [str(word) for word in command]
    return next((Path(word).name for word in words if word.endswith((".yaml", ".yml"))), "")


def _model(recipe: dict[str, Any]) -> str:
    model = recipe.get("model")
    name = model.get("path") if isinstance(model, dict) else model
    return f"{name}{' + LoRA' if recipe.get('lora') else ''}" if name else "unknown"


def _uses(entries: Any) -> str:
    return ", ".join(str(e.get("use", e)) if isinstance(e, dict) else str(e) for e in entries or [])


def wall_time(run: RunRecord) -> str:
    started, finished = (_timestamp(run.manifest.get(key)) for key in ("started", "finished"))
    if started is not None and finished is not None:
        return duration(finished - started)
    _, seconds = series(run.train, "seconds")
    return f"{duration(seconds[-1])} (training, so far)" if seconds else "unknown"


def _timestamp(value: Any) -> float | None:
    if is_number(value):
        return float(value)
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return None


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def warnings_of(run: RunRecord) -> list[str]:
    """Everything that changes how the curves should be read, worst first."""
    status, error = str(run.manifest.get("status") or "unknown"), run.manifest.get("error")
    found = [] if status == "finished" else [f"status is {status}: the run did not finish"]
    found += [f"it stopped with {error}"] if error else []
    found += _verifier_warnings(run) + _controller_warnings(run) + _curve_warnings(run)
    found += [f"{name} is missing: no before/after comparison" for name in _missing_evals(run)]
    return found + run.notes


def _missing_evals(run: RunRecord) -> list[str]:
    have = {"eval_before.json": run.eval_before, "eval_after.json": run.eval_after}
    return [name for name, value in have.items() if value is None]


def _verifier_warnings(run: RunRecord) -> list[str]:
    found = []
    for metric in metric_names(run.train):
        if metric.endswith(("verify_timeout", "verify_crash")):
            bad = sum(value > 0 for value in series(run.train, metric)[1])
            if bad:
                found.append(f"verifier: {metric} above 0 in {bad} of {len(run.train)} logged steps")
    for which, evaluation in (("before", run.eval_before), ("after", run.eval_after)):
        for task, result in by_task(evaluation).items():
            unverified, where = result.get("unverified"), f" ({task})" if task else ""
            if is_number(unverified) and unverified:
                found.append(f"verifier: {unverified} answers unverified in the evaluation {which} training{where}")
    return found


def _controller_warnings(run: RunRecord) -> list[str]:
    selected = {m: series(run.train, m)[1] for m in metric_names(run.train) if m.endswith("/selected")}
    found = [
        f"{metric.removesuffix('/selected')} selected 0 tokens in {values.count(0)} of {len(values)} logged steps"
        for metric, values in selected.items()
        if 2 * values.count(0) > len(values)
    ]
    for entry in run.recipe.get("controllers") or []:
        use = str(entry.get("use")) if isinstance(entry, dict) else str(entry)
        if run.train and use in {"kl_cov", "clip_cov"} and f"{use}/selected" not in selected:
            found.append(f"the recipe asks for {use}, but {use}/selected was never logged")
    return found


def _curve_warnings(run: RunRecord) -> list[str]:
    found = []
    truncated = _end_mean(series(run.train, "completions/clipped_ratio")[1])
    if truncated is not None and truncated > TRUNCATED_SHARE:
        found.append(f"{truncated:.0%} of completions truncated at the end of training (over {TRUNCATED_SHARE:.0%})")
    entropy = next((m for m in ENTROPY_METRICS if series(run.train, m)[1]), None)
    if entropy is not None:
        values = series(run.train, entropy)[1]
        first, last = sum(values[:3]) / len(values[:3]), _end_mean(values)
        if last is not None and first > 0 and len(values) > 3 and last < ENTROPY_LEFT * first:
            found.append(f"entropy fell to {last / first:.0%} of its start ({first:.3f} -> {last:.3f} nats, {entropy})")
    flat = _end_mean(series(run.train, "groups/without_spread")[1])
    if flat is not None and flat > FLAT_GROUPS:
        found.append(f"{flat:.0%} of groups have equal rewards at the end: most samples give no gradient")
    return found


def _end_mean(values: list[float]) -> float | None:
    """Mean of the last tenth, at least the last 3 points."""
    tail = values[-max(3, math.ceil(len(values) / 10)) :]
    return sum(tail) / len(tail) if tail else None
