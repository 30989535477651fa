"""Which windows the ARES reward counts: entropies, trigger words and the threshold (maths: `entrl.maths.windows`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entrl.maths.signals import pad_rows
from entrl.maths.windows import (
    HighEntropyWindows,
    ThresholdEMA,
    high_entropy_windows,
    in_window_mask,
    row_quantiles,
    running_tail_means,
    trigger_mask,
    window_means,
)
from entrl_rewards.entropy_source import TopKEstimate
from entrl_rewards.hierarchical_options import HierarchicalExpert
from entrl_rewards.trainer_signals import Gather
from entrl_rewards.triggers import trigger_ids, trigger_words

NO_THRESHOLD = -1.0  # the published start: every window behind a trigger counts


@dataclass(frozen=True, kw_only=True)
class WindowCounter:
    """The reward's options of windows, as they hold in its mode."""

    window: int
    following: bool
    triggers: str | Sequence[str] | None
    threshold: float | None
    percentile: float
    threshold_lag: bool
    tail_means: bool  # the threshold's statistic is the published one, a running mean that fills up
    expert: HierarchicalExpert

    def count(
        self,
        completion_ids: list[list[int]],
        own: list[Tensor],
        signals: dict[str, Any],
        *,
        moving: ThresholdEMA,
        word_ids: dict[int, frozenset[int]],
        gather: Gather | None,
        training: bool,
    ) -> HighEntropyWindows:
        """Windows over each completion's own tokens, which lie side by side; in training `moving` learns.

        word_ids: ids of the trigger words by tokenizer, filled in where they are missing.
        """
        entropy_BT, mask_BT = self._entropies(completion_ids, own, signals, None)
        line_BT = entropy_BT
        if (estimate := self.expert.threshold_estimate) is not None:
            line_BT, _ = self._entropies(completion_ids, own, signals, estimate)
        return high_entropy_windows(
            entropy_BT,
            mask_BT,
            threshold=self._threshold(line_BT, mask_BT, moving, gather, training),
            window=self.window,
            following=self.following,
            trigger_BT=self._triggers(completion_ids, own, signals, word_ids),
        )

    def inside(self, windows: HighEntropyWindows, own: list[Tensor]) -> list[Tensor]:
        """Per completion a 1-D bool, one per token (a tool's included): inside a counted window."""
        inside_BT = in_window_mask(windows.start_BT, self.window, following=self.following)
        rows = []
        for inside_T, own_T in zip(inside_BT, own, strict=True):
            row = torch.zeros(len(own_T), dtype=torch.bool)
            row[own_T] = inside_T[: int(own_T.sum())]
            rows.append(row)
        return rows

    def _entropies(
        self, completion_ids: list[list[int]], own: list[Tensor], signals: dict[str, Any], estimate: TopKEstimate | None
    ) -> tuple[Tensor, Tensor]:
        rows = self.expert.entropy_rows(completion_ids, signals, estimate=estimate)
        return pad_rows([row[m] for row, m in zip(rows, own, strict=True)])

    def _triggers(
        self,
        completion_ids: list[list[int]],
        own: list[Tensor],
        signals: dict[str, Any],
        word_ids: dict[int, frozenset[int]],
    ) -> Tensor | None:
        """(B, T) bool, the tokens whose window is looked at; None = all."""
        if self.triggers is None:
            return None
        texts = signals.get("token_topk_ids") if self.expert.argmax_trigger else completion_ids
        if texts is None:
            raise TypeError(
                "argmax_trigger needs token_topk_ids (per completion (T, K), most likely first), which no trainer "
                "here delivers: add that key to the rows, or leave argmax_trigger out"
            )
        tokenizer = signals.get("tokenizer")
        if tokenizer is None:
            raise TypeError(
                "hierarchical_entropy with triggers needs a tokenizer to find their ids: EntropyGRPOTrainer"
            )
        if id(tokenizer) not in word_ids:
            word_ids[id(tokenizer)] = trigger_ids(tokenizer, trigger_words(self.triggers))
        first = [torch.as_tensor(row)[:, 0] if self.expert.argmax_trigger else torch.tensor(row) for row in texts]
        ids_BT, _ = pad_rows([row.long()[m] for row, m in zip(first, own, strict=True)], value=-1)
        return trigger_mask(ids_BT, word_ids[id(tokenizer)])

    def _threshold(
        self, entropy_BT: Tensor, mask_BT: Tensor, moving: ThresholdEMA, gather: Gather | None, training: bool
    ) -> float:
        """The line in force for this batch; in training the batch moves it, before it is used or (lag) afterwards."""
        if self.threshold is not None:
            return self.threshold
        if self.tail_means:
            mean_BT, full_BT = running_tail_means(entropy_BT, mask_BT, self.window), mask_BT
        else:
            mean_BT, full_BT = window_means(entropy_BT, mask_BT, self.window, following=self.following)
        values = row_quantiles(mean_BT, full_BT, self.percentile).tolist()
        before = moving.value
        after = (moving if training else replace(moving)).update(gather(values) if gather else values)
        line = before if self.threshold_lag or (not training and before is not None) else after
        return NO_THRESHOLD if line is None else line
