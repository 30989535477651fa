"""Bytes of a sync and the balance of rollouts and training, as `docs/scale.md` states them.

    python benchmarks/scale.py --out benchmarks/scale.json            tables by arithmetic; seconds, needs no vLLM
    python benchmarks/scale.py --out benchmarks/scale.json --measure  also the check on this machine; needs vLLM

Three parts. `sync`: parameters of three published architectures counted on the meta device, and one adapter and one
model really written. `hardware`: what `entrl.runs.plan.balance` gives at 1.5B, 7B and 32B under ASSUMED hardware.
`check` (--measure): real GRPO steps with colocated vLLM, in processor time (what other programs on the machine do not
inflate much); rates are taken from the first setting and must predict the others.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from entrl.models.shape import ModelShape, cache_bytes, model_shape
from entrl.runs.plan.balance import Load, Rates, balance, engines_in_balance
from entrl.runs.plan.memory import GIB, Training, training_peak
from entrl.runs.plan.sampling import Engine

# Published configurations (Qwen2.5); only sizes.
MODELS = {
    "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
    "32B": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8},
}
REST = {
    "1.5B": {"intermediate_size": 8960, "vocab_size": 151_936, "tie_word_embeddings": True},
    "7B": {"intermediate_size": 18_944, "vocab_size": 152_064, "tie_word_embeddings": False},
    "32B": {"intermediate_size": 27_648, "vocab_size": 152_064, "tie_word_embeddings": False},
}
RANKS = (16, 64)


def count(name: str, rank: int | None) -> ModelShape:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(**MODELS[name], **REST[name])
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    total = model.num_parameters()
    trained = total
    if rank is not None:
        with torch.device("meta"):
            model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model_shape(config, parameters=total, trained=trained)


# --- bytes --------------------------------------------------------------------------------------------------------


def sync_table() -> list[dict[str, Any]]:
    """Bytes to one receiver. Weights travel in 16 bits here, adapters in float32, as peft keeps and writes them."""
    rows = []
    for name in MODELS:
        shapes = {rank: count(name, rank) for rank in RANKS}
        full = 2 * shapes[RANKS[0]].parameters
        row = {"model": name, "parameters": shapes[RANKS[0]].parameters, "full_bf16": full, "merged_lora_bf16": full}
        for rank, shape in shapes.items():
            row[f"adapter_r{rank}"] = 4 * shape.trained
            row[f"ratio_r{rank}"] = full / (4 * shape.trained)
        rows.append(row)
    return rows


def written() -> dict[str, Any]:
    """A model and its adapter really saved: bytes of the files against the formula."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(hidden_size=512, num_hidden_layers=8, intermediate_size=1536, num_attention_heads=8)
    config.num_key_value_heads, config.head_dim, config.vocab_size, config.tie_word_embeddings = 4, 64, 4096, True
    model: Any = Qwen3ForCausalLM(config).to(torch.bfloat16)
    total = model.num_parameters()
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(f"{folder}/adapter")
        adapted.merge_and_unload().save_pretrained(f"{folder}/model")
        size = lambda kind: sum(path.stat().st_size for path in Path(folder, kind).glob("*.safetensors"))  # noqa: E731
        full, adapter = size("model"), size("adapter")
    return {
        "parameters": total,
        "trained": trained,
        "merged_file": full,
        "merged_formula": 2 * total,
        "adapter_file": adapter,
        "adapter_formula": 4 * trained,
        "ratio": full / adapter,
    }


# --- assumed hardware ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """ASSUMPTIONS, none of them measured by us: one GPU of the 80 GB class and the link between machines."""

    flops: float = 989e12  # 16-bit, dense, per second
    memory: float = 3.35e12  # bytes per second
    device: float = 80 * GIB
    train_share: float = 0.4  # of flops that training reaches
    decode_share: float = 0.6  # of memory bandwidth that decoding reaches
    prefill_share: float = 0.5  # of flops that a large decoding batch reaches at most
    sequences: int = 256  # decoded together at most (vLLM's max_num_seqs)
    link: float = 12.5e9  # bytes per second from the trainer to all engines together: 100 Gbit/s
    slow_link: float = 0.125e9  # the same through 1 Gbit/s


OPERATIONS = {"full": 8.0, "lora": 6.0}  # x parameters per trained token, with checkpointing: 2+4+2 and 2+2+2
DEVICES = {"1.5B": 1, "7B": 1, "32B": 2}  # GPUs of one engine
LONGEST = 8192  # tokens of the longest completion of a rollout
ROLLOUT = Load(rows=1024, prompt=512, length=4096, trainings=1, scorings=1)
TRAINERS = {"1.5B": 8, "7B": 8, "32B": 16}  # training GPUs


def decode_rate(shape: ModelShape, hardware: Hardware, devices: int) -> tuple[float, int]:
    """(tokens per second of one engine, sequences decoded together) at the mean context of ROLLOUT."""
    context = ROLLOUT.prompt + ROLLOUT.length / 2
    room = Engine(device=hardware.device, share=0.9, parallel=devices).cached_tokens(shape)
    batch = max(1, min(hardware.sequences, int(room // (ROLLOUT.prompt + ROLLOUT.length))))
    read = 2 * shape.parameters + batch * context * cache_bytes(shape)
    by_memory = read / (hardware.decode_share * hardware.memory * devices)
    by_flops = batch * 2 * shape.parameters / (hardware.prefill_share * hardware.flops * devices)
    return batch / max(by_memory, by_flops), batch


def single_token(shape: ModelShape, hardware: Hardware, devices: int) -> float:
    """Seconds of one decoding step for a completion that is left alone; no number of engines makes it shorter."""
    return 2 * shape.parameters / (hardware.decode_share * hardware.memory * devices)


def hardware_table(hardware: Hardware) -> list[dict[str, Any]]:
    rows = []
    for name in MODELS:
        for kind in ("full", "lora"):
            shape = count(name, 16 if kind == "lora" else None)
            generate, batch = decode_rate(shape, hardware, DEVICES[name])
            train = hardware.train_share * hardware.flops / (OPERATIONS[kind] * shape.parameters)
            rates = Rates(generate=generate, train=train, bandwidth=hardware.link)
            sent = 2 * shape.parameters if kind == "full" else 4 * shape.trained
            found = {
                n: balance(ROLLOUT, rates, engines=n, processes=TRAINERS[name], bytes_sent=sent)
                for n in (1, 2, 4, 8, 16)
            }
            state = training_peak(
                shape,
                Training(
                    dtype="float32" if kind == "full" else "bfloat16",
                    autocast=True,
                    lora=kind == "lora",
                    optimiser="adamw_torch_fused",
                    rows=1,
                    tokens=int(ROLLOUT.prompt) + 4 * int(ROLLOUT.length),
                    checkpointing=True,
                    processes=TRAINERS[name],
                    sharding="fsdp2",
                ),
            )
            rows.append(
                {
                    "model": name,
                    "kind": kind,
                    "trainers": TRAINERS[name],
                    "devices_per_engine": DEVICES[name],
                    "sequences": batch,
                    "generate_tokens_per_s": generate,
                    "train_tokens_per_s": train,
                    "training_s": found[1].training,
                    "generation_s": {n: one.generation for n, one in found.items()},
                    "sync_s": {n: one.sync for n, one in found.items()},
                    "sync_slow_link_s": {n: n * sent / hardware.slow_link for n in found},
                    "longest_completion_s": LONGEST * single_token(shape, hardware, DEVICES[name]),
                    "bottleneck": {n: one.bottleneck for n, one in found.items()},
                    "engines_in_balance": engines_in_balance(ROLLOUT, rates, processes=TRAINERS[name]),
                    "gib_per_trainer": state.size / GIB,
                }
            )
    return rows


# --- check on this machine ----------------------------------------------------------------------------------------

SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 8}
SETTINGS = {
    "calibration": {"rows": 64, "length": 64, "iterations": 1},
    "a quarter of the rows": {"rows": 16, "length": 64, "iterations": 1},
    "twice the rows": {"rows": 128, "length": 64, "iterations": 1},
    "twice the length": {"rows": 64, "length": 128, "iterations": 1},
    "trained on twice": {"rows": 64, "length": 64, "iterations": 2},
}
WARM, TIMED = 2, 4  # rollouts
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_setting(rows: int, length: int, iterations: int) -> dict[str, Any]:
    """Processor seconds per rollout of a real trainer with colocated vLLM, completions forced to their full length."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

    from entrl.models.shipped import model_path
    from entrl.trainers.config import EntropyGRPOConfig
    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-reasoner"))
    prompt = "12+34+56="
    with tempfile.TemporaryDirectory() as folder:
        config = Qwen3Config(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=512)
        config.num_key_value_heads, config.head_dim, config.tie_word_embeddings = 4, 32, True
        config.eos_token_id, config.pad_token_id, config.bos_token_id = (
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            None,
        )
        Qwen3ForCausalLM(config).save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        args = EntropyGRPOConfig(
            output_dir=f"{folder}/out",
            use_cpu=True,
            bf16=False,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=256,
            vllm_importance_sampling_mode="token_truncate",
            generation_kwargs={"ignore_eos": True},
            per_device_train_batch_size=rows,
            num_generations=4,
            num_iterations=iterations,
            max_completion_length=length,
            max_steps=(WARM + TIMED) * iterations,
            learning_rate=1e-6,
            beta=0.0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            log_dynamics=False,
            log_diversity=False,
        )
        spent = {"generation": 0.0, "sync": 0.0}

        def timed(name: str, call: Any) -> Any:
            def wrapped(*given: Any, **options: Any) -> Any:
                started = time.process_time()
                try:
                    return call(*given, **options)
                finally:
                    spent[name] += time.process_time() - started

            return wrapped

        marks: list[tuple[float, dict[str, float]]] = []
        lengths: list[int] = []

        class Mark(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % iterations == 0:
                    marks.append((time.process_time(), dict(spent)))

        def coin(completion_ids: list[list[int]], **_: Any) -> list[float]:
            lengths.extend(len(ids) for ids in completion_ids)
            return [float(i % 2) for i in range(len(completion_ids))]

        trainer = EntropyGRPOTrainer(
            f"{folder}/model",
            coin,
            args,
            train_dataset=Dataset.from_list([{"prompt": prompt}] * 64),
            processing_class=tokenizer,
            callbacks=[Mark()],
        )
        engine: Any = trainer.vllm_generation
        engine.generate = timed("generation", engine.generate)
        engine.sync_weights = timed("sync", engine.sync_weights)
        trainer.train()
        parameters = sum(p.numel() for p in trainer.model.parameters())
    assert set(lengths) == {length}, f"completions were to have {length} tokens each, they have {sorted(set(lengths))}"
    (first, spent_first), (last, spent_last) = marks[WARM - 1], marks[-1]
    generation, sync = ((spent_last[name] - spent_first[name]) / TIMED for name in ("generation", "sync"))
    whole = (last - first) / TIMED
    return {
        "rows": rows,
        "length": length,
        "prompt": len(tokenizer(prompt).input_ids),
        "iterations": iterations,
        "parameters": parameters,
        "generation_s": generation,
        "sync_s": sync,
        "training_s": whole - generation - sync,
        "whole_s": whole,
    }


def load_of(found: dict[str, Any]) -> Load:
    """TRL scores each rollout once under vLLM's importance-sampling correction."""
    return Load(
        rows=found["rows"], prompt=found["prompt"], length=found["length"], trainings=found["iterations"], scorings=1
    )


def measure() -> dict[str, Any]:
    """Every setting in a process of its own."""
    measured = {}
    for name in SETTINGS:
        command = [sys.executable, __file__, "--setting", name]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        measured[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{name}: {measured[name]}", file=sys.stderr, flush=True)
    return measured


def predict(measured: dict[str, Any]) -> dict[str, Any]:
    """Rates of the first setting against the seconds of all.

    An engine's rate is one at a batch size: a decoding step takes `fixed + each x sequences` seconds. The two numbers
    come from the first two settings, which differ in their rows alone; `generation_affine_s` is what they predict.
    """
    base, small = (measured[name] for name in list(SETTINGS)[:2])
    one = balance(load_of(base), Rates(generate=1, train=1), engines=1, processes=1)
    sent = 4 * base["parameters"]
    rates = Rates(
        generate=one.generation / base["generation_s"],
        train=one.training / base["training_s"],
        bandwidth=sent / base["sync_s"],
    )
    step, small_step = (found["generation_s"] / found["length"] for found in (base, small))
    each = (step - small_step) / (base["rows"] - small["rows"])
    fixed = step - each * base["rows"]
    out = {}
    for name, found in measured.items():
        kept = {key: value for key, value in found.items() if "predicted" not in key}
        predicted = balance(load_of(found), rates, engines=1, processes=1, bytes_sent=sent)
        affine = found["length"] * (fixed + each * found["rows"])
        out[name] = kept | {
            "predicted": dataclasses.asdict(predicted),
            "generation_affine_s": affine,
            "whole_over_predicted": found["whole_s"] / predicted.synchronous,
            "whole_over_affine": found["whole_s"] / (predicted.training + predicted.sync + affine),
        }
    return {
        "unit": "processor seconds per rollout, one thread",
        "rates": dataclasses.asdict(rates),
        "decoding_step_s": {"fixed": fixed, "each": each},
        "settings": out,
    }


def surroundings() -> dict[str, Any]:
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help="run the check; needs vLLM")
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting:
        print(json.dumps(run_setting(**SETTINGS[options.setting])))
        return
    hardware = Hardware()
    found = {
        **surroundings(),
        "sync": sync_table(),
        "written": written(),
        "assumed_hardware": dataclasses.asdict(hardware),
        "assumed_rollout": dataclasses.asdict(ROLLOUT),
        "hardware": hardware_table(hardware),
    }
    if options.measure:
        found["check"] = {"measured": surroundings(), **predict(measure())}
    elif options.out is not None and options.out.is_file():
        earlier = json.loads(options.out.read_text()).get("check")  # of an earlier --measure, which takes minutes
        found["check"] = earlier and {"measured": earlier["measured"], **predict(earlier["settings"])}
    text = json.dumps(found, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
