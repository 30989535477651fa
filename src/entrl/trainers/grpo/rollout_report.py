"""What is told of a rollout: metrics, warnings, and completions for the report. Nothing of it moves a parameter."""

import math
from collections import deque
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entrl.trainers.grpo.facts import Facts
from entrl.trainers.grpo.sampler_gap import alarms, gap_metrics, kept_tokens
from entrl.trainers.grpo.splice import Batch
from entrl.trainers.grpo.turns import episode_means
from entrl.trainers.grpo.vllm import ReplicaGeneration, sampled_scores
from entrl.trainers.refusals.sampling import reshaping
from entrl.trainers.shared import row_columns
from entrl.trainers.shared.first_look import FirstLook, closed_share, tags_to_look_for
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.rollout import Rollout, completion_samples

TASK = "task"  # the column of a mixture that says where a row comes from
MOST_TASKS = 32  # with more, it is another column of that name


def tasks_of(rows: Any) -> list[str]:
    """The tasks of a mixture, by its column; none where it has no such column, or other things in it."""
    if TASK not in (getattr(rows, "column_names", None) or []):
        return []
    found = rows.unique(TASK)
    return sorted(found) if len(found) <= MOST_TASKS and all(isinstance(task, str) for task in found) else []


def has_replicas(trl: Any) -> bool:
    return trl.use_vllm and isinstance(trl.vllm_generation, ReplicaGeneration)


class RolloutReport:
    """Looks at each training rollout; samples: where completions for the report are put."""

    def __init__(self, facts: Facts, observation: Observation, samples: deque[dict[str, Any]]) -> None:
        self.facts, self.trl, self.log = facts, facts.trl, facts.log
        self.observation, self.samples = observation, samples
        self.tasks = tasks_of(facts.trl.train_dataset)
        needed = "think_tags" in facts.wanted
        speaks = bool(self.trl.tools or self.trl.environments)
        self.tags = tags_to_look_for(self.trl._tokenizer, self.trl.args, facts.tags, needed=needed, speaks=speaks)
        self.first_look = FirstLook(self.tags, think_close=facts.trl.args.think_close)

    def generated(self, batch: Batch, rewards_N: Tensor, rewards_NF: Tensor) -> None:
        """rewards_N: weighted, rewards_NF: by reward function, of all ranks' rows."""
        if self.trl.use_vllm:
            self._sampler(batch.output, batch.rollout)
        self._groups_without_spread(rewards_N)
        rollout = batch.rollout
        if self.tags is not None:
            mine = closed_share(rollout.prompt_ids, rollout.completion_ids, self.tags)
            shares = self.facts.ranks.gather(torch.tensor([mine], device=rewards_N.device))
            self.log.add({"completions/thinking_closed": shares.mean().item()})
        if TASK in rollout.columns:
            self._by_task(rollout, rewards_N, rewards_NF)
        for text in self.first_look.see(
            rollout.prompt_ids,
            rollout.completion_ids,
            rewards=rewards_N.tolist(),
            truncated=rollout.truncated(self.facts.end_ids),
        ):
            self.log.warn_once(text)

    def _by_task(self, rollout: Rollout, rewards_N: Tensor, rewards_NF: Tensor) -> None:
        """Mean reward, and each reward function's mean, over the completions of each task of a mixture."""
        mine_N = torch.tensor(rollout.columns[TASK], device=rewards_N.device)
        task_N = self.facts.ranks.gather(mine_N)
        for i, task in enumerate(self.tasks):
            rows = task_N == i
            if rows.any():
                self.log.add({f"task/{task}/reward": rewards_N[rows].nanmean().item()})
                means = rewards_NF[rows].nanmean(0).tolist()
                self.log.add({f"task/{task}/{n}": m for n, m in zip(self.trl.reward_func_names, means, strict=True)})

    def finished(self, output: dict[str, Any], rollout: Rollout, rewards_NF: Tensor) -> None:
        """The rollout with its final advantages."""
        self._groups(rollout)
        if self.trl.accelerator.is_main_process:
            self._keep_samples(output, rollout, rewards_NF)

    def _sampler(self, output: dict[str, Any], rollout: Rollout) -> None:
        """Engine against trainer, and whose tokens the importance-sampling correction gives up."""
        args = self.trl.args
        metrics = self.trl.vllm_generation.metrics() if has_replicas(self.trl) else {}
        weighing = args.truncation_correction == "weigh" and bool(reshaping(args))
        if rollout.scored and "sampling_per_token_logps" in output:
            metrics |= self._sampler_gap(output, rollout, weighing=weighing)
        if rollout.sampled is not None:
            mass = [m for row in rollout.sampled for m in row.kept_mass]
            sums = torch.tensor([sum(mass), float(len(mass))], device=self.trl.accelerator.device)
            total, tokens = self.facts.ranks.gather(sums).view(-1, 2).sum(0).tolist()
            metrics["sampler/kept_mass"] = total / max(tokens, 1.0)
        self.log.add(metrics)
        limit = math.inf if weighing and rollout.sampled is None else args.vllm_gap_alarm
        for text in alarms(metrics, gap_limit=limit):
            self.log.warn_once(text)

    def _sampler_gap(self, output: dict[str, Any], rollout: Rollout, *, weighing: bool) -> dict[str, float]:
        assert rollout.log_probs_BT is not None
        assert rollout.entropies_BT is not None
        mask_BT, sampler_BT = row_columns.loss_mask(output).bool(), output["sampling_per_token_logps"]
        kept_BT = mask_BT
        if "importance_sampling_ratio" in output:
            low, high = self.trl.vllm_importance_sampling_clip_min, self.trl.vllm_importance_sampling_clip_max
            kept_BT = kept_tokens(output["importance_sampling_ratio"], mask_BT, low=low, high=high)
        width, device = mask_BT.size(1), mask_BT.device
        sampled = None if rollout.sampled is None else sampled_scores(rollout.sampled, width, device)
        if sampled is not None and weighing:
            sampler_BT = sampler_BT + sampled[1]  # the gap is of p; log G is the truncation's, and meant
        return gap_metrics(
            train_log_probs_BT=rollout.log_probs_BT[:, :width].float(),
            sampler_log_probs_BT=sampler_BT.float(),
            kept_BT=kept_BT,
            entropies_BT=rollout.entropies_BT[:, :width].float(),
            sampler_entropies_BT=None if sampled is None else sampled[0],
            mask_BT=mask_BT,
            gather=self.facts.ranks.gather,
        )

    def _groups_without_spread(self, rewards_N: Tensor) -> None:
        """Share of prompts whose completions all got one reward; TRL's own number is of the batch when that scales."""
        grouped = rewards_N.view(-1, self.trl.num_generations)
        low, high = grouped.nan_to_num(math.inf).amin(1), grouped.nan_to_num(-math.inf).amax(1)
        self.log.add({"groups/without_spread": (high <= low).float().mean().item()})

    def _groups(self, rollout: Rollout) -> None:
        """Every group of all ranks is looked at on one rank."""
        accelerator = self.trl.accelerator
        mine, first = rollout.completion_ids, self.facts.mine(len(rollout)).start
        if not self.facts.schedule.whole_groups_per_rank:
            everybody = gather_object(mine)
            mine, first = (everybody, 0) if accelerator.is_main_process else ([], 0)
        groups = [(first + i) // self.trl.num_generations for i in range(len(mine))]
        self.observation.rollout(rollout, mine, groups)

    def _keep_samples(self, output: dict[str, Any], rollout: Rollout, rewards_NF: Tensor) -> None:
        trl, step = self.trl, self.trl.state.global_step
        count, due = trl.args.sample_completions, step % max(int(trl.args.logging_steps), 1) == 0
        if not count or not due or not isinstance(trl._tokenizer, PreTrainedTokenizerBase):
            return
        table, names, weights = rewards_NF.tolist(), trl.reward_func_names, trl.reward_weights.tolist()
        facts: dict[str, list] = {
            "rewards": [{n: None if v != v else v for n, v in zip(names, row, strict=True)} for row in table],
            "reward": [sum(w * v for w, v in zip(weights, row, strict=True) if v == v) for row in table],
            "advantage": episode_means(output["advantages"], output["completion_mask"]).tolist(),
            "group": [i // trl.num_generations for i in range(len(rollout))],
            "truncated": rollout.truncated(self.facts.end_ids),
        }
        self.samples.extend(
            completion_samples(rollout, count, step=step, tokenizer=trl._tokenizer, tags=self.facts.tags, facts=facts)
        )
