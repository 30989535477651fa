"""Games of twenty questions that a real vLLM engine writes: TRL's tool loop, environments, credit per turn.

One engine, 10 to 30 seconds.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from entrl_rewards.information_gain import InformationGain
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.environments import load_environment
from entrl.models.shipped import model_path
from entrl.tasks import load_task
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

pytestmark = pytest.mark.vllm
GAMES = {"task": "twenty_questions", "rows": 8, "columns": 8, "max_questions": 8}


@pytest.fixture(autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    """TRL tells an engine in the process its rank by RANK, WORLD_SIZE and MASTER_*; later tests start processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_an_engine_plays_and_its_log_probs_are_ours(tmp_path):
    base = model_path("tiny-inquirer")
    args = EntropyGRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=120,
        max_steps=2,
        learning_rate=1e-4,
        turn_credit="return_to_go",
        loss_type="dapo",
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=320,
        vllm_engine_dtype="float32",
        vllm_importance_sampling_mode="token_truncate",
    )
    seen = []

    class Kept(EntropyGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            seen.append(super()._generate_and_score_completions(inputs))
            return seen[-1]

    trainer = Kept(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        [InformationGain(credit="expected", pay="turn", question_cost=0.1)],
        args=args,
        train_dataset=load_task(GAMES, split="train", size=8, seed=0),
        processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
        environment_factory=load_environment("twenty_questions", {"name_ruled_out": True}),
    )
    trainer.train()
    logs = [e for e in trainer.state.log_history if "loss" in e]
    assert len(logs) == 2
    for log in logs:
        assert log["information_gain/questions"] > 1.5
        assert log["information_gain/submitted"] > 0.8
        assert log["information_gain/success"] > 0.4
        assert log["sampling/sampling_logp_difference/mean"] < 1e-3  # over the tokens the model wrote
    out = seen[0]
    assert out["advantages"].dim() == 2
    written = out["completion_mask"].bool() & out["tool_mask"].bool()
    assert 0 < written.sum() < out["completion_mask"].sum()  # answers are there, and are not the model's
    assert (out["advantages"][written].abs() > 0).float().mean() > 0.5
