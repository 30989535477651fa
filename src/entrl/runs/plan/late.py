"""What transformers makes of the options once a model is loaded, made here of one number or one row.

Optimiser, schedule, data loader, compiler backend, checkpointing of activations, and layout of the processes.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

NEEDS_MODEL = ("galore", "apollo", "lomo")  # optimisers that look into the model's layers


def late_problems(args: Any, world_size: int) -> list[str]:
    """Why one of them could not be made. args: the trainer's config."""
    return [
        *_optimiser_problems(args),
        *_trial("dataloader_*", lambda: _loader(args)),
        *_trial("torch_compile_backend", lambda: _compiler(args)),
        *_trial("gradient_checkpointing_kwargs", lambda: _checkpointed(args)),
        *_layout_problems(args, world_size),
    ]


def _trial(keys: str, make: Callable[[], Any]) -> list[str]:
    try:
        make()
    except (ValueError, TypeError) as error:
        return [f"trainer.{keys}: {error}"]
    return []


def _loader(args: Any) -> None:
    """With the options that `Trainer.get_train_dataloader` hands over; no worker starts before it is read."""
    from torch.utils.data import DataLoader

    DataLoader(
        [0],  # pyright: ignore[reportArgumentType]  a list is read like a data set
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
    )


def _compiler(args: Any) -> None:
    from accelerate.utils import TorchDynamoPlugin

    if args.torch_compile:
        TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)


def _checkpointed(args: Any) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    if args.gradient_checkpointing:
        options: dict[str, Any] = args.gradient_checkpointing_kwargs or {"use_reentrant": False}
        with warnings.catch_warnings(action="ignore"):  # torch's, on options without use_reentrant; said by training
            checkpoint(torch.sin, torch.zeros(1, requires_grad=True), **options)


def _layout_problems(args: Any, world_size: int) -> list[str]:
    """Accelerate's own rule, which it applies when the processes have joined."""
    total = getattr(args.parallelism_config, "total_size", 1)
    if total in (1, world_size):
        return []
    return [
        f"trainer.parallelism_config lays out {total} processes (the product of its sizes), there are {world_size}; "
        "make them equal, or leave it out"
    ]


def _optimiser_problems(args: Any) -> list[str]:
    import torch
    from transformers import Trainer

    name = str(getattr(args.optim, "value", args.optim))
    if any(part in name for part in NEEDS_MODEL):
        return []
    number = torch.nn.Parameter(torch.zeros(1))
    try:
        made, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimiser = made([number], **options)
    except (ValueError, TypeError) as error:
        return [f"trainer.optim {name} cannot be made with these trainer.adam_* and optim_args: {error}"]
    except (ImportError, RuntimeError):  # a package or a device that is not here (`missing`), of another machine
        optimiser = torch.optim.SGD([number])
    return _schedule_problems(args, optimiser)


def _schedule_problems(args: Any, optimiser: Any) -> list[str]:
    from transformers import get_scheduler

    name, options = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)), args.lr_scheduler_kwargs
    steps = max(args.max_steps, 1)
    try:
        with contextlib.suppress(ImportError):
            get_scheduler(
                args.lr_scheduler_type,
                optimizer=optimiser,
                num_warmup_steps=args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=options,
            )
    except (ValueError, TypeError) as error:
        return [f"trainer.lr_scheduler_type {name} cannot be made with lr_scheduler_kwargs {options or {}}: {error}"]
    return []
