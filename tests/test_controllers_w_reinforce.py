"""W-REINFORCE, NSR, PSR: an advantage from the row's own reward."""

import math

import pytest
import torch
from tiny_model import digits, parameters, same, saved_model, trainer

from entrl.controllers.hooks import Controller
from entrl.controllers.w_reinforce import WReinforce, controller

NAN, INF = math.nan, math.inf


def official(reward, kind, weight):
    """What RLVR-Decomposed gives one response with a reward of 0 or 1."""
    if kind == "positive":
        return reward
    if kind == "negative":
        return reward - 1
    return reward * weight if reward == 1 else reward - 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("weighted", {}),
        ("weighted", {"weight_positive": 0.3}),
        ("negative", {"weight_positive": 0.0}),
        ("positive", {"weight_positive": 1.0, "weight_negative": 0.0}),
    ],
)
def test_slow_twin(kind, options):
    rewards = (torch.rand(24, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    got = WReinforce(**options).on_rollout(rewards, torch.arange(24) // 4, torch.randn(24))
    want = [official(float(r), kind, options.get("weight_positive", 0.1)) for r in rewards]
    assert got.tolist() == pytest.approx(want)
    assert got.dtype == torch.float32


def test_psr_and_nsr_sum_to_what_grpo_normalises():
    """Both together are 2 r - 1 of rewards 0 and 1; less its mean and over its deviation that is the advantage of GRPO.
    W-REINFORCE is NSR and a tenth of PSR."""
    rewards, groups = (torch.rand(24, generator=torch.Generator().manual_seed(1)) < 0.4).float(), torch.arange(24) // 6
    positive, negative, weighted = (
        WReinforce(weight_positive=p, weight_negative=n).on_rollout(rewards, groups, torch.zeros(24))
        for p, n in ((1.0, 0.0), (0.0, 1.0), (0.1, 1.0))
    )
    assert not (positive * negative).any()  # each row belongs to one of them
    assert weighted.tolist() == pytest.approx((negative + 0.1 * positive).tolist())
    total = (positive + negative).view(4, 6)
    grpo = (rewards.view(4, 6) - rewards.view(4, 6).mean(1, keepdim=True)) / rewards.view(4, 6).std(1, keepdim=True)
    mixed = rewards.view(4, 6).std(1) > 0
    assert mixed.sum() >= 2
    got = (total - total.mean(1, keepdim=True)) / total.std(1, keepdim=True)
    assert torch.allclose(got[mixed], grpo[mixed], atol=1e-6)


def test_edges():
    """At the threshold is right, unscored rows learn nothing, one row needs no group, the size of a reward is lost."""
    rewards = torch.tensor([0.5, 0.49999, NAN, -3.0, INF, -INF])
    got = WReinforce().on_rollout(rewards, torch.zeros(6, dtype=torch.long), torch.full((6,), 9.0))
    assert got.tolist() == pytest.approx([0.1, -1.0, 0.0, -1.0, 0.1, -1.0])
    assert WReinforce(threshold=2.0).on_rollout(torch.tensor([1.9]), torch.zeros(1), torch.zeros(1)).tolist() == [-1.0]
    everyone_wrong = WReinforce().on_rollout(torch.zeros(4), torch.zeros(4), torch.zeros(4))
    assert everyone_wrong.tolist() == [-1.0] * 4


class Catch(Controller):
    name = "catch"
    uses_loss_hook = False

    def on_rollout(self, rewards_N, groups_N, advantages_N):
        self.rewards, self.advantages = rewards_N.clone(), advantages_N.clone()


@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_it_trains_with_any_loss_on_its_own_advantages(tmp_path, loss_type):
    catch = Catch()
    acting = WReinforce(threshold=1.5)
    model = saved_model(tmp_path / "model")
    run = trainer(
        tmp_path, digits, controllers=[acting, catch], model=model, max_steps=1, loss_type=loss_type, beta=0.1
    )
    before = parameters(run)
    run.train()
    assert not same(before, parameters(run))
    want = torch.where(catch.rewards >= 1.5, 0.1, -1.0)
    assert torch.equal(catch.advantages, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_positive": -0.1}, "weight_positive must be a finite number >= 0, got -0.1"),
        ({"weight_negative": INF}, "weight_negative must be a finite number >= 0, got inf"),
        ({"weight_positive": 0.0, "weight_negative": 0.0}, "both 0, so nothing would be learnt"),
        ({"threshold": NAN}, "threshold must be finite"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        WReinforce(**options)


def test_face():
    assert controller is WReinforce
    assert WReinforce.role == "advantage"
    assert not WReinforce.uses_loss_hook
    assert dict(WReinforce.knobs) == {"weight_positive": -1}
