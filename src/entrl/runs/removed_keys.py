"""Keys of a recipe that are gone, or that are set in another group, and the next move."""

from collections.abc import Mapping

# Keys people carry over from older TRL or transformers; none is a field in TRL 1.16 with transformers 5.17.
REMOVED_TRAINER_KEYS = {
    "torch_dtype": "set model.dtype",
    "dtype": "set model.dtype",
    "max_prompt_length": "filter long prompts out of the dataset (TRL no longer truncates prompts)",
    "max_length": "set trainer.max_completion_length",
    "overwrite_output_dir": "pass overwrite=true on the command line",
    "warmup_ratio": "set trainer.warmup_steps (a value below 1 is a share of all steps)",
    "vllm_device": "set trainer.vllm_mode: colocate or server",
    "vllm_dtype": "set model.dtype, or vllm_engine_dtype for the colocated engine alone",
    "vllm_max_model_len": "set trainer.vllm_max_model_length",
    "vllm_enable_prefix_caching": "remove it: vLLM caches prefixes by default",
    "vllm_guided_decoding_regex": "set trainer.vllm_structured_outputs_regex",
    "use_liger_loss": "set trainer.use_liger_kernel",
    "wandb_log_unique_prompts": "set trainer.log_unique_prompts",
    "logit_computation_mini_batch_size": "remove it: TRL computes log-probs in chunks",
    "evaluation_strategy": "set trainer.eval_strategy",
    "logging_dir": "set trainer.output_dir",
    "group_by_length": "set trainer.train_sampling_strategy: group_by_length",
    "no_cuda": "set trainer.use_cpu",
    "use_mps_device": "remove it: MPS is found by itself",
    "use_ipex": "remove it",
    "jit_mode_eval": "remove it",
    "half_precision_backend": "set trainer.bf16 or trainer.fp16",
    "fp16_backend": "set trainer.bf16 or trainer.fp16",
    "per_gpu_train_batch_size": "set trainer.per_device_train_batch_size",
    "adafactor": "set trainer.optim: adafactor",
    "save_safetensors": "remove it: safetensors is the only format",
    "torchdynamo": "set trainer.torch_compile_backend",
    "fsdp_min_num_params": "remove it: the launcher's configuration wraps, as launch/fsdp2.yaml does",
    "fsdp_transformer_layer_cls_to_wrap": "remove it: the launcher's configuration wraps, as launch/fsdp2.yaml does",
    "dispatch_batches": "set trainer.accelerator_config",
    "split_batches": "set trainer.accelerator_config",
    "include_inputs_for_metrics": "set trainer.include_for_metrics",
    "include_tokens_per_second": "remove it: metrics.jsonl has tokens and seconds",
    "push_to_hub_token": "set trainer.hub_token",
    "push_to_hub_model_id": "set trainer.hub_model_id",
    "push_to_hub_organization": "set trainer.hub_model_id",
    "past_index": "remove it",
    "ray_scope": "remove it",
    "tpu_num_cores": "remove it",
    "xpu_backend": "set trainer.ddp_backend",
    "kl_coef": "set trainer.beta",
    "cliprange": "set trainer.epsilon",
    "response_length": "set trainer.max_completion_length",
    "mini_batch_size": "set trainer.per_device_train_batch_size",
}
# Words of other libraries, and short ones -> ours.
OTHER_TRAINER_KEYS = {
    "lr": "trainer.learning_rate",
    "batch_size": "trainer.per_device_train_batch_size",
    "train_batch_size": "trainer.per_device_train_batch_size",
    "micro_batch_size": "trainer.per_device_train_batch_size",
    "grad_accum": "trainer.gradient_accumulation_steps",
    "gradient_accumulation": "trainer.gradient_accumulation_steps",
    "epochs": "trainer.num_train_epochs",
    "num_epochs": "trainer.num_train_epochs",
    "steps": "trainer.max_steps",
    "total_steps": "trainer.max_steps",
    "max_tokens": "trainer.max_completion_length",
    "max_new_tokens": "trainer.max_completion_length",
    "max_response_length": "trainer.max_completion_length",
    "group_size": "trainer.num_generations",
    "rollout_n": "trainer.num_generations",
    "kl_loss_coef": "trainer.beta",
    "clip_ratio": "trainer.epsilon",
    "clip_range": "trainer.epsilon",
    "clip_ratio_high": "trainer.epsilon_high",
    "grad_clip": "trainer.max_grad_norm",
    "scheduler": "trainer.lr_scheduler_type",
    "warmup": "trainer.warmup_steps",
    "optimizer": "trainer.optim",
    "entropy_coeff": "trainer.entropy_coef",
}
OTHER_LORA_KEYS = {
    "rank": "lora.r",
    "lora_r": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "targets": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
}
REMOVED_MODEL_KEYS = {
    "torch_dtype": "set model.dtype",
    "name": "set model.path",
    "model_name_or_path": "set model.path",
}

# Trainer fields the recipe sets elsewhere, or that come from the command line.
OWNED_TRAINER_KEYS = {
    "reward_weights": "give each reward its own weight: rewards: [{use: ..., weight: ...}]",
    "model_init_kwargs": "set model.dtype, model.attn_implementation, ... instead",
    "trust_remote_code": "set model.trust_remote_code",
    "expected_world_size": "set launch.world_size",
    "expected_backend": "set launch.backend",
    "resume_from_checkpoint": "pass resume=true on the command line",
    "local_rank": "remove it: the launcher sets it",
    "fsdp": "remove it: start with `accelerate launch --config_file launch/fsdp2.yaml`",
    "fsdp_config": "remove it: start with `accelerate launch --config_file launch/fsdp2.yaml`",
}


def ours(key: str, others: Mapping[str, str]) -> str:
    """' Set ...' for a word that is none of ours and has one that is, else ''."""
    return f" Set {others[key]}" if key in others else ""
