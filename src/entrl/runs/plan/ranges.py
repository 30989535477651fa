"""What every number of the `trainer` group may be; where one is legal and rarely meant is in `entrl.diagnosis.bounds`.

A test holds the numeric fields of the trainer's config against this table: a key that TRL adds must be looked at.
Source of the bounds: what each means (a share, a count, a rate), and what transformers, TRL and torch divide by.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Closed; `above` leaves the lower end out, `infinite` takes .inf as well."""

    low: float = 0
    high: float = math.inf
    above: bool = False
    infinite: bool = False

    def holds(self, value: float) -> bool:
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    @property
    def rule(self) -> str:
        upper = f" and at most {self.high:g}" if self.high < math.inf else ""
        return f"{'above' if self.above else 'at least'} {self.low:g}{upper}, and finite"


COUNT, NATURAL, POSITIVE, SHARE = Range(1), Range(0), Range(0, above=True), Range(0, 1)
SEED = Range(0, 2**32 - 1)
BELOW_ONE = Range(0, math.nextafter(1, 0))
PORT = Range(1, 65535)
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        (
            *("max_completion_length", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size", "num_generations_eval"),
            *("ref_model_sync_steps", "pad_to_multiple_of", "eval_accumulation_steps", "torch_empty_cache_steps"),
            *("vllm_tensor_parallel_size", "vllm_max_model_length", "max_tool_calling_iterations", "ddp_timeout"),
            *("ddp_bucket_cap_mb", "num_completions_to_print", "probe_rows", "dataloader_prefetch_factor"),
            *("save_total_limit", "branch_window", "branch_attempts", "branch_token_budget", "filter_max_tries"),
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            *("weight_decay", "beta", "epsilon", "epsilon_high", "top_k", "adam_epsilon", "neftune_noise_alpha"),
            *("dataloader_num_workers", "warmup_steps", "eval_delay", "router_aux_loss_coef", "entropy_coef_min"),
            *("entropy_coef_max", "entropy_target", "vllm_importance_sampling_clip_min", "probe_every"),
            *("sample_completions", "vllm_retries", "turn_credit_weight", "filter_min_std"),
        ),
        NATURAL,
    ),
    **dict.fromkeys(
        (
            *("temperature", "repetition_penalty", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos"),
            *("vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "entropy_coef_delta", "vllm_server_timeout"),
            *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap", "off_policy_mask_threshold"),
            *("logging_steps", "save_steps", "eval_steps", "vllm_request_timeout", "vllm_gap_alarm"),
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("top_entropy_quantile", "min_p", "ref_model_mixup_alpha", "turn_credit_discount"), SHARE),
    **dict.fromkeys(("filter_low", "filter_high", "branch_quantile"), SHARE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), BELOW_ONE),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization", "top_h"), Range(0, 1, above=True)),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), PORT),
    "learning_rate": SHARE,  # 1e4 for 1e-4: the sign of an exponent lost
    "max_grad_norm": Range(0, infinite=True),
    "delta": Range(0, above=True, infinite=True),
    "num_generations": Range(2),
    "branch_roots": Range(2),
}
# Numbers without a range of their own: judged elsewhere (`empty_runs`), set by the launcher, or free.
FREE = frozenset(
    {"max_steps", "num_train_epochs", "num_iterations", "local_rank", "entropy_coef", "expected_world_size"}
)


NEEDED = ("max_completion_length", "num_generations")  # that TRL's annotations let be null


def null_problems(numbers: Mapping[str, Any], *, where: str = "trainer") -> list[str]:
    return [
        f"{where}.{name} is null, and its number is reckoned with; write one, or leave the key out for the default"
        for name in NEEDED
        if name in numbers and numbers[name] is None
    ]


def range_problems(numbers: Mapping[str, Any], *, where: str = "trainer") -> list[str]:
    """Of a group as it is written: numbers that their keys cannot mean, NaN and infinity for any key."""
    out = null_problems(numbers, where=where)
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        allowed = RANGES.get(name)
        if allowed is None and math.isfinite(value):
            continue
        if allowed is None or not allowed.holds(value):
            percent = "; a share is written 0.2, not 20" if allowed is not None and allowed.high <= 1 < value else ""
            rule = "a number" if allowed is None else allowed.rule
            out.append(f"{where}.{name} must be {rule}; got {value}{percent}")
    return out
