"""Whose memory a run is judged against, and the verdict where nobody says (B4)."""

from pathlib import Path

import pytest
from small_recipe import ROOT, recipe
from tiny_model import saved_model
from transformers import Qwen3Config

from entrl.engines.local import SHARE
from entrl.runs.folder import RunFolder
from entrl.runs.plan import Measured, Plan, plan, read_machines
from entrl.runs.plan.device import find_device, main_memory
from entrl.runs.plan.memory import GIB
from entrl_lab.nursery.tokenizer import character_tokenizer

HUGE = (  # more than a TiB of activations
    "trainer.per_device_train_batch_size=65536",
    "trainer.num_generations=65536",
    "trainer.max_completion_length=4096",
    "trainer.gradient_checkpointing=false",
)
VLLM = ("trainer.use_vllm=true", "trainer.vllm_importance_sampling_mode=token_truncate")
SAY = "memory not judged: say launch.device_memory_gib"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def verdict(found: Plan) -> str:
    assert found.render().splitlines()[-1] == found.verdict
    return found.verdict


def test_who_says_how_large_a_device_is(model: str):
    one, two = read_machines(ROOT / "launch" / "cpu_1.yaml"), read_machines(ROOT / "launch" / "cpu_2.yaml")
    stated = recipe(model, "launch.device_memory_gib=24")
    assert find_device(stated, one, 80).size == 80 * GIB
    assert find_device(stated, one, None).size == 24 * GIB
    here = find_device(recipe(model), one, None)
    assert (here.size, here.here, here.is_cpu) == (main_memory(), True, True)
    assert find_device(recipe(model), two, None).size == main_memory() / 2
    away = find_device(recipe(model), read_machines(ROOT / "launch" / "two_nodes.yaml"), None)
    assert (away.size, away.here) == (None, False)


def test_what_trains_here_is_ready(model: str):
    found = plan(recipe(model))
    assert verdict(found) == "ready to train"
    assert "memory of this machine" in dict(found.rows)["device memory"]


def test_memory_that_is_not_here_is_not_judged(model: str):
    found = plan(recipe(model, *HUGE))
    assert found.ok, found.problems
    assert verdict(found) == SAY
    judged = plan(recipe(model, *HUGE, "launch.device_memory_gib=80"))
    assert any("a process has 80 GiB (launch.device_memory_gib)" in p for p in judged.problems)
    assert verdict(plan(recipe(model, *HUGE), measured=Measured(device_gib=80))) == "1 problem(s): will not train"
    on_cpu = plan(recipe(model, *HUGE, "trainer.use_cpu=true"))  # which is this machine's memory and no other
    assert any("memory of this machine" in p for p in on_cpu.problems)


def test_an_engine_on_an_unknown_device_is_not_judged(model: str):
    assert verdict(plan(recipe(model, *VLLM))).startswith(f"{SAY}, of the device that vLLM will share")
    stated = verdict(plan(recipe(model, *VLLM, "launch.device_memory_gib=80")))
    assert stated == "no problem found, 1 thing(s) could not be checked from here"  # vLLM is not installed here


def test_several_machines_are_not_this_one(model: str):
    found = plan(recipe(model, "trainer.bf16=true"), accelerate_config=ROOT / "launch" / "two_nodes.yaml")
    assert verdict(found) == SAY


def test_the_documented_launch_that_took_104_gib(tmp_path: Path):
    """Case B4: PEAR + KL-Cov on Qwen3-4B, all weights, under DDP on 80 GB; divided over eight it fits."""
    sizes = {"vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    Qwen3Config(**sizes, **heads, max_position_embeddings=40_960).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    words = (
        "trainer.bf16=true",
        "trainer.gradient_checkpointing=true",
        "trainer.gradient_accumulation_steps=8",
        "trainer.max_completion_length=8192",
        "trainer.vllm_gpu_memory_utilization=0.3",
        "trainer.vllm_enable_sleep_mode=true",
        "launch.device_memory_gib=79",
    )
    flagship = recipe(str(tmp_path), *VLLM, *words)
    found = plan(flagship, accelerate_config=ROOT / "launch" / "multi_gpu.yaml")
    rollout, training = found.problems
    assert rollout.startswith("rollout needs about 83.64 GiB")  # weights, moments and buckets, and the engine awake
    assert training.endswith("divide the state: launch/fsdp2.yaml or launch/zero3.yaml")  # no smaller batch would do
    divided = plan(flagship, accelerate_config=ROOT / "launch" / "fsdp2.yaml")
    assert divided.ok, divided.problems


def test_an_evaluations_own_engine_takes_the_share_it_is_told(model: str):
    own = recipe(model, "eval={task: sums, engine: vllm}", "launch.device_memory_gib=80")
    shown = dict(plan(own, explain=True).rows)
    assert SHARE == 0.9  # the recipes' tables of memory were counted with it
    assert shown["  vLLM"].strip() == "72.00 GiB = 0.9 of the device"


@pytest.mark.parametrize("gib", [0, -1, ".inf", ".nan"])
def test_a_size_that_is_none(model: str, gib: object):
    with pytest.raises(ValueError, match=r"launch\.device_memory_gib must be a number > 0"):
        recipe(model, f"launch.device_memory_gib={gib}")


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ("{generate: [1, 2]}", "launch.rates needs a 'source'"),
        ("{source: '', generate: [1, 2]}", "launch.rates.source is empty"),
        ("{source: me, generate: [2, 1]}", r"launch.rates.generate must be \[lowest, highest\]"),
        ("{source: me, train: [0, 1]}", r"launch.rates.train must be \[lowest, highest\]"),
    ],
)
def test_rates_that_are_none(model: str, rates: str, message: str):
    with pytest.raises(ValueError, match=message):
        recipe(model, f"launch.rates={rates}")


def test_what_is_said_for_plan_changes_no_run(model: str, tmp_path: Path):
    """A run goes on when the size of its devices was said later: it decides no number."""
    before = recipe(model, f"trainer.output_dir={tmp_path}")
    after = recipe(
        model,
        f"trainer.output_dir={tmp_path}",
        "launch.device_memory_gib=80",
        "launch.rates={source: here, generate: [1, 2]}",
    )
    assert before.config_hash() == after.config_hash()
    (tmp_path / "recipe.yaml").write_text(before.to_yaml())
    assert RunFolder(path=tmp_path)._changed(after) == []
