"""The batch arithmetic of a GRPO run, and what it refuses. No model, no data, no process group.

Words: a *micro-step* is one forward and backward of `per_device_train_batch_size` rows per rank; a *window* is the
`gradient_accumulation_steps` micro-steps of one optimiser step; a *rollout* (generation batch) is the
`steps_per_generation` micro-batches generated together, walked `num_iterations` times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entrl.controllers.hooks import Controller
from entrl.trainers.shared.rewards import needs_whole_groups, reward_name


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Numbers of rows are over all ranks unless the name says `local`."""

    world_size: int
    per_device_rows: int
    gradient_accumulation_steps: int
    steps_per_generation: int
    num_iterations: int
    num_generations: int
    use_vllm_correction: bool

    @property
    def local_rows_per_rollout(self) -> int:
        return self.per_device_rows * self.steps_per_generation

    @property
    def rows_per_rollout(self) -> int:
        return self.local_rows_per_rollout * self.world_size

    @property
    def prompts_per_rollout(self) -> int:
        return self.rows_per_rollout // self.num_generations

    @property
    def rows_per_step(self) -> int:
        return self.per_device_rows * self.gradient_accumulation_steps * self.world_size

    @property
    def generate_every(self) -> int:
        """Micro-steps between two generations."""
        return self.steps_per_generation * self.num_iterations

    @property
    def updates_per_rollout(self) -> float:
        return self.generate_every / self.gradient_accumulation_steps

    @property
    def on_policy(self) -> bool:
        """True where TRL takes the ratio to be exactly 1: every rollout is used up within one optimiser step."""
        return self.gradient_accumulation_steps % self.generate_every == 0

    @property
    def trl_scores_rollouts(self) -> bool:
        """True where TRL itself runs a no-grad pass over each rollout (old log-probs)."""
        return not self.on_policy or self.use_vllm_correction

    @property
    def window_is_buffered(self) -> bool:
        """True where every row of a window exists before its first backward."""
        return self.steps_per_generation % self.gradient_accumulation_steps == 0

    @property
    def whole_groups_per_rank(self) -> bool:
        return self.local_rows_per_rollout % self.num_generations == 0

    def extra_passes_per_step(self, *, signals_needed: bool, scopes: Sequence[str | None]) -> float:
        """Forward passes over an optimiser step's rows that stock TRL would not run, averaged over steps.

        signals_needed: some reward reads token signals. scopes: the scope of each controller that selects.
        Rescoring of truncated rows under `mask_truncated_completions` comes on top, for those rows alone.
        """
        rollout_share = 1.0 / max(self.updates_per_rollout, 1.0)
        own_scoring = (signals_needed or any(s in ("step", "exact") for s in scopes)) and not self.trl_scores_rollouts
        extra = rollout_share if own_scoring else 0.0
        if "exact" in scopes and self.updates_per_rollout > 1:
            extra += 1.0 - rollout_share  # the first window after a rollout still has the policy that was scored
        return extra


def describe_schedule(args: Any, world_size: int) -> Schedule:
    """The schedule of a `GRPOConfig`, for `world_size` ranks."""
    steps = args.steps_per_generation or args.gradient_accumulation_steps
    return Schedule(
        world_size=world_size,
        per_device_rows=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        steps_per_generation=steps,
        num_iterations=args.num_iterations,
        num_generations=args.num_generations,
        use_vllm_correction=bool(args.use_vllm and args.vllm_importance_sampling_correction),
    )


def empty_runs(args: Any) -> list[str]:
    """Options under which a run would end without a step and call itself finished."""
    out = []
    if args.num_iterations < 1:
        out.append(f"num_iterations counts the passes over a rollout: at least 1, got {args.num_iterations}")
    if args.max_steps == 0 or args.max_steps < -1:
        out.append(f"max_steps must be at least 1, or -1 to count by num_train_epochs; got {args.max_steps}")
    if args.max_steps == -1 and args.num_train_epochs <= 0:
        out.append(f"num_train_epochs must be above 0, got {args.num_train_epochs}; or set max_steps")
    return out


def window_problems(controller: Controller, schedule: Schedule) -> list[str]:
    """Where the controller would be idle, or would select over rows that do not exist yet."""
    out, name = [], controller.name
    if controller.needs_stale_policy and schedule.on_policy:
        accumulation = schedule.gradient_accumulation_steps
        out.append(
            f"{name} does nothing on a fully on-policy schedule: the ratio is exactly 1 because each rollout is used "
            f"up in one optimiser step (gradient_accumulation_steps={accumulation}, steps_per_generation="
            f"{schedule.steps_per_generation}, num_iterations={schedule.num_iterations}); set steps_per_generation: "
            f"{2 * accumulation} (or k x {accumulation}; the published runs use k = 8) for k updates per rollout"
        )
    if controller.scope in ("step", "exact") and not schedule.window_is_buffered:
        out.append(
            f"{name} selects over a whole optimiser step (scope={controller.scope}), but with steps_per_generation="
            f"{schedule.steps_per_generation} and gradient_accumulation_steps={schedule.gradient_accumulation_steps} "
            "a window straddles generations and part of it does not exist yet; make steps_per_generation a multiple "
            "of gradient_accumulation_steps, or take scope: micro_batch"
        )
    return out


def group_problems(args: Any, reward: Any, schedule: Schedule) -> list[str]:
    """Where a reward that compares the completions of a prompt would not see them together."""
    if not needs_whole_groups(reward):
        return []
    out, world_size = [], schedule.world_size
    if not schedule.whole_groups_per_rank:
        out.append(
            f"reward {reward_name(reward)!r} compares the completions of a prompt, but each of {world_size} "
            f"processes holds {schedule.local_rows_per_rollout} rows, which is no multiple of num_generations="
            f"{schedule.num_generations}, so groups are split over processes; make per_device_train_batch_size x "
            "steps_per_generation a multiple of num_generations"
        )
    generations = args.num_generations_eval or args.num_generations
    evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
    if evaluates and args.per_device_eval_batch_size % generations:
        out.append(
            f"reward {reward_name(reward)!r} compares the completions of a prompt, but an evaluation batch of "
            f"{args.per_device_eval_batch_size} rows a process splits groups of {generations} over {world_size} "
            "process(es) or batches; make per_device_eval_batch_size a multiple of num_generations_eval"
        )
    return out
