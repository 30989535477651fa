"""`EntropyGRPOTrainer`: TRL's GRPO with token signals for rewards and hooks for entropy controllers.

This module and `grpo_rollout.py` know the private names of TRL's GRPO (1.16): the methods overridden, the keys of its
buffered rows, and the order of its passes; `vllm.py` knows those of its generation, `async_grpo.py` those of the
asynchronous trainer. No method body of TRL is copied; every override calls `super()`. What the names are expected to
look like is asserted at import (`check_trl`).

Passes over a rollout's tokens, in order:
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

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from entrl.controllers.hooks import Controller, Window
from entrl.controllers.monitor import Monitor
from entrl.engines.faults import RolloutError
from entrl.maths.phases import ThinkTags
from entrl.trainers.grpo.branching import BranchedRollout, Branching, branch_options, branching_problems
from entrl.trainers.grpo.group_filter import GroupFiltering, PromptSource, filter_rule
from entrl.trainers.grpo.logged_windows import LoggedWindows
from entrl.trainers.grpo.rollout_half import RolloutHalf
from entrl.trainers.grpo.turns import turn_options
from entrl.trainers.grpo.vllm import generating_with
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.engine_rules import tool_problems
from entrl.trainers.refusals.schedule import check_schedule, describe_schedule
from entrl.trainers.refusals.surroundings import check_surroundings, refuse_dropout
from entrl.trainers.shared import row_columns
from entrl.trainers.shared.checkpoint import moved
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.first_look import FirstLook, unspellable
from entrl.trainers.shared.loss import LossPass, aggregate
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.probe import Probe
from entrl.trainers.shared.resumption import Resumable
from entrl.trainers.shared.rewards import SCORED_SIGNALS, checked_rollout_func, needed_signals
from entrl.trainers.shared.rollout import Rollout


class EntropyGRPOTrainer(Resumable, RolloutHalf):
    """`trl.GRPOTrainer` whose rewards may read token entropies and whose loss takes entropy controllers.

    Arguments are TRL's, plus
        controllers: `entrl.controllers.hooks.Controller` objects.

    A reward function gets what it names among its parameters (or in a `needs` attribute), one entry per completion:
        token_entropies  1-D float32, nats, over the full vocabulary at the training temperature, under the policy
                         that generated the completion; token_logprobs the same for the sampled token
        token_mask       1-D bool, False where a tool wrote the token
        group_index      int, prompt group over all ranks; truncated  bool; prompt_ids  list of ints
        answer_texts     str, what is answered after the thinking, "" where it does not end
    and, not per completion,
        think_tags       `entrl.maths.phases.ThinkTags` of the tokenizer
        gather           function: this rank's list of floats -> the list over all ranks, rank by rank
        training         bool, False in evaluation; tokenizer  the trainer's own
    A reward that has `row_columns` after a call publishes what it found of each row to the controllers that name it.

    What it observes on the way (options `log_dynamics`, `log_diversity`, `probe_every`, `log_windows`) is read off the
    passes TRL makes anyway, but for the probe's and the logged windows' own, which are scheduled and counted.

    With no controller and no entropy-aware reward the parameters after any number of steps equal stock TRL's bit for
    bit. Controllers act in training only; evaluation computes TRL's plain loss.
    """

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
        speaks = any(trl_kwargs.get(name) for name in ("tools", "environment_factory"))
        if args is not None and speaks and (problems := tool_problems(args)):
            raise ValueError("; and ".join(problems))
        if args is not None:
            self._refuse(args, listed)
        # What the overrides below hand to each other. Set before super().__init__, which may call some of them.
        self._pass: str | None = None
        self._rollout: Rollout | None = None
        self._loss_pass: LossPass | None = None
        self._selections: list[Any] = []
        self._rewards_per_func: Tensor | None = None
        self._branched: BranchedRollout | None = None
        self._branching: Branching | None = None
        self._filtering: GroupFiltering | None = None
        self._warned: set[str] = set()
        self.completion_samples: deque[dict[str, Any]] = deque(maxlen=1024)
        self.checkpoint_files = []
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
        self._first_look = FirstLook(self.think_tags, think_close=self._option("think_close"))
        self._loss_controllers = [c for c in self.controllers if c.uses_loss_hook]
        if (options := branch_options(self.args)) is not None:
            self._refuse_branching()
            self._branching = Branching(options)
        self._filtering = self._group_filtering()
        self._turn_credit = turn_options(self.args)
        self._start_observing()
        scored = bool(self._loss_controllers or self._wanted & set(SCORED_SIGNALS))
        if scored or self._branching is not None or self._observation.probe.on or self._windows.on:
            refuse_dropout(self.model)
        for controller in self._loss_controllers:
            if controller.clip_range is not None:
                self.epsilon_low, self.epsilon_high = controller.clip_range

    # Start-up

    def _refuse(self, args: Any, reward_funcs: Sequence[Any]) -> None:
        problems = check_schedule(args, self.controllers, reward_funcs, args.world_size)
        if problems:
            raise ValueError("; and ".join(problems))

    def _refuse_branching(self) -> None:
        """What only a built trainer knows."""
        tools, rollout_func = bool(getattr(self, "tools", None)), getattr(self, "rollout_func", None) is not None
        if problems := branching_problems(self.args, whole_groups=True, tools=tools, rollout_func=rollout_func):
            raise ValueError("; and ".join(problems))

    def _group_filtering(self) -> GroupFiltering | None:
        rule = filter_rule(self.args)
        if rule is None:
            return None
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return GroupFiltering(
            rule,
            PromptSource(self.train_dataset, seed=self.args.seed, rank=rank, world_size=world_size),
            group_size=self.num_generations,
            ranks=self._ranks,
            reward_names=self.reward_func_names,
            reward_weights=self.reward_weights,
            scale=self.scale_rewards,
            aggregation=self.multi_objective_aggregation,
            pad_token_id=self._tokenizer.pad_token_id,
        )

    @property
    def _longest_completion(self) -> int | None:
        """Width no rollout exceeds, padding included; None where tools or a rollout function may write more."""
        if getattr(self, "tools", None) or getattr(self, "rollout_func", None) is not None:
            return None
        multiple = self.pad_to_multiple_of or 1
        return -(-self.max_completion_length // multiple) * multiple

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
        except ValueError as error:
            if "think_tags" in self._wanted:
                raise
            self._warn_once(unspellable(error))
            return None  # nobody needs phases; samples for the report go unlabelled

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
        rows, old_BT, old_entropies_BT = row_columns.window_of(slices)
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

    def _scores_of_slice(self, inputs: dict[str, Any], *, kind: str) -> tuple[Tensor, Tensor]:
        """(log-probs, entropies) of a micro-batch of TRL's under the policy as it is now."""
        return self._no_grad_pass(kind, *row_columns.input_ids(inputs))

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
            rows=row_columns.rows_of(inputs),
            old_log_probs_BT=inputs.get(row_columns.OLD_LOG_PROBS),
            ref_log_probs_BT=inputs.get("ref_per_token_logps"),
            controllers=self._loss_controllers,
            selections=self._selections if self._loss_controllers else [],
            eps_low=self.epsilon_low,
            eps_high=self.epsilon_high,
            beta=self.beta,
            corrected_kl=self.args.use_bias_correction_kl,
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
            phase_BT = self._loss_inputs.get(row_columns.PHASE)
            self._observation.monitor.observe(current.rows, current.log_probs_BT, current.entropies_BT, phase_BT)
        if weight_BT is not None:
            advantages = self._loss_inputs["advantages"]
            advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
            self._loss_inputs["advantages"] = advantages * weight_BT

    def _add_penalty(self, loss: Tensor, current: LossPass, inputs: dict[str, Any]) -> Tensor:
        if not current.penalised:
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

    def _state(self) -> dict[str, Any]:
        return {
            "micro_step": self._step,
            "buffered_rows": moved(self._buffered_inputs, "cpu"),
            "counters": self.counters.state_dict(),
            "probe": self._observation.probe.state_dict(),
            "branching": None if self._branching is None else self._branching.state_dict(),
            "filter": None if self._filtering is None else self._filtering.state_dict(),
            "controllers": [c.state_dict() for c in self.controllers],
            "rewards": [r.state_dict() if hasattr(r, "state_dict") else None for r in self._stateful_rewards()],
            "generation": self.vllm_generation.state_dict() if self._has_replicas else None,
        }

    def _stateful_rewards(self) -> list[Any]:
        """Reward functions in order; reward models keep their weights elsewhere and count as stateless."""
        return [None if isinstance(r, torch.nn.Module) else r for r in self.reward_funcs]

    def _restore(self, state: dict[str, Any]) -> None:
        self._step = state["micro_step"]
        self._buffered_inputs = moved(state["buffered_rows"], self.accelerator.device)
        self.counters.load_state_dict(state["counters"])
        if "probe" in state:  # older checkpoints have none
            self._observation.probe.load_state_dict(state["probe"])
        for name, part in (("branching", self._branching), ("filter", self._filtering)):
            if part is not None and state.get(name) is not None:
                part.load_state_dict(state[name])
        if self._has_replicas and state.get("generation") is not None:
            self.vllm_generation.load_state_dict(state["generation"])
        for controller, saved in zip(self.controllers, state["controllers"], strict=True):
            controller.load_state_dict(saved)
        for reward, saved in zip(self._stateful_rewards(), state["rewards"], strict=True):
            if saved is not None:
                reward.load_state_dict(saved)
