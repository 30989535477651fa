"""Credit per turn in a rollout of dialogues: rewards of turns, over whole groups of all ranks, as (B, T) advantages.

    A[token of turn t, rollout i] = A_i + turn_credit_weight * A_it        A_i: TRL's, of the episode's reward

A_it comes from an estimator of `entrl.maths.turn_credit` and from the row column `turn_rewards`, one value for each
message the model wrote, which a reward publishes (`information_gain` with pay: turn). A turn's tokens are a maximal run
of the model's own. Tokens of tools get 0, which the loss masks anyway.

With `importance_sampling_level: sequence` one ratio would carry the sum of a row's advantages to all of its tokens, so
that is refused. A weight of 0 leaves TRL's advantages as they are, bit for bit.

Source:  method card information-gain, section 7.5; TRL 1.16 accepts (B, T) advantages from subclasses
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entrl.maths import turn_credit
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.part_options import TURN_REWARDS
from entrl.trainers.shared.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class TurnCredit:
    """The trainer's options as one object."""

    estimator: str
    weight: float
    discount: float | None
    length_weighting: bool

    def advantages(
        self, rollout: Rollout, advantages_B: Tensor, *, width: int, group_size: int, ranks: AccelerateRanks
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """This rank's (B, width) advantages, (N, S) turn advantages of all ranks, and what to log.

        Groups are `group_size` rows in a row of all ranks' together, so they may lie on several. The turns of a masked
        (truncated) completion count in its group like any others; the loss drops its tokens.
        """
        index_BT = turns_of(rollout, width)
        reward_BS, turn_BS = turn_table(rollout, index_BT, ranks)
        device, first = advantages_B.device, ranks.accelerator.process_index * len(rollout)
        reward_NS, turn_NS = ranks.gather(reward_BS.to(device)), ranks.gather(turn_BS.to(device))
        options = {} if self.discount is None else {"discount": self.discount}
        credit_NS = turn_credit.ESTIMATORS[self.estimator](reward_NS, turn_NS, group_size=group_size, **options).float()
        index_BT = index_BT.to(device)
        credit_BT = turn_credit.broadcast_turns(credit_NS[first : first + len(rollout)], index_BT)
        if self.length_weighting:
            credit_BT = credit_BT * turn_credit.length_weights(index_BT)
        sums = {
            "turns/per_completion": turn_NS.sum(1).float().mean(),
            "turns/reward": torch.where(turn_NS, reward_NS, 0.0).sum() / turn_NS.sum().clamp(min=1),
            "turns/credit_abs": credit_NS.abs().sum() / turn_NS.sum().clamp(min=1),
        }
        metrics = {name: float(value) for name, value in sums.items()}
        return advantages_B[:, None] + self.weight * credit_BT, credit_NS, metrics


def turns_of(rollout: Rollout, width: int) -> Tensor:
    """(B, width) which turn a token belongs to, -1 outside; also where TRL masks a whole completion."""
    own_BT = torch.zeros(len(rollout), width, dtype=torch.bool)
    for row, mask in enumerate(rollout.model_token_masks()):
        own_BT[row, : len(mask)] = mask
    return turn_credit.turn_index(own_BT)


def turn_table(rollout: Rollout, index_BT: Tensor, ranks: AccelerateRanks) -> tuple[Tensor, Tensor]:
    """(B, S) float64 rewards and bool turns, S the most turns of any rank; ValueError where they do not fit."""
    if TURN_REWARDS not in rollout.columns:
        raise ValueError(
            f"turn_credit is set and no reward published {TURN_REWARDS}; information_gain does with pay: turn, a "
            f"reward of your own through row_columns['{TURN_REWARDS}'], one value for each message that the model wrote"
        )
    rewards, written_B = rollout.columns[TURN_REWARDS], (index_BT.amax(1) + 1).tolist()
    for row, (given, written) in enumerate(zip(rewards, written_B, strict=True)):
        if len(given) != written:
            raise ValueError(
                f"{len(given)} {TURN_REWARDS} for row {row}, in which the model wrote {written} messages; give one for "
                "each, the last one included"
            )
    turns = max(1, ranks.max(max(written_B, default=0)))
    reward_BS, turn_BS = torch.zeros(len(rollout), turns, dtype=torch.float64), torch.arange(turns)[None, :]
    for row, given in enumerate(rewards):
        reward_BS[row, : len(given)] = torch.as_tensor(given, dtype=torch.float64)
    return reward_BS, turn_BS < torch.tensor(written_B)[:, None]


def episode_means(advantages: Tensor, mask_BT: Tensor) -> Tensor:
    """(B,) advantages as they are, or (B, T) ones as the mean over a row's tokens."""
    if advantages.dim() == 1:
        return advantages
    return (advantages * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def turn_options(args: Any) -> TurnCredit | None:
    """None where no credit per turn is wanted, or its weight is 0; a plain `GRPOConfig` has no such options."""
    estimator = getattr(args, "turn_credit", None)
    if estimator is None or args.turn_credit_weight == 0:
        return None
    return TurnCredit(
        estimator=estimator,
        weight=args.turn_credit_weight,
        discount=args.turn_credit_discount,
        length_weighting=args.turn_length_weighting,
    )
