"""Prompts with images: TRL's own passes see them, ours are over token ids alone, so those are refused by name."""

from collections.abc import Mapping
from typing import Any

COLUMNS = ("image", "images")


def images_from(rows: Any, processing_class: Any) -> str | None:
    """Where images could come from, None where the model is shown text alone.

    rows: a data set or None. A processor counts by itself: tools may answer with images, and what it makes of a text
    (types of tokens) goes into TRL's passes as well.
    """
    from transformers import ProcessorMixin

    columns = [name for name in COLUMNS if name in (getattr(rows, "column_names", None) or [])]
    if columns:
        return f"the data set has the column {columns[0]!r}"
    if _in_messages(rows):
        return "prompts have parts of type 'image'"
    return "processing_class is a processor" if isinstance(processing_class, ProcessorMixin) else None


def _in_messages(rows: Any) -> bool:
    """Looked for in the first row, as TRL does; messages are of one shape in all rows."""
    try:
        prompt = rows[0]["prompt"]
    except (TypeError, KeyError, IndexError):  # none, streamed or not of ours
        return False
    parts = [m.get("content") for m in prompt if isinstance(m, Mapping)] if isinstance(prompt, list) else []
    return any(p.get("type") == "image" for content in parts if isinstance(content, list) for p in content)


def image_problems(source: str | None, uses: Mapping[str, bool]) -> list[str]:
    """uses: what would have to see the images and does not -> whether this run has it."""
    if source is None:
        return []
    return [
        f"{source}, and {use} does not see images, so it would score or write another text; leave that out, or train "
        "on text (processing_class: the tokenizer)"
        for use, on in uses.items()
        if on
    ]
