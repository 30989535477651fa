"""Fixed probe prefixes: the same token sequences scored again and again, so that states stay the same.

The entropy of a rollout changes for two reasons: the policy is more (or less) certain in a given state, and it visits
other states. On prefixes that never change only the first is left. With d_0 the states of the probe and d_k those of
step k's rows,

    H_k(d_k) - H_0(start)  =  [H_k(d_0) - H_0(d_0)]  +  the rest
                                  within states          occupancy

A probe of some rows of the first rollout starts a little off that rollout's entropy; the gap at the start is taken
away, so that both parts begin at 0.
Each probe is one no-grad pass over the prefixes, counted under `probe`.
"""

from typing import Any

import torch
from torch import Tensor

from entrl.controllers.monitor import decompose
from entrl.trainers.shared.rollout import Rollout


class Probe:
    """This rank's share of the prefixes, and where the run started."""

    def __init__(self, *, every: int, rows: int) -> None:
        self.every = every
        self.rows = rows  # of this rank
        self.sequences: Rollout | None = None
        self.start: tuple[float, float] | None = None  # (rollout entropy, probe entropy) at the first probe, nats

    @property
    def on(self) -> bool:
        return self.every > 0

    def due(self, step: int) -> bool:
        return self.on and self.sequences is not None and step % self.every == 0

    def take(self, rollout: Rollout) -> None:
        """Keep the first rows of the first rollout, spread evenly so that every prompt has a chance."""
        if not self.on or self.sequences is not None:
            return
        count = min(self.rows, len(rollout))
        picks = [i * len(rollout) // count for i in range(count)]
        self.sequences = Rollout(
            prompt_ids=[rollout.prompt_ids[i] for i in picks],
            completion_ids=[rollout.completion_ids[i] for i in picks],
            tool_mask=None if rollout.tool_mask is None else [rollout.tool_mask[i] for i in picks],
        )

    def tensors(self, pad_token_id: int) -> dict[str, Tensor]:
        """The prefixes as TRL lays rows out, for a file."""
        assert self.sequences is not None
        ids, mask, width = self.sequences.model_inputs(
            range(len(self.sequences)), pad_token_id=pad_token_id, pad_to_multiple_of=None, device=torch.device("cpu")
        )
        names = ("prompt_ids_BT", "prompt_mask_BT", "completion_ids_BT", "completion_mask_BT")
        return dict(zip(names, (ids[:, :-width], mask[:, :-width], ids[:, -width:], mask[:, -width:]), strict=True))

    def mask(self, width: int, device: Any) -> Tensor:
        """(B, width) bool: completion tokens the model wrote."""
        assert self.sequences is not None
        mask = torch.zeros(len(self.sequences), width, dtype=torch.bool)
        for row, own in enumerate(self.sequences.model_token_masks()):
            mask[row, : len(own)] = own
        return mask.to(device)

    def sums(self, entropies_BT: Tensor) -> dict[str, Tensor]:
        """Sum and count of one pass, to be added over the ranks."""
        mask_BT = self.mask(entropies_BT.size(1), entropies_BT.device)
        return {
            "probe/entropy_sum": torch.where(mask_BT, entropies_BT, 0.0).sum(dtype=torch.float64),
            "probe/tokens": mask_BT.sum(dtype=torch.float64),
        }

    def metrics(self, probe_entropy: float, rollout_entropy: float) -> dict[str, float]:
        """probe/entropy, and the change of the rollout's entropy since the first probe in two parts; nats."""
        if self.start is None:
            self.start = (rollout_entropy, probe_entropy)
        parts = decompose(rollout_entropy, probe_entropy, *self.start)
        return {"probe/entropy": probe_entropy, "probe/within": parts.within, "probe/occupancy": parts.occupancy}

    def state_dict(self) -> dict[str, Any]:
        kept = self.sequences
        rows = None if kept is None else [kept.prompt_ids, kept.completion_ids, kept.tool_mask]
        return {"sequences": rows, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["sequences"] is not None:
            prompt_ids, completion_ids, tool_mask = state["sequences"]
            self.sequences = Rollout(prompt_ids=prompt_ids, completion_ids=completion_ids, tool_mask=tool_mask)
        self.start = None if state["start"] is None else tuple(state["start"])
