"""Training on after a run's last step: where a longer run would have had the same steps, and where it would not."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

LENGTH = ("trainer.max_steps", "trainer.num_train_epochs")
# Learning-rate schedules whose value at a step does not depend on how many steps will come.
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")
SHARES = ("warmup_steps", "logging_steps", "eval_steps")  # below 1: a share of all steps


def only_longer(changed: Iterable[str]) -> bool:
    """Whether nothing but the length of training differs."""
    names = set(changed)
    return bool(names) and names <= set(LENGTH)


def refuse_other_steps(was: Mapping[str, Any], now: Mapping[str, Any], steps: int, *, ended: bool) -> None:
    """ValueError where the longer run's first `steps` steps would not be those that were made.

    was, now: flat settings before and after; steps: what the folder's newest checkpoint has behind it; ended: training
    had ended there.
    """
    trainer = _with_defaults(now)
    why = _reasons(trainer, now.get("eval.at"), steps if ended else None)
    if 0 < trainer["max_steps"] < steps:
        why.append(f"{steps} steps are made already")
    if not why:
        return
    changed = ", ".join(f"{key}: {was.get(key)} -> {now.get(key)}" for key in LENGTH if was.get(key) != now.get(key))
    raise ValueError(
        f"this run cannot go on to another length ({changed}): {'; '.join(why)}. Take the length back, or start a new "
        "run in another trainer.output_dir, from these weights with model.path (its folder's model)"
    )


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    from entrl.trainers.config import EntropyGRPOConfig  # brings trl, which reading a run folder does not need

    fields = {f.name: f.default for f in dataclasses.fields(EntropyGRPOConfig)}
    return fields | {k.removeprefix("trainer."): v for k, v in settings.items() if k.startswith("trainer.")}


def _reasons(trainer: Mapping[str, Any], at: Any, last: int | None) -> list[str]:
    why = []
    schedule = str(getattr(trainer["lr_scheduler_type"], "value", trainer["lr_scheduler_type"]))
    if schedule not in ENDLESS:
        why.append(f"the {schedule} learning rate depends on the number of steps from the first one on")
    for key in SHARES:
        if (
            isinstance(trainer.get(key), float)
            and 0 < trainer[key] < 1
            and (key, schedule) != ("warmup_steps", "constant")
        ):
            why.append(f"trainer.{key} is a share of all steps")
    if at == "early":
        why.append("eval.at: early spreads its evaluations over all steps")
    if last is not None and trainer["save_only_model"]:
        why.append("save_only_model: true left the optimiser out of its last checkpoint")
    if trainer["sync_ref_model"] and trainer["beta"]:
        why.append("sync_ref_model: true moves the reference model, which is in no checkpoint")
    every = trainer.get("eval_steps") or trainer.get("logging_steps")
    by_steps = str(getattr(trainer["eval_strategy"], "value", trainer["eval_strategy"])) == "steps"
    if last is not None and by_steps and isinstance(every, int | float) and every >= 1 and last % every:
        why.append(f"it ended with an evaluation that a longer run does not make at step {last}")
    return why
