"""A reward for runs that are killed: it tells completions apart, reads entropies and remembers its calls."""

from typing import Any


class Restless:
    """Digits written plus the mean entropy, scaled by how often it was asked: lost state changes every weight."""

    __name__ = "restless"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], token_entropies: list[Any], **_: Any) -> list[float]:
        self.calls += 1
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [
            (1 + self.calls / 10) * sum(ch.isdigit() for ch in text) + float(h.mean())
            for text, h in zip(texts, token_entropies, strict=True)
        ]

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


reward = Restless()
