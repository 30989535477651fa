"""A cold start's file: strict YAML -> typed options.

model:     {path, dtype, ...}      what is taught, as in a recipe
answers:   one of
    file: answers.jsonl            rows of `entrl.teach.answer_files`, relative to this file
    sample: {task, size, ...}      a policy's own answers to the problems of a task
    lessons: {terms, ...}          the nursery's scripted traces for sums
  and, where pass rates should not be counted from these answers themselves,
    pass_rate: {policy, samples}   measured by sampling a policy on the same problems
curation:  entrl.teach.curation.CurationSpec fields, or null: teach every answer
sft:       trl.SFTConfig fields verbatim
threads:   torch threads, null = torch's own choice; another count may give other weights
out:       the folder that is written
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from entrl.runs.contents import contents
from entrl.runs.folder import flat
from entrl.runs.recipe import REMOVED_MODEL_KEYS, ModelSpec
from entrl.settings.groups import Dumper, build, check_keys, plain, read_settings, typed
from entrl.settings.names import find_file
from entrl.settings.paths import expand_paths
from entrl.settings.secrets import mask, refuse_masked
from entrl.tasks.traces import Mixture
from entrl.teach.curation import CurationSpec

OWNED_SFT_KEYS = {
    "output_dir": "set `out`",
    "resume_from_checkpoint": "remove it: a cold start that was interrupted is begun again",
    "model_init_kwargs": "set model.dtype, model.attn_implementation, ... instead",
    "trust_remote_code": "set model.trust_remote_code",
}
SFT_DEFAULTS = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "completion_only_loss": True}


@dataclass(frozen=True, kw_only=True)
class LessonsSpec:
    """Scripted traces for sums: problems dealt out over tiers of difficulty, in the order they are taught."""

    terms: list[int] = field(default_factory=lambda: [2, 4, 6])  # tiers of difficulty: numbers of terms
    problems: int = 9600
    per_problem: int = 1  # lessons written for each problem
    think: float = Mixture().think  # see nursery.traces.Mixture
    check: float = Mixture().check
    slip: float = Mixture().slip
    checks: list[float] | None = None  # in place of check: lesson j of a problem has checks[j % len(checks)]
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("problems", "per_problem"):
            _at_least_one(f"answers.lessons.{name}", getattr(self, name))
        if self.checks is not None and not self.checks:
            raise ValueError("answers.lessons.checks is empty; list one share for each lesson of a problem")
        self.mixtures()

    def mixtures(self) -> list[Mixture]:
        """Of the lessons of one problem, in turn."""
        return [Mixture(think=self.think, check=check, slip=self.slip) for check in self.checks or [self.check]]


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How a policy answers. policy: None = the model that is to be taught."""

    policy: str | None = None
    samples: int = 8  # answers per problem
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    batch_size: int = 64
    seed: int = 0
    # None: what the policy's own run says, where it lies in a run folder; else <think>, </think> and nothing.
    think_open: str | None = None
    think_close: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            _at_least_one(f"{type(self).__name__}.{name}", getattr(self, name))
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}; greedy answers have no pass rate")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class SampleSpec(SamplingSpec):
    """A policy's own answers to the problems of a task (entrl.tasks), scored by the task's verifier."""

    task: str
    args: dict[str, Any] = field(default_factory=dict)  # options of the task
    split: str = "train"
    size: int | None = None
    data_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AnswersSpec:
    """Where answers come from, exactly one of the first three, and where pass rates do."""

    file: str | None = None
    sample: SampleSpec | None = None
    lessons: LessonsSpec | None = None
    pass_rate: SamplingSpec | None = None  # None: counted from `correct` of the answers themselves

    def __post_init__(self) -> None:
        named = [name for name in ("file", "sample", "lessons") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"answers must name exactly one of file, sample and lessons, got {named or 'none'}")
        if self.file is not None and self.pass_rate is not None:
            raise ValueError(
                "answers.pass_rate needs problems with verifiers, which a file of answers does not have; write a "
                "pass_rate into each row of the file"
            )


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Everything a cold start is made of. `base` is where its relative files are looked for."""

    name: str
    base: Path
    model: ModelSpec
    answers: AnswersSpec
    out: str
    curation: CurationSpec | None = None
    sft: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            _at_least_one("threads", self.threads)

    @property
    def folder(self) -> Path:
        return Path(self.out)

    @property
    def model_dir(self) -> Path:
        """What a recipe names as model.path."""
        return self.folder / "model"

    def answers_file(self) -> Path | None:
        return None if self.answers.file is None else find_file(self.answers.file, self.base)

    def resolved(self) -> dict[str, Any]:
        """With our defaults filled in; reading it back gives the same cold start."""
        skip = ("name", "base")
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in skip}

    def to_yaml(self) -> str:
        return yaml.dump(mask(self.resolved()), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def config_hash(self) -> str:
        """Of everything that decides the weights, the content of an answers file included; not of `out`.

        Settings that are null do not count: an option that did not exist when a folder was made leaves it valid.
        """
        content = {k: v for k, v in flat(mask(self.resolved())).items() if k != "out" and v is not None}
        if file := self.answers_file():
            content["answers.file"] = hashlib.sha256(file.read_bytes()).hexdigest()
        content |= contents(flat(self.resolved()), self.base, only=lambda key: key.startswith("answers.sample"))
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


# --- reading ------------------------------------------------------------------------------------------------------


def load_cold_start(path: str | Path, overrides: Sequence[str] = ()) -> ColdStart:
    """Read a cold start's file, apply `key=value` overrides, check everything that needs no model."""
    path = Path(path)
    content = read_settings(path, overrides, what="cold start")
    return make_cold_start(content, name=path.stem, base=path.resolve().parent)


def make_cold_start(content: Mapping[str, Any], *, name: str, base: Path) -> ColdStart:
    """Plain objects -> `ColdStart`."""
    known = [f.name for f in dataclasses.fields(ColdStart) if f.name not in ("name", "base")]
    check_keys(content, known, where="cold start")
    refuse_masked(content)
    content = expand_paths(content)
    for group in ("model", "answers", "out"):
        if content.get(group) is None:
            raise ValueError(f"the cold start {name} has no {group!r}; see docs/cold_start.md")
    curation = content.get("curation")
    return ColdStart(
        name=name,
        base=base,
        model=build(ModelSpec, content["model"], "model", removed=REMOVED_MODEL_KEYS),
        answers=_answers(content["answers"]),
        curation=None if curation is None else build(CurationSpec, curation, "curation"),
        out=typed(content["out"], str, "out"),
        sft=_checked_sft(content.get("sft") or {}),
        threads=typed(content.get("threads"), int | None, "threads"),
    )


def _answers(group: Any) -> AnswersSpec:
    check_keys(group, [f.name for f in dataclasses.fields(AnswersSpec)], where="answers")
    kinds = {"sample": SampleSpec, "lessons": LessonsSpec, "pass_rate": SamplingSpec}
    built = {k: build(cls, group[k], f"answers.{k}") for k, cls in kinds.items() if group.get(k) is not None}
    return AnswersSpec(file=typed(group.get("file"), str | None, "answers.file"), **built)


def _checked_sft(group: Any) -> dict[str, Any]:
    """The `sft` group with our defaults; values are checked against TRL's annotations."""
    from trl import SFTConfig

    if not isinstance(group, Mapping):
        raise ValueError(f"sft must be a mapping of SFTConfig fields, got {group!r}")
    for key in group:
        if key in OWNED_SFT_KEYS:
            raise ValueError(f"sft.{key} is set elsewhere: {OWNED_SFT_KEYS[key]}")
    hints = typing.get_type_hints(SFTConfig)
    known = [f.name for f in dataclasses.fields(SFTConfig) if f.init]
    check_keys(group, known, where="sft")
    return {key: typed(value, hints.get(key, Any), f"sft.{key}") for key, value in {**SFT_DEFAULTS, **group}.items()}
