"""Which windows the ARES reward counts: entropies, trigger words and the threshold (maths: `entrl.maths.windows`)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from entrl.maths.signals import pad_rows
from entrl.maths.windows import (
    HighEntropyWindows,
    high_entropy_windows,
    in_window_mask,
    row_quantiles,
    running_tail_means,
    trigger_mask,
    window_means,
)
from entrl_rewards.entropy_source import TopKEstimate
from entrl_rewards.hierarchical_options import HierarchicalOptions
from entrl_rewards.hierarchical_state import State
from entrl_rewards.trainer_signals import Gather
from entrl_rewards.triggers import trigger_ids, trigger_words

NO_THRESHOLD = -1.0  # the published start: every window behind a trigger counts


def count_windows(
    reward: HierarchicalOptions,
    state: State,
    completion_ids: list[list[int]],
    own: list[Tensor],
    signals: dict[str, Any],
    *,
    gather: Gather | None,
    training: bool,
) -> HighEntropyWindows:
    """Windows over each completion's own tokens, which lie side by side; in training the state's threshold learns."""

    def entropies(estimate: TopKEstimate | None) -> tuple[Tensor, Tensor]:
        rows = reward.expert.entropy_rows(completion_ids, signals, estimate=estimate)
        return pad_rows([row[m] for row, m in zip(rows, own, strict=True)])

    entropy_BT, mask_BT = entropies(None)
    estimate = reward.expert.threshold_estimate
    line_BT = entropy_BT if estimate is None else entropies(estimate)[0]
    return high_entropy_windows(
        entropy_BT,
        mask_BT,
        threshold=_threshold(reward, state, line_BT, mask_BT, gather, training),
        window=reward.window,
        following=reward.rules.following,
        trigger_BT=_triggers(reward, state, completion_ids, own, signals),
    )


def inside_windows(reward: HierarchicalOptions, windows: HighEntropyWindows, own: list[Tensor]) -> list[Tensor]:
    """Per completion a 1-D bool, one per token (a tool's included): inside a counted window."""
    inside_BT = in_window_mask(windows.start_BT, reward.window, following=reward.rules.following)
    rows = []
    for inside_T, own_T in zip(inside_BT, own, strict=True):
        row = torch.zeros(len(own_T), dtype=torch.bool)
        row[own_T] = inside_T[: int(own_T.sum())]
        rows.append(row)
    return rows


def _triggers(
    reward: HierarchicalOptions,
    state: State,
    completion_ids: list[list[int]],
    own: list[Tensor],
    signals: dict[str, Any],
) -> Tensor | None:
    """(B, T) bool, the tokens whose window is looked at; None = all."""
    if reward.triggers is None:
        return None
    most_likely = reward.expert.argmax_trigger
    texts = signals.get("token_topk_ids") if most_likely else completion_ids
    if texts is None:
        raise TypeError(
            "argmax_trigger needs token_topk_ids (per completion (T, K), most likely first), which no trainer "
            "here delivers: add that key to the rows, or leave argmax_trigger out"
        )
    tokenizer = signals.get("tokenizer")
    if tokenizer is None:
        raise TypeError("hierarchical_entropy with triggers needs a tokenizer to find their ids: EntropyGRPOTrainer")
    if id(tokenizer) not in state.word_ids:
        state.word_ids[id(tokenizer)] = trigger_ids(tokenizer, trigger_words(reward.triggers))
    first = [torch.as_tensor(row)[:, 0] if most_likely else torch.tensor(row) for row in texts]
    ids_BT, _ = pad_rows([row.long()[m] for row, m in zip(first, own, strict=True)], value=-1)
    return trigger_mask(ids_BT, state.word_ids[id(tokenizer)])


def _threshold(
    reward: HierarchicalOptions,
    state: State,
    entropy_BT: Tensor,
    mask_BT: Tensor,
    gather: Gather | None,
    training: bool,
) -> float:
    """The line in force for this batch; in training the batch moves it, before it is used or (lag) afterwards."""
    if reward.threshold is not None:
        return reward.threshold
    if reward.mode == "code":
        mean_BT, full_BT = running_tail_means(entropy_BT, mask_BT, reward.window), mask_BT
    else:
        mean_BT, full_BT = window_means(entropy_BT, mask_BT, reward.window, following=reward.rules.following)
    values = row_quantiles(mean_BT, full_BT, reward.percentile).tolist()
    before, moving = state.threshold.value, state.threshold if training else replace(state.threshold)
    after = moving.update(gather(values) if gather else values)
    line = before if reward.rules.threshold_lag or (not training and before is not None) else after
    return NO_THRESHOLD if line is None else line
