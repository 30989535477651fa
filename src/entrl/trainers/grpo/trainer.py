"""`EntropyGRPOTrainer`: TRL's GRPO with token signals for rewards and hooks for entropy controllers.

The methods overridden here, and the parts they hand over to (`parts.py`), know the private names of TRL's GRPO (1.16);
`vllm.py` knows those of its generation. No method body of TRL is copied; every override calls `super()`. What the
names are expected to look like is asserted at import (`check_trl`). The passes over a rollout's tokens are listed in
`scoring.py`, the entries that TRL's rows get in `shared/row_columns.py`.
"""

from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from entrl.controllers.hooks import Controller
from entrl.curriculum.course import Course
from entrl.engines.faults import RolloutError
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.curriculum import TrainedCourse
from entrl.trainers.grpo.parts import Parts, build
from entrl.trainers.grpo.vllm import generating_with
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.refusals.curriculum import curriculum_problems
from entrl.trainers.refusals.engine_rules import tool_problems
from entrl.trainers.refusals.surroundings import check_surroundings
from entrl.trainers.seam import check_trl
from entrl.trainers.shared.options import complete, refuse
from entrl.trainers.shared.resumption import Resumable
from entrl.trainers.shared.rewards import checked_rollout_func

check_trl(version("trl"), GRPOTrainer)


class EntropyGRPOTrainer(Resumable, GRPOTrainer):
    """`trl.GRPOTrainer` whose rewards may read token entropies and whose loss takes entropy controllers.

    Arguments are TRL's, plus
        controllers: `entrl.controllers.hooks.Controller` objects.
        curriculum: an `entrl.curriculum.course.Course`, which chooses the prompts of each rollout; None: TRL's order.

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

    model: Any  # TRL and transformers annotate it more widely than they use it
    evaluation_seed: int | None = None  # set: evaluations draw alike and leave training's random state alone
    _parts: Parts | None = None  # until the constructor has built them, every method is TRL's

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *trl_args: Any,
        controllers: Sequence[Controller] | None = None,
        curriculum: Course | None = None,
        **trl_kwargs: Any,
    ) -> None:
        self.controllers = list(controllers or [])
        if args is not None:
            listed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
            speaks = any(trl_kwargs.get(name) for name in ("tools", "environment_factory"))
            complete(args, EntropyGRPOConfig)
            refuse(tool_problems(args) if speaks else [])
            refuse(check_schedule(args, self.controllers, listed, args.world_size))
            refuse(curriculum_problems(curriculum, args, listed))
        if "rollout_func" in trl_kwargs:
            trl_kwargs["rollout_func"] = checked_rollout_func(trl_kwargs["rollout_func"])
        with generating_with(args):
            super().__init__(model, reward_funcs, args, *trl_args, **trl_kwargs)
        if args is None:
            complete(self.args, EntropyGRPOConfig)
            refuse(check_schedule(self.args, self.controllers, self.reward_funcs, self.args.world_size))
            refuse(curriculum_problems(curriculum, self.args, self.reward_funcs))
        check_surroundings(self.args, self.accelerator)
        self.completion_samples: deque[dict[str, Any]] = deque(maxlen=1024)
        self.checkpoint_files = []
        self._parts = parts = build(self, self.controllers, self.completion_samples, curriculum)
        self._observation, self.kept, self.counters = parts.observation, parts.kept, parts.counters
        self.think_tags = parts.facts.tags

    # Which rows of the data set

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        plain, course = super()._get_train_sampler(dataset), self._course
        return plain if course is None else course.sampler_of(plain)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._course is not None:
            self._course.start_pass(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    @property
    def _course(self) -> TrainedCourse | None:
        return None if self._parts is None else self._parts.rollouts.course

    # From the rows of the data set to the rows of the loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        parts, training = self._parts, self.model.training
        if parts is not None and training:
            parts.counters.start()
        try:
            inputs = super()._prepare_inputs(generation_batch)
        except RolloutError as error:
            raise self._stopped_without_rollouts(error) from error
        if parts is not None and training:
            parts.loss.prepare()
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        draw = super()._generate_and_score_completions
        return draw(inputs) if self._parts is None else self._parts.rollouts.make(inputs, draw)

    def _generate(self, prompts: list) -> Any:
        generated = super()._generate(prompts)
        if self._parts is not None:
            self._parts.rollouts.keep(generated)
        return generated

    def _generate_single_turn(self, *given: Any, **options: Any) -> Any:
        generate = super()._generate_single_turn
        if self._parts is None:
            return generate(*given, **options)
        return self._parts.rollouts.single_turn(given, options, generate)

    def _tool_call_loop(self, *given: Any) -> Any:
        loop, generate = super()._tool_call_loop, super()._generate_single_turn
        return loop(*given) if self._parts is None else self._parts.rollouts.turns(given, loop, generate)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list
    ) -> Tensor:
        parts = self._parts
        if parts is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        assert parts.rollouts.current is not None
        rows = parts.signals.added_to(inputs, completions, parts.rollouts.current)
        with parts.signals.guarded():
            rewards_NF = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        parts.rollouts.rewarded(rewards_NF, inputs)
        return rewards_NF

    # Passes and loss

    def _get_per_token_logps_and_entropies(self, *given: Any, **options: Any) -> Any:
        parts, forward = self._parts, super()._get_per_token_logps_and_entropies
        if parts is None:
            return forward(*given, **options)
        kind, out = parts.scoring.counted(forward, *given, rollout=parts.rollouts.current, **options)
        if kind == "loss":
            parts.loss.meet(log_probs_BT=out[0], entropies_BT=out[1])
        return out

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        plain = super()._compute_loss
        if self._parts is None:
            return plain(model, inputs)
        return self._parts.loss.of(inputs, lambda inputs: plain(model, inputs))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.counters.pause()  # the next training micro-step starts it again
        if self.evaluation_seed is None:
            return super().evaluate(*args, **kwargs)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.evaluation_seed + self.accelerator.process_index)
            return super().evaluate(*args, **kwargs)
