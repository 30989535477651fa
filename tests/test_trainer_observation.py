"""What the trainer observes beside TRL's metrics (probe, logged windows, dynamics), and that it only observes."""

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from rounding import log_prob_gap, mean_gap
from tiny_model import digits, parameters, prompts, same, tiny_model, trainer
from trl import GRPOTrainer
from window_runs import fixed_rollout

from entrl.controllers.hooks import Controller, StepFeedback
from entrl.controllers.kl_cov import KLCov
from entrl.maths.signals import entropy_from_logits
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.grpo.window_log import load_step, logged_steps

OBSERVE = {"probe_every": 2, "probe_rows": 4, "log_windows": [0, 3], "log_window_state": True, "log_diversity": True}
TOKENS = 20  # of a row at most: prompt and completion
UPDATES = {"steps_per_generation": 4, "gradient_accumulation_steps": 2}


def logs(run: Any) -> list[dict[str, float]]:
    return [e for e in run.state.log_history if "loss" in e]


def entropies_now(run: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, width: int) -> torch.Tensor:
    """Straight from the model, without the trainer's pass."""
    with torch.no_grad():
        logits = run.model(input_ids=ids_BT, attention_mask=mask_BT).logits
    return entropy_from_logits(logits[:, -width - 1 : -1], temperature=1.0)


@pytest.mark.parametrize("schedule", [{}, UPDATES], ids=["on_policy", "several_updates"])
def test_observing_changes_no_parameter(tmp_path, schedule):
    stock = trainer(tmp_path, cls=GRPOTrainer, plain=True, **schedule)
    stock.train()  # before the next is built, which seeds the random state
    observed = trainer(tmp_path, cls=EntropyGRPOTrainer, **OBSERVE, **schedule)
    observed.train()
    assert same(parameters(stock), parameters(observed))
    assert logged_steps(observed.args.output_dir) == [0, 3], "nothing was observed, the comparison would be empty"


def test_observing_can_be_switched_off(tmp_path):
    run = trainer(tmp_path, log_dynamics=False, log_diversity=False, **UPDATES)
    run.train()
    names = {k for e in logs(run) for k in e}
    assert not [n for n in names if n.startswith(("dynamics/", "diversity/", "probe/", "window/"))]
    assert set(run.counters.rows) == {"score", "loss"}


def test_the_probe_scores_the_same_rows_and_is_counted(tmp_path):
    run = trainer(tmp_path, probe_every=2, probe_rows=4, max_steps=5, **UPDATES)
    seen = []
    original = run._observation.probe.sums
    run._observation.probe.sums = lambda entropies: seen.append(run._observation.probe.sequences) or original(entropies)
    run.train()
    rows = [e for e in logs(run) if "probe/entropy" in e]
    assert [e["step"] for e in rows] == [1, 3, 5]  # before the steps 0, 2 and 4
    assert rows[0]["probe/within"] == rows[0]["probe/occupancy"] == 0
    assert run.counters.rows["probe"] == 3 * 4
    assert all(s is seen[0] for s in seen)
    start = rows[0]
    for e in rows:
        change = e["policy_entropy/token_mean"] - start["policy_entropy/token_mean"]
        assert e["probe/within"] == pytest.approx(e["probe/entropy"] - start["probe/entropy"])
        assert e["probe/within"] + e["probe/occupancy"] == pytest.approx(change)
    assert abs(rows[-1]["probe/within"]) > 1e-4, "the policy did not move, so nothing was shown"


def test_the_probe_is_the_models_own_entropy(tmp_path):
    run = trainer(tmp_path, probe_every=1, probe_rows=3, max_steps=1)
    ids, mask, width = [], [], []

    def note(rollout):
        run._observation.probe.sequences = rollout
        made = rollout.model_inputs(range(len(rollout)), pad_token_id=1, pad_to_multiple_of=None, device="cpu")
        for kept, value in zip((ids, mask, width), made, strict=True):
            kept.append(value)
        expected.append(entropies_now(run, *made))

    expected: list[torch.Tensor] = []
    run._observation.probe.take = note
    run.train()
    counted = mask[0][:, -width[0] :].bool()
    allowed = mean_gap(log_prob_gap(tiny_model(), TOKENS), int(counted.sum()))
    assert logs(run)[0]["probe/entropy"] == pytest.approx(float(expected[0][counted].mean()), abs=allowed)


def test_a_logged_window_holds_what_the_step_saw(tmp_path):
    run = trainer(tmp_path, controllers=[KLCov(fraction=0.05)], max_steps=4, **OBSERVE, **UPDATES)
    run.train()
    out = run.args.output_dir
    for step in (0, 3):
        window = load_step(out, step)[0]
        assert window.rows.mask_BT.shape == window.log_probs_BT.shape == window.entropies_BT.shape
        assert len(window.rows.row_id_B) == 8  # four rows, two micro-batches
        assert window.options.fresh is (step == 0)
        assert window.options.controllers[0]["name"] == "kl_cov"
        mask = window.rows.mask_BT
        mean = float(window.entropies_BT[mask].double().mean())
        assert logs(run)[step]["policy_entropy/token_mean"] == pytest.approx(mean, rel=1e-6)
        assert window.entropies_after_BT is not None
        change = float((window.entropies_after_BT - window.entropies_BT)[mask].double().mean())
        assert logs(run)[step]["window/entropy_change"] == pytest.approx(change)
        assert change != 0
    fresh, stale = (load_step(out, s)[0] for s in (0, 3))
    allowed = log_prob_gap(tiny_model(), TOKENS)
    moved = [(w.log_probs_BT - w.old_log_probs_BT)[w.rows.mask_BT].abs().max() for w in (fresh, stale)]
    assert moved[0] <= allowed < moved[1]


def test_the_last_windows_measurement_is_of_the_final_model(tmp_path):
    run = trainer(tmp_path, max_steps=4, log_windows=[3], **UPDATES)
    run.train()
    window = load_step(run.args.output_dir, 3)[0]
    ids = torch.cat([window.prompt_ids_BT, window.completion_ids_BT], dim=1)
    mask = torch.cat([window.prompt_mask_BT, window.completion_mask_BT], dim=1)
    found = entropies_now(run, ids, mask, window.completion_ids_BT.size(1))
    counted = window.rows.mask_BT
    assert window.entropies_after_BT is not None
    allowed = log_prob_gap(run.model, TOKENS)
    torch.testing.assert_close(window.entropies_after_BT[counted], found[counted], rtol=0, atol=allowed)


def test_the_state_beside_a_window_is_the_one_before_its_step(tmp_path):
    run = trainer(tmp_path, max_steps=1, log_windows=[0], log_window_state=True)
    before = {k: v.detach().clone() for k, v in run.model.named_parameters()}
    run.train()
    state = torch.load(f"{run.args.output_dir}/windows/step-000000/state.pt", weights_only=True)
    assert same(before, state["parameters"])
    assert {n for group in state["optimizer_names"] for n in group} == set(before)
    assert not same(before, dict(run.model.named_parameters())), "no step was taken"


@dataclasses.dataclass(kw_only=True)
class Listener(Controller):
    """Does nothing but listen."""

    name: ClassVar[str] = "listener"
    needs_feedback: ClassVar[bool] = True
    uses_loss_hook: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.heard: list[StepFeedback] = []

    def on_step(self, feedback: StepFeedback) -> dict[str, float]:
        self.heard.append(feedback)
        return {"count": float(len(self.heard))}

    def state_dict(self) -> dict[str, Any]:
        return {"heard": len(self.heard)}


@pytest.mark.parametrize("every", [1, 2])
def test_feedback_comes_after_every_step_however_often_is_logged(tmp_path, every):
    listener = Listener()
    run = trainer(tmp_path, controllers=[listener], max_steps=4, logging_steps=every, **UPDATES)
    run.train()
    assert [f.step for f in listener.heard] == [0, 1, 2, 3]
    assert all(f.entropy is not None and f.entropy == f.metrics["policy_entropy/token_mean"] for f in listener.heard)
    means = [sum(range(i - every + 1, i + 1)) / every for i in range(every, 5, every)]
    assert [e["listener/count"] for e in logs(run)] == pytest.approx(means)


def test_metrics_of_several_steps_are_averaged_when_they_are_logged_together(tmp_path):
    each = trainer(tmp_path / "a", max_steps=4, logging_steps=1, **UPDATES)
    each.train()
    pairs = trainer(tmp_path / "b", max_steps=4, logging_steps=2, **UPDATES)
    pairs.train()
    for i, e in enumerate(logs(pairs)):
        for name in ("policy_entropy/token_mean", "dynamics/cov_mean"):
            mean = (logs(each)[2 * i][name] + logs(each)[2 * i + 1][name]) / 2
            assert e[name] == pytest.approx(mean, rel=1e-6)
    assert pairs.counters.completion_tokens == each.counters.completion_tokens > 0


def test_dynamics_do_not_depend_on_the_cut_into_micro_batches(tmp_path):
    found = []
    for rows, slices in ((8, 1), (2, 4)):
        cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": slices}
        run = trainer(tmp_path, max_steps=1, max_completion_length=20, rollout_func=fixed_rollout, **cut)
        run.train()
        found.append(logs(run)[0])
    a, b = found
    names = [n for n in a if n.startswith(("dynamics/", "diversity/")) or n == "policy_entropy/think"]
    assert "dynamics/cov_top_2%" in names
    assert "diversity/edit_distance" in names
    for name in names:
        assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name


def test_evaluating_under_a_seed_leaves_training_alone(tmp_path):
    def run(name: str, **kwargs: Any) -> Any:
        made = trainer(tmp_path / name, max_steps=4, eval_dataset=prompts(4), **kwargs, **UPDATES)
        if kwargs:
            made.evaluation_seed = 7
        made.train()
        return made

    plain = run("a")
    evaluated = run("b", eval_strategy="steps", eval_steps=1)
    assert same(parameters(plain), parameters(evaluated))
    found = [e["eval_reward"] for e in evaluated.state.log_history if "eval_reward" in e]
    assert len(found) == 4
    assert not any(math.isnan(v) for v in found)


def test_a_run_resumed_between_two_updates_keeps_its_probe(tmp_path):
    settings = {"probe_every": 1, "probe_rows": 4, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", **settings, **UPDATES)
    whole.train()
    first = trainer(tmp_path / "part", **{**settings, "max_steps": 3}, lr_scheduler_type="constant", **UPDATES)
    first.train()
    again = trainer(tmp_path / "part", **settings, lr_scheduler_type="constant", **UPDATES)
    again.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-3")
    assert again._observation.probe.state_dict()["start"] == first._observation.probe.state_dict()["start"]
    assert again._observation.probe.state_dict()["sequences"] == first._observation.probe.state_dict()["sequences"]
    assert logs(again)[-1]["probe/within"] != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_every": -1}, "probe_every must be >= 0"),
        ({"probe_rows": 0}, "probe_rows must be >= 1"),
        ({"log_windows": [-1]}, "optimiser steps counted from 0"),
        ({"log_windows": [True]}, "optimiser steps counted from 0"),
        ({"log_window_state": True}, "set log_windows as well"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_rewards_are_not_touched_by_observation(tmp_path):
    run = trainer(tmp_path, digits, max_steps=1, **OBSERVE)
    run.train()
    assert "rewards/digits/mean" in logs(run)[0]
