"""Bytes held while completions are sampled, by transformers or by an engine, and what a sync sends.

transformers   rows x tokens x cache of a token + rows x words x LOGITS     (`entrl.evaluation.memory`)
vLLM           the share of the device that it is given, whatever it needs; its weights come off that share
"""

from dataclasses import dataclass

from entrl.evaluation.memory import LOGITS
from entrl.models.shape import ModelShape, cache_bytes
from entrl.runs.plan.memory import GIB, ITEM, Term, Training


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

    @property
    def term(self) -> Term:
        """The share is taken as a whole when the engine starts, and again when it wakes from sleep."""
        formula = f"vllm_gpu_memory_utilization {self.share:g} x {self.device / GIB:.4g} GiB"
        return Term(name="vLLM", size=self.share * self.device, formula=formula)


def generating_terms(shape: ModelShape, *, rows: int, tokens: int, item: int) -> list[Term]:
    """transformers' generate at full length. item: bytes of a number in the cache, which has the weights' data type,
    under autocast as well."""
    each = cache_bytes(shape, item=item)
    return [
        Term(
            name="key-value cache",
            size=rows * tokens * each,
            formula=f"{rows} rows x {tokens:,} tokens x {each:,} bytes ({shape.layers} layers x 2 x "
            f"{shape.key_value} x {item})",
        ),
        Term(
            name="logits",
            size=rows * shape.vocabulary * LOGITS,
            formula=f"{rows} rows x {shape.vocabulary:,} words x {LOGITS} bytes",
        ),
    ]


def whole_weights(shape: ModelShape, run: Training) -> Term:
    """FSDP2 and ZeRO-3 gather every weight for transformers' generate."""
    return Term(
        name="gathered weights",
        size=0 if run.shards == 1 else shape.parameters * run.item,
        formula=f"{shape.parameters:.4g} parameters x {run.item} bytes, gathered to generate",
    )


def sync_bytes(shape: ModelShape, *, dtype: str, lora: bool) -> dict[str, int]:
    """Bytes one receiver is sent after an update. Merging sends everything: a merged adapter is in every weight."""
    out = {"full weights": shape.parameters * ITEM[dtype]}
    if lora:
        out["adapter alone"] = shape.trained * 4
    return out
