"""The overrides of transformers' loop that make a resumed run equal an uninterrupted one; both trainers have them.

Names of transformers met here: `save_model`, `_save_checkpoint`, `_load_optimizer_and_scheduler`, `_run_epoch`,
`_maybe_log_save_evaluate`, and the log sums `_tr_loss`, `_total_loss_scalar` and `_globalstep_last_logged`; of TRL:
`_metrics`, `_logs`, `_get_train_sampler`.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from entrl.trainers.shared.checkpoint import (
    OPTIMIZER_FILES,
    inexact_because,
    load_state,
    redrawn_because,
    write_checkpoint,
)
from entrl.trainers.shared.completeness import MARKER, read_marker
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.waiting import together

if TYPE_CHECKING:
    from trl import GRPOTrainer as Base
else:
    Base = object  # mixed in before it

ALWAYS = ("micro_step", "buffered_rows", "controllers", "rewards")  # of the parts, where a trainer keeps them
TABLE = ("prompt", "completion", "advantages")  # of TRL's `_logs`, beside the rewards


class Kept(Protocol):
    """A part of a trainer that a checkpoint must hold."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...


class KeptEach:
    """Several objects as one part, in their order; one that has no state counts as stateless."""

    def __init__(self, each: Sequence[Any]) -> None:
        self.each = [one if hasattr(one, "state_dict") and not isinstance(one, nn.Module) else None for one in each]

    def state_dict(self) -> list[Any]:
        return [None if one is None else one.state_dict() for one in self.each]

    def load_state_dict(self, state: list[Any]) -> None:
        for one, saved in zip(self.each, state, strict=True):
            if one is not None and saved is not None:
                one.load_state_dict(saved)


class Resumable(Base):
    """Mixed in before a trainer of TRL's.

    kept: by name, what a checkpoint holds of this rank beside the libraries' own
    _observation: has steps that must be read before a log and a checkpoint
    checkpoint_files: functions that write further files into a checkpoint (rank 0), before it is marked whole
    """

    args: Any  # TRL and transformers annotate these more widely than they use them
    kept: Mapping[str, Kept]
    checkpoint_files: list[Callable[[Path], None]]
    _observation: Observation
    _complete_at: int | None = None  # the step of the newest checkpoint on disk, if this process knows it to be whole
    _resumed: dict[str, Any] | None = None  # log state that waits for transformers to have set up its own
    _train_sampler: Any = None
    _save_owed: bool = False  # a checkpoint waits for what happens at the end of the pass

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._observation.read()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers'; inside a checkpoint the others wait for the writer before the collectives that follow."""
        save = super().save_model
        if _internal_call:  # only then does every rank come here, however it is sharded
            together(lambda: save(output_dir, _internal_call), "saved")
        else:
            save(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._complete_at == self.state.global_step:
            return  # a new attempt would first have to take this one away
        self._observation.read()  # what is saved must know every step
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        parts = {name: part.state_dict() for name, part in self.kept.items()}
        state = {"world_size": self.accelerator.num_processes, **parts, "log": log_state(self)}
        write_checkpoint(self, folder, lambda: super(Resumable, self)._save_checkpoint(model, trial), state)
        self._complete_at = self.state.global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._refuse_inexact(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = load_state(checkpoint, self.accelerator.process_index, self.accelerator.num_processes)
        self._resumed = {}
        if state is None:
            warnings.warn(
                f"{checkpoint} holds no state of entrl's: rollout in hand, controllers, rewards and counters start "
                "anew, so the run will differ from one that was not stopped",
                stacklevel=1,  # the caller is transformers, whose warnings a run hides
            )
            return
        if (reason := redrawn_because(self.args)) is not None:
            warnings.warn(f"the resumed run goes on with other completions: {reason}", stacklevel=1)
        for name, part in self.kept.items():
            if name in ALWAYS and name not in state:
                raise ValueError(
                    f"{checkpoint} holds no {name}, so the run would not go on as if it had not stopped; resume from "
                    "another checkpoint, or start a new run from its weights (model.path)"
                )
            if state.get(name) is not None:  # a checkpoint of an older release, or of other options
                part.load_state_dict(state[name])
        self._resumed = state.get("log", {})
        if os.path.realpath(os.path.dirname(checkpoint)) == os.path.realpath(self.args.output_dir):
            self._complete_at = self.state.global_step

    def _refuse_inexact(self, checkpoint: str) -> None:
        """Where training is over nothing has to be exact any more: the weights are all that is needed."""
        if self.state.global_step >= self.state.max_steps:
            return
        marked = (Path(checkpoint) / MARKER).is_file()  # which knows whether more was saved than these options say
        reason = read_marker(Path(checkpoint)).inexact if marked else inexact_because(self.args)
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if reason is None and not sharded and not any((Path(checkpoint) / name).is_file() for name in OPTIMIZER_FILES):
            reason = "its optimiser is gone"
        if reason is not None:
            raise ValueError(
                f"{checkpoint} cannot be resumed as if the run had not stopped: {reason}. Start again, or start a new "
                "run from its weights (model.path)"
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed at the end: transformers would take one step more
            self.control.should_training_stop = True
            return
        if self._resumed is not None:
            restore_log(self, self._resumed)
            skip_passes(self._train_sampler, kwargs["epoch"])
            self._resumed = None
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Called after a step, and again at the end of a pass, which may log and evaluate: a save comes after both."""
        if self._stopped_within_a_pass:
            return  # its end, with what belongs to it, comes when the run goes on
        if self._save_owed:
            self._save_owed, self.control.should_save = False, True
        elif self.control.should_save and self._more_at_this_step:
            self._save_owed, self.control.should_save = True, False
        super()._maybe_log_save_evaluate(*args, **kwargs)

    @property
    def _stopped_within_a_pass(self) -> bool:
        state = self.state
        saved = self._complete_at == state.global_step < state.max_steps
        return saved and self.control.should_training_stop and not float(state.epoch).is_integer()

    @property
    def _more_at_this_step(self) -> bool:
        args, state = self.args, self.state
        by_steps = args.save_strategy == "steps" and "epoch" in (args.eval_strategy, args.logging_strategy)
        return by_steps and (float(state.epoch).is_integer() or state.global_step >= state.max_steps)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler


def skip_passes(sampler: Any, passes: int) -> None:
    """Bring the sampler's generator to where it was before pass number `passes`, counted from 0.

    TRL's RepeatSampler draws one permutation per pass from a generator of its own, which is in no checkpoint. That it
    follows from the seed makes this exact and leaves nothing to save.
    """
    if sampler is None or not getattr(sampler, "shuffle", False):
        return
    sampler.generator.manual_seed(sampler.seed)
    for _ in range(passes):
        torch.randperm(sampler.num_samples, generator=sampler.generator)


def log_state(trainer: Any) -> dict[str, Any]:
    """What the next log row will average over and has seen already; TRL's printed table too, where it is asked for."""
    state: dict[str, Any] = {
        "loss_sum": trainer._tr_loss.detach().cpu(),
        "loss_before": float(trainer._total_loss_scalar),
        "logged_at": trainer._globalstep_last_logged,
        "metrics": {name: [_plain(v) for v in values] for name, values in trainer._metrics["train"].items()},
    }
    table = getattr(trainer, "_logs", None)
    if getattr(trainer, "log_completions", False) and table is not None and not table["images"]:
        rewards = {name: list(values) for name, values in table["rewards"].items()}
        state["table"] = {**{name: list(table[name]) for name in TABLE}, "rewards": rewards}
    return state


def restore_log(trainer: Any, state: dict[str, Any]) -> None:
    """Inverse of `log_state`; transformers has just set its sums to nothing."""
    if not state:  # a checkpoint of another trainer's
        return
    trainer._tr_loss = state["loss_sum"].to(trainer._tr_loss.device)
    trainer._total_loss_scalar, trainer._globalstep_last_logged = state["loss_before"], state["logged_at"]
    for name, values in state["metrics"].items():
        trainer._metrics["train"][name] = list(values)
    for name, values in state.get("table", {}).items():
        if name == "rewards":
            for reward, column in values.items():
                trainer._logs["rewards"][reward].extend(column)
        else:
            trainer._logs[name].extend(values)


def _plain(value: Any) -> Any:
    """As it may lie in a checkpoint; the asynchronous trainer's metrics are (sum, count)."""
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else float(value)
