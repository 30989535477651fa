"""The entropy terms of ARES: what the authors' code pays, the repaired table, and what the paper prints.

Pure numbers in and out. n counts a completion's high-entropy windows, `target` is what its difficulty is used to,
delta = n - target, m = max(1, f max(target, 1)) the free margin around it, cap = alpha * scale.

    hub(x) = 0 for x <= 0, x^2 / (2 kappa) up to kappa, x - kappa / 2 beyond
    sig(x) = 1 / (1 + e^(-x / temperature))

    easy, right                   -min(cap, cap hub(delta - m) / (m + kappa))
    medium, right                 -min(cap, cap hub(|delta| - m) / (m + kappa))
    hard, right, delta >= -m      +cap sig(delta + m)
    hard, right, delta < -m       -min(cap, cap / 2 hub(-delta - m) / (m + kappa))
    wrong                         +cap share_d sig(max(delta - m, 0))        share .6 easy, .8 medium, 1 hard

    repaired: sig(x) becomes 2 sig(x) - 1 for wrong answers (0 without a surplus, where the published one pays
    cap share / 2 for nothing), easy ones get no share, and `ordered` keeps right above 1/2 and wrong below it.

Source:  shawn0728/ARES `examples/reward_function/aepo.py`, re-derived from a description and checked on its own
    numbers (`entrl conformance`); arXiv 2510.08457, section 3.2.2
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from entrl.maths.difficulty import BUCKETS

GUARD = 1e-3  # how far from 1/2 the ordering guard keeps both sides


class Constants(NamedTuple):
    """Of one difficulty."""

    margin: float  # f, a share of the target
    kappa: float  # where the Huber penalty turns linear, windows
    temperature: float  # of the sigmoid, windows
    scale: float  # of the cap
    wrong_share: float  # of the cap, at most, for a wrong answer


CODE = (
    Constants(margin=0.15, kappa=2.0, temperature=2.0, scale=1.0, wrong_share=0.6),
    Constants(margin=0.25, kappa=3.0, temperature=2.5, scale=1.0, wrong_share=0.8),
    Constants(margin=0.35, kappa=4.0, temperature=3.0, scale=1.2, wrong_share=1.0),
)
EASY, MEDIUM, HARD = range(len(BUCKETS))


def hub(x: float, kappa: float) -> float:
    """One-sided Huber penalty."""
    if x <= 0:
        return 0.0
    return x * x / (2 * kappa) if x <= kappa else x - kappa / 2


def sig(x: float, temperature: float) -> float:
    """Logistic function of x / temperature."""
    if x < 0:  # the other form would overflow far below 0
        small = math.exp(x / temperature)
        return small / (1 + small)
    return 1 / (1 + math.exp(-x / temperature))


def margin(target: float, share: float) -> float:
    """m: at least one window."""
    return max(1.0, share * max(target, 1.0))


def entropy_term(
    bucket: int,
    correct: bool,
    n: float,
    target: float,
    alpha: float,
    *,
    centred: bool = False,
    wrong_shares: Sequence[float] | None = None,
) -> float:
    """What is added to accuracy. The defaults are the authors' code.

    centred: 2 sig - 1 in place of sig for wrong answers. wrong_shares: easy, medium, hard; None = the code's.
    """
    of = CODE[bucket]
    delta, m, cap = n - target, margin(target, of.margin), alpha * of.scale
    if not correct:
        share = of.wrong_share if wrong_shares is None else wrong_shares[bucket]
        paid = sig(max(delta - m, 0.0), of.temperature)
        return cap * (2 * paid - 1 if centred else paid) * share
    if bucket == HARD and delta >= -m:
        return cap * sig(delta + m, of.temperature)
    if bucket == HARD:
        return -min(cap, 0.5 * cap * hub(-delta - m, of.kappa) / (m + of.kappa))
    surplus = abs(delta) if bucket == MEDIUM else delta
    return -min(cap, cap * hub(surplus - m, of.kappa) / (m + of.kappa))


def ordered(reward: float, correct: bool) -> float:
    """Right answers are worth at least 1/2 + GUARD, wrong ones at most 1/2 - GUARD."""
    return max(reward, 0.5 + GUARD) if correct else min(reward, 0.5 - GUARD)


def paper_excess(bucket: int, delta: float) -> float:
    """g_d of section 3.2.2: the surplus on easy problems, the distance on medium ones, the lack on hard ones."""
    return max(0.0, delta) if bucket == EASY else abs(delta) if bucket == MEDIUM else max(0.0, -delta)


def paper_reward(bucket: int, correct: bool, delta: float, weight: float) -> float:
    """R = accuracy - 1[wrong] lambda_d g_d(delta)."""
    return 1.0 if correct else -weight * paper_excess(bucket, delta)


def paper_lambda(counts: Sequence[float], target: float | None = None, *, eps: float = 1e-6) -> float:
    """max(0, (mean - target) / (variance + eps)) over a bucket's completions, population variance.

    target: None = the batch mean, as the paper writes it, which makes the numerator 0 and the method vanish.
    """
    mean = fmean(counts)
    variance = fmean((n - mean) ** 2 for n in counts)
    return max(0.0, (mean - (mean if target is None else target)) / (variance + eps))
