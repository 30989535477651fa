"""What TRL's own tests ask of `GRPOTrainer` without its constructor: our class gives the same answers.

Each case runs on stock TRL and on ours; objects are made with `__new__` (or are mocks with the class as their spec) and
get only the attributes that TRL's method reads, so nothing that our constructor sets may be needed.
"""

import contextlib
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch
import trl.trainer.grpo_trainer as trl_grpo
from tiny_model import trainer
from transformers import Trainer
from trl import GRPOTrainer

from entrl.controllers.kl_cov import KLCov
from entrl.trainers.grpo.controlled_loss import MASKS
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

both = pytest.mark.parametrize("cls", [GRPOTrainer, EntropyGRPOTrainer])

# The mask of high entropies

TWELVE = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.8, 0.9, 1.0, 1.1, 1.2]]
UNORDERED = [[0.1, 0.2, 0.3, 1.4, 0.5, 0.14], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]]
ALL, NONE = [1] * 6, [0] * 6
FIRST_FOUR = [1, 1, 1, 1, 0, 0]
ENTROPY_CASES = {
    "mask 0": (TWELVE, [ALL, FIRST_FOUR], 0.8, [NONE, [0, 0, 1, 1, 0, 0]]),
    "mask 1": (UNORDERED, [FIRST_FOUR, FIRST_FOUR], 0.8, [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]]),
    "lower threshold": (TWELVE, [ALL, FIRST_FOUR], 0.5, [[0, 0, 0, 0, 0, 1], FIRST_FOUR]),
    "threshold 0": (TWELVE, [ALL, FIRST_FOUR], 0.0, [ALL, FIRST_FOUR]),
    "threshold 1": (TWELVE, [ALL, FIRST_FOUR], 1.0, [NONE, [0, 0, 0, 1, 0, 0]]),
    "all masked": (TWELVE, [NONE, NONE], 0.5, [NONE, NONE]),
}


def one_process() -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=1,
        process_index=0,
        is_main_process=True,
        device=torch.device("cpu"),
        gather=lambda x: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )


def made_without_constructor(cls):
    run = cls.__new__(cls)
    run.accelerator = one_process()
    return run


def mock_of(cls):
    run = Mock(spec=cls)
    run.accelerator = one_process()
    return run


@both
@pytest.mark.parametrize("make", [made_without_constructor, mock_of])
@pytest.mark.parametrize("name", ENTROPY_CASES)
def test_get_high_entropy_mask(cls, make, name):
    entropies, mask, threshold, expected = ENTROPY_CASES[name]
    found = cls.get_high_entropy_mask(make(cls), torch.tensor(entropies), torch.tensor(mask), threshold)
    assert torch.equal(found, torch.tensor(expected).bool())


# The off-policy mask, called on the class


@both
def test_get_off_policy_mask(cls):
    """Kept: an advantage >= 0, or a mean divergence within the threshold."""
    now = torch.tensor([-2.0, -0.5, -2.0])[:, None].expand(3, 4)
    advantages = torch.tensor([[1.0], [-1.0], [-1.0]])
    found = cls.get_off_policy_mask(advantages, now, torch.zeros(3, 4), torch.ones(3, 4), 1.0)
    assert torch.equal(found, torch.tensor([[1.0], [1.0], [0.0]]))


@both
def test_get_off_policy_mask_leaves_padding_out(cls):
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    now = torch.tensor([[-2.0, -2.0, -10_000.0, 10_000.0]])
    given = {
        "advantages": torch.tensor([[-1.0]]),
        "per_token_logps": now,
        "sampling_per_token_logps": torch.zeros(1, 4),
        "mask": mask,
    }
    assert cls.get_off_policy_mask(**given, off_policy_threshold=1.0).item() == 0  # the mean of two tokens is 2
    assert cls.get_off_policy_mask(**given, off_policy_threshold=3.0).item() == 1


# Which engine generates


def dispatcher(cls, **given):
    """What TRL's generation reads of a trainer, and no more; a policy that moved since the engine's last weights."""
    run = cls.__new__(cls)
    defaults = {
        "accelerator": one_process(),
        "args": SimpleNamespace(
            report_to=[],
            ds3_gather_for_generation=True,
            gradient_checkpointing_kwargs=None,
            bf16=False,
            fp16=False,
            cast_lm_head_to_fp32=False,
        ),
        "model": SimpleNamespace(training=True),
        "model_wrapped": None,
        "state": SimpleNamespace(global_step=2, num_input_tokens_seen=0),
        "rollout_func": None,
        "use_vllm": False,
        "use_transformers_continuous_batching": False,
        "vllm_generation": SimpleNamespace(sync_weights=MagicMock()),
        "tools": None,
        "environment_factories": None,
        "generation_kwargs": {},
        "generation_config": "config",
        "continuous_batching_config": "batching",
        "num_generations": 2,
        "num_generations_eval": 1,
        "eos_token_ids": [9],
        "pad_to_multiple_of": None,
        "processing_class": SimpleNamespace(batch_decode=lambda ids, skip_special_tokens: [str(i) for i in ids]),
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "_is_vlm": False,
        "_last_loaded_step": 1,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_dist": SimpleNamespace(summon_full_params=lambda *args, **kwargs: contextlib.nullcontext()),
    }
    for name, value in (defaults | given).items():
        setattr(run, name, value)
    return run


def rolled(prompts, run):
    return {
        "prompt_ids": [[1] for _ in prompts],
        "completion_ids": [[2, 9] for _ in prompts],
        "logprobs": [[-0.1, -0.2] for _ in prompts],
        "env_mask": [[1, 0] for _ in prompts],
        "score": [0.5 for _ in prompts],
    }


@both
def test_generate_prefers_a_rollout_function(cls):
    run = dispatcher(cls, rollout_func=rolled, _generate_single_turn=MagicMock(side_effect=AssertionError))
    out = run._generate(["a", "b"])
    assert out[:5] == ([[1], [1]], [[2, 9]] * 2, [[1, 0]] * 2, ["[2, 9]"] * 2, [[-0.1, -0.2]] * 2)
    assert out[5] == {"score": [0.5, 0.5]}
    assert run._metrics["train"]["completions/mean_length"] == [1.0]  # of what the model wrote
    run.vllm_generation.sync_weights.assert_not_called()


@both
def test_generate_sends_moved_weights_before_a_rollout_function(cls):
    run = dispatcher(cls, rollout_func=rolled, use_vllm=True)
    for _ in range(2):
        run._generate(["a"])
    run.vllm_generation.sync_weights.assert_called_once_with()
    assert run._last_loaded_step == 2


@both
def test_generate_names_what_a_rollout_function_leaves_out(cls):
    run = dispatcher(cls, rollout_func=lambda prompts, run: {"prompt_ids": [], "completion_ids": []})
    with pytest.raises(ValueError, match="logprobs"):
        run._generate(["a"])


@both
def test_a_single_turn_asks_vllm_and_keeps_the_sampled_tokens_log_probs(cls):
    generate = MagicMock(return_value=([[1]], [[2, 3]], [[[-0.1, -5.0], [-0.2, -6.0]]], None))
    engine = SimpleNamespace(sync_weights=MagicMock(), generate=generate)
    run = dispatcher(cls, use_vllm=True, vllm_generation=engine)
    assert run._generate_single_turn([[1]], None, {}, 2) == ([[2, 3]], [[-0.1, -0.2]])
    engine.sync_weights.assert_called_once_with()
    assert generate.call_args.kwargs["prompts"] == [[1]]
    assert generate.call_args.kwargs["num_generations"] == 2
    run._generate_single_turn([[1]], None, {}, 2)
    engine.sync_weights.assert_called_once_with()  # no step lies between


@both
def test_a_single_turn_asks_transformers_continuous_batching(cls, monkeypatch):
    model = MagicMock()
    model.generate_batch.return_value = {"a": SimpleNamespace(generated_tokens=[2, 3])}
    monkeypatch.setattr(trl_grpo, "unwrap_model_for_generation", lambda *a, **kw: contextlib.nullcontext(model))
    run = dispatcher(cls, use_transformers_continuous_batching=True)
    assert run._generate_single_turn([[1]], None, {}, 2) == ([[2, 3]], None)
    assert model.generate_batch.call_args.args == ([[1]],)
    model.generate.assert_not_called()


@both
def test_a_single_turn_asks_generate_and_cuts_after_the_end(cls, monkeypatch):
    model = MagicMock()
    model.generate.return_value = torch.tensor([[0, 1, 5, 9, 0], [1, 1, 6, 7, 8]])
    monkeypatch.setattr(trl_grpo, "unwrap_model_for_generation", lambda *a, **kw: contextlib.nullcontext(model))
    monkeypatch.setattr(Trainer, "_prepare_inputs", lambda self, inputs: inputs)
    run = dispatcher(cls)
    assert run._generate_single_turn([[1], [1, 1]], None, {}, 2) == ([[5, 9], [6, 7, 8]], None)
    assert model.generate.call_args.kwargs["input_ids"].tolist() == [[0, 1], [1, 1]]
    model.generate_batch.assert_not_called()


@both
def test_inputs_are_the_buffers_next_slice(cls):
    run = dispatcher(cls, _step=3, num_iterations=2, _buffered_inputs=["first", "second"])
    run.args.steps_per_generation = 2
    assert run._prepare_inputs(None) == "second"


# After a step nothing of ours lies over TRL's masks


def test_the_masks_are_noted_within_the_loss_only(tmp_path):
    run = trainer(tmp_path, controllers=[KLCov(fraction=0.05)], top_entropy_quantile=0.5, max_steps=1, num_iterations=2)
    own = MagicMock(side_effect=lambda *given: GRPOTrainer.get_high_entropy_mask(run, *given))
    run.get_high_entropy_mask = own
    run.train()
    own.assert_called()
    assert run.get_high_entropy_mask is own, "what a user put there is back in its place"
    assert [name for name in MASKS if name in vars(run)] == ["get_high_entropy_mask"]
    assert EntropyGRPOTrainer.get_off_policy_mask is GRPOTrainer.get_off_policy_mask
