"""One self-contained page of a study: verdicts, differences, curves and the plot of each analysis."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from entrl.runs.folder import write_text
from entrl_lab.replicate.folders import TaskRuns
from entrl_lab.replicate.plots import BY_ANALYSIS, curves
from entrl_lab.replicate.study import Study
from entrl_lab.replicate.summary import ACCURACIES, blocks_of

NUMBERS = {  # shown in the table of means: key -> (heading, factor, format)
    "greedy_accuracy": ("greedy, %", 100, ".1f"),
    "sampled_accuracy": ("sampled, %", 100, ".1f"),
    "pass_at_k": ("pass@{}, %", 100, ".1f"),
    "entropy/all": ("entropy, nats", 1, ".4f"),
    "mean_length_sampled": ("length, tokens", 1, ".1f"),
}


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
    keys = [k for k in block["means"][reference] if k in NUMBERS or k.split("/")[0] == "pass_at_k"]
    keys = [k for k in keys if k != "pass_at_k/1"]  # the sampled accuracy once more
    heads = [NUMBERS.get(k, NUMBERS["pass_at_k"])[0].format(k.rpartition("/")[2]) for k in keys]
    rows = [
        {
            "arm": arm,
            "seeds": len(block["values"][arm]),
            "cells": [_cell(means, block["differences"].get(arm, {}), key) for key in keys],
        }
        for arm, means in block["means"].items()
    ]
    return {"heads": heads, "rows": rows}


def _cell(means: Mapping[str, float], differences: Mapping[str, Any], key: str) -> dict[str, str]:
    if key not in means:
        return {"value": "-", "gap": "", "mark": ""}
    _, factor, form = NUMBERS.get(key, NUMBERS["pass_at_k"])
    gap = differences.get(key)
    if gap is None:
        return {"value": format(factor * means[key], form), "gap": "", "mark": ""}
    mean, lo, hi = (format(factor * gap[k], f"+{form}") for k in ("mean", "lo", "hi"))
    told = gap["lo"] > 0 or gap["hi"] < 0
    judged = key.split("/")[0] in ACCURACIES  # more entropy or length is neither better nor worse
    mark = ("better" if gap["lo"] > 0 else "worse") if told and judged else ""
    return {"value": format(factor * means[key], form), "gap": f"{mean} [{lo}, {hi}]", "mark": mark}
