"""Where the numbers of a recipe lie in runs, and what to say of one that lies elsewhere.

The part of the rule table that needs no run: `entrl plan` and `entrl train` warn by it.

What a number may be at all, and what contradicts what, is no diagnosis but validity, and stands in `entrl.runs.plan`.

Source:  our choice of bounds, an order of magnitude beyond what is published or more, but where a line says otherwise
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Usual(NamedTuple):
    """Where runs lie; beyond it `why` is said. 0 is judged apart, where it switches something off."""

    low: float
    high: float
    why: str
    zero: str | None = None  # what 0 does, None where it is ordinary


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
    "share of golds in their prompts": Usual(0, 0.9, "of rows of a file; the answer is to be chosen, or given away"),
}


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
