"""Bytes that a run writes: checkpoints of weights and optimiser, and the trained model.

    a checkpoint   weights (of the adapter alone, where there is one) + optimiser state, over all processes
    at most        save_total_limit + 1 of them, as the newest is whole before the oldest goes; else one for each save

Not counted: logs, and a rollout that a checkpoint holds back where it falls between two updates of one.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from entrl.models.shape import ModelShape
from entrl.runs.plan.memory import Peak, Term, Training, optimiser_bytes, peak


def checkpoint_count(args: Any, steps: int | None) -> int | None:
    """Checkpoints that lie there together at most; None where nobody knows how many steps there will be."""
    saves = _saves(args, steps)
    limit = args.save_total_limit
    if limit is None or limit < 1:
        return saves
    return limit + 1 if saves is None else min(saves, limit + 1)


def _saves(args: Any, steps: int | None) -> int | None:
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else None
    if steps is None:
        return None
    if not args.save_steps:
        return 1  # at the last step alone
    every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(steps * args.save_steps))
    return math.ceil(steps / every)  # transformers saves at the last step as well


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


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` lies, or will lie."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
