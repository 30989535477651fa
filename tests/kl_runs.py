"""Steps under a dynamic KL, cut in different ways: the same sixteen completions, one or two ranks.

As a script (`accelerate launch ... tests/kl_runs.py OUT MODEL`) it runs every cut for two processes and writes what
each rank saw to OUT.
"""

import sys
from pathlib import Path

import torch
from tiny_model import digits, trainer
from window_runs import Gradients, one_window

from entrl.controllers.dynamic_kl import DynamicKL
from entrl.controllers.hooks import Controller

CUTS = {1: ((16, 1), (4, 4)), 2: ((8, 1), (2, 4))}  # rows a micro-batch, micro-batches
KINDS = {
    "log": {"rule": "log", "window_factor": 0.5},
    "multiplicative": {"rule": "multiplicative"},
}


class Publishes:
    """Digits written, and per row what a reward may publish: a difficulty by prompt, windows by token."""

    __name__ = "publishes"
    published_columns = ("difficulty", "high_entropy")

    def __init__(self) -> None:
        self.row_columns = {}

    def __call__(self, prompts, completions, completion_ids, **_):
        self.row_columns = {
            "difficulty": [len(p) % 4 - 1 for p in prompts],
            "high_entropy": [torch.tensor(ids) % 3 == 0 for ids in completion_ids],
        }
        return digits(completions)


def kl_run(folder: Path, model: str, *, rows: int, slices: int, kind: str, world: int = 1) -> dict:
    """Four optimiser steps over one window: each step's gradient, and what was logged of it."""
    gradients = Gradients()
    acting: Controller = DynamicKL(**KINDS[kind])
    run = trainer(
        folder,
        Publishes(),
        controllers=[acting],
        model=model,
        beta=0.5,
        loss_type="dapo",
        **one_window(rows=rows, slices=slices, steps=4, world=world),
    )
    run.add_callback(gradients)
    run.train()
    metrics = [
        {k: v for k, v in e.items() if k.startswith("dynamic_kl/")} for e in run.state.log_history if "loss" in e
    ]
    return {"gradients": gradients.vectors, "metrics": metrics, "multipliers": acting.multipliers}


if __name__ == "__main__":
    out, start = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    results = {
        (rows, slices, kind): kl_run(out, start, rows=rows, slices=slices, kind=kind, world=2)
        for rows, slices in CUTS[2]
        for kind in KINDS
    }
    torch.save(results, out / f"rank{torch.distributed.get_rank()}.pt")
