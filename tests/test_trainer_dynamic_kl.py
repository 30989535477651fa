"""Dynamic KL inside real training runs: TRL's own loss where it is off or uniform, ranks, checkpoints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kl_runs import CUTS, KINDS, Publishes, kl_run
from rounding import gradient_gap
from tiny_model import parameters, same, saved_model, tiny_model, trainer
from trl import GRPOTrainer
from window_runs import ROWS

from entrl.controllers.dynamic_kl import DynamicKL

REPOSITORY = Path(__file__).parents[1]
TOKENS = 26  # of a row at most: prompt and completion
SEVERAL = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 4}
SETTINGS = {
    "grpo": {"loss_type": "grpo"},
    "uncorrected": {"loss_type": "grpo", "use_bias_correction_kl": False},
    "dapo": {"loss_type": "dapo", "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "masks": {"top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.5},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"))


def stock(folder, model, **options):
    run = trainer(folder, Publishes(), cls=GRPOTrainer, plain=True, model=model, **SEVERAL | options)
    run.train()
    return parameters(run)


@pytest.mark.parametrize("setting", SETTINGS)
def test_with_every_coefficient_1_it_is_trls_loss_bit_for_bit(tmp_path, model, setting):
    off = DynamicKL(rule="fixed", window_factor=1.0)
    run = trainer(tmp_path, Publishes(), controllers=[off], model=model, beta=0.5, **SEVERAL | SETTINGS[setting])
    run.train()
    assert same(parameters(run), stock(tmp_path, model, beta=0.5, **SETTINGS[setting]))
    kls = [e["dynamic_kl/kl_medium"] for e in run.state.log_history if "dynamic_kl/kl_medium" in e]
    assert max(kls) > 1e-3, "the policy never left the reference, nothing was shown"


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_strength_of_2_is_twice_trls_beta(tmp_path, model, setting):
    options = {"optim": "sgd", "learning_rate": 0.1} | SETTINGS[setting]
    twice = DynamicKL(rule="fixed", strength=2.0)
    run = trainer(tmp_path, Publishes(), controllers=[twice], model=model, beta=0.5, **SEVERAL | options)
    run.train()
    found, expected = parameters(run), stock(tmp_path, model, beta=1.0, **options)
    other, start = stock(tmp_path, model, beta=0.5, **options), parameters(trainer(tmp_path, model=model))
    moved = max((expected[k] - start[k]).abs().max() for k in start)
    apart = max((expected[k] - other[k]).abs().max() for k in start)
    gap = max((expected[k] - found[k]).abs().max() for k in start)
    assert apart > 1e-3 * moved, "beta made no difference, nothing was shown"
    assert gap < 1e-5 * moved + 1e-7


@pytest.mark.parametrize("stop", [2, 3], ids=["inside_a_rollout", "later"])
def test_resuming_equals_not_stopping(tmp_path, model, stop):
    schedule = SEVERAL | {
        "max_steps": 6, "save_strategy": "steps", "save_steps": stop, "lr_scheduler_type": "constant", "beta": 0.5,
    }  # fmt: skip

    def run():
        controller = DynamicKL(rule="multiplicative", window_factor=0.5, interval=2)
        return trainer(tmp_path, Publishes(), controllers=[controller], model=model, **schedule)

    whole = run()
    whole.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    assert same(parameters(whole), parameters(resumed))
    assert whole.controllers[0].state_dict() == resumed.controllers[0].state_dict()
    assert whole.controllers[0].multipliers != [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_micro_batch_size_changes_nothing(tmp_path, model, kind):
    first, *others = CUTS[1]
    expected = kl_run(tmp_path, model, rows=first[0], slices=first[1], kind=kind)
    assert expected["multipliers"] != [1, 1, 1], "nothing moved, equality would show nothing"
    assert expected["multipliers"][0] != expected["multipliers"][1]
    for rows, slices in others:
        assert_same_steps(kl_run(tmp_path, model, rows=rows, slices=slices, kind=kind), expected)


def assert_same_steps(found, expected):
    for mine, theirs in zip(found["gradients"], expected["gradients"], strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < gradient_gap(tiny_model(), TOKENS, ROWS)
    assert found["multipliers"] == pytest.approx(expected["multipliers"], rel=1e-5)
    for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-9)


@pytest.mark.multiprocess
def test_two_processes_equal_one(tmp_path, model):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    done = subprocess.run(
        [*launch, str(REPOSITORY / "tests/kl_runs.py"), str(tmp_path), model],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
    for kind in KINDS:
        expected = kl_run(tmp_path, model, rows=16, slices=1, kind=kind)
        for rows, slices in CUTS[2]:
            found = [rank[rows, slices, kind] for rank in ranks]
            assert_same_steps(found[0], expected)
            assert found[0]["multipliers"] == found[1]["multipliers"]


def test_a_missing_column_is_refused_at_the_start(tmp_path, model):
    with pytest.raises(ValueError, match="difficulty"):
        trainer(tmp_path, controllers=[DynamicKL()], model=model, beta=0.5)
