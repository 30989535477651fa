"""Choosing a setting per arm on seeds that the comparison does not use, with the same number of tries for every arm."""

from collections.abc import Mapping
from typing import Any

from entrl_lab.replicate.runner import finished
from entrl_lab.replicate.study import Run, Study
from entrl_lab.replicate.summary import numbers


def choose(study: Study) -> tuple[dict[tuple[str, str], int], dict[str, dict[str, Any]]]:
    """(chosen setting per (task, arm), record of every tuning number by task and arm), from finished tuning runs.

    Raises ValueError when the criterion is no number of a run, RuntimeError when a tuning run is missing.
    """
    chosen: dict[tuple[str, str], int] = {}
    record: dict[str, dict[str, Any]] = {}
    if study.tuning is None:
        return chosen, record
    for task in study.tuning_tasks():
        for arm in study.arms_of(task):
            if not arm.tune:
                continue
            values = [
                [_criterion(study, Run(task=task, arm=arm, seed=s, setting=i, tuning=True)) for s in study.tuning.seeds]
                for i in range(len(arm.tune))
            ]
            means = [sum(v) / len(v) for v in values]
            best = means.index(max(means))
            everywhere = study.tasks if study.tuning.task is not None else [task]
            chosen |= {(t.name, arm.name): best for t in everywhere}
            tried = [
                {
                    "set": dict(setting),
                    "mean": mean,
                    "values": dict(zip(map(str, study.tuning.seeds), own, strict=True)),
                }
                for setting, mean, own in zip(arm.tune, means, values, strict=True)
            ]
            record.setdefault(task.name, {})[arm.name] = {
                "criterion": study.tuning.criterion,
                "chosen": best,
                "set": dict(arm.tune[best]),
                "tried": tried,
            }
    return chosen, record


def _criterion(study: Study, run: Run) -> float:
    assert study.tuning is not None
    folder = study.run_dir(run)
    if not finished(folder):
        raise RuntimeError(f"tuning run {run.name} is not finished; run the study again")
    found: Mapping[str, float] = numbers(folder)
    if study.tuning.criterion not in found:
        raise ValueError(f"tuning.criterion {study.tuning.criterion!r} is no number of a run, only {sorted(found)}")
    return found[study.tuning.criterion]
