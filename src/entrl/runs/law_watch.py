"""The law of `entrl.stats.law` while a run trains: refits, what it says into the logs, one warning; and dense
evaluation.

    law/a, law/b, law/ceiling, law/ceiling_lo, law/ceiling_hi, law/r2    the newest fit with its 95 % interval
    law/points       points it rests on                law/from_eval      1: accuracy from evaluations, 0: of rollouts
    law/refused      1: the points cannot carry a fit   law/intervention  1: something holds entropy; the law is void
    law/spent        1: entropy is spent, as the warning said in words

`LawWatch` writes into the `logs` of a training log call, which every callback of the trainer shares: list it before
the callback that writes metrics.jsonl. Only rank 0 has the numbers, as only rank 0 writes.

State: none of its own in checkpoints. A resumed run rebuilds it from metrics.jsonl, which a resume has already cut
back to the checkpoint's step.

Needs:   transformers callbacks; the metric names of EntropyGRPOTrainer and TRL 1.16
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from entrl.settings.json_lines import json_lines
from entrl.stats.law import ACCURACY, ENTROPY, MIN_SERIES, LawRefused, bootstrap_law, fit_law, held_by, law_series
from entrl.trainers.shared.rewards import needed_signals, reward_name

EVERY = 5  # new points between two fits
RESAMPLES = 400  # of the interval in the logs; the report takes 2000
FELL = 0.9  # share of its start; above it entropy has not fallen, and is not what is spent
HOLD = "hold entropy up from an earlier checkpoint (a controller, clip-higher, a higher temperature)"
HARDER = "take harder problems"
POINTS_LEFT = 0.01  # less accuracy than this between here and the ceiling, and the entropy is spent
ENTROPY_LEFT = 0.10  # or less than this share of the entropy of the start
ENDS = 3  # training logs averaged for the entropy of the start and of now
EARLY_GROWTH = (3 / 2, 4 / 3)  # 4, 6, 8, 12, 16, 24, ...: each step times one of these, in turn
REGULAR_GAPS = 16  # late in the run no gap is longer than this share of it, or nothing is left to forecast


def interventions(args: Any, controllers: Sequence[Any] = (), reward_funcs: Sequence[Any] = ()) -> list[str]:
    """What holds or shifts entropy in this run, in words; the law is about runs in which nothing does.

    args: a GRPOConfig, or anything with some attributes of one (missing ones count as TRL's defaults, which are off).
    controllers and reward_funcs: objects; a reward counts if it reads token entropies.
    """
    reading = [reward_name(r) for r in reward_funcs if "token_entropies" in needed_signals(r)]
    return [
        *(f"controller {c.name}" for c in controllers),
        *(f"reward {name} reads entropies" for name in reading),
        *held_by(vars(args)),
    ]


class LawWatch(TrainerCallback):
    """Collects (step, entropy, accuracy) from the logs and refits the law every `every` new points.

    active: what `interventions` found, if anything
    history: metrics.jsonl of the run, read when training resumes at a later step than 0
    say: takes the one warning in words; default `warnings.warn`
    """

    def __init__(
        self,
        *,
        active: Sequence[str] = (),
        every: int = EVERY,
        history: Path | None = None,
        say: Callable[[str], None] | None = None,
        entropy: str = ENTROPY,
        accuracy: str = ACCURACY,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 point, got {every}; 5 refits after every fifth")
        self.active, self.every, self.history = list(active), every, history
        self.say = say or (lambda text: warnings.warn(text, stacklevel=2))
        self.names = {"entropy": entropy, "accuracy": accuracy}
        self.train: list[dict[str, Any]] = []
        self.evals: list[dict[str, Any]] = []
        self.fitted_points = 0
        self.spent = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step and self.history is not None and not self.train:
            self._recall(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if any(key.startswith("eval_") for key in logs):
            self._collect(self.evals, state.global_step, {k.removeprefix("eval_"): v for k, v in logs.items()})
            return
        self._collect(self.train, state.global_step, logs)
        logs.update(self.refit())

    def refit(self) -> dict[str, float]:
        """The law's metrics if enough points are new since the last fit, else nothing."""
        series, tested = law_series(self.train, self.evals, **self.names)
        points = len(series.times)
        if points < MIN_SERIES or abs(points - self.fitted_points) < self.every:  # fewer: evaluations took over
            return {}
        self.fitted_points = points
        out = {"law/points": points, "law/from_eval": float(tested), "law/intervention": float(bool(self.active))}
        fit = None
        try:
            fit = fit_law(series.entropy, series.accuracy, times_N=series.times, min_points=MIN_SERIES)
        except LawRefused:
            out["law/refused"] = 1.0
        else:
            ends = bootstrap_law(series.entropy, series.accuracy, resamples=RESAMPLES, seed=0).ceiling
            out |= {"law/a": fit.a, "law/b": fit.b, "law/ceiling": fit.ceiling, "law/r2": fit.r2, "law/refused": 0.0}
            out |= {"law/ceiling_lo": ends[0], "law/ceiling_hi": ends[1]}
        self._warn(fit)
        return {**out, "law/spent": float(self.spent)}

    def _warn(self, fit: Any) -> None:
        if self.spent:
            return
        known = [row[self.names["entropy"]] for row in self.train if self.names["entropy"] in row]
        start, now = float(np.mean(known[:ENDS])), float(np.mean(known[-ENDS:]))
        why, instead = None, HOLD
        if now < ENTROPY_LEFT * start:
            why = f"entropy is spent: it fell to {now / start:.0%} of its start ({start:.3f} -> {now:.3f} nats a token)"
        elif fit is not None and fit.a > 0 and not self.active and fit.ceiling - fit.predict(now) < POINTS_LEFT:
            what = "entropy is spent"
            if now > FELL * start:
                what, instead = "accuracy is at its ceiling", HARDER
            left = 100 * float(fit.ceiling - fit.predict(now))
            why = f"{what}: {left:.1f} points are left below {fit.ceiling:.1%}, by the law R = b - a e^H"
        if why is not None:
            self.spent = True
            self.say(f"{why}. More steps of the same kind will probably add little; stop here, or {instead}")

    def _collect(self, rows: list[dict[str, Any]], step: int, values: dict[str, Any]) -> None:
        row = {"step": step} | {n: float(v) for n in self.names.values() if isinstance(v := values.get(n), int | float)}
        if len(row) > 1:
            rows.append(row)

    def _recall(self, step: int) -> None:
        """The rows up to `step` of metrics.jsonl, and whether the warning was given."""
        assert self.history is not None
        if not self.history.is_file():
            return
        for _, row in json_lines(self.history):
            if row["step"] <= step:
                self._collect(self.evals if row["kind"] == "eval" else self.train, row["step"], row)
                self.fitted_points = int(row.get("law/points") or self.fitted_points)
                self.spent = self.spent or bool(row.get("law/spent"))


class DenseEvaluation(TrainerCallback):
    """Evaluates after the given optimiser steps, whatever `eval_strategy` says besides."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = frozenset(steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step in self.steps:
            control.should_evaluate = True
        return control


def evaluation_steps(at: Sequence[int] | str | None, max_steps: int) -> list[int]:
    """Steps of the recipe key `eval.at`: a list as it is, `early` as a schedule dense at the start; None gives none.

    early: 1, 2, 3, 4, 6, 8, 12, ... with no gap longer than 1/16 of the run, and the last step. In the paper's runs
    the first 200 of 2 400 steps took three quarters of the fall of entropy (arXiv 2505.22617, section 2).
    """
    if at is None:
        return []
    if at != "early":
        return [int(step) for step in at]
    if max_steps < 1:
        raise ValueError(f"eval.at: early needs the number of steps, got max_steps={max_steps}; set trainer.max_steps")
    longest, steps = max(1, max_steps // REGULAR_GAPS), [1, 2, 3, 4]
    while steps[-1] < max_steps:
        grown = round(steps[-1] * EARLY_GROWTH[len(steps) % 2])
        steps.append(min(grown, steps[-1] + longest))
    return [step for step in steps if step <= max_steps - longest / 2] + [max_steps]
