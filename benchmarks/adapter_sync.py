"""Handing a policy to a vLLM server: the adapter alone against merging it and pushing all weights, in one run.

    sync    seconds and bytes per hand-over, arms in rotation: adapter read from a shared folder, adapter over HTTP,
            weights merged + written to a shared folder + reloaded by a second server, which has no LoRA layers
            (`reload_weights`, the one full push that needs no GPU; its prefix cache is then reset). Each round changes
            the adapter, and completions after each hand-over must have the new policy's log-probs
    gap     |log-prob of the server - log-prob of the same policy in float32 transformers|, per token of completions the
            server drew at temperature 1: adapter unmerged and weights merged, served in float32 and in bfloat16

    python benchmarks/adapter_sync.py [--rounds 5] [--out benchmarks/adapter_sync.json]

The model has random weights: width 512, 8 layers, a vocabulary of 101, so nearly all of it are the layers LoRA is on
(25.8 M parameters): a real vocabulary makes the full push larger and leaves the adapter as it is. The second server
runs with vLLM's development endpoints, which the full push needs and `entrl serve` never opens.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from entrl.engines.adapters import save_version
from entrl.engines.pool import ReplicaPool
from entrl.runs.serve import Server, ServerCommand
from entrl_lab.nursery.tokenizer import character_tokenizer

RANK = 16
SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
PROMPTS = [[5 + (3 * i + j) % 60 for j in range(12)] for i in range(16)]
SAMPLING = {"max_tokens": 64, "ignore_eos": True, "seed": 1}
DTYPES = ("float32", "bfloat16")
KEY = "benchmark"


def make_model(folder: Path) -> PeftModel:
    """A random model, saved, and a LoRA adapter on all its linear layers."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.06,  # logits with a deviation near 1.4: far from uniform
        **SHAPE,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    assert isinstance(peft, PeftModel)
    return peft.eval()


def change(model: PeftModel, seed: int) -> None:
    """Another policy: B redrawn, so that the update is a few per cent of the weights."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)


def start(folder: Path, port: int, dtype: str, log: Path, *, lora: bool) -> Server:
    argv = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256", "--disable-uvicorn-access-log"),
        *("--logprobs-mode", "processed_logprobs", "--middleware", "entrl.engines.middleware.Rollouts"),
        *(("--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2") if lora else ()),
    ]
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if lora else {"VLLM_SERVER_DEV_MODE": "1"}
    environment["VLLM_NO_USAGE_STATS"] = "1"
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind")):
        environment[name] = os.environ.get(name, value)
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = ServerCommand(argv=argv, environment=environment, host="127.0.0.1", port=port)
    return Server(command, api_key=KEY, log=log)


def policy_gaps(model: PeftModel, found: list) -> list[float]:
    """Per token, nats: |server - float32 transformers|."""
    gaps = []
    for prompt, completions in zip(PROMPTS, found, strict=True):
        for c in completions:
            with torch.no_grad():
                logits_TV = model(torch.tensor([prompt + c.token_ids])).logits[0, len(prompt) - 1 : -1].float()
            own_T = torch.log_softmax(logits_TV, -1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            gaps += (own_T - torch.tensor(c.logprobs)).abs().tolist()
    return gaps


def policy_of(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(PROMPTS)).logits


class Arms:
    """The three ways to hand over; each returns (bytes, seconds of its parts)."""

    def __init__(self, model: PeftModel, folder: Path, url: str, plain_url: str, base: str) -> None:
        self.model, self.folder, self.url = model, folder, plain_url
        options: dict[str, Any] = {"base_model": base, "lora_rank": RANK}
        self.plain = ReplicaPool([plain_url], KEY, base_model=base)
        self.shared = ReplicaPool([url], KEY, adapter_folder=folder, **options)
        self.sent = ReplicaPool([url], KEY, **options)
        self.accelerator = Accelerator(cpu=True)
        self.version = 0

    def _publish(self, pool: ReplicaPool) -> tuple[int, dict[str, float]]:
        self.version += 1
        started = time.perf_counter()
        saved = save_version(self.model, self.accelerator, self.folder, pool.run_id, self.version)
        middle = time.perf_counter()
        report = pool.publish(self.version, saved.folder)
        seconds = {"write": middle - started, "hand over": time.perf_counter() - middle}
        return report.bytes_sent, seconds

    def adapter_shared(self) -> tuple[int, dict[str, float]]:
        return self._publish(self.shared)

    def adapter_sent(self) -> tuple[int, dict[str, float]]:
        return self._publish(self.sent)

    def merged(self, dtype: torch.dtype = torch.float32) -> tuple[int, dict[str, float]]:
        out = self.folder / "merged"
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        self.model.merge_adapter()
        weights = {
            name.replace("base_model.model.", "").replace(".base_layer", ""): value.to(dtype).contiguous()
            for name, value in self.model.state_dict().items()
            if "lora_" not in name
        }
        middle = time.perf_counter()
        self.model.get_base_model().save_pretrained(out, state_dict=weights)
        self.model.unmerge_adapter()  # after writing: `weights` are the model's own tensors
        end = time.perf_counter()
        self.rpc("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(out)}})
        self.rpc("/reset_prefix_cache", {})
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        return size, {"merge": middle - started, "write": end - middle, "hand over": time.perf_counter() - end}

    def rpc(self, path: str, content: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(self.url + path, json=content, headers=headers, timeout=600, trust_env=False)
        assert answer.status_code == 200, answer.text


def measure(folder: Path, dtype: str, rounds: int, port: int) -> dict[str, Any]:
    base = folder / "base"
    model = make_model(base)
    logs = [folder / f"{dtype}-{kind}.log" for kind in ("lora", "plain")]
    with (
        start(base, port, dtype, logs[0], lora=True) as server,
        start(base, port + 1, dtype, logs[1], lora=False) as plain,
    ):
        out: dict[str, Any] = {"server_start_seconds": [s.wait_ready(1800) for s in (server, plain)]}
        arms = Arms(model, folder, server.command.url, plain.command.url, str(base))
        for pool in (arms.shared, arms.plain):
            pool.check()
        ways: dict[str, tuple[ReplicaPool, Callable[[], tuple[int, dict[str, float]]]]] = {
            "adapter, shared folder": (arms.shared, arms.adapter_shared),
            "adapter, HTTP": (arms.sent, arms.adapter_sent),
            "merged, shared folder": (arms.plain, arms.merged),
        }
        taken: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in ways}
        gaps: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):  # the first turn warms up and is dropped
            change(model, 100 + turn)
            before = policy_of(model)
            for name, (pool, way) in ways.items():
                taken[name].append(way())
                found = pool.generate(PROMPTS, 1, SAMPLING, None if pool is arms.plain else arms.version)
                gaps[name] += policy_gaps(model, found)
                assert statistics.mean(gaps[name]) < 0.1, (name, turn, statistics.mean(gaps[name]))
            # Merging and unmerging leaves the trainer's own policy where it was, up to round-off.
            assert torch.allclose(before, policy_of(model), atol=1e-3)
        out["sync"], out["gap"] = {}, {}
        for name, runs in taken.items():
            totals = [sum(seconds.values()) for _, seconds in runs[1:]]
            out["sync"][name] = {
                "bytes": runs[-1][0],
                "seconds_median": statistics.median(totals),
                "seconds": totals,
                "parts_median": {k: statistics.median([s[k] for _, s in runs[1:]]) for k in runs[0][1]},
            }
        for name, values in gaps.items():
            out["gap"][name] = {
                "tokens": len(values),
                "mean_nats": statistics.mean(values),
                "largest_nats": max(values),
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=18150)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = Path(__file__).parent  # git answers for the folder it is asked in
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    commit = asked.stdout.strip()
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread each for trainer and server",
        "load_average_at_start": os.getloadavg(),
        "shape": SHAPE,
        "rank": RANK,
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        for i, dtype in enumerate(DTYPES):
            result[dtype] = measure(Path(folder) / dtype, dtype, options.rounds, options.port + 2 * i)
            print(json.dumps({dtype: result[dtype]}, indent=2), flush=True)
    sync = result["float32"]["sync"]
    few, many = sync["adapter, shared folder"], sync["merged, shared folder"]
    result["full_over_adapter"] = {
        "bytes": many["bytes"] / few["bytes"],
        "seconds": many["seconds_median"] / few["seconds_median"],
    }
    result["load_average_at_end"] = os.getloadavg()
    print(json.dumps(result["full_over_adapter"]))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
