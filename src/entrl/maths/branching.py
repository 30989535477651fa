"""Branched rollouts: some of a prompt's G completions continue another one's prefix, and the gradient stays unbiased.

R roots are drawn to the end. A fork continues a root's first tokens from a high-entropy window on; a slot that no
fork fills holds a copy. With w_l the weight of completion (leaf) l, S_l = sum_t grad ln pi(y_t | y_<t) and r_l its
reward,

    g = (1/R) sum_roots i  sum_{l in i} w_l (r_l - b_i) S_l
    w_l: 1 on the root, and at every fork the weight of the path splits into two halves
    b_i = mean_{j != i} V_j    V_j = sum_{l in j} w_l r_l        leave-one-root-out
    row advantage = (G/R) w_l (r_l - b_i) / s                    so TRL's mean over G rows is g / s

Why it is unbiased: a fork and the rest of its root are independent draws from one distribution given the prefix, so
half of each has the mean of the one it replaces; by induction from the last fork a tree is worth what its root was.
For that, whatever decides on a fork may know the prefix and other roots, never the rest of its own root. Two ways:

    window_end    fork at the last token of the window. Its entropies depend on the tokens before it alone.
    window_start  fork at the first one. The window was validated with the entropies of the tokens that followed, so the
                  root's own rest is a draw *given that they made a window here*: a fork is held to the same, drawn
                  again until it makes its first window here too. After `attempts` failures the root stays whole.

b_i knows nothing of root i except how many forks the roots before it left over; whatever that number, V_j has the
same mean and the weighted score of a tree has mean 0, so their product does too. Leaves of the own root would not do:
they share a prefix with l. The threshold comes from earlier rollouts.

Source:  ARES (arXiv 2510.08457) 3.2.1 names branching and publishes no code; rules, weights and baseline are ours.
    Checked exactly on a toy tree (tests/test_branching_toy.py, docs/branching.md)
Needs:   torch only

Entropies in nats. N rows of all prompts, P prompts, B roots; positions count from 0 at the completion's first token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from entrl.maths.signals import pad_rows
from entrl.maths.windows import row_quantiles, window_means

POINTS = ("window_start", "window_end")


@dataclass(frozen=True, kw_only=True)
class BranchOptions:
    """When and where to fork. Where no source states a value, the default is ours."""

    roots: int  # R >= 2, completions of a prompt that are drawn whole
    at: Literal["window_start", "window_end"] = "window_start"  # the paper's
    window: int = 4  # w, tokens
    quantile: float = 0.95  # of a root's window means; the threshold is the median over roots, EMA over rollouts
    attempts: int = 3  # draws of a fork's window before its root stays whole (window_start)
    token_budget: int | None = None  # generated tokens per prompt on average; None: no limit
    ema: float = 0.99  # decay of the threshold and of the mean lengths, per rollout

    def __post_init__(self) -> None:
        if self.roots < 2:
            raise ValueError(
                f"branch_roots must be >= 2, got {self.roots}: the baseline of a root is the value of the others"
            )
        if self.at not in POINTS:
            raise ValueError(f"branch_at must be one of {', '.join(POINTS)}; got {self.at!r}")
        if self.window < 1:
            raise ValueError(f"branch_window must be >= 1 token, got {self.window}; the paper finds 4 to 8 best")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"branch_quantile must be in [0, 1], got {self.quantile}; the 95th percentile is 0.95")
        if self.attempts < 1:
            raise ValueError(f"branch_attempts must be >= 1, got {self.attempts}")
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"branch_token_budget must be >= 1 token or null, got {self.token_budget}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}; 1 would never learn")


class Fork(NamedTuple):
    """A place to fork: `at` is the first token of its own, `start` the window's first, and no window was looked for
    before `begin` (the end of the root's previous window)."""

    root: int
    at: int
    start: int
    begin: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What earlier rollouts cost: tokens of a root on average, and tokens drawn for a fork per token foreseen."""

    length: float
    overrun: float = 1.0

    def fork(self, at: int, window: int) -> float:
        """Tokens to foresee for a fork at position `at`; its own root's length is the future and not looked at."""
        return self.overrun * max(self.length - at, window)


def validated_windows(entropies: Tensor, *, threshold: float, window: int, begin: int = 0) -> list[int]:
    """First positions of disjoint windows whose mean entropy reaches `threshold`, each the earliest possible.

    entropies: 1-D, nats. No window begins before `begin`. A window of w tokens from t is decided by the tokens before
    t + w - 1, so which windows come first never depends on what is written after them.
    """
    if len(entropies) < window:
        return []
    row_BT = entropies[None]
    mean_BT, full_BT = window_means(row_BT, torch.ones_like(row_BT, dtype=torch.bool), window, following=False)
    found: list[int] = []
    for start in torch.nonzero(full_BT[0] & (mean_BT[0] >= threshold))[:, 0].tolist():
        if start >= begin:
            found.append(start)
            begin = start + window
    return found


def plan_forks(
    entropies: Sequence[Tensor], *, threshold: float, slots: int, options: BranchOptions, costs: Costs | None = None
) -> list[Fork]:
    """Where to fork the roots of one prompt: at most `slots` places, at most one per window.

    entropies: one 1-D tensor per root. Roots take turns in order; each may use an equal share of the slots left, so
    what one leaves over goes to those after it and nothing flows back. Under `options.token_budget` a fork is left
    out when what the roots before it wrote, what was foreseen for forks, and the mean length for this root and the
    later ones exceed the budget; `costs` is then required.
    """
    if options.token_budget is not None and costs is None:
        raise ValueError("a token budget is kept by the mean lengths of earlier rollouts; pass costs")
    forks: list[Fork] = []
    spent, left = 0.0, slots
    for root, row in enumerate(entropies):
        roots_left = len(entropies) - root
        allowance, taken, begin = math.ceil(left / roots_left), 0, 0
        for start in validated_windows(row, threshold=threshold, window=options.window):
            if taken == allowance:
                break
            fork = Fork(root, start if options.at == "window_start" else start + options.window - 1, start, begin)
            begin = start + options.window
            if costs is not None and options.token_budget is not None:
                cost = costs.fork(fork.at, options.window)
                if spent + costs.length * roots_left + cost > options.token_budget:
                    continue
                spent += cost
            forks.append(fork)
            taken += 1
        spent += len(row)
        left -= taken
    return forks


def makes_the_window(fork: Fork, parent: Tensor, drawn: Tensor, *, threshold: float, window: int) -> bool:
    """True where a fork's first `window` tokens make its first window where its parent's did.

    parent: entropies of the whole root; drawn: those of the fork's first tokens. Fewer than `window` of them: the
    completion ended before the window did, as its parent's did not. A token's entropy is decided before the token, so
    the last of them is free.
    """
    if len(drawn) < window:
        return False
    row = torch.cat([parent[: fork.start], drawn[:window]])
    found = validated_windows(row, threshold=threshold, window=window, begin=fork.begin)
    return found == [fork.start]


class BranchTree(NamedTuple):
    """One entry per completion of a prompt: the roots in order, the forks in order, then copies.

    root: which root it belongs to. parent: the entry it continues or repeats, -1 for a root. fork: position of its
    first own token, -1 for roots and copies. weight: its share of its root, which sum to 1. copied: True for copies.
    """

    root: list[int]
    parent: list[int]
    fork: list[int]
    weight: list[float]
    copied: list[bool]


def branch_tree(roots: int, forks: Sequence[Fork], size: int) -> BranchTree:
    """The tree of one prompt with exactly `size` completions.

    Free slots repeat the completion whose weight is largest at that moment, which shares its weight evenly with its
    copies: the gradient stays the same to the last digit of the sum, and costs no generation.
    """
    if roots + len(forks) > size:
        raise ValueError(f"{roots} roots and {len(forks)} forks do not fit {size} completions")
    root, parent, at = list(range(roots)), [-1] * roots, [-1] * roots
    path = [1.0] * roots  # weight that is still on the root's own path
    weight: list[float] = [0.0] * roots
    for fork in sorted(forks, key=lambda f: (f.root, f.at)):
        path[fork.root] /= 2
        root.append(fork.root)
        parent.append(fork.root)
        at.append(fork.at)
        weight.append(path[fork.root])
    weight[:roots] = path
    shares = [1] * len(root)
    originals = len(root)
    repeats: list[int] = []
    for _ in range(size - originals):
        heaviest = max(range(originals), key=lambda i: (weight[i] / shares[i], -i))
        shares[heaviest] += 1
        repeats.append(heaviest)
    shared = [w / n for w, n in zip(weight, shares, strict=True)]
    return BranchTree(
        root=root + [root[i] for i in repeats],
        parent=parent + repeats,
        fork=at + [-1] * len(repeats),
        weight=shared + [shared[i] for i in repeats],
        copied=[False] * originals + [True] * len(repeats),
    )


def tree_advantages(
    rewards_N: Tensor,
    groups_N: Tensor,
    root_N: Tensor,
    weight_N: Tensor,
    *,
    scale: Literal["group", "batch", "none"],
    eps: float = 1e-4,
) -> Tensor:
    """(N,) advantages with weight and leave-one-root-out baseline, for TRL's plain mean over rows.

    rewards_N: NaN = nothing scored the completion: its advantage is 0, and values and baselines leave it out.
    groups_N: prompt of each row. root_N: int >= 0, root within the prompt. weight_N: sums to 1 over a root's rows.
    scale: divide by the standard deviation of the prompt's (group) or of all rows' rewards (batch) plus `eps`; it
        weighs the leaves by w / R and counts roots as the independent draws (n - 1 of n roots), so it is TRL's where
        every completion is a root. As in TRL the division itself is not unbiased; "none" is.

    A prompt whose scored completions all got one reward has advantages of exactly 0. With every completion a root the
    advantages are TRL's times G / (G - 1): TRL's mean includes the completion itself, which shrinks the gradient.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale must be group, batch or none, got {scale!r}")
    reward_N, weights_N = rewards_N.detach().to(torch.float64), weight_N.to(torch.float64)
    scored_N = ~reward_N.isnan()
    reward_N = torch.where(scored_N, reward_N, 0.0)
    weights_N = torch.where(scored_N, weights_N, 0.0)
    _, group_N = groups_N.unique(return_inverse=True)
    _, tree_N = (group_N * (int(root_N.max()) + 1) + root_N).unique(return_inverse=True)
    groups, trees = int(group_N.max()) + 1, int(tree_N.max()) + 1
    group_B = torch.zeros(trees, dtype=torch.long, device=group_N.device).scatter_(0, tree_N, group_N)

    def per_tree(x_N: Tensor) -> Tensor:
        return x_N.new_zeros(trees).index_add_(0, tree_N, x_N)

    def per_group(x_B: Tensor) -> Tensor:
        return x_B.new_zeros(groups).index_add_(0, group_B, x_B)

    mass_B = per_tree(weights_N)
    known_B = mass_B > 0
    value_B = torch.where(known_B, per_tree(weights_N * reward_N) / mass_B, 0.0)
    known_P, values_P = per_group(known_B.to(torch.float64)), per_group(value_B)
    others_B = known_P[group_B] - known_B.to(torch.float64)
    baseline_B = (values_P[group_B] - value_B) / others_B.clamp(min=1)
    rows_P, roots_P = (torch.bincount(x, minlength=groups).to(torch.float64) for x in (group_N, group_B))
    advantage_N = (rows_P / roots_P)[group_N] * weights_N * (reward_N - baseline_B[tree_N])
    if scale != "none":
        owner_N = group_N if scale == "group" else torch.zeros_like(group_N)
        roots = known_P if scale == "group" else known_P.sum()[None]
        advantage_N = advantage_N / (_spread(reward_N, weights_N / roots_P[group_N], owner_N, roots) + eps)
    judged_N = scored_N & (others_B > 0)[tree_N] & _differ(reward_N, scored_N, group_N, groups)[group_N]
    return torch.where(judged_N, advantage_N, 0.0).to(rewards_N.dtype)


def _spread(reward_N: Tensor, share_N: Tensor, owner_N: Tensor, roots: Tensor) -> Tensor:
    """(N,) standard deviation of the rewards among the rows of one owner, which holds so many independent roots."""

    def total(x_N: Tensor) -> Tensor:
        return x_N.new_zeros(len(roots)).index_add_(0, owner_N, x_N)

    mass = total(share_N).clamp(min=1e-300)
    mean_N = (total(share_N * reward_N) / mass)[owner_N]
    variance = total(share_N * (reward_N - mean_N).square()) / mass * roots / (roots - 1).clamp(min=1)
    return variance.sqrt()[owner_N]


def _differ(reward_N: Tensor, scored_N: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """(P,) bool: True where scored completions of the prompt differ in reward."""
    low = reward_N.new_full((groups,), math.inf)
    low = low.scatter_reduce(0, group_N, torch.where(scored_N, reward_N, math.inf), "amin")
    high = reward_N.new_full((groups,), -math.inf)
    high = high.scatter_reduce(0, group_N, torch.where(scored_N, reward_N, -math.inf), "amax")
    return high > low


def window_quantiles(entropies: Sequence[Tensor], *, window: int, quantile: float) -> Tensor:
    """(B,) quantile of each root's window means, nats; NaN for one shorter than a window."""
    entropy_BT, mask_BT = pad_rows(entropies)
    mean_BT, full_BT = window_means(entropy_BT, mask_BT, window, following=False)
    return row_quantiles(mean_BT, full_BT, quantile)
