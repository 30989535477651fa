"""A trial of the sampler's settings on a model of a few hundred weights: what transformers says at the first rollout.

Only what the recipe sets is tried (`generation_kwargs`, `cache_implementation`), with transformers as the sampler.
"""

from typing import Any

VOCABULARY = 32


def sampler_problems(args: Any) -> list[str]:
    """args: the trainer's config"""
    given = {name: value for name, value in (args.generation_kwargs or {}).items() if value is not None}
    given = {name: value for name, value in given.items() if name not in ("max_new_tokens", "max_length", "max_time")}
    if args.use_vllm or not (given or args.cache_implementation):
        return []
    if given.get("do_sample") is False or given.get("num_beams", 1) != 1:
        what = "do_sample: false" if given.get("do_sample") is False else f"num_beams: {given['num_beams']}"
        return [
            f"trainer.generation_kwargs: {what} makes the completions of a prompt alike, and a group without spread "
            "teaches nothing; leave it out"
        ]
    keys = [key for key in ("generation_kwargs", "cache_implementation") if getattr(args, key)]
    try:
        _generate(given | {"cache_implementation": args.cache_implementation} if args.cache_implementation else given)
    except (IndexError, RuntimeError):  # token ids beyond the small vocabulary
        return []
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return [f"trainer.{' and '.join(keys)}: transformers refuses it: {why}; correct it, or leave it out"]
    return []


def _generate(settings: dict[str, Any]) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0, **shape))
        how = {"do_sample": True, "max_new_tokens": 2, "pad_token_id": 0, "eos_token_id": 1} | settings
        model.generate(torch.tensor([[2, 3]]), generation_config=GenerationConfig(**how), disable_compile=True)
