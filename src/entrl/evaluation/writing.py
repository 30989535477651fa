"""Who writes the answers of an evaluation: what is asked, what comes back, and the one face of every engine.

    asked -> Writer.write -> answered, a problem at a time, as they finish

`entrl.evaluation.generation` writes with transformers, `entrl.evaluation.engine` with vLLM.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A problem as the model gets it. index: its place in the data set; decides, with the seed, what is drawn."""

    index: int
    prompt_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One generated answer; ids up to and with the first end token.

    Entropies and log-probs are of the full vocabulary at the evaluation's temperature, before top_p.
    """

    ids: list[int]
    text: str  # without special tokens
    truncated: bool  # no end token
    entropies: Tensor | None  # (T,) nats; None for greedy, and from an engine that cannot tell
    logprobs: Tensor | None = None  # (T,) nats, of the tokens in `ids`; None as above


@dataclass(frozen=True, kw_only=True)
class Answered:
    """All answers to one problem."""

    index: int
    greedy: Completion | None  # None where none was asked for
    drawn: list[Completion]  # as many as `Sampling.samples`


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a problem is answered: `samples` drawn answers, and a greedy one unless `greedy` is False."""

    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    greedy: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be >= 1, got {self.samples}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}; greedy answers are written besides")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")

    @property
    def rows(self) -> int:
        """Answers per problem."""
        return self.samples + self.greedy


class Writer(Protocol):
    """Writes answers in one process. What a problem is answered depends on the seed and its index, not on its company.

    unit: problems that are asked together, where company changes the last bits of the numbers; None: it does not, or
        not in a way that could be held still. Callers keep units whole, in their order: then a run on several ranks,
        or one resumed, equals one that was neither, bit for bit.
    """

    @property
    def unit(self) -> int | None: ...

    def write(self, asked: Sequence[Asked]) -> Iterator[Answered]:
        """Every problem once, as it finishes, in any order; works through `asked` `unit` at a time."""
        ...


def encode(tokenizer: Any, prompt: Any, chat_template_kwargs: Mapping[str, Any]) -> list[int]:
    """As TRL does: a string as it is, messages through the chat template with the generation prompt."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return list(
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
        )["input_ids"]
    )
