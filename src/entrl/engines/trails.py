"""What the asynchronous rollout loop notes of each call, and what every training row brings of it to the trainer.

Two things are carried through TRL's code in types it hands on untouched: a conversation's calls on its list of
completion ids (`CalledIds`), and a sample's `Trail` on its dictionary of metrics (`TrailedMetrics`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from trl.experimental.async_grpo.async_rollout_worker import TurnRecord, _chain_to_sequences

UNKNOWN = -1  # a version nobody can name
ROWS_PER_GROUP = 2**16  # row ids: group * this + row; leaves 2**23 groups


@dataclass(frozen=True, kw_only=True)
class Call:
    """One generation request: what went out, what came back.

    entropies, kept_mass: one per output token, None where the server was not asked.
    version: of the policy that wrote the tokens, `UNKNOWN` where it changed meanwhile.
    """

    prompt_ids: list[int]
    output_ids: list[int]
    log_probs: list[float]
    entropies: list[float] | None
    kept_mass: list[float] | None
    version: int


@dataclass
class Conversation:
    """The calls of one completion, in order."""

    group_id: int
    calls: list[Call] = field(default_factory=list)


class CalledIds(list):
    """A conversation's completion ids, with the conversation."""

    def __init__(self, ids: Sequence[int], conversation: Conversation) -> None:
        super().__init__(ids)
        self.conversation = conversation


@dataclass(kw_only=True)
class Trail:
    """What one training row knows of its making, beside TRL's arrays; columns are aligned with `input_ids`.

    entropies, kept_mass: float32, 0 on context; None where nobody recorded them
    versions: int64 per token, meaningless on context
    row_id: the same whatever the batching; informative: False where the group's rewards had no spread
    prompt_tokens: of the first call; index: of the completion in its group; truncated: it does not end in an end token
    reward_state: of the stateful rewards after this group, on its first row only
    """

    versions: np.ndarray
    entropies: np.ndarray | None
    kept_mass: np.ndarray | None
    row_id: int
    informative: bool
    prompt_tokens: int
    index: int
    truncated: bool
    reward_state: list[Any] | None = None


class TrailedMetrics(dict):
    """A sample's metrics, which TRL hands from the loop to the collator untouched, with its trail."""

    trail: Trail

    def __init__(self, metrics: dict[str, float], trail: Trail) -> None:
        super().__init__(metrics)
        self.trail = trail


def joined(calls: Sequence[Call], column: str) -> torch.Tensor:
    """A 1-D float32 tensor over the completion's tokens; several turns one after another, as `completion_ids`."""
    parts = [getattr(call, column) for call in calls]
    assert all(part is not None for part in parts), f"{column} were not recorded"
    return torch.tensor([x for part in parts for x in part], dtype=torch.float32)


def training_rows(conversation: Conversation, fork_threshold: int) -> list[dict[str, Any]]:
    """Per training row of a conversation its columns, as `Trail` names them.

    TRL's own reconciliation of turns into rows is run again with other numbers in the place of log-probs, so that
    forks and realignments fall where TRL's fell.
    """

    def laid_out(values: list[list[float]]) -> list[np.ndarray]:
        turns = [TurnRecord(c.prompt_ids, c.output_ids, v) for c, v in zip(conversation.calls, values, strict=True)]
        sequences, _ = _chain_to_sequences(turns, "", fork_threshold)
        return [np.asarray(s.old_log_probs) for s in sequences]

    calls = conversation.calls
    versions = laid_out([[float(c.version)] * len(c.output_ids) for c in calls])
    out: list[dict[str, Any]] = [{"versions": v.astype(np.int64)} for v in versions]
    for name in ("entropies", "kept_mass"):
        values = [getattr(c, name) for c in calls]
        columns = laid_out(values) if all(v is not None for v in values) else [None] * len(out)
        for row, column in zip(out, columns, strict=True):
            row[name] = None if column is None else column.astype(np.float32)
    return out
