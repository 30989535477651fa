"""What each mode of the ARES reward stands for, and which options make sense together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from entrl.maths.difficulty import BUCKETS
from entrl_rewards.entropy_source import EntropySource, TopKEstimate

if TYPE_CHECKING:
    from entrl_rewards.hierarchical_entropy import HierarchicalEntropy

# An option left at None takes its mode's value.
MODES: dict[str, dict[str, Any]] = {
    "fixed": {
        "alpha": 0.4,  # below every alpha at which the published caps let a wrong answer outrank a right one
        "alpha_rate": 0.0,
        "target_decay": 0.9,
        "rounded_target": False,
        "following": True,
        "threshold_lag": False,
        "centred": True,
        "ordering_guard": True,
        "wrong_bonus": {"easy": 0.0, "medium": 0.8, "hard": 1.0},
        "lambda_mode": "off",
    },
    "code": {
        "alpha": 0.5,
        "alpha_rate": 0.05,
        "target_decay": 0.0,
        "rounded_target": True,
        "following": True,
        "threshold_lag": True,
        "centred": False,
        "ordering_guard": False,
        "wrong_bonus": {"easy": 0.6, "medium": 0.8, "hard": 1.0},
        "lambda_mode": "off",
    },
    "paper": {
        "alpha": 0.5,
        "alpha_rate": 0.0,
        "target_decay": 0.9,
        "rounded_target": False,
        "following": False,
        "threshold_lag": False,
        "centred": False,
        "ordering_guard": False,
        "wrong_bonus": {"easy": 0.0, "medium": 0.0, "hard": 0.0},
        "lambda_mode": "external",
    },
}
LAMBDA_MODES = ("off", "external", "dual_ascent")


def fill_in(reward: "HierarchicalEntropy") -> None:
    """Put the mode's values where nothing was given, then check everything."""
    if reward.mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {reward.mode!r}")
    if reward.mode == "paper":
        idle = [n for n in ("centred", "wrong_bonus", "ordering_guard", "alpha") if getattr(reward, n) is not None]
        if idle or reward.evaluate_before_buckets:
            raise ValueError(
                f"mode='paper' is one printed equation, in which {', '.join(idle) or 'evaluate_before_buckets'} would "
                "do nothing, or something it does not say; leave it out, or take mode='fixed' or 'code'"
            )
    for name, value in MODES[reward.mode].items():
        if getattr(reward, name) is None:
            object.__setattr__(reward, name, value)
    check_options(reward)


def check_options(reward: "HierarchicalEntropy") -> None:
    choices = {
        "entropy_source": get_args(EntropySource),
        "topk_estimate": get_args(TopKEstimate),
        "lambda_mode": LAMBDA_MODES,
    }
    for name, allowed in choices.items():
        if getattr(reward, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(reward, name)!r}")
    low, high = reward.alpha_range
    decay, rate, alpha = (float(getattr(reward, name)) for name in ("target_decay", "alpha_rate", "alpha"))
    rules = {
        "window": (reward.window >= 1, ">= 1 token; the paper finds 4 to 8 best"),
        "percentile": (0 < reward.percentile < 1, "in (0, 1); 0.95 is the 95th percentile"),
        "threshold": (reward.threshold is None or reward.threshold >= 0, ">= 0 nats, or null to follow the policy"),
        "threshold_decay": (0 <= reward.threshold_decay < 1, "in [0, 1)"),
        "target_decay": (0 <= decay < 1, "in [0, 1)"),
        "alpha_rate": (rate >= 0, ">= 0; 0 keeps alpha where it is"),
        "alpha_range": (0 <= low <= high, "two numbers with 0 <= low <= high"),
        "alpha": (low <= alpha <= high, f"in alpha_range={list(reward.alpha_range)}"),
    }
    for name, (good, rule) in rules.items():
        if not good:
            raise ValueError(f"{name} must be {rule}, got {getattr(reward, name)!r}")
    _check_bonus(reward.wrong_bonus)
    if reward.entropy_source == "topk" and (reward.vocab_size is None or reward.vocab_size < 2):
        raise ValueError(f"entropy_source='topk' needs vocab_size, got {reward.vocab_size}; pass the model's own size")
    if reward.argmax_trigger and reward.triggers is None:
        raise ValueError("argmax_trigger tests trigger words, and triggers=null looks at every window; give triggers")
    if reward.threshold_estimate is not None and reward.entropy_source != "topk":
        raise ValueError(
            f"threshold_estimate is a way to estimate from top-k log-probs, and entropy_source="
            f"{reward.entropy_source!r} needs no estimate; leave it out"
        )
    if reward.mode == "paper" and reward.lambda_mode == "off":
        raise ValueError(
            "mode='paper' is accuracy minus lambda times a penalty; lambda_mode='off' leaves accuracy alone"
        )
    if reward.mode != "paper" and reward.lambda_mode != "off":
        raise ValueError(
            f"lambda_mode={reward.lambda_mode!r} belongs to mode='paper'; the table of mode={reward.mode!r} has none"
        )


def _check_bonus(bonus: Any) -> None:
    if not isinstance(bonus, Mapping) or set(bonus) != set(BUCKETS) or not all(0 <= v <= 1 for v in bonus.values()):
        raise ValueError(
            f"wrong_bonus is a share of the cap in [0, 1] for each of {', '.join(BUCKETS)}; got {bonus!r}. "
            "A negative one would punish wrong answers for windows and right ones would still outrank them"
        )
