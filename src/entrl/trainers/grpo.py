"""`EntropyGRPOTrainer`: TRL's GRPO with token signals for rewards and hooks for entropy controllers.

This module knows the private names of TRL's GRPO (1.16): the methods overridden below, the keys of its buffered rows,
and the order of its passes; `vllm.py` knows those of its generation, `async_grpo.py` those of the asynchronous trainer.
No method body of TRL is copied; every override calls `super()`. What the names are expected to look like is asserted
at import (`check_trl`).

Passes over a rollout's tokens, in order:
    score      TRL's own no-grad pass for old log-probs (several updates per rollout, or vLLM): entropies ride along
    own        the same pass run by us where TRL runs none and a reward or a controller needs it
    rescore    truncated rows again, where TRL scored them behind a zero mask (`mask_truncated_completions`)
    reference  TRL's pass of the reference model (beta > 0)
    exact      one no-grad pass per optimiser step, for controllers with scope `exact`
    probe      one no-grad pass over the fixed probe prefixes, every `probe_every` steps
    after      one no-grad pass over a logged window's rows, after its step
    loss       the training pass
"""

import math
import os
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

from entrl.controllers.hooks import Controller, Rows, Window
from entrl.dynamics import Monitor
from entrl.phases import ThinkTags
from entrl.rollouts.faults import RolloutError
from entrl.rollouts.top_h import TopHLogitsProcessor, generating_through
from entrl.trainers.checkpoint import load_state, moved, save_state
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.counters import Counters
from entrl.trainers.logged_windows import LoggedWindows
from entrl.trainers.loss import LossPass, aggregate
from entrl.trainers.observation import Observation
from entrl.trainers.probe import Probe
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.rewards import SCORED_SIGNALS, checked_rollout_func, guarded, needed_signals
from entrl.trainers.rollout import Rollout, completion_samples
from entrl.trainers.sampler_gap import alarms, gap_metrics, kept_tokens
from entrl.trainers.schedule import check_schedule, describe_schedule
from entrl.trainers.seam import check_trl
from entrl.trainers.surroundings import check_surroundings, refuse_dropout
from entrl.trainers.vllm import ReplicaGeneration, generating_with, sampled_scores
from entrl.trainers.vllm_rules import truncations

check_trl(version("trl"), GRPOTrainer)


class EntropyGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` whose rewards may read token entropies and whose loss takes entropy controllers.

    Arguments are TRL's, plus
        controllers: `entrl.controllers.hooks.Controller` objects.

    A reward function gets what it names among its parameters (or in a `needs` attribute), one entry per completion:
        token_entropies  1-D float32, nats, over the full vocabulary at the training temperature, under the policy
                         that generated the completion; token_logprobs the same for the sampled token
        token_mask       1-D bool, False where a tool wrote the token
        group_index      int, prompt group over all ranks; truncated  bool; prompt_ids  list of ints
    and, not per completion,
        think_tags       `entrl.phases.ThinkTags` of the tokenizer
        gather           function: this rank's list of floats -> the list over all ranks, rank by rank
        training         bool, False in evaluation

    What it observes on the way (options `log_dynamics`, `log_diversity`, `probe_every`, `log_windows`) is read off the
    passes TRL makes anyway, but for the probe's and the logged windows' own, which are scheduled and counted.

    With no controller and no entropy-aware reward the parameters after any number of steps equal stock TRL's bit for
    bit. Controllers act in training only; evaluation computes TRL's plain loss.
    """

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

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *trl_args: Any,
        controllers: Sequence[Controller] | None = None,
        **trl_kwargs: Any,
    ) -> None:
        self.controllers = list(controllers or [])
        listed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        if args is not None:
            self._refuse(args, listed)
        # What the overrides below hand to each other. Set before super().__init__, which may call some of them.
        self._pass: str | None = None
        self._rollout: Rollout | None = None
        self._loss_pass: LossPass | None = None
        self._selections: list[Any] = []
        self._rewards_per_func: Tensor | None = None
        self._warned: set[str] = set()
        self.completion_samples: deque[dict[str, Any]] = deque(maxlen=1024)
        if "rollout_func" in trl_kwargs:
            trl_kwargs["rollout_func"] = checked_rollout_func(trl_kwargs["rollout_func"])
        with generating_with(args):
            super().__init__(model, reward_funcs, args, *trl_args, **trl_kwargs)
        if args is None:
            self._refuse(self.args, self.reward_funcs)
        check_surroundings(self.args, self.accelerator)
        self._ranks = AccelerateRanks(self.accelerator, columns=self._longest_completion)
        self._schedule = describe_schedule(self.args, self.accelerator.num_processes)
        self.counters = Counters(self._schedule.rows_per_step // self._schedule.world_size)
        self._wanted: frozenset[str] = frozenset().union(*(needed_signals(r) for r in self.reward_funcs))
        self.think_tags = self._find_think_tags()
        self._loss_controllers = [c for c in self.controllers if c.uses_loss_hook]
        self._start_observing()
        scored = bool(self._loss_controllers or self._wanted & set(SCORED_SIGNALS))
        if scored or self._observation.probe.on or self._windows.on:
            refuse_dropout(self.model)
        for controller in self._loss_controllers:
            if controller.clip_range is not None:
                self.epsilon_low, self.epsilon_high = controller.clip_range

    # Start-up

    def _refuse(self, args: Any, reward_funcs: Sequence[Any]) -> None:
        problems = check_schedule(args, self.controllers, reward_funcs, args.world_size)
        if problems:
            raise ValueError("; and ".join(problems))

    @property
    def _longest_completion(self) -> int | None:
        """Width no rollout exceeds, padding included; None where tools or a rollout function may write more."""
        if getattr(self, "tools", None) or getattr(self, "rollout_func", None) is not None:
            return None
        multiple = self.pad_to_multiple_of or 1
        return -(-self.max_completion_length // multiple) * multiple

    def _option(self, name: str) -> Any:
        """An option of ours, which a plain `GRPOConfig` does not have."""
        return getattr(self.args, name, EntropyGRPOConfig.__dataclass_fields__[name].default)

    def _start_observing(self) -> None:
        """What is logged beside TRL's metrics; see the options' help for what each costs."""
        ranks = self.accelerator.num_processes
        self.evaluation_seed: int | None = None  # set: evaluations draw alike and leave training's random state alone
        self._observation = Observation(
            controllers=self.controllers,
            loss_controllers=self._loss_controllers,
            ranks=self._ranks,
            score=lambda sequences: self._scores_of(sequences, range(len(sequences)), kind="probe")[1],
            monitor=Monitor(device=self.accelerator.device) if self._option("log_dynamics") else None,
            probe=Probe(every=self._option("probe_every"), rows=max(1, self._option("probe_rows") // ranks)),
            diversity=self._option("log_diversity"),
        )
        self._windows = LoggedWindows(self)

    def _find_think_tags(self) -> ThinkTags | None:
        opening, closing = self._option("think_open"), self._option("think_close")
        try:
            return ThinkTags.from_tokenizer(self._tokenizer, open=opening, close=closing)
        except ValueError:
            if "think_tags" in self._wanted:
                raise
            return None  # nobody needs phases; samples for the report go unlabelled

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
        rows = getattr(self.vllm_generation, "rows", None) if self.use_vllm else None
        if rows is not None:
            self._rollout.sampler_log_probs = out[4]  # prompt ids, ids, tool mask, completions, log-probs
            self._rollout.take_sampled(rows)
        if self.model.training:
            written = sum(len(i) for i in completion_ids) if tool_mask is None else sum(sum(m) for m in tool_mask)
            self._observation.tally.add({"completion_tokens": torch.tensor(float(written))})
        return out

    def _generate_single_turn(self, *given: Any, **options: Any) -> Any:
        alpha = self._option("top_h")
        if alpha is None or self.use_vllm:  # the engine's plugin truncates there
            return super()._generate_single_turn(*given, **options)
        processor = TopHLogitsProcessor(alpha, temperature=float(self.temperature), rule=self._option("top_h_rule"))
        with generating_through(self.accelerator.unwrap_model(self.model), [processor]):
            return super()._generate_single_turn(*given, **options)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        kind = self._kind_of_pass(model)
        # The fused head computes entropies with the log-probs anyway, so asking for them costs nothing.
        out = super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            compute_entropy=compute_entropy or kind == "score",
            **kwargs,
        )
        self.counters.rows[kind if self.model.training else "evaluation"] += input_ids.size(0)
        if kind == "score":
            assert self._rollout is not None
            self._rollout.log_probs_BT, self._rollout.entropies_BT = out[0].detach(), out[1].detach()
        elif self._loss_pass is not None:
            self._apply_controllers(self._loss_pass, log_probs_BT=out[0], entropies_BT=out[1])
        return out

    def _kind_of_pass(self, model: Any) -> str:
        if self._pass is not None:
            return self._pass
        if self._loss_pass is not None:
            return "loss"
        # With a peft model the reference pass goes through self.model too; the old-policy pass comes first.
        unscored = self._rollout is not None and not self._rollout.scored
        return "score" if unscored and self._schedule.trl_scores_rollouts and model is self.model else "reference"

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rollout = None
        output = super()._generate_and_score_completions(inputs)
        rollout = self._rollout
        assert rollout is not None
        self._rollout = None
        if self._own_scoring_needed and not rollout.scored:
            self._score(rollout)
        if self.model.training and self.use_vllm:
            self._log_sampler_gap(output, rollout)
        if self.model.training:
            self._log_groups_without_spread()
            advantages, replaced = self._run_rollout_hooks(output)
            if self._loss_controllers or self._observation.monitor is not None or self._windows.on:
                self._attach_window_columns(output, rollout, advantages, replaced=replaced)
            self._observe_rollout(rollout)
        if self.model.training and self.accelerator.is_main_process:
            self._keep_samples(output, rollout)
        return output

    def _log_sampler_gap(self, output: dict[str, Any], rollout: Rollout) -> None:
        """Engine against trainer, and whose tokens the importance-sampling correction gives up."""
        metrics = self.vllm_generation.metrics() if self._has_replicas else {}
        sampler_BT = output.get("sampling_per_token_logps")
        weighing = self._option("truncation_correction") == "weigh" and bool(truncations(self.args))
        if rollout.scored and sampler_BT is not None:
            assert rollout.log_probs_BT is not None
            assert rollout.entropies_BT is not None
            mask_BT = output["completion_mask"].bool()
            if "tool_mask" in output:
                mask_BT = mask_BT & output["tool_mask"].bool()
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
        rows = [{**row, **signals} for row, signals in zip(inputs, self._signals(inputs), strict=True)]
        plain = self.reward_funcs
        self.reward_funcs = guarded(
            plain, think_tags=self.think_tags, gather=self._gather_floats, training=self.model.training
        )
        try:
            rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = plain
        self._rewards_per_func = rewards
        return rewards

    def _signals(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What each row's reward functions get beside TRL's arguments: only what some reward names."""
        rollout = self._rollout
        assert rollout is not None
        if not self._wanted:
            return [{} for _ in inputs]
        if clash := self._wanted & set(inputs[0]):
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
        return [{k: column[i] for k, column in columns.items() if k in self._wanted} for i in range(len(inputs))]

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

    def _run_rollout_hooks(self, output: dict[str, Any]) -> tuple[Tensor, bool]:
        """Let controllers replace the advantages; returns those of all ranks, and whether any controller did."""
        rewards = self._weighted_rewards()
        local = output["advantages"].size(0)
        advantages, replaced = self._ranks.gather(output["advantages"]), False
        groups = torch.arange(rewards.numel(), device=rewards.device) // self.num_generations
        for controller in self.controllers:
            changed = controller.on_rollout(rewards, groups, advantages)
            advantages, replaced = (advantages, replaced) if changed is None else (changed, True)
        if replaced:
            first = self.accelerator.process_index * local
            output["advantages"] = advantages[first : first + local]
        return advantages, replaced

    def _attach_window_columns(
        self, output: dict[str, Any], rollout: Rollout, advantages: Tensor, *, replaced: bool
    ) -> None:
        """Columns that must follow each row through TRL's shuffle and split; `advantages` are those of all ranks."""
        local, device = output["advantages"].size(0), output["advantages"].device
        first = self.accelerator.process_index * local
        output["entrl_row_id"] = torch.arange(first, first + local, device=device)
        grouped = advantages.view(-1, self.num_generations)
        informative = grouped.amax(1) > grouped.amin(1)
        if replaced:  # a controller may give a whole group one advantage that is not 0 (W-REINFORCE)
            informative = informative | (grouped.abs().amax(1) > 0)
        output["entrl_informative"] = informative.repeat_interleave(self.num_generations)[first : first + local]
        width = output["completion_ids"].size(1)
        if self._observation.monitor is not None and self.think_tags is not None:
            output["entrl_phase"] = rollout.phases(self.think_tags, width).to(device)
        if not (self._loss_controllers or self._windows.on) or not rollout.scored:
            return
        assert rollout.log_probs_BT is not None
        assert rollout.entropies_BT is not None
        output["entrl_entropies"] = rollout.entropies_BT[:, :width].detach()
        if "old_per_token_logps" not in output and self._loss_controllers:
            # Under another name than TRL's: its own key would replace the ratio of exactly 1 by round-off.
            output["entrl_log_probs"] = rollout.log_probs_BT[:, :width].detach()

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
            "advantage": output["advantages"].tolist(),
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

    # Optimiser step: selection, loss, metrics

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self.model.training:
            self.counters.start()
        try:
            inputs = super()._prepare_inputs(generation_batch)
        except RolloutError as error:
            raise self._stopped_without_rollouts(error) from error
        starts_window = self._step % self.args.gradient_accumulation_steps == 0
        if self.model.training and self._loss_controllers and starts_window:
            self._selections = self._select()
        return inputs

    def _stopped_without_rollouts(self, error: RolloutError) -> RolloutError:
        """Save what training has reached before a run ends for want of rollouts; every rank comes here together.

        A rollout begins where an optimiser step has ended (the schedules that straddle are refused with controllers),
        and none of its rows has been trained on, so a resumed run generates it again: nothing is lost or used twice.
        An evaluation begins there too.
        """
        between_steps = self._step % self.args.gradient_accumulation_steps == 0
        if not between_steps or self.state.global_step == 0:
            return error
        self._save_checkpoint(self.model, trial=None)
        folder = f"checkpoint-{self.state.global_step}"
        return type(error)(
            f"{error}; training stopped at step {self.state.global_step}, saved in {folder}: resume=true"
        )

    def _select(self) -> list[Any]:
        scopes = {c.scope for c in self._loss_controllers}
        if not scopes & {"step", "exact"}:
            return [None] * len(self._loss_controllers)
        first = self._step % self.args.steps_per_generation
        slices = self._buffered_inputs[first : first + self.args.gradient_accumulation_steps]
        rows, old_BT, old_entropies_BT = self._window_rows(slices)
        current_BT, current_entropies_BT = old_BT, old_entropies_BT
        # In the first window after a rollout the policy is still the one that was scored.
        if "exact" in scopes and self._step % self._schedule.generate_every != 0:
            scored = [self._scores_of_slice(s, kind="exact") for s in slices]
            current_BT, current_entropies_BT = (torch.cat(column).float() for column in zip(*scored, strict=True))
        selections = []
        for controller in self._loss_controllers:
            exact, selects = controller.scope == "exact", controller.scope in ("step", "exact")
            window = Window(
                rows=rows,
                log_probs_BT=(current_BT if exact else old_BT).float(),
                old_log_probs_BT=old_BT.float(),
                entropies_BT=current_entropies_BT if exact else old_entropies_BT,
                step=self.state.global_step,
                ranks=self._ranks,
            )
            selection = controller.select(window) if selects else None
            selections.append(selection)
            for key, value in controller.window_metrics(selection).items() if selects else ():
                self._observation.window_metrics[f"{controller.name}/{key}"] = value
        return selections

    def _window_rows(self, slices: Sequence[dict[str, Any]]) -> tuple[Rows, Tensor, Tensor | None]:
        parts = [self._rows(s) for s in slices]
        rows = Rows(
            advantages_BT=torch.cat([p.advantages_BT for p in parts]),
            mask_BT=torch.cat([p.mask_BT for p in parts]),
            row_id_B=torch.cat([p.row_id_B for p in parts]),
            informative_B=torch.cat([p.informative_B for p in parts]),
        )
        old = [s["old_per_token_logps"] if "old_per_token_logps" in s else s["entrl_log_probs"] for s in slices]
        entropies = [s["entrl_entropies"].float() for s in slices if "entrl_entropies" in s]
        return rows, torch.cat(old), torch.cat(entropies) if len(entropies) == len(slices) else None

    @staticmethod
    def _rows(inputs: dict[str, Any]) -> Rows:
        """A micro-batch of TRL's as `Rows`; without controllers the bookkeeping columns are filled with defaults."""
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        advantages, count = inputs["advantages"].float(), mask.size(0)
        if advantages.dim() == 1:
            advantages = advantages.unsqueeze(1)
        device = mask.device
        return Rows(
            advantages_BT=advantages.expand(mask.shape),
            mask_BT=mask.bool(),
            row_id_B=inputs.get("entrl_row_id", torch.arange(count, device=device)),
            informative_B=inputs.get("entrl_informative", torch.ones(count, dtype=torch.bool, device=device)),
        )

    def _scores_of_slice(self, inputs: dict[str, Any], *, kind: str) -> tuple[Tensor, Tensor]:
        """(log-probs, entropies) of a micro-batch of TRL's under the policy as it is now."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        return self._no_grad_pass(kind, ids, mask, inputs["completion_ids"].size(1))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training:
            self._pass = "evaluation"
            try:
                return super()._compute_loss(model, inputs)
            finally:
                self._pass = None
        inputs = dict(inputs)  # the rows live in TRL's buffer and are read again with num_iterations > 1
        self._loss_inputs = inputs
        current = self._loss_pass = LossPass(
            rows=self._rows(inputs),
            old_log_probs_BT=inputs.get("old_per_token_logps"),
            ref_log_probs_BT=inputs.get("ref_per_token_logps"),
            controllers=self._loss_controllers,
            selections=self._selections if self._loss_controllers else [],
            eps_low=self.epsilon_low,
            eps_high=self.epsilon_high,
            fresh=self._policy_is_fresh,
        )
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._loss_pass = None
        loss = self._add_penalty(loss, current, inputs)
        self._observation.tally.add(current.sums)
        if self._windows.wants(self.state.global_step):
            self._windows.micro_batch(current, inputs)
        if self.accelerator.sync_gradients:
            self._finish_step(inputs)
        return loss

    @property
    def _policy_is_fresh(self) -> bool:
        """True while no optimiser step has been taken since the rows in hand were generated."""
        generated_at = self._step - self._step % self._schedule.generate_every
        accumulation = self.args.gradient_accumulation_steps
        return self._step // accumulation == generated_at // accumulation

    def _apply_controllers(self, current: LossPass, *, log_probs_BT: Tensor, entropies_BT: Tensor) -> None:
        """Between TRL's forward pass and its loss: weights go in through the (B, T) advantages TRL accepts."""
        weight_BT = current.run(log_probs_BT, entropies_BT)
        current.log_probs_BT, current.entropies_BT = log_probs_BT.detach(), entropies_BT.detach()
        if self._observation.monitor is not None:
            phase_BT = self._loss_inputs.get("entrl_phase")
            self._observation.monitor.observe(current.rows, current.log_probs_BT, current.entropies_BT, phase_BT)
        if weight_BT is not None:
            advantages = self._loss_inputs["advantages"]
            advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
            self._loss_inputs["advantages"] = advantages * weight_BT

    def _add_penalty(self, loss: Tensor, current: LossPass, inputs: dict[str, Any]) -> Tensor:
        if current.penalty_BT is None:
            return loss
        if self.use_vllm and self.vllm_importance_sampling_correction:
            current.weigh_policy(inputs["importance_sampling_ratio"])
        penalty_BT = current.weighted_penalty()
        assert penalty_BT is not None
        return loss + aggregate(
            penalty_BT,
            current.rows.mask_BT,
            loss_type=self.loss_type,
            accumulation=self.current_gradient_accumulation_steps,
            steps_per_generation=self.args.steps_per_generation,
            world_size=self.accelerator.num_processes,
            max_completion_length=self.max_completion_length,
            num_items=inputs["num_items_in_batch"],
        )

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        keep = super().get_high_entropy_mask(entropies, mask, threshold)
        if self._loss_pass is not None:
            self._loss_pass.weigh_policy(keep)
        return keep

    def get_off_policy_mask(self, *args: Any, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        keep = GRPOTrainer.get_off_policy_mask(*args, **kwargs)
        if self._loss_pass is not None:
            self._loss_pass.weigh_policy(keep)
        return keep

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.counters.pause()  # the next training micro-step starts it again
        if self.evaluation_seed is None:
            return super().evaluate(*args, **kwargs)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.evaluation_seed + self.accelerator.process_index)
            return super().evaluate(*args, **kwargs)

    # After the loss: what the step was like

    def _finish_step(self, inputs: dict[str, Any]) -> None:
        step = self.state.global_step
        self._observation.finish_step(step)
        if any(c.needs_feedback for c in self.controllers):
            self._read_steps()
        if self._windows.wants(step):
            self._windows.finish(step, inputs)

    def _read_steps(self) -> None:
        """Turn finished steps into metrics; each is read once."""
        for metrics, completion_tokens in self._observation.read():
            self.counters.completion_tokens += completion_tokens
            for name, value in metrics.items():
                self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._read_steps()
        super().log(logs, start_time)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._read_steps()  # the counters and controllers saved below must know every step
        super()._save_checkpoint(model, trial)
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        save_state(folder, self.accelerator.process_index, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "world_size": self.accelerator.num_processes,
            "micro_step": self._step,
            "buffered_rows": moved(self._buffered_inputs, "cpu"),
            "counters": self.counters.state_dict(),
            "probe": self._observation.probe.state_dict(),
            "controllers": [c.state_dict() for c in self.controllers],
            "rewards": [r.state_dict() if hasattr(r, "state_dict") else None for r in self._stateful_rewards()],
            "generation": self.vllm_generation.state_dict() if self._has_replicas else None,
        }

    @property
    def _has_replicas(self) -> bool:
        return self.use_vllm and isinstance(self.vllm_generation, ReplicaGeneration)

    def _stateful_rewards(self) -> list[Any]:
        """Reward functions in order; reward models keep their weights elsewhere and count as stateless."""
        return [None if isinstance(r, torch.nn.Module) else r for r in self.reward_funcs]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = load_state(checkpoint, self.accelerator.process_index, self.accelerator.num_processes)
        if state is None:
            return
        self._step = state["micro_step"]
        self._buffered_inputs = moved(state["buffered_rows"], self.accelerator.device)
        self.counters.load_state_dict(state["counters"])
        if "probe" in state:  # older checkpoints have none
            self._observation.probe.load_state_dict(state["probe"])
        if self._has_replicas and state.get("generation") is not None:
            self.vllm_generation.load_state_dict(state["generation"])
        for controller, saved in zip(self.controllers, state["controllers"], strict=True):
            controller.load_state_dict(saved)
        for reward, saved in zip(self._stateful_rewards(), state["rewards"], strict=True):
            if saved is not None:
                reward.load_state_dict(saved)
