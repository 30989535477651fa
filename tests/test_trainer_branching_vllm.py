"""Branching on a real vLLM engine in the process: forks are prompts with a prefix, every number stays with its token.

One engine, 10 to 30 seconds.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.models.shipped import model_path
from entrl.tasks import load_task
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

pytestmark = pytest.mark.vllm

BASE = model_path("tiny-reasoner")


class Watched(EntropyGRPOTrainer):
    """Keeps what each rollout was made of, and TRL's tensors of it."""

    def _generate_single_turn(self, *given: Any, **options: Any) -> Any:
        out = super()._generate_single_turn(*given, **options)
        self.seen = [*getattr(self, "seen", []), self._parts.rollouts.branched]
        return out

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        self.outputs = [*getattr(self, "outputs", []), output]
        return output


def hesitation(completions: list, token_entropies: list, **_: object) -> list[float]:
    """A reward that reads what the sampler recorded."""
    return [float(h.mean()) if len(h) else 0.0 for h in token_entropies]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    before = dict(os.environ)
    args = EntropyGRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("branched")),
        per_device_train_batch_size=16,
        steps_per_generation=2,
        num_generations=8,
        max_completion_length=64,
        max_steps=6,
        learning_rate=0.0,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=160,
        vllm_engine_dtype="float32",
        vllm_importance_sampling_mode="token_truncate",
        entropy_source="sampler",
        branch_roots=4,
    )
    trainer = Watched(
        AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
        hesitation,
        args,
        train_dataset=load_task("sums", size=64, seed=0),
        processing_class=AutoTokenizer.from_pretrained(BASE, padding_side="left"),
    )
    trainer.train()
    yield trainer
    os.environ.clear()
    os.environ.update(before)


def test_rows_are_whole_groups_and_prefixes_are_token_exact(run: Any) -> None:
    assert len(run.seen) == 3
    assert [int(r.columns["branch_root"].max()) for r in run.seen] == [7, 3, 3]
    for rollout in run.seen:
        assert len(rollout.completion_ids) == 32
        columns = rollout.columns
        for i, (parent, at) in enumerate(
            zip(columns["branch_parent"].tolist(), columns["branch_fork"].tolist(), strict=True)
        ):
            assert len(rollout.completion_ids[i]) <= 64
            if at >= 0:
                assert rollout.completion_ids[i][:at] == rollout.completion_ids[i // 8 * 8 + parent][:at]
    assert sum(int((r.columns["branch_fork"] >= 0).sum()) for r in run.seen[1:]) > 8


def test_the_engines_numbers_are_of_the_tokens_they_stand_with(run: Any) -> None:
    """Log-probs and entropies of spliced completions against a plain forward pass over each."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    rollout, output = run.seen[-1], run.outputs[-1]
    for i, ids in enumerate(rollout.completion_ids):
        if rollout.columns["branch_fork"][i] < 0:
            continue
        prompt = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        assert torch.allclose(torch.tensor(rollout.logprobs[i]), chosen, atol=2e-3)
        assert torch.allclose(output["sampling_per_token_logps"][i, : len(ids)], chosen, atol=2e-3)
        assert torch.allclose(torch.tensor(rollout.records[i].entropies), entropy, atol=2e-3)
        assert rollout.records[i].token_ids == ids


def test_no_scoring_pass_is_made_for_branching(run: Any) -> None:
    """The sampler's records say where windows are."""
    assert run.counters.rows["branch"] == 0
    assert run.vllm_generation.max_completion_length == 64
