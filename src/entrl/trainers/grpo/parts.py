"""The parts of `EntropyGRPOTrainer`, put together once TRL's constructor is through."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entrl.controllers.hooks import Controller
from entrl.controllers.monitor import Monitor
from entrl.curriculum.course import Course
from entrl.trainers.grpo.branching import Branching
from entrl.trainers.grpo.controlled_loss import ControlledLoss
from entrl.trainers.grpo.curriculum import TrainedCourse
from entrl.trainers.grpo.facts import Facts
from entrl.trainers.grpo.group_filter import GroupFiltering, PromptSource
from entrl.trainers.grpo.logged_windows import LoggedWindows
from entrl.trainers.grpo.reward_signals import RewardSignals
from entrl.trainers.grpo.rollout_report import RolloutReport, has_replicas
from entrl.trainers.grpo.rollouts import Rollouts
from entrl.trainers.grpo.scoring import Scoring
from entrl.trainers.grpo.turn_rounds import generates_together
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.checks import reads_policy, wants_no_dropout
from entrl.trainers.refusals.images import image_problems, images_from
from entrl.trainers.refusals.part_options import branch_options, branching_problems, filter_rule
from entrl.trainers.refusals.sampling import model_sampling_problems
from entrl.trainers.refusals.schedule import describe_schedule
from entrl.trainers.refusals.surroundings import refuse_dropout
from entrl.trainers.shared.checkpoint import moved
from entrl.trainers.shared.controls import Controls
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.first_look import think_tags_of
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.options import refuse
from entrl.trainers.shared.probe import Probe
from entrl.trainers.shared.resumption import Kept, KeptEach
from entrl.trainers.shared.rewards import needed_signals
from entrl.trainers.shared.training_log import TrainingLog


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Each is handed what it needs, and none knows `EntropyGRPOTrainer`.

    kept: what a checkpoint holds of this rank, by name
    """

    facts: Facts
    counters: Counters
    observation: Observation
    scoring: Scoring
    signals: RewardSignals
    rollouts: Rollouts
    loss: ControlledLoss
    kept: dict[str, Kept]


def build(
    trl: Any, controllers: Sequence[Controller], samples: deque[dict[str, Any]], curriculum: Course | None = None
) -> Parts:
    """The parts for a trainer of TRL's; its constructor is through and its options are complete.

    samples: where completions for the report are put. Raises ValueError for what only a built trainer knows.
    """
    args, accelerator = trl.args, trl.accelerator
    facts = _facts(trl, controllers)
    counters = Counters(facts.schedule.rows_per_step // facts.schedule.world_size)
    scoring = Scoring(facts, counters)
    signals = RewardSignals(facts, scoring)
    observation = Observation(
        controls=facts.controls,
        log=facts.log,
        counters=counters,
        ranks=facts.ranks,
        score=lambda sequences: scoring.entropies(sequences, kind="probe"),
        monitor=Monitor(device=accelerator.device) if args.log_dynamics else None,
        probe=Probe(every=args.probe_every, rows=max(1, args.probe_rows // accelerator.num_processes)),
        diversity=args.log_diversity,
    )
    branching, filtering = _branching(trl), _filtering(trl, facts.ranks)
    windows = LoggedWindows(trl, scoring=scoring, observation=observation)
    if wants_no_dropout(args, controllers, trl.reward_funcs):
        refuse_dropout(trl.model)
    own, reads = trl.model.generation_config, reads_policy(controllers, trl.reward_funcs)
    refuse(model_sampling_problems(args, own, entropy_aware=reads))
    refuse(_image_problems(facts, signals, branching, filtering, windows=windows.on))
    facts.controls.set_clip_range(trl)
    rollouts = Rollouts(
        facts,
        scoring=scoring,
        signals=signals,
        report=RolloutReport(facts, observation, samples),
        observation=observation,
        branching=branching,
        filtering=filtering,
        windows=windows.on,
        course=None if curriculum is None else TrainedCourse(curriculum, facts),
    )
    kept: dict[str, Any] = {
        "micro_step": _Attribute(trl, "_step"),
        "buffered_rows": _Attribute(trl, "_buffered_inputs"),
        "counters": counters,
        "probe": observation.probe,
        "branching": branching,
        "filter": filtering,
        "curriculum": curriculum,
        "controllers": KeptEach(facts.controls.all),
        "rewards": KeptEach(trl.reward_funcs),
        "generation": trl.vllm_generation if has_replicas(trl) else None,
    }
    return Parts(
        facts=facts,
        counters=counters,
        observation=observation,
        scoring=scoring,
        signals=signals,
        rollouts=rollouts,
        loss=ControlledLoss(facts, scoring, observation, windows),
        kept={name: part for name, part in kept.items() if part is not None},
    )


def _image_problems(
    facts: Facts, signals: RewardSignals, branching: Any, filtering: Any, *, windows: bool
) -> list[str]:
    """Passes over tokens alone, and whatever else takes rows for text, of a run whose prompts may have images."""
    trl, schedule = facts.trl, facts.schedule
    reads = (signals.scored and not signals.from_sampler) or facts.controls.selecting
    uses = {
        "the pass that scores a rollout where TRL runs none (steps_per_generation = gradient_accumulation_steps; a "
        "larger multiple makes TRL score it)": reads and not schedule.trl_scores_rollouts,
        "the pass that scores truncated rows again (mask_truncated_completions)": reads
        and schedule.trl_scores_rollouts
        and trl.mask_truncated_completions,
        "a controller with scope: exact": "exact" in facts.controls.scopes,
        "probe_every": trl.args.probe_every > 0,
        "log_windows": windows,
        "branch_roots": branching is not None,
        "filter_on": filtering is not None,
        "vllm_replicas": has_replicas(trl),
        "a dialogue on several processes that generate together": bool(_tools(trl)) and generates_together(trl)[0],
    }
    sources = [images_from(rows, trl.processing_class) for rows in (trl.train_dataset, trl.eval_dataset)]
    return image_problems(next((s for s in sources if s is not None), None), uses)


def _facts(trl: Any, controllers: Sequence[Controller]) -> Facts:
    log = TrainingLog(trl._metrics["train"], speaks=trl.accelerator.is_main_process)
    wanted = frozenset[str]().union(*(needed_signals(r) for r in trl.reward_funcs))
    return Facts(
        trl=trl,
        controls=Controls(controllers),
        schedule=describe_schedule(trl.args, trl.accelerator.num_processes),
        ranks=AccelerateRanks(trl.accelerator, columns=_longest_completion(trl)),
        log=log,
        wanted=wanted,
        tags=think_tags_of(trl._tokenizer, trl.args, needed="think_tags" in wanted, warn=log.warn_once),
        end_ids=[*trl.eos_token_ids, trl._tokenizer.pad_token_id],
    )


class _Attribute:
    """An attribute of TRL's trainer as a part that a checkpoint holds."""

    def __init__(self, trl: Any, name: str) -> None:
        self.trl, self.name = trl, name

    def state_dict(self) -> Any:
        return moved(getattr(self.trl, self.name), "cpu")

    def load_state_dict(self, state: Any) -> None:
        setattr(self.trl, self.name, moved(state, self.trl.accelerator.device))


def _longest_completion(trl: Any) -> int | None:
    """Width no rollout exceeds, padding included; None where tools or a rollout function may write more."""
    if _tools(trl) or _rollout_func(trl):
        return None
    multiple = trl.pad_to_multiple_of or 1
    return -(-trl.max_completion_length // multiple) * multiple


def _tools(trl: Any) -> bool:
    return bool(getattr(trl, "tools", None))


def _rollout_func(trl: Any) -> bool:
    return getattr(trl, "rollout_func", None) is not None


def _branching(trl: Any) -> Branching | None:
    options = branch_options(trl.args)
    if options is None:
        return None
    refuse(branching_problems(trl.args, whole_groups=True, tools=_tools(trl), rollout_func=_rollout_func(trl)))
    return Branching(options)


def _filtering(trl: Any, ranks: AccelerateRanks) -> GroupFiltering | None:
    rule = filter_rule(trl.args)
    if rule is None:
        return None
    rank, world_size = trl.accelerator.process_index, trl.accelerator.num_processes
    return GroupFiltering(
        rule,
        PromptSource(trl.train_dataset, seed=trl.args.seed, rank=rank, world_size=world_size),
        group_size=trl.num_generations,
        ranks=ranks,
        reward_names=trl.reward_func_names,
        reward_weights=trl.reward_weights,
        scale=trl.scale_rewards,
        aggregation=trl.multi_objective_aggregation,
        pad_token_id=trl._tokenizer.pad_token_id,
    )
