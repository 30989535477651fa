"""Bytes that a run writes: checkpoints of weights and optimiser, and the trained model.

    a checkpoint   weights (of the adapter alone, where there is one) + optimiser state, over all processes
    at most        save_total_limit + 1 of them, as the newest is whole before the oldest goes (and the best, where the
                   limit of 1 has no room for it); else one for each save, which save_strategy: best makes after no
                   more than each evaluation

Not counted: logs, and a rollout that a checkpoint holds back where it falls between two updates of one.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entrl.models.shape import ModelShape
from entrl.runs.law_watch import evaluation_steps
from entrl.runs.ours import nearest, refuse_foreign
from entrl.runs.plan.memory import Peak, Term, Training, optimiser_bytes, peak


def checkpoint_count(args: Any, steps: int | None, at: Sequence[int] | str | None = None) -> int | None:
    """Checkpoints that lie there together at most; None where nobody knows how many steps there will be.

    at: `eval.at` of the recipe
    """
    saves = _saves(args, steps, at)
    limit = args.save_total_limit
    if limit is None or limit < 1:
        return saves
    most = limit + 1 + (limit == 1 and bool(args.load_best_model_at_end))
    return most if saves is None else min(saves, most)


def _saves(args: Any, steps: int | None, at: Sequence[int] | str | None) -> int | None:
    strategy = _plain(args.save_strategy)
    if strategy == "no":
        return 0
    if strategy == "best":
        return _evaluations(args, steps, at)
    if strategy == "epoch":
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else None
    if steps is None:
        return None
    if not args.save_steps:
        return 1  # at the last step alone
    return math.ceil(steps / _every(args.save_steps, steps))  # transformers saves at the last step as well


def _evaluations(args: Any, steps: int | None, at: Sequence[int] | str | None) -> int | None:
    """Evaluations while training: those of `eval.at` and the trainer's own."""
    by = _plain(args.eval_strategy)
    if by == "epoch" and at is None:
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else None
    if steps is None or by == "epoch":
        return len(at) if isinstance(at, list) and by == "no" else None
    after = {step for step in evaluation_steps(at, steps) if step <= steps}
    if by == "steps" and args.eval_delay <= steps:  # transformers evaluates after the last step as well
        every = _every(args.eval_steps or args.logging_steps, steps)
        after |= {step for step in (*range(every, steps, every), steps) if step >= args.eval_delay}
    return len(after)


def _every(given: float, steps: int) -> int:
    """Steps between two; below 1 a share of all."""
    return int(given) if given >= 1 else max(1, math.ceil(steps * given))


def _plain(option: Any) -> str:
    return str(getattr(option, "value", option))


def disk_needed(shape: ModelShape, run: Training, args: Any, count: int) -> Peak:
    """What the run folder holds at most, beside logs."""
    item = 4 if run.lora else run.item
    weights, what = (shape.trained if run.lora else shape.parameters) * item, "adapter" if run.lora else "parameters"
    state = 0.0 if args.save_only_model else shape.trained * optimiser_bytes(run.optimiser, run.trained_item)
    each = optimiser_bytes(run.optimiser, run.trained_item)
    size = shape.trained if run.lora else shape.parameters
    return peak(
        "checkpoints",
        [
            Term(name="weights", size=count * weights, formula=f"{count} x {size:.4g} of {what} x {item} bytes"),
            Term(
                name="optimiser", size=count * state, formula=f"{count} x {shape.trained:.4g} trained x {each:g} bytes"
            ),
            Term(name="trained model", size=weights, formula=f"{size:.4g} of {what} x {item} bytes"),
        ],
    )


def place_problems(folder: Path) -> list[str]:
    """Why no run may write there, on any machine that has these files."""
    try:
        refuse_foreign(folder, kind="a run folder", place="trainer.output_dir")
    except ValueError as error:
        return [str(error)]
    return []


def unwritable(folder: Path) -> list[str]:
    """Why it cannot be made or written on this machine, found by making an empty folder there for a moment."""
    there = nearest(folder)
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".entrl-plan-"):
            return []
    except OSError as error:
        why = os.strerror(error.errno or 0)
        return [f"trainer.output_dir: nothing can be written in {there} here ({why}); set it to another place"]


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` lies, or will lie."""
    return shutil.disk_usage(nearest(folder)).free
