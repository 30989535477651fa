"""launch/trainers.sh, serve_replicas.sh, slurm.sh: who is started where, with what, and what ends whom.

Plumbing, on one machine: Slurm, accelerate and the servers are stand-ins (`launch_stand_ins`). Two real launchers
joined over gloo are at the end; a job with a real server is in test_launch_slurm_vllm.py.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from launch_stand_ins import put_python, put_slurm

from entrl.runs.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPE = "recipes/tiny-reasoner/lora.yaml"
SHORT_RUN = (
    "trainer.max_steps=12",
    "trainer.per_device_train_batch_size=16",
    "trainer.max_completion_length=32",
    "trainer.save_strategy=no",
    "data.train_size=64",
    "eval=null",
    "launch.backend=gloo",
)


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """An environment whose `python`, `srun` and `scontrol` are stand-ins; they log to tmp_path/log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    put_python(folder, tmp_path / "log")
    put_slurm(folder)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ENTRL_", "SLURM_", "CUDA_"))}
    return kept | {"PATH": f"{folder}:{kept['PATH']}"}


def logged(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def script(name: str, *words: str, env: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "launch" / name), *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def options(argv: list[str]) -> dict[str, str]:
    """The `--name value` pairs of an accelerate command."""
    return {argv[i][2:]: argv[i + 1] for i in range(len(argv) - 1) if argv[i].startswith("--")}


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nobody listens on."""
    for first in range(21000 + os.getpid() % 5000, 40000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


# --- trainers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ("cpu_1", {}, {"num_machines": "1", "num_processes": "1", "machine_rank": "0"}),
        ("cpu_2", {}, {"num_machines": "1", "num_processes": "2", "main_process_port": "0"}),
        ("zero3", {"ENTRL_PROCESSES": "4"}, {"num_processes": "4"}),
        (
            "two_nodes",
            {"ENTRL_HEAD": "head", "ENTRL_NODE_RANK": "1"},
            {"num_machines": "2", "num_processes": "16", "machine_rank": "1", "main_process_ip": "head"},
        ),
        (
            "fsdp2",
            {"ENTRL_NODES": "3", "ENTRL_HEAD": "head", "ENTRL_HEAD_PORT": "29501"},
            {"num_machines": "3", "num_processes": "24", "main_process_port": "29501"},
        ),
    ],
)
def test_trainers_command(config, settings, expected, stand_ins, tmp_path):
    done = script("trainers.sh", f"launch/{config}.yaml", RECIPE, "trainer.seed=3", env=stand_ins | settings)
    assert done.returncode == 0, done.stderr
    (call,) = logged(tmp_path / "log")
    found = options(call["argv"])
    assert {name: found.get(name) for name in expected} == expected
    assert call["argv"][-6:] == [
        "-m",
        "entrl",
        "train",
        RECIPE,
        "trainer.seed=3",
        f"launch.world_size={found['num_processes']}",
    ]


def test_trainers_need_the_address_of_the_first_machine(stand_ins):
    done = script("trainers.sh", "launch/two_nodes.yaml", RECIPE, env=stand_ins)
    assert done.returncode == 2
    assert "2 machines need ENTRL_HEAD" in done.stderr


def test_trainers_name_the_missing_file(stand_ins):
    done = script("trainers.sh", "launch/cpu_3.yaml", RECIPE, env=stand_ins)
    assert done.returncode == 2
    assert "there is no file launch/cpu_3.yaml" in done.stderr


# --- servers ----------------------------------------------------------------------------------------------------


def start_servers(count: int, env: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    command = ["bash", "launch/serve_replicas.sh", RECIPE, str(count), "model.dtype=bfloat16"]
    settings = {"ENTRL_LOGS": str(folder / "logs"), "ENTRL_URLS": str(folder / "urls")}
    return subprocess.Popen(
        command, cwd=ROOT, env=env | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(what, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except OSError:
        return False


def test_servers_divide_the_gpus_share_a_key_and_end_together(stand_ins, tmp_path):
    port = free_ports(2)
    env = stand_ins | {"ENTRL_PORT": str(port), "ENTRL_GPUS": "0 1 2 3"}
    process = start_servers(2, env, tmp_path)
    try:
        wait_for((tmp_path / "urls").exists)
        urls = (tmp_path / "urls").read_text().split()
        assert urls == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
        assert all(answers(url) for url in urls)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert not any(answers(url) for url in urls)
    started = sorted(logged(tmp_path / "log.servers"), key=lambda one: options(one["argv"])["replica"])
    assert [one["env"]["CUDA_VISIBLE_DEVICES"] for one in started] == ["0,1", "2,3"]
    asked = [RECIPE, "model.dtype=bfloat16", "trainer.use_vllm=true", "trainer.vllm_mode=server"]
    assert all(one["argv"][:5] == [*asked, f"trainer.vllm_replicas=[{','.join(urls)}]"] for one in started)
    assert [options(one["argv"])["replica"] for one in started] == ["0", "1"]
    key = tmp_path / "logs" / "api-key"
    assert {one["env"]["ENTRL_VLLM_API_KEY"] for one in started} == {key.read_text().strip()}
    assert key.stat().st_mode & 0o077 == 0
    assert not any(key.read_text().strip() in word for one in started for word in one["argv"])


def test_a_server_that_ends_is_started_again(stand_ins, tmp_path):
    port = free_ports(1)
    process = start_servers(1, stand_ins | {"ENTRL_PORT": str(port)}, tmp_path)
    try:
        wait_for((tmp_path / "urls").exists)
        url = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(f"{url}/die", timeout=5)
        wait_for(lambda: len(logged(tmp_path / "log.servers")) == 2)
        wait_for(lambda: answers(url))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert "server 0 ended with exit code 9, starting it again (2 more times)" in errors


def test_a_server_that_never_answers_is_reported_with_its_log(stand_ins, tmp_path):
    env = stand_ins | {"ENTRL_PORT": str(free_ports(1)), "STAND_IN_SERVER_DIES": "1", "ENTRL_RESTARTS": "0"}
    process = start_servers(1, env, tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "server 0 does not answer" in errors
    assert "out of memory, said the stand-in" in errors
    assert not (tmp_path / "urls").exists()


def test_gpus_that_cannot_be_divided(stand_ins):
    done = script("serve_replicas.sh", RECIPE, "2", env=stand_ins | {"ENTRL_GPUS": "0 1 2"})
    assert done.returncode == 2
    assert "3 GPUs (0 1 2) cannot be divided among 2 servers" in done.stderr


# --- Slurm ------------------------------------------------------------------------------------------------------


def job(env: dict[str, str], folder: Path, *words: str, hosts: str, **settings: str):
    here = {"SLURM_JOB_NODELIST": hosts, "SLURM_JOB_ID": str(os.getpid()), "ENTRL_JOB_DIR": str(folder / "job")}
    return script("slurm.sh", RECIPE, *words, env=env | here | settings)


def test_slurm_trains_on_the_first_machines_and_serves_on_the_last(stand_ins, tmp_path):
    settings = {"ENTRL_REPLICAS": "2", "ENTRL_PROCESSES": "4", "ENTRL_SERVER_NODES": "2"}
    done = job(stand_ins, tmp_path, "trainer.seed=3", hosts="localhost,127.0.0.3,127.0.0.2,127.0.0.1", **settings)
    assert done.returncode == 0, done.stderr
    servers, trainers = logged(tmp_path / "log.servers"), logged(tmp_path / "log")
    servers.sort(key=lambda one: options(one["argv"])["replica"])
    found = [options(one["argv"]) for one in servers]
    assert [one["replica"] for one in found] == ["0", "1", "2", "3"]  # one numbering, over all machines
    urls = [f"http://{one['host']}:{one['port']}" for one in found]
    first = int(found[0]["port"])
    assert urls == [f"http://127.0.0.{host}:{port}" for host in (2, 1) for port in (first, first + 1)]
    assert sorted(one["env"]["HERE"] for one in trainers) == ["127.0.0.3", "localhost"]
    given = [options(one["argv"]) for one in trainers]
    assert sorted(one["machine_rank"] for one in given) == ["0", "1"]
    for one in given:
        assert (one["num_machines"], one["num_processes"], one["main_process_ip"]) == ("2", "8", "localhost")
    for one in [*servers, *trainers]:
        assert f"trainer.vllm_replicas=[{','.join(urls)}]" in one["argv"]
        assert "trainer.seed=3" in one["argv"]
    assert all(one["argv"][-1] == "launch.world_size=8" for one in trainers)
    keys = {one["env"]["ENTRL_VLLM_API_KEY"] for one in [*servers, *trainers]}
    assert keys == {(tmp_path / "job" / "api-key").read_text().strip()}
    assert not any(answers(url) for url in urls)  # the servers ended with the training


def test_slurm_hands_on_the_exit_code_of_training_and_ends_the_servers(stand_ins, tmp_path):
    done = job(stand_ins, tmp_path, hosts="localhost,127.0.0.1", ENTRL_REPLICAS="1", STAND_IN_TRAINER_CODE="7")
    assert done.returncode == 7
    assert "training ended with exit code 7" in done.stdout
    (server,) = logged(tmp_path / "log.servers")
    assert not answers(f"http://127.0.0.1:{options(server['argv'])['port']}")


def test_slurm_ends_its_steps_when_it_is_told_to(stand_ins, tmp_path):
    here = {"SLURM_JOB_NODELIST": "localhost,127.0.0.1", "SLURM_JOB_ID": str(os.getpid() + 1), "ENTRL_REPLICAS": "1"}
    here |= {"ENTRL_JOB_DIR": str(tmp_path / "job"), "STAND_IN_TRAINER_SECONDS": "60"}
    process = subprocess.Popen(
        ["bash", "launch/slurm.sh", RECIPE], cwd=ROOT, env=stand_ins | here, stdout=subprocess.DEVNULL
    )
    try:
        wait_for((tmp_path / "log").exists)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    (server,) = logged(tmp_path / "log.servers")
    assert not answers(f"http://127.0.0.1:{options(server['argv'])['port']}")


def started_job(env: dict[str, str], *words: str, **settings: str) -> subprocess.Popen[str]:
    here = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid() + 2), "ENTRL_REPLICAS": "0"}
    command = ["bash", "launch/slurm.sh", RECIPE, *words]
    return subprocess.Popen(command, cwd=ROOT, env=env | here | settings, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "settings", "again"),
    [
        (signal.SIGUSR1, {}, True),  # its time is nearly over
        (signal.SIGUSR1, {"SLURM_RESTART_COUNT": "50"}, False),
        (signal.SIGTERM, {}, False),  # scancel
    ],
)
def test_slurm_puts_a_job_back_that_was_told_to_end(number, settings, again, stand_ins, tmp_path):
    env = stand_ins | {"ENTRL_JOB_DIR": str(tmp_path / "job"), "STAND_IN_TRAINER_SECONDS": "60", **settings}
    process = started_job(env)
    try:
        wait_for((tmp_path / "log").exists)
    finally:
        process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    requeued = tmp_path / "bin" / "scontrol.requeued"
    assert (requeued.read_text().split() if requeued.exists() else []) == [str(os.getpid() + 2)] * again
    assert ("back into the queue" in said) is again


def test_slurm_goes_on_where_a_requeued_job_was(stand_ins, tmp_path):
    words = ("overwrite=true", "trainer.seed=3")
    done = job(stand_ins, tmp_path, *words, hosts="localhost", ENTRL_REPLICAS="0", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    (trainer,) = logged(tmp_path / "log")
    assert trainer["argv"][-3:-1] == ["trainer.seed=3", "resume=true"]
    assert not (tmp_path / "bin" / "scontrol.requeued").exists()


def test_slurm_does_not_train_without_its_servers(stand_ins, tmp_path):
    done = job(
        stand_ins,
        tmp_path,
        hosts="localhost,127.0.0.1",
        ENTRL_REPLICAS="1",
        STAND_IN_SERVER_DIES="1",
        ENTRL_RESTARTS="0",
    )
    assert done.returncode == 1
    assert "the servers on 127.0.0.1 did not start" in done.stderr
    assert not (tmp_path / "log").exists()


def test_slurm_on_one_machine_divides_its_gpus(stand_ins, tmp_path):
    gpus = {"ENTRL_SERVER_GPUS": "0 1", "ENTRL_TRAINER_GPUS": "2 3"}
    done = job(
        stand_ins, tmp_path, hosts="127.0.0.1", ENTRL_REPLICAS="2", ENTRL_SERVER_NODES="0", ENTRL_PROCESSES="2", **gpus
    )
    assert done.returncode == 0, done.stderr
    assert sorted(one["env"]["CUDA_VISIBLE_DEVICES"] for one in logged(tmp_path / "log.servers")) == ["0", "1"]
    (trainer,) = logged(tmp_path / "log")
    assert trainer["env"]["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_slurm_leaves_a_recipe_without_servers_alone(stand_ins, tmp_path):
    done = job(stand_ins, tmp_path, hosts="localhost", ENTRL_REPLICAS="0", ENTRL_PROCESSES="2")
    assert done.returncode == 0, done.stderr
    (trainer,) = logged(tmp_path / "log")
    assert not any("vllm" in word for word in trainer["argv"])
    assert not (tmp_path / "log.servers").exists()


def test_the_printed_slurm_example_keeps_the_recipes_batch():
    """One machine of eight processes trains; the recipe's own batch is that of the paper (B11)."""
    (line,) = re.findall(r"^sbatch .*$", (ROOT / "launch" / "README.md").read_text(), re.MULTILINE)
    recipe, *words = line.partition("launch/slurm.sh ")[2].split()
    rows = []
    for more, processes in (([], 1), (words, 8)):
        found = load_recipe(ROOT / recipe, [*more, f"launch.world_size={processes}"]).trainer
        rows.append(found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] * processes)
    assert rows == [128, 128]


def test_slurm_with_no_machine_left_to_train(stand_ins, tmp_path):
    done = job(stand_ins, tmp_path, hosts="localhost", ENTRL_REPLICAS="1")
    assert done.returncode == 2
    assert "1 of 1 machines serve and none is left to train" in done.stderr


# --- real processes ---------------------------------------------------------------------------------------------


@pytest.mark.multiprocess
@pytest.mark.skipif(torch.cuda.is_available(), reason="states what happens where no GPU is visible")
def test_a_job_whose_time_is_over_is_saved_put_back_and_goes_on(stand_ins, tmp_path):
    """Slurm's part is a stand-in, which tells every process of the step; launcher, ranks and run are real."""
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    out, words = tmp_path / "run", SHORT_RUN
    env = stand_ins | {"PATH": f"{Path(sys.executable).parent}:{stand_ins['PATH']}", "OMP_NUM_THREADS": "1"}
    env |= {"ENTRL_CONFIG": "launch/cpu_2.yaml", "ENTRL_PROCESSES": "2", "ENTRL_JOB_DIR": str(tmp_path / "job")}
    process = started_job(env, *words, f"trainer.output_dir={out}")
    try:
        wait_for(lambda: (out / "metrics.jsonl").exists() or process.poll() is not None, seconds=300)
    finally:
        process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "back into the queue" in said
    (saved,) = (out / "checkpoints").glob("checkpoint-*")  # beside it: the card
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    again = started_job(env, *words, f"trainer.output_dir={out}", SLURM_RESTART_COUNT="1")
    again.communicate(timeout=300)
    assert again.returncode == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["world_size"], manifest["resumed_from"]) == ("finished", 2, saved.name)


@pytest.mark.multiprocess
@pytest.mark.skipif(torch.cuda.is_available(), reason="states what happens where no GPU is visible")
def test_two_launchers_are_one_run_of_two_gloo_ranks(tmp_path):
    """The whole of `two_nodes.yaml` but the network between the machines."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env = kept | {
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "OMP_NUM_THREADS": "1",
        "ENTRL_HEAD": "127.0.0.1",
        "ENTRL_HEAD_PORT": str(free_ports(1)),
        "ENTRL_PROCESSES": "1",
    }
    words = (
        "trainer.max_steps=2",
        "trainer.per_device_train_batch_size=16",
        "trainer.max_completion_length=32",
        "data.train_size=64",
        "eval=null",
        "launch.backend=gloo",
        f"trainer.output_dir={tmp_path / 'run'}",
    )
    command = ["bash", "launch/trainers.sh", "launch/two_nodes.yaml", "recipes/tiny-reasoner/pear-kl-cov.yaml", *words]
    launchers = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=env | {"ENTRL_NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [(one.communicate(timeout=300)[1], one.returncode) for one in launchers]
    finally:
        for one in launchers:
            one.kill()
    assert [code for _, code in ends] == [0, 0], "\n".join(errors[-2000:] for errors, _ in ends)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["backend"], manifest["status"]) == (2, "gloo", "finished")
