"""Sharded launches, where one process can look: what is refused, and models that are loaded whole all the same.

That sharded runs train, evaluate and save is in test_launch_train.py (ZeRO-3); FSDP2 needs GPUs and was not run.
"""

import contextlib
import os
from types import SimpleNamespace

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers.integrations import deepspeed

from entrl.models.whole import RAM_EFFICIENT, whole_models
from entrl.trainers.refusals.surroundings import unsaved_weights


def fsdp(version: int, kind: str) -> SimpleNamespace:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type=kind)
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))


def zero(stage: int, **options: bool) -> SimpleNamespace:
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage, **options}})
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))


def test_whole_models_are_saved_or_the_launch_is_refused():
    assert unsaved_weights(SimpleNamespace(state=SimpleNamespace())) is None
    assert unsaved_weights(fsdp(2, "FULL_STATE_DICT")) is None
    assert "SHARDED_STATE_DICT saves no whole model" in str(unsaved_weights(fsdp(2, "SHARDED_STATE_DICT")))
    assert "set fsdp_version: 2" in str(unsaved_weights(fsdp(1, "FULL_STATE_DICT")))
    assert unsaved_weights(zero(3, stage3_gather_16bit_weights_on_model_save=True)) is None
    assert unsaved_weights(zero(2)) is None
    assert "set zero3_save_16bit_model: true" in str(unsaved_weights(zero(3)))


class Zero3:
    """What accelerate leaves with transformers for the time of a run."""

    def is_zero3(self) -> bool:
        return True


def test_inside_models_are_whole_and_outside_they_are_divided_as_before(monkeypatch: pytest.MonkeyPatch):
    config = Zero3()
    monkeypatch.setenv(RAM_EFFICIENT, "true")
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with contextlib.suppress(KeyError), whole_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            assert RAM_EFFICIENT not in os.environ  # transformers would give all ranks but one no weights
            raise KeyError
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ[RAM_EFFICIENT] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()
    with whole_models():
        pass
    assert not deepspeed.is_deepspeed_zero3_enabled()
