"""One batch of TRL's out of groups from several: rows put under one another, padded, with what belongs to each.

The keys of TRL's row dict are those of TRL 1.16 (`GRPOTrainer._generate_and_score_completions`), and so are the two
ways of scaling advantages that look at the whole batch (`scaled_over_the_batch`); tests compare both with TRL's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from entrl.trainers.shared.rollout import Rollout
from entrl.trainers.shared.row_columns import stacked

TRL_STD_OFFSET = 1e-4
PADDED_LEFT = {"prompt_ids": None, "prompt_mask": 0}  # name -> what pads it; None is the pad token
PADDED_RIGHT = {
    "completion_ids": None,
    "completion_mask": 0,
    "tool_mask": 1,
    "old_per_token_logps": 0.0,
    "ref_per_token_logps": 0.0,
    "sampling_per_token_logps": 0.0,
    "importance_sampling_ratio": 1.0,
}
PER_ROW = ("advantages",)
OF_THE_BATCH = ("num_items_in_batch",)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One generation on this rank, before anything of ours is attached to it.

    output: TRL's dict of row tensors; rollout: the same rows as lists, with their scores and published columns
    rewards_NF: float32, this rank's rows by reward function, NaN where one did not apply
    """

    output: dict[str, Any]
    rollout: Rollout
    rewards_NF: Tensor

    def __len__(self) -> int:
        return len(self.rollout)


def spliced(batches: Sequence[Batch], picks: Sequence[tuple[int, int]], *, group_size: int, pad_token_id: int) -> Batch:
    """One batch of the picked (batch, group) pairs, in their order, as wide as the widest that gives a row.

    Sums over the batch (`num_items_in_batch`) and advantages scaled over it are the first's and must be made anew.
    """
    used = sorted({batch for batch, _ in picks})
    place = {batch: sum(len(batches[b]) for b in used[:i]) for i, batch in enumerate(used)}
    rows = [place[batch] + group * group_size + i for batch, group in picks for i in range(group_size)]
    outputs = [batches[b].output for b in used]
    output = {name: _column(name, outputs, rows, pad_token_id) for name in outputs[0]}
    rollout = spliced_rollout([batches[b].rollout for b in used], rows)
    rewards_NF = torch.cat([batches[b].rewards_NF for b in used])[rows]
    return Batch(output=output, rollout=rollout, rewards_NF=rewards_NF)


def _column(name: str, outputs: Sequence[dict[str, Any]], rows: list[int], pad_token_id: int) -> Any:
    columns = [output[name] for output in outputs]
    if name in OF_THE_BATCH:
        return columns[0]
    if name in PER_ROW:
        return torch.cat(columns)[rows]
    if name not in PADDED_LEFT and name not in PADDED_RIGHT:
        raise ValueError(
            f"the group filter cannot put rows with {name!r} together (images are not supported); set filter_on: null"
        )
    fill = (PADDED_LEFT | PADDED_RIGHT)[name]
    return stacked(columns, fill=pad_token_id if fill is None else fill, left=name in PADDED_LEFT)[rows]


def spliced_rollout(rollouts: Sequence[Rollout], rows: Sequence[int]) -> Rollout:
    """The rows of several rollouts, counted through, in the order of `rows`."""

    def picked(name: str) -> list[Any] | None:
        parts = [getattr(r, name) for r in rollouts]
        if any(part is None for part in parts):
            return None
        flat = [value for part in parts for value in part]
        return [flat[i] for i in rows]

    def scores(name: str) -> Tensor | None:
        parts = [getattr(r, name) for r in rollouts]
        return None if any(part is None for part in parts) else stacked(parts)[list(rows)]

    names = set.intersection(*(set(r.columns) for r in rollouts))
    columns = {name: [v for r in rollouts for v in r.columns[name]] for name in names}
    prompt_ids, completion_ids = picked("prompt_ids"), picked("completion_ids")
    assert prompt_ids is not None
    assert completion_ids is not None
    return Rollout(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        tool_mask=picked("tool_mask"),
        log_probs_BT=scores("log_probs_BT"),
        entropies_BT=scores("entropies_BT"),
        sampled=picked("sampled"),
        sampler_log_probs=picked("sampler_log_probs"),
        columns={name: [values[i] for i in rows] for name, values in columns.items()},
    )


def scaled_over_the_batch(rewards_NF: Tensor, weights_F: Tensor, *, group_size: int, aggregation: str) -> Tensor:
    """(N,) advantages of the rows of all ranks as TRL makes them where the whole batch's spread scales them.

    That is `scale_rewards: batch`, and any scaling under `multi_objective_aggregation: normalize_then_sum`.
    """
    unscored_N = rewards_NF.isnan().all(1)
    if aggregation == "normalize_then_sum":
        grouped_PGF = rewards_NF.view(-1, group_size, rewards_NF.size(1))
        mean_PF, std_PF = torch.nanmean(grouped_PGF, dim=1, keepdim=True), nanstd(grouped_PGF, dim=1, keepdim=True)
        rewards_NF = ((grouped_PGF - mean_PF) / (std_PF + TRL_STD_OFFSET)).view(rewards_NF.shape)
    reward_N = (rewards_NF * weights_F).nansum(1)
    reward_N[unscored_N] = torch.nan
    if aggregation == "normalize_then_sum":
        centre_N = torch.nanmean(reward_N)
    else:
        centre_N = torch.nanmean(reward_N.view(-1, group_size), dim=1).repeat_interleave(group_size)
    return torch.nan_to_num((reward_N - centre_N) / (nanstd(reward_N) + TRL_STD_OFFSET), nan=0.0)
