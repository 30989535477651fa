"""What asynchronous training refuses: the synchronous trainer's checks in its own words, and what only it cannot do."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from datasets import Dataset

from entrl.controllers.hooks import Controller
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.shared.rewards import needed_signals, reward_name


def in_grpo_words(args: Any) -> Any:
    """These options as the synchronous trainer's checks read them: what asynchronous training is in GRPO's words."""
    fixed = {
        "loss_type": "bnpo",
        "importance_sampling_level": "token",
        "scale_rewards": "group, by the population's deviation",  # no controller is defined for it
        "delta": None,
        "generation_kwargs": None,
        "num_generations_eval": None,
        # Rewards see one whole group at a time, in one process, and rows are stale from the first update on.
        "per_device_train_batch_size": args.num_generations,
        "steps_per_generation": 2 * args.gradient_accumulation_steps,
        "num_iterations": 1,
        "use_vllm": False,
        "sampler_ratio": True,
        "allow_truncated_sampling": getattr(args, "allow_truncated_sampling", False),
    }
    return SimpleNamespace(**{**vars(args), "min_p": args.min_p or None, **fixed})


def check_async(args: Any, controllers: Sequence[Controller], reward_funcs: Sequence[Any]) -> list[str]:
    """What would be wrong or idle under these options; empty = all right. `in_grpo_words` brings the common rules."""
    problems = check_schedule(in_grpo_words(args), controllers, reward_funcs, 1)
    for reward in reward_funcs:
        if "difficulty" in getattr(reward, "published_columns", ()):
            problems.append(
                f"reward {reward_name(reward)!r} moves its thresholds and targets by whole batches of prompts, and the "
                "asynchronous trainer scores one prompt's group at a time; use EntropyGRPOTrainer"
            )
    for controller in controllers:
        if controller.needs_reference or controller.needs_columns:
            problems.append(
                f"{controller.name} acts on the KL to a reference model or on what rewards publish of a row, and the "
                "asynchronous trainer has neither; use EntropyGRPOTrainer"
            )
        if controller.scope == "exact":
            problems.append(
                f"{controller.name}: scope 'exact' scores a whole step again before its first backward, which the "
                "asynchronous trainer does not do; take scope 'step' (the sampler's log-probs) or 'micro_batch'"
            )
    wanted = {signal for reward in reward_funcs for signal in needed_signals(reward)}
    if "token_entropies" in wanted and not getattr(args, "sampler_entropies", True):
        names = [reward_name(r) for r in reward_funcs if "token_entropies" in needed_signals(r)]
        problems.append(
            f"reward {names[0]!r} reads token_entropies, which only the sampler knows here; set sampler_entropies=True"
        )
    return problems


def check_prompts(dataset: Any) -> None:
    """Raise ValueError for prompts that TRL's loop cannot read."""
    if isinstance(dataset, Dataset) and "prompt" in dataset.column_names and isinstance(dataset[0]["prompt"], str):
        raise ValueError(
            "prompts are plain strings, and TRL's asynchronous loop reads conversations; map them to "
            '[{"role": "user", "content": prompt}]'
        )
