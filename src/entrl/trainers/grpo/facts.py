"""What every part of the synchronous trainer is handed beside the parts it works with."""

from dataclasses import dataclass
from typing import Any

from entrl.maths.phases import ThinkTags
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.schedule import Schedule
from entrl.trainers.shared.controls import Controls
from entrl.trainers.shared.training_log import TrainingLog


@dataclass(frozen=True, kw_only=True)
class Facts:
    """trl: the trainer, of which parts read TRL's own names and none of ours
    wanted: signals that some reward names; tags: of thinking; end_ids: tokens that end a completion
    """

    trl: Any
    controls: Controls
    schedule: Schedule
    ranks: AccelerateRanks
    log: TrainingLog
    wanted: frozenset[str]
    tags: ThinkTags | None
    end_ids: list[int]

    def mine(self, count: int) -> slice:
        """Where this rank's `count` rows are among those of all ranks."""
        first = self.trl.accelerator.process_index * count
        return slice(first, first + count)
