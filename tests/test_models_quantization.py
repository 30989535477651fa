"""QLoRA: what is refused, what a 4-bit base weighs, and a real run on one where bitsandbytes is installed."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_model import saved_model
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from entrl.models.quantization import Quantization
from entrl.models.shape import model_shape
from entrl.runs.plan import count_parameters, plan
from entrl.runs.plan.memory import Training, base_bytes
from entrl.runs.recipe import Recipe, make_recipe
from entrl.runs.serve import server_command
from entrl.settings.overrides import apply_override
from entrl.settings.yaml import parse_yaml

ROOT = Path(__file__).parents[1]
HERE = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HERE, reason="bitsandbytes is not installed (extra qlora)")
SMALL = """
data: {task: sums, train_size: 64}
rewards: [accuracy]
lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
trainer: {max_steps: 4, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, bf16: true,
          learning_rate: 1e-5, lr_scheduler_type: constant}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"), hidden=64)


def recipe(model: str, *overrides: str) -> Recipe:
    content = parse_yaml(SMALL) | {"model": {"path": model, "dtype": "bfloat16", "quantization": {"bits": 4}}}
    for override in overrides:
        apply_override(content, override)
    return make_recipe(content, name="small", base=ROOT / "recipes")


def test_the_group_is_checked(model: str):
    assert recipe(model).model.quantization == Quantization()
    assert recipe(model, "model.quantization=null").model.quantization is None
    for word, message in (
        ("bits: 8", r"model.quantization.bits must be 4, got 8"),
        ("quant_type: int4", r"quant_type must be nf4 or fp4, got 'int4'"),
        ("compute_dtype: int8", r"compute_dtype must be bfloat16 or float16 or float32, got 'int8'"),
        ("nested: true", r"unknown key 'nested'"),
        ("double_quant: 'yes'", r"double_quant must be bool"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(model, f"model.quantization={{{word}}}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora=null"], "weights in 4 bit cannot be trained, only an adapter on them; add lora"),
        (["lora.modules_to_save=[lm_head]"], "beside lora.modules_to_save"),
        (["trainer.use_vllm=true"], "send the adapter alone"),
        (["trainer.use_vllm=true", "trainer.vllm_mode=server"], "send the adapter alone"),
    ],
)
def test_what_a_4_bit_base_cannot_stand_beside(model: str, words: list[str], message: str):
    assert any(message in p for p in plan(recipe(model, *words)).problems)
    assert plan(recipe(model)).ok


SERVED = ("trainer.use_vllm=true", "trainer.vllm_mode=server", "trainer.vllm_replicas=['http://127.0.0.1:8000']")


def test_servers_hold_the_same_4_bit_base(model: str):
    assert plan(recipe(model, *SERVED)).ok
    argv = server_command(recipe(model, *SERVED)).argv
    assert argv[argv.index("--quantization") + 1] == "bitsandbytes"
    assert "--quantization" not in server_command(recipe(model, *SERVED, "model.quantization=null")).argv
    for word in ("model.quantization.double_quant=false", "model.quantization.quant_type=fp4"):
        assert any("would sample from another policy" in p for p in plan(recipe(model, *SERVED, word)).problems)


@pytest.mark.parametrize("launcher", ["fsdp2", "zero3"])
def test_divided_4_bit_weights_are_refused(model: str, launcher: str):
    found = plan(recipe(model), accelerate_config=ROOT / "launch" / f"{launcher}.yaml")
    assert any("4-bit weights divided over processes" in p for p in found.problems)
    assert plan(recipe(model), accelerate_config=ROOT / "launch" / "multi_gpu.yaml").ok


@pytest.mark.skipif(HERE, reason="bitsandbytes is installed")
def test_plan_says_what_is_missing_and_train_refuses(model: str, tmp_path: Path):
    from entrl.runs.train import train

    assert any("bitsandbytes is not installed here" in entry for entry in plan(recipe(model)).unchecked)
    with pytest.raises(ValueError, match=r"bitsandbytes is not installed here; pip install 'entrl\[qlora\]'"):
        train(recipe(model, f"trainer.output_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def training(quantised: float | None) -> Training:
    return Training(
        dtype="bfloat16", autocast=True, lora=True, optimiser="adamw", rows=1, tokens=8, checkpointing=True,
        processes=1, sharding="none", quantised=quantised,
    )  # fmt: skip


def test_bytes_by_hand(model: str):
    # one float32 scale per 64 weights; doubly, one byte per 64 and one float32 per 64 * 256
    assert Quantization(double_quant=False).bytes_per_weight == 0.5 + 4 / 64
    assert Quantization().bytes_per_weight == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256))
    config = AutoConfig.from_pretrained(model)
    total, _ = count_parameters(config, None)
    shape = model_shape(config, parameters=total, trained=0)
    # two layers: q and o 64 x 32, k and v 64 x 16, three of 64 x 64
    linear = 2 * (2 * 64 * 32 + 2 * 64 * 16 + 3 * 64 * 64)
    assert base_bytes(shape, training(0.5)) == linear * 0.5 + (total - linear) * 2
    assert base_bytes(shape, training(None)) == total * 2


def held_bytes(model) -> int:
    """What a quantised model's tensors hold, the scales included (tables of 16 and 256 numbers not)."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():
        if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
            inner = state.state2.absmax if state.nested else state.absmax
            total += inner.numel() * inner.element_size() + (state.absmax.numel() if state.nested else 0)
    return total


@needs_bitsandbytes
@pytest.mark.parametrize("double", [True, False])
def test_bytes_are_what_bitsandbytes_holds(tmp_path: Path, double: bool):
    from transformers import AutoModelForCausalLM

    from entrl.models.load import load_policy

    path = saved_model(tmp_path, hidden=256)
    spec = Quantization(double_quant=double)
    model, _ = load_policy(path, dtype="bfloat16", device="cpu", quantization=spec)
    assert model.is_loaded_in_4bit
    total, _ = count_parameters(model.config, None)
    shape = model_shape(model.config, parameters=total, trained=0)
    assert base_bytes(shape, training(spec.bytes_per_weight)) == pytest.approx(held_bytes(model), rel=0.01)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16")
    assert held_bytes(plain) > 1.5 * held_bytes(model)


@needs_bitsandbytes
@pytest.mark.slow
def test_a_run_on_a_4_bit_base(tmp_path: Path):
    """Trains through `entrl train`, evaluates before and after on the same base, and resumes to the same weights."""
    model = saved_model(tmp_path / "model")
    config = AutoConfig.from_pretrained(model).to_dict() | {"hidden_size": 64, "head_dim": 32}
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**config)).save_pretrained(model)  # its CPU kernel takes widths in steps of 32
    from safetensors.torch import load_file

    from entrl.runs.train import train

    (tmp_path / "mine.py").write_text(
        "def mine(completion_ids, **_):\n    return [ids[0] % 7 for ids in completion_ids]\n"
    )
    mine = f"rewards=['{tmp_path}/mine.py:mine']"  # it differs within groups of a random model, so something is learnt
    words = ["eval={task: sums, size: 4, samples: 2}", "trainer.save_steps=2", mine]
    train(recipe(model, *words, f"trainer.output_dir={tmp_path / 'whole'}"))
    whole = load_file(tmp_path / "whole" / "model" / "adapter_model.safetensors")
    assert {w.dtype for w in whole.values()} == {torch.float32}
    first = load_file(tmp_path / "whole" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    for name, weight in whole.items():  # 4 updates of 1e-5 each: rounded to bfloat16 hardly any A would move
        assert (weight != first[name]).float().mean() > 0.99
    short = [*words, f"trainer.output_dir={tmp_path / 'short'}"]
    train(recipe(model, *short, "trainer.max_steps=2"))
    train(recipe(model, *short), resume=True)
    again = load_file(tmp_path / "short" / "model" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
