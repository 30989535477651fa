"""TRL glue: the trainer, its options and its batch arithmetic."""

from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.refusals.schedule import Schedule, describe_schedule
from entrl.trainers.shared.rewards import RewardError

__all__ = [
    "EntropyGRPOConfig",
    "EntropyGRPOTrainer",
    "RewardError",
    "Schedule",
    "check_schedule",
    "describe_schedule",
]
