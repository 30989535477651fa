"""The option a text settles on, in multiple choice."""

import re


def chosen_letter(text: str, letters: str) -> str | None:
    """The option a text settles on, or None; the last statement of the first form that occurs counts."""
    upper, either = f"[{letters}]", f"(?i:[{letters}])"
    patterns = (
        rf"\\boxed\{{\s*(?:\\text\{{)?\s*\(?({either})\)?[^A-Za-z]*\}}",
        # Bare letters in capitals only: "the answer is a function" chooses nothing.
        rf"(?i:answer is|answer:)\s*\**\s*(\({either}\)|{upper}\b)",
        rf"^\s*(\({either}\)|{upper})[.\s]*$",
    )
    for pattern in patterns:
        hits = re.findall(pattern, text, flags=re.MULTILINE)
        if hits:
            return hits[-1].strip("()").upper()
    return None
