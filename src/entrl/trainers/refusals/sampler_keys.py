"""Every setting of transformers' and of vLLM's samplers, and what another value than its neutral one would do.

reshapes  tokens are drawn from another distribution than the one log-probs and entropies are those of
lengths   says how long a completion may be, as trainer.max_completion_length does
ours      breaks the rollout, because TRL or the trainer sets it, or reads what it changes
harmless  none of these: speed, memory, and where a completion ends

Source:  `GenerationConfig` of transformers 5.17 and `SamplingParams` of vLLM 0.31; tests compare the lists with both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrl.engines.completions import NEUTRAL_SAMPLING, OTHER_SAMPLING

Neutral = Mapping[str, tuple[Any, ...]]  # setting -> the values that change nothing, () where only None does


@dataclass(frozen=True, kw_only=True)
class SamplerKeys:
    """Of one sampler; `ours` says why, and what to do instead."""

    sampler: str
    reshapes: Neutral
    lengths: frozenset[str]
    ours: Mapping[str, str]
    harmless: frozenset[str]

    @property
    def known(self) -> frozenset[str]:
        return frozenset({*self.reshapes, *self.lengths, *self.ours, *self.harmless})


COMMON: Neutral = {  # those that are also keys of the trainer
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "temperature": (),  # neutral is trainer.temperature
}
IDS = "the ids that pad, start and end a completion are the tokenizer's and the model's; change them there"
PLAIN = "TRL reads plain token ids"
ONE_ROW = "assisted decoding writes one row at a time, and TRL hands over no assistant"
NO_TOKENIZER = "transformers needs the tokenizer for it, which TRL does not hand over"

TRANSFORMERS = SamplerKeys(
    sampler="transformers",
    reshapes={
        **COMMON,
        "top_h": (),
        "typical_p": (1.0,),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "encoder_repetition_penalty": (1.0,),
        "no_repeat_ngram_size": (0,),
        "encoder_no_repeat_ngram_size": (0,),
        "bad_words_ids": (),
        "suppress_tokens": ([],),
        "begin_suppress_tokens": ([],),
        "sequence_bias": (),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "exponential_decay_length_penalty": (),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "guidance_scale": (1.0,),
        "watermarking_config": (),
        "do_sample": (True,),
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "diversity_penalty": (0.0,),
        "penalty_alpha": (0.0,),
        "dola_layers": (),
        "constraints": (),
        "force_words_ids": (),
        "assistant_ensemble_weight": (),
    },
    lengths=frozenset({"max_new_tokens"}),
    ours={
        "max_length": "it counts the prompt as well, and does nothing beside the limit of a completion",
        "num_return_sequences": "trainer.num_generations says how many completions a prompt gets",
        "disable_compile": "TRL sets it",
        "continuous_batching_config": "TRL makes it of trainer.use_transformers_continuous_batching",
        "stop_strings": NO_TOKENIZER,
        "token_healing": NO_TOKENIZER,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), IDS),
        **dict.fromkeys(
            ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
            PLAIN,
        ),
        **dict.fromkeys(
            (
                *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "prompt_lookup_num_tokens"),
                *("assistant_confidence_threshold", "max_matching_ngram_size", "assistant_early_exit"),
                *("assistant_lookbehind", "target_lookbehind", "speculation_type", "use_mtp"),
            ),
            ONE_ROW,
        ),
    },
    harmless=frozenset(
        {
            *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
            *("low_memory", "compile_config", "max_time", "remove_invalid_values", "renormalize_logits"),
            *("early_stopping", "length_penalty"),  # of beams, which are refused themselves
        }
    ),
)
LOG_PROBS = "TRL asks for the sampled token's log-prob and for nothing else"

VLLM = SamplerKeys(
    sampler="vLLM",
    reshapes={
        **COMMON,
        "presence_penalty": (0.0,),
        "frequency_penalty": (0.0,),
        "min_tokens": (0,),
        "logit_bias": ({},),
        "bad_words": ([],),
        "allowed_token_ids": (),
        "structured_outputs": (),
        "thinking_token_budget": (),
        "trace_decode_token_ids": (),
        "extra_args": ({},),  # whatever a plugin makes of them
    },
    lengths=frozenset({"max_tokens"}),
    ours={
        "n": "trainer.num_generations says how many completions a prompt gets",
        "seed": "it would give the completions of a prompt, and every rollout, the same draws; set trainer.seed",
        **dict.fromkeys(
            (
                *("logprobs", "prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start"),
                *("logprob_token_ids", "flat_logprobs"),
            ),
            LOG_PROBS,
        ),
        **dict.fromkeys(("output_kind", "stream_interval", "skip_clone", "output_text_buffer_length"), PLAIN),
    },
    harmless=frozenset(
        {
            *("stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "repetition_detection"),
            *("detokenize", "skip_special_tokens", "spaces_between_special_tokens", "skip_reading_prefix_cache"),
            *("watermarking", "routed_experts_prompt_start"),  # of an engine that is set up for them
        }
    ),
)
TO_REPLICAS = frozenset({*NEUTRAL_SAMPLING, *OTHER_SAMPLING, "seed"})  # what goes into a request to `entrl serve`


def sampler_keys(args: Any) -> SamplerKeys:
    """Of the sampler that a GRPO configuration generates with."""
    return VLLM if args.use_vllm else TRANSFORMERS


def neutral_values(name: str, args: Any) -> tuple[Any, ...]:
    """Values of a setting of `reshapes` under which tokens come from the policy at the training temperature."""
    return (args.temperature,) if name == "temperature" else sampler_keys(args).reshapes.get(name, ())
