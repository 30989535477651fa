"""The entropy guard in the trainer: when the knob moves, what is logged, and that a checkpoint keeps the loop."""

import pytest
from tiny_model import parameters, same, trainer

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.guard import Guard
from entrl.controllers.kl_cov import KLCov

# Two micro-batches a step, two steps a rollout, two walks over it: four updates per rollout.
SCHEDULE = {
    "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 8,
    "lr_scheduler_type": "constant",
}  # fmt: skip
# Acts from the fourth step on, whichever way entropy goes.
EAGER = {"start_steps": 3, "band": (0.999, 1.001), "smooth": 0.5, "rate": 0.3, "patience": 10**6}


class Watched(KLCov):
    """KL-Cov that notes the value of its knob at every call."""

    def __post_init__(self):
        super().__post_init__()
        self.calls = []

    def select(self, window):
        self.calls.append(("select", self.coef))
        return super().select(window)

    def on_loss(self, rows, selection, view):
        self.calls.append(("on_loss", self.coef))
        return super().on_loss(rows, selection, view)


def run(folder, controller, **options):
    return trainer(folder, controllers=[controller], **(SCHEDULE | options))


def logged(of, name):
    return [e[name] for e in of.state.log_history if name in e]


def test_the_knob_moves_between_optimiser_steps_only_and_the_log_tells(tmp_path):
    inner = Watched(fraction=0.05)
    of = run(tmp_path, Guard(controller=inner, knob="coef", **EAGER))
    of.train()
    kinds, coefs = zip(*inner.calls, strict=True)
    assert kinds == ("select", "on_loss", "on_loss") * 8
    per_step = [set(coefs[i : i + 3]) for i in range(0, 24, 3)]
    assert all(len(values) == 1 for values in per_step)
    used = [values.pop() for values in per_step]
    assert used[:4] == [1.0] * 4  # three steps to measure the start; the fourth is the first the guard answers
    assert len(set(used[4:])) > 1
    # What is logged at a step is the knob as it left the step's feedback, hence what the next step uses.
    assert logged(of, "kl_cov/guard_knob")[:-1] == used[1:]
    entropy = logged(of, "policy_entropy/token_mean")
    start = sum(entropy[:3]) / 3
    assert logged(of, "kl_cov/guard_entropy")[3] == pytest.approx(0.5 * start + 0.5 * entropy[3])
    assert len(logged(of, "kl_cov/guard_share")) == 6  # from the step that completes the start
    assert len(logged(of, "kl_cov/selected")) == 8  # the wrapped controller's own metrics stay


@pytest.mark.parametrize(
    ("make", "knob"), [(lambda: KLCov(fraction=0.05), "coef"), (lambda: ClipCov(fraction=0.05), "fraction")]
)
def test_a_guard_that_never_acts_equals_the_controller_alone(tmp_path, make, knob):
    alone = run(tmp_path, make())
    alone.train()
    guarded = run(tmp_path, Guard(controller=make(), knob=knob, band=(0.01, 99)))  # seeds itself when built
    guarded.train()
    assert same(parameters(alone), parameters(guarded))
    assert guarded.controllers[0].controller.options() == alone.controllers[0].options()


@pytest.mark.parametrize("stop", [2, 5], ids=["while_measuring_the_start", "while_acting"])
def test_resuming_equals_not_stopping(tmp_path, stop):
    def guarded():
        guard = Guard(controller=KLCov(fraction=0.05), knob="coef", **EAGER)
        return run(tmp_path, guard, save_strategy="steps", save_steps=stop)

    whole = guarded()
    whole.train()
    resumed = guarded()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    assert same(parameters(whole), parameters(resumed))
    assert whole.controllers[0].state_dict() == resumed.controllers[0].state_dict()
    path = {e["step"]: e["kl_cov/guard_knob"] for e in whole.state.log_history if "kl_cov/guard_knob" in e}
    again = {e["step"]: e["kl_cov/guard_knob"] for e in resumed.state.log_history if "kl_cov/guard_knob" in e}
    assert len(set(path.values())) > 3
    assert path == again


def test_refusals_of_the_wrapped_controller_hold_for_the_guard(tmp_path):
    with pytest.raises(ValueError, match="kl_cov does nothing on a fully on-policy schedule"):
        trainer(tmp_path, controllers=[Guard(controller=KLCov(), knob="coef")])


def test_an_alarm_stops_training(tmp_path):
    guard = Guard(controller=KLCov(fraction=0.05), knob="coef", start_entropy=100.0, patience=2, on_alarm="stop")
    of = run(tmp_path, guard)
    with pytest.raises(
        RuntimeError, match=r"entropy collapse at step 1: .*resume from a checkpoint saved before step 0"
    ):
        of.train()
    assert of.state.global_step == 1
