"""Optimiser and schedule, which transformers makes of the options once a model is loaded; made here of one number."""

import contextlib
from typing import Any

NEEDS_MODEL = ("galore", "apollo", "lomo")  # optimisers that look into the model's layers


def late_problems(args: Any) -> list[str]:
    """Why neither could be made. args: the trainer's config."""
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
