"""rsLoRA and DoRA through real steps, what they train, and what no server is sent (docs/lora.md)."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from tiny_model import saved_model
from transformers import AutoModelForCausalLM

from entrl.runs.plan import plan
from entrl.runs.recipe import Recipe, make_recipe
from entrl.runs.train import train
from entrl.settings.overrides import apply_override
from entrl.settings.yaml import parse_yaml

ROOT = Path(__file__).parents[1]
SMALL = """
data: {task: sums, train_size: 64}
rewards: [accuracy]
lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
trainer: {max_steps: 2, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 6, bf16: false,
          learning_rate: 1e-3, lr_scheduler_type: constant}
"""
SERVED = ("trainer.use_vllm=true", "trainer.vllm_mode=server", "trainer.vllm_replicas=['http://127.0.0.1:8000']")
REWARD = "def differs(completion_ids, **_):\n    return [float(ids[0] % 7) for ids in completion_ids]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def recipe(model: str, *words: str) -> Recipe:
    content = parse_yaml(SMALL) | {"model": {"path": model}}
    for word in words:
        apply_override(content, word)
    return make_recipe(content, name="small", base=ROOT / "recipes")


def trained(model: str, folder: Path, *words: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and configuration of the adapter that two steps leave behind."""
    (folder / "own.py").write_text(REWARD)
    words = (*words, f"rewards=['{folder}/own.py:differs']", f"trainer.output_dir={folder / 'run'}")
    train(recipe(model, *words), console=Console(quiet=True))
    saved = folder / "run" / "model"
    return load_file(saved / "adapter_model.safetensors"), json.loads((saved / "adapter_config.json").read_text())


def moved(weights: dict[str, torch.Tensor], part: str) -> bool:
    return all(bool(w.any()) for name, w in weights.items() if part in name)


def test_rslora_trains_and_scales_by_the_root_of_the_rank(model: str, tmp_path: Path):
    weights, config = trained(model, tmp_path, "lora.use_rslora=true")
    assert config["use_rslora"]
    assert moved(weights, "lora_B")  # drawn as zeros
    base = AutoModelForCausalLM.from_pretrained(model)
    layer = PeftModel.from_pretrained(base, str(tmp_path / "run" / "model")).base_model.model.model.layers[0]
    assert layer.self_attn.q_proj.scaling["default"] == 8 / math.sqrt(4)  # plain LoRA: 8 / 4


def test_dora_trains_its_magnitudes(model: str, tmp_path: Path):
    weights, config = trained(model, tmp_path, "lora.use_dora=true")
    assert config["use_dora"]
    assert moved(weights, "lora_B")
    base = AutoModelForCausalLM.from_pretrained(model)
    rows = {name: p.norm(dim=1) for name, p in base.named_parameters() if p.dim() == 2}  # a magnitude a row, at first
    found = {n: w for n, w in weights.items() if "lora_magnitude_vector" in n}
    assert len(found) == 2 * 7
    for name, magnitude in found.items():
        at = name.removeprefix("base_model.model.").partition(".lora_magnitude_vector")[0] + ".weight"
        assert magnitude.shape == rows[at].shape
        assert 0 < float((magnitude - rows[at]).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora.use_dora=true"], "DoRA adapters are not servable by vLLM"),
        (["lora.bias=all"], "trains bias terms"),
        (["lora.modules_to_save=[norm]"], "cannot ride in a LoRA adapter"),
        (["lora.rank_pattern={q_proj: 8}"], "use one r and one lora_alpha"),
    ],
)
def test_what_servers_cannot_be_sent_is_refused_by_plan_and_train(model, words, message, tmp_path):
    asked = recipe(model, *SERVED, *words, f"trainer.output_dir={tmp_path / 'run'}")
    assert any(message in p for p in plan(asked).problems)
    with pytest.raises(ValueError, match=message):
        train(asked, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
    assert not [p for p in plan(recipe(model, *words)).problems if message in p]  # without servers it may be had


def test_rslora_and_every_rank_of_vllm_may_be_served(model: str):
    for words in (["lora.use_rslora=true"], ["lora.r=12"]):
        assert plan(recipe(model, *SERVED, *words)).ok
