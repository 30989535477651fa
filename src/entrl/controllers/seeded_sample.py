"""A uniform random sample of tokens that depends on a seed, the step and the tokens alone.

    key_i = hash(seed, step, row_i, column_i) in [0, 2**53)
    sample = the m tokens with the smallest keys            sampling without replacement, as a rule: key_i <= key

A rule, because it says of a token in any pass, on any rank and under any split whether it belongs to the sample.

Source:  SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit numbers, whose products wrap the same way
"""

import torch
from torch import Tensor

from entrl.controllers.top import LAST_ID, entry, padded

NO_KEY = -1  # keys are >= 0: a threshold nothing reaches

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FACTOR_1 = 0xBF58476D1CE4E5B9 - 2**64
FACTOR_2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign bit."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + GOLDEN
    x = (x ^ _shift_right(x, 30)) * FACTOR_1
    x = (x ^ _shift_right(x, 27)) * FACTOR_2
    return x ^ _shift_right(x, 31)


def _mixed(x: int) -> int:
    """`_mix` of one number on the host, as a signed 64-bit number."""
    bits = 2**64 - 1
    x = (x + GOLDEN) & bits
    x = ((x ^ (x >> 30)) * FACTOR_1) & bits
    x = ((x ^ (x >> 27)) * FACTOR_2) & bits
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


@torch.no_grad()
def token_keys(id_BT: Tensor, *, seed: int, step: int) -> Tensor:
    """(B, T) int64 in [0, 2**53): a random number per token, the same on every device, rank and split."""
    stream = _mixed(_mixed(seed) + step)
    return _shift_right(_mix(_mix(id_BT) ^ stream), 11)


@torch.no_grad()
def smallest(key_N: Tensor, size: int) -> Tensor:
    """The `size` smallest keys, LAST_ID past the end."""
    return padded(key_N.topk(min(size, len(key_N)), largest=False).values, size, LAST_ID)


@torch.no_grad()
def key_rule(key_N: Tensor, m: Tensor) -> Tensor:
    """The m-th smallest key; the largest number where there are no more than m, NO_KEY for none.

    key_N: every rank's `smallest` m + 1 keys of its candidates, in any order.
    """
    key_N = padded(key_N, len(key_N) + 1, LAST_ID).sort().values
    no_choice = entry(key_N, m) == LAST_ID
    key = torch.where(no_choice, LAST_ID, entry(key_N, m - 1))
    return torch.where(key_N[0] == LAST_ID, NO_KEY, key)
