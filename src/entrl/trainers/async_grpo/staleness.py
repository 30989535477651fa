"""How old the trained tokens are, and how far trainer and sampler are apart at each age.

S is the number of staleness classes, M of trained tokens as in `rows.py`.
"""

from typing import Any

import torch
from torch import Tensor

from entrl.engines.trails import UNKNOWN
from entrl.trainers.async_grpo.rows import FlatBatch
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.shared.training_log import TrainingLog

PREFETCHED = 1  # micro-batches that accelerate's dispatcher holds beyond the one in hand, so samples age unseen
# What is summed per staleness class, over the tokens of an optimiser step and all ranks.
SUMS = (
    "tokens",
    "entropy",  # nats, of the trainer's policy at the loss, for the tokens of the class
    "log_ratio",  # trainer's log-prob less the sampler's
    "abs_log_ratio",
    "recorded",  # tokens with a sampler's entropy
    "sampler_entropy",  # nats, when they were generated
    "recorded_entropy",  # nats, the trainer's, of the same tokens
    "abs_entropy_gap",
)


class Staleness:
    """Which policy version is out, and the ages of one optimiser step's tokens.

    trl: the trainer, of which TRL's own names alone are read
    """

    def __init__(self, trl: Any, *, log: TrainingLog, ranks: AccelerateRanks, gap_alarm: float) -> None:
        self.trl, self.log, self.ranks, self.gap_alarm = trl, log, ranks, gap_alarm
        self.newest = 0  # version published last
        self.synced_at = 0  # the step it was published at
        self._sums: list[Tensor] = []

    def published(self, version: int) -> None:
        self.newest, self.synced_at = version, self.trl.state.global_step

    @property
    def moved(self) -> bool:
        """Whether the policy has taken a step since it was published."""
        return self.trl.state.global_step != self.synced_at

    def fresh(self, batch: FlatBatch) -> Tensor:
        """(M,) bool: of the newest version, and no step since it was sent, so the policy is the one that sampled."""
        return (batch.versions_M == self.newest) & (not self.moved)

    def add(self, batch: FlatBatch, log_probs_M: Tensor, entropies_M: Tensor) -> None:
        classes = self.trl.args.max_staleness + PREFETCHED + 2  # ages 0 .. max_staleness + 1, and one for the rest
        self._sums.append(staleness_sums(batch, log_probs_M, entropies_M, version=self.newest, classes=classes))

    def finish_step(self) -> None:
        """Log the step's ages over all ranks, and warn once where the two engines disagree."""
        found = staleness_metrics(self.ranks.sum(torch.stack(self._sums).sum(0)).tolist())
        self._sums = []
        self.log.add({**found, "policy_version": float(self.newest)})
        gap = found.get("staleness/0/abs_log_ratio")
        if isinstance(gap, tuple) and not self.moved and gap[0] / gap[1] > self.gap_alarm:
            self.log.warn_once(
                f"trainer and server disagree by {gap[0] / gap[1]:.3f} nats a token (mean, newest version, step "
                f"{self.trl.state.global_step}; the alarm is at {self.gap_alarm}): serve in the trainer's dtype, "
                "and check that the server's base model is the trainer's"
            )


@torch.no_grad()
def staleness_sums(batch: FlatBatch, log_probs_M: Tensor, entropies_M: Tensor, *, version: int, classes: int) -> Tensor:
    """(S, len(SUMS)) float64: row s for tokens s versions old, the last row for unknown or older ones."""
    known_M = (batch.versions_M != UNKNOWN) & (batch.versions_M <= version)
    age_M = torch.where(known_M, version - batch.versions_M, classes - 1).clamp(max=classes - 1)
    x_M = (log_probs_M - batch.old_log_probs_M).double()
    recorded_M = ~batch.entropies_M.isnan()
    sampler_M = torch.where(recorded_M, batch.entropies_M, 0.0).double()
    trainer_M = torch.where(recorded_M, entropies_M.detach(), 0.0).double()
    columns = [
        torch.ones_like(x_M),
        entropies_M.double(),
        x_M,
        x_M.abs(),
        recorded_M.double(),
        sampler_M,
        trainer_M,
        (trainer_M - sampler_M).abs(),
    ]
    out = torch.zeros(classes, len(SUMS), dtype=torch.float64, device=x_M.device)
    return out.index_add_(0, age_M, torch.stack(columns, 1))


def staleness_metrics(sums: list[list[float]]) -> dict[str, float | tuple[float, float]]:
    """Metrics of one optimiser step: (sum, count) pairs, which TRL reduces as a rate over a logging window.

    Keys are `staleness/<versions>/<what>`; the last class is `staleness/unknown/<what>`. Classes without tokens have
    no keys.
    """
    out: dict[str, float | tuple[float, float]] = {}
    for age, row in enumerate(sums):
        total = dict(zip(SUMS, row, strict=True))
        if not total["tokens"]:
            continue
        prefix = f"staleness/{'unknown' if age == len(sums) - 1 else age}/"
        out[prefix + "tokens_total"] = total["tokens"]
        for name in ("entropy", "log_ratio", "abs_log_ratio"):
            out[prefix + name] = (total[name], total["tokens"])
        if total["recorded"]:
            out[prefix + "sampler_entropy"] = (total["sampler_entropy"], total["recorded"])
            out[prefix + "entropy_change"] = (total["recorded_entropy"] - total["sampler_entropy"], total["recorded"])
            out[prefix + "abs_entropy_gap"] = (total["abs_entropy_gap"], total["recorded"])
    return out
