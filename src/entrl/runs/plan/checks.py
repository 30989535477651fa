"""Every check `train` runs that needs no weights: trainer arguments, rewards, controllers, adapter, schedule, columns.

`prepare` collects the problems; `entrl train` raises on the first one, `entrl plan` prints them all.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from entrl.engines.adapters import check_servable_config
from entrl.engines.servers import checked_urls
from entrl.errors import said, told
from entrl.evaluation.scoring import counters
from entrl.models.folder import folder_problems
from entrl.models.load import generation_defaults, load_config, model_problems, on_meta
from entrl.runs.best import best_notes, best_problems
from entrl.runs.law_watch import evaluation_steps
from entrl.runs.plan.adapter import adapter_problems
from entrl.runs.plan.arithmetic import arithmetic_problems
from entrl.runs.plan.environment import variable_problems
from entrl.runs.plan.late import late_problems
from entrl.runs.plan.limits import NotBack
from entrl.runs.plan.loading import LIMIT, is_own, refuse_endless, tried_apart, with_limit
from entrl.runs.plan.missing import name_problems
from entrl.runs.plan.ranges import null_problems
from entrl.runs.plan.sampler_trial import sampler_problems
from entrl.runs.plan.services import service_problems
from entrl.runs.plan.values import (
    nan_problems,
    reference_problems,
    size_problems,
    tasks_of,
    value_problems,
    weight_problems,
)
from entrl.runs.recipe import Recipe
from entrl.runs.specs import BACKENDS, DIALOGUES_BY
from entrl.runs.together import refuse_left_over
from entrl.settings.arguments import TRL_KEYWORDS
from entrl.settings.names import Loaded, suggest
from entrl.tasks import INQUIRIES
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo import trainer as _trainer  # noqa: F401  what it stands on in TRL is checked at import
from entrl.trainers.refusals.checks import check_schedule, reads_policy, wants_no_dropout
from entrl.trainers.refusals.curriculum import curriculum_problems
from entrl.trainers.refusals.engine_rules import tool_problems
from entrl.trainers.refusals.sampling import model_sampling_problems
from entrl.trainers.refusals.surroundings import refuse_dropout
from entrl.trainers.shared.rewards import SHARED_SIGNALS, SIGNALS, reward_name


@dataclass(kw_only=True)
class Prepared:
    """The parts of a run that need no weights, and what is wrong with them."""

    args: Any = None  # EntropyGRPOConfig, None when it could not be built
    rewards: list[Loaded] = field(default_factory=list)
    controllers: list[Loaded] = field(default_factory=list)
    curriculum: Loaded | None = None
    lora: Any = None
    environment: Callable[[], Any] | None = None  # makes instances, as TRL wants it
    rows_come: bool = True  # whether loading them comes back
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def reward_funcs(self) -> list[Callable]:
        return [r.value for r in self.rewards]

    @property
    def controller_objects(self) -> list[Any]:
        return [c.value for c in self.controllers]

    @property
    def course(self) -> Any:
        return None if self.curriculum is None else self.curriculum.value

    def raise_first(self) -> None:
        if self.problems:
            more = f" (and {len(self.problems) - 1} more; `entrl plan` lists them)" if len(self.problems) > 1 else ""
            raise ValueError(self.problems[0] + more)


def build_args(recipe: Recipe, world_size: int | None = None) -> Any:
    """The trainer's config; with `world_size`, as it would be under that many processes.

    Where no accelerator exists `use_cpu` is set: TRL's default of bf16 is otherwise refused by transformers.
    """
    refuse_left_over(os.environ)  # transformers joins a process group where the config is built
    kwargs = recipe.trainer_kwargs()
    if (backend := kwargs.get("ddp_backend")) not in (None, *BACKENDS):  # torch would stop in the middle of joining
        raise ValueError(f"trainer.ddp_backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not has_accelerator() and kwargs.get("use_cpu") is None:
        kwargs["use_cpu"] = True
    if kwargs.get("use_cpu"):
        kwargs.setdefault("dataloader_pin_memory", False)  # pinning needs an accelerator; torch warns each epoch
    kwargs.setdefault("log_level", "error")  # ours is the progress line; errors still show
    if world_size is None:
        return EntropyGRPOConfig(**kwargs)

    class PlannedConfig(EntropyGRPOConfig):
        """The config under another number of processes than this one has."""

        @property
        def world_size(self) -> int:
            return world_size

    return PlannedConfig(**kwargs)


def _named_args(recipe: Recipe, world_size: int | None) -> Any:
    """`build_args`, its errors with the group they are of: TRL and transformers name a field alone, or none."""
    try:
        return build_args(recipe, world_size)
    except (ValueError, TypeError, ImportError) as error:
        why = str(error).strip().rstrip(".")
        if why.startswith(("trainer.", "WORLD_SIZE", "RANK", "LOCAL_RANK")):
            raise
        of_word = [name for name, value in recipe.trainer.items() if why.startswith(f"{value} is not a valid")]
        key = "".join(f".{name}" for name in of_word[:1])
        key = ".accelerator_config" if "AcceleratorConfig" in why else key
        raise ValueError(f"trainer{key}: {why}; correct the keys that it names") from error


def has_accelerator() -> bool:
    """True when torch sees a GPU or another accelerator."""
    import torch

    return torch.accelerator.is_available()


def prepare(recipe: Recipe, *, world_size: int | None = None) -> Prepared:
    """Build and check everything that needs no weights. `world_size` None: the processes there really are."""
    out = Prepared()

    def collect(what: Callable[[], Any], default: Any) -> Any:
        try:
            return what()
        except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
            out.problems.append(said(error))
            return default

    out.problems += variable_problems() + value_problems(recipe.trainer) + weight_problems(recipe)
    out.problems += nan_problems(recipe) + size_problems(recipe)
    out.problems += folder_problems(recipe.model)
    out.rewards = collect(lambda: refuse_endless(recipe, "rewards") or recipe.build_rewards(), [])
    out.problems += service_problems(out.rewards)
    out.problems += best_problems(recipe, [reward_name(r.value) for r in out.rewards])
    if not null_problems(recipe.trainer):
        out.args = collect(lambda: _named_args(recipe, world_size), None)
    out.controllers = collect(lambda: refuse_endless(recipe, "controllers") or recipe.build_controllers(), [])
    out.curriculum = collect(lambda: refuse_endless(recipe, "curriculum") or recipe.build_curriculum(), None)
    out.lora = collect(recipe.build_lora, None)
    out.environment = collect(lambda: refuse_endless(recipe, "environment") or recipe.build_environment(), None)
    out.rows_come = collect(lambda: refuse_endless(recipe, "tables") or True, False)
    problems, notes = collect(lambda: model_problems(recipe.model, out.lora, out.args), ([], []))
    out.problems += problems
    out.notes += [*notes, *best_notes(recipe)]
    out.problems += adapter_problems(out.lora)
    served = getattr(out.args, "vllm_replicas", None) or (recipe.eval is not None and recipe.eval.servers)
    if out.lora is not None and served:
        collect(lambda: check_servable_config(out.lora), None)
    out.problems += evaluator_problems(recipe)
    counts = {} if recipe.eval is None else recipe.eval.counts
    collect(lambda: refuse_endless(recipe, "counts") or counters(counts, base=recipe.base), {})
    out.problems += environment_problems(recipe, out.rewards)
    if out.args is not None:
        reads = reads_policy(out.controller_objects, out.reward_funcs)
        out.problems += model_sampling_problems(out.args, generation_defaults(recipe.model), entropy_aware=reads)
    out.problems += same_names(out.rewards)
    if out.args is not None:
        size = world_size or out.args.world_size
        out.problems += collect(lambda: schedule_problems(out, size), []) + launch_problems(recipe, size)
        out.problems += evaluation_problems(recipe, out.args) + reference_problems(out.args, out.lora)
        out.problems += name_problems(recipe, out.args) + late_problems(out.args, size) + dropout_problems(recipe, out)
        out.problems += curriculum_problems(out.course, out.args, out.reward_funcs)
        out.problems += arithmetic_problems(recipe, out.args) + sampler_problems(out.args)
        if recipe.environment is not None:
            out.problems += tool_problems(out.args)
        if world_size is None:
            out.problems += launcher_problems(out.args.world_size, os.environ.get("WORLD_SIZE"))
    return out


def same_names(rewards: Sequence[Loaded]) -> list[str]:
    """TRL logs a reward by name: two of the same name would overwrite each other's metrics."""
    names = [reward_name(r.value) for r in rewards]
    twice = sorted({n for n in names if names.count(n) > 1})
    return [
        f"{names.count(n)} rewards are called {n!r}, so their metrics would mix; give one another __name__"
        for n in twice
    ]


def environment_problems(recipe: Recipe, rewards: Sequence[Loaded]) -> list[str]:
    """Rewards that read what an environment remembers, and games, in a recipe without one."""
    if recipe.environment is not None:
        return []
    played = [task for task in tasks_of(recipe) if task in INQUIRIES]
    return [
        f"data.task {task} is played with an environment, and the recipe has none; add environment: {{use: ...}}, as "
        "in recipes/twenty-questions"
        for task in dict.fromkeys(played)
    ] + [
        f"reward {r.source} reads an environment's events, and the recipe has none; add environment: "
        "{use: twenty_questions}, or a class of your own"
        for r in rewards
        if getattr(r.value, "needs_environments", False)
    ]


def schedule_problems(prepared: Prepared, world_size: int) -> list[str]:
    return check_schedule(prepared.args, prepared.controller_objects, prepared.reward_funcs, world_size)


def launch_problems(recipe: Recipe, world_size: int) -> list[str]:
    asked = recipe.launch.world_size
    if asked is None or asked == world_size:
        return []
    return [
        f"launch.world_size asks for {asked} processes, there are {world_size}; start it with "
        f"`accelerate launch --num_processes {asked} ... -m entrl train`, or pass world_size={world_size}"
    ]


def evaluation_problems(recipe: Recipe, args: Any) -> list[str]:
    """Steps of `eval.at` that training never reaches, or a schedule without a known end."""
    try:
        steps = evaluation_steps(None if recipe.eval is None else recipe.eval.at, args.max_steps)
    except ValueError as error:
        return [str(error)]
    if args.eval_on_start and args.eval_strategy == "no":
        return [
            "trainer.eval_on_start evaluates by the trainer, which has no evaluation; add eval.at, or leave it out "
            "(eval.before evaluates before training)"
        ]
    late = [step for step in steps if 0 < args.max_steps < step]
    return [f"eval.at names {late}, but training ends at step {args.max_steps}; leave them out"] if late else []


def evaluator_problems(recipe: Recipe) -> list[str]:
    """What vLLM cannot evaluate of this run: it reads models from their files, whole and in 16 or 32 bit."""
    spec, model = recipe.eval, recipe.model
    if spec is None or spec.engine != "vllm":
        return []
    out = [] if recipe.environment is None else [DIALOGUES_BY]
    if model.quantization is not None:
        out.append(
            "eval.engine: vllm would put the adapter on the base as it is stored, not on the one of "
            "model.quantization that is trained, and so evaluate another policy; set eval.engine: transformers"
        )
    if model.revision and spec.before:
        out.append(
            "eval.engine: vllm reads model.path as it is; give a folder, leave model.revision out, or set eval.before: "
            "false"
        )
    if spec.servers:
        try:
            checked_urls(spec.servers, key="eval.servers")
        except ValueError as error:
            out.append(str(error))
    if spec.servers and recipe.lora is None:
        out.append(
            "eval.servers hold the model they were started with, and all weights are trained here; leave eval.servers "
            "out (an engine is then started on the trained model), or train with lora"
        )
    return out


def dropout_problems(recipe: Recipe, prepared: Prepared) -> list[str]:
    """What a trainer refuses of a built model, asked before one is loaded and evaluated."""
    args, lora = prepared.args, prepared.lora
    if not wants_no_dropout(args, prepared.controller_objects, prepared.reward_funcs):
        return []
    if lora is not None and lora.lora_dropout and not args.disable_dropout:
        return [
            f"lora.lora_dropout is {lora.lora_dropout}: token entropies and ratios would be of randomly thinned "
            "networks; set it to 0"
        ]
    try:
        config = load_config(recipe.model)
        given = config.get_text_config().to_dict().items()
        if not any("drop" in name and isinstance(p, float) and p > 0 for name, p in given):
            return []
        model = on_meta(config)
    except (OSError, ValueError):  # said where it is loaded
        return []
    try:
        refuse_dropout(model, disabled=args.disable_dropout)
    except ValueError as error:
        return [str(error)]
    return []


def launcher_problems(real: int, launched: str | None) -> list[str]:
    """A launcher that started several processes which do not know of each other: each would train alone."""
    if launched is None or int(launched) == real:
        return []
    return [
        f"the launcher started {launched} processes, but this one sees a world of {real}; on the CPU set "
        "trainer.use_cpu: true and take launch/cpu_2.yaml (distributed_type: MULTI_GPU, use_cpu: false)"
    ]


def column_problems(rewards: Sequence[Loaded], columns: Sequence[str]) -> list[str]:
    """Dataset columns that training needs and the task does not give."""
    given = {*SIGNALS, *SHARED_SIGNALS, *TRL_KEYWORDS, *columns}

    problems = []
    if "prompt" not in columns:
        problems.append(f"the dataset has no column 'prompt', only {', '.join(sorted(columns))}; rename yours")
    for reward in rewards:
        for name in sorted(required_names(reward.value) - given):
            problems.append(
                f"reward {reward.source} needs {name!r}, which is neither a dataset column "
                f"({', '.join(sorted(columns))}) nor a signal.{suggest(name, given)} "
                "Add the column to the task, or rename the parameter"
            )
    return problems


def opening_problems(recipe: Recipe, prepared: Prepared, rows: Any) -> list[str]:
    """Whether the environment can open the task's first row, tried in a fork; prompts must be messages."""
    if prepared.environment is None:
        return []
    first = rows[0]
    if not isinstance(first["prompt"], list):
        return [
            "an environment needs prompts that are lists of messages, and the task's are strings; take another task"
        ]
    make, seconds = prepared.environment, recipe.reward_trial_s

    def open_one() -> None:
        make().reset(**first)

    try:
        if seconds and recipe.environment is not None and is_own(recipe.environment.use):
            tried_apart(seconds, open_one, "opening the task's first row")
        else:
            open_one()
    except NotBack as error:
        return [f"environment: {with_limit(error, LIMIT)}"]
    except Exception as error:
        return [f"the environment cannot open the task's first row: {told(error)}"]
    return []


def required_names(reward: Callable) -> set[str]:
    """Keywords a reward cannot be called without, and those a `columns` attribute lists."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(reward).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind in named} | set(
        getattr(reward, "columns", ())
    )


# how a thing of the hub, which cannot be had from here, is had
ELSEWHERE = "plan again where there is a network, unset HF_HUB_OFFLINE"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
