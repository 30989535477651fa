"""A study file: tasks x arms x paired seeds on one schedule, and how each of its runs is started.

    prepare: [cold-start.yaml]        optional; cold starts that are made before the first run, relative to the study
    recipe: grpo.yaml                 the recipe every arm starts from, relative to the study
    out: runs/tiny-study              one run folder per arm and seed below it
    rows: rows.jsonl                  optional; finished runs as lines, beside the study, to be committed
    seeds: [1, 2, 3]
    reference: grpo                   arm the others are compared with
    margin: 0.02                      accepted loss of accuracy, fixed before the first run
    eval: {size: 300, samples: 8}     evaluation of every arm, in place of the recipes' own
    tasks:                            optional; runs then lie in out/TASK/ARM-SEED, results are grouped by task
      sums: {}
      harder: {set: {data.args: {...}, eval.args: {...}}, arms: [grpo, clip-cov]}
    arms:
      grpo: {}
      clip-cov: {recipe: clip-cov.yaml, tune: [{controllers.0.args.fraction: 0.01}, {...}]}
      hotter: {set: {trainer.temperature: 1.2}, seeds: [1, 2], why: "..."}
      dpo: {offline: dpo.yaml, set: {trainer.learning_rate: 0.0}}     taught by `entrl offline` first, seed by seed
    tuning: {seeds: [100], criterion: sampled_accuracy, set: {eval.size: 100}}
    analyses: [{use: law_forecast, arm: grpo}]

Arms share the schedule: `trainer` options may differ between arms only by what an arm names under `set` or `tune`
(checked before anything runs). Overrides are applied in the order: the study's `eval`, the task's `set`, the arm's
`set`, the tuned setting, the seed.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from entrl.runs.recipe import Recipe, load_recipe
from entrl.settings.groups import SettingsFile, build, check, check_keys, field_hints, flat
from entrl.settings.secrets import mask

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")  # of arms and tasks: they become folders
ONLY_TASK = ""  # the task of a study that names none


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method: a recipe and what it changes of it. `set` and the entries of `tune` hold dotted recipe keys.

    recipe: None = the task's or the study's. seeds: None = the study's. tune: settings tried before the real runs.
    offline: a file of `entrl offline`; each run starts from the model that it makes with the run's seed.
    label: its name in the picture, "" = its own.
    """

    name: str
    recipe: Path | None = None
    set: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    why: str = ""
    seeds: list[int] | None = None
    tune: list[dict[str, Any]] = field(default_factory=list)
    offline: Path | None = None

    def __post_init__(self) -> None:
        good = all(self.tune)
        check(good, f"tune of arm {self.name!r} must be a list of overrides like [{{key: value}}], got {self.tune}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A group of runs that are compared with one another. arms: None = every arm of the study."""

    name: str = ONLY_TASK
    recipe: Path | None = None
    set: dict[str, Any] = field(default_factory=dict)
    arms: list[str] | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How settings are chosen: the best mean of `criterion` over `seeds`, higher is better; first wins a tie."""

    seeds: list[int]
    criterion: str = "sampled_accuracy"
    task: str | None = None  # tune on this task alone and use its choice on every task; None = each task for itself
    set: dict[str, Any] = field(default_factory=dict)  # overrides of tuning runs only, such as a smaller evaluation

    def __post_init__(self) -> None:
        _check_seeds("tuning.seeds", self.seeds, least=1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study. setting: position in the arm's `tune`, None for an arm that tunes nothing."""

    task: Task
    arm: Arm
    seed: int
    setting: int | None = None
    tuning: bool = False

    @property
    def name(self) -> str:
        """Folder below the study's `out`."""
        own = f"tuning/{self.arm.name}.{self.setting}-{self.seed}" if self.tuning else f"{self.arm.name}-{self.seed}"
        return f"{self.task.name}/{own}" if self.task.name else own


@dataclass(frozen=True, kw_only=True)
class Study(SettingsFile):
    """A parsed study file."""

    WHAT: ClassVar[str] = "study"
    DOCS: ClassVar[str] = "recipes/README.md"

    recipe: Path
    out: Path
    seeds: list[int]
    reference: str
    margin: float
    arms: list[Arm]
    tasks: list[Task] = field(default_factory=lambda: [Task()])
    eval: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None
    analyses: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""
    prepare: list[Path] = field(default_factory=list)  # files of entrl.teach.cold_start, made once for all runs
    rows: Path | None = None  # finished runs as lines (entrl_lab.replicate.rows)

    @classmethod
    def prepared(cls, groups: dict[str, Any], *, name: str, base: Path) -> dict[str, Any]:
        """Arms and tasks get their names, and files lie beside the study."""
        starts = groups.get("prepare", [])
        good = isinstance(starts, list) and all(isinstance(file, str) for file in starts)
        check(good, f"prepare must be a list of files of cold starts, got {starts!r}")
        inner = {
            "arms": [_named(Arm, key, entry, base) for key, entry in _entries(groups, "arms")],
            "tasks": [_named(Task, key, entry, base) for key, entry in _entries(groups, "tasks")] or [Task()],
            "prepare": [base / file for file in starts],
            "analyses": [_analysis(entry) for entry in groups.get("analyses", [])],
        }
        rows = {"rows": base / groups["rows"]} if isinstance(groups.get("rows"), str) else {}
        return _beside(base, groups) | inner | rows

    def __post_init__(self) -> None:
        names = [a.name for a in self.arms]
        if self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is no arm of {self.file}; arms: {', '.join(names)}")
        _check_seeds("seeds", self.seeds)
        if self.margin <= 0:
            raise ValueError(f"margin must be > 0 (accuracy you would give up), got {self.margin}")
        for task in self.tasks:
            if task.arms is not None and (unknown := [a for a in task.arms if a not in names]):
                raise ValueError(f"task {task.name!r} names arms {unknown} that {self.file} does not have: {names}")
            if self.reference not in {a.name for a in self.arms_of(task)}:
                raise ValueError(f"task {task.name!r} lacks the reference {self.reference!r}; add it to its arms")
        for arm in self.arms:
            self._check_arm(arm)
        self._check_tuning()

    def _check_arm(self, arm: Arm) -> None:
        if arm.seeds is None:
            return
        _check_seeds(f"seeds of arm {arm.name!r}", arm.seeds)
        reference = next(a for a in self.arms if a.name == self.reference)
        if len(set(arm.seeds) & set(self.seeds_of(reference))) < 2:
            raise ValueError(
                f"arm {arm.name!r} shares fewer than two seeds with {self.reference!r} ({arm.seeds} and "
                f"{self.seeds_of(reference)}); differences are paired over common seeds"
            )

    def _check_tuning(self) -> None:
        sizes = {a.name: len(a.tune) for a in self.arms if a.tune}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"arms tune with different budgets, settings per arm: {sizes}; give each the same number")
        if sizes and self.tuning is None:
            raise ValueError(f"arms {sorted(sizes)} tune, and the study has no `tuning`; add tuning: {{seeds: [...]}}")
        if self.tuning is None:
            return
        if self.rows is not None:
            raise ValueError("rows keeps the runs of the comparison and no tuning runs; leave out rows, or tuning")
        if not self.tuning_tasks():
            raise ValueError(f"tuning.task {self.tuning.task!r} is no task of {[t.name for t in self.tasks]}")
        if self.tuning.task is not None:
            here = {a.name for a in self.arms_of(self.tuning_tasks()[0])}
            if absent := sorted(sizes.keys() - here):
                raise ValueError(f"arms {absent} tune, but task {self.tuning.task!r} does not run them; add them there")
        used = set(self.seeds).union(*(a.seeds or [] for a in self.arms))
        if shared := sorted(used & set(self.tuning.seeds)):
            raise ValueError(
                f"tuning.seeds {shared} are seeds of the comparison too; a setting chosen on a seed looks better on "
                "that seed: take other tuning seeds"
            )

    def arms_of(self, task: Task) -> list[Arm]:
        return [a for a in self.arms if task.arms is None or a.name in task.arms]

    def seeds_of(self, arm: Arm) -> list[int]:
        return self.seeds if arm.seeds is None else arm.seeds

    def tuning_tasks(self) -> list[Task]:
        """The tasks on which settings are chosen."""
        one = None if self.tuning is None else self.tuning.task
        return [t for t in self.tasks if one is None or t.name == one]

    def tuning_runs(self) -> list[Run]:
        """Every setting of every arm that tunes, seed by seed."""
        if self.tuning is None:
            return []
        return [
            Run(task=task, arm=arm, seed=seed, setting=i, tuning=True)
            for seed in self.tuning.seeds
            for task in self.tuning_tasks()
            for arm in self.arms_of(task)
            for i in range(len(arm.tune))
        ]

    def runs(self, chosen: Mapping[tuple[str, str], int]) -> list[Run]:
        """The runs of the comparison, seed by seed, so that a study stopped early holds whole pairs.

        chosen: (task, arm) -> position in the arm's `tune`, for the arms that tune.
        """
        seeds = list(dict.fromkeys([*self.seeds, *(s for a in self.arms for s in self.seeds_of(a))]))
        return [
            Run(task=task, arm=arm, seed=seed, setting=chosen.get((task.name, arm.name)))
            for seed in seeds
            for task in self.tasks
            for arm in self.arms_of(task)
            if seed in self.seeds_of(arm)
        ]

    def run_dir(self, run: Run) -> Path:
        return self.out / run.name

    def recipe_file(self, run: Run) -> Path:
        return run.arm.recipe or run.task.recipe or self.recipe

    def offline_dir(self, run: Run) -> Path:
        """Where the offline run lies that a run starts from."""
        folder = self.run_dir(run)
        return folder.with_name(f"{folder.name}-offline")

    def offline_words(self, run: Run) -> list[str]:
        """Overrides of `entrl offline` for one run."""
        keys = {"trainer.seed": run.seed, "data.seed": run.seed, "out": str(self.offline_dir(run))}
        return [f"{key}={json.dumps(value)}" for key, value in keys.items()]

    def recipe_of(self, run: Run) -> Recipe:
        return load_recipe(self.recipe_file(run), self.words(run))

    def words(self, run: Run) -> list[str]:
        """Overrides of `entrl train` for one run."""
        keys: dict[str, Any] = {f"eval.{key}": value for key, value in self.eval.items()}
        # a later override of one key replaces an earlier one, and is applied after keys it may lie within
        for part in (
            run.task.set,
            run.arm.set,
            run.arm.tune[run.setting] if run.setting is not None else {},
            self.tuning.set if run.tuning and self.tuning is not None else {},
            # the data order is part of what seeds pair: arms with one seed see the same problems in the same order
            {"trainer.seed": run.seed, "data.seed": run.seed, "trainer.output_dir": str(self.run_dir(run))},
            {} if run.arm.offline is None else {"model.path": str(self.offline_dir(run) / "model")},
        ):
            keys = {k: v for k, v in keys.items() if k not in part} | dict(part)
        return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def _check_seeds(what: str, seeds: Sequence[int], *, least: int = 2) -> None:
    if len(seeds) < least or len(set(seeds)) != len(seeds):
        count = "two or more" if least == 2 else "one or more"
        raise ValueError(f"{what} must be {count} different integers, got {list(seeds)}")


load_study = Study.read


def _entries(groups: Mapping[str, Any], key: str) -> Iterable[tuple[Any, Any]]:
    """Of a group that is written name by name."""
    entries = groups.get(key, {})
    check(isinstance(entries, Mapping), f"{key} must be a mapping, name by name, got {entries!r}")
    return entries.items()


def _named(cls: type, name: Any, entry: Any, base: Path) -> Any:
    what = cls.__name__.lower()
    check(
        isinstance(name, str) and NAME.fullmatch(name) is not None and name != "tuning",
        f"{what} {name!r} becomes a folder: letters, digits and . _ + - only, and not `tuning`",
    )
    check_keys(entry or {}, [key for key in field_hints(cls) if key != "name"], where=f"{what} {name!r}")
    return build(cls, _beside(base, entry or {}) | {"name": name}, f"{what} {name!r}")


def _beside(base: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Files that are named relative to the study."""
    return {k: base / v if k in ("recipe", "offline") and isinstance(v, str) else v for k, v in entry.items()}


def _analysis(entry: Any) -> dict[str, Any]:
    entry = {"use": entry} if isinstance(entry, str) else entry
    good = isinstance(entry, dict) and isinstance(entry.get("use"), str)
    check(good, f"an analysis is written {{use: name, option: value}}, got {entry!r}")
    return entry


def check_same_schedule(study: Study) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """task -> arm -> option -> [reference's, arm's] `trainer` options; ValueError for a change no arm declares."""
    return {task.name: _changes(study, task) for task in study.tasks}


def _changes(study: Study, task: Task) -> dict[str, dict[str, list[Any]]]:
    seed = study.seeds[0]

    def trainer_of(arm: Arm, setting: int | None) -> dict[str, Any]:
        return flat(mask(study.recipe_of(Run(task=task, arm=arm, seed=seed, setting=setting)).trainer))

    reference = next(a for a in study.arms if a.name == study.reference)
    base = trainer_of(reference, 0 if reference.tune else None)
    changes = {}
    for arm in study.arms_of(task):
        mine = trainer_of(arm, 0 if arm.tune else None)
        keys = [k for k in sorted(base.keys() | mine.keys()) if base.get(k) != mine.get(k) and k != "output_dir"]
        declared = {*arm.set, *(k for setting in arm.tune for k in setting)}
        undeclared = [k for k in keys if not any(_within(f"trainer.{k}", d) for d in declared)]
        if undeclared:
            raise ValueError(
                f"arm {arm.name!r} trains with other options than {study.reference!r}: {undeclared}; a comparison "
                "needs one schedule. Bring the recipes together, or name the option under the arm's `set`"
            )
        changes[arm.name] = {k: [base.get(k, "TRL's default"), mine.get(k, "TRL's default")] for k in keys}
        for setting in range(1, len(arm.tune)):  # a misspelt key of a late setting should not wait for its run
            trainer_of(arm, setting)
    return changes


def _within(key: str, declared: str) -> bool:
    return key == declared or key.startswith(declared + ".")
