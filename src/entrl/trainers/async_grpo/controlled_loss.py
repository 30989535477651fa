"""TRL's asynchronous loss with controllers in it: their selection before a step, their weights and penalties within.

The weights go in through the advantages, which TRL reads before it runs the model; the penalty is added under TRL's own
normaliser. No method body of TRL's is copied.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import Scope, Window
from entrl.trainers.async_grpo.rows import FlatBatch, padded_rows
from entrl.trainers.async_grpo.staleness import Staleness
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.shared.controls import Controls
from entrl.trainers.shared.loss import LossPass
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.row_columns import joined_rows


class LateAdvantages:
    """Advantages as `compute_loss` asks for them, `inputs["advantages"][kept]`; what it got can still be weighted."""

    def __init__(self, advantages: Tensor) -> None:
        self.padded = advantages
        self.flat_M: Tensor | None = None

    def __getitem__(self, kept: Tensor) -> Tensor:
        self.flat_M = self.padded[kept]  # a boolean index copies, so the rows themselves stay as they are
        return self.flat_M


class ControlledLoss:
    """The loss of one trainer.

    trl: the trainer, of which TRL's own names alone are read
    """

    def __init__(
        self,
        trl: Any,
        *,
        controls: Controls,
        observation: Observation,
        staleness: Staleness,
        ranks: AccelerateRanks,
    ) -> None:
        self.trl, self.controls, self.observation = trl, controls, observation
        self.staleness, self.ranks = staleness, ranks

    def prepare(self, batches: list[dict[str, Any]]) -> None:
        """Called before the first backward of a step, with all its micro-batches."""
        if batches and self.controls.on_loss:
            windows: dict[Scope, Window] = {"step": self._window_of(batches)} if self.controls.selecting else {}
            self.observation.window_metrics |= self.controls.select(windows)

    def _window_of(self, batches: list[dict[str, Any]]) -> Window:
        """Every row this rank trains in the step, in one shape on all ranks; the scores are the sampler's."""
        parts = [FlatBatch.of(b) for b in batches]
        columns = self.ranks.max(max(p.layout.columns for p in parts))
        rows_of_all = self.ranks.max(sum(p.layout.rows for p in parts))
        recorded = not any(bool(p.entropies_M.isnan().any()) for p in parts)
        wide = []
        for p in parts:
            others = {"old": p.layout.spread(p.old_log_probs_M), "entropies": p.layout.spread(p.entropies_M)}
            wide.append(padded_rows(p.rows, others, shape=(p.layout.rows, columns)))
        joined = {name: torch.cat([o[name] for _, o in wide]) for name in ("old", "entropies")}
        rows, joined = padded_rows(joined_rows([r for r, _ in wide]), joined, shape=(rows_of_all, columns))
        return Window(
            rows=rows,
            log_probs_BT=joined["old"],
            old_log_probs_BT=joined["old"],
            entropies_BT=joined["entropies"] if self.ranks.max(int(not recorded)) == 0 else None,
            step=self.trl.state.global_step,
            ranks=self.ranks,
        )

    def of(self, model: Any, inputs: dict[str, Any], plain: Callable[[Any, dict[str, Any]], Any]) -> Any:
        """plain: TRL's own loss, of a forward function and a micro-batch."""
        trl, inputs = self.trl, dict(inputs)
        batch = FlatBatch.of(inputs)
        inputs["advantages"] = late = LateAdvantages(inputs["advantages"])
        held: list[Tensor | None] = []

        def forward(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            held.append(self._meet(batch, outputs, late))
            return outputs

        loss = plain(forward, inputs)
        (penalty_M,) = held
        if penalty_M is not None:
            tokens_per_rank = (inputs["global_n_tokens"][0] / trl.accelerator.num_processes).clamp(min=1.0)
            loss = loss + penalty_M.sum() / tokens_per_rank / trl.current_gradient_accumulation_steps
        self.observation.counters.rows["loss"] += batch.layout.rows
        if trl.accelerator.sync_gradients:
            self.observation.finish_step(trl.state.global_step)
            self.staleness.finish_step()
        return loss

    def _meet(self, batch: FlatBatch, outputs: Any, late: LateAdvantages) -> Tensor | None:
        """Between TRL's forward pass and its loss: weights go into the advantages; returns the (M,) penalty or None."""
        log_probs_M = outputs.log_probs.flatten()[batch.index_M]
        entropies_M = outputs.entropy.flatten()[batch.index_M].detach()
        layout, detached_M = batch.layout, log_probs_M.detach()
        # On a fresh policy a ratio other than 1 is the two engines' disagreement. Controllers are told 1.
        fresh_M = self.staleness.fresh(batch)
        current = LossPass(
            rows=batch.rows,
            old_log_probs_BT=layout.spread(torch.where(fresh_M, detached_M.float(), batch.old_log_probs_M)),
            ref_log_probs_BT=None,
            controllers=self.controls.on_loss,
            selections=self.controls.selections,
            eps_low=self.trl.epsilon_low,
            eps_high=self.trl.epsilon_high,
            fresh=bool(fresh_M.all()),
        )
        log_probs_BT, entropies_BT = layout.spread(log_probs_M), layout.spread(entropies_M)
        weight_BT = current.run(log_probs_BT, entropies_BT)
        if weight_BT is not None:
            assert late.flat_M is not None  # TRL reads the advantages before it runs the model
            late.flat_M.mul_(layout.flat(weight_BT))
        if self.observation.monitor is not None:
            self.observation.monitor.observe(batch.rows, log_probs_BT.detach(), entropies_BT, batch.phase_BT)
        self.observation.tally.add(current.sums)
        self.staleness.add(batch, detached_M, entropies_M)
        return None if current.penalty_BT is None else layout.flat(current.penalty_BT)
