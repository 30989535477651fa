"""Bytes a training process holds, by arithmetic, term by term, at the moments of a step that may be its peak.

    always       weights + optimiser state (+ DDP's buckets, + a reference model where beta > 0 without an adapter)
    forward      + gradients of earlier micro-steps + 16-bit copies of weights under autocast + what autograd keeps
    head         + what autograd keeps + TRL's tiles of logits + the gradient of the output layer
    layers       + gradients + what autograd keeps + a layer's own gradients, and under checkpointing its insides anew
    embedding    + gradients + the gradients of embedding and output layer, summed where the two are tied
    step         + gradients + what the optimiser computes

Weights, gradients and optimiser state are divided by the number of processes under FSDP2 and ZeRO-3.

    activations  tokens x layers x (a h + b q + c k + d i) bytes, see ACTIVATIONS

h hidden size, q attention heads x head size, k key-value heads x head size, i width of the MLP.
An estimate: fragmentation, the CUDA context and libraries' workspaces (together often 1 to 3 GiB) are not in it.
`benchmarks/memory_prediction.py` holds it to measurements, term by term.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from entrl.models.shape import ModelShape

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
TILE = (4096, 32768)  # tokens x words of a tile of logits: TRL 1.16, kernels/chunked_logprob.py
# float32 copies of a tile that torch makes of it where there is no Triton: logits, exponentials and a product forward;
# backward five that are named, two that are not, and a mask of a byte a number
CPU_TILES = {"forward": 3, "backward": 7.25}
LIVE = 2  # layers gathered at a time where parameters are sharded: the one at work and the one prefetched


@dataclass(frozen=True, kw_only=True)
class Term:
    """One thing that takes memory."""

    name: str
    size: float  # bytes
    formula: str  # in numbers


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What is held together at one moment."""

    moment: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> float:
        return sum(term.size for term in self.terms)

    @property
    def largest(self) -> Term:
        return max(self.terms, key=lambda term: term.size)


def peak(moment: str, terms: Iterable[Term]) -> Peak:
    """Without the terms that are nothing."""
    return Peak(moment=moment, terms=tuple(term for term in terms if term.size > 0))


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
    accumulates: bool = True  # several micro-steps, so that gradients are there before a forward pass
    reference: bool = False  # a second model, for the KL of beta > 0
    on_cpu: bool = False

    @property
    def item(self) -> int:
        """Bytes of a weight."""
        return ITEM[self.dtype]

    @property
    def trained_item(self) -> int:
        """Bytes of a trained number: peft keeps adapters in float32, except under ZeRO-3 (TRL)."""
        return self.item if not self.lora or self.sharding == "zero3" else 4

    @property
    def computed(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.autocast else self.item

    @property
    def shards(self) -> int:
        return 1 if self.sharding == "none" else self.processes

    @property
    def casts(self) -> bool:
        """Whether autocast makes a 16-bit copy of each weight it meets."""
        return self.computed < self.item and self.sharding == "none"


def training_peaks(shape: ModelShape, run: Training) -> list[Peak]:
    """The moments of a step, each with what one process holds then."""
    resident, gradients = state_terms(shape, run), _gradients(shape, run)
    earlier = [gradients] if run.accumulates else []
    kept, copies = _kept(shape, run), _copies(shape, run)
    # a linear layer's 16-bit weight is kept for its backward pass; checkpointing drops it and makes it again
    held = [] if run.checkpointing else [copies]
    head, pending = _head_gradient(shape, run, 1), _head_gradient(shape, run, 1 if shape.tied else 0)
    gathered = _gathered(shape, run)
    return [
        peak("forward", [*resident, *earlier, gathered, copies, kept, _tile(shape, run, backward=False)]),
        peak("head", [*resident, *earlier, gathered, *held, kept, head, _tile(shape, run, backward=True)]),
        peak("layers", [*resident, gradients, gathered, *held, kept, pending, *_at_work(shape, run)]),
        peak("embedding", [*resident, gradients, gathered, _head_gradient(shape, run, 3 if shape.tied else 1)]),
        peak("optimiser step", [*resident, gradients, _step(shape, run)]),
    ]


def training_peak(shape: ModelShape, run: Training) -> Peak:
    """The largest of them."""
    return max(training_peaks(shape, run), key=lambda one: one.size)


def state_terms(shape: ModelShape, run: Training) -> list[Term]:
    """What a training process holds from its first step to its last, generation and evaluation included."""
    trained, item, over = shape.trained, run.trained_item, _over(run)
    adapter = f" + {trained:.4g} of the adapter x {item}" if run.lora else ""
    weights = base_bytes(shape, run) + (trained * item if run.lora else 0)
    of = run.item if run.quantised is None else f"{run.quantised:.3f} (embeddings and norms {run.item})"
    each = optimiser_bytes(run.optimiser, item)
    buckets = trained * item if run.sharding == "none" and run.processes > 1 else 0
    second = shape.parameters * run.item if run.reference else 0
    return [
        Term(
            name="weights",
            size=weights / run.shards,
            formula=f"{shape.parameters:.4g} parameters x {of} bytes{adapter}{over}",
        ),
        Term(
            name="optimiser",
            size=trained * each / run.shards,
            formula=f"{trained:.4g} trained x {each:g} bytes ({run.optimiser}){over}",
        ),
        Term(name="DDP buckets", size=buckets, formula=f"{trained:.4g} trained x {item} bytes"),
        Term(
            name="reference model",
            size=second / run.shards,
            formula=f"{shape.parameters:.4g} parameters x {run.item} bytes (beta > 0){over}",
        ),
    ]


def base_bytes(shape: ModelShape, run: Training) -> float:
    """Of the weights that the model came with; embeddings, norms and the output layer are never quantised."""
    if run.quantised is None:
        return float(shape.parameters * run.item)
    linear = shape.layers * shape.hidden * (2 * shape.query + 2 * shape.key_value + 3 * shape.intermediate)
    return linear * run.quantised + (shape.parameters - linear) * run.item


def _over(run: Training) -> str:
    return "" if run.shards == 1 else f" / {run.shards} processes"


def _gradients(shape: ModelShape, run: Training) -> Term:
    size = shape.trained * run.trained_item / run.shards
    formula = f"{shape.trained:.4g} trained x {run.trained_item} bytes{_over(run)}"
    return Term(name="gradients", size=size, formula=formula)


def _gathered(shape: ModelShape, run: Training) -> Term:
    live = min(LIVE * shape.layer + shape.vocabulary * shape.hidden, shape.parameters)
    return Term(
        name="gathered layers",
        size=0 if run.shards == 1 else live * run.computed,
        formula=f"{LIVE} layers and the embedding, {live:.4g} parameters x {run.computed} bytes",
    )


def _copies(shape: ModelShape, run: Training) -> Term:
    """Autocast caches copies of trained weights until the forward pass is over; of frozen ones autograd keeps them."""
    casts = run.casts and not (run.lora and run.checkpointing)
    matrices = shape.layers * shape.layer
    return Term(
        name="16-bit copies",
        size=matrices * run.computed if casts else 0,
        formula=f"{matrices:.4g} parameters of the layers x {run.computed} bytes (autocast)",
    )


def _kept(shape: ModelShape, run: Training) -> Term:
    """What autograd keeps when the forward pass is over; under checkpointing each layer's input."""
    tokens, item = run.rows * run.tokens, _stream(run)
    if run.checkpointing:
        size = tokens * (shape.layers + FINAL) * shape.hidden * item
        each = f"({shape.layers} + {FINAL}) x {shape.hidden} hidden x {item} bytes"
    else:
        size, each = activation_bytes(shape, run), f"{shape.layers} layers x {per_layer(shape, run):,} bytes"
    return Term(name="activations", size=size, formula=f"{run.rows} rows x {run.tokens:,} tokens x {each}")


FINAL = 4  # hidden states beside the layers' inputs: into the final norm, in float32, normalised, out of it


def _stream(run: Training) -> int:
    """Bytes of a number of the hidden states between layers."""
    return 4 if run.dtype == "float32" else 2


def _at_work(shape: ModelShape, run: Training) -> list[Term]:
    """The layer whose backward pass it is: computed again under checkpointing, and the gradients inside its MLP."""
    tokens, each = run.rows * run.tokens, per_layer(shape, run)
    copies = shape.layer * run.computed if run.casts else 0
    wide = 3 * shape.intermediate * run.computed  # of the product, of its gate and of its other factor
    weights = f" + {shape.layer:.4g} weights x {run.computed} bytes" if copies else ""
    again = Term(
        name="the recomputed layer",
        size=tokens * each + copies if run.checkpointing else 0,
        formula=f"{run.rows} rows x {run.tokens:,} tokens x {each:,} bytes{weights}",
    )
    inside = Term(
        name="gradients of activations",
        size=tokens * wide,
        formula=f"{run.rows} rows x {run.tokens:,} tokens x 3 x {shape.intermediate} of the MLP x {run.computed} bytes",
    )
    return [again, inside]


def per_layer(shape: ModelShape, run: Training) -> int:
    """Bytes that autograd keeps per token and layer."""
    a, b, c, d = ACTIVATIONS["float32" if run.dtype == "float32" else "bfloat16", run.autocast, run.lora]
    return a * shape.hidden + b * shape.query + c * shape.key_value + d * shape.intermediate


def activation_bytes(shape: ModelShape, run: Training) -> float:
    """What autograd keeps of all layers without checkpointing."""
    return float(run.rows * run.tokens * shape.layers * per_layer(shape, run))


def _head_gradient(shape: ModelShape, run: Training, times: int) -> Term:
    """Of the output layer, float32 whatever the weights (TRL); the embedding's is dense as well.

    Where the two are tied, the first waits for the second and autograd adds them into a third.
    """
    words = 0 if run.lora else shape.vocabulary * shape.hidden
    return Term(
        name="gradient of the embedding",
        size=times * words * 4,
        formula=f"{times} x {shape.vocabulary:,} words x {shape.hidden} hidden x 4 bytes",
    )


def _tile(shape: ModelShape, run: Training, *, backward: bool) -> Term:
    """TRL's fused head: one tile of logits at a time, a slice of the weight, and the gradient of the hidden states."""
    tokens = run.rows * run.tokens
    rows, words = min(tokens, TILE[0]), min(TILE[1], shape.vocabulary)
    wide = words if run.on_cpu else TILE[1]
    size, times = rows * wide * run.computed, "1 tile"
    if run.on_cpu:
        copies = CPU_TILES["backward" if backward else "forward"]
        size, times = size + copies * rows * words * 4, f"1 + {copies:g} float32 tiles"
    if run.computed < run.item:
        size += words * shape.hidden * run.computed
    if backward:
        size += tokens * shape.hidden * 4
    return Term(name="logits", size=size, formula=f"{times} of {rows:,} tokens x {wide:,} words (TRL's fused head)")


def _step(shape: ModelShape, run: Training) -> Term:
    """AdamW in one loop over lists computes a second moment's root for all of them at once; the fused one does not."""
    lists = run.optimiser == "adamw_torch" and not run.on_cpu
    return Term(
        name="optimiser's work",
        size=shape.trained * run.trained_item / run.shards if lists else 0,
        formula=f"{shape.trained:.4g} trained x {run.trained_item} bytes (adamw_torch_fused needs none)",
    )
