"""Continuing token prefixes with a trainer's own sampler, token-exact and in the same calls on every rank.

TRL's samplers (transformers, colocated vLLM, servers) take prompts as token ids and write up to one number of new
tokens. A prompt with some of a completion appended is continued by the same call, at what is left of that number.

Needs:   a GRPO trainer's `_generate_single_turn`; knows `generation_config` and `vllm_generation` of TRL 1.16
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Ranks
from entrl.trainers.grpo.vllm import SampledRow


class Drawn(NamedTuple):
    """What the sampler returns for a list of prompts, one completion each.

    logprobs: of each token under the sampler, or None. records: what a vLLM sampler recorded, or None.
    """

    completion_ids: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]] | None = None
    records: Sequence[SampledRow] | None = None


Generate = Callable[[list[list[int]], int], Drawn]  # prompts, most new tokens of any row
Entropies = Callable[[list[list[int]], list[list[int]]], Sequence[Tensor]]  # prompts, completions -> 1-D nats each


@dataclass(frozen=True)
class Piece:
    """One completion, or a piece of one."""

    ids: list[int]
    logprobs: list[float] | None
    record: SampledRow | None

    def head(self, count: int) -> "Piece":
        logprobs = None if self.logprobs is None else self.logprobs[:count]
        record = None if self.record is None else _joined([self.record], count)
        return Piece(self.ids[:count], logprobs, record)

    def followed_by(self, more: "Piece") -> "Piece":
        logprobs = None if self.logprobs is None or more.logprobs is None else self.logprobs + more.logprobs
        record = None if self.record is None or more.record is None else _joined([self.record, more.record])
        return Piece(self.ids + more.ids, logprobs, record)


def _joined(records: list[SampledRow], count: int | None = None) -> SampledRow:
    """What was recorded of tokens in a row, the first `count` of them."""
    return SampledRow(
        token_ids=[x for r in records for x in r.token_ids][:count],
        entropies=[x for r in records for x in r.entropies][:count],
        kept_mass=[x for r in records for x in r.kept_mass][:count],
        version=records[-1].version,
    )


@dataclass
class Calls:
    """The sampler and the scorer of one rollout, called alike on every rank, and what they cost here."""

    generate: Generate
    entropies: Entropies
    ranks: Ranks
    filler: list[int]  # a prompt for ranks that have fewer rows than others
    generated: int = 0
    padding: int = 0

    def draw(self, prompts: list[list[int]], limits: list[int]) -> list[Piece]:
        """One completion of at most `limits[i]` tokens for each prompt; no call where no rank has a prompt."""
        count = self.ranks.max(len(prompts))
        if count == 0:
            return []
        idle = count - len(prompts)
        longest = self.ranks.max(max(limits, default=1))
        drawn = self.generate(prompts + [self.filler] * idle, longest)
        if len(drawn.completion_ids) != count:
            raise ValueError(f"the sampler was asked for {count} completions and returned {len(drawn.completion_ids)}")
        sampled = [len(ids) for ids in drawn.completion_ids]
        self.generated += sum(sampled[: len(prompts)])
        self.padding += sum(sampled[len(prompts) :])
        rows = [
            Piece(
                list(drawn.completion_ids[i]),
                None if drawn.logprobs is None else list(drawn.logprobs[i]),
                None if drawn.records is None else drawn.records[i],
            )
            for i in range(len(prompts))
        ]
        return [row.head(limit) for row, limit in zip(rows, limits, strict=True)]

    def score(self, prompts: list[list[int]], rows: list[Piece]) -> list[Tensor]:
        """Entropies of each row's tokens, nats: the sampler's records where it kept any, else a pass."""
        count = self.ranks.max(len(rows))
        recorded = self.ranks.max(int(any(row.record is None for row in rows))) == 0
        if count == 0:
            return []
        if recorded:
            return [torch.tensor(row.record.entropies) for row in rows if row.record is not None]
        idle = count - len(rows)
        texts = [row.ids for row in rows] + [self.filler[:1]] * idle
        return [h.detach().float().cpu() for h in self.entropies(prompts + [self.filler] * idle, texts)][: len(rows)]


@contextlib.contextmanager
def writing_at_most(trainer: Any, tokens: int) -> Iterator[None]:
    """While this lasts, the trainer's sampler (transformers or any vLLM) stops after `tokens` new tokens."""
    if trainer.use_vllm:
        engine, name = trainer.vllm_generation, "max_completion_length"
        settings = engine.options if hasattr(engine, "options") else vars(engine)  # replicas keep TRL's settings there
    else:
        settings, name = vars(trainer.generation_config), "max_new_tokens"
    before, settings[name] = settings[name], tokens
    try:
        yield
    finally:
        settings[name] = before


def sampler_of(trainer: Any, single_turn: Callable[..., tuple[Any, Any]]) -> Generate:
    """`generate` for `Branching.rollout`, from TRL's `_generate_single_turn` (the method of the trainer's super())."""

    def generate(prompts: list[list[int]], max_new_tokens: int) -> Drawn:
        with writing_at_most(trainer, max_new_tokens):
            ids, logprobs = single_turn(prompts, None, {}, 1)
        rows = getattr(trainer.vllm_generation, "rows", None) if trainer.use_vllm else None
        return Drawn(ids, logprobs, rows)

    return generate
