"""Writes logged windows: collects the micro-batches of a step that is to be logged, and what came of the step.

`LoggedWindows` hands over plain tensors; the file format is `entrl.trainers.grpo.window_log`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import ROW_TENSORS, Controller, Rows
from entrl.trainers.grpo.window_log import FOLDER, STATE_FILE, LoggedWindow, StepOptions, save_window, window_folder
from entrl.trainers.shared.row_columns import stacked

PADDED_LEFT = ("prompt_ids_BT", "prompt_mask_BT")


class WindowRecorder:
    """The windows of some optimiser steps, one file per rank and step.

    steps: optimiser steps counted from 0; with_state: also parameters and optimiser before the step (rank 0).
    """

    def __init__(
        self, folder: str | Path, *, steps: Sequence[int], with_state: bool, rank: int, world_size: int
    ) -> None:
        self.folder = Path(folder)
        self.steps = frozenset(steps)
        self.with_state = with_state
        self.rank, self.world_size = rank, world_size
        self._parts: list[dict[str, Tensor]] = []
        self.latest: LoggedWindow | None = None  # written, and waiting for what came of the step

    def wants(self, step: int) -> bool:
        return step in self.steps

    def add(self, rows: Rows, columns: Mapping[str, Tensor]) -> None:
        """One micro-batch: its rows, and (B, T) tensors named as in `LoggedWindow`.

        `Rows.columns` are left out: they act on the KL to the reference, which a replay does not model.
        """
        named = {f"rows.{name}": getattr(rows, name) for name in ROW_TENSORS}
        self._parts.append({k: v.detach().cpu() for k, v in (named | dict(columns)).items()})

    def write(self, step: int, options: StepOptions, *, probe_entropy: float | None) -> LoggedWindow:
        """Put the micro-batches together and write them."""
        together = {name: stacked([p[name] for p in self._parts], left=name in PADDED_LEFT) for name in self._parts[0]}
        self._parts = []
        tensors: dict[str, Any] = {name: together[f"rows.{name}"] for name in ROW_TENSORS}
        columns: dict[str, Any] = {k: v for k, v in together.items() if not k.startswith("rows.")}
        self.latest = LoggedWindow(
            step=step,
            rank=self.rank,
            world_size=self.world_size,
            rows=Rows(**tensors),
            options=options,
            probe_entropy_before=probe_entropy,
            **columns,
        )
        save_window(self.folder, self.latest)
        return self.latest

    def write_state(self, step: int, state: dict[str, Any]) -> None:
        """Parameters and optimiser as they were before the step; rank 0's are everybody's."""
        if self.with_state and self.rank == 0:
            torch.save(state, window_folder(self.folder, step) / STATE_FILE)

    def write_probe(self, tensors: dict[str, Tensor]) -> None:
        """The fixed probe prefixes, once a run."""
        folder = self.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ("probe.pt" if self.rank == 0 else f"probe-rank{self.rank}.pt")
        if not file.is_file():
            torch.save({k: v.cpu() for k, v in tensors.items()}, file)

    def complete(self, entropies_after_BT: Tensor, *, probe_entropy: float | None) -> dict[str, Tensor]:
        """Write the window again with what was measured after the step.

        Returns this rank's sum of entropy changes (nats) and number of tokens, to be added over the ranks.
        """
        assert self.latest is not None
        after_BT = entropies_after_BT.detach().float().cpu()
        window = dataclasses.replace(self.latest, entropies_after_BT=after_BT, probe_entropy_after=probe_entropy)
        save_window(self.folder, window)
        self.latest = None
        mask_BT = window.rows.mask_BT
        change_BT = torch.where(mask_BT, after_BT - window.entropies_BT, 0.0)
        return {"change": change_BT.sum(dtype=torch.float64), "tokens": mask_BT.sum(dtype=torch.float64)}


def plain_options(controllers: Sequence[Controller]) -> list[dict[str, Any]]:
    """Names and options of controllers as plain values a file can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Controller):
            return {"name": value.name, "options": {k: plain(v) for k, v in value.options().items()}}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value if isinstance(value, (bool, int, float, str)) or value is None else repr(value)

    return [plain(c) for c in controllers]


def step_state(model: Any, optimizer: Any, *, max_grad_norm: float) -> dict[str, Any]:
    """What another process needs to take this step itself: trainable parameters and the optimiser's state."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    name_of = {id(p): name for name, p in named.items()}
    return {
        "parameters": {name: p.detach().cpu().clone() for name, p in named.items()},
        "optimizer": optimizer.state_dict(),
        "optimizer_names": [[name_of[id(p)] for p in group["params"]] for group in optimizer.param_groups],
        "optimizer_class": type(optimizer).__name__,
        "max_grad_norm": max_grad_norm,
        "learning_rate": learning_rate_of(optimizer),
    }


def learning_rate_of(optimizer: Any) -> float:
    return float(optimizer.param_groups[0]["lr"])
