"""The k largest of the numbers all ranks hold together, as a rule that any pass over any part of them can apply.

    v_i is among the k largest  <=>  v_i > threshold,  or v_i = threshold and id_i <= tie_id
    threshold = (v_(k) + v_(k+1)) / 2,   v_(1), v_(2), ... in falling order, equal values by smallest id

A selection is made once and applied in each loss pass, to values that may have moved by round-off since: midway
between two values that flips none of them. Tokens are named by id = row_id * 2**24 + column, which no split over
micro-batches or ranks changes, so ties fall the same way under every split.

Each rank brings its own k + 1 largest, 16 bytes a token, to one gather. k may stay on the device: the length of what a
rank brings follows from shapes (`rule_size`), so nothing is read on the host. A value of -inf is no value: what does
not count, and what fills a list up, is (-inf, LAST_ID), and no rule takes it. No rule takes NaN either.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Ranks

COLUMN_SPAN = 2**24  # tokens a row may hold; leaves 2**39 rows
LAST_ID = torch.iinfo(torch.int64).max


class Top(NamedTuple):
    threshold: Tensor  # float64 scalar
    tie_id: Tensor  # int64 scalar, -1 where no tie has to be broken


def token_ids(row_id_B: Tensor, columns: int) -> Tensor:
    """(B, T) int64, one number per token that depends on nothing but its row and column."""
    return row_id_B.to(torch.int64)[:, None] * COLUMN_SPAN + torch.arange(columns, device=row_id_B.device)


@torch.no_grad()
def largest(value_N: Tensor, id_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest values and their ids, in any order; of equal values those with the smallest ids."""
    value_N, id_N = padded(value_N, size, -torch.inf), padded(id_N, size, LAST_ID)
    last = value_N.topk(size).values[-1]
    # Everything above the last value comes first, then the values equal to it by their ids.
    turn_N = torch.where(value_N > last, -1, torch.where(value_N == last, id_N, LAST_ID))
    place_K = turn_N.topk(size, largest=False).indices
    value_K = value_N[place_K]
    return value_K, torch.where(value_K > -torch.inf, id_N[place_K], LAST_ID)


@torch.no_grad()
def top_rule(value_N: Tensor, id_N: Tensor, k: Tensor, n: Tensor) -> Top:
    """Rule for the k largest of n values, from what every rank brought of them, in any order.

    k = n gives a threshold of -inf, n = 0 one of +inf.
    """
    value_N, id_N = padded(value_N.double(), len(value_N) + 1, -torch.inf), padded(id_N, len(id_N) + 1, LAST_ID)
    by_id_N = id_N.argsort()
    value_N, by_value_N = value_N[by_id_N].sort(descending=True, stable=True)
    last, following = entry(value_N, k - 1), entry(value_N, k)
    threshold = torch.where(k >= n, -torch.inf, (last + following) / 2)
    threshold = torch.where(n == 0, torch.inf, threshold)
    tied = (last == following) & (last > -torch.inf) & (k < n)
    return Top(threshold, torch.where(tied, entry(id_N[by_id_N][by_value_N], k - 1), -1))


@torch.no_grad()
def in_top(value_BT: Tensor, id_BT: Tensor, mask_BT: Tensor, top: Top) -> Tensor:
    """(B, T) bool: the values that the rule takes."""
    value_BT = value_BT.double()  # the midpoint of two neighbouring float32 numbers is no float32
    tied_BT = (value_BT == top.threshold) & (id_BT <= top.tie_id)
    return ((value_BT > top.threshold) | tied_BT) & mask_BT


def agreed_tokens(tokens_BT: Tensor, ranks: Ranks) -> int:
    """A bound on the tokens of any one rank, the same number on every rank: buffers of a gather are sized by it.

    Ranks hold equally many rows of different widths. Ranks that know a bound on the width (`columns`) need no
    exchange; the others are asked for the largest rank, which on several GPUs waits for the device.
    """
    columns = getattr(ranks, "columns", None)
    if columns is None:
        return ranks.max(tokens_BT.numel())
    if tokens_BT.shape[1] > columns:
        raise ValueError(
            f"a window of {tokens_BT.shape[1]} columns exceeds the ranks' bound of {columns}; give AccelerateRanks "
            "the longest completion a rollout may hold, padding included"
        )
    return tokens_BT.shape[0] * columns


def share_of(fraction: float, n: Tensor) -> Tensor:
    """max(1, int(fraction n)) as an int64 scalar on the device."""
    return (n * fraction).floor().clamp(min=1).long()


def rule_size(fraction: float, tokens: int, world: int) -> int:
    """Entries each rank brings so that place `share_of(fraction, n)` of all and the next are among them, for any n."""
    # Multiplied as `share_of` does, or rounding could make room for one entry too few.
    return min(max(1, int(tokens * world * fraction)) + 1, tokens)


@torch.no_grad()
def gather_together(ranks: Ranks, *parts: Tensor) -> list[Tensor]:
    """One gather of several 64-bit vectors instead of one for each: (ranks, length) of every part."""
    every_RX = ranks.gather(torch.cat([part.view(torch.int64) for part in parts])[None])
    columns = every_RX.split([len(part) for part in parts], dim=1)
    return [x_RX.contiguous().view(part.dtype) for x_RX, part in zip(columns, parts, strict=True)]


def entry(x_N: Tensor, index: Tensor) -> Tensor:
    """x_N[index] for an index on the device, which plain indexing would read on the host; clamped to the length."""
    return x_N.index_select(0, index.clamp(max=len(x_N) - 1).reshape(1))[0]


def padded(x_N: Tensor, width: int, value: float) -> Tensor:
    """Filled up to `width`; not by torch's pad, whose fill is a float and cannot be LAST_ID."""
    return torch.cat([x_N, x_N.new_full((max(width - len(x_N), 0),), value)])
