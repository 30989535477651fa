"""Bytes a training process holds, by arithmetic: parameters and their state, activations, key-value cache, one sync.

    weights + gradients + optimiser   by data type, divided by the number of processes under FSDP2 and ZeRO-3
    activations                       tokens x layers x (a h + b q + c k + d i) bytes, see ACTIVATIONS
    key-value cache                   `entrl.models.shape`

h hidden size, q attention heads x head size, k key-value heads x head size, i width of the MLP.
An estimate: fragmentation, the CUDA context and libraries' workspaces (together often 1 to 3 GiB) are not in it.
"""

from dataclasses import dataclass
from typing import Literal

from entrl.models.shape import ModelShape, cache_bytes
from entrl.models.shape import model_shape as model_shape

GIB = 2**30
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}  # bytes; "auto" takes the checkpoint's, mostly 16 bit

Sharding = Literal["none", "fsdp2", "zero3"]

# Bytes that autograd keeps per token and layer, as (a, b, c, d) for (data type, bf16 autocast, LoRA on all linears).
# Fitted to what `torch.autograd.graph.saved_tensors_hooks` saw of transformers 5.17's Qwen3 with sdpa on the CPU, six
# shapes each; `tests/test_plan_memory.py` sees it again. Other architectures and attention kernels differ somewhat.
ACTIVATIONS = {
    ("float32", False, False): (24, 24, 8, 16),
    ("float32", True, False): (26, 14, 6, 8),
    ("bfloat16", False, False): (16, 14, 6, 8),
    ("bfloat16", True, False): (16, 14, 6, 8),
    ("float32", False, True): (16, 20, 4, 16),
    ("float32", True, True): (18, 14, 4, 8),
    ("bfloat16", False, True): (28, 16, 4, 10),
    ("bfloat16", True, True): (18, 14, 4, 8),
}
HEAD_TILE = 4096 * 8192 * 4  # bytes; TRL's fused head works on tiles of 4,096 tokens, here with 8,192 words of float32
LIVE = 2  # layers gathered at a time where parameters are sharded: the one at work and the one prefetched


def optimiser_bytes(name: str, item: int) -> float:
    """Bytes of optimiser state per trained parameter. Optimisers not known here count as AdamW."""
    if "8bit" in name:
        return 2.0
    if name.startswith(("sgd", "adafactor", "muon", "apollo", "galore")):
        return {"s": 0.0, "m": float(item)}.get(name[0], 0.0)  # factored or projected moments are small beside weights
    return 2.0 * item


@dataclass(frozen=True, kw_only=True)
class Training:
    """What of a run decides its memory. Rows and tokens are those of one process."""

    dtype: str  # of the weights
    autocast: bool  # trainer.bf16 or fp16
    lora: bool
    optimiser: str
    rows: int  # of one forward
    tokens: int  # of one row, prompt included
    checkpointing: bool
    processes: int
    sharding: Sharding
    quantised: float | None = None  # bytes of a weight of the base's linear layers; None: as `dtype` says

    @property
    def adapter_item(self) -> int:
        """Bytes of a trained number: peft keeps adapters in float32, except under ZeRO-3 (TRL)."""
        return ITEM[self.dtype] if not self.lora or self.sharding == "zero3" else 4


def training_memory(shape: ModelShape, run: Training) -> dict[str, float]:
    """Bytes on one process at the peak of a backward pass, by what holds them."""
    shards = 1 if run.sharding == "none" else run.processes
    item, trained = run.adapter_item, shape.trained
    out = {"weights": (base_bytes(shape, run) + (trained * item if run.lora else 0)) / shards}
    out["gradients"] = trained * item / shards
    out["optimiser"] = trained * optimiser_bytes(run.optimiser, item) / shards
    if run.sharding == "none" and run.processes > 1:
        out["DDP buckets"] = trained * item
    computed = 2 if run.autocast else ITEM[run.dtype]
    if run.sharding != "none":
        live = LIVE * shape.layer + shape.vocabulary * shape.hidden
        out["gathered layers"] = min(live, shape.parameters) * computed
    elif computed < ITEM[run.dtype]:
        out["16-bit copies"] = shape.parameters * computed  # autocast caches them until the forward pass is over
    out["activations"] = activation_bytes(shape, run)
    out["head"] = min(HEAD_TILE, 4 * run.rows * run.tokens * shape.vocabulary)
    return out


def base_bytes(shape: ModelShape, run: Training) -> float:
    """Of the weights that the model came with; embeddings, norms and the output layer are never quantised."""
    if run.quantised is None:
        return shape.parameters * ITEM[run.dtype]
    linear = shape.layers * shape.hidden * (2 * shape.query + 2 * shape.key_value + 3 * shape.intermediate)
    return linear * run.quantised + (shape.parameters - linear) * ITEM[run.dtype]


def activation_bytes(shape: ModelShape, run: Training) -> float:
    """What autograd keeps for one micro-step; with checkpointing each layer's input and one layer's insides."""
    kind = "float32" if run.dtype == "float32" else "bfloat16"
    a, b, c, d = ACTIVATIONS[kind, run.autocast, run.lora]
    per_layer = a * shape.hidden + b * shape.query + c * shape.key_value + d * shape.intermediate
    tokens = run.rows * run.tokens
    if not run.checkpointing:
        return float(tokens * shape.layers * per_layer)
    return float(tokens * (shape.layers * ITEM[kind] * shape.hidden + per_layer))


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A vLLM engine on `parallel` devices of `device` bytes, of which it may take the share `share`."""

    device: float
    share: float
    parallel: int = 1
    item: int = 2  # bytes of a weight in it

    def cached_tokens(self, shape: ModelShape) -> int:
        """Tokens its key-value cache has room for beside the weights; negative where the weights do not fit."""
        weights = shape.parameters * self.item / self.parallel
        return int((self.share * self.device - weights) * self.parallel // cache_bytes(shape))


def sync_bytes(shape: ModelShape, *, dtype: str, lora: bool) -> dict[str, int]:
    """Bytes one receiver is sent after an update. Merging sends everything: a merged adapter is in every weight."""
    out = {"full weights": shape.parameters * ITEM[dtype]}
    if lora:
        out["adapter alone"] = shape.trained * 4
    return out
