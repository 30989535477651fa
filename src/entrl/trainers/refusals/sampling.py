"""What the sampler is asked in `generation_kwargs`, and by a model's own generation_config.json: what cannot be had.

`reshaping` finds settings under which tokens are drawn from another distribution than the policy's; where somebody
reads its entropies or log-probs they are refused (`engine_rules.vllm_problems`); those of `sampling_problems` always.
"""

from collections.abc import Mapping
from typing import Any

from entrl.settings.names import suggest
from entrl.trainers.refusals.sampler_keys import TO_REPLICAS, TRANSFORMERS, neutral_values, sampler_keys

SET_BY_TRL = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")  # so a model's own are not read
SHORTEST = ("min_new_tokens", "min_tokens")


def reshaping(args: Any) -> dict[str, Any]:
    """Settings of the trainer and of generation_kwargs that reshape the distribution, by name, with their values."""
    names = ("top_p", "top_k", "min_p", "top_h", "repetition_penalty")
    settings = {name: getattr(args, name, None) for name in names}
    settings |= {name: value for name, value in (args.generation_kwargs or {}).items() if value is not None}
    keys = sampler_keys(args).reshapes
    found = {
        name: value
        for name, value in settings.items()
        if value is not None and (name in keys or name == "top_h") and value not in neutral_values(name, args)
    }
    if args.use_vllm and (regex := getattr(args, "vllm_structured_outputs_regex", None)):
        found["vllm_structured_outputs_regex"] = regex
    return found


def without(found: Mapping[str, Any], args: Any) -> str:
    """What to do about each of these settings."""
    return ", ".join(_undone(name, args) for name in found)


def _undone(name: str, args: Any) -> str:
    if name == "temperature":
        return "set trainer.temperature in its place"
    neutral = neutral_values(name, args)
    to = f"at {neutral[0]}" if neutral else "out"
    return f"leave {name} {to}"


def sampling_problems(args: Any) -> list[str]:
    """Keys of generation_kwargs that no run can have: unknown, without effect, contradicting, breaking the rollout."""
    keys, replicas = sampler_keys(args), getattr(args, "vllm_replicas", None)
    out = []
    for name, value in (args.generation_kwargs or {}).items():
        given = f"generation_kwargs: {name}={value!r}"
        if name not in keys.known:
            why = f"{keys.sampler} has no such setting.{suggest(name, keys.known)}"
        elif value is None:
            continue
        elif name in keys.ours:
            why = keys.ours[name]
        elif name in keys.lengths and value != args.max_completion_length:
            why = (
                f"trainer.max_completion_length={args.max_completion_length} says how long a completion may be; set "
                "that"
            )
        elif name in SHORTEST and value > args.max_completion_length:
            why = f"no completion may be longer than trainer.max_completion_length={args.max_completion_length}"
        elif replicas and name not in TO_REPLICAS:
            why = f"it does not reach vllm_replicas, which are told {', '.join(sorted(TO_REPLICAS - {'seed'}))}"
        else:
            continue
        out.append(f"{given} cannot be had: {why.rstrip('. ')}. Leave it out of generation_kwargs")
    return out


def model_sampling_problems(args: Any, own: Any, *, entropy_aware: bool) -> list[str]:
    """What a model's own generation config would fill in where TRL leaves a setting out; transformers alone does so.

    own: a `GenerationConfig`, as of generation_config.json, or None
    """
    if own is None or args.use_vllm or not entropy_aware or getattr(args, "allow_truncated_sampling", False):
        return []
    said = {name for name, value in (args.generation_kwargs or {}).items() if value is not None} | set(SET_BY_TRL)
    if args.min_p is not None:
        said.add("min_p")
    left = {name: getattr(own, name, None) for name in TRANSFORMERS.reshapes if name not in said}
    found = {
        name: value for name, value in left.items() if value is not None and value not in TRANSFORMERS.reshapes[name]
    }
    return [
        f"the model's generation_config.json has {name}={value!r}, which transformers fills in where TRL says nothing: "
        "tokens are drawn from another distribution than the one log-probs and entropies are those of; "
        + _overruled(name)
        + ", or set allow_truncated_sampling: true knowing this"
        for name, value in found.items()
    ]


def _overruled(name: str) -> str:
    if name == "min_p":
        return "set trainer.min_p: 0.0"
    neutral = TRANSFORMERS.reshapes[name]
    if neutral:
        return f"set trainer.generation_kwargs: {{{name}: {neutral[0]}}}"
    return "take it out of that file"
