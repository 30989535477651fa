"""Entropies and lengths of the thinking and the answering part of each completion, for rewards that compare them.

The phases are those of `entrl.maths.phases`; all turns of a completion are pooled, so every token weighs the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entrl.maths.phases import PhaseMasks, ThinkTags, Which, phase_masks
from entrl.maths.signals import masked_mean, pad_rows
from entrl_rewards.trainer_signals import own_tokens


class Phases(NamedTuple):
    """What the reward reads of each completion; (B,) each, entropies in nats, lengths in tokens."""

    h_think: Tensor
    h_answer: Tensor
    h_all: Tensor
    think_tokens: Tensor
    answer_tokens: Tensor
    tokens: Tensor
    closed: Tensor


def read_phases(
    entropy_rows: Sequence[Tensor],
    completion_ids: Sequence[Sequence[int]],
    tags: ThinkTags,
    token_masks: Sequence[Tensor] | None = None,
    *,
    prompt_ids: Sequence[Sequence[int]] | None = None,
    which: Which = "first",
    count_open: bool = True,
    exclude_ids: Sequence[int] = (),
    drop_last_unclosed: bool = True,
    max_answer_tokens: int | None = None,
) -> Phases:
    """`Phases` of the rows.

    prompt_ids: what each completion follows, which may have opened or closed the thinking.
    drop_last_unclosed: a completion without a closing tag loses its last token, which stands in for the tag (k := T).
    max_answer_tokens: tokens of the answer beyond it count as thinking.
    """
    model = own_tokens(completion_ids, token_masks)
    prompts: Sequence[Sequence[int]] = [()] * len(model) if prompt_ids is None else prompt_ids
    options: dict[str, Any] = {"which": which, "count_open": count_open, "exclude_ids": exclude_ids}
    cut = []
    for ids, mask, prompt in zip(completion_ids, model, prompts, strict=True):
        masks = phase_masks(ids, tags, mask, prompt_ids=prompt, **options)
        masks = masks if masks.closed else _unclosed(masks, mask, drop_last=drop_last_unclosed)
        cut.append(_cap_answer(masks, max_answer_tokens))
    entropy_BT, _ = pad_rows(entropy_rows)
    rows = ([c.think for c in cut], [c.answer for c in cut], model)
    think_BT, answer_BT, model_BT = (pad_rows(masks, value=False)[0] for masks in rows)
    refuse_non_finite(entropy_BT, model_BT)
    h_think_B, h_answer_B, h_all_B = (masked_mean(entropy_BT, mask) for mask in (think_BT, answer_BT, model_BT))
    return Phases(
        h_think=h_think_B,
        h_answer=h_answer_B,
        h_all=h_all_B,
        think_tokens=think_BT.sum(-1),
        answer_tokens=answer_BT.sum(-1),
        tokens=model_BT.sum(-1),
        closed=torch.tensor([c.closed for c in cut]),
    )


def _unclosed(masks: PhaseMasks, token_mask: Tensor, *, drop_last: bool) -> PhaseMasks:
    """No answer phase: what earlier turns answered gives a completion that never finished thinking no relief."""
    think = masks.think.clone()
    if drop_last and bool(token_mask.any()):
        think[int(token_mask.nonzero().max())] = False
    return masks._replace(think=think, answer=torch.zeros_like(masks.answer))


def _cap_answer(masks: PhaseMasks, cap: int | None) -> PhaseMasks:
    if cap is None:
        return masks
    late = masks.answer & (masks.answer.cumsum(-1) > cap)
    return masks._replace(think=masks.think | late, answer=masks.answer & ~late)


def refuse_non_finite(entropy_BT: Tensor, counted_BT: Tensor) -> None:
    """ValueError when a counted token's entropy is NaN or inf: TRL would read a NaN reward as "does not apply"."""
    bad_B = (counted_BT & ~entropy_BT.isfinite()).any(-1)
    if bool(bad_B.any()):
        raise ValueError(
            f"entropies of rows {bad_B.nonzero()[:, 0].tolist()} are not finite; look for inf or NaN in the model's "
            "logits (learning rate, dtype) before training on"
        )


def phase_metrics(phases: Phases, truncated: Sequence[bool] | None, *, prefix: str) -> dict[str, float | None]:
    """Means over this rank's completions; entropies in nats over the completions that have the phase."""
    thinks_B, answers_B = phases.think_tokens > 0, phases.answer_tokens > 0
    return {
        f"{prefix}/h_think": mean_where(phases.h_think, thinks_B),
        f"{prefix}/h_answer": mean_where(phases.h_answer, answers_B),
        f"{prefix}/h_all": mean_where(phases.h_all, phases.tokens > 0),
        f"{prefix}/think_tokens": mean_where(phases.think_tokens),
        f"{prefix}/answer_tokens": mean_where(phases.answer_tokens),
        f"{prefix}/tokens": mean_where(phases.tokens),
        f"{prefix}/think_share": mean_where(phases.think_tokens / phases.tokens.clamp(min=1), phases.tokens > 0),
        f"{prefix}/missing_close": mean_where(~phases.closed),
        f"{prefix}/truncated": None if truncated is None else mean_where(torch.tensor(list(truncated))),
    }


def mean_where(x_B: Tensor, mask_B: Tensor | None = None) -> float | None:
    """Mean over the masked rows, None when there are none: an absent metric rather than a made-up 0."""
    chosen = x_B if mask_B is None else x_B[mask_B]
    return float(chosen.float().mean()) if len(chosen) else None
