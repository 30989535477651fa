"""What reward functions are handed beside TRL's own arguments, and how they are called."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from entrl.trainers.grpo.facts import Facts
from entrl.trainers.grpo.scoring import Scoring
from entrl.trainers.shared.rewards import ANSWERS, SCORED_SIGNALS, guarded
from entrl.trainers.shared.rollout import Rollout


class RewardSignals:
    """The signals that some reward names, made of a rollout."""

    def __init__(self, facts: Facts, scoring: Scoring) -> None:
        self.facts, self.trl, self.scoring = facts, facts.trl, scoring
        self.from_sampler = facts.trl.args.entropy_source == "sampler"
        self.scored = bool(facts.wanted & set(SCORED_SIGNALS))

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """While this lasts, TRL finds the reward functions behind their guards, which know the shared signals."""
        trl = self.trl
        plain = trl.reward_funcs
        trl.reward_funcs = guarded(
            plain,
            think_tags=self.facts.tags,
            gather=_gather_floats,
            training=trl.model.training,
            tokenizer=trl._tokenizer,
        )
        try:
            yield
        finally:
            trl.reward_funcs = plain

    def added_to(self, inputs: list[dict[str, Any]], completions: list, rollout: Rollout) -> list[dict[str, Any]]:
        """The rows with what some reward names of them, and the answers."""
        wanted = {*self.facts.wanted, *ANSWERS}
        if clash := wanted & set(inputs[0]):
            raise ValueError(f"data set columns {sorted(clash)} have the names of token signals; rename them")
        columns = self._of_rows(rollout, completions) | (self._of_tokens(rollout, inputs) if self.scored else {})
        return [
            {**row, **{k: column[i] for k, column in columns.items() if k in wanted}} for i, row in enumerate(inputs)
        ]

    def _of_rows(self, rollout: Rollout, completions: list) -> dict[str, Sequence[Any]]:
        trl, count = self.trl, len(rollout)
        size = trl.num_generations if trl.model.training else trl.num_generations_eval
        first = self.facts.mine(count).start
        return {
            "group_index": [(first + i) // size for i in range(count)],
            "token_mask": rollout.model_token_masks(),
            "truncated": rollout.truncated(self.facts.end_ids),
            "prompt_ids": rollout.prompt_ids,
            "answer_texts": rollout.answer_texts(self.facts.tags, trl._tokenizer, completions),
        }

    def _of_tokens(self, rollout: Rollout, inputs: list[dict[str, Any]]) -> dict[str, Sequence[Any]]:
        if self.from_sampler:
            restored = self.trl.args.truncation_correction == "restore"
            log_probs = rollout.sampler_policy_log_probs(restored=restored)
            return {"token_entropies": rollout.sampler_entropies(), "token_logprobs": log_probs}
        images = "image" in inputs[0] or "images" in inputs[0]
        self.scoring.make_ready(rollout, images=images)
        return {
            "token_entropies": rollout.per_row(rollout.entropies_BT),
            "token_logprobs": rollout.per_row(rollout.log_probs_BT),
        }


def _gather_floats(values: list[float]) -> list[float]:
    return gather_object(list(values))  # lists may differ in length from rank to rank


def weighted_rewards(rewards_NF: Tensor, weights_F: Tensor) -> Tensor:
    """(N,) weighted sum over reward functions; NaN where none applied."""
    total_N = (rewards_NF * weights_F.to(rewards_NF.device)).nansum(dim=1)
    total_N[rewards_NF.isnan().all(dim=1)] = math.nan
    return total_N
