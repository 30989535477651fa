"""What of a model's architecture decides its memory, and the cache of one token.

key-value cache     tokens x layers x 2 k x bytes of its data type      k key-value heads x head size
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    parameters: int
    trained: int
    vocabulary: int
    layers: int
    hidden: int
    heads: int
    query: int  # heads x head size
    key_value: int  # key-value heads x head size
    intermediate: int  # of the MLP; with experts, of those a token visits together
    tied: bool = True  # embedding and output layer are one matrix

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer, all of them taken to be alike."""
        return (self.parameters - (1 if self.tied else 2) * self.vocabulary * self.hidden) // self.layers


def model_shape(config: Any, *, parameters: int, trained: int) -> ModelShape:
    """From a transformers config; a text model's, or the text part of a larger one."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts_per_tok", None)
    each = getattr(text, "moe_intermediate_size", None) if experts else None
    return ModelShape(
        parameters=parameters,
        trained=trained,
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        query=heads * size,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * size,
        intermediate=experts * each if experts and each else text.intermediate_size,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def cache_bytes(shape: ModelShape, *, item: int = 2) -> int:
    """Key-value cache of one token; item: bytes of a number in it."""
    return 2 * shape.layers * shape.key_value * item
