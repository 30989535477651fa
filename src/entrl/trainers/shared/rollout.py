"""One rank's rows of one rollout: token ids, what was scored about them, and the form in which rewards receive it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from trl.trainer.utils import pad

from entrl.maths.phases import ThinkTags, answer_text, phase_labels, phase_masks


class Sampled(Protocol):
    """One completion as its sampler saw it; one value per token."""

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def entropies(self) -> list[float]: ...
    @property
    def kept_mass(self) -> list[float]: ...
    @property
    def version(self) -> int | None: ...


@dataclass(kw_only=True)
class Rollout:
    """Token ids of B completions, and the (B, T) scores under the policy that generated them once they are known.

    tool_mask: per completion, True where the model wrote the token and False where a tool did; None without tools.
    log_probs_BT, entropies_BT: float32, nats, at the training temperature; meaningless beyond a row's length.
    sampled: what the engine's sampler recorded of each completion, where it was asked (`entropy_source: sampler`).
    sampler_log_probs: the engine's log-prob of each sampled token, where an engine reports them.
    columns: what rewards published of each row under a name: a number, or a 1-D tensor with one value per token.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    tool_mask: list[list[int]] | None
    log_probs_BT: Tensor | None = None
    entropies_BT: Tensor | None = None
    sampled: Sequence[Sampled] | None = None
    sampler_log_probs: list[list[float]] | None = None
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def scored(self) -> bool:
        return self.entropies_BT is not None

    def truncated(self, end_ids: Sequence[int]) -> list[bool]:
        """True for each completion that does not end in one of `end_ids`."""
        return [not ids or ids[-1] not in end_ids for ids in self.completion_ids]

    def model_inputs(
        self, rows: Sequence[int], *, pad_token_id: int, pad_to_multiple_of: int | None, device: torch.device
    ) -> tuple[Tensor, Tensor, int]:
        """Padded ids and attention mask of some rows, as TRL lays them out (prompt left, completion right), and T.

        Unlike TRL's own tensors these keep truncated completions visible under `mask_truncated_completions`.
        """

        def padded(ids: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
            tensors = [torch.tensor(i, dtype=torch.long) for i in ids]
            ones = [torch.ones_like(t) for t in tensors]
            values = pad(tensors, padding_value=pad_token_id, padding_side=side, pad_to_multiple_of=pad_to_multiple_of)
            mask = pad(ones, padding_value=0, padding_side=side, pad_to_multiple_of=pad_to_multiple_of)
            return values.to(device), mask.to(device)

        prompt, prompt_mask = padded([self.prompt_ids[r] for r in rows], "left")
        completion, completion_mask = padded([self.completion_ids[r] for r in rows], "right")
        ids = torch.cat([prompt, completion], dim=1)
        return ids, torch.cat([prompt_mask, completion_mask], dim=1), completion.size(1)

    def set_rows(self, rows: Sequence[int], log_probs: Tensor, entropies: Tensor) -> None:
        """Overwrite the scores of some rows."""
        assert self.log_probs_BT is not None
        assert self.entropies_BT is not None
        # TRL keeps the same tensors as its old log-probs, where masked rows are meant to stay 0.
        self.log_probs_BT, self.entropies_BT = self.log_probs_BT.clone(), self.entropies_BT.clone()
        width = min(log_probs.size(1), self.log_probs_BT.size(1))
        index = torch.tensor(list(rows), device=self.log_probs_BT.device)
        self.log_probs_BT[index, :width] = log_probs[:, :width].to(self.log_probs_BT.dtype)
        self.entropies_BT[index, :width] = entropies[:, :width].to(self.entropies_BT.dtype)

    def per_row(self, scores_BT: Tensor | None) -> list[Tensor]:
        """The scores cut to each completion's length: 1-D float32 tensors on the CPU, so a reward may keep them."""
        assert scores_BT is not None
        host = scores_BT.detach().float().cpu()
        return [host[i, : len(ids)].clone() for i, ids in enumerate(self.completion_ids)]

    def take_sampled(self, rows: Sequence[Sampled]) -> None:
        """Adopt the sampler's records; ValueError where they are not of these completions, token by token."""
        if len(rows) != len(self):
            raise ValueError(f"the sampler recorded {len(rows)} completions and {len(self)} were returned")
        for i, (row, ids) in enumerate(zip(rows, self.completion_ids, strict=True)):
            if list(row.token_ids) != list(ids) or len(row.entropies) != len(ids):
                raise ValueError(
                    f"the sampler's record of row {i} holds {len(row.entropies)} entropies of other tokens than the "
                    f"{len(ids)} returned; tools and rollout functions rewrite completions, so with them take "
                    "entropy_source: scoring"
                )
        self.sampled = rows

    def sampler_entropies(self) -> list[Tensor]:
        """1-D float32 per completion, nats over the full vocabulary at the sampling temperature, before truncation."""
        assert self.sampled is not None
        return [torch.tensor(row.entropies, dtype=torch.float32) for row in self.sampled]

    def sampler_policy_log_probs(self, *, restored: bool) -> list[Tensor]:
        """1-D float32 per completion: the engine's policy log-prob of each token, truncation undone.

        restored: the log kept mass has been added already.
        """
        assert self.sampled is not None
        assert self.sampler_log_probs is not None
        given = [torch.tensor(row, dtype=torch.float32) for row in self.sampler_log_probs]
        if restored:
            return given
        return [g + torch.tensor(r.kept_mass).log() for g, r in zip(given, self.sampled, strict=True)]

    def column(self, name: str, width: int) -> Tensor:
        """A published column as (B,), or (B, width) zero-padded where it has one value per token."""
        values = self.columns[name]
        if not isinstance(values[0], Tensor):
            return torch.tensor(values)
        padded_BT = values[0].new_zeros(len(values), width)
        for row, value_T in enumerate(values):
            padded_BT[row, : len(value_T)] = value_T
        return padded_BT

    def phases(self, tags: ThinkTags, width: int) -> Tensor:
        """(B, width) int8: 1 thinks, 2 answers, 0 anything else (tags, a tool's tokens, padding)."""
        phase_BT = torch.zeros(len(self), width, dtype=torch.int8)
        rows = zip(self.prompt_ids, self.completion_ids, self.model_token_masks(), strict=True)
        for row, (prompt, ids, own) in enumerate(rows):
            masks = phase_masks(ids, tags, own, prompt_ids=prompt)
            phase_BT[row, : len(ids)] = masks.think.to(torch.int8) + 2 * masks.answer.to(torch.int8)
        return phase_BT

    def answer_texts(self, tags: ThinkTags | None, tokenizer: Any, completions: Sequence[Any]) -> list[str]:
        """What each row answers in the end, "" where it does not; a last message that calls a tool is no answer."""
        rows = zip(self.prompt_ids, self.completion_ids, self.model_token_masks(), completions, strict=True)
        return [
            "" if ends_in_call(said) else answer_text(ids, tags, tokenizer, own, prompt_ids=prompt)
            for prompt, ids, own, said in rows
        ]

    def model_token_masks(self) -> list[Tensor]:
        """1-D bool per completion, True where the model wrote the token."""
        if self.tool_mask is None:
            return [torch.ones(len(ids), dtype=torch.bool) for ids in self.completion_ids]
        return [torch.tensor(mask, dtype=torch.bool) for mask in self.tool_mask]


def ends_in_call(completion: Any) -> bool:
    """Whether a completion, text or messages, ends in a call whose result it did not see."""
    return not isinstance(completion, str) and bool(completion) and bool(completion[-1].get("tool_calls"))


def completion_sample(
    prompt_ids: list[int],
    ids: list[int],
    entropies: Any,
    own_T: Tensor,
    *,
    step: int,
    tokenizer: Any,
    tags: ThinkTags | None,
    **facts: Any,
) -> dict[str, Any]:
    """One completion as a plain dict for the run folder.

    entropies: one number per token, nats; None = nobody looked. own_T: bool, True where the model wrote the token.
    """
    return {
        "step": step,
        "prompt": tokenizer.decode(prompt_ids),
        "tokens": [tokenizer.decode([t]) for t in ids],
        "entropies": None if entropies is None else [round(float(h), 5) for h in entropies],
        "phases": ["answer"] * len(ids) if tags is None else phase_labels(ids, tags, own_T, prompt_ids=prompt_ids),
        **facts,
    }


def completion_samples(
    rollout: Rollout, count: int, *, step: int, tokenizer: Any, tags: ThinkTags | None, facts: dict[str, list]
) -> list[dict[str, Any]]:
    """The first `count` completions as plain dicts for the run folder.

    `entropies` is None where nothing scored the rollout (fully on-policy, and nobody asked for entropies); the
    sampler's, where only the sampler looked.
    facts: further per-row columns (rewards, advantage, group, truncated).
    """
    entropies = rollout.per_row(rollout.entropies_BT) if rollout.scored else None
    if entropies is None and rollout.sampled is not None:
        entropies = rollout.sampler_entropies()
    masks = rollout.model_token_masks()
    return [
        completion_sample(
            rollout.prompt_ids[i],
            rollout.completion_ids[i],
            None if entropies is None else entropies[i],
            masks[i],
            step=step,
            tokenizer=tokenizer,
            tags=tags,
            **{name: column[i] for name, column in facts.items()},
        )
        for i in range(min(count, len(rollout)))
    ]
