"""What a study is asked: one module per question.

A module has
    TITLE       heading of its part of the page
    PAPER       what the paper says, in our words, with its section or table
    analyse(runs: TaskRuns, *, options) -> dict    JSON-able, with `saw` (what was measured) and `verdict`, both text

It reads run folders only, or plays what needs no training (`policies`, `independence`, `pursuit`). What the runs do not
hold raises NotMeasured, which is recorded as such: no number is made up. A study names a module and its options:
`analyses: [{use: dose_response, groups: {...}}]`; `title` replaces TITLE, `tasks` restricts it.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from entrl.settings.arguments import argument_hints
from entrl.settings.groups import typed
from entrl.settings.names import suggest
from entrl_lab.replicate.folders import NotMeasured, TaskRuns
from entrl_lab.replicate.study import Run, Study

SCALE = "mechanism at this scale"
OWN_KEYS = ("use", "title", "tasks")


def known() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of an analysis; ValueError naming those there are."""
    if name not in known():
        raise ValueError(f"no analysis {name!r}.{suggest(name, known())} There are {', '.join(known())}")
    return importlib.import_module(f"{__name__}.{name}")


def check(study: Study) -> None:
    """ValueError for an analysis, an option, an arm or a task a study misspells, before anything runs."""
    for entry in study.analyses:
        module = load(entry["use"])
        options = {k: v for k, v in entry.items() if k not in OWN_KEYS}
        takes = {name: hint for name, hint in argument_hints(module.analyse).items() if name != "runs"}
        if unknown := sorted(options.keys() - takes.keys()):
            raise ValueError(f"analysis {entry['use']!r} has no option {unknown[0]!r}; options: {', '.join(takes)}")
        for name, value in options.items():
            typed(value, takes[name], f"analysis {entry['use']!r}: {name}")
        for key in ("claims", "others"):
            if wrong := [pair for pair in options.get(key) or [] if len(pair) != 2]:
                raise ValueError(f"analysis {entry['use']!r}: {key} lists pairs [arm, other], got {wrong[0]}")
        names = {a.name for a in study.arms}
        for arm in _arms_named(options):
            if arm not in names:
                raise ValueError(f"analysis {entry['use']!r} names arm {arm!r}.{suggest(arm, sorted(names))}")
        tasks = {t.name for t in study.tasks}
        if unknown := [t for t in entry.get("tasks") or [] if t not in tasks]:
            raise ValueError(f"analysis {entry['use']!r} names task {unknown[0]!r}; tasks: {', '.join(sorted(tasks))}")


def _arms_named(options: Mapping[str, Any]) -> list[str]:
    """Arms are named by `arm` and `reference`, by the lists in `arms`, `groups`, `published`, `ours`, and by pairs."""
    found = [options[key] for key in ("arm", "reference") if isinstance(options.get(key), str)]
    for key in ("arms", "groups", "published", "ours"):
        value = options.get(key) or []
        lists = value.values() if isinstance(value, Mapping) else [value]
        found += [name for names in lists for name in names]
    return found + [name for key in ("claims", "others") for pair in options.get(key) or [] for name in pair]


def task_runs(study: Study, found: Sequence[tuple[Run, Mapping[str, float]]]) -> dict[str, TaskRuns]:
    """task -> the numbers of its finished runs, and the folders of those whose folder lies here."""
    return {
        task.name: TaskRuns(
            task=task.name,
            folders={
                arm.name: {
                    r.seed: study.run_dir(r)
                    for r, _ in found
                    if r.task is task and r.arm is arm and study.run_dir(r).is_dir()
                }
                for arm in study.arms_of(task)
            },
            numbers={
                arm.name: {r.seed: n for r, n in found if r.task is task and r.arm is arm}
                for arm in study.arms_of(task)
            },
            reference=study.reference,
            margin=study.margin,
        )
        for task in study.tasks
    }


def analyse_all(study: Study, found: Sequence[tuple[Run, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Every analysis of the study on every task it is asked for, in the order of the file."""
    tasks = task_runs(study, found)
    results = []
    for entry in study.analyses:
        module = load(entry["use"])
        options = {k: v for k, v in entry.items() if k not in OWN_KEYS}
        wanted = entry.get("tasks") or list(tasks)
        results.append(
            {
                "use": entry["use"],
                "title": entry.get("title", module.TITLE),
                "paper": module.PAPER,
                "options": options,
                "tasks": {name: _one(module, tasks[name], options) for name in wanted},
            }
        )
    return results


def _one(module: ModuleType, runs: TaskRuns, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = module.analyse(runs, **options)
    except NotMeasured as why:
        return {"measured": False, "saw": f"not measured: {why}", "verdict": f"not measured: {why}"}
    return {"measured": True, **found, "verdict": f"{found['verdict']} ({SCALE})"}
