"""Batch arithmetic, refusals at start, and the number of forward passes a schedule costs."""

import re

import pytest
from tiny_model import digits, prompts, tiny_model, trainer
from trl import GRPOTrainer

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.std_floor import StdFloor
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.refusals.schedule import describe_schedule
from entrl.trainers.seam import check_trl
from entrl_lab.nursery.tokenizer import character_tokenizer


def aware(completions, token_entropies, **_):
    return [float(h.mean()) for h in token_entropies]


class Grouped:
    __name__ = "grouped"
    needs_whole_groups = True

    def __call__(self, completions, **_):
        return digits(completions)


SCHEDULES = {
    "on_policy": {"gradient_accumulation_steps": 2},
    "two_updates": {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "eight_updates": {"gradient_accumulation_steps": 1, "steps_per_generation": 8},
    "two_iterations": {"gradient_accumulation_steps": 2, "num_iterations": 2},
}
REWARDS = {"plain": digits, "entropy": aware}
CONTROLLERS = {"none": None, "micro_batch": "micro_batch", "step": "step", "exact": "exact"}
# Passes over an optimiser step's rows that stock TRL does not run. On a fully on-policy schedule one pass serves the
# rewards and both scopes; elsewhere TRL's own pass does, and `exact` adds one for each later window of a rollout.
EXTRA = {
    ("on_policy", "plain", "none"): 0.0,
    ("on_policy", "plain", "micro_batch"): 0.0,
    ("on_policy", "plain", "step"): 1.0,
    ("on_policy", "plain", "exact"): 1.0,
    ("on_policy", "entropy", "none"): 1.0,
    ("on_policy", "entropy", "micro_batch"): 1.0,
    ("on_policy", "entropy", "step"): 1.0,
    ("on_policy", "entropy", "exact"): 1.0,
    **{
        (s, r, "exact"): x
        for s, x in (("two_updates", 0.5), ("two_iterations", 0.5), ("eight_updates", 0.875))
        for r in REWARDS
    },
    **{
        (s, r, c): 0.0
        for s in ("two_updates", "two_iterations", "eight_updates")
        for r in REWARDS
        for c in ("none", "micro_batch", "step")
    },
}


@pytest.mark.parametrize(("schedule", "reward", "scope"), sorted(EXTRA))
def test_forward_passes_are_counted_and_as_announced(tmp_path, schedule, reward, scope):
    controllers = [ClipCov(scope=scope, fraction=0.05)] if scope != "none" else []
    kwargs = SCHEDULES[schedule] | {"max_steps": 8 if schedule == "eight_updates" else 4}
    run = trainer(tmp_path, REWARDS[reward], controllers=controllers, learning_rate=1e-4, **kwargs)
    run.train()
    stock = trainer(tmp_path, learning_rate=1e-4, **kwargs)
    stock.train()
    extra = (run.counters.forward_passes - stock.counters.forward_passes) / run.state.global_step
    assert extra == pytest.approx(EXTRA[schedule, reward, scope])
    announced = describe_schedule(run.args, 1).extra_passes_per_step(
        signals_needed=reward == "entropy", scopes=[None if scope == "none" else scope]
    )
    assert announced == pytest.approx(extra)


def refusals(tmp_path, controllers=(), rewards=(digits,), world_size=1, **kwargs):
    run = trainer(tmp_path, **kwargs)
    return check_schedule(run.args, list(controllers), list(rewards), world_size)


def test_kl_cov_on_a_fully_on_policy_schedule_is_refused_with_the_settings_to_change(tmp_path):
    with pytest.raises(ValueError, match=r"kl_cov does nothing on a fully on-policy schedule.*steps_per_generation: 4"):
        trainer(tmp_path, controllers=[KLCov()], gradient_accumulation_steps=2)


def test_clip_cov_on_policy_is_accepted(tmp_path):
    assert refusals(tmp_path, [ClipCov()]) == []


@pytest.mark.parametrize(("steps", "accumulation"), [(2, 4), (3, 4), (4, 3)])
def test_windows_that_straddle_generations_are_refused_for_scope_step(tmp_path, steps, accumulation):
    schedule = {"steps_per_generation": steps, "gradient_accumulation_steps": accumulation}
    assert "straddles generations" in refusals(tmp_path, [ClipCov()], **schedule)[0]
    assert refusals(tmp_path, [ClipCov(scope="micro_batch")], **schedule) == []


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo", "luspo"])
@pytest.mark.parametrize("controller", [ClipCov(), KLCov()])
def test_losses_without_a_token_ratio_are_refused(tmp_path, loss_type, controller):
    problems = refusals(tmp_path, [controller], loss_type=loss_type, steps_per_generation=2)
    assert f"not defined for loss_type='{loss_type}'" in problems[0]
    assert "dapo" in problems[0]


def test_sequence_level_ratios_are_refused(tmp_path):
    problems = refusals(tmp_path, [ClipCov()], importance_sampling_level="sequence")
    assert "importance_sampling_level: token" in problems[0]


@pytest.mark.parametrize("given", [{"epsilon": 0.1}, {"epsilon_high": 0.28}, {"delta": 4.0}])
def test_a_clip_range_other_than_the_controllers_is_refused(tmp_path, given):
    assert "sets the ratio range itself" in refusals(tmp_path, [ClipCov()], **given)[0]


def test_the_clip_range_of_the_controller_is_set(tmp_path):
    assert (trainer(tmp_path).epsilon_low, trainer(tmp_path).epsilon_high) == (0.2, 0.2)
    run = trainer(tmp_path, controllers=[ClipCov()])
    assert (run.epsilon_low, run.epsilon_high) == (1.0, 1.0)
    run = trainer(tmp_path, controllers=[KLCov()], steps_per_generation=2)
    assert (run.epsilon_low, run.epsilon_high) == (float("inf"), float("inf"))
    agreed = trainer(tmp_path, controllers=[ClipCov(clip_low=0.3, clip_high=0.4)], epsilon=0.3, epsilon_high=0.4)
    assert agreed.epsilon_high == 0.4


def test_two_controllers_with_different_clip_ranges_are_refused(tmp_path):
    problems = refusals(tmp_path, [ClipCov(), KLCov()], steps_per_generation=2)
    assert any("cannot be combined" in p for p in problems)


def test_a_reward_that_compares_completions_needs_whole_groups_on_each_process(tmp_path):
    assert refusals(tmp_path, rewards=[Grouped()]) == []
    problems = refusals(tmp_path, rewards=[Grouped()], world_size=2, per_device_train_batch_size=6, num_generations=4,
                        steps_per_generation=2, gradient_accumulation_steps=2)  # fmt: skip
    assert problems == []  # 12 rows a process
    run = trainer(tmp_path, per_device_train_batch_size=4, num_generations=4)
    run.args.per_device_train_batch_size = 2
    assert "groups are split over processes" in check_schedule(run.args, [], [Grouped()], 2)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_p": 0.9},
        {"top_k": 20},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"generation_kwargs": {"top_p": 0.5}},
    ],
)
def test_truncating_samplers_are_refused_only_where_it_matters(tmp_path, sampling):
    assert "truncated distribution" in refusals(tmp_path, rewards=[aware], **sampling)[0]
    assert "truncated distribution" in refusals(tmp_path, [ClipCov()], **sampling)[0]
    assert refusals(tmp_path, **sampling) == []
    assert refusals(tmp_path, rewards=[aware], allow_truncated_sampling=True, **sampling) == []


def test_an_evaluation_that_splits_groups_is_refused_for_rewards_that_compare(tmp_path):
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": prompts().select(range(4))}
    assert refusals(tmp_path, rewards=[Grouped()], **evaluating) == []
    run = trainer(tmp_path, **evaluating)
    run.args.per_device_eval_batch_size = 2
    assert "splits groups of 4" in check_schedule(run.args, [], [Grouped()], 2)[0]
    assert check_schedule(run.args, [], [digits], 2) == []


def test_std_floor_works_with_any_loss(tmp_path):
    assert refusals(tmp_path, [StdFloor()], loss_type="cispo", importance_sampling_level="sequence") == []


def test_schedule_numbers():
    class Args:
        per_device_train_batch_size, gradient_accumulation_steps, steps_per_generation = 4, 2, 8
        num_iterations, num_generations, use_vllm, vllm_importance_sampling_correction = 2, 8, False, True

    schedule = describe_schedule(Args, 3)
    # 3 ranks x 4 rows x 8 micro-batches = 96 rows = 12 prompts; a step takes 3 x 4 x 2 = 24 rows;
    # a rollout lasts 8 x 2 = 16 micro-steps = 8 updates
    assert schedule.rows_per_rollout == 96
    assert schedule.prompts_per_rollout == 12
    assert schedule.rows_per_step == 24
    assert schedule.updates_per_rollout == 8
    assert not schedule.on_policy
    assert schedule.window_is_buffered
    assert schedule.whole_groups_per_rank


def test_a_world_size_or_backend_other_than_asked_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"world size 2 was asked for and 1 process\(es\) started"):
        trainer(tmp_path, expected_world_size=2)
    with pytest.raises(ValueError, match="backend 'gloo' was asked for"):
        trainer(tmp_path, expected_backend="gloo")


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    args = trainer(tmp_path).args  # their process group is settled before the launcher's variable is seen
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the launcher started 2 processes, but this one trains alone"):
        EntropyGRPOTrainer(tiny_model(), digits, args, train_dataset=prompts(), processing_class=character_tokenizer())


def test_fsdp_on_the_cpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for on the CPU"):
        trainer(tmp_path)


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="sample_completions must be >= 0"):
        trainer(tmp_path, sample_completions=-1)
    with pytest.raises(ValueError, match="expected_world_size must be >= 1"):
        trainer(tmp_path, expected_world_size=0)


def test_another_trl_is_refused_by_version_and_by_signature():
    check_trl("1.16.0", GRPOTrainer)
    with pytest.raises(ImportError, match=r"found TRL 1\.17\.0.*pip install 'trl>=1\.16,<1\.17'"):
        check_trl("1.17.0", GRPOTrainer)

    class Renamed(GRPOTrainer):
        def _compute_loss(self, model, batch):
            return super()._compute_loss(model, batch)

    with pytest.raises(ImportError, match="_compute_loss"):
        check_trl("1.16.2", Renamed)

    class Bare:
        pass

    with pytest.raises(ImportError, match=r"has no Bare\._generate"):
        check_trl("1.16.0", Bare)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_iterations": 0}, "num_iterations counts the passes over a rollout: at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 to count by num_train_epochs; got 0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs must be above 0, got 0"),
    ],
)
def test_a_run_without_a_step_is_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        trainer(tmp_path, **options)
