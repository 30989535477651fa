"""Where the answer stands in what a model wrote."""

from typing import Any, Literal


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the content of the last assistant message."""
    if isinstance(completion, str):
        return completion
    said = [m.get("content") or "" for m in completion if m.get("role", "assistant") == "assistant"]
    return said[-1] if said else ""


def answer_part(
    text: str,
    *,
    open_tag: str = "<think>",
    close_tag: str = "</think>",
    close: Literal["last", "first"] = "last",
    require_close: bool = False,
) -> str:
    """The text after the thinking, stripped; "" where there is none."""
    if close_tag in text:
        split = text.rpartition if close == "last" else text.partition
        return split(close_tag)[2].strip()
    if require_close or open_tag in text:
        return ""
    return text.strip()
