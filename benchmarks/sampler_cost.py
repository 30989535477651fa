"""What the sampler plugin costs at a vocabulary of 152k: its kernels alone, and as a share of a real decode step.

    kernels   entropy, entropy with the kept mass of top-p, Top-H by both rules, on (B, V) logits; beside them what any
              sampler does with the same logits (softmax, exponential noise, argmax) and vLLM's top-p where installed
    engine    vLLM's own engine with random weights in the shape of a 0.5B model (24 layers, width 896, V 151,936):
              seconds of a decode step with the plugin asked for nothing, for records, for records under top-p, and for
              Top-H; arms in rotation, ratio = exp(mean log(arm / off)) with Student's t 95 % interval over rounds,
              and the seconds spent inside the plugin in those same steps (V1 runner, CPU; on CUDA it only enqueues)

    python benchmarks/sampler_cost.py [--parts kernels engine] [--device cpu|cuda] [--batches 1 16] [--rounds 5]
                                      [--out result.json]

Logits are normal with deviation 4: entropies of 3 to 6 nats, a first token of 5 to 50 %. Clock and processor time are
both kept: on a shared machine only the second means much. On CUDA clock time is taken after a synchronisation.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrl.maths.truncation import entropy_and_kept_mass, top_h_keep, top_p_keep
from entrl.stats.pairing import seed_ratio

VOCABULARY = 151_936
SHAPE = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
TOP_P, ALPHA = 0.95, 0.4
STEPS = 4


def logits_of(rows: int, device: str) -> Tensor:
    g = torch.Generator().manual_seed(rows)
    return (4 * torch.randn(rows, VOCABULARY, generator=g)).to(device)


def draw(z_BV: Tensor) -> Tensor:
    p_BV = z_BV.softmax(-1)
    return p_BV.div_(torch.empty_like(p_BV).exponential_()).argmax(-1)


def kernel_arms() -> dict[str, Callable[[Tensor], Any]]:
    arms: dict[str, Callable[[Tensor], Any]] = {
        "draw (softmax, noise, argmax)": draw,
        "entropy": entropy_and_kept_mass,
        "entropy and mass under top-p": lambda z: entropy_and_kept_mass(z, top_p_keep(z, TOP_P)),
        "Top-H, paper": partial(top_h_keep, alpha=ALPHA),
        "Top-H, reference": partial(top_h_keep, alpha=ALPHA, rule="reference"),
    }
    try:
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
    except ImportError:
        return arms
    arms["top-p, vLLM"] = lambda z: apply_top_k_top_p(z.clone(), None, torch.full((len(z),), TOP_P, device=z.device))
    return arms


def timed(job: Callable[[], Any], device: str) -> tuple[float, float]:
    """Clock and processor seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def kernels(rounds: int, device: str) -> list[dict[str, Any]]:
    rows = []
    for batch in (1, 8, 32) if device == "cpu" else (1, 8, 64, 256):
        z_BV, arms = logits_of(batch, device), kernel_arms()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for job in arms.values():
            job(z_BV)
        for _ in range(rounds):
            for name, job in arms.items():
                times[name].append(timed(partial(job, z_BV), device))
        entropy_B, _ = entropy_and_kept_mass(z_BV)
        for name, taken in times.items():
            wall, cpu = (statistics.median(t[i] for t in taken) for i in (0, 1))
            row = {
                "batch": batch,
                "what": name,
                "wall_ms": 1e3 * wall,
                "cpu_ms": 1e3 * cpu,
                "wall_ms_per_token": 1e3 * wall / batch,
                "cpu_ms_per_token": 1e3 * cpu / batch,
                "entropy_nats": [float(entropy_B.min()), float(entropy_B.max())],
            }
            rows.append(row)
            told = f"{row['wall_ms_per_token']:8.3f} ms/token clock  {row['cpu_ms_per_token']:.3f} cpu"
            print(f"B {batch:3d}  {name:32s} {told}")
    return rows


def engine(rounds: int, device: str, batches: list[int]) -> dict[str, Any]:
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
        HF_HUB_OFFLINE="1",
    )
    from transformers import Qwen2Config
    from vllm import LLM, SamplingParams

    from entrl.engines.recording import TopHOptions, request_options
    from entrl.engines.records import take
    from entrl.engines.sampler import RecorderV1

    inside = Inside(RecorderV1.apply)
    RecorderV1.apply = lambda self, logits: inside(self, logits)
    top_h = TopHOptions(alpha=ALPHA)
    arms: dict[str, dict[str, Any]] = {
        "off": {},
        "record": {"extra_args": request_options("k")},
        "top-p, off": {"top_p": TOP_P},
        "top-p, record": {"top_p": TOP_P, "extra_args": request_options("k")},
        "Top-H": {"extra_args": request_options("", record=False, top_h=top_h)},
        "Top-H, record": {"extra_args": request_options("k", top_h=top_h)},
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Qwen2Config(
            vocab_size=VOCABULARY,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            architectures=["Qwen2ForCausalLM"],
            **SHAPE,
        )
        config.save_pretrained(folder)
        llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=device == "cpu",
            max_model_len=256,
            max_num_seqs=max(batches),
            logprobs_mode="processed_logprobs",
            gpu_memory_utilization=0.3,
            num_gpu_blocks_override=256,
            seed=0,
        )
    rows = []
    for batch in batches:
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in arms}
        for round_number in range(rounds + 1):
            for name, asked in arms.items():
                params = SamplingParams(
                    temperature=1.0, max_tokens=STEPS + 2, ignore_eos=True, logprobs=0, detokenize=False, **asked
                )
                taken = decode(llm, batch, params, device, inside)
                if round_number:  # the first one warms everything up
                    times[name].append(taken)
                if "record" in name:
                    assert len(take("k")) == batch
        for name, taken in times.items():
            row = {"batch": batch, "arm": name, **against(taken, times["top-p, off" if "top-p" in name else "off"])}
            row["plugin_cpu_ms_per_step"] = 1e3 * statistics.median(t[2] for t in taken)
            row["plugin_share_of_step"] = statistics.median(t[2] / t[1] for t in taken)
            rows.append(row)
            low, high = row["cpu"]["ratio_ci"]
            print(
                f"B {batch:3d}  {name:14s} {row['cpu']['median_ms_per_step']:8.1f} ms cpu a step, ratio "
                f"{row['cpu']['ratio']:.3f} [{low:.3f}, {high:.3f}]; inside the plugin "
                f"{row['plugin_cpu_ms_per_step']:.2f} ms, {100 * row['plugin_share_of_step']:.2f} %"
            )
    return {"model": {"vocabulary": VOCABULARY, "dtype": "bfloat16, random weights", **SHAPE}, "rows": rows}


class Inside:
    """Processor seconds spent in one method."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.seconds = method, 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.process_time()
        try:
            return self.method(*args)
        finally:
            self.seconds += time.process_time() - start


def decode(llm: Any, batch: int, params: Any, device: str, inside: Inside) -> tuple[float, float, float]:
    """Clock, processor and plugin seconds per decode step; the steps in which requests come and go are left out."""
    for i in range(batch):
        llm.llm_engine.add_request(str(i), {"prompt_token_ids": [5 + i, 6, 7, 8]}, params)
    llm.llm_engine.step()

    def steps() -> None:
        for _ in range(STEPS):
            llm.llm_engine.step()

    inside.seconds = 0.0
    wall, cpu = timed(steps, device)
    plugin = inside.seconds
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return wall / STEPS, cpu / STEPS, plugin / STEPS


def against(taken: list[tuple[float, ...]], off: list[tuple[float, ...]]) -> dict[str, Any]:
    result = {}
    for i, clock in enumerate(("wall", "cpu")):
        found = seed_ratio([t[i] for t in off], [t[i] for t in taken])
        result[clock] = {
            "median_ms_per_step": 1e3 * statistics.median(t[i] for t in taken),
            "ratio": found.mean,
            "ratio_ci": [found.lo, found.hi],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["kernels", "engine"], default=["kernels", "engine"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="of the engine part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    result: dict[str, Any] = {
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        + (torch.cuda.get_device_name() if args.device == "cuda" else "no GPU; one torch thread"),
        "load_average_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "settings": {"rounds": args.rounds, "top_p": TOP_P, "alpha": ALPHA, "decode_steps": STEPS},
    }
    if "kernels" in args.parts:
        result["kernels"] = kernels(args.rounds, args.device)
    if args.out:  # an engine can run out of memory
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if "engine" in args.parts:
        result["engine"] = engine(args.rounds, args.device, args.batches)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
