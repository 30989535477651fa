"""Where the numbers of a recipe lie in runs, and what to say of one that lies elsewhere.

The part of the rule table that needs no run: `entrl plan` and `entrl train` warn by it.

What a number may be at all, and what contradicts what, is no diagnosis but validity, and stands in `entrl.runs.plan`.

Source:  our choice of bounds, an order of magnitude beyond what is published or more, but where a line says otherwise
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

TOKENS, STEPS = "trainer.max_completion_length", "trainer.max_steps"


class Usual(NamedTuple):
    """Where runs lie; beyond it `why` is said. 0 is judged apart, where it switches something off."""

    low: float
    high: float
    why: str
    zero: str | None = None  # what 0 does, None where it is ordinary
    over: str = ""  # a number of the trainer of which low and high are multiples
    times: str = ""  # one by which the value is multiplied before it is compared


USUAL: dict[str, Usual] = {  # of the `trainer` group
    "learning_rate": Usual(
        1e-8,
        1e-2,  # above it AdamW leaves any language model's weights behind
        "runs have about 1e-6 for all weights, 1e-5 to 1e-4 for adapters; far above the policy is lost in a few steps, "
        "far below it does not move",
        "nothing will be trained",
    ),
    "weight_decay": Usual(0, 1, "runs have 0 to 0.1; is it in percent?"),
    "adam_epsilon": Usual(0, 1e-3, "it is added to the root of squared gradients, which it would outweigh"),
    "max_grad_norm": Usual(1e-3, math.inf, "every step would be scaled down to almost nothing; runs have 0.1 to 1"),
    "epsilon": Usual(
        1e-4, 1, "it is a distance from the ratio 1; runs have 0.2", "every token whose ratio has moved is clipped"
    ),
    "epsilon_high": Usual(1e-4, 20, "it is a distance from the ratio 1; runs have 0.2 to 0.3 (CISPO up to 5)"),
    "beta": Usual(0, 1, "runs have 0 to 0.1; the policy would be held to the reference and learn nothing else"),
    "temperature": Usual(
        0.05, 5, "runs have 0.6 to 1.2; far above tokens are noise, far below all completions are alike"
    ),
    "top_k": Usual(2, math.inf, "with one token to choose from all completions of a prompt are the same; 0 is off"),
    "top_p": Usual(0.1, 1, "so few tokens are left to choose from that completions of a prompt are alike; 1 is off"),
    "min_p": Usual(0, 0.9, "so few tokens are left to choose from that completions of a prompt are alike; 0 is off"),
    "repetition_penalty": Usual(1, 2, "below 1 repetition is rewarded, far above 1 text falls apart; 1 is off"),
    "entropy_coef": Usual(0, 1, "runs have 0 to 0.01; below 0 entropy is fined, far above it is all that is paid"),
    "top_entropy_quantile": Usual(0.01, 1, "it is the share of tokens trained on; 1 is all", "no token is trained on"),
    "num_iterations": Usual(
        1, 32, "it is the updates made of one rollout, of which the last learn from a foreign policy"
    ),
    "num_train_epochs": Usual(0, 1e4, "so many passes over the data do not end; set trainer.max_steps"),
    "neftune_noise_alpha": Usual(0, 100, "runs have 5 to 15"),
    "dataloader_num_workers": Usual(0, 128, "each is a process of its own"),
    "turn_credit_weight": Usual(0, 100, "it is 1; far above, what an episode earns counts no more"),
    "filter_min_std": Usual(
        0, 1, "it is a spread of rewards; those of 0 and 1 have 0.5 at most, and none would be left"
    ),
    "ref_model_mixup_alpha": Usual(1e-6, 1, "it is the share of the policy in the new reference", "it never moves"),
}

BEYOND: dict[str, Usual] = {  # of other groups; what is said there has the numbers around it (`entrl.runs.plan`)
    "size of rewards.*.weight": Usual(
        1e-4, 1000, "above, nothing else counts beside it; below, TRL adds more than that to the spread it divides by"
    ),
    "rewards.*.args.timeout_s": Usual(
        0.1, 300, "seconds for one answer: a child process takes some milliseconds, and longer on a busy machine"
    ),
    "rewards.* of a trial call": Usual(-1e6, 1e6, "single precision tells no difference below 0.06 there"),
    "controllers.*.args.floor": Usual(0, 1, "above the spread that rewards of 0 and 1 can have (0.5)"),
    "controllers.*.args.band": Usual(0, 10, "of its lower edge, a share of the starting entropy"),
    "eval.samples": Usual(0, 1024, "published evaluations have up to 1,024 answers to a problem"),
    "eval.temperature": Usual(0, 5, "beyond it little but noise is sampled"),
    "launch.device_memory_gib": Usual(0, 1024, "an accelerator of today has up to 288"),
    "passes over data.train_size": Usual(0, 1e4, "of trainer.max_steps"),
    "lora.lora_alpha over lora.r": Usual(0.01, 100, "runs have 1 to 4; the adapter is multiplied by it"),
    "share of golds in their prompts": Usual(0, 0.9, "of rows of a file; the answer is to be chosen, or given away"),
}

_PROCESSES = "each is a process of its own, or a request under way"
_NEVER = "most of it, or all, lies behind the last step"
_ALL = "a right answer earns about 1, beside which it would be all that counts"
_PEAR = "it is 1; far above PEAR takes nothing, below 0 it fines the entropy of answers as well"

# Of rewards, controllers, and curricula, by their classes: what trains, and trains something else. Infinite: off.
ARGUMENTS: dict[str, dict[str, Usual]] = {
    "Accuracy": {"workers": Usual(1, 128, _PROCESSES)},
    "Code": {
        "workers": Usual(1, 256, _PROCESSES),
        "memory_mib": Usual(32, 2**20, "Python alone takes about 20, and no machine has so much for each"),
    },
    "EntropyOptions": {"vocab_size": Usual(2, 1e7, "no tokenizer has so many, and estimated entropies grow with it")},
    "Pear": {
        "alpha": Usual(0, 10, _PEAR),
        "weight": Usual(0, 10, "a nat would cost more than a right answer earns, so that wrong ones do as well"),
        "s": Usual(0.01, 1, "the paper has at most 1; above it the penalty is not felt, near 0 no answer earns much"),
        "min_think_tokens": Usual(0, 1, "no completion thinks so long, so no right answer is paid", over=TOKENS),
    },
    "PearExpert": {
        "alpha_start": Usual(0, 10, _PEAR),
        "alpha_steps": Usual(0, 10, _NEVER, over=STEPS),
        "length_weight": Usual(0, 10, _ALL),
    },
    "L1Options": {
        "a": Usual(
            1e-3, 20, "reward per token: a completion's length would cost many right answers, or nothing", times=TOKENS
        ),
        "target": Usual(0, 1, "no completion is so long, so the length asked for is never reached", over=TOKENS),
    },
    "LaserD": {
        "bonus": Usual(0, 10, _ALL),
        "wrong": Usual(-10, 1, "a right answer earns 1, beside which being wrong would be all that counts"),
        "refresh_steps": Usual(0, 10, _NEVER, over=STEPS),
    },
    "HierarchicalOptions": {
        "alpha": Usual(0, 10, "the published range ends at 0.41; below 0 the term pays for what it fines"),
        "wrong_bonus": Usual(0, 10, "it is a share of a cap, 0 to 1"),
        "window": Usual(0, 1, "no completion has such a window", over=TOKENS),
        "threshold": Usual(0, 12, "nats of a token: no token of a vocabulary of 150,000 has more"),
    },
    "HierarchicalExpert": {
        "alpha_rate": Usual(0, 1, "published is 0.05: alpha would leap from one end of its range to the other"),
        "alpha_range": Usual(0, 10, "the published range ends at 2"),
    },
    "InformationGain": {
        name: Usual(0, 10, _ALL)
        for name in ("gain_weight", "outcome_weight", "question_cost", "repeat_penalty", "invalid_penalty")
    },
    "RewardModel": {
        "scale": Usual(1e-3, 100, "scores are about 1 to 10 as they are; give the reward a weight instead"),
        "batch_size": Usual(1, 4096, "completions of one pass, all in memory at once"),
    },
    "ThinkFormat": {"min_answer_tokens": Usual(0, 1, "no completion answers so long, so none is paid", over=TOKENS)},
    "Remote": {"retries": Usual(0, 30, "each waits for the time limit again"), "at_once": Usual(1, 1024, _PROCESSES)},
    "RemoteExpert": {"pause_s": Usual(0, 60, "seconds between two tries; is it in milliseconds?")},
    "JudgeExpert": {
        "max_tokens": Usual(4, 1e5, "a verdict takes some words, and no judge writes so many"),
        "temperature": Usual(0, 2, "the judge would say anything; 0 is usual"),
    },
    "KLCov": {
        "coef": Usual(0, 100, "the paper has 1; far above, the penalty is all that trains"),
        "dead_zone": Usual(0, 1, "nats: about 0.01 covers round-off; no token of one rollout moves so far"),
    },
    "ClipCov": {"lower": Usual(-math.inf, 100, "the paper has 1; no token's covariance is so large")},
    "CEGPPO": {
        name: Usual(0, 10, "published are 0.25 to 1; what lies beyond the clip would outweigh all within")
        for name in ("beta_low", "beta_high")
    },
    "CWGRPO": {"width": Usual(0.01, 100, "it is 1, in spreads of what is weighed; far above all weigh alike")},
    "DynamicKL": {
        "targets": Usual(1e-6, 1, "nats a token; published are 0.005 to 0.02"),
        "start": Usual(1e-4, 100, "it multiplies beta; published is 1"),
        "strength": Usual(0, 100, "it multiplies beta; 1 is published"),
        "log_rate": Usual(0, 1, "0.05 is published: the multiplier would leap from one end to the other"),
        "rate": Usual(0, 1, "0.1 is published: the multiplier would leap from one end to the other"),
        "dead_zone": Usual(0, 1, "a share of the target within which nothing moves; 0.02 is published"),
        "maximum": Usual(0, 1e4, "100 is published"),
        "interval": Usual(0, 10, _NEVER, over=STEPS),
    },
    "Guard": {
        "start_entropy": Usual(0, 12, "nats a token; no vocabulary of 150,000 has more"),
        "start_steps": Usual(0, 10, _NEVER, over=STEPS),
        "every": Usual(0, 10, _NEVER, over=STEPS),
        "patience": Usual(0, 10, _NEVER, over=STEPS),
        "kp": Usual(0, 1000, "15 was tuned: every small error would throw the knob from end to end"),
        "ki": Usual(0, 50, "0.5 was tuned: every small error would throw the knob from end to end"),
        "rate": Usual(0, 10, "the knob would go from one end to the other in one step"),
        "maximum": Usual(0, 1e4, "the knob may come so far, where its penalty is all that trains"),
        "surge_share": Usual(0, 100, "of the starting entropy; is it in percent?"),
    },
    "Steer": {"w_max": Usual(0, 10, "the release has 1.2")},
    "WReinforce": {
        "weight_positive": Usual(0, 10, "published are 0 to 1"),
        "weight_negative": Usual(0, 10, "published are 0 to 1"),
        "threshold": Usual(-10, 10, "rewards are about 0 to 1: all would be right, or none"),
    },
    "CourseOptions": {"pass_above": Usual(-10, 10, "rewards are about 0 to 1: all would pass, or none")},
    "Birdie": {
        "temperature": Usual(1e-3, 25, "in units of the reward; far above all tasks are drawn alike, far below one is"),
        "every": Usual(0, 10, _NEVER, over=STEPS),
    },
}


def unusual_arguments(value: Any, where: str, of: str, sizes: Mapping[str, float]) -> list[str]:
    """What is odd about a reward, a controller, a rule, and the options inside it; user's own have no bounds.

    where: its keys in the recipe. of: what the recipe calls it. sizes: TOKENS and STEPS, where they are known.
    """
    if not dataclasses.is_dataclass(value):
        return []
    table = {name: usual for made in reversed(_ours(value)) for name, usual in ARGUMENTS.get(made, {}).items()}
    out = []
    for field in dataclasses.fields(value):
        held = getattr(value, field.name) if field.init else None
        if dataclasses.is_dataclass(held):
            inside = f"{where}.{field.name}{'' if field.name == 'expert' else '.args'}"
            out += unusual_arguments(held, inside, of, sizes)
        elif field.name in table and held != field.default:  # nobody chose the default
            out += _odd(table[field.name], held, f"{where}.{field.name} of {of}", sizes)
    return out


def _ours(value: Any) -> list[str]:
    return [
        made.__name__ for made in type(value).__mro__ if made.__module__.split(".")[0] in ("entrl", "entrl_rewards")
    ]


def _odd(usual: Usual, held: Any, what: str, sizes: Mapping[str, float]) -> list[str]:
    key = usual.over or usual.times
    if key and not sizes.get(key, 0) > 0:  # not known
        return []
    scale = sizes.get(usual.times, 1) / sizes.get(usual.over, 1)
    odd = [number for number in _numbers(held) if not usual.low <= number * scale <= usual.high]
    beside = f" beside {key} of {sizes[key]:,}" if key else ""
    return [f"{what} is {odd[0]:g}{beside}: {usual.why}; set it nearer, unless it is meant"] if odd else []


def _numbers(held: Any) -> Iterator[float]:
    """Those in it that are finite and not 0, which is off or judged elsewhere."""
    if isinstance(held, Mapping):
        held = list(held.values())
    if isinstance(held, Sequence) and not isinstance(held, str):
        for one in held:
            yield from _numbers(one)
    elif isinstance(held, int | float) and not isinstance(held, bool) and held and math.isfinite(held):
        yield held


def unusual(numbers: Mapping[str, Any], *, where: str = "trainer") -> list[str]:
    """Of a group as it is written: numbers that are legal and rarely meant."""
    out = []
    for name, usual in USUAL.items():
        value = numbers.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value == 0:
            out += [] if usual.zero is None else [f"{where}.{name} is 0: {usual.zero}; set it above 0"]
        elif not usual.low <= value <= usual.high:
            out.append(f"{where}.{name} of {value:g} is rarely meant: {usual.why}; set it nearer, unless it is meant")
    return out
