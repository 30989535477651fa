"""Run folders -> one HTML file that needs no network: template, style, script and data in one page.

Curves are drawn by our own script rather than by a chart library, which would add megabytes: the page then loads in a
moment and stays under 1 MB. What does not move with the reader's choice is `entrl.report.drawing`'s.

Completions are model output and may hold anything. They travel as JSON inside a script element with `<`, `>` and `&`
written as escapes, and the script only ever puts them on the page as text nodes.
"""

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from entrl.report.charts import lay_out
from entrl.report.examples import examples_of, prompt_text
from entrl.report.law import law_card
from entrl.report.read import X_AXES, RunRecord, metric_names, read_runs
from entrl.report.sparklines import sparklines
from entrl.report.staleness import staleness_table
from entrl.report.summary import TableRow, before_after, run_facts
from entrl.report.verdict import verdict_of
from entrl.report.words import words
from entrl.settings.json_lines import is_number
from entrl.version import __version__

MAX_POINTS = 1500  # per run and curve; more cannot be told apart on a screen
COMPLETION_BYTES = 3_000_000  # all runs together, so that the page stays under 6 MB
HEAT_QUANTILE = 0.99  # the colour scale ends here, so one odd token does not bleach the page
PHASES = ("think", "open", "close", "answer", "tool")


def write_report(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page and return its path; by default `report.html` in the first run folder."""
    runs = read_runs(run_dirs)
    out = Path(out) if out is not None else runs[0].path / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(runs), encoding="utf-8")
    return out


def render(runs: Sequence[RunRecord]) -> str:
    """The page as text."""
    runs = list(runs)
    table = before_after(runs)
    package = files("entrl.report")
    sources = {name: (package / name).read_text(encoding="utf-8") for name in ("page.html.j2", "page.css", "page.js")}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        version=__version__,
        css=Markup(sources["page.css"]),
        js=Markup(sources["page.js"]),
        data=script_json(payload(runs)),
        runs=[_card(run) for run in runs],
        table=table,
        notes=_unpaired(table, runs),
        laws=[law_card(run) for run in runs],
        ages=[(run.name, table) for run in runs if (table := staleness_table(run.train))],
    )


def _unpaired(table: list[TableRow], runs: list[RunRecord]) -> list[str]:
    """Each reason why a change has no paired interval, once per run."""
    reasons = {
        f"{run.name}: {cell.note}": None
        for row in table
        for run, cell in zip(runs, row.cells, strict=True)
        if cell.note.startswith("not paired")
    }
    return list(reasons)


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element and still parses to the same value."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only, so lone surrogates survive
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _card(run: RunRecord) -> dict[str, Any]:
    return {
        "name": run.name,
        "status": str(run.manifest.get("status") or "unknown"),
        "facts": run_facts(run),
        "verdict": verdict_of(run),
        "sparks": sparklines(run),
        "examples": examples_of(run),
        "recipe": run.recipe_text or "recipe.yaml is missing",
        "manifest": json.dumps(run.manifest, indent=2) if run.manifest else "manifest.json is missing",
    }


def payload(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the script draws: columns per run, the chart layout, completions, the colour scale's end."""
    names = list(dict.fromkeys(n for run in runs for n in metric_names(run.train)))
    budget = COMPLETION_BYTES // len(runs)
    completions = [_fit(run.completions, budget) for run in runs]
    return {
        "runs": [
            {
                "name": run.name,
                "train": _columns(run.train),
                "eval": _columns([_without_prefix(row) for row in run.evals]),
                "completions": kept,
                "completions_left_out": len(run.completions) - len(kept),
                "thinned": len(run.train) > MAX_POINTS,
            }
            for run, kept in zip(runs, completions, strict=True)
        ],
        "sections": lay_out(names),
        "words": {name: words(name) for name in sorted(names, key=lambda name: words(name).title)},
        "phases": PHASES,
        "heat_end": _heat_end(completions),
    }


def _without_prefix(row: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("eval_").removeprefix("eval/"): value for key, value in row.items()}


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Name -> values, all of one length; long runs are thinned to every k-th row, the last one kept."""
    stride = max(1, math.ceil(len(rows) / MAX_POINTS))
    rows = rows[(len(rows) - 1) % stride :: stride] if rows else []
    return {name: [_short(row.get(name)) for row in rows] for name in (*X_AXES, *metric_names(rows))}


def _short(value: Any) -> float | int | None:
    """Seven significant digits: half the page, and more than a pixel can show."""
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.7g}")


def _fit(completions: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """As many completions as fit, spread evenly over training so that the first and last steps stay."""
    packed = [_pack(completion) for completion in completions]
    sizes = [len(json.dumps(p)) for p in packed]
    keep = len(packed)
    picks = list(range(keep))
    while keep > 1 and sum(sizes[i] for i in picks) > budget:
        keep = max(1, keep * 3 // 4)
        picks = sorted({round(i * (len(packed) - 1) / max(keep - 1, 1)) for i in range(keep)})
    return [packed[i] for i in picks]


def _pack(completion: dict[str, Any]) -> dict[str, Any]:
    tokens = [str(token) for token in completion["tokens"]]
    entropies = _padded(completion.get("entropies"), len(tokens))
    phases = [PHASES.index(p) if p in PHASES else -1 for p in _padded(completion.get("phases"), len(tokens))]
    return {
        "step": completion.get("step"),
        "prompt": prompt_text(completion.get("prompt")),
        "tokens": tokens,
        "entropies": [round(e, 3) if is_number(e) else None for e in entropies],
        "phases": [[phase, sum(1 for _ in same)] for phase, same in groupby(phases)],  # run lengths
        "rewards": {k: _short(v) for k, v in (completion.get("rewards") or {}).items()},
        "reward": _short(completion.get("reward")),
        "advantage": _short(completion.get("advantage")),
        "group": completion.get("group"),
        "truncated": bool(completion.get("truncated")),
    }


def _padded(values: Any, length: int) -> list[Any]:
    values = list(values or [])[:length]
    return values + [None] * (length - len(values))


def _heat_end(completions: list[list[dict[str, Any]]]) -> float:
    """Nats at which the colour scale ends, shared by every run so that colours compare."""
    values = sorted(e for run in completions for c in run for e in c["entropies"] if e is not None)
    end = values[min(len(values) - 1, int(HEAT_QUANTILE * len(values)))] if values else 1.0
    return max(math.ceil(end * 10) / 10, 0.1)
