"""A reward whose verdicts depend on the prompt and the place in the group alone, whatever was written: two processes
then judge as one does. Beside it a fraction of a point for what was written, so that there is something to train on."""

from typing import Any


def grade(completions: list[str], problem_id: list[str], **_: Any) -> list[float]:
    """1 for the first completions of a prompt, 0 to 4 of 4 according to its id; below 0.1 more for digits."""
    out = []
    for place, (text, problem) in enumerate(zip(completions, problem_id, strict=True)):
        text = text if isinstance(text, str) else text[0]["content"]
        out.append(float(place % 4 < sum(map(ord, problem)) % 5) + min(sum(c.isdigit() for c in text), 9) / 100)
    return out
