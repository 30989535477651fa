"""Replay a run folder: read its windows, predict every setting, and where asked measure, compare and recommend."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from entrl.models.load import load_model, new_adapter
from entrl.runs.folder import read_recipe
from entrl.settings.names import suggest
from entrl.trainers.grpo.window_log import LoggedWindow, joined, load_step, logged_steps, windows_root
from entrl_lab.estimators import ESTIMATORS, Estimator
from entrl_lab.replay.agreement import Agreement, Pairs, agreement
from entrl_lab.replay.predict import Prediction, predict
from entrl_lab.replay.real_step import RealStep, StepOutcome, load_probe, load_state
from entrl_lab.replay.recommend import Calibration, Recommendation, Target, calibrate, recommend
from entrl_lab.replay.settings import Setting, logged_setting
from entrl_lab.replay.window_loss import check_window, unmodelled

LEAST_VALIDATED = 5  # settings, without which a rank correlation says little


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Everything a replay found. Tables have one row per window, settings in one order, the plain loss first."""

    settings: list[str]
    steps: list[int]
    predictions: list[list[Prediction]]
    calibration: dict[Estimator, Calibration] | None
    outcomes: list[list[StepOutcome]] | None = None
    agreement: dict[str, dict[str, Agreement]] | None = None  # states measured on -> estimator
    recommendation: Recommendation | None = None
    warnings: list[str] = field(default_factory=list)

    def means(self, estimator: Estimator) -> list[float]:
        """Mean predicted change per setting, in the estimator's unit."""
        return [sum(row[i].change[estimator] for row in self.predictions) / len(self.predictions) for i in self._each()]

    def relative(self, estimator: Estimator) -> list[float]:
        """Share of the plain loss's predicted change; NaN where that is 0."""
        means = self.means(estimator)
        return [m / means[0] if means[0] else math.nan for m in means]

    def measured(self, what: str) -> list[float | None]:
        """Mean measured change per setting, nats."""
        if self.outcomes is None:
            return [None] * len(self.settings)
        columns = [[getattr(row[i], what) for row in self.outcomes] for i in self._each()]
        return [None if None in c else sum(c) / len(c) for c in columns]

    def _each(self) -> range:
        return range(len(self.settings))

    def to_json(self) -> dict[str, Any]:
        summary = [
            {
                "setting": label,
                "predicted": {e: self.means(e)[i] for e in ESTIMATORS},
                "relative": {e: self.relative(e)[i] for e in ESTIMATORS},
                "measured_within": self.measured("within")[i],
                "measured_probe": self.measured("probe")[i],
            }
            for i, label in enumerate(self.settings)
        ]
        windows = [
            {
                "step": step,
                "fresh": row[0].fresh,
                "tokens": row[0].tokens,
                "predictions": [asdict(p) for p in row],
                "outcomes": None if self.outcomes is None else [asdict(o) for o in self.outcomes[w]],
            }
            for w, (step, row) in enumerate(zip(self.steps, self.predictions, strict=True))
        ]
        return {
            "settings": summary,
            "calibration": _plain(self.calibration),
            "agreement": _plain(self.agreement),
            "recommendation": None if self.recommendation is None else asdict(self.recommendation),
            "warnings": self.warnings,
            "windows": windows,
        }


def _plain(value: Any) -> Any:
    """Named tuples and dataclasses inside dicts as JSON holds them."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value


def read_windows(run_dir: str | Path, steps: Sequence[int] | None = None) -> list[LoggedWindow]:
    """Every logged window of a run, or of these steps; the ranks' rows joined.

    Raises FileNotFoundError where there is no such folder, ValueError where nothing was logged there.
    """
    if not Path(run_dir).is_dir():
        near = [p.name for p in Path(run_dir).parent.glob("*")] if Path(run_dir).parent.is_dir() else []
        raise FileNotFoundError(f"no run folder {run_dir}.{suggest(Path(run_dir).name, near)}")
    root = windows_root(run_dir)
    found = logged_steps(root)
    if not found:
        raise ValueError(
            f"{run_dir} has no logged windows; train with trainer.log_windows: [10, 11, 40, 41] (optimiser steps "
            "counted from 0), and trainer.log_window_state: true for --validate"
        )
    if missing := sorted(set(steps or []) - set(found)):
        raise ValueError(f"{run_dir} has no window of step {missing[0]}; logged are {', '.join(map(str, found))}")
    windows = [joined(load_step(root, s)) for s in found if steps is None or s in steps]
    temperatures = sorted({w.options.temperature for w in windows})
    if len(temperatures) > 1:
        raise ValueError(
            f"these windows were sampled at temperatures {temperatures}, so their entropies are of different policies; "
            "replay the steps of one temperature (--steps)"
        )
    return windows


def replay(
    run_dir: str | Path,
    settings: Sequence[Setting],
    *,
    steps: Sequence[int] | None = None,
    target: Target | None = None,
    estimator: Estimator = "natural",
    validate: bool = False,
    linear: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Replay:
    """The whole of `entrl replay`. `settings`: as `parse_settings` gives them, the plain loss first."""
    windows = read_windows(run_dir, steps)
    for window in windows:
        check_window(window)
    args = _training_args(run_dir)
    if args is not None:
        _check_composition(args, settings)
    notes = _warnings(args, windows, settings)
    predictions = [predict(w, settings) for w in windows]
    calibration = calibrate(windows, [_acted(w, notes) for w in windows])
    outcomes = _measure(run_dir, args, windows, settings, linear=linear, progress=progress) if validate else None
    scale = None if calibration is None else calibration[estimator].scale.value
    return Replay(
        settings=[s.label for s in settings],
        steps=[w.step for w in windows],
        predictions=predictions,
        calibration=calibration,
        outcomes=outcomes,
        agreement=None if outcomes is None else compare(predictions, outcomes),
        recommendation=None if target is None else recommend(predictions, target, estimator=estimator, scale=scale),
        warnings=notes,
    )


def _acted(window: LoggedWindow, notes: list[str]) -> Setting | None:
    try:
        return logged_setting(window.options.controllers)
    except (ValueError, TypeError) as error:
        note = f"windows whose controllers cannot be built again are left out of the calibration: {error}"
        if note not in notes:
            notes.append(note)
        return None


def _training_args(run_dir: str | Path) -> Any:
    """The trainer's options out of the run folder; None for windows without a recipe (logged by one's own script)."""
    if not (Path(run_dir) / "recipe.yaml").is_file():
        return None
    from entrl.runs.plan import build_args  # brings trl, which reading windows does without

    return build_args(read_recipe(Path(run_dir)), world_size=1)


def _check_composition(args: Any, settings: Sequence[Setting]) -> None:
    """Refuse what training would refuse, with the same words."""
    from entrl.trainers.refusals.checks import check_schedule  # brings trl

    for setting in settings:
        if setting.controllers and (problems := check_schedule(args, setting.controllers, [], 1)):
            raise ValueError(f"{setting.label}: {problems[0]}")


def _warnings(args: Any, windows: Sequence[LoggedWindow], settings: Sequence[Setting]) -> list[str]:
    notes = []
    fresh = sum(w.options.fresh for w in windows)
    stale = [s.label for s in settings if any(c.needs_stale_policy for c in s.controllers)]
    if fresh and stale:
        notes.append(
            f"{fresh} of {len(windows)} windows are fresh (first update of a rollout), where "
            f"{', '.join(stale)} have no penalty to add: all they do there is set their ratio range"
        )
    unscored = any(w.old_entropies_BT is None and not w.options.fresh for w in windows)
    if unscored and any(c.scope == "step" for s in settings for c in s.controllers):
        notes.append(
            "windows that are not fresh carry no entropies of the sampling policy; controllers that select by entropy "
            "under scope 'step' are shown those of the current policy"
        )
    if args is not None and (left_out := unmodelled(args, windows)):
        notes.append(f"the run's loss also has {'; '.join(left_out)}. Replay leaves it out of every setting alike")
    return notes


def _measure(
    run_dir: str | Path,
    args: Any,
    windows: Sequence[LoggedWindow],
    settings: Sequence[Setting],
    *,
    linear: bool,
    progress: Callable[[str], None],
) -> list[list[StepOutcome]]:
    if args is None:
        raise FileNotFoundError(
            f"{run_dir} has no recipe.yaml, so there is no model to step; --validate replays runs of `entrl train`"
        )
    if left_out := unmodelled(args, windows):
        raise ValueError(f"--validate would not take this run's steps: its loss also has {'; '.join(left_out)}")
    states = [load_state(windows_root(run_dir), w.step) for w in windows]  # all of them, before anything slow starts
    model, probe = _recipe_model(read_recipe(Path(run_dir))), load_probe(windows_root(run_dir))
    table = []
    for window, state in zip(windows, states, strict=True):
        progress(f"step {window.step}: taking it under {len(settings)} settings")
        real = RealStep(model, window, state, probe=probe, bf16=bool(args.bf16))
        table.append([real.take(s, linear=linear) for s in settings])
    return table


def _recipe_model(recipe: Any) -> Any:
    lora = recipe.build_lora()
    model, _ = load_model(recipe.model, lora)
    lora = new_adapter(model, lora)
    if lora is None:
        return model
    from peft import get_peft_model

    return get_peft_model(model, lora)


def compare(
    predictions: Sequence[Sequence[Prediction]], outcomes: Sequence[Sequence[StepOutcome]]
) -> dict[str, dict[str, Agreement]]:
    """Predicted against measured, on the window's own states and on the probe prefixes where there are some.

    Besides the estimators, `exact_gradient` where it was asked for: how far a first-order step in parameter space
    explains what was measured on the same states.
    """
    found: dict[str, dict[str, Agreement]] = {}
    for what in ("within", "probe"):
        if any(getattr(o, what) is None for row in outcomes for o in row):
            continue
        measured = [tuple(getattr(o, what) for o in row) for row in outcomes]
        columns: dict[str, list[tuple[float, ...]]] = {
            e: [tuple(p.change[e] for p in row) for row in predictions] for e in ESTIMATORS
        }
        linear = [tuple(getattr(o, f"linear_{what}") for o in row) for row in outcomes]
        if all(x is not None for row in linear for x in row):
            columns["exact_gradient"] = linear
        found[what] = {
            name: agreement([Pairs(x, y) for x, y in zip(column, measured, strict=True)])
            for name, column in columns.items()
        }
    return found


# --- what a person reads -----------------------------------------------------------------------------------------


def print_replay(found: Replay, console: Console, *, estimator: Estimator = "natural") -> None:
    console.print(_settings_table(found, estimator))
    if found.calibration is not None:
        fit = found.calibration[estimator]
        doubt = "" if fit.r2 > 0 else "; it says no more of a window than their mean does, so read the order, not nats"
        console.print(
            f"scale {_interval(fit.scale)} nats per predicted unit, from {fit.windows} windows of the run itself "
            f"(R2 {fit.r2:.2f}{doubt})",
            highlight=False,
        )
    if found.agreement is not None:
        _print_agreement(found, console)
    if found.recommendation is not None:
        _print_recommendation(found.recommendation, console)
    for note in found.warnings:
        console.print(f"warning: {note}", highlight=False, markup=False)


def _settings_table(found: Replay, estimator: Estimator) -> Table:
    fit = None if found.calibration is None else found.calibration[estimator].scale.value
    table = Table(title=f"first-order entropy change ({estimator}), mean over {len(found.steps)} windows")
    heads = [
        "setting",
        "of plain",
        *(["nats a step"] if fit is not None else []),
        "tokens changed",
        "A < 0",
        "selected",
    ]
    if found.outcomes is not None:
        heads += ["measured, own states", "measured, probe"]
    for head in heads:
        table.add_column(head, justify="left" if head == "setting" else "right")
    relative, means = found.relative(estimator), found.means(estimator)
    within, probe = found.measured("within"), found.measured("probe")
    for i, label in enumerate(found.settings):
        column = [row[i] for row in found.predictions]
        changed, negative = sum(p.changed for p in column), sum(p.changed_negative for p in column)
        selected = [p.selected for p in column]
        cells = [label, f"{relative[i]:+.1%}"]
        cells += [f"{fit * means[i]:+.2e}"] if fit is not None else []
        cells += [f"{changed / sum(p.tokens for p in column):.2%}", f"{negative / changed:.0%}" if changed else "-"]
        cells.append("-" if None in selected else f"{sum(s or 0 for s in selected) / len(selected):.1f}")
        if found.outcomes is not None:
            cells += ["-" if v is None else f"{v:+.2e}" for v in (within[i], probe[i])]
        table.add_row(*cells)
    return table


def _print_agreement(found: Replay, console: Console) -> None:
    assert found.agreement is not None
    table = Table(title="predicted against measured, 95 % intervals over windows")
    heads = (
        "states",
        "estimator",
        "Spearman of means",
        "Kendall of means",
        "Spearman in a window",
        "R2 of differences",
    )
    for head in heads:
        table.add_column(head)
    names = {"within": "the window's own", "probe": "probe prefixes"}
    for what, estimators in found.agreement.items():
        for estimator, a in estimators.items():
            cells = [_interval(x) for x in (a.spearman_of_means, a.kendall_of_means, a.spearman_within)]
            table.add_row(names[what], estimator, *cells, f"{a.r2:.2f}")
    console.print(table)
    if len(found.settings) < LEAST_VALIDATED:
        console.print(f"{len(found.settings)} settings say little about an order; ask for at least {LEAST_VALIDATED}")


def _print_recommendation(best: Recommendation, console: Console) -> None:
    lines = [
        f"recommended: {best.setting}",
        f"  {best.gap:.1%} of the plain loss's change away from the target; {best.chosen_share:.0%} of resampled sets "
        f"of windows name it, order of settings stable to tau {best.rank_stability:.2f}",
    ]
    if best.runners_up:
        lines.append("  else " + ", ".join(f"{name} ({share:.0%})" for name, share in best.runners_up[:3]))
    if not best.reachable:
        lines.append("  the target lies outside what these settings span; ask for stronger or weaker ones")
    console.print("\n".join(lines), highlight=False, markup=False)


def _interval(x: Any) -> str:
    return f"{x.value:.3g}" if math.isnan(x.lo) else f"{x.value:.3g} [{x.lo:.3g}, {x.hi:.3g}]"
