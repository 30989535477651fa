"""Facts of a run, and its evaluations before and after training."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from entrl.report.metrics import Number, by_task, numbers_of
from entrl.report.read import RunRecord, series
from entrl.settings.json_lines import is_number
from entrl.stats.pairing import paired_difference


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
    if not number.problem or not all(_by_problem(number, evaluation) for evaluation in (before, after)):
        return number.text(plain, sign=True), None, "no interval: not recorded per problem"
    try:
        paired = paired_difference(before, after, number.problem)
    except ValueError as reason:
        return number.text(plain, sign=True), None, f"not paired: {reason}"
    diff, lo, hi = (number.text(value, sign=True) for value in paired[:3])
    if number.pooled:
        return number.text(plain, sign=True), None, f"a mean over tokens; by problem {diff} [{lo}, {hi}]"
    text = f"{diff} [{lo}, {hi}]"
    note = f"paired over {paired.n} problems" + (
        f", {paired.unverified} unverified left out" if paired.unverified else ""
    )
    if number.more_is_better is None or paired.lo <= 0 <= paired.hi:
        return text, None, note
    return text, (paired.diff > 0) == number.more_is_better, note


def _by_problem(number: Number, evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation says it problem by problem; one of an earlier version may not."""
    return number.problem == "sampled_accuracy" or any(number.problem in p for p in evaluation.get("problems") or ())


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
        "Trained model": best_in_words(manifest["best"]) if isinstance(manifest.get("best"), dict) else "",
        "Tokens generated": f"{last['tokens']:,.0f}" if is_number(last.get("tokens")) else "not recorded",
        "Sandbox": {"unsafe": "none: code of the model ran unprotected (sandbox=unsafe)"}.get(
            str(manifest.get("sandbox", "")), str(manifest.get("sandbox", ""))
        ),
        "Config hash": str(manifest.get("config_hash", ""))[:12],
    }
    return {label: text for label, text in facts.items() if text}


def best_in_words(best: Mapping[str, Any]) -> str:
    """Where the trained model is of the best step (`entrl.runs.best`) and not of the last one."""
    return f"step {best['step']} of {best['of_steps']}, best {best['metric']} of an evaluation ({best['value']:.4g})"


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
    if (whole := seconds_between(run.manifest)) is not None:
        return duration(whole)
    _, seconds = series(run.train, "seconds")
    return f"{duration(seconds[-1])} (training, so far)" if seconds else "unknown"


def seconds_between(manifest: Mapping[str, Any]) -> float | None:
    """From start to end of a run, evaluations included; of a resumed one, of its last part."""
    started, finished = (_timestamp(manifest.get(key)) for key in ("started", "finished"))
    return None if started is None or finished is None else finished - started


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
