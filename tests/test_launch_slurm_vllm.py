"""launch/slurm.sh with everything real but Slurm: a vLLM server, a trainer, an adapter between them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from launch_stand_ins import put_slurm

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[1]
WORDS = (
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=16",
    "trainer.max_completion_length=24",
    "trainer.vllm_max_model_length=128",
    "trainer.vllm_importance_sampling_mode=token_truncate",
    "trainer.learning_rate=1e-3",
    "data.train_size=64",
    "eval=null",
)


def test_a_job_trains_with_the_server_it_started(tmp_path):
    (tmp_path / "bin").mkdir()
    put_slurm(tmp_path / "bin")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ENTRL_", "SLURM_"))}
    env = kept | {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}",
        "SLURM_JOB_NODELIST": "localhost,127.0.0.1",  # the first trains, the second serves
        "SLURM_JOB_ID": str(os.getpid()),
        "ENTRL_JOB_DIR": str(tmp_path / "job"),
        "ENTRL_CONFIG": "launch/cpu_1.yaml",
        "ENTRL_PROCESSES": "1",
        "ENTRL_REPLICAS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    command = ["bash", "launch/slurm.sh", "recipes/tiny-reasoner/lora.yaml", *WORDS]
    job = subprocess.Popen(
        [*command, f"trainer.output_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = job.communicate(timeout=900)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGTERM)
            job.wait(timeout=60)
    assert job.returncode == 0, said[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["status"]) == (1, "finished")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows if row["kind"] == "train") == 2
    (url,) = (tmp_path / "job" / "urls.127.0.0.1").read_text().split()
    for _ in range(120):  # the server notices that its parent was killed
        if not answers(url):
            return
        time.sleep(0.5)
    pytest.fail(f"{url} still answers a minute after its job")


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5)
    except OSError:
        return False
    return True
