"""Controllers inside real training runs: with adapters, tools, truncation, chat prompts, evaluation, each other."""

import math

import pytest
import torch
from entrl_rewards.pear import Pear
from peft import LoraConfig
from test_trainer_signals import env_rollout
from tiny_model import digits, parameters, prompts, same, saved_model, trainer
from trl import GRPOTrainer

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.hooks import Controller, LossTerms
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.std_floor import StdFloor

SETTINGS = {
    "plain": {},
    "lora": {"peft_config": LoraConfig(r=4, target_modules="all-linear")},
    "accumulation": {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "iterations": {"num_iterations": 2, "steps_per_generation": 1},
    "masked_truncation": {"mask_truncated_completions": True, "max_completion_length": 160},
    "chat": {"train_dataset": prompts(conversational=True)},
    "tools": {"rollout_func": env_rollout},
    "reference": {"beta": 0.1},
    "loss_grpo": {"loss_type": "grpo"},
    "loss_bnpo": {"loss_type": "bnpo"},
    "loss_dr_grpo": {"loss_type": "dr_grpo"},
    "high_entropy_tokens": {"top_entropy_quantile": 0.5},
    "off_policy_mask": {"off_policy_mask_threshold": 0.5},
}


def metrics_of(run, prefix):
    return [{k: v for k, v in e.items() if k.startswith(prefix)} for e in run.state.log_history if "loss" in e]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [ClipCov, KLCov])
def test_controllers_act_in_every_setting(tmp_path, kind, setting):
    kwargs = {"steps_per_generation": 2, "max_steps": 4, "learning_rate": 1e-3} | SETTINGS[setting]
    extra = {"lower": 0.01, "upper": 50.0} if kind is ClipCov else {}
    run = trainer(
        tmp_path, digits, controllers=[kind(fraction=0.05, **extra)], model=saved_model(tmp_path / "m"), **kwargs
    )
    run.train()
    logged = metrics_of(run, kind.name)
    assert len(logged) == 4
    assert sum(m[f"{kind.name}/selected"] for m in logged) > 0
    for metrics in logged:
        assert all(math.isfinite(v) for v in metrics.values() if v is not None)
    assert all(p.isfinite().all() for p in parameters(run).values())


@pytest.mark.parametrize("kind", [ClipCov, KLCov])
def test_tool_tokens_are_never_selected(tmp_path, kind):
    chosen = []

    class Watched(kind):
        def on_loss(self, rows, selection, view):
            terms = super().on_loss(rows, selection, view)
            acted = terms.weight_BT == 0 if terms.weight_BT is not None else terms.penalty_BT.detach() != 0
            chosen.append((acted & ~rows.mask_BT).sum().item())
            assert (~rows.mask_BT).any(), "no tool tokens, nothing is shown"
            return terms

    Watched.name = kind.name
    extra = {"lower": 0.01, "upper": 50.0} if kind is ClipCov else {}
    controller = Watched(fraction=0.05, **extra)
    trainer(tmp_path, controllers=[controller], steps_per_generation=2, rollout_func=env_rollout).train()
    assert sum(chosen) == 0


def test_evaluation_is_trls_own(tmp_path):
    data = prompts().select(range(4))
    losses = []
    for controllers, cls in (([ClipCov(fraction=0.05, lower=0.01)], None), ((), GRPOTrainer)):
        kwargs = {"cls": cls, "plain": True, "epsilon": 1.0} if cls else {}
        run = trainer(tmp_path, controllers=controllers, eval_dataset=data, max_steps=1, **kwargs)
        torch.manual_seed(5)
        losses.append(run.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_entropy_metrics_agree_with_trls_and_with_their_definitions(tmp_path):
    seen = []

    class Watch(Controller):
        name = "watch"

        def on_loss(self, rows, selection, view):
            seen.append((view.entropies_BT.clone(), rows.mask_BT.clone()))
            return LossTerms()

    run = trainer(tmp_path, controllers=[Watch()], max_steps=1, gradient_accumulation_steps=2, max_completion_length=64)
    run.train()
    logged = run.state.log_history[0]
    tokens, responses = [], []
    for entropies, mask in seen:
        for row, keep in zip(entropies, mask, strict=True):
            tokens += row[keep].tolist()
            responses.append(float(row[keep].mean()))
    assert logged["policy_entropy/token_mean"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-5)
    assert logged["policy_entropy/response_mean"] == pytest.approx(sum(responses) / len(responses), rel=1e-5)
    assert logged["policy_entropy/token_mean"] != logged["policy_entropy/response_mean"]


def test_std_floor_scales_advantages_before_the_loss(tmp_path):
    """A floor of 10 divides centred rewards by 10, where TRL divides by the group's own standard deviation."""
    caught = {}

    class Catch(Controller):
        name = "catch"

        def on_rollout(self, rewards_N, groups_N, advantages_N):
            caught.setdefault("rewards", rewards_N.clone())
            caught.setdefault("advantages", advantages_N.clone())

    trainer(tmp_path, controllers=[StdFloor(floor=10.0), Catch()], max_steps=1, steps_per_generation=2).train()
    rewards = caught["rewards"].view(-1, 4)
    expected = (rewards - rewards.mean(1, keepdim=True)) / 10.0
    torch.testing.assert_close(caught["advantages"].view(-1, 4), expected, rtol=1e-5, atol=1e-6)


def test_a_controller_that_wants_nothing_changes_nothing(tmp_path):
    runs = []
    for controllers in ((), [Controller()]):
        run = trainer(tmp_path, controllers=controllers, steps_per_generation=2)
        run.train()
        runs.append(parameters(run))
    assert same(*runs)


def test_pear_with_kl_cov(tmp_path):
    # floor=None: a random model thinks with more than a nat, where the default floor makes every right answer 0
    reward = Pear(floor=None, correctness=lambda completions, **_: [1.0, 0.0] * (len(completions) // 2))
    run = trainer(tmp_path, reward, controllers=[KLCov(fraction=0.05)], steps_per_generation=2, scale_rewards="batch")
    before = parameters(run)
    run.train()
    assert not same(before, parameters(run))
    first = run.state.log_history[0]
    assert first["pear/h_think"] > 0
    assert first["pear/missing_close"] == pytest.approx(1.0)


def test_groups_without_spread_are_counted_per_group_whatever_scales_the_rewards(tmp_path):
    def half(completions, group_index, **_):
        return [float(g) if g == 0 else float(i) for i, g in enumerate(group_index)]

    run = trainer(tmp_path, half, max_steps=1, gradient_accumulation_steps=2, scale_rewards="batch")
    run.train()
    assert run.state.log_history[0]["groups/without_spread"] == 0.5  # the first of two groups got 0.0 throughout


class Watching(Controller):
    """Does nothing, and so lets a second controller's effect be seen."""

    name = "watching"


def test_two_controllers_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two controllers are called kl_cov"):
        trainer(tmp_path, controllers=[KLCov(), KLCov(fraction=0.01)], steps_per_generation=2)


def test_scopes_may_be_mixed(tmp_path):
    clip = ClipCov(scope="micro_batch", fraction=0.05, lower=0.01, clip_low=0.5, clip_high=0.5)
    kl = KLCov(fraction=0.05, clip_low=0.5, clip_high=0.5)
    run = trainer(tmp_path, controllers=[clip, kl, Watching()], steps_per_generation=2)
    run.train()
    last = run.state.log_history[1]
    assert {"clip_cov/selected", "kl_cov/selected", "kl_cov/cov_mean"} <= last.keys()


def test_dropout_is_refused_where_scores_matter(tmp_path):
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    with pytest.raises(ValueError, match=r"dropout is active in .*lora_dropout: 0"):
        trainer(tmp_path, controllers=[ClipCov()], peft_config=adapter)
    trainer(tmp_path, peft_config=adapter)  # stock behaviour is left alone


def test_a_std_floor_without_group_scaling_is_refused(tmp_path):
    with pytest.raises(ValueError, match="std_floor is defined for scale_rewards=group, not none"):
        trainer(tmp_path, controllers=[StdFloor()], scale_rewards="none")


def test_evaluation_is_on_no_x_axis(tmp_path):
    run = trainer(tmp_path, controllers=[ClipCov()], eval_dataset=prompts().select(range(4)), max_steps=1)
    run.train()
    passes, tokens = run.counters.forward_passes, run.counters.completion_tokens
    run.evaluate()
    assert (run.counters.forward_passes, run.counters.completion_tokens) == (passes, tokens)
    assert run.counters.rows["evaluation"] > 0
    assert run.counters.seconds == run.counters.seconds, "the clock runs on"
