"""A reward model: the numbers TRL computes for the same model, in any batches; what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from entrl_rewards.reward_model import RewardModel
from tiny_model import options, prompts, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, Qwen3ForSequenceClassification
from trl import GRPOTrainer

from entrl.models.scorers import scorer_problem
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


def test_a_folder_that_scores_has_no_problem(scorer: str):
    assert scorer_problem(scorer) is None


def test_what_a_folder_lacks_is_named_before_it_is_loaded(scorer: str, tmp_path: Path):
    def copied(name: str) -> Path:
        return Path(shutil.copytree(scorer, tmp_path / name))

    policy = tmp_path / "policy"
    tiny_model().save_pretrained(policy)
    assert "holds no tokenizer" in str(scorer_problem(str(policy)))
    character_tokenizer().save_pretrained(policy)
    assert "it has no score.weight, which would be random numbers" in str(scorer_problem(str(policy)))

    config = tiny_model().config
    config.num_labels = 3
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "three")
    character_tokenizer().save_pretrained(tmp_path / "three")
    assert "its head does not give one score (score.weight is (3, " in str(scorer_problem(str(tmp_path / "three")))

    (copied("bare") / "config.json").unlink()
    assert "holds no config.json" in str(scorer_problem(str(tmp_path / "bare")))
    (copied("odd") / "config.json").write_text('{"model_type": "nothing_like_it"}')
    assert "no model that scores can be made of its config.json" in str(scorer_problem(str(tmp_path / "odd")))
    file = copied("torn") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "was not written to its end" in str(scorer_problem(str(tmp_path / "torn")))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_other_architectures_are_told_apart_by_their_heads(kind: str, tmp_path: Path):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 32,
    }
    small = AutoConfig.for_model(kind, **(sizes if kind != "gpt2" else {"n_embd": 8, "n_layer": 1, "n_head": 2}))
    small.num_labels = 1
    character_tokenizer().save_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_config(small).save_pretrained(tmp_path)
    assert scorer_problem(str(tmp_path)) is None
    AutoModel.from_config(small).save_pretrained(tmp_path)
    assert "which would be random numbers" in str(scorer_problem(str(tmp_path)))
