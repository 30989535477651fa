"""What is seen of each optimiser step, from its tensors to its metrics; nothing of it moves a parameter.

A trainer hands over what passes through its hands (rows and scores of each micro-batch, rollouts, the sums of the
loss) and asks for the metrics before it logs. No name of TRL's in here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from entrl.controllers.hooks import StepFeedback
from entrl.controllers.monitor import Monitor
from entrl.maths.diversity import group_sums
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.shared.controls import Controls
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.loss import Tally, step_metrics
from entrl.trainers.shared.pending import PendingStep
from entrl.trainers.shared.probe import Probe
from entrl.trainers.shared.rollout import Rollout
from entrl.trainers.shared.training_log import TrainingLog


@dataclass(kw_only=True)
class Observation:
    """Monitor, probe and the numbers of steps that nobody has read yet.

    log, counters: where the metrics of a step and its completion tokens go when they are read
    score: (sequences) -> (B, T) entropies under the policy as it is now, one no-grad pass counted as `probe`
    monitor: None = no dynamics; diversity: whether rollouts are compared within their groups
    """

    controls: Controls
    log: TrainingLog
    counters: Counters
    ranks: AccelerateRanks
    score: Callable[[Rollout], Tensor]
    monitor: Monitor | None
    probe: Probe
    diversity: bool
    tally: Tally = field(default_factory=Tally)
    window_metrics: dict[str, Tensor | float] = field(default_factory=dict)  # of the selection in hand
    pending: list[PendingStep] = field(default_factory=list)

    def rollout(self, rollout: Rollout, completion_ids: Sequence[list[int]], groups: Sequence[int]) -> None:
        """A new rollout. completion_ids, groups: the completions this rank counts, and their group over all ranks."""
        self.probe.take(rollout)
        if self.diversity:
            sums = group_sums(completion_ids, groups)
            self.tally.add({k: torch.tensor(v, dtype=torch.float64) for k, v in sums.items()})

    def finish_step(self, step: int) -> None:
        """Sum what the micro-batches left, over the ranks; read from the device only where a controller asks."""
        if self.probe.due(step):
            self.tally.add(self._probe_sums())
        values, self.window_metrics = self.window_metrics, {}
        if self.monitor is not None:
            values = values | self.monitor.finish(self.ranks)
        names, totals = self.ranks.total_tensor(self.tally.take())
        self.pending.append(PendingStep(step=step, names=names, totals=totals, values=values))
        if self.controls.needs_feedback:
            self.read()

    def read(self) -> None:
        """Log each finished step, once, in order; controllers get their feedback here."""
        pending, self.pending = self.pending, []
        for one in pending:
            self._read(one)

    def _read(self, one: PendingStep) -> None:
        sums, values = one.read()
        self.counters.completion_tokens += sums.pop("completion_tokens", 0.0)
        metrics = {**step_metrics(sums, self.controls.on_loss), **values}
        if sums.get("probe/tokens") and "policy_entropy/token_mean" in metrics:
            probe_entropy = sums["probe/entropy_sum"] / sums["probe/tokens"]
            metrics |= self.probe.metrics(probe_entropy, metrics["policy_entropy/token_mean"])
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
        for controller in self.controls.all:
            if controller.needs_feedback:
                entropy = metrics.get("policy_entropy/token_mean")
                answer = controller.on_step(StepFeedback(step=one.step, entropy=entropy, metrics=metrics))
                metrics |= {f"{controller.name}/{key}": value for key, value in answer.items()}
        self.log.add(metrics)

    def probe_entropy(self) -> float | None:
        """Nats, over all ranks' prefixes, under the policy as it is now; None without a probe."""
        if not self.probe.on or self.probe.sequences is None:
            return None
        totals = self.ranks.total(self._probe_sums())
        return totals["probe/entropy_sum"] / max(totals["probe/tokens"], 1)

    def _probe_sums(self) -> dict[str, Tensor]:
        assert self.probe.sequences is not None
        return self.probe.sums(self.score(self.probe.sequences))
