"""Pairs as TRL's DPOTrainer takes them, rendered to the tokens that the RL trainer's tool loop would have.

TRL ends a turn as the template does: where that writes a newline behind the end token (Qwen3), chosen and rejected both
carry it, with the same context in front but for the question.

Needs:   datasets, trl
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from entrl.teach.offline.pairs import Pair
from entrl.teach.offline.rendering import Rendering


def pair_rows(pairs: Sequence[Pair], chat_template_kwargs: Mapping[str, Any] | None = None) -> Any:
    """datasets.Dataset with prompt, chosen, rejected, tools; messages keep exactly the keys they have."""
    from datasets import Dataset

    extra = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
    rows = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "tools": pair.tools, **extra}
        for pair in pairs
    ]
    return Dataset.from_list(rows, on_mixed_types="use_json")


@contextmanager
def loop_template(rendering: Rendering) -> Iterator[None]:
    """The tokenizer renders as in the tool loop, and as it did before afterwards (it is saved with the model)."""
    tokenizer, own = rendering.tokenizer, rendering.tokenizer.chat_template
    if rendering.template is not None:
        tokenizer.chat_template = rendering.template
    try:
        yield
    finally:
        tokenizer.chat_template = own
