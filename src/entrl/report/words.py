"""What a logged metric is called where a person reads it, with its unit. The one list; `docs/metrics.md` explains each.

`*` stands for what differs (a reward, a controller, a share) and comes back in the words as `{}`.
"""

import re
from functools import cache
from typing import NamedTuple


class Words(NamedTuple):
    title: str
    unit: str = ""


PLAIN = {
    "seconds": ("Training time", "s"),
    "tokens": ("Tokens generated", "tokens"),
    "forward_passes": ("Forward passes", "passes"),
    "step, optimizer_steps": ("Optimiser steps", "optimiser steps"),
    "epoch": ("Passes over the training set", "passes"),
    "num_tokens": ("Tokens of prompts and completions", "tokens"),
    "step_time": ("Time of a step", "s"),
    "runtime": ("Time of an evaluation", "s"),
    "samples_per_second": ("Samples per second", "1/s"),
    "steps_per_second": ("Steps per second", "1/s"),
    "loss": ("Loss", ""),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", ""),
    "kl": ("KL to the reference", "nats"),
    "entropy": ("Entropy, by TRL", "nats"),
    "entropy_coef": ("Entropy coefficient", ""),
    "clip_ratio/low_*": ("Clipped below, {}", "share"),
    "clip_ratio/high_*": ("Clipped above, {}", "share"),
    "clip_ratio/region_mean": ("Clipped on either side", "share"),
    "cispo_clip_ratio": ("Ratios cut by CISPO", "share"),
    "aux_loss": ("Router loss", ""),
    "sampling/sampling_logp_difference/*": ("Log-prob, trainer against sampler, {}", "nats"),
    "sampling/importance_sampling_ratio/*": ("Importance ratio of trainer and sampler, {}", ""),
    "reward": ("Reward", "reward"),
    "reward_std": ("Spread of rewards", "reward"),
    "rewards/*/mean": ("Reward {}", "reward"),
    "rewards/*/std": ("Reward {}, spread", "reward"),
    "frac_reward_zero_std": ("Completions without spread, by TRL", "share"),
    "groups/without_spread": ("Groups without spread", "share"),
    "completions/*_terminated_length": ("Length of finished completions, {}", "tokens"),
    "completions/*_length": ("Completion length, {}", "tokens"),
    "completions/clipped_ratio": ("Truncated completions", "share"),
    "completions/thinking_closed": ("Completions that close their thinking", "share"),
    "tools/call_frequency": ("Tool calls", "per completion"),
    "tools/failure_frequency": ("Failed tool calls", "share"),
}
ENTROPY = {
    "policy_entropy/token_mean": ("Entropy, mean over tokens", "nats"),
    "policy_entropy/response_mean": ("Entropy, mean over completions", "nats"),
    "policy_entropy/think": ("Entropy in thinking", "nats"),
    "policy_entropy/answer": ("Entropy in answers", "nats"),
    "dynamics/state_cov": ("Covariance, centred in each state", "nats"),
    "probe/entropy": ("Entropy on fixed prefixes", "nats"),
    "probe/within": ("Change of entropy inside states", "nats"),
    "probe/occupancy": ("Change of entropy by other states", "nats"),
    "window/entropy_change": ("Change of entropy by a step", "nats"),
    "diversity/distinct_*": ("Different {}-grams", "share"),
    "diversity/edit_distance": ("Edit distance", "share"),
    "diversity/unique": ("Different completions", "share"),
    "diversity/truncated": ("Completions cut to measure diversity", "share"),
}
CONTROLLERS = {
    "*/tokens": ("Counted tokens ({})", "tokens"),
    "*/cov_mean": ("Covariance, mean ({})", "nats"),
    "*/cov_std": ("Covariance, spread ({})", "nats"),
    "*/cov_top_*_negative": ("Top {1} of covariance, negative advantage ({0})", "share"),
    "*/cov_top_*": ("Covariance, top {1} ({0})", "nats"),
    "*/candidates": ("Tokens that competed ({})", "tokens"),
    "*/selected": ("Selected tokens ({})", "tokens"),
    "*/selected_fraction": ("Selected tokens ({})", "share"),
    "*/selected_negative_advantage": ("Selected, negative advantage ({})", "share"),
    "*/selected_probability": ("Probability of selected tokens ({})", "probability"),
    "*/ppo_clipped": ("Clipped tokens ({})", "share"),
    "*/abs_log_ratio": ("Size of the log-ratio ({})", "nats"),
    "kl_cov/penalty": ("KL-Cov penalty", "nats"),
    "*/damped": ("Damped tokens ({})", "tokens"),
    "*/damped_share": ("Damped tokens ({})", "share"),
    "*/damped_negative_advantage": ("Damped, negative advantage ({})", "share"),
    "*/weight_mean": ("Weight, mean ({})", ""),
    "*/effective_share": ("Effective share of tokens ({})", ""),
    "cw_grpo/mean_before_renormalising": ("Weight before renormalising (cw_grpo)", ""),
    "cw_grpo/smallest_weight": ("Smallest weight (cw_grpo)", ""),
    "steer/influence_*": ("Influence of a token on entropy, {}", "nats"),
    "steer/beyond_share": ("Tokens above the threshold (steer)", "share"),
    "ce_gppo/outside": ("Tokens beyond the clip (ce_gppo)", "tokens"),
    "ce_gppo/below_share": ("Tokens below the clip (ce_gppo)", "share"),
    "ce_gppo/above_share": ("Tokens above the clip (ce_gppo)", "share"),
    "ce_gppo/negative_advantage": ("Beyond the clip, negative advantage (ce_gppo)", "share"),
    "ce_gppo/rare_share": ("Beyond the clip, rare tokens (ce_gppo)", "share"),
    "dynamic_kl/kl_windows": ("KL inside high-entropy windows", "nats"),
    "dynamic_kl/kl_*": ("KL to the reference, {} prompts", "nats"),
    "dynamic_kl/multiplier_*": ("KL coefficient, {}", "x beta"),
    "dynamic_kl/window_share": ("Tokens inside high-entropy windows", "share"),
    "dynamic_kl/unknown_share": ("Completions of unknown difficulty", "share"),
    "*/guard_knob": ("Option the guard moves ({})", "option's"),
    "*/guard_at_limit": ("Guard at its limit ({})", "-1/0/1"),
    "*/guard_entropy": ("Smoothed entropy of the guard ({})", "nats"),
    "*/guard_share": ("Entropy held by the guard ({})", "share of the start"),
    "*/guard_error": ("Distance from the guard's band ({})", "nats"),
    "*/guard_alarm": ("Alarm of the guard ({})", "-1/0/1"),
    "*/guard_skipped": ("Steps the guard skipped ({})", "steps"),
}
REWARDS = {
    "accuracy/verify_timeout": ("Verifications timed out", "completions"),
    "accuracy/verify_*": ("Verifications, {}", "completions"),
    "pear/h_think": ("Entropy in thinking, at the rollout", "nats"),
    "pear/h_answer": ("Entropy in answers, at the rollout", "nats"),
    "pear/h_all": ("Entropy, at the rollout", "nats"),
    "pear/think_tokens": ("Length of thinking", "tokens"),
    "pear/answer_tokens": ("Length of answers", "tokens"),
    "pear/tokens": ("Completion length", "tokens"),
    "pear/think_share": ("Tokens in thinking", "share"),
    "pear/missing_close": ("Missing closing tag", "share"),
    "pear/truncated": ("Truncated completions", "share"),
    "pear/correct": ("Right completions", "share"),
    "pear/unknown": ("Completions without a verdict", "share"),
    "pear/refused": ("Right completions not paid for their form", "share"),
    "pear/penalty": ("PEAR's penalty", "nats"),
    "pear/penalty_zero": ("Penalty at zero (PEAR)", "share"),
    "pear/floored": ("Rewards at the floor (PEAR)", "share"),
    "pear/alpha": ("Weight of PEAR's penalty", ""),
    "laser_d/limit_*": ("Length limit, {}", "tokens"),
    "laser_d/correct_within_limit": ("Right within the limit (LASER-D)", "share"),
    "ares/*/prompts": ("Prompts, {}", "prompts"),
    "ares/*/accuracy": ("Accuracy, {}", "share"),
    "ares/*/length": ("Length, {}", "tokens"),
    "ares/*/windows": ("High-entropy windows, {}", "per completion"),
    "ares/*/target": ("Target of windows, {}", ""),
    "ares/*/alpha": ("Weight alpha, {}", ""),
    "ares/*/lambda": ("Weight lambda, {}", ""),
    "ares/threshold": ("Window threshold", "nats"),
    "ares/wrong_above_right": ("Wrong answers paid above right ones", "share"),
    "information_gain/realised": ("Realised gain", "bits"),
    "information_gain/expected": ("Expected gain", "bits"),
    "information_gain/luck": ("Luck: realised minus expected gain", "bits"),
    "information_gain/gain_per_question": ("Gain per question", "bits"),
    "information_gain/normalised": ("Gain, of what could be known", "share"),
    "information_gain/score": ("Answers right in part", "share"),
    "information_gain/success": ("Right answers", "share"),
    "information_gain/submitted": ("Answers given", "share"),
    "information_gain/paid": ("Reward of a dialogue", "reward"),
    "information_gain/questions": ("Questions", "per dialogue"),
    "information_gain/*": ("Questions: {}", "per dialogue"),
}
ROLLOUTS = {
    "branch/roots": ("Completions written whole", "per prompt"),
    "branch/forks": ("Completions continued from a fork", "per prompt"),
    "branch/copies": ("Completions repeated", "per prompt"),
    "branch/*_tokens": ("Tokens of branching, {}", "tokens per prompt"),
    "branch/discarded_share": ("Discarded tokens of branching", "share"),
    "branch/threshold": ("Fork threshold", "nats"),
    "branch/accepted_share": ("Planned forks that were kept", "share"),
    "branch/windows_drawn": ("Windows drawn for a fork", "per fork"),
    "filter/pass_rate": ("Groups that pass the filter", "share"),
    "filter/tries": ("Generations of the filter", "generations"),
    "filter/prompts": ("Groups of the filter", "groups"),
    "filter/*_total": ("Groups {} since the start", "groups"),
    "filter/*": ("Groups of the filter: {}", "groups"),
    "turns/per_completion": ("Turns of a dialogue", "turns"),
    "turns/reward": ("Reward of a turn", "reward"),
    "turns/credit_abs": ("Credit of a turn, size", "advantage"),
    "sampler/gap": ("Log-prob gap, mean", "nats a token"),
    "sampler/gap_max": ("Log-prob gap, largest", "nats a token"),
    "sampler/entropy_gap": ("Entropy gap", "nats a token"),
    "sampler/kept": ("Ratios left alone", "share"),
    "sampler/kept_by_length/*": ("Ratios left alone, tenth {} by length", "share"),
    "sampler/kept_by_entropy/*": ("Ratios left alone, tenth {} by entropy", "share"),
    "sampler/kept_mass": ("Kept mass", "probability"),
    "vllm/sync_seconds": ("Weight sync", "s"),
    "vllm/sync_bytes": ("Bytes sent", "bytes"),
    "vllm/failures": ("Failed requests", "requests"),
    "vllm/repeated": ("Repeated requests", "requests"),
    "vllm/returns": ("Servers that came back", "servers"),
    "staleness/*/abs_log_ratio": ("Size of the log-ratio, {} versions of age", "nats"),
    "policy_version": ("Policy version", ""),
    "law/a": ("Slope a of the law", "accuracy"),
    "law/b": ("Offset b of the law", "accuracy"),
    "law/ceiling": ("Ceiling of the law", "accuracy"),
    "law/ceiling_lo": ("Ceiling of the law, lower end", "accuracy"),
    "law/ceiling_hi": ("Ceiling of the law, upper end", "accuracy"),
    "law/r2": ("R² of the law in sample", "accuracy"),
    "law/points": ("Points of the law", "points"),
    "law/from_eval": ("Law rests on evaluations", "0/1"),
    "law/refused": ("No fit of the law", "0/1"),
    "law/intervention": ("Something holds entropy", "0/1"),
    "law/spent": ("Entropy is spent", "0/1"),
}
# In this order: what names a room comes before what only names an ending.
LIST = {key: Words(*said) for part in (PLAIN, ENTROPY, REWARDS, ROLLOUTS, CONTROLLERS) for key, said in part.items()}
PATTERNS = [
    (re.compile("|".join(re.escape(name).replace(r"\*", "(.+?)") for name in names.split(", "))), said)
    for names, said in sorted(LIST.items(), key=lambda item: item[0].startswith("*"))
]


@cache
def words(metric: str) -> Words:
    """Title and unit of a metric; one that nobody listed (a user's own) keeps its name."""
    for pattern, said in PATTERNS:
        if found := pattern.fullmatch(metric):
            stars = [star.replace("_", " ") for star in found.groups()]
            return said._replace(title=said.title.format(*stars))
    return Words(metric)
