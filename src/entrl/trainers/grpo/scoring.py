"""Forward passes over the tokens of rollouts: which is which, what each kind cost, and the passes TRL does not make.

score      TRL's own no-grad pass for old log-probs (several updates per rollout, or vLLM): entropies ride along
own        the same pass run by us where TRL runs none and a reward or a controller needs it
rescore    truncated rows again, where TRL scored them behind a zero mask (`mask_truncated_completions`)
reference  TRL's pass of the reference model (beta > 0)
exact      one no-grad pass per optimiser step, for controllers with scope `exact`
branch     no-grad passes over the roots of a branched rollout and the first tokens of its forks
probe      one no-grad pass over the fixed probe prefixes, every `probe_every` steps
after      one no-grad pass over a logged window's rows, after its step
loss       the training pass
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from entrl.trainers.grpo.facts import Facts
from entrl.trainers.shared import row_columns
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.rollout import Rollout

Forward = Callable[..., tuple[Tensor, Any, Any]]  # TRL's `_get_per_token_logps_and_entropies`
Scores = tuple[Tensor, Tensor]  # log-probs and entropies, (B, T) nats


class Scoring:
    """Scores of the policy as it is now, and the name of the pass under way."""

    def __init__(self, facts: Facts, counters: Counters) -> None:
        self.facts, self.trl, self.counters = facts, facts.trl, counters
        self._kind: str | None = None  # of the pass under way, where it is known beforehand

    @contextlib.contextmanager
    def passing(self, kind: str) -> Iterator[None]:
        """While this lasts, the passes made are of this kind."""
        self._kind = kind
        try:
            yield
        finally:
            self._kind = None

    def counted(
        self, forward: Forward, model: Any, ids: Tensor, *given: Any, rollout: Rollout | None, **options: Any
    ) -> Any:
        """(kind, what TRL's `forward` returns), counted; rollout: the one in the making, which TRL's pass scores."""
        kind = self._kind
        if kind is None:
            # With a peft model the reference pass goes through trl.model too; the old-policy pass comes first.
            unscored = rollout is not None and not rollout.scored and self.facts.schedule.trl_scores_rollouts
            kind = "score" if unscored and model is self.trl.model else "reference"
        if kind == "score":
            options["compute_entropy"] = True  # the fused head computes them with the log-probs anyway
        out = forward(model, ids, *given, **options)
        self.counters.rows[kind if self.trl.model.training else "evaluation"] += ids.size(0)
        if kind == "score":
            assert rollout is not None
            rollout.log_probs_BT, rollout.entropies_BT = out[0].detach(), out[1].detach()
        return kind, out

    def score(self, rollout: Rollout) -> None:
        """Score a whole rollout with true masks, where TRL has no pass of its own."""
        rollout.log_probs_BT, rollout.entropies_BT = self.of_rollout(rollout, range(len(rollout)), kind="own")

    def make_ready(self, rollout: Rollout, *, images: bool) -> None:
        """See to it that every row of a rollout has scores that mean something."""
        if not rollout.scored:
            if images:
                raise ValueError(
                    "token entropies of prompts with images need a schedule on which TRL scores rollouts itself; set "
                    "steps_per_generation to a multiple of gradient_accumulation_steps larger than it"
                )
            self.score(rollout)
        elif self.trl.mask_truncated_completions:
            self._rescore(rollout, [i for i, cut in enumerate(rollout.truncated(self.facts.end_ids)) if cut])

    def _rescore(self, rollout: Rollout, rows: list[int]) -> None:
        """Replace the meaningless scores that TRL gives to rows it masked.

        Every rank passes the same number of rows, since a forward pass of a sharded model is a collective.
        """
        count = self.facts.ranks.max(len(rows))
        if count == 0:
            return
        asked = rows + [0] * (count - len(rows))
        log_probs, entropies = self.of_rollout(rollout, asked, kind="rescore")
        if rows:
            rollout.set_rows(rows, log_probs[: len(rows)], entropies[: len(rows)])

    def entropies(self, rollout: Rollout, *, kind: str) -> Tensor:
        """(B, T) nats of every row."""
        return self.of_rollout(rollout, range(len(rollout)), kind=kind)[1]

    def of_drafts(self, prompts: list[list[int]], completions: list[list[int]]) -> list[Tensor]:
        """Nats per token of completions that are not a rollout yet."""
        drafts = Rollout(prompt_ids=prompts, completion_ids=completions, tool_mask=None)
        return drafts.per_row(self.entropies(drafts, kind="branch"))

    def of_rollout(self, rollout: Rollout, rows: Sequence[int], *, kind: str) -> Scores:
        ids, mask, width = rollout.model_inputs(
            rows,
            pad_token_id=self.trl._tokenizer.pad_token_id,
            pad_to_multiple_of=self.trl.pad_to_multiple_of,
            device=self.trl.accelerator.device,
        )
        return self._no_grad_pass(kind, ids, mask, width)

    def of_micro_batch(self, inputs: dict[str, Any], *, kind: str) -> Scores:
        return self._no_grad_pass(kind, *row_columns.input_ids(inputs))

    def _no_grad_pass(self, kind: str, ids: Tensor, mask: Tensor, width: int) -> Scores:
        trl = self.trl
        args, training = trl.args, trl.model.training
        size = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
        checkpointing = disable_gradient_checkpointing(trl.model, args.gradient_checkpointing_kwargs)
        with self.passing(kind), torch.no_grad(), checkpointing:
            log_probs, entropies, _ = trl._get_per_token_logps_and_entropies(
                trl.model, ids, mask, width, batch_size=size, compute_entropy=True
            )
        return log_probs, entropies
