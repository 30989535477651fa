"""How much memory one process of a run may use, and who says so.

First of these that is there: `--device-memory`, `launch.device_memory_gib`, the accelerator that torch sees, this
machine's own memory shared by its processes. The last is what a run on the CPU has; where it does not suffice for a
run that did not ask for the CPU, another machine is meant and memory is not judged.
"""

import os
from dataclasses import dataclass

from entrl.runs.plan.checks import has_accelerator
from entrl.runs.plan.machines import Machines
from entrl.runs.plan.memory import GIB
from entrl.runs.recipe import Recipe

SAY = "say launch.device_memory_gib"


@dataclass(frozen=True, kw_only=True)
class Device:
    """Memory of one process. size: bytes, None where nobody says."""

    size: float | None
    source: str
    here: bool  # the run is planned for this machine
    is_cpu: bool = False
    binding: bool = True  # too little of it is a problem; else another machine is meant

    @property
    def described(self) -> str:
        return self.source if self.size is None else f"{self.size / GIB:.4g} GiB ({self.source})"


def find_device(recipe: Recipe, machines: Machines, stated_gib: float | None) -> Device:
    """stated_gib: of `--device-memory`"""
    if stated_gib is not None:
        return Device(size=stated_gib * GIB, source="--device-memory", here=False)
    if (gib := recipe.launch.device_memory_gib) is not None:
        return Device(size=gib * GIB, source="launch.device_memory_gib", here=False)
    on_cpu = machines.use_cpu or bool(recipe.trainer.get("use_cpu"))
    if has_accelerator() and not on_cpu:
        return _accelerator()
    if machines.machines > 1:
        return Device(size=None, source="not known", here=False)
    shared = "" if machines.world_size == 1 else f", shared by {machines.world_size} processes"
    size = main_memory() / machines.world_size
    return Device(size=size, source=f"memory of this machine{shared}", here=True, is_cpu=True, binding=on_cpu)


def _accelerator() -> Device:
    import torch

    try:
        _, size = torch.accelerator.get_memory_info()
    except (RuntimeError, NotImplementedError):  # MPS has no such number
        return Device(size=None, source="torch does not say", here=True)
    return Device(size=float(size), source="torch, of the accelerator of this machine", here=True)


def main_memory() -> float:
    """Bytes of this machine's memory."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
