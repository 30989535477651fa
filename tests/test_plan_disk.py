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
    settings = {"save_strategy": "steps", "save_steps": 10, "save_total_limit": None, "save_only_model": False}
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
        ({"save_strategy": "no"}, None, 0),
        ({"save_strategy": "epoch", "max_steps": -1}, None, 3),
    ],
)
def test_checkpoints_that_lie_there_together(changes: dict[str, Any], steps: int | None, count: int | None):
    assert checkpoint_count(args(**changes), steps) == count


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
