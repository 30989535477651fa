"""The asynchronous trainer's micro-batches as rows: TRL packs tokens flat into prefix trees, controllers want (B, T).

M is the number of trained tokens of one micro-batch on one rank, S the number of staleness classes; other letters as
everywhere. No model and no process group in here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

from entrl.controllers.hooks import Rows
from entrl.controllers.monitor import ANSWER, OTHER, THINK
from entrl.engines.trails import ROWS_PER_GROUP, UNKNOWN, TrailedMetrics
from entrl.maths.phases import ThinkTags, phase_masks
from entrl.trainers.shared.row_columns import ENTROPIES, INFORMATIVE, PHASE, ROW_ID, VERSION

# Columns this collator adds, and what a padded place holds.
PADDING = {ENTROPIES: torch.nan, VERSION: UNKNOWN, ROW_ID: -1, INFORMATIVE: 0, PHASE: OTHER}


class TrailCollator:
    """TRL's collator, then the trails of the samples it packed: one number per trained token, in its order.

    inner: TRL's `DataCollatorForRollout`. seen: called with the samples of each micro-batch (on the main process, where
    alone collation happens). A sample without a trail (somebody else's rollout worker) counts as informative, of an
    unknown version and without entropies. tags: phases are told apart by them; None = every token is OTHER.
    """

    def __init__(
        self,
        inner: Callable[[list[Any]], dict[str, Any]],
        seen: Callable[[list[dict[str, Any]]], None],
        tags: ThinkTags | None = None,
    ) -> None:
        self.inner, self.seen, self.tags = inner, seen, tags
        self._foreign = 0  # rows without an id so far

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = self.inner(examples)
        (rows,) = examples
        columns = [self._columns(row.samples) for row in rows]
        for name, padding in PADDING.items():
            batch[name] = pad([c[name] for c in columns], padding_value=padding)
        self.seen([sample for row in rows for sample in row.samples])
        return batch

    def _columns(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in PADDING}
        for sample in samples:
            trained_T = torch.tensor(sample["completion_mask"]).bool()
            trained_T[0] = False  # nothing predicts the first token, so TRL has no loss term for it
            count = int(trained_T.sum())
            metrics = sample["metrics"]
            trail = metrics.trail if isinstance(metrics, TrailedMetrics) else None
            if trail is None or trail.entropies is None:
                parts[ENTROPIES].append(torch.full((count,), torch.nan))
            else:
                parts[ENTROPIES].append(torch.tensor(trail.entropies)[trained_T])
            if trail is None:
                parts[VERSION].append(torch.full((count,), UNKNOWN))
                row_id, informative = ROWS_PER_GROUP * (sample["group_id"] + 1) - 1 - self._foreign, True
                self._foreign += 1
            else:
                parts[VERSION].append(torch.tensor(trail.versions)[trained_T])
                row_id, informative = trail.row_id, trail.informative
            parts[ROW_ID].append(torch.full((count,), row_id))
            parts[INFORMATIVE].append(torch.full((count,), int(informative)))
            phase_T = torch.full((len(trained_T),), OTHER)
            if trail is not None and self.tags is not None:
                ids, own = (sample[name][trail.prompt_tokens :] for name in ("input_ids", "completion_mask"))
                prompt = sample["input_ids"][: trail.prompt_tokens].tolist()
                phases = phase_masks(ids.tolist(), self.tags, torch.tensor(own).bool(), prompt_ids=prompt)
                phase_T[trail.prompt_tokens :] = THINK * phases.think.long() + ANSWER * phases.answer.long()
            parts[PHASE].append(phase_T[trained_T])
        return {name: torch.cat(tensors) for name, tensors in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each of M flat tokens stands among (B, T) rows: TRL keeps a sample's tokens together and in order.

    Raises ValueError where a sample's tokens are apart, which would scramble the rows.
    """

    row_M: Tensor
    column_M: Tensor
    rows: int
    columns: int

    @classmethod
    def of(cls, segment_M: Tensor) -> "Layout":
        rows = int(segment_M.max()) + 1 if len(segment_M) else 0
        length_B = torch.bincount(segment_M, minlength=rows)
        if bool((segment_M.diff() < 0).any()):
            raise ValueError("tokens of one sample are not together; this TRL packs rows differently from 1.16")
        start_B = length_B.cumsum(0) - length_B
        column_M = torch.arange(len(segment_M), device=segment_M.device) - start_B[segment_M]
        return cls(row_M=segment_M, column_M=column_M, rows=rows, columns=int(length_B.max()) if rows else 0)

    def spread(self, x_M: Tensor, fill: float | bool = 0.0) -> Tensor:
        """(B, T) with `x_M` in place and `fill` elsewhere; the graph of `x_M` is kept."""
        out_BT = torch.full((self.rows, self.columns), fill, dtype=x_M.dtype, device=x_M.device)
        return out_BT.index_put((self.row_M, self.column_M), x_M)

    def flat(self, x_BT: Tensor) -> Tensor:
        return x_BT[self.row_M, self.column_M]


@dataclass(frozen=True, kw_only=True)
class FlatBatch:
    """One rank's trained tokens of a micro-batch, without TRL's padding between ranks."""

    index_M: Tensor  # position in the packed row that predicts the token
    old_log_probs_M: Tensor  # of the sampler, processed, nats
    advantages_M: Tensor
    entropies_M: Tensor  # of the sampler, nats; NaN where nobody recorded them
    versions_M: Tensor  # int64, `UNKNOWN` = -1
    phase_BT: Tensor  # as `entrl.controllers.monitor` names them
    rows: Rows
    layout: Layout

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> "FlatBatch":
        kept = inputs["token_index"] >= 0
        flat = {
            name: inputs[name][kept]
            for name in ("token_index", "old_log_probs", "advantages", "segment_id", *PADDING)
        }  # fmt: skip
        layout = Layout.of(flat["segment_id"])
        mask_BT = layout.spread(torch.ones_like(flat["segment_id"], dtype=torch.bool), False)
        # One value per sample, repeated on its tokens; a row without tokens keeps the fill.
        row_id_B = flat[ROW_ID].new_full((layout.rows,), -1)
        informative_B = torch.zeros(layout.rows, dtype=torch.bool, device=mask_BT.device)
        row_id_B[layout.row_M] = flat[ROW_ID]
        informative_B[layout.row_M] = flat[INFORMATIVE].bool()
        rows = Rows(
            advantages_BT=layout.spread(flat["advantages"].float()),
            mask_BT=mask_BT,
            row_id_B=row_id_B,
            informative_B=informative_B,
        )
        return cls(
            index_M=flat["token_index"],
            old_log_probs_M=flat["old_log_probs"],
            advantages_M=flat["advantages"],
            entropies_M=flat[ENTROPIES],
            versions_M=flat[VERSION],
            phase_BT=layout.spread(flat[PHASE], OTHER),
            rows=rows,
            layout=layout,
        )


def padded_rows(rows: Rows, others: dict[str, Tensor], *, shape: tuple[int, int]) -> tuple[Rows, dict[str, Tensor]]:
    """The same rows and further (B, T) tensors in a larger shape; what is added is masked out."""
    more_rows, more_columns = shape[0] - rows.mask_BT.size(0), shape[1] - rows.mask_BT.size(1)

    def wider(x_BT: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_BT, (0, more_columns, 0, more_rows))

    def longer(x_B: Tensor, value: int) -> Tensor:
        return torch.cat([x_B, x_B.new_full((more_rows,), value)])

    # Masked rows need ids of their own: places of a top-k are told apart by them.
    largest = int(rows.row_id_B.max()) + 1 if len(rows.row_id_B) else 0
    ids_B = torch.cat([rows.row_id_B, largest + torch.arange(more_rows, device=rows.row_id_B.device)])
    bigger = Rows(
        advantages_BT=wider(rows.advantages_BT),
        mask_BT=wider(rows.mask_BT),
        row_id_B=ids_B,
        informative_B=longer(rows.informative_B, 0),
    )
    return bigger, {name: wider(x) for name, x in others.items()}
