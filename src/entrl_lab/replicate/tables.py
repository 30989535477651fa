"""The tables of a study as Markdown, from its results alone: means, paired differences with t intervals, claims."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from entrl.report.metrics import Number, find
from entrl_lab.replicate.analyses.length import ACCURACY, TOKENS
from entrl_lab.replicate.study import Study
from entrl_lab.replicate.summary import blocks_of, cells, columns

TRAINING = (  # what a table tells of training, beside the numbers of the evaluation
    Number(name="train/flat_groups", title="Flat groups", unit="%"),
    Number(name="train/flat_rollouts", title="Rollouts with flat groups alone", unit="%"),
    Number(name="train/grad_norm", title="Gradient norm", digits=3),
    Number(name="train/reward_std", title="Std used", digits=3),
)


def markdown(study: Study, result: Mapping[str, Any]) -> str:
    """Everything a reader needs beside the README's words; numbers are those of the JSON, rounded."""
    parts = [f"# {study.title or study.file.parent.name}", _head(result)]
    for task, block in blocks_of(result).items():
        if result["reference"] in block["means"]:
            parts += [f"## {task}"] if task else []
            parts += [_means(block, result["reference"]), _rest(block, result["reference"])]
            parts += [f"{said}." for said in block.get("credit", [])]
    for analysis in result.get("analyses", []):
        for task, found in analysis["tasks"].items():
            parts.append(f"## {analysis['title']}{f' ({task})' if task and task not in analysis['title'] else ''}")
            if analysis["use"] == "length" and found["measured"]:
                parts.append(_pairs(found))
            parts.append(f"Verdict: {found['verdict']}.")
    return "\n\n".join(parts) + "\n"


def _head(result: Mapping[str, Any]) -> str:
    runs = sum(len(own) for block in blocks_of(result).values() for own in block["values"].values())
    words = f"{runs} runs from {', '.join(f'`{c[:12]}`' for c in result['commits'])}, written {result['written']}."
    if missing := result.get("missing"):
        words += f" **Missing runs, {len(missing)}:** {by_arm(missing)}."
    return (
        f"{words} In brackets the difference from `{result['reference']}`, paired over seeds, with Student's 95 % "
        "interval, not adjusted for the number of arms."
    )


def by_arm(runs: Sequence[str]) -> str:
    """`task/arm (how many)` of the names of runs."""
    return ", ".join(f"{arm} ({n})" for arm, n in Counter(name.rpartition("-")[0] for name in runs).items())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _means(block: Mapping[str, Any], reference: str) -> str:
    """The main numbers, with differences."""
    shown = columns(block, reference)
    rows = []
    for arm, own in block["values"].items():
        told = [cells(block, arm, number)[:2] for number in shown]
        rows.append([arm, str(len(own)), *(f"{mean} ({gap})" if gap else mean for mean, gap in told)])
    return _table(["arm", "seeds", *(n.label for n in shown)], rows)


def _rest(block: Mapping[str, Any], reference: str) -> str:
    """The other numbers of the evaluation and those of training, means alone."""
    means = block["means"][reference]
    known = [n for n in map(find, means) if n is not None and not n.main]
    shown = [*known, *(n for n in TRAINING if n.name in means)]
    rows = (
        [arm, *(n.text(own[n.name]) if n.name in own else "-" for n in shown)] for arm, own in block["means"].items()
    )
    return _table(["arm", *(n.label for n in shown)], rows)


def _pairs(found: Mapping[str, Any]) -> str:
    rows = []
    for name, pair in found["pairs"].items():
        tokens, accuracy = (pair["differences"][k] for k in (TOKENS, ACCURACY))
        share = tokens["mean"] / pair["other_tokens"]
        claim = {True: "claim, holds", False: "claim, does not hold"}.get(pair.get("claim"), "")
        words = [w for w, true in (("shorter", pair["shorter"]), ("accuracy held", pair["held"])) if true]
        told = [f"{share:+.0%}", _interval(tokens, 1.0, 1), _interval(accuracy, 100.0, 2), ", ".join(words), claim]
        rows.append([name, str(pair["seeds"]), *told])
    heads = ["arm - other", "seeds", "tokens, share", "tokens", "sampled accuracy, points", "", ""]
    return _table(heads, rows)


def _interval(entry: Mapping[str, float], scale: float, digits: int) -> str:
    mean, lo, hi = (f"{scale * entry[k]:+.{digits}f}" for k in ("mean", "lo", "hi"))
    return f"{mean} [{lo}, {hi}]"
