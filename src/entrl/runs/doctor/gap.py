"""How far the engine that sampled and the trainer's forward pass disagree, on completions that were just sampled.

    gap = mean |log p_trainer(token) - log p_sampler(token)|          nats a token, at the sampling temperature

The trainer's side is a forward pass over prompts padded on the left and completions padded on the right, as TRL's
`_get_per_token_logps_and_entropies` makes it; without autocast, as the doctor samples. The sampler's are its own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from entrl.evaluation.writing import Completion
from entrl.trainers.grpo.sampler_gap import gap_metrics

LOGITS = 2**27  # numbers of one forward pass at most, half a GiB; one completion at least


@dataclass(frozen=True)
class Gap:
    """nats"""

    mean: float
    most: float
    tokens: int


@torch.no_grad()
def sampler_gap(
    model: Any, drawn: Sequence[tuple[list[int], Completion]], *, temperature: float, vocabulary: int
) -> Gap | None:
    """drawn: (prompt ids, completion); None where the sampler told no log-probs."""
    known = [(prompt, c) for prompt, c in drawn if c.logprobs is not None and c.ids]
    total, most, tokens = 0.0, 0.0, 0
    for part in _parts(known, vocabulary):
        sampler_BT = pad_sequence([c.logprobs for _, c in part if c.logprobs is not None], True, math.nan)
        mask_BT = sampler_BT.isfinite()
        found = gap_metrics(
            train_log_probs_BT=_scored(model, part, temperature),
            sampler_log_probs_BT=sampler_BT,
            kept_BT=mask_BT,
            entropies_BT=None,
            sampler_entropies_BT=None,
            mask_BT=mask_BT,
            gather=lambda values: values,
        )
        count = int(mask_BT.sum())
        total, most, tokens = (
            total + count * found.get("sampler/gap", 0.0),
            max(most, found.get("sampler/gap_max", 0.0)),
            tokens + count,
        )
    return Gap(total / tokens, most, tokens) if tokens else None


def _parts(
    drawn: Sequence[tuple[list[int], Completion]], vocabulary: int
) -> Iterator[Sequence[tuple[list[int], Completion]]]:
    longest = max((len(c.ids) for _, c in drawn), default=1)
    rows = max(1, LOGITS // (longest * vocabulary))
    for begin in range(0, len(drawn), rows):
        yield drawn[begin : begin + rows]


def _scored(model: Any, part: Sequence[tuple[list[int], Completion]], temperature: float) -> Tensor:
    """(B, T) log-probs of the completions' tokens, in nats."""
    prompts = [torch.tensor(prompt) for prompt, _ in part]
    completions = [torch.tensor(c.ids) for _, c in part]
    written_BT = pad_sequence(completions, True)
    ids_BT = torch.cat([pad_sequence(prompts, True, padding_side="left"), written_BT], 1)
    ones = [[torch.ones_like(ids) for ids in kind] for kind in (prompts, completions)]
    mask_BT = torch.cat([pad_sequence(ones[0], True, padding_side="left"), pad_sequence(ones[1], True)], 1)
    keep = written_BT.shape[1] + 1
    output = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), logits_to_keep=keep)
    logits_BTV = output.logits[:, -keep:-1].float() / temperature
    return logits_BTV.log_softmax(-1).gather(-1, written_BT.to(model.device)[..., None])[..., 0].cpu()
