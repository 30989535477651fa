"""One self-contained page of a study: verdicts, differences, curves and the plot of each analysis."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from entrl.report.metrics import Number
from entrl.runs.folder import write_text
from entrl_lab.replicate.folders import TaskRuns
from entrl_lab.replicate.plots import BY_ANALYSIS, curves
from entrl_lab.replicate.study import Study
from entrl_lab.replicate.summary import blocks_of, cells, columns


def write_page(file: Path, study: Study, result: Mapping[str, Any], runs: Mapping[str, TaskRuns]) -> Path:
    """Write the page of `result` (as `summarise` and the analyses gave it); returns its path."""
    loader = jinja2.PackageLoader("entrl_lab", "replicate")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    css = (resources.files("entrl.report") / "page.css").read_text(encoding="utf-8")
    own = (resources.files("entrl_lab.replicate") / "page.css").read_text(encoding="utf-8")
    analyses = [
        {**a, "tasks": {t: {**found, "plot": _plot(a["use"], found)} for t, found in a["tasks"].items()}}
        for a in result.get("analyses", [])
    ]
    tasks = [
        {
            "name": name,
            **_table(block, result["reference"]),
            "tuning": block.get("tuning"),
            "credit": block.get("credit", []),
            "curves": curves(runs[name]),
        }
        for name, block in blocks_of(result).items()
    ]
    text = environment.get_template("page.html.j2").render(
        title=study.title or study.file.parent.name, css=css + own, result=result, analyses=analyses, tasks=tasks
    )
    write_text(file, text)
    return file


def _plot(use: str, found: Mapping[str, Any]) -> str:
    return BY_ANALYSIS[use](found) if found["measured"] and use in BY_ANALYSIS else ""


def _table(block: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """Heads and rows of the means, with the seed-paired difference from the reference."""
    shown = columns(block, reference)
    rows = [
        {"arm": arm, "seeds": len(block["values"][arm]), "cells": [_cell(block, arm, number) for number in shown]}
        for arm in block["means"]
    ]
    return {"heads": [number.label for number in shown], "rows": rows}


def _cell(block: Mapping[str, Any], arm: str, number: Number) -> dict[str, str]:
    value, difference, gap = cells(block, arm, number)
    mark = ""
    if gap is not None and number.more_is_better:  # more entropy or length is neither better nor worse
        mark = "better" if gap["lo"] > 0 else "worse" if gap["hi"] < 0 else ""
    return {"value": value, "gap": difference, "mark": mark}
