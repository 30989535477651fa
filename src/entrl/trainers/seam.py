"""What `EntropyGRPOTrainer` expects TRL's private methods to look like, and the refusal where they look otherwise.

Kept apart from the trainer so that another TRL release can be checked (and this list brought up to date) without
reading the overrides.
"""

import inspect

from entrl.errors import UnsupportedTRL

TESTED_TRL = "1.16"
SEAM = {
    "_generate": ("self", "prompts"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_tool_call_loop": (
        "self",
        "prompts",
        "prompt_ids",
        "completion_ids",
        "completions",
        "logprobs",
        "images",
        "multimodal_fields",
    ),
    "_generate_and_score_completions": ("self", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_prepare_inputs": ("self", "generation_batch"),
    "_compute_loss": ("self", "model", "inputs"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_run_epoch": ("self", "model", "epoch"),
    "_maybe_log_save_evaluate": ("self", "tr_loss", "grad_norm", "model"),
    "_get_train_sampler": ("self", "dataset"),
    "get_high_entropy_mask": ("self", "entropies", "mask", "threshold"),
    "get_off_policy_mask": (
        "advantages",
        "per_token_logps",
        "sampling_per_token_logps",
        "mask",
        "off_policy_threshold",
    ),
    "log": ("self", "logs", "start_time"),
}

GENERATION = {  # of trl.generation.vllm_generation.VLLMGeneration, which `vllm.py` extends or stands in for
    "_init_vllm": ("self",),
    "sync_weights": ("self",),
    "generate": ("self", "prompts", "images", "num_generations", "profiler"),
}


def check_trl(installed: str, trainer: type, seam: dict[str, tuple[str, ...]] = SEAM) -> None:
    """Raise UnsupportedTRL unless `trainer` has the private methods of `seam`, as TRL 1.16 has them."""
    advice = f"entrl is tested with TRL {TESTED_TRL}.x: pip install 'trl>=1.16,<1.17'"
    if not installed.startswith(f"{TESTED_TRL}."):
        raise UnsupportedTRL(f"found TRL {installed}, whose private methods may differ; {advice}")
    for name, expected in seam.items():
        method = getattr(trainer, name, None)
        if method is None:
            raise UnsupportedTRL(f"TRL {installed} has no {trainer.__name__}.{name}; {advice}")
        found = tuple(inspect.signature(method).parameters)[: len(expected)]
        if found != expected:
            raise UnsupportedTRL(
                f"{trainer.__name__}.{name} of TRL {installed} takes {found}, not {expected}; {advice}"
            )
