"""entrl.runs.plan.disk by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entrl.models.shape import ModelShape
from entrl.runs.plan.disk import checkpoint_count, disk_needed, free_disk
from entrl.runs.plan.memory import Training

SMALL = ModelShape(
    parameters=1000, trained=1000, vocabulary=10, layers=1, hidden=4, heads=1, query=4, key_value=4, intermediate=8
)


def args(**changes: Any) -> Any:
    settings = {
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": None,
        "save_only_model": False,
        "load_best_model_at_end": False,
        "eval_strategy": "no",
        "eval_steps": None,
        "eval_delay": 0,
        "logging_steps": 5,
    }
    return SimpleNamespace(**{**settings, "max_steps": 100, "num_train_epochs": 3.0, **changes})


def run(**changes: Any) -> Training:
    settings = {
        "dtype": "float32",
        "autocast": False,
        "lora": False,
        "optimiser": "adamw_torch",
        "rows": 1,
        "tokens": 1,
    }
    return Training(**{**settings, "checkpointing": False, "processes": 1, "sharding": "none", **changes})


@pytest.mark.parametrize(
    ("changes", "steps", "count"),
    [
        ({}, 100, 10),
        ({}, 95, 10),  # the last step is saved as well
        ({"save_steps": 0.25}, 100, 4),  # a share of all steps
        ({"save_total_limit": 2}, 100, 3),  # the newest is whole before the oldest goes
        ({"save_total_limit": 2}, 15, 2),
        ({"save_total_limit": 2}, None, 3),
        ({}, None, None),
        ({"save_total_limit": 1}, 100, 2),
        ({"save_total_limit": 1, "load_best_model_at_end": True}, 100, 3),  # the best, the newest, and the one before
        ({"save_total_limit": 2, "load_best_model_at_end": True}, 100, 3),  # the best is one of the two
        ({"save_strategy": "no"}, None, 0),
        ({"save_strategy": "epoch", "max_steps": -1}, None, 3),
    ],
)
def test_checkpoints_that_lie_there_together(changes: dict[str, Any], steps: int | None, count: int | None):
    assert checkpoint_count(args(**changes), steps) == count


@pytest.mark.parametrize(
    ("changes", "at", "steps", "count"),
    [
        ({}, [10, 20, 50], 100, 3),
        ({}, [10, 20, 500], 100, 2),
        ({}, [10, 20], None, 2),
        ({}, "early", 8, 8),
        ({"eval_strategy": "steps", "eval_steps": 30}, None, 100, 4),  # 30, 60, 90 and the last
        ({"eval_strategy": "steps", "eval_steps": 0.5}, None, 100, 2),
        ({"eval_strategy": "steps"}, None, 100, 20),  # as often as it logs
        ({"eval_strategy": "steps", "eval_steps": 30, "eval_delay": 50}, [30, 60], 100, 4),
        ({"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 10**9}, [30, 60], 100, 2),  # as eval.at sets them
        ({"eval_strategy": "steps", "eval_steps": 30}, None, None, None),
        ({"eval_strategy": "epoch", "max_steps": -1}, None, None, 3),
        ({"save_total_limit": 2}, [10, 20, 50, 60], 100, 3),
    ],
)
def test_best_saves_no_more_often_than_it_evaluates(changes: dict[str, Any], at: Any, steps: int | None, count: Any):
    assert checkpoint_count(args(save_strategy="best", **changes), steps, at) == count


def test_bytes_by_hand():
    # 3 checkpoints of 4,000 and 8,000 bytes, and the model
    assert disk_needed(SMALL, run(), args(), 3).size == 3 * 12_000 + 4_000
    assert disk_needed(SMALL, run(), args(save_only_model=True), 3).size == 3 * 4_000 + 4_000
    adapter = ModelShape(**{**vars(SMALL), "trained": 10})
    # the adapter alone, in float32
    assert disk_needed(adapter, run(dtype="bfloat16", lora=True), args(), 3).size == 3 * (40 + 80) + 40
    assert disk_needed(SMALL, run(), args(), 0).size == 4_000


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path):
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.1)
