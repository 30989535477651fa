"""Logging whole windows for `entrl replay`: what is written of them, and when.

Part of the trainer that is only there while `log_windows` is set. Reads the keys of TRL's micro-batches, as `grpo.py`
does; the file format is `entrl.trainers.grpo.window_log`'s.
"""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from entrl.trainers.grpo.recorder import WindowRecorder, learning_rate_of, plain_options, step_state
from entrl.trainers.grpo.window_log import StepOptions
from entrl.trainers.shared.loss import LossPass
from entrl.trainers.shared.row_columns import ENTROPIES, INPUT_IDS

if TYPE_CHECKING:
    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer


class LoggedWindows:
    """The windows of the steps a user asked for. Hooks of the trainer call `micro_batch`, `finish` and `after_step`."""

    def __init__(self, trainer: "EntropyGRPOTrainer") -> None:
        self.trainer = trainer
        option = trainer._option
        self.recorder = WindowRecorder(
            trainer.args.output_dir,
            steps=option("log_windows") or (),
            with_state=option("log_window_state"),
            rank=trainer.accelerator.process_index,
            world_size=trainer.accelerator.num_processes,
        )
        self._clip_range = (trainer.epsilon_low, trainer.epsilon_high)  # TRL's, before a controller sets its own
        if self.recorder.with_state and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise ValueError(
                "log_window_state writes rank 0's parameters as everybody's, and FSDP or DeepSpeed may shard them; "
                "leave it out (windows are logged all the same), or train this run without sharding"
            )
        if self.recorder.steps:
            trainer.add_callback(_AfterStep(self))

    @property
    def on(self) -> bool:
        return bool(self.recorder.steps)

    def wants(self, step: int) -> bool:
        return self.recorder.wants(step)

    def micro_batch(self, current: LossPass, inputs: dict[str, Any]) -> None:
        """Keep a micro-batch for the window's file."""
        trainer = self.trainer
        assert current.log_probs_BT is not None
        assert current.entropies_BT is not None
        old_BT = current.old_log_probs_BT
        columns = {
            "log_probs_BT": current.log_probs_BT.float(),
            "old_log_probs_BT": (current.log_probs_BT if old_BT is None else old_BT).float(),
            "entropies_BT": current.entropies_BT.float(),
        }
        if ENTROPIES in inputs:
            columns["old_entropies_BT"] = inputs[ENTROPIES].float()
        weight = current.policy_weight_BT  # TRL's masks; with a penalty also its importance-sampling weight
        if not current.penalised and trainer.use_vllm and trainer.vllm_importance_sampling_correction:
            ratio = inputs["importance_sampling_ratio"]
            weight = ratio if weight is None else weight * ratio
        if weight is not None:
            columns["policy_weight_BT"] = weight.float().expand(current.rows.mask_BT.shape)
        ids = {f"{k}_BT": inputs[k] for k in INPUT_IDS}
        self.recorder.add(current.rows, columns | ids)

    def finish(self, step: int, inputs: dict[str, Any]) -> None:
        """The window before its step is taken: the parameters are still the ones of its log-probs.

        Called between the last micro-batch's forward and its backward, as everything `_finish_step` does.
        """
        trainer = self.trainer
        low, high = self._clip_range
        options = StepOptions(
            loss_type=trainer.loss_type,
            accumulation=trainer.current_gradient_accumulation_steps,
            steps_per_generation=trainer.args.steps_per_generation,
            max_completion_length=trainer.max_completion_length,
            num_items=float(inputs["num_items_in_batch"]),
            temperature=float(trainer.temperature),
            learning_rate=learning_rate_of(trainer.optimizer),
            eps_low=float(low),
            eps_high=float(high),
            fresh=trainer._policy_is_fresh,
            pad_token_id=int(trainer._tokenizer.pad_token_id),
            controllers=plain_options(trainer.controllers),
        )
        self.recorder.write(step, options, probe_entropy=trainer._observation.probe_entropy())
        if self.recorder.with_state:
            model = trainer.accelerator.unwrap_model(trainer.model)
            state = step_state(model, trainer.optimizer, max_grad_norm=float(trainer.args.max_grad_norm))
            self.recorder.write_state(step, state)
        if trainer._observation.probe.sequences is not None:
            self.recorder.write_probe(trainer._observation.probe.tensors(trainer._tokenizer.pad_token_id))

    def after_step(self) -> None:
        """Measure a logged window's states again, now that its step is taken."""
        trainer = self.trainer
        window = self.recorder.latest
        if window is None:
            return
        device = trainer.accelerator.device
        inputs = {name: getattr(window, f"{name}_BT").to(device) for name in INPUT_IDS}
        entropies_BT = trainer._scores_of_slice(inputs, kind="after")[1]
        sums = self.recorder.complete(entropies_BT, probe_entropy=trainer._observation.probe_entropy())
        totals = trainer._ranks.total(sums)
        if totals["tokens"]:
            trainer._metrics["train"]["window/entropy_change"].append(totals["change"] / totals["tokens"])


class _AfterStep(TrainerCallback):
    """Tells the windows that an optimiser step has been taken; only there while windows are logged."""

    def __init__(self, windows: LoggedWindows) -> None:
        self.windows = windows

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.windows.after_step()
