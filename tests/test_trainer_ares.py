"""The ARES reward in real training: ranks, resume, what controllers see of it, and the whole method together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ares_runs import GROUP, MODES, ROWS, ares_run, enough_digits
from entrl_rewards.hierarchical_entropy import HierarchicalEntropy
from tiny_model import parameters, same, saved_model, trainer

from entrl.controllers.dynamic_kl import DynamicKL
from entrl.controllers.hooks import Controller, LossTerms

REPOSITORY = Path(__file__).parents[1]
SCHEDULE = {"per_device_train_batch_size": 8, "steps_per_generation": 2, "num_generations": 4, "max_steps": 6}


def ares(**options):
    return HierarchicalEntropy(window=2, correctness=enough_digits, **options)


def assert_same_numbers(found, expected):
    """The same dicts and lists; floats up to round-off of the entropies."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_numbers(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert_same_numbers(mine, theirs)
    else:
        assert found == (expected if expected is None else pytest.approx(expected, rel=1e-5, abs=1e-6))


@pytest.mark.multiprocess
def test_two_processes_equal_one_though_a_group_lies_on_both(tmp_path):
    assert ROWS // 2 % GROUP != 0
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    done = subprocess.run(
        [*launch, str(REPOSITORY / "tests/ares_runs.py"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
    for mode in MODES:
        expected = ares_run(tmp_path, mode=mode)
        assert len({*expected["buckets"]}) > 1, "one difficulty alone would show little"
        assert len(expected["metrics"]) == len(expected["states"]) == 3
        for rank in ranks:
            assert_same_numbers(rank[mode]["states"], expected["states"])
            assert_same_numbers(rank[mode]["rewards"], expected["rewards"])
        assert_same_numbers(ranks[0][mode]["metrics"], expected["metrics"])
        assert ranks[0][mode]["buckets"] + ranks[1][mode]["buckets"] == expected["buckets"]
        assert ranks[0][mode]["states"] == ranks[1][mode]["states"]  # to the bit


@pytest.mark.parametrize("stop", [2, 3])  # after a whole rollout, and between two updates of one
@pytest.mark.parametrize("options", [{}, {"mode": "code"}, {"mode": "paper", "lambda_mode": "dual_ascent"}])
def test_resuming_gives_buckets_thresholds_and_targets_exactly(tmp_path, stop, options):
    whole = trainer(tmp_path, ares(**options), save_strategy="steps", save_steps=1, **SCHEDULE)
    whole.train()
    resumed = trainer(tmp_path, ares(**options), **SCHEDULE)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    state = whole.reward_funcs[0].state_dict()
    assert state["threshold"]["value"] is not None
    assert resumed.reward_funcs[0].state_dict() == state
    assert resumed.reward_funcs[0].row_columns["difficulty"] == whole.reward_funcs[0].row_columns["difficulty"]
    assert same(parameters(whole), parameters(resumed))


class Sees(Controller):
    """Notes what a controller gets of the published columns."""

    name = "sees"

    def __init__(self):
        self.columns, self.masks = [], []

    @property
    def needs_columns(self):
        return ("difficulty", "high_entropy")

    def on_loss(self, rows, selection, view):
        self.columns.append({k: v.clone() for k, v in rows.columns.items()})
        self.masks.append(rows.mask_BT)
        return LossTerms()


def test_published_columns_follow_their_rows_through_trls_shuffle(tmp_path):
    seeing, reward = Sees(), ares(threshold=0.0)  # every whole window counts
    run = trainer(tmp_path, reward, controllers=[seeing], **SCHEDULE | {"max_steps": 2})
    run.train()
    assert sorted(seeing.columns[0]) == ["difficulty", "high_entropy"]
    found = torch.cat([c["difficulty"] for c in seeing.columns]).tolist()
    assert sorted(found) == sorted(reward.row_columns["difficulty"])
    for columns, mask_BT in zip(seeing.columns, seeing.masks, strict=True):
        inside_BT = columns["high_entropy"].bool()
        assert inside_BT.shape == mask_BT.shape
        # with a window of 2 after the token, all but the first token lie in some window; short rows have none
        for inside_T, mask_T in zip(inside_BT, mask_BT, strict=True):
            length = int(mask_T.sum())
            assert inside_T.tolist() == [length > 2 and 0 < t < length for t in range(len(inside_T))]


def test_the_whole_method_in_one_run(tmp_path):
    """Reward, dynamic KL with window relaxation, branching and filter together, and back from a checkpoint."""
    options = {"branch_roots": 2, "branch_window": 2, "filter_on": "reward", "filter_max_tries": 3, "beta": 0.05}
    options |= SCHEDULE | {"save_strategy": "steps", "save_steps": 2, "temperature": 1.5}
    model = saved_model(tmp_path / "model")

    def made():
        return trainer(
            tmp_path, ares(), controllers=[DynamicKL(window_factor=0.5)], model=model, **options
        )  # fmt: skip

    whole = made()
    whole.train()
    logged = [e for e in whole.state.log_history if "loss" in e]
    names = set().union(*logged)
    assert {"ares/threshold", "branch/generated_tokens", "filter/pass_rate", "dynamic_kl/multiplier_hard"} <= names
    resumed = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert same(parameters(whole), parameters(resumed))
    assert resumed.reward_funcs[0].state_dict() == whole.reward_funcs[0].state_dict()
    assert resumed.kept["branching"].state_dict() == whole.kept["branching"].state_dict()
    assert resumed.kept["filter"].state_dict() == whole.kept["filter"].state_dict()


def test_a_kl_controller_without_a_kl_term_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_kl sets the coefficient .* beta=0.0 .*set trainer.beta above 0"):
        trainer(tmp_path, ares(), controllers=[DynamicKL()])


def test_a_column_nobody_publishes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_kl needs difficulty of each row.*hierarchical_entropy"):
        trainer(tmp_path, controllers=[DynamicKL()], model=saved_model(tmp_path / "model"), beta=0.1)
