"""entrl.models.fold and merge: what an adapter is folded into gives the same logits, or nothing is left behind."""

from pathlib import Path

import pytest
import torch
from adapters import logits, save_adapter
from peft import LoraModel
from tiny_model import saved_model
from transformers import AutoModelForCausalLM

from entrl.cli.main import main
from entrl.models import fold as folding
from entrl.models.fold import check_saved, fold, tolerance
from entrl.models.load import load_policy, load_weights
from entrl.models.merge import merge_adapter

KINDS = {
    "embeddings": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "linear": {},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_as_it_lies_on_disk_is_base_and_adapter(kind, dtype, base, tmp_path):
    made = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    out = merge_adapter(Path(made), tmp_path / "merged", dtype=dtype)
    model, _ = load_policy(str(out), device="cpu")
    assert model.dtype == getattr(torch, dtype)
    wanted, found = logits(made), logits(out)
    assert (wanted - logits(base)).abs().max() > 0.1  # the adapter does something
    # Stored in 16 bits every weight is off by up to 2^-9 of itself; the rows of a product add up at random.
    allowed = tolerance(model) * (1.0 if dtype == "float32" else 2.0**-9 / 2.0**-24 / folding.SLACK)
    assert (found - wanted).abs().max() <= allowed * wanted.abs().max()
    tied = kind in ("tokens", "dora", "rslora", "biases", "linear")  # the others tear the two apart, or may
    assert model.config.tie_word_embeddings == tied or kind == "both"


def test_a_folded_model_keeps_its_dtypes_and_ties(base, tmp_path):
    made = save_adapter(base, tmp_path / "adapter")
    model = load_weights(made, adapter="fold", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_merge_that_went_wrong_leaves_nothing(adapter, tmp_path, monkeypatch, capsys):
    """Two real ways: peft merges something else, and what is written is not what was merged."""

    def unmerged(self, **options):
        return self.unload()

    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "merge_and_unload", unmerged)
        assert main(["merge", adapter, "--out", str(tmp_path / "a")]) == 2
    assert "folded in gives other logits: off by up to" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()

    def moved(folder, *rest):
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight *= 1.01
        model.save_pretrained(folder)
        return check_saved(folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(folding, "check_saved", moved)
        assert main(["merge", adapter, "--out", str(tmp_path / "b")]) == 2
    assert "loaded again from disk, gives other logits" in capsys.readouterr().err
    assert not list((tmp_path / "b").glob("*"))


def test_weights_beyond_the_range_of_float16_are_no_merge(base, tmp_path):
    made = save_adapter(base, tmp_path / "adapter", std=300.0)
    with pytest.raises(ValueError, match="gives other logits: off by up to nan"):
        merge_adapter(Path(made), tmp_path / "merged", dtype="float16")
    assert not list((tmp_path / "merged").glob("*"))


def test_fold_without_parting_the_embeddings_is_noticed(base, tmp_path, monkeypatch):
    made = save_adapter(base, tmp_path / "adapter", **KINDS["embeddings"])
    monkeypatch.setattr(folding, "_part", lambda model: True)
    with pytest.raises(ValueError, match="gives other logits"):
        fold(load_policy(made, device="cpu")[0], made)
