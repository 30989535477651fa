"""Credit for the turns of a dialogue: rewards per turn, advantages per turn, and their way onto the turn's tokens.

    A_it = R_it - mean_{j != i} R_jt      R_it = sum_{k >= t} gamma^(k-t) r_ik, 0 once rollout i has ended   (default)

The rollouts of a group share a prompt; r_it is rollout i's reward for turn t. The mean is over the others of the whole
group, ended ones counted 0: it then knows nothing of what rollout i did, so the gradient is unbiased. Centring over
those that still have turn t would let the decision to stop choose its own baseline. On a policy that goes on with
probability 1/2 to earn 1 the true gradient is 0.250 (tests/test_turn_credit.py, docs/information_gain.md): the default
gives that, the forms below marked * do not, so they are reproductions and no more.

| function             | reproduces                                                                  |
| -------------------- | --------------------------------------------------------------------------- |
| `return_to_go`       | ours; baseline="group" is what IGPO's repository runs (one token per turn)  |
| `sequence_level`     | TRL's own GRPO advantage of the summed reward                               |
| `turnwise_masked` *  | normalised over the rollouts that have the turn                             |
| `zero_padded` *      | delta-belief as released: ended rollouts enter as reward 0, no sum          |
| `joint_norm` *       | IGPO's paper: one mean and standard deviation over all turns, then sums     |
| `turn_group_sqrt` *  | A2TGPO: `turnwise_masked`, summed, over the root of the number of terms     |
| `first_turn_norm`    | IGPO's repository, unused: discounted sums, statistics of the first turn's  |

Source:  TRL 1.16; IGPO (arXiv 2510.14967; GuoqingWang1/IGPO at bff163b, core_algos.py); delta-belief (arXiv 2602.12342;
    bethgelab/delta-belief-rl at f173b54, core_algos.py); A2TGPO (arXiv 2605.06200, abstract); UoT (arXiv 2402.03271;
    zhiyuanhubj/UoT at e08f17f, uot.py)
Differs: the default estimator, which is ours
Needs:   torch only

P prompts, G rollouts of one prompt, B rows (P*G, a group's G in a row), S turns, T tokens. Standard deviations have
ddof 1. A turn that never happened has advantage 0; so has everything where there is nothing to compare with. Identical
rollouts get 0, but for two reproductions: `joint_norm` compares turns with one another, and `first_turn_norm` divides
later turns by a spread of first turns that is 0 (to 1e-6, so its advantages can be of the order 1e5).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

TURN_EPS = 1e-6  # added to the standard deviation in the published turn-level forms
TRL_EPS = 1e-4  # the same in TRL's GRPOTrainer


def suffix_sums(x_BS: Tensor, *, discount: float = 1.0) -> Tensor:
    """(B, S) sum_{k >= t} discount^(k-t) x_k."""
    total, sums = torch.zeros_like(x_BS[:, 0]), []
    for t in reversed(range(x_BS.shape[1])):
        total = x_BS[:, t] + discount * total
        sums.append(total)
    return torch.stack(sums[::-1], 1)


def return_to_go(
    reward_BS: Tensor,
    turn_BS: Tensor,
    *,
    group_size: int,
    discount: float = 1.0,
    baseline: Literal["others", "group"] = "others",
) -> Tensor:
    """(B, S) rewards and (B, S) bool, True where the turn happened; (B, S) advantages. Unbiased.

    baseline: the mean return of the `others` of the group, or of the whole `group`, which is the same times (G-1)/G (as
        are TRL's own advantages).
    """
    if baseline not in ("others", "group"):
        raise ValueError(f"baseline must be others or group, got {baseline!r}")
    _check(reward_BS, turn_BS, group_size, discount)
    return_PGS = _groups(suffix_sums(torch.where(turn_BS, reward_BS, 0.0), discount=discount), group_size)
    from_first_PGS = return_PGS - return_PGS[:, :1]  # equal returns give exactly 0, which x - mean(x) does not
    centred_PGS = from_first_PGS - from_first_PGS.mean(1, keepdim=True)
    if baseline == "others" and group_size > 1:
        centred_PGS = centred_PGS * (group_size / (group_size - 1))
    return torch.where(turn_BS, centred_PGS.reshape(reward_BS.shape), 0.0)


def sequence_level(reward_BS: Tensor, turn_BS: Tensor, *, group_size: int) -> Tensor:
    """(B,) TRL's advantage of each rollout's total: (sum - group mean) / (group std + 1e-4)."""
    _check(reward_BS, turn_BS, group_size)
    total_PG1 = _groups(torch.where(turn_BS, reward_BS, 0.0).sum(1, keepdim=True), group_size)
    return _normalised(total_PG1, torch.ones_like(total_PG1, dtype=torch.bool), eps=TRL_EPS).reshape(-1)


def turnwise_masked(reward_BS: Tensor, turn_BS: Tensor, *, group_size: int) -> Tensor:
    """(B, S) normalised per turn over the rollouts of the group that have it. Biased: see the top of the file."""
    _check(reward_BS, turn_BS, group_size)
    return _normalised(_groups(reward_BS, group_size), _groups(turn_BS, group_size)).reshape(reward_BS.shape)


def zero_padded(reward_BS: Tensor, turn_BS: Tensor, *, group_size: int, scale: bool = True) -> Tensor:
    """(B, S) normalised per turn over the whole group, ended rollouts as reward 0; scale: divide by the std.

    No sums: a turn gets no credit for what it made possible.
    """
    _check(reward_BS, turn_BS, group_size)
    x_PGS = _groups(torch.where(turn_BS, reward_BS, 0.0), group_size)
    all_PGS = torch.ones_like(x_PGS, dtype=torch.bool)
    return torch.where(turn_BS, _normalised(x_PGS, all_PGS, scale=scale).reshape(reward_BS.shape), 0.0)


def joint_norm(reward_BS: Tensor, turn_BS: Tensor, *, group_size: int, discount: float = 1.0) -> Tensor:
    """(B, S) sums of rewards normalised over all turns of the group at once. Biased: see the top of the file."""
    _check(reward_BS, turn_BS, group_size, discount)
    P, S = len(reward_BS) // group_size, reward_BS.shape[1]
    flat = _normalised(reward_BS.reshape(P, group_size * S, 1), turn_BS.reshape(P, group_size * S, 1))
    return torch.where(turn_BS, suffix_sums(flat.reshape(reward_BS.shape), discount=discount), 0.0)


def turn_group_sqrt(reward_BS: Tensor, turn_BS: Tensor, *, group_size: int, discount: float = 1.0) -> Tensor:
    """(B, S) sums of `turnwise_masked` over sqrt of how many turns are summed. Biased: see the top of the file."""
    _check(reward_BS, turn_BS, group_size, discount)
    sums_BS = suffix_sums(turnwise_masked(reward_BS, turn_BS, group_size=group_size), discount=discount)
    terms_BS = suffix_sums(turn_BS.to(reward_BS.dtype)).clamp(min=1)
    return torch.where(turn_BS, sums_BS / terms_BS.sqrt(), 0.0)


def first_turn_norm(reward_BS: Tensor, turn_BS: Tensor, *, group_size: int, discount: float = 0.5) -> Tensor:
    """(B, S) discounted returns, less the mean and over the std of the group's returns from the first turn on.

    A later return has fewer terms than the baseline that is taken from it.
    """
    _check(reward_BS, turn_BS, group_size, discount)
    return_PGS = _groups(suffix_sums(torch.where(turn_BS, reward_BS, 0.0), discount=discount), group_size)
    first_PG1 = return_PGS[:, :, :1]
    centred_PG1 = first_PG1 - first_PG1.mean(1, keepdim=True)
    deviation = _std(centred_PG1, torch.ones_like(first_PG1, dtype=torch.bool)) + TURN_EPS
    advantage_PGS = (return_PGS - first_PG1.mean(1, keepdim=True)) / deviation
    return torch.where(turn_BS, advantage_PGS.reshape(reward_BS.shape), 0.0)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "return_to_go": return_to_go,
    "turnwise_masked": turnwise_masked,
    "zero_padded": zero_padded,
    "joint_norm": joint_norm,
    "turn_group_sqrt": turn_group_sqrt,
    "first_turn_norm": first_turn_norm,
}
WITHOUT_SUMS = ("turnwise_masked", "zero_padded")  # take each turn by itself, so they have no discount


def _groups(x_BS: Tensor, group_size: int) -> Tensor:
    return x_BS.reshape(len(x_BS) // group_size, group_size, x_BS.shape[1])


def _normalised(x_PGS: Tensor, mask_PGS: Tensor, *, eps: float = TURN_EPS, scale: bool = True) -> Tensor:
    """(x - mean) / (std + eps) over the G dimension where the mask is True, 0 elsewhere; one value gives 0."""
    centred_PGS = _centred(x_PGS, mask_PGS)
    scaled_PGS = centred_PGS / (_std(centred_PGS, mask_PGS) + eps) if scale else centred_PGS
    return torch.where(mask_PGS, scaled_PGS, 0.0)


def _centred(x_PGS: Tensor, mask_PGS: Tensor) -> Tensor:
    """x - mean where the mask is True, 0 elsewhere; exactly 0 for equal values, which eps would else magnify."""
    least_P1S = torch.where(mask_PGS, x_PGS, torch.inf).amin(1, keepdim=True)
    above_PGS = torch.where(mask_PGS, x_PGS - least_P1S, 0.0)
    mean_P1S = above_PGS.sum(1, keepdim=True) / mask_PGS.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask_PGS, above_PGS - mean_P1S, 0.0)


def _std(centred_PGS: Tensor, mask_PGS: Tensor) -> Tensor:
    return (centred_PGS.square().sum(1, keepdim=True) / (mask_PGS.sum(1, keepdim=True) - 1).clamp(min=1)).sqrt()


def _check(reward_BS: Tensor, turn_BS: Tensor, group_size: int, discount: float = 1.0) -> None:
    if reward_BS.dim() != 2 or reward_BS.shape != turn_BS.shape or reward_BS.shape[1] == 0:
        raise ValueError(
            f"rewards {tuple(reward_BS.shape)} and turns {tuple(turn_BS.shape)} must be one (rollouts, turns) with at "
            "least one turn; pad rollouts that ended earlier"
        )
    if turn_BS.dtype != torch.bool:
        raise TypeError(f"turns must be bool, True where the turn happened; got {turn_BS.dtype}")
    if group_size < 1 or len(reward_BS) % group_size:
        raise ValueError(f"{len(reward_BS)} rollouts are no whole groups of {group_size}; pass num_generations")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be in [0, 1], got {discount}")
    finite_BS = torch.isfinite(reward_BS) | ~turn_BS
    if not bool(finite_BS.all()):
        row, turn = (~finite_BS).nonzero()[0].tolist()
        raise ValueError(
            f"the reward of rollout {row}, turn {turn} is {float(reward_BS[row, turn])}; an answer that rules "
            "the target out has a target gain of -inf: bound it, or pay another gain"
        )


# turns and tokens


def turn_index(completion_mask_BT: Tensor, tool_mask_BT: Tensor | None = None) -> Tensor:
    """(B, T) int64: which turn a token belongs to, -1 outside. Turn k is the k-th run of tokens the model wrote.

    Masks are bool or 0/1. tool_mask: 0 on tokens a tool wrote; TRL pads it with ones, so it counts only where
    completion_mask does. None: no tools, one turn.
    """
    written_BT = completion_mask_BT.bool()
    if tool_mask_BT is not None:
        if tool_mask_BT.shape != completion_mask_BT.shape:
            raise ValueError(
                f"tool_mask {tuple(tool_mask_BT.shape)} and completion_mask {tuple(completion_mask_BT.shape)} must be "
                "of one shape"
            )
        written_BT = written_BT & tool_mask_BT.bool()
    before_BT = torch.nn.functional.pad(written_BT, (1, 0))[:, :-1]
    run_BT = (written_BT & ~before_BT).cumsum(-1) - 1
    return torch.where(written_BT, run_BT, -1)


def broadcast_turns(value_BS: Tensor, index_BT: Tensor) -> Tensor:
    """(B, T): every token gets its turn's value, tokens outside turns 0. Values of turns without tokens go unused."""
    turns = int(index_BT.max()) + 1 if index_BT.numel() else 0
    if turns > value_BS.shape[1] or len(value_BS) != len(index_BT):
        raise ValueError(
            f"values {tuple(value_BS.shape)} for {len(index_BT)} rows of up to {turns} turns; give every turn a value"
        )
    value_BT = value_BS.gather(1, index_BT.clamp(min=0))
    return torch.where(index_BT >= 0, value_BT, 0.0)


def length_weights(index_BT: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, T): factors that give every turn of a row the same total weight; they sum to the row's tokens.

    A loss that is a mean over tokens weighs a turn by its length. With these on the advantages it does not, and a row
    counts as much as before. 0 outside turns.
    """
    turns = int(index_BT.max()) + 1 if index_BT.numel() else 0
    of_turn_BTS = index_BT[..., None] == torch.arange(max(turns, 1), device=index_BT.device)
    length_BS = of_turn_BTS.sum(1)
    mean_B1 = length_BS.sum(-1, keepdim=True) / (length_BS > 0).sum(-1, keepdim=True).clamp(min=1)
    return broadcast_turns((mean_B1 / length_BS.clamp(min=1)).to(dtype), index_BT)


# rewards per turn


def igpo_turn_rewards(gold_log_probs: Sequence[Any], *, outcome: float) -> Tensor:
    """(turns,) IGPO: b_t - b_(t-1) with b = exp(mean log pi(gold token)); the last turn, which answers, has `outcome`.

    gold_log_probs: for each state, the log-probs (nats) of the gold answer's tokens; the first before any turn, none
    for the answering turn. float64.
    """
    if len(gold_log_probs) == 0:
        raise ValueError("gold_log_probs is empty; give the state before the first turn at least")
    rows = [torch.as_tensor(row, dtype=torch.float64) for row in gold_log_probs]
    if any(row.dim() != 1 or len(row) == 0 for row in rows):
        raise ValueError("a state has no gold log-probs; the mean over the gold tokens needs at least one")
    belief = torch.stack([row.mean().exp() for row in rows])
    return torch.cat([belief.diff(), belief.new_tensor([outcome])])


def delta_belief_turn_rewards(
    log_belief: Any, *, outcome: float, penalties: Any = 0.0, gain_weight: float = 0.1, clip: bool = True
) -> Tensor:
    """(turns,) delta-belief: outcome + gain_weight * max(log b_t - log b_(t-1), 0) + penalty_t, on every turn.

    log_belief: (turns + 1,) nats, the first before any turn. penalties: (turns,) or one number. gain_weight: 0.1 in the
    released scripts. clip=False keeps falls; clipped, a belief that goes up and down is paid each time it rises.
    """
    belief = torch.as_tensor(log_belief, dtype=torch.float64)
    if belief.dim() != 1 or len(belief) == 0:
        raise ValueError(f"log_belief has shape {tuple(belief.shape)}; give one number for each state")
    delta, penalty = belief.diff(), torch.as_tensor(penalties, dtype=torch.float64)
    if penalty.dim() and penalty.shape != delta.shape:
        raise ValueError(f"{len(penalty)} penalties for {len(delta)} turns; give one each")
    return outcome + gain_weight * (delta.clamp(min=0) if clip else delta) + penalty


def uot_split_reward(yes_fraction: float, *, scale: float = 0.4, items: int | None = None) -> float:
    """UoT: h_b(x) / (1 + |2x - 1| / scale) for a question that x of the possibilities answer with yes; 0 at 0 and 1.

    items: how many possibilities there are; then 1 where the two sides differ by exactly one, as the code has it.
    """
    x = float(yes_fraction)
    if not 0 <= x <= 1:
        raise ValueError(f"yes_fraction must be in [0, 1], got {yes_fraction}")
    if scale <= 0:
        raise ValueError(f"scale must be > 0, got {scale}; the paper's lambda is 0.4")
    if x in (0.0, 1.0):
        return 0.0
    if items is not None and round(abs(2 * x - 1) * items) == 1:
        return 1.0
    bits = -x * math.log2(x) - (1 - x) * math.log2(1 - x)
    return bits / (1 + abs(2 * x - 1) / scale)
