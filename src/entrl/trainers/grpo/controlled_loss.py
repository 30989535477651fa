"""TRL's loss with controllers in it: their selection before a step, their weights and penalties within, what they saw.

The weights go in through the (B, T) advantages that TRL accepts; the penalty is added to TRL's loss under the policy
term's own divisor and factors. No method body of TRL's is copied.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import Rows, Scope, Window
from entrl.trainers.grpo.facts import Facts
from entrl.trainers.grpo.logged_windows import LoggedWindows
from entrl.trainers.grpo.scoring import Scoring
from entrl.trainers.shared import row_columns
from entrl.trainers.shared.loss import LossPass, aggregate
from entrl.trainers.shared.observation import Observation

MASKS = ("get_high_entropy_mask", "get_off_policy_mask")  # TRL's, factors of its policy term


class ControlledLoss:
    """The loss of one trainer."""

    def __init__(self, facts: Facts, scoring: Scoring, observation: Observation, windows: LoggedWindows) -> None:
        self.facts, self.trl, self.controls = facts, facts.trl, facts.controls
        self.scoring, self.observation, self.windows = scoring, observation, windows
        self._current: LossPass | None = None
        self._inputs: dict[str, Any] = {}  # of the micro-batch in hand

    # Before the first micro-batch of a step

    def prepare(self) -> None:
        """Called before every micro-batch, the buffer filled."""
        if self.controls.on_loss and self.trl._step % self.trl.args.gradient_accumulation_steps == 0:
            self.observation.window_metrics |= self.controls.select(self._windows())

    def _windows(self) -> dict[Scope, Window]:
        """What controllers of each scope see of the step's rows; nothing where none looks at windows."""
        trl, scopes = self.trl, self.controls.scopes
        if not self.controls.selecting:
            return {}
        first = trl._step % trl.args.steps_per_generation
        slices = trl._buffered_inputs[first : first + trl.args.gradient_accumulation_steps]
        rows, old_BT, old_entropies_BT = row_columns.window_of(slices)
        current_BT, entropies_BT = old_BT, old_entropies_BT
        # In the first window after a rollout the policy is still the one that was scored.
        if "exact" in scopes and trl._step % self.facts.schedule.generate_every != 0:
            scored = [self.scoring.of_micro_batch(s, kind="exact") for s in slices]
            current_BT, entropies_BT = (torch.cat(column).float() for column in zip(*scored, strict=True))
        window = functools.partial(self._window, rows, old_BT)
        return {"step": window(old_BT, old_entropies_BT), "exact": window(current_BT, entropies_BT)}

    def _window(self, rows: Rows, old_BT: Tensor, log_probs_BT: Tensor, entropies_BT: Tensor | None) -> Window:
        return Window(
            rows=rows,
            log_probs_BT=log_probs_BT.float(),
            old_log_probs_BT=old_BT.float(),
            entropies_BT=entropies_BT,
            step=self.trl.state.global_step,
            ranks=self.facts.ranks,
        )

    # A micro-batch

    def of(self, inputs: dict[str, Any], plain: Callable[[dict[str, Any]], Tensor]) -> Tensor:
        """plain: TRL's own loss of a micro-batch."""
        trl = self.trl
        if not trl.model.training:
            with self.scoring.passing("evaluation"):
                return plain(inputs)
        self._inputs = inputs = dict(inputs)  # the rows live in TRL's buffer and are read again with num_iterations > 1
        self._current = current = self._loss_pass(inputs)
        try:
            with self.scoring.passing("loss"), _noting(trl, MASKS, current.weigh_policy):
                loss = plain(inputs)
        finally:
            self._current = None
        if current.penalised:
            loss = loss + self._penalty(current, inputs)
        self.observation.tally.add(current.sums)
        if self.windows.wants(trl.state.global_step):
            self.windows.micro_batch(current, inputs)
        if trl.accelerator.sync_gradients:
            self._finish_step(inputs)
        return loss

    def _loss_pass(self, inputs: dict[str, Any]) -> LossPass:
        trl, controls = self.trl, self.controls
        return LossPass(
            rows=row_columns.rows_of(inputs),
            old_log_probs_BT=inputs.get(row_columns.OLD_LOG_PROBS),
            ref_log_probs_BT=inputs.get("ref_per_token_logps"),
            controllers=controls.on_loss,
            selections=controls.selections if controls.on_loss else [],
            eps_low=trl.epsilon_low,
            eps_high=trl.epsilon_high,
            beta=trl.beta,
            corrected_kl=trl.args.use_bias_correction_kl,
            fresh=self.policy_is_fresh,
        )

    @property
    def policy_is_fresh(self) -> bool:
        """True while no optimiser step has been taken since the rows in hand were generated."""
        step, accumulation = self.trl._step, self.trl.args.gradient_accumulation_steps
        generated_at = step - step % self.facts.schedule.generate_every
        return step // accumulation == generated_at // accumulation

    def meet(self, log_probs_BT: Tensor, entropies_BT: Tensor) -> None:
        """Between TRL's forward pass and its loss: weights go in through the (B, T) advantages TRL accepts."""
        current, inputs = self._current, self._inputs
        assert current is not None
        weight_BT = current.run(log_probs_BT, entropies_BT)
        current.log_probs_BT, current.entropies_BT = log_probs_BT.detach(), entropies_BT.detach()
        if self.observation.monitor is not None:
            phase_BT = inputs.get(row_columns.PHASE)
            self.observation.monitor.observe(current.rows, current.log_probs_BT, current.entropies_BT, phase_BT)
        if weight_BT is not None:
            advantages = inputs["advantages"]
            advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
            inputs["advantages"] = advantages * weight_BT

    def _penalty(self, current: LossPass, inputs: dict[str, Any]) -> Tensor:
        trl = self.trl
        if trl.use_vllm and trl.vllm_importance_sampling_correction:
            current.weigh_policy(inputs["importance_sampling_ratio"])
        penalty_BT = current.weighted_penalty()
        assert penalty_BT is not None
        return aggregate(
            penalty_BT,
            current.rows.mask_BT,
            loss_type=trl.loss_type,
            accumulation=trl.current_gradient_accumulation_steps,
            steps_per_generation=trl.args.steps_per_generation,
            world_size=trl.accelerator.num_processes,
            max_completion_length=trl.max_completion_length,
            num_items=inputs["num_items_in_batch"],
        )

    def _finish_step(self, inputs: dict[str, Any]) -> None:
        step = self.trl.state.global_step
        self.observation.finish_step(step)
        if self.windows.wants(step):
            self.windows.finish(step, inputs, fresh=self.policy_is_fresh)


@contextlib.contextmanager
def _noting(trl: Any, names: tuple[str, ...], note: Callable[[Tensor], None]) -> Iterator[None]:
    """While this lasts, what these methods of TRL's return is noted; its class keeps them as they are."""
    before = {name: vars(trl)[name] for name in names if name in vars(trl)}

    def noted(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            keep = method(*args, **kwargs)
            note(keep)
            return keep

        return call

    vars(trl).update({name: noted(getattr(trl, name)) for name in names})
    try:
        yield
    finally:
        for name in names:
            del vars(trl)[name]
        vars(trl).update(before)
