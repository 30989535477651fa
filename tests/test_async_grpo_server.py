"""Asynchronous GRPO against a real vLLM server on the CPU: LoRA, a key, entropies, at most ten steps a run."""

import json
import os
import socket
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from async_setup import Watched
from peft import PeftModel
from transformers import AutoModelForCausalLM

from entrl.engines.async_client import AsyncClient
from entrl.engines.faults import ReplicaMismatch
from entrl.models.shipped import model_path
from entrl.report import write_report
from entrl.report.read import read_run
from entrl.report.staleness import staleness_rows
from entrl.runs.recipe import load_recipe
from entrl.runs.serve import Server, server_command

pytestmark = pytest.mark.vllm

RECIPES = Path(__file__).parents[1] / "recipes" / "tiny-reasoner"
KEY = "a key of this test"
STALENESS = 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_dir = tmp_path_factory.mktemp("runs") / "async"
    return load_recipe(
        RECIPES / "async.yaml",
        [f"trainer.output_dir={run_dir}", f"trainer.vllm_replicas=[http://127.0.0.1:{port}]", "lora.r=8"],
    )


@pytest.fixture(scope="module")
def server(recipe):
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    command = server_command(recipe, extra=f"--max-loras {STALENESS + 2} --disable-log-stats")
    with Server(command, api_key=KEY, log=recipe.run_dir.parent / "server.log") as server:
        server.wait_ready(900)  # a busy machine with two cores needs minutes
        yield command.url


def train(recipe, server, run_dir, **asked):
    """(trainer, the samples it trained in order). Every version's adapter is kept under `run_dir`/versions."""
    sys.path.insert(0, str(RECIPES))
    try:
        import async_grpo
    finally:
        sys.path.remove(str(RECIPES))
    kept = run_dir.parent / f"{run_dir.name}-versions"
    with Watched(kept) as watched:
        trainer = async_grpo.train(
            recipe,
            run_dir=run_dir,
            url=server,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            max_staleness=STALENESS,
            **asked,
        )
    return trainer, watched.samples, kept


@pytest.fixture(scope="module")
def run(recipe, server, tmp_path_factory):
    os.environ["ENTRL_VLLM_API_KEY"] = KEY
    run_dir = tmp_path_factory.mktemp("pinned") / "run"
    yield *train(recipe, server, run_dir, max_steps=8, max_inflight_tasks=12), run_dir
    os.environ.pop("ENTRL_VLLM_API_KEY")


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_with_a_reward_that_reads_entropies(run):
    trainer, samples, _, run_dir = run
    rows = metrics(run_dir)
    assert trainer.state.global_step == 8
    assert trainer._lora_sync
    assert len(samples) >= 8 * 16
    assert all(s["metrics"].trail.entropies is not None for s in samples)
    assert any(row.get("pear/penalty", 0) > 0 for row in rows)
    assert [row["policy_version"] for row in rows] == list(range(1, 9))
    assert sum(row["kl_cov/selected"] for row in rows) > 0


def test_sampler_entropies_are_those_of_the_version_that_wrote_the_tokens(run):
    """Each trained sample against a plain float32 forward of base + adapter of the version it is stamped with."""
    _, samples, kept, _ = run
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-reasoner"), dtype=torch.float32)
    folders = {int(p.name.rsplit("-v", 1)[1]): p for p in kept.iterdir()}
    worst, other, seen = 0.0, 0.0, set()
    for version in sorted({s["metrics"].trail.versions.max() for s in samples}):
        policy = PeftModel.from_pretrained(base, folders[version]).eval()
        for s in [s for s in samples if s["metrics"].trail.versions.max() == version][:8]:
            trained = s["completion_mask"] == 1
            assert set(s["metrics"].trail.versions[trained]) == {version}
            ids = torch.tensor(s["input_ids"])[None]
            with torch.no_grad():
                log_pi = torch.log_softmax(policy(input_ids=ids).logits[0], -1)
            entropy = -(log_pi.exp() * log_pi).sum(-1).numpy()
            place = np.flatnonzero(trained)
            worst = max(worst, np.abs(entropy[place - 1] - s["metrics"].trail.entropies[place]).max())
            picked = log_pi[place - 1, s["input_ids"][place]].numpy()
            worst = max(worst, np.abs(picked - s["old_log_probs"][place]).max())
            if version + 1 in folders:
                other = max(other, _entropy_gap(base, folders[version + 1], s))
        seen.add(int(version))
        base = policy.unload()
    assert len(seen) >= 3
    assert worst < 2e-4, f"largest gap {worst:.2e} nats"
    assert other > 10 * worst  # under the next version the same tokens look different: the stamp matters
    print(f"largest gap of entropy or log-prob {worst:.2e} nats, under the next version {other:.2e}")


def _entropy_gap(base, folder, sample):
    policy = PeftModel.from_pretrained(base, folder, adapter_name="next").eval()
    place = np.flatnonzero(sample["completion_mask"] == 1)
    with torch.no_grad():
        log_pi = torch.log_softmax(policy(input_ids=torch.tensor(sample["input_ids"])[None]).logits[0], -1)
    gap = np.abs(-(log_pi.exp() * log_pi).sum(-1).numpy()[place - 1] - sample["metrics"].trail.entropies[place]).max()
    policy.delete_adapter("next")
    return gap


def test_groups_keep_one_version_and_ages_are_counted(run):
    _, _, _, run_dir = run
    rows = metrics(run_dir)
    assert sum(row.get("rollout/mixed_version_groups", 0) for row in rows) == 0
    first = rows[0]
    assert first["staleness/0/abs_log_ratio"] < 1e-4  # two engines, one policy, float32
    assert first["staleness/0/abs_entropy_gap"] < 1e-4
    ages = {
        int(k.split("/")[1]) for row in rows for k in row if k.startswith("staleness/") and k.split("/")[1].isdigit()
    }
    assert max(ages) <= STALENESS + 1  # one more than TRL promises; see test_async_grpo_loss.py
    assert not any(k.startswith("staleness/unknown") for row in rows for k in row)


def test_the_report_shows_entropy_by_age(run):
    *_, run_dir = run
    rows = staleness_rows(read_run(run_dir).train)
    assert [r.age for r in rows] == sorted(r.age for r in rows)
    assert sum(r.tokens for r in rows) == sum(
        v for row in metrics(run_dir) for k, v in row.items() if k.endswith("/tokens_total")
    )
    assert write_report([run_dir]).is_file()


def test_trls_own_choice_of_versions_mixes_groups(recipe, server, run, tmp_path):
    """The same run without pins: what the pins are for, seen on a server that another run used before."""
    trainer, samples, _ = train(
        recipe, server, tmp_path / "run", max_steps=6, max_inflight_tasks=12, pin_group_version=False
    )
    assert sum(row.get("rollout/mixed_version_groups", 0) for row in metrics(tmp_path / "run")) > 0
    assert all(s["metrics"].trail.versions[s["completion_mask"] == 1].min() >= 1 for s in samples)
    # Every run has names of its own, and takes them along: a reused name would find the other run's prefix cache.
    assert trainer._lora_name != run[0]._lora_name
    models = httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {KEY}"}, timeout=30).json()["data"]
    assert [m["id"] for m in models if m.get("parent")] == []


# ---- what is refused, on the same server


def test_a_wrong_key_is_refused_before_training(server, run):
    client = AsyncClient(server, api_key="another key")
    with pytest.raises(ReplicaMismatch, match="refused the API key"):
        client.get_server_info()
    with pytest.raises(ReplicaMismatch, match="refused the API key"):
        client.load_lora_adapter("trl-policy-v99", "/nowhere")


def test_development_endpoints_stay_closed(server):
    """They ask for no key; TRL's own client would need them."""
    for path in ("server_info", "collective_rpc", "pause"):
        assert httpx.post(f"{server}/{path}", json={}, timeout=30).status_code in (404, 405)


def test_another_base_model_and_a_server_without_recorder_are_refused(server, run):
    client = AsyncClient(server, api_key=KEY)
    assert client.problems(temperature=0.7, fingerprint=None, record=True) == []
    assert any("other base weights" in p for p in client.problems(temperature=1, fingerprint="0" * 32, record=True))
    client._info = {**client.told(), "recorder": False, "logprobs_mode": "raw_logprobs"}
    problems = client.problems(temperature=0.7, fingerprint=None, record=True)
    assert any("before the temperature" in p for p in problems)
    assert any("records no entropies" in p for p in problems)
