"""The entries of ours in TRL's dicts of row tensors: their names, what they hold, how they get in and are read again.

TRL shuffles, splits, pads and buffers every tensor of such a dict alike, so what is put there follows its row to the
loss. B rows, T tokens; the asynchronous trainer's collator packs rows flat and repeats a row's value on its tokens.

    entrl_row_id       int64, the row's index in the generation batch over all ranks, before any shuffle
    entrl_informative  bool, whether the row's prompt group has advantages that differ
    entrl_phase        int8 per token, as `entrl.controllers.monitor` names phases
    entrl_entropies    float32 per token, nats, under the policy that generated the row
    entrl_log_probs    float32 per token, nats, the same; only where TRL's dict has no old log-probs
    entrl_version      int64 per token, the policy version that sampled it (asynchronous)
    entrl_column_NAME  what rewards published of the row under NAME, one value, or one per token

Needs:   TRL 1.16's names for masks, advantages and log-probs in the same dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from entrl.controllers.hooks import ROW_TENSORS, Rows

ROW_ID = "entrl_row_id"
INFORMATIVE = "entrl_informative"
PHASE = "entrl_phase"
ENTROPIES = "entrl_entropies"
LOG_PROBS = "entrl_log_probs"  # TRL's own key would replace the ratio of exactly 1 by round-off
VERSION = "entrl_version"
COLUMN = "entrl_column_"

OLD_LOG_PROBS = "old_per_token_logps"  # TRL's
INPUT_IDS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")  # TRL's, what a forward pass reads


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """(B, T) 1 where a token counts in the loss, in TRL's dtype: completion, not padding, not a tool's."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def informative(advantages_N: Tensor, *, group_size: int, replaced: bool) -> Tensor:
    """(N,) bool for the rows of all ranks: True where the row's group has advantages that differ.

    replaced: the advantages are a controller's, which may give a whole group one that is not 0 (W-REINFORCE).
    """
    grouped = advantages_N.view(-1, group_size)
    differing = grouped.amax(1) > grouped.amin(1)
    if replaced:
        differing = differing | (grouped.abs().amax(1) > 0)
    return differing.repeat_interleave(group_size)


def attach(
    output: dict[str, Any],
    *,
    first: int,
    informative_N: Tensor,
    phase_BT: Tensor | None,
    columns: Mapping[str, Tensor],
    entropies_BT: Tensor | None,
    log_probs_BT: Tensor | None,
) -> None:
    """Put the entries of a rollout into TRL's dict; those that are None are left out.

    first: this rank's first row among those of all ranks, which `informative_N` holds
    """
    count, device = output["advantages"].size(0), output["advantages"].device
    output[ROW_ID] = torch.arange(first, first + count, device=device)
    output[INFORMATIVE] = informative_N[first : first + count]
    if phase_BT is not None:
        output[PHASE] = phase_BT.to(device)
    for name, column in columns.items():
        output[COLUMN + name] = column.to(device)
    if entropies_BT is not None:
        output[ENTROPIES] = entropies_BT.detach()
    if log_probs_BT is not None and OLD_LOG_PROBS not in output:
        output[LOG_PROBS] = log_probs_BT.detach()


def rows_of(inputs: Mapping[str, Any]) -> Rows:
    """A micro-batch of TRL's as `Rows`; entries that nobody attached are filled with defaults."""
    mask = loss_mask(inputs)
    advantages, count, device = inputs["advantages"].float(), mask.size(0), mask.device
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    return Rows(
        advantages_BT=advantages.expand(mask.shape),
        mask_BT=mask.bool(),
        row_id_B=inputs.get(ROW_ID, torch.arange(count, device=device)),
        informative_B=inputs.get(INFORMATIVE, torch.ones(count, dtype=torch.bool, device=device)),
        columns={k.removeprefix(COLUMN): v for k, v in inputs.items() if k.startswith(COLUMN)},
    )


def stacked(parts: Sequence[Tensor], *, fill: float | None = None, left: bool = False) -> Tensor:
    """(B,) or (B, T) tensors under one another, padded to the widest with `fill` (0), on the right unless `left`."""
    width = max(p.size(-1) for p in parts) if parts[0].dim() > 1 else 0
    gaps = [max(width - p.size(-1), 0) for p in parts]
    sides = [(gap, 0) if left else (0, gap) for gap in gaps]
    return torch.cat([nn.functional.pad(p, side, value=fill) for p, side in zip(parts, sides, strict=True)])


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """Rows of one width under one another."""
    tensors: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in ROW_TENSORS}
    columns = {name: torch.cat([p.columns[name] for p in parts]) for name in parts[0].columns}
    return Rows(**tensors, columns=columns)


def window_of(slices: Sequence[Mapping[str, Any]]) -> tuple[Rows, Tensor, Tensor | None]:
    """(rows, old log-probs, entropies) of some micro-batches, of the policy that generated them.

    Entropies are None where a micro-batch lacks them.
    """
    old = [s[OLD_LOG_PROBS] if OLD_LOG_PROBS in s else s[LOG_PROBS] for s in slices]
    entropies = [s[ENTROPIES].float() for s in slices if ENTROPIES in s]
    together = torch.cat(entropies) if len(entropies) == len(slices) else None
    return joined_rows([rows_of(s) for s in slices]), torch.cat(old), together


def input_ids(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, int]:
    """(ids, attention mask, completion columns) of a micro-batch, as a forward pass takes them."""
    prompt_ids, prompt_mask, completion_ids, completion_mask = (inputs[name] for name in INPUT_IDS)
    ids, mask = torch.cat([prompt_ids, completion_ids], dim=1), torch.cat([prompt_mask, completion_mask], dim=1)
    return ids, mask, completion_ids.size(1)
