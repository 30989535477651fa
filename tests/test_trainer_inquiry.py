"""Real environments inside the trainer: however the batch is cut, and over two processes, a game is a game."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inquiry_runs import inquiry_run
from rounding import assert_same_gradients
from tiny_model import tiny_model

from entrl_lab.nursery.inquirer import InquirerConfig
from entrl_lab.nursery.inquirer.build import tokenizer_of

REPOSITORY = Path(__file__).parents[1]
METRICS = (
    "turns/reward",
    "information_gain/questions",
    "information_gain/realised",
    "information_gain/invalid",
    "reward",
)


def assert_same_steps(found: dict, expected: dict) -> None:
    model = tiny_model(vocabulary=tokenizer_of(InquirerConfig()))
    for a, b in zip(found["gradients"], expected["gradients"], strict=True):
        assert_same_gradients(a, b, model, tokens=400, rows=12)


def test_games_have_gains_costs_and_invalid_calls(tmp_path):
    """What the comparisons below compare is not empty."""
    found = inquiry_run(tmp_path, rows=12)
    first = found["metrics"][0]
    assert first["information_gain/questions"] > 1
    assert first["information_gain/realised"] > 0.5
    assert first["information_gain/invalid"] > 0
    assert 0 < first["information_gain/success"] < 1
    assert found["seen"][0]["advantages"].dim() == 2
    assert found["gradients"][0].norm() > 1e-3


@pytest.mark.parametrize("cut", [(6, 2), (4, 3)])
def test_micro_batches_do_not_matter(tmp_path, cut):
    rows, slices = cut
    assert_same_steps(inquiry_run(tmp_path, rows=12), inquiry_run(tmp_path, rows=rows, slices=slices))


@pytest.mark.multiprocess
def test_two_processes_play_the_games_of_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command = [*launch, str(REPOSITORY / "tests/inquiry_runs.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
    alone = inquiry_run(tmp_path, rows=12)
    one, row = alone["seen"][0], 0
    for rank in ranks:
        got = rank["seen"][0]
        assert got["rows"] == one["rows"][row : row + 6]
        for i in range(6):
            length = int(got["completion_mask"][i].sum())
            assert length == int(one["completion_mask"][row].sum())
            for name in ("completion_ids", "tool_mask"):
                assert torch.equal(got[name][i, :length], one[name][row, :length])
            torch.testing.assert_close(got["advantages"][i, :length], one["advantages"][row, :length])
            row += 1
    assert_same_steps(alone, ranks[0])
    for name in METRICS:
        assert alone["metrics"][0][name] == pytest.approx(ranks[0]["metrics"][0][name], rel=1e-5), name
