"""The groups that recipes, cold starts and offline runs are made of, and the objects they stand for."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from entrl.environments import load_environment
from entrl.models.quantization import Quantization
from entrl.runs.removed_keys import OTHER_LORA_KEYS, REMOVED_MODEL_KEYS, ours
from entrl.settings.arguments import configure
from entrl.settings.groups import at_least_one, check, config_group, field_hints
from entrl.settings.names import Loaded, find_file, load_object
from entrl.tasks import FILE_TASKS, is_endless, is_soon_made, load_task
from entrl.tasks.mixture import Source, mixed, shares, source_names

DTYPES = ("auto", "float32", "bfloat16", "float16")
BACKENDS = ("gloo", "nccl", "mpi", "xccl", "hccl")  # of torch.distributed
EVAL_ENGINES = ("transformers", "vllm")
DIALOGUES_BY = "dialogues with an environment are evaluated by transformers; set eval.engine: transformers"


def check_seed(name: str, value: int) -> None:
    """What numpy, torch and random take alike."""
    check(0 <= value < 2**32, f"{name} must be at least 0 and below 2**32, got {value}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    REMOVED: ClassVar[Mapping[str, str]] = REMOVED_MODEL_KEYS

    path: str  # shipped asset by bare name (tiny-reasoner), folder, or hub id
    dtype: str = "float32"  # of the weights; trainer.bf16 is the autocast on top. TRL's own default
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None  # None: the model's own
    quantization: Quantization | None = None  # of the base under an adapter; None: none

    def __post_init__(self) -> None:
        check(bool(self.path), "model.path is empty; give an asset name, a folder or a hub id")
        check(self.dtype in DTYPES, f"model.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True, kw_only=True)
class MixedSpec:
    """One task of `data.mixture`; its seed is that of `data`."""

    task: str
    weight: float = 1.0  # its share of the rows is weight / sum of weights
    split: str = "train"
    train_size: int | None = None  # rows taken at most
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least_one("data.mixture: train_size", self.train_size)
        shares([self.weight])


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    task: str | None = None  # sums, reasoning_gym:<name>, jsonl:<path>, csv:<path>, gsm8k, ... (entrl.tasks)
    mixture: list[MixedSpec] | None = None  # several tasks in its place (entrl.tasks.mixture)
    split: str = "train"
    train_size: int | None = None  # None: everything the task has
    seed: int = 0
    args: dict[str, Any] = field(default_factory=dict)  # options of the task

    def __post_init__(self) -> None:
        at_least_one("data.train_size", self.train_size)
        check_seed("data.seed", self.seed)
        one = (self.task is None) != (self.mixture is None)
        check(one, "data needs a 'task', or a 'mixture' of several: one of the two")
        if self.mixture is not None:
            check(len(self.mixture) > 1, "data.mixture lists two tasks or more; write data.task for one")
            own = not self.args and self.split == "train"
            check(own, "data.mixture: split and args stand with each of its tasks, not beside them")
            source_names([_written(entry) for entry in self.mixture])
            sized = self.train_size is not None or not self.endless
            check(sized, "data.mixture: its tasks generate problems without end; set data.train_size")

    @property
    def shown(self) -> str:
        """The task, or the tasks with their shares."""
        if self.mixture is None:
            return str(self.task)
        parts = shares([entry.weight for entry in self.mixture])
        return " + ".join(f"{float(part):.1%} {entry.task}" for part, entry in zip(parts, self.mixture, strict=True))

    @property
    def endless(self) -> bool:
        """Whether all of it is generated, as many rows as are asked for."""
        if self.mixture is None:
            return is_endless(str(self.task))
        return all(is_endless(entry.task) and entry.train_size is None for entry in self.mixture)

    def probe(self, rows: int) -> int:
        """How many rows to make for a look at `rows` of each task: all of few, and no more than are used."""
        if self.mixture is not None:
            wanted = math.ceil(rows / min(shares([entry.weight for entry in self.mixture])))
        else:
            wanted = (self.train_size or rows) if is_soon_made(str(self.task)) else rows
        return min(wanted, self.train_size or wanted)


def _written(entry: MixedSpec) -> dict[str, Any]:
    return {"task": entry.task, "split": entry.split, "args": entry.args}


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    use: str
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ControllerSpec:
    use: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What answers the model between its turns (entrl.environments); the task's rows go to its `reset`."""

    use: str
    args: dict[str, Any] = field(default_factory=dict)

    def load(self, base: Path | None) -> Callable[[], Any]:
        """TRL's `environment_factory`."""
        return load_environment(self.use, self.args, base=base)


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """One of several tasks of an evaluation; what is not set is the `eval` group's."""

    task: str
    name: str | None = None  # in the results; None: the task's
    split: str | None = None
    size: int | None = None
    samples: int | None = None
    k: list[int] | None = None
    max_new_tokens: int | None = None
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    task: str = ""
    tasks: list[EvalTask] = field(default_factory=list)  # in place of `task`: several, in one evaluation
    split: str = "test"
    size: int | None = 200
    samples: int = 8  # per problem, besides one greedy answer
    greedy: bool = True  # also one greedy answer
    k: list[int] = field(default_factory=lambda: [1])  # of pass@k
    counts: dict[str, str] = field(default_factory=dict)  # name -> "module:function" that counts in a sample's text
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int | None = None  # None: trainer.max_completion_length
    batch_size: int | str = "auto"  # answers written at once; auto: what fits in memory (engine transformers)
    seed: int = 1
    engine: str = "transformers"  # or vllm: an engine of its own, or `servers`
    servers: list[str] = field(default_factory=list)  # addresses of running vLLM servers
    before: bool = True  # also evaluate the model training starts from
    at: list[int] | str | None = None  # steps at which the trainer evaluates as well, or "early": dense at first
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(bool(self.task) != bool(self.tasks), "eval needs either a task or a list of tasks")
        for name in ("size", "samples", "max_new_tokens"):
            at_least_one(f"eval.{name}", getattr(self, name))
        check_seed("eval.seed", self.seed)
        good = self.batch_size == "auto" or (isinstance(self.batch_size, int) and self.batch_size >= 1)
        check(good, f"eval.batch_size must be at least 1, or auto; got {self.batch_size!r}")
        check(
            0 < self.temperature < math.inf,
            f"eval.temperature must be above 0 and finite, got {self.temperature}; greedy answers are written besides",
        )
        check(0 < self.top_p <= 1, f"eval.top_p must be in (0, 1], got {self.top_p}")
        bad = [k for k in self.k if not 1 <= k <= self.samples]
        check(not bad, f"eval.k must lie in 1..samples ({self.samples}), got {bad}; raise eval.samples")
        check(self.engine in EVAL_ENGINES, f"eval.engine must be one of {', '.join(EVAL_ENGINES)}, got {self.engine!r}")
        check(not self.servers or self.engine == "vllm", "eval.servers are vLLM servers; set eval.engine: vllm")
        if isinstance(self.at, list):
            good = bool(self.at) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in self.at)
            check(good, f"eval.at must list optimiser steps from 1 on, got {self.at}; eval.before covers step 0")
        else:
            check(self.at in (None, "early"), f"eval.at must be a list of steps or early, got {self.at!r}")
        names = list(self.parts)
        check(len(names) == max(len(self.tasks), 1), "eval.tasks: two have one name; give each a `name` of its own")

    @property
    def parts(self) -> "dict[str, EvalSpec]":
        """Name -> the same evaluation of that task alone; of `task` under its own name."""
        if not self.tasks:
            return {self.task: self}
        return {part.name or part.task: self._of(part) for part in self.tasks}

    def _of(self, part: EvalTask) -> "EvalSpec":
        own = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.name not in ("name", "args")}
        given = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(self, tasks=[], args={**self.args, **part.args}, **given)


@dataclass(frozen=True, kw_only=True)
class RatesSpec:
    """Measured throughput, as [lowest, highest] tokens per second, and where it was measured."""

    source: str
    generate: list[float] | None = None  # of one engine: sampled tokens
    train: list[float] | None = None  # of one training process: tokens through forward and backward, prompts counted

    def __post_init__(self) -> None:
        check(bool(self.source), "launch.rates.source is empty; say where the rates were measured")
        for name in ("generate", "train"):
            ends = getattr(self, name)
            good = ends is None or (len(ends) == 2 and 0 < ends[0] <= ends[1] < math.inf)
            check(good, f"launch.rates.{name} must be [lowest, highest] tokens per second above 0, got {ends}")


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    PLANNED: ClassVar[tuple[str, ...]] = ("device_memory_gib", "rates")  # for `entrl plan`; they decide no number

    world_size: int | None = None  # None: take what the launcher started
    backend: str | None = None
    device_memory_gib: float | None = None  # of one device; None: of the accelerator that torch sees
    rates: RatesSpec | None = None  # None: no time is told

    def __post_init__(self) -> None:
        at_least_one("launch.world_size", self.world_size)
        gib = self.device_memory_gib
        check(gib is None or 0 < gib < math.inf, f"launch.device_memory_gib must be a number > 0, got {gib}")
        good = self.backend in (None, *BACKENDS)
        check(good, f"launch.backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")


def load_rows(task: str, spec: "DataSpec | EvalSpec", *, size: int | None, base: Path | None) -> Any:
    """entrl.tasks.load_task, a file of problems (`jsonl:PATH`) or a table (`loaded:PATH`) looked for beside the recipe.

    A table's path becomes part of its rows, which environments open later, so it is made absolute here.
    """
    kind, _, path = task.partition(":")
    if kind in FILE_TASKS and path:
        task = f"{kind}:{find_file(path, base)}"
    split: Any = spec.split
    args = dict(spec.args)
    kind, _, path = str(args.get("tables", "")).partition(":")
    if kind == "loaded" and path.endswith((".json", ".csv")):
        args["tables"] = f"loaded:{find_file(path, base)}"
    return load_task({"task": task, **args}, split=split, size=size, seed=spec.seed)


def load_mixture(spec: DataSpec, *, size: int | None, base: Path | None) -> Any:
    """The rows of `data.mixture`, each task's loaded as `load_rows` does, with the seed of `data`."""
    assert spec.mixture is not None

    def load(entry: MixedSpec) -> Callable[[int | None], Any]:
        one = DataSpec(task=entry.task, split=entry.split, seed=spec.seed, args=entry.args)
        return lambda rows: load_rows(entry.task, one, size=rows, base=base)

    names = source_names([_written(entry) for entry in spec.mixture])
    sources = [
        Source(name=n, weight=e.weight, load=load(e), endless=is_endless(e.task), limit=e.train_size)
        for n, e in zip(names, spec.mixture, strict=True)
    ]
    return mixed(sources, size=size, seed=spec.seed)


class Parts:
    """What recipes and offline runs make of their groups alike."""

    base: Path
    controllers: list[ControllerSpec]
    lora: dict[str, Any] | None

    def build_controllers(self) -> list[Loaded]:
        return [load_controller(c.use, c.args, base=self.base) for c in self.controllers]

    def build_lora(self) -> Any:
        return build_lora(self.lora)


def build_lora(group: Mapping[str, Any] | None) -> Any:
    """peft.LoraConfig of a `lora` group, or None."""
    if group is None:
        return None
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", **group})


def checked_lora(group: Any) -> dict[str, Any] | None:
    """The `lora` group as it is written; peft makes what it wants of it."""
    if group is None:
        return None
    from peft import LoraConfig  # brings torch

    # peft's own annotation holds the words "pissa_niter_[number of iters]" where any number may stand
    config_group(
        group,
        field_hints(LoraConfig) | {"init_lora_weights": bool | str},
        "lora",
        elsewhere=lambda key: ours(key, OTHER_LORA_KEYS),
    )
    return dict(group)


def load_reward(use: str, args: Mapping[str, Any], *, base: Path | None = None) -> Loaded:
    """A reward function ready for the trainer, which logs it by its `__name__` or its class."""
    loaded = load_object(use, base=base, package="entrl_rewards", attribute="reward")
    value = configure(loaded.value, args, source=loaded.source)
    if not callable(value):
        raise TypeError(
            f"reward {loaded.source} is a {type(value).__name__}, not callable; write a function or a class"
        )
    return dataclasses.replace(loaded, value=value)


def load_controller(use: str, args: Mapping[str, Any], *, base: Path | None = None) -> Loaded:
    """A `Controller` with its options set; an option written {use, args} is loaded the same way (`guard` has one)."""
    from entrl.controllers.hooks import Controller  # brings torch

    loaded = load_object(use, base=base, package="entrl.controllers", attribute="controller")
    built = {k: _inner(v, f"{use}: argument {k!r}", base) for k, v in args.items()}
    value = configure(loaded.value, built, source=loaded.source)
    if not isinstance(value, Controller):
        raise TypeError(
            f"controller {loaded.source} ({loaded.file}) is a {type(value).__name__}; "
            "subclass entrl.controllers.hooks.Controller"
        )
    return dataclasses.replace(loaded, value=value)


def _inner(value: Any, where: str, base: Path | None) -> Any:
    """The controller that {use: name, args: {...}} describes; anything else as it is."""
    if not isinstance(value, Mapping) or "use" not in value:
        return value
    extra = [k for k in value if k not in ("use", "args")]
    if extra:
        raise ValueError(f"{where} has the key {extra[0]!r}; write it as {{use: name, args: {{...}}}}")
    args = value.get("args") or {}
    if not isinstance(value["use"], str) or not isinstance(args, Mapping):
        raise ValueError(f"{where} should read {{use: name, args: {{...}}}}, got {dict(value)!r}")
    return load_controller(value["use"], args, base=base).value
