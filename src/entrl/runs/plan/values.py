"""Values that TRL and transformers take in silence, or stop at late: refused before a run, or warned of.

`entrl plan` and `entrl train` share the refusals. A warning names the key of a run that is legal and rarely meant.
"""

import math
from collections.abc import Sequence
from typing import Any

from entrl.models.load import on_meta
from entrl.runs.recipe import Recipe
from entrl.settings.names import Loaded

# trainer key -> (lowest, highest, lowest is allowed); from the meaning of each, and from what transformers samples with
RANGES: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (0, 1, True),  # 1e4 for 1e-4: the sign of an exponent lost
    "weight_decay": (0, math.inf, True),
    "max_grad_norm": (0, math.inf, True),
    "beta": (0, math.inf, True),
    "epsilon": (0, math.inf, True),
    "epsilon_high": (0, math.inf, True),
    "delta": (0, math.inf, False),
    "top_entropy_quantile": (0, 1, True),
    "temperature": (0, math.inf, False),
    "top_p": (0, 1, False),
    "top_k": (0, math.inf, True),
    "min_p": (0, 1, True),
    "repetition_penalty": (0, math.inf, False),
    "max_completion_length": (1, math.inf, True),
    "per_device_train_batch_size": (1, math.inf, True),
    "gradient_accumulation_steps": (1, math.inf, True),
    "steps_per_generation": (1, math.inf, True),
    "num_generations": (2, math.inf, True),
    "seed": (0, 2**32 - 1, True),
    "data_seed": (0, 2**32 - 1, True),
    "dataloader_num_workers": (0, math.inf, True),
    "ref_model_sync_steps": (1, math.inf, True),
    "pad_to_multiple_of": (1, math.inf, True),
    "vllm_tensor_parallel_size": (1, math.inf, True),
    "vllm_gpu_memory_utilization": (0, 1, False),
    "vllm_server_port": (1, 65535, True),
    "vllm_group_port": (1, 65535, True),
}
# words that TRL 1.16 compares at its first step and nowhere before
CHOICES: dict[str, tuple[Any, ...]] = {
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_mode": ("colocate", "server"),
}
HIGH_RATE = 1e-2  # learning rate above which AdamW leaves any language model's weights behind; our choice
QUICKEST_S = 0.1  # seconds of a verifier's child for one answer, some milliseconds where nobody else works; our choice
TRL_PEFT_TASK = "CAUSAL_LM"


def value_problems(trainer: dict[str, Any]) -> list[str]:
    """Of the `trainer` group as it is written: numbers outside of what they mean, and words that mean nothing."""
    out = [
        f"trainer.{name} must be one of {', '.join(str(c) for c in known if isinstance(c, str))}, got {trainer[name]!r}"
        for name, known in CHOICES.items()
        if name in trainer and trainer[name] not in known
    ]
    for name, value in trainer.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high, closed = RANGES.get(name, (-math.inf, math.inf, True))
        unbounded = name not in RANGES or name in ("max_grad_norm", "delta")
        good = not math.isnan(value) and low <= value <= high and (closed or value > low)
        if not good or (math.isinf(value) and not unbounded):
            upper = f" and at most {high:g}" if high < math.inf else ""
            rule = f"{'at least' if closed else 'above'} {low:g}{upper}" if name in RANGES else "a number"
            out.append(f"trainer.{name} must be {rule}, and finite; got {value}")
    return out


def weight_problems(recipe: Recipe) -> list[str]:
    return [
        f"rewards.{i}.weight of {spec.use} must be a finite number, got {spec.weight}"
        for i, spec in enumerate(recipe.rewards)
        if not math.isfinite(spec.weight)
    ]


def adapter_problems(lora: Any) -> list[str]:
    """What TRL or peft would stop at, or train nothing with."""
    if lora is None:
        return []
    out = []
    if lora.task_type != TRL_PEFT_TASK:
        out.append(f"lora.task_type must be {TRL_PEFT_TASK}, got {lora.task_type!r}; leave it out")
    if getattr(lora, "r", 1) < 1:
        out.append(f"lora.r must be at least 1, got {lora.r}")
    targets = getattr(lora, "target_modules", None) or ()
    if not isinstance(targets, str) and "lm_head" in targets:
        out.append(
            "lora.target_modules names lm_head, whose adapter TRL would never train (it reads lm_head.weight "
            "directly); leave it out, or set lora.modules_to_save: [lm_head]"
        )
    return out


def reference_problems(args: Any, lora: Any) -> list[str]:
    if getattr(args, "sync_ref_model", False) and lora is not None:
        return ["trainer.sync_ref_model beside lora: the reference is the base, which does not move; leave one out"]
    if getattr(args, "sync_ref_model", False) and not args.beta:
        return ["trainer.sync_ref_model: true moves a reference model, and with beta 0 there is none; set trainer.beta"]
    return []


# --- legal, and rarely meant --------------------------------------------------------------------------------------


def adapter_warnings(lora: Any, config: Any) -> list[str]:
    """Names of an adapter that the model has no module for, beside others it has, which peft takes in silence.

    config: of the model, built here without memory
    """
    if lora is None:
        return []
    modules = [name for name, _ in on_meta(config).named_modules()]
    out = []
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        given = getattr(lora, option, None) or ()
        idle = [] if isinstance(given, str) else sorted(n for n in given if not _names_any(n, modules))
        if idle:
            out.append(f"lora.{option} names {', '.join(idle)}, which no module of the model is called; correct it")
    layers, count = getattr(lora, "layers_to_transform", None), config.get_text_config().num_hidden_layers
    beyond = [i for i in ([layers] if isinstance(layers, int) else layers or []) if i >= count]
    if beyond:
        out.append(f"lora.layers_to_transform names {beyond}, and the model's layers are 0 to {count - 1}; correct it")
    if getattr(lora, "lora_alpha", None) == 0:
        out.append("lora.lora_alpha is 0, which the adapter is multiplied by: nothing will be trained; set it above 0")
    return out


def _names_any(name: str, modules: Sequence[str]) -> bool:
    """By peft's rule: the whole dotted name, or its last parts."""
    return any(module == name or module.endswith(f".{name}") for module in modules)


def value_warnings(recipe: Recipe, args: Any, rewards: Sequence[Loaded]) -> list[str]:
    return [
        *_rate_warnings(args),
        *_reward_warnings(recipe, rewards),
        *_evaluation_warnings(recipe, args),
    ]


def _rate_warnings(args: Any) -> list[str]:
    if args.learning_rate == 0:
        return ["trainer.learning_rate is 0: nothing will be trained"]
    if args.learning_rate > HIGH_RATE:
        return [
            f"trainer.learning_rate of {args.learning_rate:g} is far above what models train with (about 1e-6 for all "
            "weights, 1e-5 to 1e-4 for adapters): the policy will be lost in a few steps"
        ]
    return []


def _reward_warnings(recipe: Recipe, rewards: Sequence[Loaded]) -> list[str]:
    out = [
        f"rewards.{i}.weight of {spec.use} is {spec.weight:g}: the policy is paid for less of it"
        for i, spec in enumerate(recipe.rewards)
        if spec.weight < 0
    ]
    out += [
        f"rewards.{i}.args.timeout_s of {spec.use} is {limit:g}: checks by a child process take longer on a busy "
        f"machine, and what is not checked in time gets no reward; set it to {QUICKEST_S:g} at least"
        for i, (reward, spec) in enumerate(zip(rewards, recipe.rewards, strict=False))
        if (limit := getattr(reward.value, "timeout_s", None)) is not None and limit < QUICKEST_S
    ]
    paying = [
        r.source for r, spec in zip(rewards, recipe.rewards, strict=False) if spec.weight and _pays_correctness(r)
    ]
    if len(paying) > 1:
        out.append(f"correctness is paid {len(paying)} times, by {' and '.join(paying)}; keep one, unless it is meant")
    return out


def _pays_correctness(reward: Loaded) -> bool:
    return getattr(reward.value, "judges", None) is not None


def _evaluation_warnings(recipe: Recipe, args: Any) -> list[str]:
    out = []
    trained = [(data.task, data.split, dict(data.args)) for data in recipe.data.mixture or [recipe.data]]
    for spec in [] if recipe.eval is None else recipe.eval.parts.values():
        if (spec.task, spec.split, dict(spec.args)) in trained:
            out.append(
                f"eval reads the split that is trained on ({spec.task}, {spec.split}): its numbers are no test; set "
                "eval.split or eval.task"
            )
        if spec.max_new_tokens is not None and 2 * spec.max_new_tokens < args.max_completion_length:
            out.append(
                f"eval.max_new_tokens of {spec.max_new_tokens} cuts answers that may have {args.max_completion_length} "
                "tokens in training (trainer.max_completion_length): what is cut counts as wrong"
            )
    return out
