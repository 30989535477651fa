"""StdFloor: the divisor of a group's advantages never falls below the floor."""

import pytest
import torch

from entrl.controllers.std_floor import StdFloor, controller, floor_std

NAN = float("nan")


def trl_advantages(rewards_N, groups_N):
    """As TRL 1.16 computes them under scale_rewards="group": NaN rewards out of mean and std, advantage 0."""
    out = torch.zeros_like(rewards_N)
    for g in groups_N.unique():
        r = rewards_N[groups_N == g]
        scored = r[~r.isnan()]
        std = scored.std() if len(scored) > 1 else torch.tensor(0.0)
        out[groups_N == g] = torch.nan_to_num((r - scored.mean()) / (std + 1e-4), nan=0.0)
    return out


def test_by_hand():
    # group 0: rewards 0 and 1, std .70711 > .05: unchanged. group 1: .80 and .81, std .0070711, centred -+.005
    rewards, groups = torch.tensor([0.0, 0.80, 1.0, 0.81]), torch.tensor([0, 1, 0, 1])
    advantages = trl_advantages(rewards, groups)
    got = StdFloor(floor=0.05).on_rollout(rewards, groups, advantages)
    assert torch.equal(got[[0, 2]], advantages[[0, 2]])
    assert got[[1, 3]].tolist() == pytest.approx([-0.005 / 0.05, 0.005 / 0.05], rel=1e-4)
    assert got.dtype == advantages.dtype


@pytest.mark.parametrize("seed", range(5))
def test_slow_twin(seed):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(24, generator=g) * torch.tensor([0.01, 1.0, 0.1, 0.0]).repeat(6)
    groups = torch.tensor([3, 10, 7, 1]).repeat(6)
    rewards[torch.rand(24, generator=g) < 0.2] = NAN
    got = floor_std(rewards, groups, trl_advantages(rewards, groups), floor=0.05)
    for group in groups.unique():
        r = rewards[groups == group]
        scored = r[~r.isnan()]
        divisor = max(float(scored.std()) + 1e-4, 0.05) if len(scored) > 1 else 1.0
        want = torch.nan_to_num((r - scored.mean()) / divisor, nan=0.0)
        assert got[groups == group].tolist() == pytest.approx(want.tolist(), rel=1e-4, abs=1e-6)


def test_unscored_rows_equal_rewards_and_lone_rows_stay_as_they_are():
    rewards, groups = torch.tensor([NAN, NAN, 0.3, 0.3, NAN, 0.7]), torch.tensor([0, 0, 1, 1, 2, 2])
    advantages = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.4])
    assert torch.equal(floor_std(rewards, groups, advantages, floor=0.05), advantages)


def test_a_floor_below_trl_s_offset_changes_nothing():
    rewards, groups = torch.tensor([0.5, 0.500001, 0.2, 0.9]), torch.tensor([0, 0, 1, 1])
    advantages = trl_advantages(rewards, groups)
    assert torch.equal(floor_std(rewards, groups, advantages, floor=1e-4), advantages)


def test_declarations_and_options():
    assert controller is StdFloor
    assert not StdFloor.uses_loss_hook
    assert StdFloor().scope is None
    for floor in (0.0, -1.0, float("inf"), NAN):
        with pytest.raises(ValueError, match="floor must be > 0"):
            StdFloor(floor=floor)
