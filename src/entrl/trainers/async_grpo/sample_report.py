"""What the main process sees of samples as micro-batches are put together: completions for the report, warnings.

The state of the rewards comes with them: rewards run in the rollout process.
"""

from collections import deque
from typing import Any

import torch
from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

from entrl.engines.trails import Trail, TrailedMetrics
from entrl.maths.phases import ThinkTags
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.first_look import FirstLook
from entrl.trainers.shared.rollout import completion_sample
from entrl.trainers.shared.training_log import TrainingLog


class RewardsOfTheWorker:
    """The state of rewards that run in the rollout process; it comes with the samples and goes out with the worker."""

    def __init__(self, worker: Any) -> None:
        self.worker, self.latest = worker, None

    def state_dict(self) -> Any:
        return self.latest

    def load_state_dict(self, state: Any) -> None:
        self.latest = state
        if isinstance(self.worker, AsyncRolloutWorker):  # it starts later, on train begin
            self.worker._loop_kwargs["reward_state"] = state


class SampleReport:
    """Looks at the samples of each micro-batch.

    trl: the trainer, of which TRL's own names alone are read; kept: where completions for the report are put
    """

    def __init__(
        self,
        trl: Any,
        *,
        log: TrainingLog,
        counters: Counters,
        rewards: RewardsOfTheWorker,
        tags: ThinkTags | None,
        kept: deque[dict[str, Any]],
    ) -> None:
        self.trl, self.log, self.counters, self.rewards = trl, log, counters, rewards
        self.tags, self.kept = tags, kept
        self.first_look = FirstLook(tags, think_close=trl.args.think_close)
        self._sampled_at = -1

    def see(self, samples: list[dict[str, Any]]) -> None:
        self.counters.start()
        trailed = [(s, m.trail) for s in samples if isinstance(m := s["metrics"], TrailedMetrics)]
        for _, trail in trailed:
            if trail.reward_state is not None:
                self.rewards.latest = trail.reward_state
        self._look_at(trailed)
        step = self.trl.state.global_step
        due = step % max(int(self.trl.args.logging_steps), 1) == 0 and self._sampled_at != step
        count, self._sampled_at = (self.trl.args.sample_completions if due else 0), step
        self.kept.extend(self._as_read(sample, trail) for sample, trail in trailed[:count])
        self.counters.completion_tokens += sum(float(s["completion_mask"].sum()) for s in samples)

    def _look_at(self, trailed: list[tuple[dict[str, Any], Trail]]) -> None:
        rows = [] if self.first_look.done else trailed
        every = [(s["input_ids"].tolist(), t.prompt_tokens) for s, t in rows]
        for text in self.first_look.see(
            [ids[:start] for ids, start in every],
            [ids[start:] for ids, start in every],
            rewards=[s["metrics"].get("reward", 0.0) for s, _ in rows],
            truncated=[t.truncated for _, t in rows],
        ):
            self.log.warn_once(text)

    def _as_read(self, sample: dict[str, Any], trail: Trail) -> dict[str, Any]:
        """One training row; what came after the prompt, a tool's tokens included."""
        every, start, metrics = sample["input_ids"].tolist(), trail.prompt_tokens, sample["metrics"]
        return completion_sample(
            every[:start],
            every[start:],
            None if trail.entropies is None else trail.entropies[start:],
            torch.tensor(sample["completion_mask"][start:]).bool(),
            step=self.trl.state.global_step,
            tokenizer=self.trl.processing_class,
            tags=self.tags,
            rewards={k.removeprefix("rewards/"): v for k, v in metrics.items() if k.startswith("rewards/")},
            reward=metrics.get("reward"),
            advantage=sample["advantage"],
            group=sample["group_id"],
            truncated=trail.truncated,
        )
