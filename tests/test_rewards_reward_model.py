"""A reward model: the numbers TRL computes for the same model, in any batches; what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from entrl_rewards.reward_model import RewardModel
from tiny_model import options, prompts, tiny_model
from transformers import Qwen3ForSequenceClassification
from trl import GRPOTrainer

from entrl_lab.nursery.tokenizer import character_tokenizer

TEXTS = ["2", "a much longer answer than that", "", "17"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scorer")
    config = tiny_model().config
    config.num_labels = 1
    torch.manual_seed(1)
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("conversational", [False, True])
def test_equals_trls_own_path(scorer: str, tmp_path: Path, conversational: bool):
    args = options(tmp_path, plain=True)
    data = prompts(4, conversational=conversational)
    trainer = GRPOTrainer(tiny_model(), scorer, args, train_dataset=data, processing_class=character_tokenizer())
    asked = list(data["prompt"])
    completions: list[Any] = [[{"role": "assistant", "content": t}] for t in TEXTS] if conversational else TEXTS
    rows = [{"prompt": prompt} for prompt in asked]
    theirs = trainer._calculate_rewards(rows, asked, completions, [[1]] * 4)[:, 0]
    ours = RewardModel(path=scorer, batch_size=3)(prompts=asked, completions=completions)
    assert len(set(ours)) == 4
    torch.testing.assert_close(torch.tensor(ours), theirs.cpu(), rtol=1e-5, atol=1e-6)


def test_batches_change_nothing(scorer: str):
    asked = ["1+1="] * 4
    whole = RewardModel(path=scorer, batch_size=4)(prompts=asked, completions=TEXTS)
    single = RewardModel(path=scorer, batch_size=1)(prompts=asked, completions=TEXTS)
    assert whole == pytest.approx(single, abs=1e-5)


def test_shift_and_scale(scorer: str):
    plain = RewardModel(path=scorer)(prompts=["1+1="], completions=["2"])[0]
    moved = RewardModel(path=scorer, shift=0.5, scale=2.0)(prompts=["1+1="], completions=["2"])[0]
    assert moved == pytest.approx((plain - 0.5) / 2)


def test_refusals(scorer: str):
    with pytest.raises(ValueError, match="needs a path"):
        RewardModel()(prompts=["1"], completions=["2"])
    with pytest.raises(ValueError, match="scale must be above 0"):
        RewardModel(scale=0.0)
    with pytest.raises(ValueError, match=r"600 tokens is beyond the context of 512"):
        RewardModel(path=scorer)(prompts=[""], completions=["1" * 600])


def test_a_model_that_was_not_trained_to_score_is_refused(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no score\.weight, which would be random numbers"):
        RewardModel(path=str(tmp_path))(prompts=["1"], completions=["2"])
