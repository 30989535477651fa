"""Scope `step` and `exact` act on the same tokens for every micro-batch size and for one or two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rounding import gradient_gap
from tiny_model import tiny_model
from window_runs import CUTS, ROWS, pairs, window_run

REPOSITORY = Path(__file__).parents[1]
TOKENS = 26  # of a row at most: prompt and completion
WHOLE_WINDOW = [(loss, c) for loss, c in pairs() if "micro_batch" not in c]


def relative_gap(a, b):
    return float((a - b).norm() / b.norm())


def assert_same_window(found, expected, acted):
    allowed = gradient_gap(tiny_model(), TOKENS, ROWS)
    for step in range(2):
        assert relative_gap(found["gradients"][step], expected["gradients"][step]) < allowed
    assert sorted(acted) == sorted(expected["acted"])
    for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        for key in theirs:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(("loss_type", "controller"), WHOLE_WINDOW)
def test_the_micro_batch_size_changes_nothing(tmp_path, loss_type, controller):
    first, *others = CUTS[1]
    kwargs = {"loss_type": loss_type, "controller": controller}
    expected = window_run(tmp_path, rows=first[0], slices=first[1], **kwargs)
    assert expected["acted"], "nothing was selected, equality would show nothing"
    for rows, slices in others:
        found = window_run(tmp_path, rows=rows, slices=slices, **kwargs)
        assert_same_window(found, expected, found["acted"])


def test_the_published_scope_does_depend_on_it(tmp_path):
    """The comparison can tell two selections apart: under `micro_batch` they differ."""
    kwargs = {"loss_type": "dapo", "controller": "kl_cov_micro_batch"}
    runs = [window_run(tmp_path, rows=r, slices=s, **kwargs) for r, s in CUTS[1][:3]]
    assert sorted(runs[0]["acted"]) != sorted(runs[2]["acted"])
    assert relative_gap(runs[2]["gradients"][1], runs[0]["gradients"][1]) > 1e-3


@pytest.mark.multiprocess
def test_two_processes_equal_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    done = subprocess.run(
        [*launch, str(REPOSITORY / "tests/window_runs.py"), str(tmp_path), "2"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
    for loss_type, controller in WHOLE_WINDOW:
        kwargs = {"loss_type": loss_type, "controller": controller}
        expected = window_run(tmp_path, rows=16, slices=1, **kwargs)
        for rows, slices in CUTS[2]:
            found = [r[rows, slices, loss_type, controller] for r in ranks]
            assert_same_window(found[0], expected, found[0]["acted"] + found[1]["acted"])
            assert torch.equal(found[0]["gradients"][1], found[1]["gradients"][1])
