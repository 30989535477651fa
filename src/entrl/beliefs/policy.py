"""What a language model thinks of given continuations: its belief in the target (IGPO, delta-belief), its scores of
candidates (C-IP).

    log p(target | state) = sum_j ln pi(target_j | state, target_<j)          nats; `log_prob`, delta-belief's
    b(state) = exp(mean_j ln pi(target_j | state, target_<j))                 `mean_prob`, IGPO's, normalised by length
    gain of turn t = difference of one of them between the states after and before it; unclipped, so gains sum to
    last - first

Source:  IGPO (arXiv 2510.14967; GuoqingWang1/IGPO at bff163b, scrl/llm_agent/generation.py), delta-belief
    (arXiv 2602.12342; bethgelab/delta-belief-rl at f173b54), C-IP (arXiv 2507.03279, G.5: the first token of a label)
Differs: nothing in the formulas; the words around the target (`wrap`) are the caller's
Needs:   torch, imported when a model is asked

Token ids in, chat templates are the caller's. J tokens of one continuation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from entrl.beliefs.errors import ShapeMismatch, UnknownHypothesis
from entrl.beliefs.information import Array

Ids = Sequence[int]


def continuation_log_probs(
    model: Any, prefixes: Sequence[Ids], continuations: Sequence[Ids], *, batch_size: int = 16
) -> list[Array]:
    """For each pair, (J,) float64 natural-log probabilities of the continuation's tokens after the prefix.

    model: a causal language model called as transformers' are. No gradient, and the training mode is restored.
    Raises ShapeMismatch: unequal numbers, an empty prefix or continuation, a batch_size below 1.
    """
    if len(prefixes) != len(continuations):
        raise ShapeMismatch(f"{len(prefixes)} prefixes for {len(continuations)} continuations; give one each")
    if batch_size < 1:
        raise ShapeMismatch(f"batch_size must be >= 1, got {batch_size}")
    for i, (prefix, continuation) in enumerate(zip(prefixes, continuations, strict=True)):
        if len(prefix) == 0 or len(continuation) == 0:
            raise ShapeMismatch(f"pair {i} has an empty prefix or continuation; nothing can be scored there")
    was_training = bool(getattr(model, "training", False))
    if was_training:
        model.eval()  # dropout would make a belief random
    try:
        pairs = list(zip(prefixes, continuations, strict=True))
        batches = (pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size))
        return [row for batch in batches for row in _batch_log_probs(model, batch)]
    finally:
        if was_training:
            model.train()


def _batch_log_probs(model: Any, pairs: Sequence[tuple[Ids, Ids]]) -> list[Array]:
    import torch

    device = next(model.parameters()).device
    rows = [[*prefix, *continuation] for prefix, continuation in pairs]
    longest = max(map(len, rows))
    # Padding on the right: causal attention never looks at it, so any token id will do.
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    answers = []
    for (prefix, continuation), logits_TV in zip(pairs, logits_BTV, strict=True):
        # the logits of a token are at the position before it
        at_JV = logits_TV[len(prefix) - 1 : len(prefix) + len(continuation) - 1].float().log_softmax(-1)
        token_J = torch.tensor(list(continuation), device=device)
        answers.append(at_JV.gather(-1, token_J[:, None])[:, 0].double().cpu().numpy())
    return answers


@dataclass(frozen=True, kw_only=True)
class TargetLogProb:
    """A policy's own probability of the known target, state by state."""

    model: Any
    target: Ids  # tokens of the true answer
    wrap: Ids = ()  # tokens between a state and the target: "the answer is"; ends the thinking where there is some
    batch_size: int = 16

    def token_log_probs(self, states: Sequence[Ids]) -> list[Array]:
        """(J,) nats for each state; states: the dialogue so far as token ids, the first before any turn."""
        prefixes = [[*state, *self.wrap] for state in states]
        return continuation_log_probs(self.model, prefixes, [self.target] * len(states), batch_size=self.batch_size)

    def gains(self, states: Sequence[Ids], *, of: Literal["log_prob", "mean_prob"] = "log_prob") -> Array:
        """One gain per turn, (states - 1,): bits for `log_prob`, a difference of probabilities for `mean_prob`."""
        rows = self.token_log_probs(states)
        if of == "log_prob":
            belief = np.array([row.sum() for row in rows]) / np.log(2.0)
        elif of == "mean_prob":
            belief = np.exp([row.mean() for row in rows])
        else:
            raise ValueError(f"of must be log_prob or mean_prob, got {of!r}")
        return np.diff(belief)


@dataclass(frozen=True, kw_only=True)
class CandidateScores:
    """Scores for `AnswerModel` from a language model: `score(history, hypotheses)`, (K,) nats.

    reduce: `first` token only (C-IP's own; candidates must then differ in it), the `sum`, or the `mean` over tokens.
    """

    model: Any
    encode: Callable[[Any], Ids]  # history to the tokens of the prompt that asks for the answer
    candidates: Mapping[str, Ids]  # hypothesis to the tokens of its name as an answer
    reduce: Literal["first", "sum", "mean"] = "sum"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.reduce not in ("first", "sum", "mean"):
            raise ValueError(f"reduce must be first, sum or mean; got {self.reduce!r}")
        starts = [ids[0] for ids in self.candidates.values() if len(ids)]
        if self.reduce == "first" and len(set(starts)) < len(starts):
            raise ValueError("two candidates begin with the same token, so `first` cannot tell them apart; use sum")

    def __call__(self, history: Any, hypotheses: Sequence[str]) -> Array:
        missing = [name for name in hypotheses if name not in self.candidates]
        if missing:
            raise UnknownHypothesis(f"no tokens for {missing[0]!r}; give every hypothesis its candidate")
        prompt = list(self.encode(history))
        ids = [self.candidates[name][:1] if self.reduce == "first" else self.candidates[name] for name in hypotheses]
        rows = continuation_log_probs(self.model, [prompt] * len(ids), ids, batch_size=self.batch_size)
        return np.array([row.mean() if self.reduce == "mean" else row.sum() for row in rows])
