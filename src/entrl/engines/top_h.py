"""Top-H for rollouts by transformers' `generate`.

`generate(top_h=0.4)`, and so TRL's `generation_kwargs: {top_h: 0.4}`, is the reference rule after temperature without
any of this. This processor adds the paper's rule and the kept mass. A processor handed to `generate` runs *before* its
temperature, so it is told the temperature and decides on logits / temperature; what it removes stays removed.

A sampler that truncates draws from q = p / G on the kept tokens: its log-prob of a token is the policy's minus log G.
Off-policy corrections must know that (`kept_mass`), or the ratio policy / sampler is G <= 1 in every token and its
product over a completion falls to zero.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from entrl.maths.truncation import Rule, entropy_and_kept_mass, top_h_keep


class TopHLogitsProcessor(LogitsProcessor):
    """`model.generate(..., logits_processor=[TopHLogitsProcessor(0.4, temperature=1.5)], temperature=1.5, top_k=0)`.

    temperature: the one `generate` is given. Switch its top_k (50 by default), top_p and min_p off, or the recorded
    mass is not that of the distribution sampled from. record: keep the mass of every step, (B,) each, in `kept_mass`,
    and the full distribution's entropy, in nats, in `entropies`; `reset` before the next batch.
    """

    def __init__(
        self,
        alpha: float,
        *,
        temperature: float = 1.0,
        rule: Rule = "paper",
        top_n: int | None = None,
        record: bool = False,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}; greedy decoding needs no truncation")
        top_h_keep(torch.zeros(1, 1), alpha, rule=rule, top_n=top_n)  # says what is wrong with them now, not in a run
        self.alpha, self.top_n, self.temperature, self.record = alpha, top_n, temperature, record
        self.rule: Rule = rule
        self.reset()

    def reset(self) -> None:
        self.kept_mass: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits in and out, -inf where a token is cut."""
        z_BV = scores.float() / self.temperature
        keep_BV = top_h_keep(z_BV, self.alpha, rule=self.rule, top_n=self.top_n)
        if self.record:
            entropy_B, kept_B = entropy_and_kept_mass(z_BV, keep_BV)
            self.entropies.append(entropy_B)
            self.kept_mass.append(kept_B)
        return scores.masked_fill(~keep_BV, -torch.inf)


@contextlib.contextmanager
def generating_through(model: Any, processors: Sequence[LogitsProcessor]) -> Iterator[None]:
    """While this lasts, `model.generate` applies `processors`, for callers that cannot pass any (TRL's rollouts)."""
    model.generate = functools.partial(model.generate, logits_processor=LogitsProcessorList(processors))
    try:
        yield
    finally:
        del model.generate  # the instance's; the class's is seen again
