"""`Ranks` backed by accelerate: the collectives that controllers ask for, over the training processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class AccelerateRanks:
    """`entrl.controllers.hooks.Ranks` over the processes of an accelerator."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def sum(self, x: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return x
        return self._tensor(self.accelerator.reduce(x.clone(), reduction="sum"))

    def gather(self, x: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return x
        return self._tensor(self.accelerator.gather(x.contiguous()))

    def max(self, x: int) -> int:
        if self.accelerator.num_processes == 1:
            return x
        return int(self.gather(torch.tensor([x], device=self.accelerator.device)).max())

    def total(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Sum named scalars over the ranks in one collective. Every rank must bring the same names."""
        if not values:
            return {}
        names = sorted(values)
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # counts of tokens outgrow float32
        stacked = torch.stack([values[n].detach().to(device=device, dtype=dtype) for n in names])
        return dict(zip(names, self.sum(stacked).tolist(), strict=True))

    @staticmethod
    def _tensor(x: Any) -> Tensor:
        assert isinstance(x, Tensor)
        return x
