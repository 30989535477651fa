"""The batch arithmetic of a GRPO run, and the refusals that follow from it. No model, no data, no process group.

Words: a *micro-step* is one forward and backward of `per_device_train_batch_size` rows per rank; a *window* is the
`gradient_accumulation_steps` micro-steps of one optimiser step; a *rollout* (generation batch) is the
`steps_per_generation` micro-batches generated together, walked `num_iterations` times.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from entrl.controllers.ce_gppo import CEGPPO
from entrl.controllers.guard import EntropyGuard
from entrl.controllers.hooks import Controller, Role
from entrl.trainers.refusals.engine_rules import vllm_problems
from entrl.trainers.refusals.part_options import branching_problems, filter_problems, turn_problems
from entrl.trainers.shared.rewards import SCORED_SIGNALS, needed_signals, needs_whole_groups, reward_name

TRL_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
TRL_DEFAULT_EPSILON = 0.2  # GRPOConfig.epsilon; a user who left it there has asked for nothing


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


def check_schedule(
    args: Any, controllers: Sequence[Controller], reward_funcs: Sequence[Callable | Any], world_size: int
) -> list[str]:
    """Everything about these options that would make a controller or a reward wrong or idle; empty = all right.

    Each entry names the value, the rule and the next move. `EntropyGRPOTrainer` raises on the first, `entrl plan`
    prints them all.
    """
    if problems := _empty_runs(args):
        return problems  # without a step there is no arithmetic
    schedule = describe_schedule(args, world_size)
    if args.loss_type not in TRL_LOSSES:
        problems.append(f"loss_type={args.loss_type!r} is not one of TRL's: {', '.join(TRL_LOSSES)}")
    if args.temperature <= 0:
        problems.append(f"temperature must be > 0 to sample rollouts, got {args.temperature}")
    for controller in controllers:
        if controller.uses_loss_hook:
            problems += _controller_problems(args, controller, schedule)
        if controller.required_scaling not in (None, args.scale_rewards):
            problems.append(
                f"{controller.name} is defined for scale_rewards={controller.required_scaling}, not "
                f"{args.scale_rewards}; change scale_rewards or drop the controller"
            )
    names = [c.name for c in controllers]
    for name in sorted({n for n in names if names.count(n) > 1}):
        problems.append(f"two controllers are called {name}, so their metrics would be one; keep one of them")
    problems += _clip_conflicts(args, [c for c in controllers if c.uses_loss_hook])
    acting = [_unguarded(c) for c in controllers]
    problems += _role_conflicts(acting)
    for controller in acting:
        if isinstance(controller, CEGPPO):
            problems += _restored_gradient(args, controller, acting)
    for reward in reward_funcs:
        if needs_whole_groups(reward) and not schedule.whole_groups_per_rank:
            problems.append(
                f"reward {reward_name(reward)!r} compares the completions of a prompt, but each of {world_size} "
                f"processes holds {schedule.local_rows_per_rollout} rows, which is no multiple of num_generations="
                f"{schedule.num_generations}, so groups are split over processes; make per_device_train_batch_size x "
                "steps_per_generation a multiple of num_generations"
            )
        problems += _split_evaluation(args, reward, world_size) + _repeated_tags(args, reward)
    entropy_aware = any(c.uses_loss_hook for c in controllers) or any(
        needed_signals(r) & set(SCORED_SIGNALS) for r in reward_funcs
    )
    problems += branching_problems(args, whole_groups=schedule.whole_groups_per_rank)
    if getattr(args, "branch_roots", None) is not None:
        problems += [
            f"branch_roots and {c.name} cannot be combined: both replace the advantages; keep one of them"
            for c in acting
            if _role(c) == "advantage"
        ]
    problems += filter_problems(args, reward_funcs, whole_groups=schedule.whole_groups_per_rank)
    problems += turn_problems(args, reward_funcs)
    problems += _unpublished_columns(controllers, reward_funcs)
    return problems + vllm_problems(args, entropy_aware=entropy_aware)


def _empty_runs(args: Any) -> list[str]:
    """Options under which a run would end without a step and call itself finished."""
    out = []
    if args.num_iterations < 1:
        out.append(f"num_iterations counts the passes over a rollout: at least 1, got {args.num_iterations}")
    if args.max_steps == 0 or args.max_steps < -1:
        out.append(f"max_steps must be at least 1, or -1 to count by num_train_epochs; got {args.max_steps}")
    if args.max_steps == -1 and args.num_train_epochs <= 0:
        out.append(f"num_train_epochs must be above 0, got {args.num_train_epochs}; or set max_steps")
    return out


def _repeated_tags(args: Any, reward: Any) -> list[str]:
    """Options of a reward that say for texts what the trainer knows from token ids, and say it otherwise."""
    found = []
    for option, key in getattr(reward, "text_options", {}).items():
        given, here = getattr(reward, option), getattr(args, key, None) if key else None
        if given in (None, False, "last", here):  # not given, what holds here anyway, or the same again
            continue
        advice = (
            f"trainer.{key} is {here!r} and decides for rewards and evaluation alike"
            if key
            else (
                "here the token ids and the prompt decide; pay for the format by think_format or PEAR's missing_close"
            )
        )
        found.append(
            f"reward {reward_name(reward)!r}: {option}={given!r} is for stock TRL and plain texts; {advice}: remove "
            f"{option} from the reward" + (f" and set trainer.{key}" if key else "")
        )
    return found


def _unpublished_columns(controllers: Sequence[Controller], reward_funcs: Sequence[Callable | Any]) -> list[str]:
    published = {name for r in reward_funcs for name in getattr(r, "published_columns", ())}
    return [
        f"{c.name} needs {', '.join(missing)} of each row, which no reward here publishes; add hierarchical_entropy "
        "(alpha: 0 makes it plain accuracy)"
        for c in controllers
        if (missing := [name for name in c.needs_columns if name not in published])
    ]


def _controller_problems(args: Any, controller: Controller, schedule: Schedule) -> list[str]:
    out, name = [], controller.name
    if args.loss_type not in controller.supported_losses:
        out.append(
            f"{name} is not defined for loss_type={args.loss_type!r}; "
            f"use one of {', '.join(sorted(controller.supported_losses))}"
        )
    if args.importance_sampling_level != "token":
        out.append(
            f"{name} weighs single tokens, which has no meaning with importance_sampling_level="
            f"{args.importance_sampling_level!r} (one ratio per sequence); set importance_sampling_level: token"
        )
    if controller.needs_reference and not args.beta:
        out.append(
            f"{name} sets the coefficient of the KL to the reference model, and beta={args.beta} means there is "
            "neither; set trainer.beta above 0 (ARES has 0.01), or leave the controller out"
        )
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


ROLE_CLASHES: dict[Role, str] = {
    "advantage": "both replace the advantages, so the second would undo the first",
    "weight": "each is defined for the unweighted policy term, and the product of two weights is neither method",
    "penalty": "each holds its own selection near the sampling policy, and one token would be held twice",
    "outside_clip": "each says what gradient a token beyond the clip gets, and there is one",
    "reference_kl": "both set the coefficient of the one KL term",
}


def _unguarded(controller: Controller) -> Controller:
    return controller.controller if isinstance(controller, EntropyGuard) else controller


def _role(controller: Controller) -> Role | None:
    """The role its class states; None for one that states none (an observer, a user's own), which is not judged."""
    stated = any("role" in vars(cls) for cls in type(controller).__mro__ if cls is not Controller)
    return controller.role if stated or "role" in vars(controller) else None


def _role_conflicts(controllers: Sequence[Controller]) -> list[str]:
    """Controllers of different roles act on different factors of the loss and compose; of one role they do not."""
    by_role: dict[Role, list[str]] = {}
    for controller in controllers:
        role = _role(controller)
        if role is not None and controller.name not in by_role.setdefault(role, []):
            by_role[role].append(controller.name)
    return [
        f"{' and '.join(names)} cannot be combined: {ROLE_CLASHES[role]}; keep one of them"
        for role, names in by_role.items()
        if len(names) > 1
    ]


def _restored_gradient(args: Any, controller: CEGPPO, controllers: Sequence[Controller]) -> list[str]:
    out, name = [], controller.name
    for other in controllers:
        if _role(other) == "weight":
            out.append(
                f"{name} and {other.name} cannot be combined: whether the gradient restored beyond the clip carries "
                f"{other.name}'s weight is defined by neither; keep one of them"
            )
    (low, high), owner = _effective_clip(args, controllers)
    if controller.beta_low and low >= 1:
        out.append(
            f"{name} restores the gradient below 1 - eps_low (beta_low={controller.beta_low}), but {owner} has eps_low="
            f"{low:g} and no ratio is below 0; set it below 1, or beta_low: 0"
        )
    if controller.beta_high and high == math.inf:
        out.append(
            f"{name} restores the gradient above 1 + eps_high (beta_high={controller.beta_high}), but {owner} does not "
            "clip there; give it an upper clip, or set beta_high: 0"
        )
    if controller.beta_high and args.delta is not None and args.delta <= 1 + high:
        out.append(
            f"{name} restores the gradient above 1 + eps_high={1 + high:g}, where delta={args.delta} already replaces "
            "the ratio; set delta above that (the published dual clip is 3) or leave it out"
        )
    return out


def _effective_clip(args: Any, controllers: Sequence[Controller]) -> tuple[tuple[float, float], str]:
    """(eps_low, eps_high) of the loss and whose they are: a controller's own, else the trainer's."""
    for controller in controllers:
        if controller.uses_loss_hook and controller.clip_range is not None:
            return controller.clip_range, controller.name
    return (args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high), "the trainer"


def _clip_conflicts(args: Any, controllers: Sequence[Controller]) -> list[str]:
    wanted = {c.name: c.clip_range for c in controllers if c.clip_range is not None}
    if len(set(wanted.values())) > 1:
        return [f"controllers ask for different clip ranges {wanted}; they cannot be combined, drop one"]
    if not wanted:
        return []
    name, (low, high) = next(iter(wanted.items()))
    given_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    untouched = args.epsilon == TRL_DEFAULT_EPSILON and args.epsilon_high is None and args.delta is None
    agrees = math.isclose(args.epsilon, low) and math.isclose(given_high, high) and args.delta is None
    if untouched or agrees:
        return []
    return [
        f"{name} sets the ratio range itself (eps_low={low}, eps_high={high}), but trainer says epsilon="
        f"{args.epsilon}, epsilon_high={args.epsilon_high}, delta={args.delta}; leave the three out, or set clip_low "
        f"/ clip_high of {name} to what you want"
    ]


def _split_evaluation(args: Any, reward: Any, world_size: int) -> list[str]:
    generations = args.num_generations_eval or args.num_generations
    evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
    if not evaluates or not needs_whole_groups(reward) or args.per_device_eval_batch_size % generations == 0:
        return []
    return [
        f"reward {reward_name(reward)!r} compares the completions of a prompt, but an evaluation batch of "
        f"{args.per_device_eval_batch_size} rows a process splits groups of {generations} over {world_size} "
        "process(es) or batches; make per_device_eval_batch_size a multiple of num_generations_eval"
    ]
