"""A replica pool against two real vLLM servers, started by `entrl serve`, through every fault a run should survive.

The tests share the servers and run in the order they stand here: the ones that kill servers come last, and the server
that is started again after a kill is the fresh one the stale-cache test compares with.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from accelerate import Accelerator
from free_port import free_port
from peft import LoraConfig, get_peft_model
from tiny_model import saved_model
from transformers import AutoModelForCausalLM

from entrl.cli.main import main
from entrl.engines import liveness, servers
from entrl.engines.adapters import WEIGHTS, SavedAdapter, adapter_name, save_version
from entrl.engines.faults import AdapterRefused, NoReplicaLeft, ReplicaMismatch, StaleVersion
from entrl.engines.pool import ReplicaPool
from entrl.models.shipped import model_path
from entrl.runs.serve import find_api_key

pytestmark = pytest.mark.vllm

BASE = model_path("tiny-reasoner")
RANK = 16
START = 900.0  # seconds a server may need on a machine that does other things as well
PROMPTS = [[10, 11, 12, 13, 14 + i % 3] for i in range(24)]
SAMPLING = {"max_tokens": 48, "seed": 3}


class Servers:
    """Two `entrl serve` processes of one recipe, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.recipe = folder / "two.yaml"
        self.recipe.write_text(
            f"""
model: {{path: tiny-reasoner}}
data: {{task: sums, train_size: 64}}
rewards: [accuracy]
lora: {{r: {RANK}, lora_alpha: 32, target_modules: all-linear}}
trainer:
  use_vllm: true
  vllm_replicas: {json.dumps(self.urls)}
  vllm_max_model_length: 256
  output_dir: {folder}/run
  bf16: false
"""
        )
        self.processes: list[subprocess.Popen[str] | None] = [None, None]
        self.said = ["", ""]

    def start(self, index: int) -> None:
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
        environment.pop("ENTRL_VLLM_API_KEY", None)
        words = ["serve", str(self.recipe), "--replica", str(index), "--timeout", str(START)]
        words.append("--vllm-args=--enforce-eager")  # compiling costs minutes and changes no answer
        self.processes[index] = subprocess.Popen(
            [sys.executable, "-m", "entrl", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=(self.folder / f"serve{index}.err").open("w"),
            text=True,
        )

    def wait(self, index: int) -> str:
        """What `entrl serve` printed until it was ready."""
        process, said = self.processes[index], ""
        assert process is not None
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if line.startswith("ready"):
                return said
        raise AssertionError(f"{said}{(self.folder / f'serve{index}.err').read_text()[-3000:]}")

    def vllm(self, index: int) -> list[psutil.Process]:
        """The vLLM processes below one `entrl serve`, parent first."""
        process = self.processes[index]
        assert process is not None
        return psutil.Process(process.pid).children(recursive=True)

    def kill(self, index: int) -> None:
        """kill -9 of everything at once, as when a machine goes away."""
        for process in self.vllm(index):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self, index: int) -> int:
        process = self.processes[index]
        if process is None:
            return 0
        children = self.vllm(index) if process.poll() is None else []
        process.terminate()
        try:
            status = process.wait(60)
        finally:
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
        self.processes[index] = None
        return status

    def key(self) -> str:
        key = find_api_key(self.folder / "run", "NO_SUCH_VARIABLE")
        assert key is not None
        return key

    def pool(self, urls: list[str] | None = None, **options: object) -> ReplicaPool:
        settings = {"base_model": BASE, "lora_rank": RANK, "backoff": 0.3, "retries": 4} | options
        return ReplicaPool(urls or self.urls, self.key(), **settings)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    both = Servers(tmp_path_factory.mktemp("servers"))
    try:
        both.start(0)
        both.start(1)
        both.said = [both.wait(0), both.wait(1)]
        yield both
    finally:
        both.stop(0)
        both.stop(1)


def adapter(folder: Path, run: str, version: int, *, rank: int = RANK, scale: float = 0.05) -> SavedAdapter:
    """A LoRA adapter of the tiny reasoner that changes it by as much as `scale` says; `model` is the peft model."""
    torch.manual_seed(version)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    saved = save_version(model, Accelerator(cpu=True), folder, run, version)
    object.__setattr__(saved, "model", model.eval())
    return saved


def policy(saved: SavedAdapter, prompt: list[int], ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """(T, V) log-probs of the adapter's own model, in float32."""
    with torch.no_grad():
        logits_TV = saved.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits_TV / temperature, -1)


def gap(saved: SavedAdapter, prompts: list[list[int]], found: list, temperature: float = 1.0) -> float:
    """The largest difference between the servers' log-probs and the adapter's own."""
    worst = 0.0
    for prompt, completions in zip(prompts, found, strict=True):
        for c in completions:
            own_T = policy(saved, prompt, c.token_ids, temperature).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            worst = max(worst, float((own_T - torch.tensor(c.logprobs)).abs().max()))
    return worst


# --- what works -------------------------------------------------------------------------------------------------


def test_serve_says_where_it_is_and_hides_its_key(two: Servers) -> None:
    file = two.folder / "run.vllm_api_key"
    assert file.stat().st_mode & 0o777 == 0o600
    for index, said in enumerate(two.said):
        assert f"ready: {two.urls[index]}" in said
        assert str(file) in said
        assert two.key() not in said
        lines = [" ".join(p.cmdline()) for p in two.vllm(index)]
        assert "--host 127.0.0.1" in lines[0]
        assert not any(two.key() in line for line in lines)


def test_check_reads_what_the_servers_are(two: Servers) -> None:
    for told in two.pool().check():
        assert told["logprobs_mode"] == "processed_logprobs"
        assert told["max_lora_rank"] == RANK
        assert told["max_loras"] == 2
        assert told["dtype"] == "float32"
        assert told["recorder"]


def test_processed_logprobs_can_be_told_by_trying(two: Servers) -> None:
    pool = two.pool()

    async def without_being_told(call: liveness.Call) -> None:
        for replica in pool.replicas:
            await servers.look(call.client, replica, timeout=60)
            del replica.info["logprobs_mode"]
            await servers.check_processed(call.client, replica, timeout=60)

    pool._run(without_being_told)
    assert {replica.info["logprobs_mode"] for replica in pool.replicas} == {"processed_logprobs (tried out)"}


@pytest.mark.parametrize("shared", [True, False])
def test_completions_are_of_the_version_published(two: Servers, tmp_path: Path, shared: bool) -> None:
    pool = two.pool(adapter_folder=tmp_path if shared else None)
    for version in range(3):
        saved = adapter(tmp_path, pool.run_id, version)
        report = pool.publish(version, saved.folder)
        assert report.uploaded is not shared
        assert sorted(report.seconds) == sorted(two.urls)
        assert report.bytes_sent == 2 * (saved.bytes if shared else saved.bytes + 8)
        sampling = {**SAMPLING, "temperature": 0.7, "entrl": {"record": True}}
        found = pool.generate(PROMPTS, 3, sampling, version)
        assert [len(of) for of in found] == [3] * len(PROMPTS)
        assert gap(saved, PROMPTS, found, temperature=0.7) < 1e-4
        for prompt, completions in zip(PROMPTS, found, strict=True):
            for c in completions:
                assert c.version == version
                assert c.kept_mass == [1.0] * len(c.token_ids)
                logp_TV = policy(saved, prompt, c.token_ids, 0.7)
                assert c.entropies == pytest.approx((-(logp_TV.exp() * logp_TV).sum(-1)).tolist(), abs=1e-4)
    for url in two.urls:  # the two versions before are unloaded
        listed = [card["id"] for card in get(two, url, "/v1/models").json()["data"]]
        assert [name for name in listed if pool.run_id in name] == [adapter_name(pool.run_id, 2)]
    assert all(replica.answered for replica in pool.replicas)


def test_a_retried_request_draws_the_same_completions(two: Servers) -> None:
    first = two.pool([two.urls[0]]).generate(PROMPTS[:4], 2, SAMPLING, None)
    second = two.pool([two.urls[1]]).generate(PROMPTS[:4], 2, SAMPLING, None)
    assert [[c.token_ids for c in of] for of in first] == [[c.token_ids for c in of] for of in second]


def test_equal_prompts_draw_with_seeds_of_their_own(two: Servers) -> None:
    hot = {**SAMPLING, "temperature": 2.0}  # the trained base repeats itself at 1.0 whatever its seed
    found = two.pool().generate([PROMPTS[0]] * 2, 3, hot, None)
    assert len({tuple(c.token_ids) for of in found for c in of}) == 6


def get(two: Servers, url: str, path: str, key: str | None = None) -> httpx.Response:
    return httpx.get(url + path, headers={"Authorization": f"Bearer {key or two.key()}"}, timeout=30)


# --- what is refused --------------------------------------------------------------------------------------------


def test_wrong_key(two: Servers) -> None:
    pool = ReplicaPool(two.urls, "wrong", base_model=BASE, lora_rank=RANK)
    with pytest.raises(ReplicaMismatch, match=r"refused the API key; set ENTRL_VLLM_API_KEY"):
        pool.check()
    with pytest.raises(NoReplicaLeft, match="refused the API key"):
        pool.generate(PROMPTS[:1], 1, SAMPLING, None)
    for path in ("/v1/entrl/info", "/v1/entrl/adapters/entrl-a-v1", "/v1/completions"):
        method = {"/v1/entrl/info": "GET", "/v1/completions": "POST"}.get(path, "PUT")
        body = json.dumps({"prompt": [1], "vllm_xargs": {"entrl": '{"record": true, "key": "k"}'}})
        answer = httpx.request(
            method, two.urls[0] + path, content=body, headers={"Authorization": "Bearer wrong"}, timeout=60
        )
        assert answer.status_code == 401


def test_another_base_model_even_of_the_same_name(two: Servers, tmp_path: Path) -> None:
    other = saved_model(tmp_path / "tiny-reasoner")
    with pytest.raises(ReplicaMismatch, match=r"weights are not those of .*start it with `entrl serve`"):
        two.pool(base_model=other).check()


def test_adapter_of_another_rank(two: Servers, tmp_path: Path) -> None:
    with pytest.raises(ReplicaMismatch, match=r"up to rank 16, this run trains rank 32"):
        two.pool(lora_rank=32).check()
    pool = two.pool(lora_rank=None)  # nothing of ours looks at the rank: the server itself refuses
    saved = adapter(tmp_path, pool.run_id, 0, rank=32)
    with pytest.raises(AdapterRefused, match=r"has rank 32, this run was set up for 16"):
        two.pool().publish(0, saved.folder)
    with pytest.raises(AdapterRefused, match=r"refused adapter .*rank"):
        pool.publish(0, saved.folder)
    assert pool.version is None
    assert len(pool.generate(PROMPTS[:2], 2, SAMPLING, None)) == 2  # and lives on


def test_truncated_adapter_file(two: Servers, tmp_path: Path) -> None:
    pool = two.pool(adapter_folder=tmp_path)
    saved = adapter(tmp_path, pool.run_id, 0)
    weights = saved.folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(AdapterRefused, match=r"its header says .*cut short"):
        pool.publish(0, saved.folder)

    async def unchecked(call: liveness.Call, upload: bool) -> int:
        return await servers.load_adapter(
            call.client, pool.replicas[0], saved.name, saved.folder, upload=upload, timeout=60
        )

    for upload, words in ((False, "refused adapter"), (True, r"refused the upload .*cut short")):
        with pytest.raises(AdapterRefused, match=words):  # what a file that is cut on the way would meet
            pool._run(lambda call, upload=upload: unchecked(call, upload))
    again = adapter(tmp_path, pool.run_id, 1)
    pool.publish(1, again.folder)
    assert gap(again, PROMPTS[:4], pool.generate(PROMPTS[:4], 1, SAMPLING, 1)) < 1e-4


def test_stale_versions(two: Servers, tmp_path: Path) -> None:
    pool = two.pool(adapter_folder=tmp_path)
    with pytest.raises(StaleVersion, match=r"version 0 was asked for, the replicas hold None"):
        pool.generate(PROMPTS[:1], 1, SAMPLING, 0)
    for version in range(2):
        saved = adapter(tmp_path, pool.run_id, version)
        pool.publish(version, saved.folder)
    with pytest.raises(StaleVersion, match=r"version 0 was asked for, the replicas hold 1"):
        pool.generate(PROMPTS[:1], 1, SAMPLING, 0)
    with pytest.raises(ValueError, match=r"version 1 does not follow 1"):
        pool.publish(1, saved.folder)
    # Somebody unloads the adapter behind the trainer's back: it is loaded again, not replaced by the base model.
    headers = {"Authorization": f"Bearer {two.key()}"}
    for url in two.urls:
        done = httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": saved.name}, headers=headers, timeout=60)
        assert done.status_code == 200
    assert gap(saved, PROMPTS, pool.generate(PROMPTS, 1, SAMPLING, 1)) < 1e-4
    assert pool.counters.repeated >= 2
    assert pool.counters.returns == 2


def test_port_taken(two: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(two.recipe)]) == 2
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{two.urls[0].rpartition(':')[2]}" in said
    assert "take another port" in said


def test_a_server_that_fails_to_start_shows_its_log(two: Servers, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["serve", str(two.recipe), "--port", str(free_port()), "--vllm-args=--no-such-option"]
    log = two.folder / "run.server0.log"
    before = log.read_bytes()
    try:
        assert main(words) == 2
    finally:
        log.write_bytes(before)
    said = capfd.readouterr().err
    assert "unrecognized arguments: --no-such-option" in said
    assert "before it was ready" in said


# --- what is survived -------------------------------------------------------------------------------------------


LONG = {"max_tokens": 120, "ignore_eos": True, "seed": 5}


def long_work(pool: ReplicaPool, version: int | None) -> list:
    """Every prompt two completions of 120 tokens: seconds of work, so that faults fall into it."""
    return pool.generate(PROMPTS, 2, LONG, version)


def test_slower_than_the_timeout(two: Servers) -> None:
    pool = two.pool(request_timeout=0.2, retries=1, backoff=0.1)
    with pytest.raises(NoReplicaLeft, match=r"within 0\.2 s.*raise request_timeout \(0\.2 s\)"):
        long_work(pool, None)
    pool.request_timeout = 300.0
    found = long_work(pool, None)  # the same pool goes on
    assert [len(of) for of in found] == [2] * len(PROMPTS)


def test_a_stalled_replica_loses_its_work_to_the_other_and_comes_back(
    two: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before any request times out: a machine that is gone resets no connection, its health is looked at."""
    monkeypatch.setattr(liveness, "WATCH_EVERY", 1.0)
    monkeypatch.setattr(liveness, "PROBE_TIMEOUT", 8.0)
    pool = two.pool(request_timeout=3000.0, adapter_folder=tmp_path, retries=8)
    saved = adapter(tmp_path, pool.run_id, 0)
    pool.publish(0, saved.folder)
    frozen = two.vllm(1)
    try:
        for process in frozen:
            process.suspend()
        found = long_work(pool, 0)
        assert [len(of) for of in found] == [2] * len(PROMPTS)
        assert gap(saved, PROMPTS, found) < 1e-4
        assert pool.counters.repeated > 0
        assert pool.replicas[1].state != "up"
        served = pool.replicas[1].answered
    finally:
        for process in frozen:
            process.resume()
    newer = adapter(tmp_path, pool.run_id, 1)
    deadline = time.monotonic() + 120
    while pool.publish(pool.version + 1, newer.folder).missing and time.monotonic() < deadline:
        time.sleep(1)
    assert gap(newer, PROMPTS, pool.generate(PROMPTS, 2, SAMPLING, pool.version)) < 1e-4
    assert pool.replicas[1].answered > served


def test_kill_one_replica_during_generation(two: Servers, tmp_path: Path) -> None:
    pool = two.pool(adapter_folder=tmp_path, request_timeout=3000.0)
    saved = adapter(tmp_path, pool.run_id, 0)
    pool.publish(0, saved.folder)
    calm = long_work(pool, 0)
    sent = pool.counters.requests
    assert sent == len(PROMPTS)

    def kill_when_working() -> None:
        while not pool.replicas[1].in_flight:
            time.sleep(0.005)
        two.kill(1)

    killer = threading.Thread(target=kill_when_working)
    killer.start()
    found = long_work(pool, 0)
    killer.join()
    assert [len(of) for of in found] == [2] * len(PROMPTS)  # nothing lost, nothing twice
    assert all(len(c.token_ids) == 120 for of in found for c in of)
    assert pool.counters.repeated > 0
    assert pool.counters.requests == 2 * len(PROMPTS) + pool.counters.repeated
    assert pool.replicas[1].state != "up"
    assert gap(saved, PROMPTS, found) < 1e-4
    same = [a.token_ids == b.token_ids for x, y in zip(calm, found, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(same) / len(same) > 0.95  # the seeds stayed; round-off of another batch may flip a token
    process = two.processes[1]
    assert process is not None
    assert process.wait(60) == 2  # `entrl serve` says so and ends
    assert "ended with status -9" in (two.folder / "serve1.err").read_text()


def cached_tokens(two: Servers, url: str) -> float:
    lines = get(two, url, "/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def first_logprobs(pool: ReplicaPool, prompt: list[int], saved: SavedAdapter, version: int) -> tuple[float, float]:
    """(gap to the adapter's own model, log-prob) of one token after a long prompt."""
    found = pool.generate([prompt], 1, {"max_tokens": 1, "seed": 11}, version)
    return gap(saved, [prompt], found), found[0][0].logprobs[0]


def test_no_stale_cache_and_a_restarted_replica_gets_the_adapter(two: Servers, tmp_path: Path) -> None:
    """The server that ran all tests above against one started a moment ago, after a large change of the adapter."""
    pool = two.pool([two.urls[0]], adapter_folder=tmp_path)
    prompt = [(7 * i) % 20 + 5 for i in range(200)]  # longer than a cache block (128 tokens on a CPU)
    old = adapter(tmp_path, pool.run_id, 0, scale=0.0)
    pool.publish(0, old.folder)
    first_logprobs(pool, prompt, old, 0)
    before = cached_tokens(two, two.urls[0])
    assert first_logprobs(pool, prompt, old, 0)[0] < 1e-4
    assert cached_tokens(two, two.urls[0]) >= before + 128  # the prefix really is cached

    new = adapter(tmp_path, pool.run_id, 1, scale=0.3)
    pool.publish(1, new.folder)
    off, ours = first_logprobs(pool, prompt, new, 1)
    assert off < 1e-4

    two.stop(1)
    two.start(1)
    two.wait(1)
    fresh = two.pool([two.urls[1]], adapter_folder=tmp_path, run_id=pool.run_id)
    fresh.publish(1, new.folder)
    off, theirs = first_logprobs(fresh, prompt, new, 1)
    assert off < 1e-4
    assert ours == pytest.approx(theirs, abs=1e-5)

    # What must not be done: the same change under the name and path that are already loaded.
    name, headers = adapter_name(pool.run_id, 1), {"Authorization": f"Bearer {two.key()}"}
    third = adapter(tmp_path, pool.run_id, 2, scale=0.6)
    shutil.copytree(third.folder, new.folder, dirs_exist_ok=True)
    order = {"lora_name": name, "lora_path": str(new.folder), "load_inplace": True}
    done = httpx.post(f"{two.urls[0]}/v1/load_lora_adapter", json=order, headers=headers, timeout=60)
    assert done.status_code == 200
    stale, _ = first_logprobs(pool, prompt, third, 1)
    assert stale > 0.01  # its first 128 tokens were read with the weights before

    # A pool that knows both finds one without the adapter, as after a restart, and hands it over.
    both = two.pool(adapter_folder=tmp_path)
    saved = adapter(tmp_path, both.run_id, 0)
    both.publish(0, saved.folder)
    done = httpx.post(
        f"{two.urls[1]}/v1/unload_lora_adapter", json={"lora_name": saved.name}, headers=headers, timeout=60
    )
    assert done.status_code == 200
    for _ in range(2):  # the first may be in the other's hands before it is back
        assert gap(saved, PROMPTS, long_work(both, 0)) < 1e-4
    assert both.counters.returns == 1
    assert both.replicas[1].answered > 0


def test_kill_all_stops_with_a_message(two: Servers, tmp_path: Path) -> None:
    pool = two.pool(adapter_folder=tmp_path, retries=2, backoff=0.2)
    saved = adapter(tmp_path, pool.run_id, 0)
    pool.publish(0, saved.folder)

    def kill_when_working() -> None:
        while not all(replica.in_flight for replica in pool.replicas):
            time.sleep(0.005)
        two.kill(0)
        two.kill(1)

    killer = threading.Thread(target=kill_when_working)
    killer.start()
    with pytest.raises(NoReplicaLeft, match=r"no replica left of 2, each failed 3 times.*`entrl serve` and resume"):
        long_work(pool, 0)
    killer.join()
    with pytest.raises(NoReplicaLeft):
        pool.publish(1, saved.folder)
    assert pool.version == 0


def test_a_server_ends_with_entrl_serve(two: Servers) -> None:
    """Also when it is killed outright and can clean nothing up."""
    two.stop(0)
    two.start(0)
    two.wait(0)
    below = two.vllm(0)
    assert below
    process = two.processes[0]
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    two.processes[0] = None
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
