"""LoRA training against two real vLLM servers: the whole path, one process against two, and the end of all servers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from free_port import free_port

from entrl.models.shipped import model_path

pytestmark = pytest.mark.vllm

REPOSITORY = Path(__file__).parents[1]
START_S = 400  # a server's start on a machine that does other things as well
KEY = "a-key-for-these-tests"
RANKS = ("RANK", "WORLD_SIZE")


class Servers:
    """`entrl serve` of the shipped recipe, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        # Not what an engine of another test left behind: a child with a RANK would wait for a process group.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "LOCAL_")) and k not in RANKS}
        self.environment = kept | {"ENTRL_VLLM_API_KEY": KEY, "VLLM_LOGGING_LEVEL": "WARNING"}
        self.recipe = folder / "two.yaml"
        text = (REPOSITORY / "recipes/tiny-reasoner/lora-replicas.yaml").read_text(encoding="utf-8")
        for shipped, mine in zip(("http://127.0.0.1:18301", "http://127.0.0.1:18302"), self.urls, strict=True):
            assert shipped in text
            text = text.replace(shipped, mine)
        self.recipe.write_text(text, encoding="utf-8")
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "entrl", "serve", str(self.recipe), "--replica", str(i)],
                cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for i in range(2)
        ]  # fmt: skip
        for process in self.processes:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("ready"):
                    break
            else:
                raise AssertionError(f"a server did not start:\n{said}")

    def kill(self) -> None:
        """Everything at once, as when the machines go away."""
        for process in self.processes:
            for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGKILL)
            process.wait(30)
        self.processes = []

    def train(self, *words: str, run: str) -> subprocess.Popen[str]:
        arguments = [f"trainer.output_dir={self.folder / run}", "eval=null", *words]
        return subprocess.Popen(
            [sys.executable, "-m", "entrl", "train", str(self.recipe), *arguments],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def metrics(self, run: str) -> list[dict]:
        file = self.folder / run / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [m for m in map(json.loads, lines) if "loss" in m]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    two = Servers(tmp_path_factory.mktemp("replicas"))
    try:
        two.start()
        yield two
    finally:
        two.kill()


def test_pear_and_kl_cov_train_an_adapter_with_two_servers_and_no_pass_of_ours(servers):
    small = ["trainer.max_steps=6", "trainer.per_device_train_batch_size=16", "trainer.entropy_source=sampler"]
    process = servers.train(*small, run="six")
    said = process.communicate(timeout=START_S)[0]
    assert process.returncode == 0, said
    steps = servers.metrics("six")
    assert len(steps) == 6
    rollouts = [m for m in steps if "sampler/gap" in m]
    assert len(rollouts) == 3
    assert all(m["sampler/gap"] < 1e-4 and m["sampler/entropy_gap"] < 1e-3 for m in rollouts)  # float32 on both sides
    assert all(m["sampler/kept_mass"] == 1.0 for m in rollouts)
    adapter = 4 * 16 * (128 * 2 + 128 * 2)  # far less than any one of them holds; a copy went to each server
    assert all(m["vllm/sync_bytes"] > 2 * adapter for m in rollouts)
    assert sum(m["kl_cov/selected"] for m in steps) > 0
    assert all(0 < m["pear/h_all"] < 1 for m in rollouts)


def test_two_processes_get_and_make_of_the_same_completions_what_one_does(servers, tmp_path):
    environment = servers.environment | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    script, model = str(REPOSITORY / "tests/replica_runs.py"), model_path("tiny-reasoner")
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    for world, launcher in ((1, []), (2, ["-m", "accelerate.commands.launch", "--config_file", config])):
        done = subprocess.run(
            [sys.executable, *launcher, script, str(tmp_path), str(world), servers.urls[0], model],
            env=environment, capture_output=True, text=True, timeout=START_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    one = torch.load(tmp_path / "world1-rank0.pt", weights_only=False)
    two = [torch.load(tmp_path / f"world2-rank{r}.pt", weights_only=False) for r in (0, 1)]
    assert (one["world"], one["backend"]) == (1, None)
    assert [(t["world"], t["backend"]) for t in two] == [(2, "gloo"), (2, "gloo")]
    rows = two[0]["rows"] + two[1]["rows"]
    assert [r["ids"] for r in rows] == [r["ids"] for r in one["rows"]]
    assert [r["group"] for r in rows] == [r["group"] for r in one["rows"]]
    assert [r["reward"] for r in rows] == pytest.approx([r["reward"] for r in one["rows"]], abs=1e-6)
    assert len({tuple(r["ids"]) for r in rows}) > 4  # several different completions
    torch.testing.assert_close(torch.cat([t["advantages"] for t in two]), one["advantages"], atol=1e-5, rtol=1e-5)
    ratios = torch.cat([t["importance_sampling_ratio"] for t in two])
    width = min(ratios.size(1), one["importance_sampling_ratio"].size(1))
    torch.testing.assert_close(ratios[:, :width], one["importance_sampling_ratio"][:, :width], atol=1e-4, rtol=1e-4)
    # KL-Cov's first window has no penalty to show (fresh policy), its second has.
    assert one["acted"]
    assert sorted(two[0]["acted"] + two[1]["acted"]) == sorted(one["acted"])


def test_when_all_servers_die_training_stops_with_a_checkpoint_and_goes_on_from_it(servers):
    """kill -9 of both while they generate; the run says so, keeps its work, and takes each step once after all."""
    words = ["trainer.max_steps=10", "trainer.per_device_train_batch_size=16", "trainer.vllm_retries=1"]
    process = servers.train(*words, run="killed")
    deadline = time.monotonic() + START_S
    while len(servers.metrics("killed")) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    servers.kill()
    said = process.communicate(timeout=START_S)[0]
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert "resume=true" in said
    done = [m["step"] for m in servers.metrics("killed")]
    checkpoint = servers.folder / "killed" / "checkpoints" / f"checkpoint-{done[-1]}"
    assert str(checkpoint.name) in said
    assert (checkpoint / "adapter_model.safetensors").is_file()
    servers.start()
    process = servers.train(*words, "resume=true", run="killed")
    said = process.communicate(timeout=START_S)[0]
    assert process.returncode == 0, said
    assert [m["step"] for m in servers.metrics("killed")] == list(range(1, 11))  # each step once
    assert sum("sampler/gap" in m for m in servers.metrics("killed")) == 5  # one rollout for two steps, none twice
