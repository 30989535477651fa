"""Finished runs of one task as analyses read them: metrics, evaluations and logged windows, from the disk alone."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from entrl.settings.groups import flat
from entrl.settings.json_lines import is_number, json_lines
from entrl.settings.yaml import parse_yaml

ENTROPY = "policy_entropy/token_mean"
ACCURACY = "rewards/accuracy/mean"
LATE = 0.25  # share of the steps at a run's end over which training metrics are averaged
EDGE = 0.1  # the same for where entropy starts and ends, small because it moves fast at first
LEAST_ROWS = 3  # rows of such a share, however short the run


class NotMeasured(ValueError):
    """The runs do not hold what an analysis needs; the message says what and how to get it."""


@dataclass(frozen=True, kw_only=True)
class TaskRuns:
    """The runs of one task: arm -> seed -> run folder, and -> the numbers of the run, which outlive its folder."""

    task: str
    folders: Mapping[str, Mapping[int, Path]]
    reference: str
    margin: float
    numbers: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)

    def arm(self, name: str) -> Mapping[int, Path]:
        """Seeds and folders of an arm; NotMeasured where this task does not run it."""
        if name not in self.folders:
            raise NotMeasured(f"arm {name!r} is not run on this task")
        return self.folders[name]

    def common_seeds(self, arms: Sequence[str]) -> list[int]:
        """Seeds that all these arms have, in the order of the first; NotMeasured with fewer than two."""
        first, *others = (self.arm(a) for a in arms)
        common = [s for s in first if all(s in o for o in others)]
        if len(common) < 2:
            raise NotMeasured(f"arms {', '.join(arms)} have {len(common)} seed(s) in common; an interval needs two")
        return common


@functools.lru_cache(maxsize=512)
def _rows(file: Path, stamp: int) -> list[dict[str, Any]]:
    return [row for _, row in json_lines(file)]


def rows(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of one kind, by step."""
    file = folder / "metrics.jsonl"
    return [r for r in _rows(file, file.stat().st_mtime_ns) if r["kind"] == kind]


def series(folder: Path, metric: str, kind: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that hold the metric; both (N,)."""
    held = [(r["step"], r[metric]) for r in rows(folder, kind) if is_number(r.get(metric))]
    steps, values = np.array(held, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def selected(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(steps, selected tokens per optimiser step) over the controllers of a run; empty where none selects."""
    train = rows(folder)
    names = {k for r in train for k in r if k.endswith("/selected")}
    held = [(r["step"], sum(r[k] for k in names if is_number(r.get(k)))) for r in train if names & r.keys()]
    steps, values = np.array(held, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def late_mean(folder: Path, metric: str, share: float = LATE) -> float:
    """Mean of a training metric over the last share of its rows; NotMeasured where it was not logged."""
    _, values = series(folder, metric)
    if not len(values):
        raise NotMeasured(f"{folder.name} logged no {metric}")
    return float(values[-edge_rows(len(values), share) :].mean())


def early_mean(folder: Path, metric: str, share: float = EDGE) -> float:
    """The same over the first share."""
    _, values = series(folder, metric)
    if not len(values):
        raise NotMeasured(f"{folder.name} logged no {metric}")
    return float(values[: edge_rows(len(values), share)].mean())


def edge_rows(count: int, share: float) -> int:
    return min(count, max(LEAST_ROWS, round(share * count)))


@functools.lru_cache(maxsize=512)
def _json(file: Path, stamp: int) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def outcome(folder: Path, name: str) -> float:
    """`selected` (tokens a step), `entropy` (at the end of training, nats), or a number of the evaluation after it."""
    if name == "selected":
        return float(selected(folder)[1].mean())
    return late_mean(folder, ENTROPY, EDGE) if name == "entropy" else float(evaluation(folder)[name])


def evaluation(folder: Path, when: Literal["before", "after"] = "after") -> dict[str, Any]:
    """eval_after.json of a run, or eval_before.json."""
    file = folder / f"eval_{when}.json"
    found = _json(file, file.stat().st_mtime_ns)
    if "tasks" in found:
        raise ValueError(f"{file} is of several tasks, and a study compares arms on one: give its recipes eval.task")
    return found


@functools.lru_cache(maxsize=512)
def _recipe(file: Path, stamp: int) -> dict[str, Any]:
    return flat(parse_yaml(file.read_text(encoding="utf-8"), name=str(file)))


def recipe_value(folder: Path, key: str) -> Any:
    """A dotted key of the resolved recipe; None where it is not written."""
    file = folder / "recipe.yaml"
    return _recipe(file, file.stat().st_mtime_ns).get(key)
