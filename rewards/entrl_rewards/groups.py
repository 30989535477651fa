"""Statistics inside a prompt's group of completions; every group must be whole in the rows given.

Group ids are any integers; rows of a group need not be neighbours.
"""

import scipy
import torch
from torch import Tensor


def group_mean(x_B: Tensor, group_B: Tensor, mask_B: Tensor) -> Tensor:
    """(B,) mean of the row's group over its masked members; 0 where the group has none."""
    _, index_B = group_B.unique(return_inverse=True)
    total_P = x_B.new_zeros(int(index_B.max()) + 1).index_add_(0, index_B, torch.where(mask_B, x_B, 0.0))
    count_P = torch.zeros_like(total_P).index_add_(0, index_B, mask_B.to(x_B.dtype))
    return (total_P / count_P.clamp(min=1))[index_B]


def rank_correlations(x_B: Tensor, y_B: Tensor, group_B: Tensor, mask_B: Tensor) -> list[float]:
    """Spearman's rho of each group over its masked members; groups where x or y does not vary have none."""
    found = []
    for group in group_B.unique():
        inside_B = mask_B & (group_B == group)
        x, y = x_B[inside_B], y_B[inside_B]
        if len(x.unique()) > 1 and len(y.unique()) > 1:
            found.append(float(scipy.stats.spearmanr(x, y).statistic))
    return found


def shuffle_within(class_BN: Tensor, *, seeds: tuple[int, ...]) -> Tensor:
    """(B,) row to copy from: a random permutation inside each class of equal rows of `class_BN` (first
    column: group).

    Each class draws from its own generator, seeded by `seeds` and its row of ids, so the result does not
    depend on which other groups share the batch.
    """
    source_B = torch.arange(len(class_BN))
    classes_PN, index_B = class_BN.unique(dim=0, return_inverse=True)
    for p, ids in enumerate(classes_PN.tolist()):
        members = (index_B == p).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(mix(*seeds, *ids))
        source_B[members] = members[torch.randperm(len(members), generator=generator)]
    return source_B


def mix(*numbers: int) -> int:
    """One 63-bit seed from several integers; the same on every machine, unlike `hash` of a string."""
    seed = 0
    for n in numbers:
        seed = (seed * 6364136223846793005 + int(n) + 1442695040888963407) % (1 << 63)
    return seed
