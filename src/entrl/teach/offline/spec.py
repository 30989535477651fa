"""The file of an offline run: strict YAML -> typed options.

model:        {path, dtype, ...}       what is taught, as in a recipe
data:         {task, split, size, seed, args, chat_template_kwargs}   rows of a task (entrl.tasks), and from them
    prefixes:   {per_row, longest, policies, seed}                    dialogues to go on from
    candidates: {count, repeated, certain, submit, seed}              what could be asked next
held_out:     {split, size, seed, ...} what the report measures before and after, or null
environment:  {use, args}, default the task's own
method:       grpo | dpo
pairs:        {margin, per_prefix, seed}   of dpo
controllers:  [{use, args}]                of grpo
lora:         peft.LoraConfig fields verbatim, or null
trainer:      EntropyGRPOConfig or trl.DPOConfig fields verbatim, by method
threads:      torch threads, null = torch's own choice; another count may give other weights
out:          the folder that is written
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from entrl.runs.recipe import trainer_fields
from entrl.runs.removed_keys import OWNED_TRAINER_KEYS, REMOVED_TRAINER_KEYS
from entrl.runs.specs import ControllerSpec, EnvironmentSpec, ModelSpec, Parts, checked_lora, load_rows
from entrl.settings.groups import at_least_one, build, check, config_group, field_hints
from entrl.settings.names import find_file
from entrl.teach.made_model import MadeModel
from entrl.teach.offline.candidates import CandidateSpec, PrefixSpec
from entrl.teach.offline.pairs import PairSpec

METHODS = {"grpo": "EntropyGRPOConfig", "dpo": "trl.DPOConfig"}
OWNED = {
    **OWNED_TRAINER_KEYS,
    "output_dir": "set `out`",
    "reward_weights": "remove it: the one reward is the stored gain",
    "expected_world_size": "remove it: an offline run is one process",
    "expected_backend": "remove it: an offline run is one process",
    "resume_from_checkpoint": "remove it: an offline run that was interrupted is begun again",
    "chat_template_kwargs": "set data.chat_template_kwargs, which the measurement and both methods share",
    "eval_strategy": "remove it: held_out measures before and after",
}
OWNED_BY = {
    "grpo": {
        "use_vllm": "remove it: candidates are fixed, nothing is generated",
        "branch_roots": "remove it: candidates are fixed, nothing is generated",
        "top_h": "remove it: candidates are fixed, nothing is generated",
        "num_generations_eval": "remove it: held_out measures before and after",
    },
    "dpo": {},
}
DEFAULTS = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}


@dataclass(frozen=True, kw_only=True)
class OfflineData:
    """Rows of a task, and what is made of each."""

    task: str  # twenty_questions or diagram (entrl.tasks)
    split: str = "train"
    size: int = 200  # rows
    seed: int = 0
    args: dict[str, Any] = field(default_factory=dict)  # options of the task
    prefixes: PrefixSpec = field(default_factory=PrefixSpec)
    candidates: CandidateSpec = field(default_factory=CandidateSpec)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # such as enable_thinking: false

    def __post_init__(self) -> None:
        at_least_one("data.size", self.size)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows nobody is trained on; prefixes as in `data`, every question a candidate."""

    split: str = "test"
    size: int = 100  # rows
    seed: int = 1
    per_row: int = 1  # prefixes of each
    batch_size: int = 32
    max_new_tokens: int = 64  # of a greedy turn

    def __post_init__(self) -> None:
        for name in ("size", "per_row", "batch_size", "max_new_tokens"):
            at_least_one(f"held_out.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Offline(MadeModel, Parts):
    """Everything an offline run is made of."""

    WHAT: ClassVar[str] = "offline run"
    DOCS: ClassVar[str] = "docs/offline.md"

    model: ModelSpec
    data: OfflineData
    method: str
    out: str
    held_out: HeldOut | None = field(default_factory=HeldOut)
    environment: EnvironmentSpec | None = None
    pairs: PairSpec | None = None
    controllers: list[ControllerSpec] = field(default_factory=list)
    lora: dict[str, Any] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        at_least_one("threads", self.threads)
        held, data = self.held_out, self.data
        if held is not None and (held.split, held.seed) == (data.split, data.seed):
            raise ValueError(
                f"held_out takes the rows of data (split {data.split!r}, seed {data.seed}), so nothing is held out; "
                "set held_out.split: test, or another held_out.seed"
            )

    @classmethod
    def prepared(cls, groups: dict[str, Any], *, name: str, base: Path) -> dict[str, Any]:
        method = groups["method"]
        check(method in METHODS, f"method must be one of {', '.join(METHODS)}, got {method!r}")
        for group, owner in (("pairs", "dpo"), ("controllers", "grpo")):
            check(
                not groups.get(group) or method == owner,
                f"{group} belongs to method: {owner}, and method is {method}; remove {group}, or set the method",
            )
        data = build(OfflineData, groups["data"], "data")
        trainer = _trainer(groups.get("trainer", {}), method, data.candidates.count)
        pairs = groups.get("pairs") or ({} if method == "dpo" else None)
        return groups | {"data": data, "pairs": pairs, "lora": checked_lora(groups.get("lora")), "trainer": trainer}

    def build_environment(self) -> Callable[[], Any]:
        """A factory of environments."""
        return (self.environment or EnvironmentSpec(use=self.data.task.partition(":")[0])).load(self.base)

    def load_rows(self, *, held_out: bool = False) -> Any:
        """Rows of the task (datasets.Dataset)."""
        part = self.held_out if held_out else self.data
        assert part is not None
        spec: Any = dataclasses.replace(self.data, split=part.split, size=part.size, seed=part.seed)
        return load_rows(self.data.task, spec, size=part.size, base=self.base)

    def own_files(self) -> dict[str, Path]:
        """Tables that are files."""
        kind, _, name = str(self.data.args.get("tables", "")).partition(":")
        if kind != "loaded" or Path(name).suffix not in (".json", ".csv"):
            return {}
        file = find_file(name, self.base)
        return {file.name: file}

    def names_files(self, key: str) -> bool:
        return key.endswith("use")


def load_offline(path: str | Path, overrides: Sequence[str] = ()) -> Offline:
    """Read an offline run's file, apply `key=value` overrides, check everything that needs no model."""
    return Offline.read(path, overrides)


def _trainer(group: Any, method: str, count: int | None) -> dict[str, Any]:
    """The `trainer` group with our defaults; values are checked against the annotations of the method's config.

    count: candidates of a prefix, which are a group of GRPO's.
    """
    fields = {name: _fields(name) for name in METHODS}

    def elsewhere(key: str) -> str:
        other = next((name for name in METHODS if key in fields[name]), None)
        return (
            ""
            if other is None
            else (
                f" trainer.{key} is a field of {METHODS[other]} (method: {other}), and method is {method}, whose "
                f"{METHODS[method]} has no such field; remove it, or set method: {other}"
            )
        )

    counted = {"num_generations": count} if method == "grpo" and count is not None else {}
    values = config_group(
        group,
        fields[method],
        "trainer",
        defaults=DEFAULTS | counted,
        removed=REMOVED_TRAINER_KEYS if method == "grpo" else None,
        owned=OWNED | OWNED_BY[method],
        elsewhere=elsewhere,
    )
    if counted and values["num_generations"] not in (None, count):
        raise ValueError(
            f"trainer.num_generations is {values['num_generations']} and data.candidates.count is {count}; a group is "
            "the candidates of a prefix, so leave num_generations out or make them equal"
        )
    return values | counted


def _fields(method: str) -> dict[str, Any]:
    """Field name -> annotation of the method's config."""
    if method == "grpo":
        return trainer_fields()
    from trl import DPOConfig  # brings torch

    return field_hints(DPOConfig)
