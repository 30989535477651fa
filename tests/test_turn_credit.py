"""Turn credit: the default estimator is unbiased, the published ones are what their code does, tokens get their turn's
value. R kinds of rollout in a toy problem; P groups of G rollouts, B = P*G rows, S turns, T tokens."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from entrl.maths.turn_credit import (
    broadcast_turns,
    delta_belief_turn_rewards,
    first_turn_norm,
    igpo_turn_rewards,
    joint_norm,
    length_weights,
    return_to_go,
    sequence_level,
    suffix_sums,
    turn_group_sqrt,
    turn_index,
    turnwise_masked,
    uot_split_reward,
    zero_padded,
)

ESTIMATORS = [return_to_go, turnwise_masked, zero_padded, joint_norm, turn_group_sqrt, first_turn_norm]
few = settings(max_examples=40, deadline=None)


# gradients of a policy that decides after each turn whether to go on


class Toy(NamedTuple):
    """Every kind of rollout of a policy that goes on with probability p_t after turn t, at turn S not at all."""

    chance_R: Tensor
    reward_RS: Tensor
    turn_RS: Tensor
    score_RS: Tensor  # d ln pi / d theta_t with p_t = sigmoid(theta_t); 0 where nothing was decided

    def gradient(self) -> Tensor:
        """(S,) the true one: score times everything earned from the decision on, weighed by chance."""
        return (self.chance_R[:, None] * self.score_RS * (self.reward_RS * self.turn_RS).sum(1, keepdim=True)).sum(0)

    def estimate(self, estimator, group_size: int, **options) -> Tensor:
        """(S,) the exact mean over every group of rollouts, each as likely as the policy makes it."""
        groups = torch.tensor(list(itertools.product(range(len(self.chance_R)), repeat=group_size)))
        rows = groups.reshape(-1)
        advantage = estimator(self.reward_RS[rows], self.turn_RS[rows], group_size=group_size, **options)
        per_group = (advantage * self.score_RS[rows]).reshape(*groups.shape, -1).mean(1)
        return (self.chance_R[groups].prod(1, keepdim=True) * per_group).sum(0)


def continue_or_stop(first=0.0, second=1.0) -> Toy:
    """Turn 0 earns `first`; then a coin decides whether there is a turn 1, which earns `second`."""
    return Toy(
        chance_R=torch.tensor([0.5, 0.5], dtype=torch.float64),
        reward_RS=torch.tensor([[first, math.nan], [first, second]], dtype=torch.float64).nan_to_num(),
        turn_RS=torch.tensor([[True, False], [True, True]]),
        score_RS=torch.tensor([[-0.5, 0.0], [0.5, 0.0]], dtype=torch.float64),
    )


def longer(seed: int, turns: int = 3) -> Toy:
    """At each turn one of two questions is drawn, which earns at random; then the policy goes on or not."""
    generator = torch.Generator().manual_seed(seed)
    go_on = torch.rand(turns, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    asks = torch.rand(turns, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    earns = torch.randn((turns, 2), generator=generator, dtype=torch.float64)
    chance, reward, turn, score = [], [], [], []
    for length in range(1, turns + 1):
        for questions in itertools.product((0, 1), repeat=length):
            p, r, s = 1.0, [0.0] * turns, [0.0] * turns
            for t, question in enumerate(questions):
                p *= float(asks[t] if question else 1 - asks[t])
                # the earnings depend on what was asked before, so returns differ between rollouts of one length
                r[t] = float(earns[t, question]) * (1 + sum(questions[:t]))
                if t < turns - 1:
                    stays = t < length - 1
                    p *= float(go_on[t] if stays else 1 - go_on[t])
                    s[t] = float(1 - go_on[t] if stays else -go_on[t])
            chance.append(p)
            reward.append(r)
            turn.append([t < length for t in range(turns)])
            score.append(s)
    wide = {"dtype": torch.float64}
    return Toy(
        torch.tensor(chance, **wide), torch.tensor(reward, **wide), torch.tensor(turn), torch.tensor(score, **wide)
    )


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_the_default_recovers_the_gradient_of_going_on(group_size):
    toy = continue_or_stop()
    assert toy.gradient().tolist() == [0.25, 0.0]
    assert toy.estimate(return_to_go, group_size).tolist() == pytest.approx([0.25, 0.0], abs=1e-15)
    whole = toy.estimate(return_to_go, group_size, baseline="group")
    assert whole.tolist() == pytest.approx([0.25 * (group_size - 1) / group_size, 0.0], abs=1e-15)


def test_the_published_estimators_miss_it():
    """Hand: both kinds of rollout earn 0 at turn 0, and all that have turn 1 earn 1 there, so centring leaves 0."""
    toy = continue_or_stop()
    for estimator in (turnwise_masked, zero_padded, turn_group_sqrt):
        assert toy.estimate(estimator, 8)[0] == pytest.approx(0.0, abs=1e-12), estimator.__name__
    # joint_norm, with a large group: mean 1/3, std sqrt(2)/3, so going on has -1/3 + 2/3 and stopping -1/3, and the
    # gradient is 0.25 (1/3 + 1/3) / (sqrt(2)/3) = 0.354. The direction is right here, and wrong in the next test.
    assert toy.estimate(joint_norm, 8)[0] == pytest.approx(0.309, abs=1e-3)
    assert toy.estimate(joint_norm, 12)[0] == pytest.approx(0.25 * math.sqrt(2), abs=0.04)


def test_joint_norm_can_point_the_wrong_way():
    """Going on earns 0.3, less than the mean turn (turn 0 earns 1), so it is punished for what is a gain."""
    toy = continue_or_stop(first=1.0, second=0.3)
    assert toy.gradient()[0] == pytest.approx(0.25 * 0.3)
    assert toy.estimate(return_to_go, 8)[0] == pytest.approx(0.25 * 0.3, abs=1e-15)
    assert toy.estimate(joint_norm, 8)[0] < -0.2


@pytest.mark.parametrize("seed", range(4))
def test_the_default_is_unbiased_over_several_turns(seed):
    toy = longer(seed)
    assert float(toy.chance_R.sum()) == pytest.approx(1.0, abs=1e-12)
    true = toy.gradient()
    assert torch.allclose(toy.estimate(return_to_go, 2), true, atol=1e-12)
    assert torch.allclose(toy.estimate(return_to_go, 3, baseline="group"), true * 2 / 3, atol=1e-12)


@pytest.mark.parametrize("estimator", [turnwise_masked, zero_padded, turn_group_sqrt])
def test_decisions_to_go_on_get_no_credit_from_centred_turns(estimator):
    """What a later turn earns is centred over those that have it, so having it is worth nothing, whatever it earns."""
    for toy in map(longer, range(4)):
        assert float(toy.gradient().norm()) > 0.01
        assert float(toy.estimate(estimator, 3).norm()) < 1e-12


def test_joint_norm_is_wrong_in_direction_over_several_turns():
    cosines = [
        float(torch.nn.functional.cosine_similarity(toy.estimate(joint_norm, 3), toy.gradient(), dim=0))
        for toy in map(longer, range(4))
    ]
    assert min(cosines) < -0.9
    assert max(cosines) > 0.9, "which of the two it is hangs on the problem"


# estimators against plain loops


def ragged(seed: int, groups: int, group_size: int, turns: int) -> tuple[Tensor, Tensor]:
    """Rewards with NaN where no turn happened; every rollout has at least one."""
    generator = torch.Generator().manual_seed(seed)
    rows = groups * group_size
    reward_BS = torch.randn((rows, turns), generator=generator, dtype=torch.float64)
    length_B = torch.randint(1, turns + 1, (rows,), generator=generator)
    turn_BS = torch.arange(turns) < length_B[:, None]
    return torch.where(turn_BS, reward_BS, math.nan), turn_BS


def mean_std(values):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return mean, spread


def slow(estimator, rows, **options):
    """One group, lists of the turns that happened; the formulas of the file, value by value."""
    G, S = len(rows), max(map(len, rows))
    discount = options.get("discount", 0.5 if estimator is first_turn_norm else 1.0)

    def onward(row, t):
        return sum(discount ** (k - t) * row[k] for k in range(t, len(row)))

    def masked(i, t):
        mean, std = mean_std([row[t] for row in rows if t < len(row)])
        return (rows[i][t] - mean) / (std + 1e-6)

    def padded(i, t):
        mean, std = mean_std([row[t] if t < len(row) else 0.0 for row in rows])
        return (rows[i][t] - mean) / (std + 1e-6)

    joint_mean, joint_std = mean_std([r for row in rows for r in row])
    first_mean, first_std = mean_std([onward(row, 0) for row in rows])
    answer = [[0.0] * S for _ in rows]
    for i, row in enumerate(rows):
        for t in range(len(row)):
            if estimator is return_to_go:
                others = [onward(rows[j], t) for j in range(G) if j != i]
                value = onward(row, t) - sum(others) / len(others) if others else 0.0
            elif estimator is turnwise_masked:
                value = masked(i, t)
            elif estimator is zero_padded:
                value = padded(i, t)
            elif estimator is joint_norm:
                value = onward([(r - joint_mean) / (joint_std + 1e-6) for r in row], t)
            elif estimator is turn_group_sqrt:
                value = onward([masked(i, k) for k in range(len(row))], t) / math.sqrt(len(row) - t)
            else:
                value = (onward(row, t) - first_mean) / (first_std + 1e-6)
            answer[i][t] = value
    return answer


@pytest.mark.parametrize("estimator", ESTIMATORS)
@few
@given(seed=st.integers(0, 999), groups=st.integers(1, 2), group_size=st.integers(1, 4), turns=st.integers(1, 4))
def test_estimators_equal_plain_loops(estimator, seed, groups, group_size, turns):
    reward_BS, turn_BS = ragged(seed, groups, group_size, turns)
    got_BS = estimator(reward_BS, turn_BS, group_size=group_size)
    rows = [reward_BS[i][turn_BS[i]].tolist() for i in range(len(reward_BS))]
    for g in range(groups):
        block = slice(g * group_size, (g + 1) * group_size)
        want = torch.tensor(slow(estimator, rows[block]), dtype=torch.float64)
        got = got_BS[block]
        # one rollout: first_turn_norm and those that divide by eps magnify round-off
        assert torch.allclose(got[:, : want.shape[1]], want, rtol=1e-6, atol=1e-6)
        assert not got[:, want.shape[1] :].any()
    assert bool((got_BS[~turn_BS] == 0).all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_permuting_rollouts_permutes_the_credit(estimator):
    reward_BS, turn_BS = ragged(3, 1, 5, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    straight = estimator(reward_BS, turn_BS, group_size=5)
    assert torch.allclose(estimator(reward_BS[order], turn_BS[order], group_size=5), straight[order], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", [return_to_go, turnwise_masked, zero_padded, turn_group_sqrt])
def test_identical_rollouts_get_exactly_nothing(estimator, dtype):
    """0.1 three times has a float mean that is not 0.1, which 1/eps would make a visible advantage."""
    reward_BS = torch.tensor([[0.1, 0.7, math.nan]] * 3, dtype=dtype)
    turn_BS = torch.tensor([[True, True, False]] * 3)
    assert not estimator(reward_BS, turn_BS, group_size=3).any()


@pytest.mark.parametrize("estimator", [joint_norm, first_turn_norm])
def test_two_reproductions_pay_identical_rollouts(estimator):
    """As published, and said in the module: neither compares a turn with the same turn of the others."""
    reward_BS = torch.tensor([[0.1, 0.7]] * 4, dtype=torch.float64)
    advantage_BS = estimator(reward_BS, torch.ones_like(reward_BS, dtype=torch.bool), group_size=4)
    assert (advantage_BS == advantage_BS[0]).all()
    assert advantage_BS.abs().max() > (1e5 if estimator is first_turn_norm else 0.5)


def test_identical_rollouts_get_nothing_from_their_total():
    reward_BS, turn_BS = torch.full((7, 3), 0.1), torch.ones((7, 3), dtype=torch.bool)
    assert not sequence_level(reward_BS, turn_BS, group_size=7).any()


def test_sequence_level_is_trls():
    reward_BS, turn_BS = ragged(11, 2, 4, 3)
    total_PG = reward_BS.nansum(1).reshape(2, 4)
    want = (total_PG - total_PG.mean(1, keepdim=True)) / (total_PG.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(sequence_level(reward_BS, turn_BS, group_size=4), want.reshape(-1), atol=1e-12)


def test_a_group_is_not_read_by_another():
    reward_BS, turn_BS = ragged(5, 2, 3, 3)
    for estimator in ESTIMATORS:
        both = estimator(reward_BS, turn_BS, group_size=3)
        alone = estimator(reward_BS[:3], turn_BS[:3], group_size=3)
        assert torch.equal(both[:3], alone)


def test_suffix_sums_by_hand():
    x_BS = torch.tensor([[1.0, 2.0, 4.0]])
    assert suffix_sums(x_BS).tolist() == [[7.0, 6.0, 4.0]]
    assert suffix_sums(x_BS, discount=0.5).tolist() == [[1 + 1 + 1, 2 + 2, 4]]  # 1 + 2/2 + 4/4


def test_errors_of_the_estimators():
    reward_BS, turn_BS = ragged(0, 1, 4, 2)
    with pytest.raises(ValueError, match="4 rollouts are no whole groups of 3"):
        return_to_go(reward_BS, turn_BS, group_size=3)
    with pytest.raises(ValueError, match="must be one"):
        joint_norm(reward_BS, turn_BS[:, :1], group_size=4)
    with pytest.raises(TypeError, match="turns must be bool"):
        zero_padded(reward_BS, turn_BS.float(), group_size=4)
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\], got 1.5"):
        turn_group_sqrt(reward_BS, turn_BS, group_size=4, discount=1.5)
    with pytest.raises(ValueError, match="baseline must be others or group"):
        return_to_go(reward_BS, turn_BS, group_size=4, baseline="all")  # type: ignore[arg-type]
    reward_BS[1, 0] = -math.inf
    with pytest.raises(ValueError, match="rollout 1, turn 0 is -inf"):
        turnwise_masked(reward_BS, turn_BS, group_size=4)


# turns and tokens


def slow_index(completion, tool):
    index, turn, was = [], -1, False
    for c, t in zip(completion, tool, strict=True):
        now = bool(c and t)
        turn += now and not was
        index.append(turn if now else -1)
        was = now
    return index


@few
@given(rows=st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6), min_size=1, max_size=4))
def test_turn_index_equals_a_plain_scan(rows):
    completion_BT = torch.tensor([[c for c, _ in row] for row in rows])
    tool_BT = torch.tensor([[t for _, t in row] for row in rows]).long()  # TRL's masks are 0/1 integers
    index_BT = turn_index(completion_BT.long(), tool_BT)
    assert index_BT.tolist() == [
        slow_index(c, t) for c, t in zip(completion_BT.tolist(), tool_BT.tolist(), strict=True)
    ]
    value_BS = torch.arange(1.0, 8.0).expand(len(rows), 7)
    token_BT = broadcast_turns(value_BS, index_BT)
    assert token_BT.tolist() == [[float(i + 1) for i in row] for row in index_BT.tolist()]  # -1 becomes 0


def test_the_padded_tail_of_the_tool_mask_is_no_turn():
    completion, tool = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1]])
    assert turn_index(completion, tool).tolist() == [[0, 0, -1, -1]]
    assert turn_index(completion).tolist() == [[0, 0, -1, -1]]
    assert turn_index(torch.zeros(1, 4)).tolist() == [[-1] * 4]  # a masked row has no turns


def test_values_must_reach_every_turn():
    index_BT = turn_index(torch.tensor([[1, 0, 1]]))
    with pytest.raises(ValueError, match="up to 2 turns; give every turn a value"):
        broadcast_turns(torch.ones(1, 1), index_BT)
    unused = broadcast_turns(torch.tensor([[1.0, 2.0, math.nan]]), index_BT)
    assert unused.tolist() == [[1.0, 0.0, 2.0]], "a turn without tokens (a truncated row) has nowhere to put its value"
    with pytest.raises(ValueError, match="must be of one shape"):
        turn_index(torch.ones(1, 3), torch.ones(1, 2))


def test_length_weights_make_turns_equal():
    """Turns of 1 and 3 tokens: mean length 2, so factors 2 and 2/3; their sums are 2 and 2."""
    index_BT = turn_index(torch.tensor([[1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6]))
    weight_BT = length_weights(index_BT, dtype=torch.float64)
    assert weight_BT[0].tolist() == pytest.approx([2, 0, 2 / 3, 2 / 3, 2 / 3, 0])
    assert weight_BT[1].tolist() == [1, 1, 0, 0, 0, 0]
    assert weight_BT.sum(1).tolist() == pytest.approx([4, 2, 0]), "a row counts as much as before"


# rewards of turns


def test_igpo_by_hand():
    """exp(mean): e^-1, then e^-0.5; the last turn answers."""
    rewards = igpo_turn_rewards([[-1.0, -1.0], [-0.25, -0.75]], outcome=0.4)
    assert rewards.tolist() == pytest.approx([math.exp(-0.5) - math.exp(-1), 0.4])
    assert igpo_turn_rewards([[-1.0]], outcome=-2.0).tolist() == [-2.0], "a rollout that answers at once"
    with pytest.raises(ValueError, match="no gold log-probs"):
        igpo_turn_rewards([[-1.0], []], outcome=0.0)
    with pytest.raises(ValueError, match="gold_log_probs is empty"):
        igpo_turn_rewards([], outcome=0.0)


def test_clipping_pays_a_belief_that_swings_each_time_it_rises():
    swings = [-2.0, -1.0, -2.0, -1.0, -2.0]
    clipped = delta_belief_turn_rewards(swings, outcome=0.0, gain_weight=1.0)
    assert clipped.tolist() == [1.0, 0.0, 1.0, 0.0]
    plain = delta_belief_turn_rewards(swings, outcome=0.0, gain_weight=1.0, clip=False)
    assert float(plain.sum()) == 0.0, "telescopes: nothing was learnt"
    each = delta_belief_turn_rewards([-1.0, -0.5], outcome=2.0, penalties=[-0.05])
    assert each.tolist() == pytest.approx([2 + 0.1 * 0.5 - 0.05])
    with pytest.raises(ValueError, match="2 penalties for 1 turns"):
        delta_belief_turn_rewards([-1.0, -0.5], outcome=2.0, penalties=[0.0, 0.0])
    with pytest.raises(ValueError, match="one number for each state"):
        delta_belief_turn_rewards([], outcome=0.0)


def test_uot_split():
    assert uot_split_reward(0.5) == 1.0
    assert uot_split_reward(0.0) == uot_split_reward(1.0) == 0.0
    assert uot_split_reward(0.3) == pytest.approx(uot_split_reward(0.7))
    assert uot_split_reward(3 / 7, items=7) == 1.0, "four against three is as even as seven can be"
    assert uot_split_reward(2 / 7, items=7) < 1.0
    with pytest.raises(ValueError, match=r"yes_fraction must be in \[0, 1\]"):
        uot_split_reward(1.2)
    with pytest.raises(ValueError, match="scale must be > 0"):
        uot_split_reward(0.5, scale=0.0)
