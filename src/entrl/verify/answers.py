"""Where the answer stands in what a model wrote."""

import re
from typing import Any, Literal

# "Answer" as models write it in the languages they are asked in; a word may follow it (risposta corretta).
ANSWER_WORDS = (
    r"(?:\b(?:answer|ans|réponse|respuesta|antwort|risposta|resposta|antwoord|svar|odpowiedź|cevap|jawaban|ответ"
    r"|đáp án)\b|答案|答え|正解|정답|答|답)"
)
ANSWER_TAG = re.compile(r"<\s{0,3}answer\s{0,3}>", re.IGNORECASE)
ANSWER_END = re.compile(r"<\s{0,3}/\s{0,3}answer\s{0,3}>", re.IGNORECASE)


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the content of the last assistant message."""
    if isinstance(completion, str):
        return completion
    said = [m.get("content") or "" for m in completion if m.get("role", "assistant") == "assistant"]
    return said[-1] if said else ""


def prompt_end(prompt: Any) -> str | None:
    """The text a completion follows; of messages, what the assistant was given to start with.

    None for other messages: what the template adds behind them is not in sight.
    """
    if isinstance(prompt, str):
        return prompt
    if not prompt or prompt[-1].get("role") != "assistant":
        return None
    content = prompt[-1].get("content")
    return content if isinstance(content, str) else ""


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


def final_answer(text: str) -> str:
    """What the last <answer> block of an answer part holds, for every kind of verifier; a text without one, whole.

    The tags are read in any case and with spaces; a last block that never closes goes to the end.
    """
    opened = [found.end() for found in ANSWER_TAG.finditer(text)]
    if not opened:
        return text.strip()
    closed = ANSWER_END.search(text, opened[-1])
    return text[opened[-1] : closed.start() if closed else len(text)].strip()
