"""Numbers of optimiser steps that are still on the device: read together when somebody wants to see them.

Reading a scalar makes the host wait for the device. The loss's sums, the monitor's statistics and the selections'
metrics of a step therefore stay tensors until the trainer logs (or a controller asks for feedback).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """One optimiser step.

    names, totals: sums over its micro-batches and all ranks, one float64 vector
    values: finished metrics, the same on every rank, tensors or numbers
    """

    step: int
    names: Sequence[str]
    totals: Tensor
    values: Mapping[str, Tensor | float]

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """(sums, metrics) as floats; one transfer for all of them."""
        tensors = {k: v for k, v in self.values.items() if isinstance(v, Tensor)}
        vector = torch.cat([self.totals, *(v.detach().reshape(1).to(self.totals) for v in tensors.values())]).tolist()
        sums = dict(zip(self.names, vector[: len(self.names)], strict=True))
        read = dict(zip(tensors, vector[len(self.names) :], strict=True))
        return sums, {k: read[k] if k in read else float(v) for k, v in self.values.items()}  # pyright: ignore[reportArgumentType]
