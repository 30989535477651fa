"""ARES: rewards, windows and difficulty against the authors' functions and the paper's equations.

A case goes through the function that a run of ours uses, where there is one; what only the published loop has (its
update of difficulty, its dual ascent, its group filter) is in `entrl_lab.conformance.published_ares`. KL and losses:
`ares_losses`.
"""

import importlib
from typing import Any

import torch
from entrl_rewards.triggers import normalise_token
from torch import Tensor

from entrl.maths.difficulty import BUCKETS, bucket_of
from entrl.maths.signals import entropy_from_topk, pad_rows
from entrl.maths.windows import ThresholdEMA, high_entropy_windows, row_quantiles, running_tail_means, window_means
from entrl.teach.curation import target_length
from entrl_lab.conformance import published_ares
from entrl_lab.conformance.comparison import Case, Comparison

FORMULAS = "entrl_rewards.hierarchical_formulas"  # by name, because the library does not depend on the rewards
STEEPEST = 1e-9  # the published sigmoid takes temperature 0, which no difficulty has, for its limit: a step
FLOAT32_BOUND = 1e-5  # nats; the listed log-probs are float32, the exact entropies they are held against are not


def _formulas() -> Any:
    return importlib.import_module(FORMULAS)


# Reward


def _check_reward(case: Case, check: Comparison, bucket: int, target: float, alpha: float) -> None:
    term = _formulas().entropy_term(bucket, case["correct"], case["n_hwe"], target, alpha)
    if "entropy_score" in case:
        check.close("entropy_score", term, case["entropy_score"])
    check.close("overall", int(case["correct"]) + term, case["overall"])


def reward_case(case: Case, check: Comparison) -> str:
    _check_reward(case, check, BUCKETS.index(case["difficulty"]), case["target"], case["alpha"])
    return ""


def early_reward_case(case: Case, check: Comparison) -> str:
    """What every completion is paid when rewards are computed before buckets: easy, target 0, alpha 0.5."""
    check.same("difficulty_used", "easy", case["difficulty_used"])
    check.close("target_used", 0, case["target_used"])
    check.close("alpha_used", 0.5, case["alpha_used"])
    _check_reward(case, check, 0, 0, 0.5)
    return ""


def huber_case(case: Case, check: Comparison) -> str:
    check.close("out", _formulas().hub(case["x"], case["kappa"]), case["out"])
    return ""


def sigmoid_case(case: Case, check: Comparison) -> str:
    check.close("out", _formulas().sig(case["x"], case["temp"] or STEEPEST), case["out"])
    return "" if case["temp"] else "temperature 0 as the limit"


def margin_case(case: Case, check: Comparison) -> str:
    check.close("out", _formulas().margin(case["target"], case["frac"]), case["out"])
    return ""


def token_case(case: Case, check: Comparison) -> str:
    check.same("out", normalise_token(case["raw"]), case["out"])
    return ""


# Windows and threshold


def _topk_rows(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, T, K) log-probs and bool listed, (B, T) mask, and (B, T) bool: the most likely token is a trigger."""
    sequences = case["sequences"]
    T = max(1, *(len(s) for s in sequences))
    K = max(len(position) for s in sequences for position in s)
    log_p_BTK = torch.full((len(sequences), T, K), -torch.inf, dtype=torch.float64)
    trigger_BT = torch.zeros(len(sequences), T, dtype=torch.bool)
    for b, sequence in enumerate(sequences):
        for t, position in enumerate(sequence):
            log_p_BTK[b, t, : len(position)] = torch.tensor([p for _, p in position], dtype=torch.float64)
            best_id, _ = max(position, key=lambda entry: entry[1])
            trigger_BT[b, t] = normalise_token(case["token_text"][str(best_id)]) in case["trigger_words"]
    listed_BTK = log_p_BTK > -torch.inf
    return log_p_BTK, listed_BTK, listed_BTK.any(-1), trigger_BT


def windows_case(case: Case, check: Comparison) -> str:
    """Entropies, threshold statistic and counts of all sequences of the case at once, from the listed log-probs."""
    log_p_BTK, listed_BTK, mask_BT, trigger_BT = _topk_rows(case)
    zero_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
    of_tokens = entropy_from_topk(
        log_p_BTK[mask_BT], vocab_size=case["vocab_size"], k=case["top_k"], listed_NK=listed_BTK[mask_BT]
    )
    bucket_BT, dropped_BT = zero_BT.clone(), zero_BT.clone()
    bucket_BT[mask_BT], dropped_BT[mask_BT] = of_tokens.bucket, of_tokens.dropped
    got = high_entropy_windows(
        bucket_BT,
        mask_BT,
        threshold=case["threshold"],
        window=case["window"],
        trigger_BT=trigger_BT,
    )
    statistic_BT = running_tail_means(dropped_BT, mask_BT, case["window"])
    quantile_B = row_quantiles(statistic_BT, mask_BT, case["percentile"] / 100)
    length_B, want = mask_BT.sum(-1), case["expect"]
    for b, length in enumerate(length_B.tolist()):
        check.close(f"token_entropy[{b}]", bucket_BT[b, :length], want["token_entropy_tail_bucket"][b])
    check.same("token_entropy rows", len(mask_BT), len(want["token_entropy_tail_bucket"]))
    check.close("mean_entropy", bucket_BT.sum(-1) / length_B.clamp(min=1), want["mean_entropy_tail_bucket"])
    # an empty completion has no quantile for us, and 0 in the file
    check.close("window_percentile", quantile_B.nan_to_num(0.0), want["window_percentile_no_tail"])
    check.same("hwe_count", got.count_B.tolist(), want["hwe_count"])
    check.same("low_entropy_trigger_count", got.low_B.tolist(), want["low_entropy_trigger_count"])
    check.close("soft_cost", got.soft_cost_B, want["soft_cost"])
    exact_N = torch.tensor([h for row in case["reference"]["exact_token_entropy_full_vocab"] for h in row])
    within = (exact_N >= of_tokens.lower - FLOAT32_BOUND) & (exact_N <= of_tokens.upper + FLOAT32_BOUND)
    check.same("exact entropies inside our bounds", int(within.sum()), int(mask_BT.sum()))
    return "an empty completion counts as 0 in the file" if bool((length_B == 0).any()) else ""


def threshold_case(case: Case, check: Comparison) -> str:
    threshold = ThresholdEMA()
    got = [threshold.update(step["batch_values"]) for step in case["steps"]]
    check.close("threshold_after", got, [step["threshold_after"] for step in case["steps"]])
    return f"{len(got)} batches in a row"


# Difficulty


def difficulty_case(case: Case, check: Comparison) -> str:
    """The chain from its first state alone; every state on the way must be the file's."""
    alpha, target = case["steps"][0]["state_before"]["alpha"], case["steps"][0]["state_before"]["target"]
    for i, step in enumerate(case["steps"]):
        check.close(f"alpha before [{i}]", in_order(alpha), in_order(step["state_before"]["alpha"]))
        check.same(f"target before [{i}]", target, step["state_before"]["target"])
        difficulty, target, alpha = published_ares.difficulty_update(
            step["prompt_ids"],
            step["correct"],
            step["n_hwe"],
            alpha=alpha,
            target=target,
            lr=step["lr"],
            alpha_min=step["alpha_min"],
            alpha_max=step["alpha_max"],
        )
        check.same(f"difficulty [{i}]", difficulty, step["expect"]["difficulty"])
        check.same(f"target [{i}]", target, step["expect"]["target"])
        check.close(f"alpha [{i}]", in_order(alpha), in_order(step["expect"]["alpha"]))
    return f"{len(case['steps'])} steps in a row"


def in_order(by_level: dict[str, float]) -> list[float]:
    return [by_level[level] for level in BUCKETS]


def lambda_case(case: Case, check: Comparison) -> str:
    got = published_ares.lambda_ascent(
        case["prompt_ids"],
        case["soft_cost"],
        case["difficulty"],
        lambdas=case["lambda_before"],
        budget=case["budget"],
        lr=case["lr"],
        min_samples=case["min_samples"],
        lambda_max=case["lambda_max"],
    )
    check.close("lambda_after", in_order(got), in_order(case["expect"]["lambda_after"]))
    return ""


def bucket_case(case: Case, check: Comparison) -> str:
    check.same("difficulty", BUCKETS[bucket_of(case["n_correct"], case["G"])], case["expect"]["difficulty"])
    return ""


# The paper's equations


def paper_windows_case(case: Case, check: Comparison) -> str:
    rows = [torch.tensor(row, dtype=torch.float64) for row in case["entropies"]]
    entropy_BT, mask_BT = pad_rows(rows)
    trigger_BT, _ = pad_rows([torch.tensor(row, dtype=torch.bool) for row in case["is_trigger"]])
    q, want = case["quantile"], case["expect"]
    mean_BT, full_BT = window_means(entropy_BT, mask_BT, case["window"], following=False)
    for b, row in enumerate(want["window_entropy"]):
        check.close(f"window_entropy[{b}]", mean_BT[b][full_BT[b]], row)
    check.same("window_entropy rows", len(rows), len(want["window_entropy"]))
    tau_high = published_ares.mean_of_quantiles(entropy_BT, mask_BT, q=q)
    pooled = published_ares.pooled_quantile(entropy_BT, mask_BT, q=q)
    check.close("tau_high", tau_high, want["tau_high_mean_of_sequence_quantiles"])
    check.close("theta", pooled, want["theta_pooled_quantile"])
    tokens_B = published_ares.semantic_token_counts(entropy_BT, mask_BT, trigger_BT, threshold=pooled)
    check.same("n_he_token", tokens_B.tolist(), want["n_he_token_semantic_pooled"])
    counted = high_entropy_windows(entropy_BT, mask_BT, threshold=tau_high, window=case["window"], following=False)
    check.same("n_he_window", counted.count_B.tolist(), want["n_he_window_all_tokens"])
    return ""


def paper_reward_case(case: Case, check: Comparison) -> str:
    bucket = BUCKETS.index(case["difficulty"])
    check.close("g", _formulas().paper_excess(bucket, case["delta"]), case["expect"]["g"])
    got = _formulas().paper_reward(bucket, case["correct"], case["delta"], case["lam"])
    check.close("reward", got, case["expect"]["reward"])
    return ""


def paper_lambda_case(case: Case, check: Comparison) -> str:
    of, want = _formulas().paper_lambda, case["expect"]
    check.close("batch mean as target", of(case["n_he"], eps=case["eps"]), want["lambda_batch_mean_target"])
    got = of(case["n_he"], case["target"], eps=case["eps"])
    check.close("target from elsewhere", got, want["lambda_external_target"])
    return ""


def target_length_case(case: Case, check: Comparison) -> str:
    check.close("target", target_length(case["p"], case["L0"], case["L1"]), case["expect"]["target"])
    return ""
