"""Logging whole windows for `entrl replay`: what is written of them, and when.

Only at work while `log_windows` is set; the file format is `entrl.trainers.grpo.window_log`'s.
"""

from typing import Any

from transformers import TrainerCallback

from entrl.trainers.grpo.recorder import WindowRecorder, learning_rate_of, plain_options, step_state
from entrl.trainers.grpo.scoring import Scoring
from entrl.trainers.grpo.window_log import StepOptions
from entrl.trainers.shared.loss import LossPass
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.row_columns import ENTROPIES, INPUT_IDS


class LoggedWindows:
    """The windows of the steps a user asked for. The loss calls `micro_batch` and `finish`, a callback `after_step`.

    trl: the trainer, of which TRL's own names alone are read, before a controller sets a ratio range of its own
    """

    def __init__(self, trl: Any, *, scoring: Scoring, observation: Observation) -> None:
        self.trl, self.scoring, self.observation = trl, scoring, observation
        self.recorder = WindowRecorder(
            trl.args.output_dir,
            steps=trl.args.log_windows or (),
            with_state=trl.args.log_window_state,
            rank=trl.accelerator.process_index,
            world_size=trl.accelerator.num_processes,
        )
        self._clip_range = (trl.epsilon_low, trl.epsilon_high)
        if self.recorder.with_state and (trl.is_fsdp_enabled or trl.is_deepspeed_enabled):
            raise ValueError(
                "log_window_state writes rank 0's parameters as everybody's, and FSDP or DeepSpeed may shard them; "
                "leave it out (windows are logged all the same), or train this run without sharding"
            )
        if self.recorder.steps:
            trl.add_callback(_AfterStep(self))

    @property
    def on(self) -> bool:
        return bool(self.recorder.steps)

    def wants(self, step: int) -> bool:
        return self.recorder.wants(step)

    def micro_batch(self, current: LossPass, inputs: dict[str, Any]) -> None:
        """Keep a micro-batch for the window's file."""
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
        if not current.penalised and self.trl.use_vllm and self.trl.vllm_importance_sampling_correction:
            ratio = inputs["importance_sampling_ratio"]
            weight = ratio if weight is None else weight * ratio
        if weight is not None:
            columns["policy_weight_BT"] = weight.float().expand(current.rows.mask_BT.shape)
        ids = {f"{k}_BT": inputs[k] for k in INPUT_IDS}
        self.recorder.add(current.rows, columns | ids)

    def finish(self, step: int, inputs: dict[str, Any], *, fresh: bool) -> None:
        """The window before its step is taken: the parameters are still the ones of its log-probs.

        Called between the last micro-batch's forward and its backward. fresh: as in `StepOptions`.
        """
        trl, probe = self.trl, self.observation.probe
        low, high = self._clip_range
        options = StepOptions(
            loss_type=trl.loss_type,
            accumulation=trl.current_gradient_accumulation_steps,
            steps_per_generation=trl.args.steps_per_generation,
            max_completion_length=trl.max_completion_length,
            num_items=float(inputs["num_items_in_batch"]),
            temperature=float(trl.temperature),
            learning_rate=learning_rate_of(trl.optimizer),
            eps_low=float(low),
            eps_high=float(high),
            fresh=fresh,
            pad_token_id=int(trl._tokenizer.pad_token_id),
            controllers=plain_options(self.observation.controls.all),
        )
        self.recorder.write(step, options, probe_entropy=self.observation.probe_entropy())
        if self.recorder.with_state:
            model = trl.accelerator.unwrap_model(trl.model)
            state = step_state(model, trl.optimizer, max_grad_norm=float(trl.args.max_grad_norm))
            self.recorder.write_state(step, state)
        if probe.sequences is not None:
            self.recorder.write_probe(probe.tensors(trl._tokenizer.pad_token_id))

    def after_step(self) -> None:
        """Measure a logged window's states again, now that its step is taken."""
        window = self.recorder.latest
        if window is None:
            return
        device = self.trl.accelerator.device
        inputs = {name: getattr(window, f"{name}_BT").to(device) for name in INPUT_IDS}
        entropies_BT = self.scoring.of_micro_batch(inputs, kind="after")[1]
        sums = self.recorder.complete(entropies_BT, probe_entropy=self.observation.probe_entropy())
        totals = self.observation.ranks.total(sums)
        if totals["tokens"]:
            self.observation.log.add({"window/entropy_change": totals["change"] / totals["tokens"]})


class _AfterStep(TrainerCallback):
    """Tells the windows that an optimiser step has been taken; only there while windows are logged."""

    def __init__(self, windows: LoggedWindows) -> None:
        self.windows = windows

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.windows.after_step()
