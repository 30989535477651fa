"""entrl plan for the files of launch/, and what it refuses of them."""

from pathlib import Path

import pytest
from small_recipe import ROOT, recipe
from tiny_model import saved_model

from entrl.runs.plan import Measured, Plan, plan, read_machines

LAUNCH = ROOT / "launch"
BF16 = "trainer.bf16=true"
SERVERS = ("trainer.use_vllm=true", "trainer.vllm_mode=server", "trainer.vllm_replicas=['http://a:1','http://b:1']")
LORA = "lora={r: 4, target_modules: all-linear}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def written(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    """A file of launch/ with some of its text changed."""
    text = (LAUNCH / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "changed.yaml").write_text(text)
    return folder / "changed.yaml"


def row(found: Plan, label: str) -> str:
    return dict(found.rows)[label]


@pytest.mark.parametrize(
    ("name", "world", "machines", "sharding", "words"),
    [
        ("cpu_1", 1, 1, "none", ()),
        ("cpu_2", 2, 1, "none", ()),
        ("zero3_cpu", 2, 1, "zero3", ()),
        ("gpu_1", 1, 1, "none", ()),
        ("multi_gpu", 8, 1, "none", (BF16,)),
        ("two_nodes", 16, 2, "none", (BF16,)),
        ("fsdp2", 8, 1, "fsdp2", (BF16,)),
        ("zero3", 8, 1, "zero3", (BF16,)),
    ],
)
def test_every_file_is_understood(name, world, machines, sharding, words, model):
    file = LAUNCH / f"{name}.yaml"
    read = read_machines(file)
    assert (read.world_size, read.machines, read.sharding) == (world, machines, sharding)
    found = plan(recipe(model, *words), accelerate_config=file)
    assert found.ok, found.problems
    assert row(found, "processes") == str(world)
    # 4 rows on each process = 1 group
    assert row(found, "rollout").startswith(f"{world} prompts x 4 completions")
    assert "1 whole groups" in row(found, "per process")
    assert row(found, "machines").startswith(f"{name}.yaml: ")
    explained = plan(recipe(model, *words), accelerate_config=file, explain=True)
    assert ("  gathered layers" in dict(explained.rows)) == (sharding != "none")


def test_every_file_of_the_folder_is_in_the_list_above():
    (mark,) = (m for m in test_every_file_is_understood.pytestmark if m.name == "parametrize")
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == {case[0] for case in mark.args[1]}


def problems(model: str, *words: str, file: Path) -> str:
    return "\n".join(plan(recipe(model, *words), accelerate_config=file).problems)


def warnings(model: str, *words: str, file: Path) -> str:
    return "\n".join(plan(recipe(model, *words), accelerate_config=file).warnings)


def test_processes_that_accelerate_would_not_start(model, tmp_path):
    file = written(tmp_path, "cpu_2", ("distributed_type: MULTI_GPU\n", "distributed_type: MULTI_CPU\n"))
    assert "with distributed_type MULTI_CPU, and accelerate starts one" in problems(model, file=file)
    assert row(plan(recipe(model), accelerate_config=file), "processes") == "1"
    file = written(tmp_path, "cpu_1", ("num_processes: 1", "num_processes: 3"))
    assert "asks for 3 processes with distributed_type NO" in problems(model, file=file)


def test_a_remainder_over_the_machines_is_refused(model, tmp_path):
    file = written(tmp_path, "two_nodes", ("num_processes: 16", "num_processes: 17"))
    assert "accelerate starts 8 on each, 16 in all" in problems(model, BF16, file=file)


def test_fsdp_on_the_cpu_is_refused(model):
    found = problems(model, BF16, "trainer.use_cpu=true", file=LAUNCH / "fsdp2.yaml")
    assert "FSDP on the CPU, where accelerate trains plain DDP" in found


def test_fsdp_1_is_refused(model, tmp_path):
    file = written(tmp_path, "fsdp2", ("fsdp_version: 2", "fsdp_version: 1"))
    assert "fsdp_version 1; only 2 is supported" in problems(model, BF16, file=file)


@pytest.mark.parametrize(
    ("name", "without", "says"),
    [
        ("fsdp2", ("FULL_STATE_DICT", "SHARDED_STATE_DICT"), "SHARDED_STATE_DICT saves no whole model"),
        ("zero3", ("zero3_save_16bit_model: true", "zero3_save_16bit_model: false"), "no whole model is saved"),
    ],
)
def test_a_file_under_which_no_whole_model_is_saved_is_refused(name, without, says, model, tmp_path):
    assert says in problems(model, BF16, file=written(tmp_path, name, without))


def test_what_the_estimate_leaves_out_is_warned_about(model, tmp_path):
    file = written(tmp_path, "zero3", ("zero_stage: 3", "zero_stage: 2"))
    assert "zero_stage 2 is not tested" in warnings(model, BF16, file=file)
    file = written(tmp_path, "zero3", ("offload_param_device: none", "offload_param_device: cpu"))
    assert "offloads (offload_param_device)" in warnings(model, BF16, file=file)


def test_a_precision_the_recipe_does_not_ask_for_is_refused(model):
    found = problems(model, file=LAUNCH / "multi_gpu.yaml")
    assert "says mixed_precision bf16, the recipe no; transformers would train in bf16" in found


def test_world_size_of_the_recipe_must_be_the_files(model):
    found = problems(model, "launch.world_size=4", file=LAUNCH / "cpu_2.yaml")
    assert "launch.world_size asks for 4 processes, there are 2" in found


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FileNotFoundError, "there is no accelerate file"),
        ("a: 1", ValueError, "has no distributed_type"),
        (
            "distributed_type: NO\nnum_processes: two",
            ValueError,
            "num_processes must be a whole number from 1, got 'two'",
        ),
    ],
)
def test_files_that_are_none(text, error, message, tmp_path):
    if text is not None:
        (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(error, match=message):
        read_machines(tmp_path / "it.yaml")


# --- engines ----------------------------------------------------------------------------------------------------


def test_replicas_get_the_adapter_alone(model):
    found = plan(recipe(model, LORA, *SERVERS))
    assert not [p for p in found.problems if "lora" in p]
    assert row(found, "engines").startswith("2 (servers of vllm_replicas)")
    trained = int(row(found, "parameters").split("trained ")[1].split(" ")[0].replace(",", ""))
    assert row(found, "sync") == f"{4 * trained / 2**20:.1f} MiB to each of 2 engine(s), once per rollout"


def test_replicas_without_an_adapter_are_refused(model):
    assert any("the recipe has no lora" in p for p in plan(recipe(model, *SERVERS)).problems)


def test_a_server_named_twice_is_refused(model):
    words = (*SERVERS[:2], "trainer.vllm_replicas=['http://a:1','http://a:1']", LORA)
    assert any("is listed 2 times; list each server once" in p for p in plan(recipe(model, *words)).problems)


def test_engines_that_cannot_be_divided(model):
    words = ("trainer.use_vllm=true", "trainer.vllm_tensor_parallel_size=3")
    found = plan(recipe(model, *words), world_size=4)
    assert any("must divide the 4 processes" in p for p in found.problems)
    assert any("must divide the model's 2 attention heads" in p for p in found.problems)


def test_an_engine_over_two_machines_is_refused(model, tmp_path):
    file = written(tmp_path, "two_nodes", ("num_processes: 16", "num_processes: 6"))
    words = (BF16, "trainer.use_vllm=true", "trainer.vllm_tensor_parallel_size=2")
    assert "does not divide the 3 processes of a machine" in problems(model, *words, file=file)


def test_no_room_for_a_prompt(model):
    found = plan(recipe(model, "trainer.use_vllm=true", "trainer.vllm_max_model_length=10"))
    assert any("vllm_max_model_length=10 holds prompt and completion" in p for p in found.problems)


# --- memory and time --------------------------------------------------------------------------------------------


def test_memory_is_refused_only_where_the_device_is_known(model):
    words = (
        "data.train_size=128",
        "trainer.per_device_train_batch_size=512",
        "trainer.max_completion_length=4096",
        "trainer.gradient_checkpointing=false",
    )
    assert plan(recipe(model, *words)).ok
    found = plan(recipe(model, *words), measured=Measured(device_gib=8))
    (problem,) = found.problems
    assert "and a process has 8 GiB (--device-memory); most of it is activations (512 rows x 4,108 tokens" in problem
    assert problem.endswith("set gradient_checkpointing: true")
    assert plan(recipe(model, *words), measured=Measured(device_gib=80000)).ok


def test_a_colocated_engine_takes_its_share_first(model):
    words = ("trainer.use_vllm=true", "trainer.vllm_gpu_memory_utilization=0.9999")
    shared = Measured(device_gib=8)
    (training,) = plan(recipe(model, *words), measured=shared).problems
    assert training.startswith("training (head) needs")
    assert "most of it is vLLM (vllm_gpu_memory_utilization 0.9999 x 8 GiB)" in training
    assert training.endswith("set vllm_enable_sleep_mode: true, so that the engine gives its share back while training")
    assert plan(recipe(model, *words, "trainer.vllm_enable_sleep_mode=true"), measured=shared).ok
    (rollout,) = plan(
        recipe(model, *words[:1], "trainer.vllm_gpu_memory_utilization=1.0", "trainer.vllm_enable_sleep_mode=true"),
        measured=shared,
    ).problems
    assert rollout.startswith("rollout needs")
    assert rollout.endswith("lower vllm_gpu_memory_utilization (1)")


def test_an_engine_without_room_for_one_completion(model):
    words = ("trainer.use_vllm=true", "trainer.vllm_gpu_memory_utilization=0.1", "trainer.vllm_max_model_length=4000")
    found = plan(recipe(model, *words), measured=Measured(device_gib=0.002))
    assert any("and one completion may need 4,000" in p for p in found.problems)
    assert "completions of full length at a time" in row(
        plan(recipe(model, *words), measured=Measured(device_gib=1)), "engine cache"
    )


def test_time_by_hand(model):
    words = ("trainer.steps_per_generation=2", "trainer.gradient_accumulation_steps=1")
    measured = Measured(generate=10, train=100, length=5, prompt=15)
    found = plan(recipe(model, *words), world_size=2, measured=measured)
    # 4 rows x 2 x 2 processes = 16 rows; each process generates: 16 x 5 / (2 x 10) = 4 s
    # training 16 x 20 x (1 + 1/3, TRL scores off-policy rollouts) / (2 x 100) = 2.13 s
    assert row(found, "time per rollout").startswith("6.13 s (generation 4 s, training 2.13 s, sync 0 s")
    assert row(found, "time per step") == "3.07 s"
    assert row(found, "time in all").startswith("18.4 s")  # 6 steps, 3 rollouts
    assert row(found, "bottleneck") == "generation; generation takes as long as training with 4 engine(s)"


def test_no_time_without_throughput(model):
    found = dict(plan(recipe(model), measured=Measured(generate=10)).rows)
    assert "time per rollout" not in found
    assert found["time"] == "unknown: no measured rates (launch.rates, or --generate-rate and --train-rate)"


def test_time_is_a_range_where_the_rates_are(model):
    words = ("trainer.steps_per_generation=2", "trainer.gradient_accumulation_steps=1")
    stated = "launch.rates={generate: [10, 20], train: [100, 200], source: a run of ours}"
    found = plan(recipe(model, *words, stated), world_size=2, measured=Measured(length=5, prompt=15))
    assert row(found, "time per rollout").startswith(
        "3.07 s to 6.13 s (generation 2 s to 4 s, training 1.07 s to 2.13 s"
    )
    assert row(found, "time in all").startswith("9.2 s to 18.4 s")
    assert row(found, "rates from") == "a run of ours"
    measured = Measured(generate=10, train=(100.0, 200.0), length=5, prompt=15)  # the command line's beat the recipe's
    assert row(plan(recipe(model, *words, stated), world_size=2, measured=measured), "time per rollout").startswith(
        "5.07"
    )


def test_a_rollout_longer_than_the_timeout_is_refused(model):
    words = (*SERVERS[:2], "trainer.ddp_timeout=3")
    measured = Measured(generate=10, train=100)
    found = plan(recipe(model, *words), world_size=2, measured=measured)
    # 8 rows x 10 tokens / 10 per second
    assert any(
        "may take 8 s to generate, and processes that wait for it give up after 3 s" in p for p in found.problems
    )
    assert not any("give up" in p for p in plan(recipe(model, *words), world_size=1, measured=measured).problems)


def test_measurements_must_be_positive():
    with pytest.raises(ValueError, match="train must be a number > 0, got -1"):
        Measured(train=-1)
