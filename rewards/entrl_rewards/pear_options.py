"""Which PEAR options make sense, each refusal with the value, the rule and the next move."""

from typing import TYPE_CHECKING, get_args

from entrl.maths.phases import Which
from entrl_rewards.entropy_source import EntropySource, TopKEstimate

if TYPE_CHECKING:
    from entrl_rewards.pear import Pear

CHOICES = {
    "missing_close": ("paper", "all_tokens", "format", "skip"),
    "which_close": get_args(Which),
    "entropy_source": get_args(EntropySource),
    "answer_baseline": ("sample", "group", "ema", "none"),
    "topk_estimate": get_args(TopKEstimate),
}


def check_options(pear: "Pear") -> None:
    """ValueError for the first option that is out of range or does not fit another."""
    for name, allowed in CHOICES.items():
        if getattr(pear, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(pear, name)!r}")
    _check_amounts(pear)
    _check_pairs(pear)


def _check_amounts(pear: "Pear") -> None:
    rules = {
        "s": (pear.s > 0, "> 0 (the paper: at most 1)"),
        "r_fmt": (0 <= pear.r_fmt < 1, "in [0, 1)"),
        "weight": (pear.weight >= 0, ">= 0; a negative one would pay for thinking entropy"),
        "length_weight": (pear.length_weight >= 0, ">= 0; a negative one would pay for length"),
        "length_scale": (pear.length_scale >= 1, ">= 1 token"),
        "min_think_tokens": (pear.min_think_tokens >= 0, ">= 0 tokens"),
        "max_answer_tokens": (pear.max_answer_tokens is None or pear.max_answer_tokens >= 1, ">= 1 token, or null"),
        "ema_decay": (0 <= pear.ema_decay < 1, "in [0, 1)"),
        "gate_solve_rate": (pear.gate_solve_rate is None or 0 <= pear.gate_solve_rate <= 1, "in [0, 1], or null"),
        "close_ids": (pear.close_ids is None or len(pear.close_ids) > 0, "one token id or more, or null"),
        "topk_k": (pear.topk_k is None or pear.topk_k >= 1, ">= 1, or null"),
    }
    for name, (good, rule) in rules.items():
        if not good:
            raise ValueError(f"{name} must be {rule}, got {getattr(pear, name)!r}")


def _check_pairs(pear: "Pear") -> None:
    if isinstance(pear.floor, str) and pear.floor != "r_fmt":
        raise ValueError(f"floor must be a number, 'r_fmt' or null, got {pear.floor!r}")
    if pear.s <= pear.r_fmt:
        raise ValueError(
            f"s must be above r_fmt, got s={pear.s} and r_fmt={pear.r_fmt}; a correct answer must pay more"
        )
    if not isinstance(pear.floor, str) and pear.floor is not None and pear.floor > pear.s:
        raise ValueError(f"floor must be at most s={pear.s}, got {pear.floor}; above it the penalty could never act")
    if (pear.alpha_start is None) != (pear.alpha_steps == 0) or pear.alpha_steps < 0:
        raise ValueError(
            f"alpha_start and alpha_steps > 0 go together, got alpha_start={pear.alpha_start} and "
            f"alpha_steps={pear.alpha_steps}; set both or neither"
        )
    if pear.entropy_source == "topk" and (pear.vocab_size is None or pear.vocab_size < 2):
        raise ValueError(f"entropy_source='topk' needs vocab_size, got {pear.vocab_size}; pass the model's own size")
