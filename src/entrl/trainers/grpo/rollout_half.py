"""The half of the trainer that makes a rollout: generation, scores, rewards, and the columns that go with each row.

`grpo.py` has the other half, what is done with the rows of an optimiser step. The two are one class to TRL; both know
its private names, and both call `super()` around its methods.
"""

import math
import warnings
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from entrl.controllers.hooks import Controller
from entrl.engines.top_h import TopHLogitsProcessor, generating_through
from entrl.maths.branching import tree_advantages
from entrl.maths.phases import ThinkTags
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.branching import BranchedRollout, Branching
from entrl.trainers.grpo.continuations import sampler_of
from entrl.trainers.grpo.group_filter import GroupFiltering
from entrl.trainers.grpo.logged_windows import LoggedWindows
from entrl.trainers.grpo.sampler_gap import alarms, gap_metrics, kept_tokens
from entrl.trainers.grpo.splice import Batch
from entrl.trainers.grpo.turns import TurnCredit, episode_means
from entrl.trainers.grpo.vllm import ReplicaGeneration, sampled_scores
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.engine_rules import truncations
from entrl.trainers.refusals.schedule import Schedule
from entrl.trainers.seam import check_trl
from entrl.trainers.shared import row_columns
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.first_look import FirstLook
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.rewards import ANSWERS, SCORED_SIGNALS, guarded
from entrl.trainers.shared.rollout import Rollout, completion_samples

check_trl(version("trl"), GRPOTrainer)


class RolloutHalf(GRPOTrainer):
    """Overrides of `trl.GRPOTrainer` from the prompts to the rows of the loss; see `EntropyGRPOTrainer`."""

    # TRL and transformers annotate these more widely than they use them.
    args: Any
    model: Any
    num_generations: Any
    num_generations_eval: Any
    max_completion_length: Any
    eos_token_ids: Any
    pad_to_multiple_of: Any
    _tokenizer: Any
    vllm_generation: Any

    # Set by `EntropyGRPOTrainer.__init__`.
    controllers: list[Controller]
    completion_samples: deque[dict[str, Any]]
    counters: Counters
    think_tags: ThinkTags | None
    _loss_controllers: list[Controller]
    _branched: BranchedRollout | None
    _branching: Branching | None
    _filtering: GroupFiltering | None
    _first_look: FirstLook
    _observation: Observation
    _pass: str | None
    _ranks: AccelerateRanks
    _rewards_per_func: Tensor | None
    _rollout: Rollout | None
    _schedule: Schedule
    _turn_credit: TurnCredit | None
    _wanted: frozenset[str]
    _warned: set[str]
    _windows: LoggedWindows

    def _option(self, name: str) -> Any:
        """An option of ours, which a plain `GRPOConfig` does not have."""
        return getattr(self.args, name, EntropyGRPOConfig.__dataclass_fields__[name].default)

    @property
    def _own_scoring_needed(self) -> bool:
        """True where somebody needs scores of the rollout and TRL will not compute them."""
        selecting = any(c.scope in ("step", "exact") for c in self._loss_controllers) and self.model.training
        rewarded = bool(self._wanted & set(SCORED_SIGNALS)) and not self._entropies_from_sampler
        return (rewarded or selecting) and not self._schedule.trl_scores_rollouts

    @property
    def _entropies_from_sampler(self) -> bool:
        return self._option("entropy_source") == "sampler"

    # Rollout: ids, scores, rewards, advantages

    def _generate(self, prompts: list) -> Any:
        out = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask = out[:3]
        self._rollout = Rollout(prompt_ids=prompt_ids, completion_ids=completion_ids, tool_mask=tool_mask)
        branched, self._branched = self._branched, None
        rows = getattr(self.vllm_generation, "rows", None) if self.use_vllm else None
        if branched is not None:
            rows = branched.records
            self._rollout.columns |= {name: column.tolist() for name, column in branched.columns.items()}
            for name, value in branched.metrics.items():
                self._metrics["train"][name].append(value)
        if rows is not None:
            self._rollout.sampler_log_probs = out[4]  # prompt ids, ids, tool mask, completions, log-probs
            self._rollout.take_sampled(rows)
        if self.model.training:
            written = sum(len(i) for i in completion_ids) if tool_mask is None else sum(sum(m) for m in tool_mask)
            written = written if branched is None else branched.generated_tokens  # a prefix is written once
            self._observation.tally.add({"completion_tokens": torch.tensor(float(written))})
        return out

    def _generate_single_turn(self, *given: Any, **options: Any) -> Any:
        if self._branching is None or not self.model.training:
            return self._single_turn(*given, **options)
        prompt_ids, images = given[:2]
        if images is not None:
            raise ValueError("branch_roots continues token prefixes, which prompts with images are not; remove it")
        self._branched = self._branching.rollout(
            prompt_ids,
            self.num_generations,
            generate=sampler_of(self, self._single_turn),
            entropies=self._entropies_of,
            max_new_tokens=self.max_completion_length,
            end_ids=self.eos_token_ids,
            ranks=self._ranks,
            device=self.accelerator.device,
        )
        return self._branched.completion_ids, self._branched.logprobs

    def _single_turn(self, *given: Any, **options: Any) -> Any:
        """TRL's own, under Top-H where transformers writes; in an engine the plugin truncates."""
        alpha = self._option("top_h")
        if alpha is None or self.use_vllm:
            return super()._generate_single_turn(*given, **options)
        processor = TopHLogitsProcessor(alpha, temperature=float(self.temperature), rule=self._option("top_h_rule"))
        with generating_through(self.accelerator.unwrap_model(self.model), [processor]):
            return super()._generate_single_turn(*given, **options)

    def _entropies_of(self, prompts: list[list[int]], completions: list[list[int]]) -> list[Tensor]:
        """Nats per token of completions that are not a rollout yet, in a pass of their own."""
        drafts = Rollout(prompt_ids=prompts, completion_ids=completions, tool_mask=None)
        return drafts.per_row(self._scores_of(drafts, range(len(drafts)), kind="branch")[1])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._draw(inputs)
        if self.model.training and self._filtering is not None:
            batch = self._filtered(self._filtering, batch)
        output, rollout = batch.output, batch.rollout
        if self._own_scoring_needed and not rollout.scored:
            self._score(rollout)
        if self.model.training and self.use_vllm:
            self._log_sampler_gap(output, rollout)
        if self.model.training:
            self._log_groups_without_spread()
            for text in self._first_look.see(
                rollout.prompt_ids,
                rollout.completion_ids,
                rewards=self._weighted_rewards().tolist(),
                truncated=rollout.truncated(self._end_ids),
            ):
                self._warn_once(text)
            advantages, replaced = self._run_rollout_hooks(output, rollout)
            if self._turn_credit is not None:
                advantages, replaced = self._add_turn_credit(self._turn_credit, output, rollout, advantages), True
            if self._loss_controllers or self._observation.monitor is not None or self._windows.on:
                self._attach_window_columns(output, rollout, advantages, replaced=replaced)
            self._observe_rollout(rollout)
        if self.model.training and self.accelerator.is_main_process:
            self._keep_samples(output, rollout)
        return output

    def _draw(self, inputs: list[dict[str, Any]]) -> Batch:
        """One generation with its rewards and TRL's advantages."""
        self._rollout = None
        output = super()._generate_and_score_completions(inputs)
        rollout, self._rollout = self._rollout, None
        assert rollout is not None
        assert self._rewards_per_func is not None
        first = self.accelerator.process_index * len(rollout)
        return Batch(output=output, rollout=rollout, rewards_NF=self._rewards_per_func[first : first + len(rollout)])

    def _filtered(self, filtering: GroupFiltering, first: Batch) -> Batch:
        """A rollout of groups that pass, with further generations where it takes them."""
        batch = filtering.fill(first, self._draw)
        self._rewards_per_func = self._ranks.gather(batch.rewards_NF)  # of what is trained on, over all ranks
        for name, value in filtering.metrics.items():
            self._metrics["train"][name].append(value)
        for text in filtering.notes:
            self._warn_once(text)
        return batch

    def _log_sampler_gap(self, output: dict[str, Any], rollout: Rollout) -> None:
        """Engine against trainer, and whose tokens the importance-sampling correction gives up."""
        metrics = self.vllm_generation.metrics() if self._has_replicas else {}
        sampler_BT = output.get("sampling_per_token_logps")
        weighing = self._option("truncation_correction") == "weigh" and bool(truncations(self.args))
        if rollout.scored and sampler_BT is not None:
            assert rollout.log_probs_BT is not None
            assert rollout.entropies_BT is not None
            mask_BT = row_columns.loss_mask(output).bool()
            kept_BT = mask_BT
            if "importance_sampling_ratio" in output:
                low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
                kept_BT = kept_tokens(output["importance_sampling_ratio"], mask_BT, low=low, high=high)
            width, device = mask_BT.size(1), mask_BT.device
            sampled = None if rollout.sampled is None else sampled_scores(rollout.sampled, width, device)
            if sampled is not None and weighing:
                sampler_BT = sampler_BT + sampled[1]  # the gap is of p; log G is the truncation's, and meant
            metrics |= gap_metrics(
                train_log_probs_BT=rollout.log_probs_BT[:, :width].float(),
                sampler_log_probs_BT=sampler_BT.float(),
                kept_BT=kept_BT,
                entropies_BT=rollout.entropies_BT[:, :width].float(),
                sampler_entropies_BT=None if sampled is None else sampled[0],
                mask_BT=mask_BT,
                gather=self._ranks.gather,
            )
        if rollout.sampled is not None:
            mass = [m for row in rollout.sampled for m in row.kept_mass]
            sums = torch.tensor([sum(mass), float(len(mass))], device=self.accelerator.device)
            total, tokens = self._ranks.gather(sums).view(-1, 2).sum(0).tolist()
            metrics["sampler/kept_mass"] = total / max(tokens, 1.0)
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        limit = math.inf if weighing and rollout.sampled is None else self._option("vllm_gap_alarm")
        for text in alarms(metrics, gap_limit=limit):
            self._warn_once(text)

    def _warn_once(self, text: str) -> None:
        """A warning for the user, once per run and kind: its words up to the first number name the kind."""
        kind = text.split(" by ")[0].split(" keeps ")[0]
        if kind not in self._warned and self.accelerator.is_main_process:
            self._warned.add(kind)
            warnings.warn(text, stacklevel=2)

    def _observe_rollout(self, rollout: Rollout) -> None:
        """Every group of all ranks is looked at on one rank."""
        mine, first = rollout.completion_ids, self.accelerator.process_index * len(rollout)
        if not self._schedule.whole_groups_per_rank:
            everybody = gather_object(mine)
            mine, first = (everybody, 0) if self.accelerator.is_main_process else ([], 0)
        groups = [(first + i) // self.num_generations for i in range(len(mine))]
        self._observation.rollout(rollout, mine, groups)

    def _score(self, rollout: Rollout) -> None:
        """Score a whole rollout with true masks, where TRL has no pass of its own."""
        rollout.log_probs_BT, rollout.entropies_BT = self._scores_of(rollout, range(len(rollout)), kind="own")

    def _rescore_truncated(self, rollout: Rollout) -> None:
        """Replace the meaningless scores that TRL gives to rows it masked.

        Every rank passes the same number of rows, since a forward pass of a sharded model is a collective.
        """
        rows = [i for i, cut in enumerate(rollout.truncated(self._end_ids)) if cut]
        count = self._ranks.max(len(rows))
        if count == 0:
            return
        asked = rows + [0] * (count - len(rows))
        log_probs, entropies = self._scores_of(rollout, asked, kind="rescore")
        if rows:
            rollout.set_rows(rows, log_probs[: len(rows)], entropies[: len(rows)])

    def _scores_of(self, rollout: Rollout, rows: Sequence[int], *, kind: str) -> tuple[Tensor, Tensor]:
        ids, mask, width = rollout.model_inputs(
            rows,
            pad_token_id=self._tokenizer.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
            device=self.accelerator.device,
        )
        return self._no_grad_pass(kind, ids, mask, width)

    def _no_grad_pass(self, kind: str, ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
        training = self.model.training
        size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        self._pass = kind
        try:
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, width, batch_size=size, compute_entropy=True
                )
        finally:
            self._pass = None
        return log_probs, entropies

    @property
    def _end_ids(self) -> list[int]:
        return [*self.eos_token_ids, self._tokenizer.pad_token_id]

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list
    ) -> Tensor:
        signals = self._signals(inputs, completions)
        rows = [{**row, **signals} for row, signals in zip(inputs, signals, strict=True)]
        plain = self.reward_funcs
        self.reward_funcs = guarded(
            plain,
            think_tags=self.think_tags,
            gather=self._gather_floats,
            training=self.model.training,
            tokenizer=self._tokenizer,
        )
        try:
            rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = plain
        self._rewards_per_func = rewards
        assert self._rollout is not None
        for reward in plain:
            self._rollout.columns.update(getattr(reward, "row_columns", {}))
        return rewards

    def _signals(self, inputs: list[dict[str, Any]], completions: list) -> list[dict[str, Any]]:
        """What each row's reward functions get beside TRL's arguments: what some reward names, and the answers."""
        rollout = self._rollout
        assert rollout is not None
        wanted = {*self._wanted, *ANSWERS}
        if clash := wanted & set(inputs[0]):
            raise ValueError(f"data set columns {sorted(clash)} have the names of token signals; rename them")
        columns: dict[str, Sequence[Any]] = {}
        if self._wanted & set(SCORED_SIGNALS):
            if self._entropies_from_sampler:
                restored = self._option("truncation_correction") == "restore"
                columns["token_entropies"] = rollout.sampler_entropies()
                columns["token_logprobs"] = rollout.sampler_policy_log_probs(restored=restored)
            else:
                self._make_scores_ready(rollout, inputs)
                columns["token_entropies"] = rollout.per_row(rollout.entropies_BT)
                columns["token_logprobs"] = rollout.per_row(rollout.log_probs_BT)
        size = self.num_generations if self.model.training else self.num_generations_eval
        first = self.accelerator.process_index * len(inputs)
        columns["group_index"] = [(first + i) // size for i in range(len(inputs))]
        columns["token_mask"] = rollout.model_token_masks()
        columns["truncated"] = rollout.truncated(self._end_ids)
        columns["prompt_ids"] = rollout.prompt_ids
        columns["answer_texts"] = rollout.answer_texts(self.think_tags, self._tokenizer, completions)
        return [{k: column[i] for k, column in columns.items() if k in wanted} for i in range(len(inputs))]

    def _make_scores_ready(self, rollout: Rollout, inputs: list[dict[str, Any]]) -> None:
        if not rollout.scored:
            if "image" in inputs[0] or "images" in inputs[0]:
                raise ValueError(
                    "token entropies of prompts with images need a schedule on which TRL scores rollouts itself; set "
                    "steps_per_generation to a multiple of gradient_accumulation_steps larger than it"
                )
            self._score(rollout)
        elif self.mask_truncated_completions:
            self._rescore_truncated(rollout)

    @staticmethod
    def _gather_floats(values: list[float]) -> list[float]:
        return gather_object(list(values))  # lists may differ in length from rank to rank

    def _weighted_rewards(self) -> Tensor:
        """Weighted sum over reward functions for the rows of all ranks; NaN where none applied."""
        assert self._rewards_per_func is not None
        rewards = (self._rewards_per_func * self.reward_weights.to(self._rewards_per_func.device)).nansum(dim=1)
        rewards[self._rewards_per_func.isnan().all(dim=1)] = math.nan
        return rewards

    def _log_groups_without_spread(self) -> None:
        """Share of prompts whose completions all got one reward; TRL's own number is of the batch when that scales."""
        grouped = self._weighted_rewards().view(-1, self.num_generations)
        low, high = grouped.nan_to_num(math.inf).amin(1), grouped.nan_to_num(-math.inf).amax(1)
        self._metrics["train"]["groups/without_spread"].append((high <= low).float().mean().item())

    def _run_rollout_hooks(self, output: dict[str, Any], rollout: Rollout) -> tuple[Tensor, bool]:
        """Let branching and controllers replace the advantages; returns those of all ranks, and whether any did."""
        rewards = self._weighted_rewards()
        local = output["advantages"].size(0)
        advantages, replaced = self._ranks.gather(output["advantages"]), False
        groups = torch.arange(rewards.numel(), device=rewards.device) // self.num_generations
        if "branch_root" in rollout.columns:
            tree = (rollout.column(name, 0).to(rewards.device) for name in ("branch_root", "branch_weight"))
            roots, weights = (self._ranks.gather(column) for column in tree)
            scale: Any = self.scale_rewards
            advantages, replaced = tree_advantages(rewards, groups, roots, weights, scale=scale).float(), True
        for controller in self.controllers:
            changed = controller.on_rollout(rewards, groups, advantages)
            advantages, replaced = (advantages, replaced) if changed is None else (changed, True)
        if replaced:
            first = self.accelerator.process_index * local
            output["advantages"] = advantages[first : first + local]
        return advantages, replaced

    def _add_turn_credit(
        self, credit: TurnCredit, output: dict[str, Any], rollout: Rollout, advantages: Tensor
    ) -> Tensor:
        """Make this rank's advantages (B, T); returns, of all ranks' rows, one that is 0 only where all turns' are."""
        output["advantages"], credit_NS, metrics = credit.advantages(
            rollout,
            output["advantages"],
            width=output["completion_ids"].size(1),
            group_size=self.num_generations,
            ranks=self._ranks,
        )
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        return advantages.abs() + credit_NS.abs().amax(1)

    def _attach_window_columns(
        self, output: dict[str, Any], rollout: Rollout, advantages: Tensor, *, replaced: bool
    ) -> None:
        """Columns that must follow each row through TRL's shuffle and split; `advantages` are those of all ranks."""
        width = output["completion_ids"].size(1)
        tags = self.think_tags if self._observation.monitor is not None else None
        names = sorted({name for c in self._loss_controllers for name in c.needs_columns})
        log_probs_BT, entropies_BT = rollout.log_probs_BT, rollout.entropies_BT
        kept = rollout.scored and (self._loss_controllers or self._windows.on)
        scored = kept and self._loss_controllers
        row_columns.attach(
            output,
            first=self.accelerator.process_index * len(rollout),
            informative_N=row_columns.informative(advantages, group_size=self.num_generations, replaced=replaced),
            phase_BT=None if tags is None else rollout.phases(tags, width),
            columns={name: rollout.column(name, width) for name in names},
            entropies_BT=entropies_BT[:, :width] if kept and entropies_BT is not None else None,
            log_probs_BT=log_probs_BT[:, :width] if scored and log_probs_BT is not None else None,
        )

    def _keep_samples(self, output: dict[str, Any], rollout: Rollout) -> None:
        count = getattr(self.args, "sample_completions", 8)
        due = self.state.global_step % max(int(self.args.logging_steps), 1) == 0
        if not count or not due or not isinstance(self._tokenizer, PreTrainedTokenizerBase):
            return
        assert self._rewards_per_func is not None
        table = self._rewards_per_func.tolist()
        names = self.reward_func_names
        facts: dict[str, list] = {
            "rewards": [{n: None if v != v else v for n, v in zip(names, row, strict=True)} for row in table],
            "reward": [
                sum(w * v for w, v in zip(self.reward_weights.tolist(), row, strict=True) if v == v) for row in table
            ],
            "advantage": episode_means(output["advantages"], output["completion_mask"]).tolist(),
            "group": [i // self.num_generations for i in range(len(rollout))],
            "truncated": rollout.truncated(self._end_ids),
        }
        self.completion_samples.extend(
            completion_samples(
                rollout,
                count,
                step=self.state.global_step,
                tokenizer=self._tokenizer,
                tags=self.think_tags,
                facts=facts,
            )
        )

    @property
    def _has_replicas(self) -> bool:
        return self.use_vllm and isinstance(self.vllm_generation, ReplicaGeneration)
