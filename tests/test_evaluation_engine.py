"""Evaluations through real vLLM engines: against transformers, against our own forward, killed, and by servers.

One engine of our own answers the problems that the other tests compare with; servers and killed ones are others.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from engine_evaluation import MODEL, SAMPLING, work
from free_port import free_port
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from entrl.engines.local import SHARE
from entrl.evaluation.engine import open_engine
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.writing import Answered, Asked, Sampling
from entrl.maths.signals import entropy_from_logits
from entrl.models.load import load_policy, load_tokenizer
from entrl.models.shipped import model_path

pytestmark = pytest.mark.vllm

SIZE = 200  # problems
START_S = 600  # an engine's start on a machine that does other things as well
SCRIPT = Path(__file__).parent / "engine_evaluation.py"
TOKENIZER = load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    task = work(SIZE, writer=object())
    return [Asked(index=i, prompt_ids=ids) for i, ids in enumerate(task.prompts)]


@pytest.fixture(scope="module")
def answered(asked: list[Asked]) -> tuple[dict[int, Answered], dict[int, Answered], list[int]]:
    """(all problems in one go, some of them asked again in other company, the order in which the first finished)."""
    with open_engine(MODEL, sampling=SAMPLING, tokenizer=TOKENIZER) as writer:
        first = list(writer.write(asked))
        again = list(writer.write(asked[30:20:-1]))
        told = writer._backend._engine._engine.vllm_config.cache_config
        assert told.gpu_memory_utilization == SHARE  # what `entrl plan` counts with, whatever vLLM's default is
    return {a.index: a for a in first}, {a.index: a for a in again}, [a.index for a in first]


@pytest.fixture(scope="module")
def by_transformers(asked: list[Asked]) -> dict[int, Answered]:
    model, tokenizer = load_policy(MODEL)
    writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=SAMPLING, rows=320)
    return {a.index: a for a in writer.write(asked)}


def means(values: list[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    values_N = torch.tensor(values, dtype=torch.float64)
    return values_N.mean().item(), values_N.std().item() / len(values) ** 0.5


def test_both_engines_agree_within_sampling_error(asked, answered, by_transformers) -> None:
    """Paired by problem: accuracy, entropies by phase (nats) and lengths (tokens) differ by less than 3 standard errors
    and the standard errors are small."""
    ours, theirs = answered[0], by_transformers
    same = sum(ours[i].greedy.ids == theirs[i].greedy.ids for i in range(SIZE))
    print(f"greedy answers equal on {same} of {SIZE}")
    assert same >= 0.98 * SIZE  # float32 on both sides; a near tie may fall the other way
    task = work(SIZE, writer=object())
    records = [(task.record(ours[i]), task.record(theirs[i])) for i in range(SIZE)]
    pairs = {
        "accuracy": [[r["problem"]["n_correct"] / SAMPLING.samples for r in both] for both in records],
        "length": [[r["problem"]["mean_length"] for r in both] for both in records],
    }
    for phase in ("think", "answer"):
        known = [both for both in records if all(r["tokens"][phase] for r in both)]
        pairs[phase] = [[r["entropy"][phase] / r["tokens"][phase] for r in both] for both in known]
    for name, largest in (("accuracy", 0.05), ("length", 2.0), ("think", 0.05), ("answer", 0.05)):
        gap, error = means([a - b for a, b in pairs[name]])
        print(f"{name}: vllm - transformers {gap:+.4f}, standard error {error:.4f}, {len(pairs[name])} problems")
        assert abs(gap) < 3 * error
        assert error < largest
    assert min(means([p[side] for p in pairs["accuracy"]])[0] for side in (0, 1)) > 0.05  # something is right


def test_entropies_and_log_probs_are_those_of_the_whole_distribution(asked, answered) -> None:
    """Of our own forward on the engine's completions, at the temperature, before top_p."""
    model = AutoModelForCausalLM.from_pretrained(model_path(MODEL), dtype=torch.float32)
    for problem in asked[:40]:
        for c in answered[0][problem.index].drawn:
            with torch.no_grad():
                logits_TV = model(torch.tensor([problem.prompt_ids + c.ids])).logits[
                    0, len(problem.prompt_ids) - 1 : -1
                ]
            scaled_TV = logits_TV / SAMPLING.temperature
            logp_T = scaled_TV.log_softmax(-1).gather(-1, torch.tensor(c.ids)[:, None])[:, 0]
            assert torch.allclose(c.entropies, entropy_from_logits(scaled_TV), atol=1e-4)
            assert torch.allclose(c.logprobs, logp_T, atol=1e-4)
        greedy = answered[0][problem.index].greedy
        assert (greedy.entropies, greedy.logprobs) == (None, None)


def test_neither_order_nor_company_decides_what_a_problem_is_answered(answered) -> None:
    first, again, order = answered
    assert sorted(again) == list(range(21, 31))
    assert all(again[i].greedy.ids == first[i].greedy.ids for i in again)
    assert all([c.ids for c in again[i].drawn] == [c.ids for c in first[i].drawn] for i in again)
    assert sorted(order) == list(range(SIZE))
    assert order != sorted(order)  # a short answer does not wait for a long one asked before it
    drawn = {tuple(c.ids) for a in first.values() for c in a.drawn}
    assert len(drawn) > SIZE  # samples differ
    ends = [c.truncated == (c.ids[-1] != TOKENIZER.eos_token_id) for a in first.values() for c in a.drawn]
    assert all(ends)


def test_a_prompt_longer_than_the_context_is_refused(asked) -> None:
    long = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=2000, seed=0)
    with (
        open_engine(MODEL, sampling=long, tokenizer=TOKENIZER) as writer,
        pytest.raises(ValueError, match=r"max_new_tokens=2000 are longer than the engine's context of 512"),
    ):
        next(writer.write(asked))


# ---- killed and gone on with


def start(out: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(SCRIPT), str(out), str(folder), str(SIZE)]
    return subprocess.Popen(words, env=environment(), cwd=SCRIPT.parent)


def environment() -> dict[str, str]:
    """Not what an engine of another test left behind: a child with a RANK would wait for a process group."""
    ranks = ("RANK", "WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "LOCAL_")) and k not in ranks}
    return kept | {"ENTRL_VLLM_API_KEY": "a-key-for-these-tests", "VLLM_LOGGING_LEVEL": "WARNING"}


def kept(folder: Path) -> int:
    return sum(len(file.read_bytes().split(b"\n")) - 1 for file in folder.glob("rank-*.jsonl"))


def test_a_kill_loses_the_problems_under_way_and_takes_the_engine_along(tmp_path: Path, answered) -> None:
    out, folder = tmp_path / "result.json", tmp_path / "partial"
    process = start(out, folder)
    try:
        deadline = time.monotonic() + START_S
        while kept(folder) < 5 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
    finally:
        process.kill()
        process.wait()
    saved = kept(folder)
    assert 5 <= saved < SIZE
    assert not psutil.wait_procs(children, timeout=60)[1]  # no engine is left behind
    lines = [file.read_bytes() for file in sorted(folder.glob("rank-*.jsonl"))]
    assert start(out, folder).wait(START_S) == 0
    assert not folder.exists()
    result = json.loads(out.read_text())
    task = work(SIZE, writer=object())
    whole = task.result([task.record(answered[0][i]) for i in range(SIZE)], 0.0)
    assert lines
    # Company moves logits in their last bits: a completion in some thousands falls the other way at a near tie.
    differ = [a["id"] for a, b in zip(result["problems"], whole["problems"], strict=True) if a != b]
    assert len(differ) <= 0.01 * SIZE
    assert result["entropy"]["all"] == pytest.approx(whole["entropy"]["all"], rel=0.01)


# ---- adapters and servers


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_path(MODEL), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)  # enough to change most greedy answers
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], str]]:
    """(two of `entrl serve`, a plain one of vLLM's)."""
    folder = tmp_path_factory.mktemp("servers")
    ours, plain = [f"http://127.0.0.1:{free_port()}" for _ in range(2)], free_port()
    recipe = folder / "two.yaml"
    recipe.write_text(
        f"model: {{path: {MODEL}}}\ndata: {{task: sums, train_size: 64}}\nrewards: [accuracy]\n"
        "lora: {r: 4, lora_alpha: 8, target_modules: all-linear}\n"
        f"trainer: {{use_vllm: true, vllm_replicas: {json.dumps(ours)}, vllm_max_model_length: 256, bf16: false, "
        f"output_dir: {folder}/run}}\n"
    )
    entrl = [
        sys.executable,
        "-m",
        "entrl",
        "serve",
        str(recipe),
        "--timeout",
        str(START_S),
        "--vllm-args=--enforce-eager",
    ]
    vllm = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model_path(MODEL),
        "--port",
        str(plain),
    ]
    vllm += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    commands = [[*entrl, "--replica", "0"], [*entrl, "--replica", "1"], vllm]
    with (folder / "log").open("w") as log:
        processes = [subprocess.Popen(c, env=environment(), stdout=log, stderr=log) for c in commands]
    try:
        wait_for([f"{url}/health" for url in [*ours, f"http://127.0.0.1:{plain}"]], processes)
        yield ours, f"http://127.0.0.1:{plain}"
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def wait_for(addresses: list[str], processes: list[subprocess.Popen[bytes]]) -> None:
    import httpx

    deadline = time.monotonic() + START_S
    for address in addresses:
        while True:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            try:
                if httpx.get(address, trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)


def test_servers_answer_as_an_engine_of_our_own(asked, answered, servers, monkeypatch) -> None:
    monkeypatch.setenv("ENTRL_VLLM_API_KEY", "a-key-for-these-tests")
    said: list[str] = []
    with open_engine(MODEL, sampling=SAMPLING, tokenizer=TOKENIZER, servers=servers[0], say=said.append) as writer:
        found = {a.index: a for a in writer.write(asked)}
    assert not said
    pairs = [(found[i].drawn[j], answered[0][i].drawn[j]) for i in range(SIZE) for j in range(SAMPLING.samples)]
    equal = [(a, b) for a, b in pairs if a.ids == b.ids]  # same seeds, so the same draws, but for near ties
    assert len(equal) >= 0.98 * len(pairs)
    assert all(torch.allclose(a.entropies, b.entropies, atol=1e-4) for a, b in equal)
    assert all(torch.allclose(a.logprobs, b.logprobs, atol=1e-4) for a, b in equal)
    assert sum(found[i].greedy.ids == answered[0][i].greedy.ids for i in range(SIZE)) >= 0.98 * SIZE


def test_more_prompts_than_a_step_of_an_engine_takes(asked, servers, monkeypatch) -> None:
    monkeypatch.setenv("ENTRL_VLLM_API_KEY", "a-key-for-these-tests")
    short = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=2, seed=0)
    long = [Asked(index=a.index, prompt_ids=(a.prompt_ids * 20)[:200]) for a in asked]
    assert sum(len(a.prompt_ids) for a in long) > 16384  # the largest step that vLLM takes by itself
    for given in ({}, {"servers": servers[0]}):
        with open_engine(MODEL, sampling=short, tokenizer=TOKENIZER, **given) as writer:
            assert {a.index for a in writer.write(long)} == set(range(SIZE))


def test_an_adapter_is_served_on_its_base(asked, adapter, servers, monkeypatch) -> None:
    monkeypatch.setenv("ENTRL_VLLM_API_KEY", "a-key-for-these-tests")
    model, _ = load_policy(str(adapter))
    some = asked[:40]
    writer = TransformersWriter(model=model, tokenizer=TOKENIZER, sampling=SAMPLING, rows=200)
    expected = {a.index: a for a in writer.write(some)}
    base = TransformersWriter(model=load_policy(MODEL)[0], tokenizer=TOKENIZER, sampling=SAMPLING, rows=200)
    unchanged = {a.index: a for a in base.write(some)}
    for how in ((), tuple(servers[0])):  # by an engine of our own, by the servers
        with open_engine(str(adapter), sampling=SAMPLING, tokenizer=TOKENIZER, servers=how) as writer:
            found = {a.index: a for a in writer.write(some)}
        same = sum(found[i].greedy.ids == expected[i].greedy.ids for i in found)
        assert same >= 38
        assert same > 2 * sum(found[i].greedy.ids == unchanged[i].greedy.ids for i in found)


def test_a_server_without_our_plugin_gives_answers_and_no_entropies(asked, answered, servers) -> None:
    said: list[str] = []
    with open_engine(MODEL, sampling=SAMPLING, tokenizer=TOKENIZER, servers=[servers[1]], say=said.append) as writer:
        found = {a.index: a for a in writer.write(asked[:40])}
    assert len(said) == 1
    assert "no sampler plugin of ours, so this evaluation has no entropies" in said[0]
    assert all(c.entropies is None and c.logprobs is None for a in found.values() for c in a.drawn)
    same = [found[i].drawn[j].ids == answered[0][i].drawn[j].ids for i in found for j in range(SAMPLING.samples)]
    assert sum(same) >= 0.97 * len(same)


def test_what_vllm_cannot_serve_is_folded_in_or_refused(tmp_path: Path, servers) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path(MODEL), dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=4, use_dora=True, target_modules=["q_proj"])).save_pretrained(tmp_path)
    said: list[str] = []
    with open_engine(str(tmp_path), sampling=SAMPLING, tokenizer=TOKENIZER, say=said.append):
        assert len(said) == 1  # the engine itself starts with the first problem
        assert "is folded into a copy of its base for vLLM: DoRA adapters are not servable" in said[0]
    with (
        pytest.raises(ValueError, match=r"servers cannot serve the adapter .*: DoRA .*entrl merge"),
        open_engine(str(tmp_path), sampling=SAMPLING, tokenizer=TOKENIZER, servers=[servers[1]]),
    ):
        pass
