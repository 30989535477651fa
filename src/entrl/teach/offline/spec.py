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
import hashlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from entrl.environments import load_environment
from entrl.runs.contents import contents
from entrl.runs.folder import flat
from entrl.runs.recipe import (
    OWNED_TRAINER_KEYS,
    REMOVED_MODEL_KEYS,
    REMOVED_TRAINER_KEYS,
    ControllerSpec,
    EnvironmentSpec,
    ModelSpec,
    build_environment_spec,
    checked_lora,
    load_rows,
    trainer_fields,
)
from entrl.settings.groups import Dumper, build, build_list, check_keys, plain, read_settings, typed
from entrl.settings.names import Loaded, find_file, load_controller, suggest
from entrl.settings.paths import expand_paths
from entrl.settings.secrets import mask, refuse_masked
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
        _at_least_one("data.size", self.size)


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
            _at_least_one(f"held_out.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Offline:
    """Everything an offline run is made of. `base` is where its relative files are looked for."""

    name: str
    base: Path
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
        if self.threads is not None:
            _at_least_one("threads", self.threads)
        held, data = self.held_out, self.data
        if held is not None and (held.split, held.seed) == (data.split, data.seed):
            raise ValueError(
                f"held_out takes the rows of data (split {data.split!r}, seed {data.seed}), so nothing is held out; "
                "set held_out.split: test, or another held_out.seed"
            )

    @property
    def folder(self) -> Path:
        return Path(self.out)

    @property
    def model_dir(self) -> Path:
        """What a recipe names as model.path."""
        return self.folder / "model"

    def build_environment(self) -> Callable[[], Any]:
        """A factory of environments."""
        spec = self.environment or EnvironmentSpec(use=self.data.task.partition(":")[0])
        return load_environment(spec.use, spec.args, base=self.base)

    def build_controllers(self) -> list[Loaded]:
        return [load_controller(c.use, c.args, base=self.base) for c in self.controllers]

    def build_lora(self) -> Any:
        """peft.LoraConfig, or None."""
        if self.lora is None:
            return None
        from peft import LoraConfig

        return LoraConfig(**{"task_type": "CAUSAL_LM", **self.lora})

    def load_rows(self, *, held_out: bool = False) -> Any:
        """Rows of the task (datasets.Dataset)."""
        part = self.held_out if held_out else self.data
        assert part is not None
        spec: Any = dataclasses.replace(self.data, split=part.split, size=part.size, seed=part.seed)
        return load_rows(self.data.task, spec, size=part.size, base=self.base)

    def resolved(self) -> dict[str, Any]:
        """With our defaults filled in; reading it back gives the same run."""
        skip = ("name", "base")
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in skip}

    def to_yaml(self) -> str:
        return yaml.dump(mask(self.resolved()), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def config_hash(self) -> str:
        """Of everything that decides the weights, a user's own files included; not of `out`."""
        content: dict[str, Any] = {k: v for k, v in flat(mask(self.resolved())).items() if k != "out" and v is not None}
        for file in self._files():
            content[str(file.name)] = hashlib.sha256(file.read_bytes()).hexdigest()
        content |= contents(flat(self.resolved()), self.base, only=lambda key: key.endswith("use"))
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _files(self) -> list[Path]:
        """Tables that are files."""
        kind, _, name = str(self.data.args.get("tables", "")).partition(":")
        return [find_file(name, self.base)] if kind == "loaded" and Path(name).suffix in (".json", ".csv") else []


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


# --- reading ------------------------------------------------------------------------------------------------------


def load_offline(path: str | Path, overrides: Sequence[str] = ()) -> Offline:
    """Read an offline run's file, apply `key=value` overrides, check everything that needs no model."""
    path = Path(path)
    content = read_settings(path, overrides, what="offline run")
    return make_offline(content, name=path.stem, base=path.resolve().parent)


def make_offline(content: Mapping[str, Any], *, name: str, base: Path) -> Offline:
    """Plain objects -> `Offline`."""
    known = [f.name for f in dataclasses.fields(Offline) if f.name not in ("name", "base")]
    check_keys(content, known, where="offline run")
    refuse_masked(content)
    content = expand_paths(content)
    for group in ("model", "data", "method", "out"):
        if content.get(group) is None:
            raise ValueError(f"the offline run {name} has no {group!r}; see docs/offline.md")
    method = content["method"]
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    for group, owner in (("pairs", "dpo"), ("controllers", "grpo")):
        if content.get(group) and method != owner:
            raise ValueError(
                f"{group} belongs to method: {owner}, and method is {method}; remove {group}, or set the method"
            )
    data = _data(content["data"])
    return Offline(
        name=name,
        base=base,
        model=build(ModelSpec, content["model"], "model", removed=REMOVED_MODEL_KEYS),
        data=data,
        held_out=_held_out(content),
        environment=build_environment_spec(content.get("environment")),
        method=method,
        pairs=build(PairSpec, content.get("pairs") or {}, "pairs") if method == "dpo" else None,
        controllers=build_list(ControllerSpec, content.get("controllers") or [], "controllers"),
        lora=checked_lora(content.get("lora")),
        trainer=_trainer(content.get("trainer") or {}, method, data.candidates),
        threads=typed(content.get("threads"), int | None, "threads"),
        out=typed(content["out"], str, "out"),
    )


def _data(group: Any) -> OfflineData:
    """The `data` group with its two inner ones."""
    check_keys(group, [f.name for f in dataclasses.fields(OfflineData)], where="data")
    inner = {"prefixes": PrefixSpec, "candidates": CandidateSpec}
    built = {name: build(cls, group.get(name) or {}, f"data.{name}") for name, cls in inner.items()}
    plain = build(OfflineData, {k: v for k, v in group.items() if k not in inner}, "data")
    return dataclasses.replace(plain, **built)


def _held_out(content: Mapping[str, Any]) -> HeldOut | None:
    if "held_out" in content and content["held_out"] is None:
        return None
    return build(HeldOut, content.get("held_out") or {}, "held_out")


def _trainer(group: Any, method: str, candidates: CandidateSpec) -> dict[str, Any]:
    """The `trainer` group with our defaults; values are checked against the annotations of the method's config."""
    if not isinstance(group, Mapping):
        raise ValueError(f"trainer must be a mapping of {METHODS[method]} fields, got {group!r}")
    owned, fields = OWNED | OWNED_BY[method], {name: _fields(name) for name in METHODS}
    known = fields[method]
    for key in group:
        if key in owned:
            raise ValueError(f"trainer.{key} is set elsewhere: {owned[key]}")
        if key not in known:
            _refuse(key, method, fields)
    values = {**DEFAULTS, **group}
    given = values.get("num_generations")
    if method == "grpo" and candidates.count is not None:
        if given not in (None, candidates.count):
            raise ValueError(
                f"trainer.num_generations is {given} and data.candidates.count is {candidates.count}; a group is the "
                "candidates of a prefix, so leave num_generations out or make them equal"
            )
        values["num_generations"] = candidates.count
    return {key: typed(value, known[key], f"trainer.{key}") for key, value in values.items()}


def _refuse(key: str, method: str, fields: Mapping[str, Mapping[str, Any]]) -> None:
    """An unknown trainer key, with where it does exist."""
    for other, names in fields.items():
        if key in names:
            raise ValueError(
                f"trainer.{key} is a field of {METHODS[other]} (method: {other}), and method is {method}, whose "
                f"{METHODS[method]} has no such field; remove it, or set method: {other}"
            )
    if key in REMOVED_TRAINER_KEYS and method == "grpo":
        raise ValueError(f"trainer.{key} is gone: {REMOVED_TRAINER_KEYS[key]}")
    raise ValueError(f"unknown key {key!r} in trainer of method {method}.{suggest(str(key), fields[method])}")


def _fields(method: str) -> dict[str, Any]:
    """Field name -> annotation of the method's config."""
    if method == "grpo":
        return trainer_fields()
    from trl import DPOConfig

    hints = typing.get_type_hints(DPOConfig)
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(DPOConfig) if f.init}
