"""Memory that `entrl plan` predicts against memory that was measured, term by term.

    python benchmarks/memory_prediction.py fake --out benchmarks/memory_prediction.json
    python benchmarks/memory_prediction.py rss --model FOLDER --out benchmarks/memory_prediction.json
    python benchmarks/memory_prediction.py table --out benchmarks/memory_prediction.json

Cases that the file holds are skipped, so a stopped measurement goes on. Each case is measured in a process of its own,
one at a time. A step is TRL's: its fused head over the decoder, a loss over all tokens, two micro-steps, AdamW.

`fake`: shapes of 1.5B and 4B under torch's FakeTensorMode, which runs every operation without its numbers; a dispatch
mode adds up the bytes of all live storages, and the peak is taken apart into the moments that plan knows. Exact for
what torch allocates, operators of the CPU (the head's tiles, attention) taken.
`rss`: SmolLM2 really trained on the CPU; the kernel's own peak of resident memory (VmHWM, reset through
/proc/self/clear_refs) above the process with the model loaded. malloc is told to return freed memory at once.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from entrl.models.shape import ModelShape, model_shape
from entrl.runs.plan.memory import GIB, Training, training_peaks
from entrl.settings.provenance import entrl_commit

SHAPES = {
    "1.5B": {  # Qwen2.5-1.5B
        "model_type": "qwen2",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
    },
    "4B": {  # Qwen3-4B
        "model_type": "qwen3",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
    },
}
REST = {"vocab_size": 151_936, "tie_word_embeddings": True}
FULL = {"dtype": "float32", "autocast": True, "lora": False}
LORA = {"dtype": "bfloat16", "autocast": True, "lora": True}
FAKE = [
    {"shape": shape, **kind, "checkpointing": checkpointing, "rows": rows, "tokens": tokens}
    for shape in SHAPES
    for kind in (FULL, LORA)
    for checkpointing, rows, tokens in ((True, 1, 4096), (True, 4, 2048), (False, 1, 1024))
]
RSS = [
    {"shape": "SmolLM2-135M", "dtype": "float32", "autocast": autocast, "lora": lora, "checkpointing": checkpointing}
    | {"rows": rows, "tokens": tokens}
    for checkpointing, rows, tokens in ((False, 4, 128), (True, 2, 512), (False, 1, 512))
    for autocast in (False, True)
    for lora in (True, False)
]


# --- measuring ----------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside and still alive, and their peak since `moment` last changed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peaks: dict[str, int] = {}
        self.moment = ""
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding_dense_backward.default:
            self.moment = "embedding"
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.seen:
                size = tensor.untyped_storage().nbytes()
                self.seen.add(key)
                self.now += size
                weakref.finalize(tensor.untyped_storage(), self._gone, key, size)
        self.peaks[self.moment] = max(self.now, self.peaks.get(self.moment, 0))
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    sizes = {**SHAPES[name], **REST}
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes)


def with_head(model: Any, case: dict[str, Any]) -> Any:
    """As the trainer makes it: TRL's head, checkpointing, an adapter on all linear layers."""
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    model.config._attn_implementation = "sdpa"
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if case["lora"]:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    return model.train()


def on_device(model: nn.Module) -> None:
    """Parameters and buffers of a model on the meta device made anew where tensors are made now, ties kept."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, held in [*module._parameters.items(), *module._buffers.items()]:
            if held is None:
                continue
            if id(held) not in made:
                fresh = torch.empty(held.shape, dtype=held.dtype)
                made[id(held)] = nn.Parameter(fresh, held.requires_grad) if isinstance(held, nn.Parameter) else fresh
            where = module._parameters if name in module._parameters else module._buffers
            where[name] = made[id(held)]


def micro_step(model: Any, case: dict[str, Any], at: Any) -> None:
    """Forward and backward; `at` is told which moment begins."""
    ids = torch.randint(0, 1000, (case["rows"], case["tokens"]))
    decoder = model.get_base_model().model if case["lora"] else model.model

    def head_is_over(_: Any) -> None:
        at("layers")

    hook = decoder.norm.register_forward_hook(lambda *a: a[2].register_hook(head_is_over) and None)
    at("forward")
    with torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids.clone(), fused_lm_head=True)
    loss = -out.log_probs.sum()
    at("head")
    loss.backward()
    at("after")
    hook.remove()


def fake(case: dict[str, Any]) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    config = config_of(case["shape"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case["dtype"]))
        model = with_head(model, case)
    shape = shape_of(config, model, case)
    found: dict[str, Any] = {}
    with FakeTensorMode(), LiveBytes() as live:

        def at(moment: str) -> None:
            found[f"{moment} begins"] = live.now
            live.moment = moment

        on_device(model)
        found["weights"] = live.now
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        micro_step(model, case, at)
        found["gradients"] = live.now - found["weights"]
        optimiser.step()
        found["optimiser"] = live.now - found["weights"] - found["gradients"]
        live.peaks.clear()
        micro_step(model, case, at)
        peaks = {m: live.peaks[m] for m in ("forward", "head", "layers", "embedding") if m in live.peaks}
        found["activations"] = found["head begins"] - found["forward begins"]
    return {"measured": {**found, "peaks": peaks, "peak": max(peaks.values())}, "shape": vars(shape)}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def rss(case: dict[str, Any], folder: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for parameter in model.parameters():  # off the mapped file, into memory
        parameter.data = parameter.data.clone()
    model = with_head(model, case)
    shape = shape_of(model.config, model, case)
    found, peaks = {}, {}
    moment = ""

    def at(begins: str) -> None:
        nonlocal moment
        if moment:
            peaks[moment] = resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        moment, found[f"{begins} begins"] = begins, resident("VmRSS")

    micro_step(model, {**case, "rows": 1, "tokens": 8}, lambda _: None)  # libraries and threads are there
    for parameter in model.parameters():
        parameter.grad = None
    loaded = resident("VmRSS")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    started = time.monotonic()
    micro_step(model, case, at)
    found["gradients"] = resident("VmRSS") - loaded
    optimiser.step()
    found["optimiser"] = resident("VmRSS") - loaded - found["gradients"]
    micro_step(model, case, at)
    at("end")
    peaks = {m: p - loaded for m, p in peaks.items() if m in ("forward", "head", "layers")}
    found = {name: size - loaded if name.endswith("begins") else size for name, size in found.items()}
    found["activations"] = found["head begins"] - found["forward begins"]
    seconds = time.monotonic() - started
    measured = {**found, "peaks": peaks, "peak": max(peaks.values()), "loaded": loaded, "seconds": seconds}
    return {"measured": measured, "shape": vars(shape)}


# --- predicting ---------------------------------------------------------------------------------------------------


def shape_of(config: Any, model: Any, case: dict[str, Any]) -> ModelShape:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return model_shape(config, parameters=total - (trained if case["lora"] else 0), trained=trained)


def predict(case: dict[str, Any], shape: ModelShape) -> dict[str, Any]:
    """plan's numbers, on the CPU and by one process. An embedding's moment belongs to the layers' where nobody
    measured it alone."""
    names = ("dtype", "autocast", "lora", "rows", "tokens", "checkpointing")
    run = Training(
        **{n: case[n] for n in names}, optimiser="adamw_torch_fused", processes=1, sharding="none", on_cpu=True
    )
    moments = {one.moment: {t.name: t.size for t in one.terms} for one in training_peaks(shape, run)}
    return {
        "peaks": {moment: sum(terms.values()) for moment, terms in moments.items()},
        "terms": moments,
        **{name: moments["layers"].get(name, 0) for name in ("weights", "gradients", "optimiser")},
        # what is there when the forward pass is over: without checkpointing the 16-bit weights with it
        "activations": moments["head"].get("activations", 0) + moments["head"].get("16-bit copies", 0),
    }


def compare(entry: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Term or moment -> (predicted, measured) in bytes. Resident memory is above the loaded weights."""
    case, measured = entry["case"], entry["measured"]
    found = predict(case, ModelShape(**entry["shape"]))
    is_rss = "loaded" in measured
    below = found["weights"] if is_rss else 0
    out = {} if is_rss else {"weights": (found["weights"], measured["weights"])}
    for name in ("gradients", "optimiser", "activations"):
        out[name] = (found[name], measured[name])
    predicted = dict(found["peaks"])
    predicted.pop("optimiser step")
    if "embedding" not in measured["peaks"]:
        predicted["layers"] = max(predicted["layers"], predicted.pop("embedding"))
    for moment, size in predicted.items():
        if moment in measured["peaks"]:
            out[f"at {moment}"] = (size - below, measured["peaks"][moment])
    out["peak"] = (max(predicted.values()) - below, measured["peak"])
    return out


# --- running ------------------------------------------------------------------------------------------------------


def label(case: dict[str, Any]) -> str:
    kind = "LoRA" if case["lora"] else "full"
    cast = ", bf16 autocast" if case["autocast"] else ""
    checkpointing = ", checkpointing" if case["checkpointing"] else ""
    return f"{case['shape']} {kind} {case['dtype']}{cast}{checkpointing}, {case['rows']} x {case['tokens']}"


def measure_all(part: str, cases: list[dict[str, Any]], out: Path, model: str | None) -> None:
    held = json.loads(out.read_text()) if out.is_file() else []
    done = {entry["label"] for entry in held}
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for case in cases:
        if label(case) in done:
            continue
        command = [sys.executable, __file__, part, "--case", json.dumps(case)] + (["--model", model] if model else [])
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"{label(case)} failed: {ran.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        entry = {"label": label(case), "part": part, "case": case, **json.loads(ran.stdout.splitlines()[-1])}
        entry |= {"commit": entrl_commit(), "torch": torch.__version__, "date": datetime.now(UTC).date().isoformat()}
        held.append(entry)
        out.write_text(json.dumps(held, indent=1) + "\n")
        print(told(entry), flush=True)


def told(entry: dict[str, Any]) -> str:
    cells = [
        f"{name} {p / GIB:.3f} / {m / GIB:.3f} ({p / m - 1:+.1%})" for name, (p, m) in compare(entry).items() if m > 0
    ]
    return f"{entry['label']}: " + ", ".join(cells)


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: predicted / measured GiB and the error of each."""
    names = ["weights", "gradients", "optimiser", "activations", "at forward", "at head", "at layers", "at embedding"]
    names.append("peak")
    lines = ["| case | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for entry in entries:
        found = compare(entry)
        cells = []
        for name in names:
            p, m = found.get(name, (0, 0))
            cells.append("" if m <= 0 else f"{p / GIB:.2f} / {m / GIB:.2f} ({p / m - 1:+.0%})")
        lines.append(f"| {entry['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=("fake", "rss", "table"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="folder of SmolLM2 (entrl fetch smollm2-135m-instruct)")
    parser.add_argument("--case", help="measure this one here, and print it as JSON")
    parser.add_argument("--only", default="", help="cases whose label holds this")
    options = parser.parse_args()
    if options.case:
        case = json.loads(options.case)
        print(json.dumps(fake(case) if options.part == "fake" else rss(case, options.model)))
    elif options.part == "table":
        print(table(json.loads(options.out.read_text())))
    else:
        cases = [c for c in (FAKE if options.part == "fake" else RSS) if options.only in label(c)]
        measure_all(options.part, cases, options.out, options.model)


if __name__ == "__main__":
    main()
