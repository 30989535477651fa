"""High-entropy windows: where a completion hesitates for several tokens in a row, and how often.

    mean_t     = (1/w) sum_{j} H_j        following: j = t+1 .. t+w, the tokens after t; else j = t .. t+w-1
    counted_t  = trigger_t and the whole window exists and mean_t >= threshold
    N          = number of counted t      soft cost = sum over triggers of max(0, mean_t - threshold)
    threshold  = EMA over batches of the median over completions of each one's 95th percentile of window means

Nats per token. Rows are (B, T) with a bool mask whose True tokens come first (`pad_rows`): take a tool's tokens out
before, or windows would run across them.

Source:  ARES, arXiv 2510.08457: Eq. 4 (windows that begin with t); the authors' code takes the w tokens after t
Needs:   torch and numpy only
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy
import torch
from torch import Tensor

BLOCK = 1 << 16  # tokens handled at once on a CPU

Function = TypeVar("Function", bound=Callable[..., Any])


def _in_blocks(of_rows: Function) -> Function:
    """Rows know nothing of one another, so a large batch is done in blocks that a CPU's cache holds: twice as fast."""

    @wraps(of_rows)
    def blockwise(x_BT: Tensor, *args: Any, **options: Any) -> Any:
        B, rows = len(x_BT), max(1, BLOCK // max(1, x_BT.shape[-1]))
        if x_BT.device.type != "cpu" or rows >= B:
            return of_rows(x_BT, *args, **options)

        def part(value: Any, block: slice) -> Any:
            return value[block] if isinstance(value, Tensor) and value.dim() and len(value) == B else value

        blocks = [slice(i, i + rows) for i in range(0, B, rows)]
        parts = [
            of_rows(x_BT[b], *(part(a, b) for a in args), **{k: part(v, b) for k, v in options.items()}) for b in blocks
        ]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return type(parts[0])(*(torch.cat(of) for of in zip(*parts, strict=True)))

    return cast(Function, blockwise)


class HighEntropyWindows(NamedTuple):
    """One completion per entry.

    count_B: int64, windows at or above the threshold behind a trigger; low_B: those below it
    soft_cost_B: nats by which the windows behind triggers exceed the threshold, summed
    start_BT: bool, the triggers whose window was counted
    """

    count_B: Tensor
    low_B: Tensor
    soft_cost_B: Tensor
    start_BT: Tensor


def window_means(entropy_BT: Tensor, mask_BT: Tensor, window: int, *, following: bool) -> tuple[Tensor, Tensor]:
    """(B, T) mean of the window that belongs to each token, and a bool (B, T): True where the whole window exists.

    following: the `window` tokens after t; False: the window begins with t itself. Without a whole window the mean is
    0. Computed from the window's own values, so that a sum over a long row cannot leak its rounding into it.
    """
    _check(entropy_BT, mask_BT, window)
    T = entropy_BT.size(1)
    first = 1 if following else 0
    mean_BT, full_BT = torch.zeros_like(entropy_BT), torch.zeros_like(mask_BT)
    whole = T - first - window + 1  # positions whose window lies inside the padded width
    if whole > 0:
        clean_BT = torch.where(mask_BT, entropy_BT, 0.0)[:, first:]
        mean_BT[:, :whole] = clean_BT.unfold(1, window, 1).mean(-1)
        full_BT[:, :whole] = mask_BT[:, first + window - 1 :]  # its last token exists, hence all of them
    return torch.where(full_BT, mean_BT, 0.0), full_BT


@_in_blocks
def running_tail_means(entropy_BT: Tensor, mask_BT: Tensor, window: int) -> Tensor:
    """(B, T) following-window means; a token too near the end gets the mean of all whole windows before it.

    A row too short for any whole window has its first token's entropy everywhere. 0 at masked tokens.

    Source: `get_window_average_entropy_percentile_threshold_list` of the ARES code.
    """
    mean_BT, full_BT = window_means(entropy_BT, mask_BT, window, following=True)
    whole_B = full_BT.sum(-1)
    # each tail value joins the running mean it was made of, which leaves the mean as it was
    tail_B = torch.where(whole_B > 0, mean_BT.sum(-1) / whole_B.clamp(min=1), entropy_BT[:, 0])
    return torch.where(mask_BT, torch.where(full_BT, mean_BT, tail_B[:, None]), 0.0)


@_in_blocks
def row_quantiles(x_BT: Tensor, mask_BT: Tensor, q: float) -> Tensor:
    """(B,) quantile of each row's masked values, linear between order statistics; NaN for a row without any."""
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1], got {q}; the 95th percentile is 0.95")
    count_B = mask_BT.sum(-1)
    sorted_BT = _sorted(torch.where(mask_BT, x_BT, torch.inf))
    place_B = (count_B - 1).clamp(min=0).to(torch.float64) * q
    low_B = place_B.floor().long()
    high_B = torch.minimum(low_B + 1, (count_B - 1).clamp(min=0))
    low_value_B, high_value_B = (sorted_BT.gather(1, i[:, None])[:, 0].to(torch.float64) for i in (low_B, high_B))
    value_B = low_value_B + (high_value_B - low_value_B) * (place_B - low_B)
    return torch.where(count_B > 0, value_B, torch.nan).to(x_BT.dtype)


def _sorted(x_BT: Tensor) -> Tensor:
    """Rows in rising order; on a CPU by numpy, whose vector instructions make it ten times as fast as torch's sort."""
    if x_BT.device.type != "cpu" or x_BT.dtype not in (torch.float32, torch.float64):
        return x_BT.sort(-1).values
    return torch.from_numpy(numpy.sort(x_BT.detach().numpy(), axis=-1))


def trigger_mask(ids_BT: Tensor, trigger_ids: Sequence[int] | frozenset[int] | None) -> Tensor:
    """Bool (B, T): True where the token is one of `trigger_ids`; None = everywhere (Algorithm 1 of the paper)."""
    if trigger_ids is None:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    beyond = max(trigger_ids, default=-1) + 1  # stands for every id that is no trigger, a padding of -1 included
    table = torch.zeros(beyond + 1, dtype=torch.bool, device=ids_BT.device)
    table[torch.tensor(sorted(trigger_ids), dtype=torch.long, device=ids_BT.device)] = True
    return table[ids_BT.clamp(-1, beyond).long()]


@_in_blocks
def high_entropy_windows(
    entropy_BT: Tensor,
    mask_BT: Tensor,
    *,
    threshold: float | Tensor,
    window: int,
    following: bool = True,
    trigger_BT: Tensor | None = None,
) -> HighEntropyWindows:
    """Count the windows of each row that reach `threshold` (nats; a number, or (B,) one per row).

    trigger_BT: bool, tokens whose window is looked at; None = every token.
    """
    mean_BT, full_BT = window_means(entropy_BT, mask_BT, window, following=following)
    looked_BT = full_BT if trigger_BT is None else full_BT & trigger_BT
    line = torch.as_tensor(threshold, dtype=entropy_BT.dtype, device=entropy_BT.device)
    excess_BT = mean_BT - (line[:, None] if line.dim() else line)
    start_BT = looked_BT & (excess_BT >= 0)
    count_B = start_BT.sum(-1)
    soft_cost_B = torch.where(start_BT, excess_BT, 0.0).sum(-1)
    return HighEntropyWindows(count_B, looked_BT.sum(-1) - count_B, soft_cost_B, start_BT)


def in_window_mask(start_BT: Tensor, window: int, *, following: bool) -> Tensor:
    """Bool (B, T): True for the tokens inside the window of any counted token."""
    first = 1 if following else 0
    inside_BT = torch.zeros_like(start_BT)
    T = start_BT.size(1)
    for shift in range(first, first + window):
        if shift < T:
            inside_BT[:, shift:] |= start_BT[:, : T - shift]
    return inside_BT


@dataclass(kw_only=True)
class ThresholdEMA:
    """Threshold in nats: the first batch sets it to its median, later batches move it by 1 - decay towards theirs.

    Source: ARES code, inline in `RayPPOTrainer.fit` (its values come from the batch of the step before)
    """

    decay: float = 0.99
    value: float | None = None  # None until a batch was seen

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}; 1 would never learn")

    def update(self, batch_values: Sequence[float]) -> float | None:
        """Take the quantiles of one batch's completions, over all ranks, in any order; NaN = the row had none."""
        values = sorted(v for v in batch_values if v == v)
        if values:
            middle = len(values) // 2
            median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
            self.value = median if self.value is None else self.decay * self.value + (1 - self.decay) * median
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def _check(entropy_BT: Tensor, mask_BT: Tensor, window: int) -> None:
    if window < 1:
        raise ValueError(f"window must be >= 1 token, got {window}; the paper finds 4 to 8 best")
    if entropy_BT.shape != mask_BT.shape or entropy_BT.dim() != 2:
        raise ValueError(
            f"entropies {tuple(entropy_BT.shape)} and mask {tuple(mask_BT.shape)} must be one (B, T); see pad_rows"
        )
    if bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
        raise ValueError("the mask has a gap; windows need each row's tokens side by side: drop masked tokens first")
