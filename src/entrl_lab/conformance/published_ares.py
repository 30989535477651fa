"""What the ARES authors' training loop computes around the reward, and how the paper counts: for reproduction only.

    difficulty  bucket of a prompt's accuracy; target_d = round(mean of its prompts' mean counts);
                alpha_d <- clip(alpha_d +- 0.05 (mean - target_d), 0, 2): the rounding residue, so a random walk
    lambda      lambda_d <- clip(lambda_d + 0.01 (mean soft cost - budget_d), 0, 10); nothing reads the result
    filter      a group stays when low < mean reward < high
    KL          exp(x) - x - 1 with x = ref - logp in [-20, 20], at most 10, times the sequence's beta
    policy      max(-A r, -A clip(r)), for A < 0 at most -3 A, over tokens or over sequences
    advantage   (r - mean) / (std_{n-1} + 1e-6) within the group
    paper       threshold = the q-quantile of *token* entropies, averaged over sequences (sec. 3.2.1) or pooled over the
                batch (App. H); N_HE = tokens of a vocabulary that reach it, without any window (App. H)

None of it is what a run should use. Ours are in `entrl.maths.windows`, `entrl.maths.difficulty`,
`entrl.maths.group_filter`; the KL rule, the authors' beside ours, in `entrl.controllers.dynamic_kl`; both rewards in
`entrl_rewards.hierarchical_formulas`.

Source:  shawn0728/ARES at 146620e: verl/trainer/ray_trainer.py (`update_difficulty_and_skip_gid_set`, inline parts of
    `fit`, `_make_batch_data`), verl/trainer/core_algos.py (`compute_kl`, `compute_policy_loss`,
    `compute_grpo_outcome_advantage`, `average_loss`), verl/workers/actor/dp_actor.py (`update_policy`); arXiv
    2510.08457v1, where quantiles are taken as linear between order statistics, because the paper does not say
Differs: buckets by integers; the code compares floats, which agree because both sides are rounded once
Needs:   torch only
"""

from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from entrl.maths.difficulty import BUCKETS, bucket_of
from entrl.maths.signals import masked_mean, masked_token_mean
from entrl.maths.windows import row_quantiles

MAX_LOG_RATIO = 20.0  # nats, of the policy and of the KL's difference alike
MAX_KL = 10.0  # nats a token
ALPHA_LR, ALPHA_MIN, ALPHA_MAX = 0.05, 0.0, 2.0
LAMBDA_LR, LAMBDA_MAX, LAMBDA_MIN_SAMPLES = 0.01, 10.0, 8

Over = Literal["tokens", "sequences"]


class DifficultyUpdate(NamedTuple):
    difficulty: dict[Hashable, str]  # of each prompt of the batch
    target: dict[str, int]  # of each bucket seen so far
    alpha: dict[str, float]  # of all three buckets


def difficulty_update(
    prompt_ids: Sequence[Hashable],
    correct: Sequence[int],
    counts: Sequence[float],
    *,
    alpha: Mapping[str, float],
    target: Mapping[str, int],
    lr: float = ALPHA_LR,
    alpha_min: float = ALPHA_MIN,
    alpha_max: float = ALPHA_MAX,
) -> DifficultyUpdate:
    """One step's buckets, targets and alphas from all its completions, in any order.

    prompt_ids, correct (0 or 1), counts: one entry per completion; alpha, target: the state before the step. A bucket
    without prompts in the batch keeps its values.
    """
    members: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompt_ids):
        members.setdefault(prompt, []).append(i)
    difficulty = {p: BUCKETS[bucket_of(sum(int(correct[i]) for i in rows), len(rows))] for p, rows in members.items()}
    new_target, new_alpha = dict(target), dict(alpha)
    for level in BUCKETS:
        means = [fmean(counts[i] for i in rows) for p, rows in members.items() if difficulty[p] == level]
        if means:
            mean = fmean(means)
            new_target[level] = round(mean)
            gap = mean - new_target[level]
            step = lr * (-gap if level == "hard" else gap)
            new_alpha[level] = min(max(new_alpha[level] + step, alpha_min), alpha_max)
    return DifficultyUpdate(difficulty, new_target, new_alpha)


def lambda_ascent(
    prompt_ids: Sequence[Hashable],
    soft_cost: Sequence[float],
    difficulty: Mapping[Hashable, str],
    *,
    lambdas: Mapping[str, float],
    budget: Mapping[str, float],
    lr: float = LAMBDA_LR,
    min_samples: int = LAMBDA_MIN_SAMPLES,
    lambda_max: float = LAMBDA_MAX,
) -> dict[str, float]:
    """The dual step of each bucket with at least `min_samples` completions, from soft costs in nats.

    The completions of a prompt overwrite one another in the code's table, so its last one counts for all of them.
    """
    last = dict(zip(prompt_ids, soft_cost, strict=True))
    after = dict(lambdas)
    for level in lambdas:
        costs = [last[p] for p in prompt_ids if difficulty[p] == level]
        if len(costs) >= min_samples:
            after[level] = min(max(after[level] + lr * (fmean(costs) - budget[level]), 0.0), lambda_max)
    return after


def kept_groups(rewards: Mapping[Hashable, Sequence[float]], *, low: float, high: float) -> list[Hashable]:
    """The groups whose mean reward lies strictly between `low` and `high`, in their order."""
    return [group for group, scores in rewards.items() if low < fmean(scores) < high]


def group_advantages(rewards: Sequence[float], groups: Sequence[Hashable], *, eps: float = 1e-6) -> Tensor:
    """(B,) float32 advantages from the rewards of each group, which need not lie side by side."""
    reward_B = torch.tensor(rewards, dtype=torch.float32)
    out_B = torch.empty_like(reward_B)
    for group in dict.fromkeys(groups):
        own = [i for i, g in enumerate(groups) if g == group]
        if len(own) < 2:
            raise ValueError(f"group {group!r} has one completion, so no standard deviation; sample at least two")
        own_G = reward_B[own]
        out_B[own] = (own_G - own_G.mean()) / (own_G.std() + eps)
    return out_B


def token_kl(log_probs_BT: Tensor, ref_log_probs_BT: Tensor) -> Tensor:
    """(B, T) k3 estimate in nats of KL(policy, reference) per token, clamped twice; the graph is kept."""
    gap_BT = (ref_log_probs_BT - log_probs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (gap_BT.exp() - gap_BT - 1).clamp(-MAX_KL, MAX_KL)


def average(x_BT: Tensor, mask_BT: Tensor, *, over: Over) -> Tensor:
    """Scalar: over all masked tokens, or over the rows' own means (a row without tokens counts 0)."""
    return masked_token_mean(x_BT, mask_BT) if over == "tokens" else masked_mean(x_BT, mask_BT).mean()


class PolicyLoss(NamedTuple):
    """Scalars; all but `loss` are metrics outside the graph, over all masked tokens unless the line says otherwise."""

    loss: Tensor
    kl: Tensor  # mean of -log ratio, nats
    surprisal: Tensor  # mean of -log p, averaged as the loss is; the code calls it entropy loss
    clipped_high: Tensor  # share of tokens whose ratio is clipped
    clipped_low: Tensor  # share of tokens with A < 0 held by the dual clip


def policy_loss(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    clip_dual: float = 3.0,
    over: Over = "tokens",
) -> PolicyLoss:
    """The clipped loss of one micro-batch, (B, T) log-probs in nats and (B,) advantages in.

    Without a bound, one token of a small old probability and A < 0 could have any loss: the dual clip holds it at
    -clip_dual A.
    """
    advantage_BT = advantages_B[:, None].expand_as(log_probs_BT)
    log_ratio_BT = (log_probs_BT - old_log_probs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = log_ratio_BT.exp()
    free_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    high_BT = torch.maximum(free_BT, clipped_BT)
    dual_BT, negative_BT = -advantage_BT * clip_dual, advantage_BT < 0
    loss_BT = torch.where(negative_BT, torch.minimum(high_BT, dual_BT), high_BT)

    def share(x_BT: Tensor) -> Tensor:
        return masked_token_mean(x_BT.detach().float(), mask_BT)

    return PolicyLoss(
        average(loss_BT, mask_BT, over=over),
        share(-log_ratio_BT),
        average(-log_probs_BT.detach(), mask_BT, over=over),
        share(free_BT < clipped_BT),
        share((high_BT > dual_BT) & negative_BT),
    )


def mean_of_quantiles(entropy_BT: Tensor, mask_BT: Tensor, *, q: float = 0.95) -> float:
    """Nats: the mean over the rows of each one's q-quantile of token entropies; NaN when a row is empty."""
    return float(row_quantiles(entropy_BT, mask_BT, q).mean())


def pooled_quantile(entropy_BT: Tensor, mask_BT: Tensor, *, q: float = 0.95) -> float:
    """Nats: the q-quantile of all token entropies of the batch."""
    pooled_1N = entropy_BT[mask_BT][None]
    return float(row_quantiles(pooled_1N, torch.ones_like(pooled_1N, dtype=torch.bool), q))


def semantic_token_counts(entropy_BT: Tensor, mask_BT: Tensor, trigger_BT: Tensor, *, threshold: float) -> Tensor:
    """(B,) tokens of the vocabulary whose own entropy reaches `threshold` (nats); no window."""
    return (mask_BT & trigger_BT & (entropy_BT >= threshold)).sum(-1)
