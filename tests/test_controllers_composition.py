"""Which controllers act together, which are refused and why, off settings, TRL's own entropy options beside them."""

import math
import re

import pytest
import torch
from tiny_model import digits, options, parameters, same, saved_model, trainer
from trl import GRPOTrainer

from entrl.controllers.ce_gppo import CEGPPO
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.guard import EntropyGuard
from entrl.controllers.hooks import Controller
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.std_floor import StdFloor
from entrl.controllers.steer import Steer
from entrl.controllers.w_reinforce import WReinforce
from entrl.trainers.refusals.checks import check_schedule

STALE = {"steps_per_generation": 2}  # two updates per rollout


def problems(folder, controllers, **kwargs):
    return check_schedule(options(folder, **(STALE | kwargs)), controllers, [digits], 1)


REFUSED = {
    "two_weights": ([CWGRPO(), Steer()], {}, "cw_grpo and steer cannot be combined: .* product of two weights"),
    "clip_cov_and_a_weight": ([ClipCov(), CWGRPO()], {}, "clip_cov and cw_grpo cannot be combined"),
    "three_weights": ([ClipCov(), CWGRPO(), Steer()], {}, "clip_cov and cw_grpo and steer cannot be combined"),
    "two_advantages": ([StdFloor(), WReinforce()], {}, "std_floor and w_reinforce cannot be combined: both replace"),
    "behind_a_guard": (
        [EntropyGuard(controller=CWGRPO(), knob="width"), Steer()],
        {},
        "cw_grpo and steer cannot be combined",
    ),
    "restored_and_weighted": ([CEGPPO(), Steer()], {}, "ce_gppo and steer cannot be combined: whether the gradient"),
    "restored_and_zeroed": ([ClipCov(), CEGPPO()], {}, "ce_gppo and clip_cov cannot be combined: whether the gradient"),
    "restored_without_a_clip": ([CEGPPO(), KLCov()], {}, "below 1 - eps_low .* kl_cov has eps_low=inf"),
    "restored_without_an_upper_clip": ([CEGPPO(), KLCov(clip_low=0.2)], {}, "but kl_cov does not clip there"),
    "restored_guarded_without_a_clip": (
        [EntropyGuard(controller=CEGPPO(), knob="beta_low"), KLCov()],
        {},
        "kl_cov has eps_low=inf",
    ),
    "restored_below_zero": ([CEGPPO()], {"epsilon": 1.0}, "the trainer has eps_low=1 and no ratio is below 0"),
    "restored_where_delta_acts": ([CEGPPO()], {"epsilon_high": 0.28, "delta": 1.2}, "delta=1.2 already replaces"),
    "restored_on_policy": ([CEGPPO()], {"steps_per_generation": 1}, "ce_gppo does nothing on a fully on-policy"),
    "restored_cispo": ([CEGPPO()], {"loss_type": "cispo"}, "ce_gppo is not defined for loss_type='cispo'"),
    "weights_of_sequences": (
        [Steer()],
        {"importance_sampling_level": "sequence"},
        "steer weighs single tokens, which has no meaning",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(tmp_path, case):
    controllers, kwargs, message = REFUSED[case]
    found = problems(tmp_path, controllers, **kwargs)
    assert any(re.search(message, problem) for problem in found), found


ALLOWED = {
    "weight_and_penalty": ([CWGRPO(), KLCov()], {}),
    "weight_and_advantage": ([Steer(), WReinforce()], {}),
    "floor_and_weight": ([StdFloor(), CWGRPO()], {}),
    "penalty_with_a_clip_and_restored": ([KLCov(clip_low=0.2, clip_high=0.28), CEGPPO()], {}),
    "half_clipped_and_half_restored": ([KLCov(clip_low=0.2), CEGPPO(beta_high=0.0)], {}),
    "restored_and_off": ([KLCov(), CEGPPO(beta_low=0.0, beta_high=0.0)], {}),
    "published_gppo": ([CEGPPO(beta_low=1.0)], {"epsilon_high": 0.28, "delta": 3.0}),
    "own_advantages_any_loss": ([WReinforce()], {"loss_type": "cispo", "beta": 0.1, "steps_per_generation": 1}),
    "all_roles": ([WReinforce(), CWGRPO(), KLCov(clip_low=0.2, clip_high=0.2)], {}),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(tmp_path, case):
    controllers, kwargs = ALLOWED[case]
    assert problems(tmp_path, controllers, **kwargs) == []


def test_a_class_that_states_no_role_is_not_judged(tmp_path):
    class Watching(Controller):
        name = "watching"

    class Weighing(Controller):
        name = "weighing"
        role = "weight"

    assert problems(tmp_path, [CWGRPO(), Watching()]) == []
    assert "cw_grpo and weighing cannot be combined" in problems(tmp_path, [CWGRPO(), Weighing()])[0]


OFF = {
    "cw_grpo": CWGRPO(width=math.inf),
    "steer": Steer(w_min=1.0),
    "steer_linear": Steer(w_min=1.0, mapping="linear"),
    "steer_published": Steer(w_min=1.0, scope="micro_batch"),
    "ce_gppo": CEGPPO(beta_low=0.0, beta_high=0.0),
}
SCHEDULE = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 2}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    run = trainer(folder, cls=GRPOTrainer, plain=True, **SCHEDULE)
    before = parameters(run)
    run.train()
    assert not same(before, parameters(run))
    return parameters(run)


@pytest.mark.parametrize("name", OFF)
def test_off_is_stock_trl_bit_for_bit(tmp_path, stock, name):
    run = trainer(tmp_path, controllers=[OFF[name]], **SCHEDULE)
    run.train()
    assert same(parameters(run), stock)


@pytest.mark.parametrize(
    "acting", [CWGRPO(), Steer(w_min=0.1), CEGPPO(), WReinforce(threshold=1.5)], ids=lambda c: c.name
)
def test_on_is_not_stock_trl(tmp_path, stock, acting):
    run = trainer(tmp_path, controllers=[acting], **SCHEDULE)
    run.train()
    assert not same(parameters(run), stock)


# TRL's own: clip-higher, entropy bonus, its adaptive coefficient, gradients of high-entropy tokens only.
TRLS_OWN = {
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_target": 10.0,  # far above: the coefficient must rise
    "top_entropy_quantile": 0.5,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
}


@pytest.mark.parametrize(
    "acting",
    [
        ClipCov(fraction=0.05, lower=0.01, upper=50.0, clip_low=0.2, clip_high=0.28),
        KLCov(fraction=0.05, clip_low=0.2, clip_high=0.28),
        CWGRPO(),
        Steer(),
        CEGPPO(),
        WReinforce(threshold=1.5),
    ],
    ids=lambda c: c.name,
)
def test_trls_own_entropy_options_work_beside_a_controller(tmp_path, acting):
    run = trainer(tmp_path, controllers=[acting], max_steps=2, **STALE, **TRLS_OWN)
    before = parameters(run)
    run.train()
    logged = [e for e in run.state.log_history if "loss" in e]
    assert [e["entropy_coef"] for e in logged] == pytest.approx([0.015, 0.02])
    assert (run.epsilon_low, run.epsilon_high) == (0.2, 0.28)
    assert not same(before, parameters(run))
    assert all(p.isfinite().all() for p in parameters(run).values())
    if acting.uses_loss_hook:
        assert any(k.startswith(f"{acting.name}/") for k in logged[-1])


@pytest.mark.parametrize(
    ("acting", "loss_type"),
    [(CWGRPO(scope="exact"), "grpo"), (Steer(scope="exact"), "dr_grpo"), (Steer(scope="micro_batch"), "bnpo")],
)
def test_every_scope_and_divisor_trains(tmp_path, acting, loss_type):
    run = trainer(tmp_path, controllers=[acting], max_steps=2, loss_type=loss_type, learning_rate=1e-3, **STALE)
    run.train()
    means = [e[f"{acting.name}/weight_mean"] for e in run.state.log_history if "loss" in e]
    assert len(means) == 2
    if acting.name == "cw_grpo":  # `exact` scores the policy the loss pass has, so the mean weight is 1 in every step
        assert means == pytest.approx([1.0, 1.0], abs=1e-4)
    else:
        assert all(0.8 < m < 1 for m in means)


def test_penalty_and_restored_gradient_add(tmp_path):
    """KL-Cov with a clip and CE-GPPO: the model is saved where both ran, and both report."""
    controllers = [KLCov(fraction=0.05, clip_low=0.01, clip_high=0.01), CEGPPO()]
    run = trainer(tmp_path, controllers=controllers, model=saved_model(tmp_path / "m"), max_steps=2, **STALE)
    run.train()
    last = [e for e in run.state.log_history if "loss" in e][-1]
    assert last["ce_gppo/outside"] > 0
    assert last["kl_cov/selected"] > 0
    assert all(torch.isfinite(p).all() for p in parameters(run).values())
