"""A cold start's file: strict YAML -> typed options.

model:     {path, dtype, ...}      what is taught, as in a recipe
answers:   one of
    file: answers.jsonl            rows of `entrl.teach.answer_files`, relative to this file
    sample: {task, size, ...}      a policy's own answers to the problems of a task
    lessons: {terms, ...}          scripted traces for sums, the nursery's or (task:) of reasoning_gym:chain_sum;
                                   or (trace: {form, ...}) searches of Countdown and Sudoku; or (gold: true) the
                                   right answers that any task brings
  and, where pass rates should not be counted from these answers themselves,
    pass_rate: {policy, samples}   measured by sampling a policy on the same problems
lora:      peft.LoraConfig fields, or null: all weights
curation:  entrl.teach.curation.CurationSpec fields, or null: teach every answer
sft:       trl.SFTConfig fields verbatim
threads:   torch threads, null = torch's own choice; another count may give other weights
out:       the folder that is written
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from entrl.curriculum.rejection import RejectionSpec
from entrl.puzzles import PUZZLES
from entrl.runs.specs import ModelSpec, build_lora, checked_lora
from entrl.settings.groups import at_least_one, config_group, field_hints
from entrl.settings.names import find_file
from entrl.tasks.traces import Mixture
from entrl.teach.curation import CurationSpec
from entrl.teach.made_model import MadeModel
from entrl.traces import TraceSpec
from entrl.traces.problems import TASKS as SEARCH_TASKS

OWNED_SFT_KEYS = {
    "output_dir": "set `out`",
    "resume_from_checkpoint": "remove it: a cold start that was interrupted is begun again",
    "model_init_kwargs": "set model.dtype, model.attn_implementation, ... instead",
    "trust_remote_code": "set model.trust_remote_code",
}
SFT_DEFAULTS = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "completion_only_loss": True}


TIERS = [2, 4, 6]  # terms of the task `sums` where none are named


@dataclass(frozen=True, kw_only=True)
class LessonsSpec:
    """Scripted traces: sums dealt out over tiers of difficulty, in the order they are taught, or searches."""

    terms: list[int] | None = None  # tiers of difficulty of the task sums: numbers of terms (TIERS)
    task: str | None = None  # None: sums; else reasoning_gym:chain_sum, additions, one with a search (trace); gold: any
    args: dict[str, Any] | None = None  # options of that task
    problems: int = 9600
    per_problem: int = 1  # lessons written for each problem
    think: float = Mixture().think  # see nursery.traces.Mixture
    check: float = Mixture().check
    slip: float = Mixture().slip
    checks: list[float] | None = None  # in place of check: lesson j of a problem has checks[j % len(checks)]
    rechecks: bool = False  # lessons that overthink (entrl.tasks.rechecks) in place of the mixture
    trace: TraceSpec | None = None  # search traces of Countdown and Sudoku in place of both
    gold: bool = False  # the task's own right answers, without thinking, in place of all three
    slips: float = 0.0  # of gold, and hanoi, checkers, river or blocks: share of the moves with another legal one
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("problems", "per_problem"):
            at_least_one(f"answers.lessons.{name}", getattr(self, name))
        kinds = [name for name in ("rechecks", "trace", "gold") if getattr(self, name)]
        if len(kinds) > 1:
            raise ValueError(f"answers.lessons has {' and '.join(kinds)}, two kinds of lessons; leave one out")
        instead = kinds[0] if kinds else None
        if instead and (self.checks is not None or self.mixtures() != [Mixture()]):
            raise ValueError(
                f"answers.lessons.{instead} replaces the mixture, so think, check, checks and slip would say nothing; "
                "leave them out"
            )
        self._check_trace()
        self._check_slips()
        if self.checks is not None and not self.checks:
            raise ValueError("answers.lessons.checks is empty; list one share for each lesson of a problem")
        if self.task is None and self.args is not None:
            raise ValueError("answers.lessons.args are options of answers.lessons.task, which is missing; name it")
        if self.task is not None and self.terms is not None:
            raise ValueError("answers.lessons.terms are tiers of the task sums; with a task, set its own args instead")
        self.mixtures()

    def _check_trace(self) -> None:
        if self.trace is not None:
            self.trace.check_task(self.task)
            if (self.args or {}).get("mode", "auto") != "auto":
                raise ValueError(
                    "answers.lessons.args.mode ends the prompt with tags, which lessons bring themselves; leave it out"
                )
        elif self.task in SEARCH_TASKS and not self.gold:
            raise ValueError(
                f"answers.lessons of {self.task} are search traces; say which with answers.lessons.trace, such as "
                "{form: detours, k: 3}"
            )

    def _check_slips(self) -> None:
        if not 0 <= self.slips < 1:
            raise ValueError(f"answers.lessons.slips is a share of the moves and must be in [0, 1), got {self.slips}")
        if self.slips and not (self.gold and self.task in PUZZLES):
            raise ValueError(
                f"answers.lessons.slips is for gold: true and the tasks {', '.join(PUZZLES)}, got task {self.task}, "
                f"gold {self.gold}; leave it out"
            )

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
            at_least_one(f"{type(self).__name__}.{name}", getattr(self, name))
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
    rejection: RejectionSpec | None = None  # answers until each problem has enough right ones, in place of `samples`


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
        if self.pass_rate is not None and self.sample is not None and self.sample.rejection is not None:
            raise ValueError(
                "answers.sample.rejection counts pass rates from all answers it draws; leave answers.pass_rate out"
            )


@dataclass(frozen=True, kw_only=True)
class ColdStart(MadeModel):
    """Everything a cold start is made of."""

    WHAT: ClassVar[str] = "cold start"
    DOCS: ClassVar[str] = "docs/cold_start.md"

    model: ModelSpec
    answers: AnswersSpec
    out: str
    lora: dict[str, Any] | None = None
    curation: CurationSpec | None = None
    sft: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        at_least_one("threads", self.threads)

    @classmethod
    def prepared(cls, groups: dict[str, Any], *, name: str, base: Path) -> dict[str, Any]:
        from trl import SFTConfig  # brings torch

        given, hints = groups.get("sft", {}), field_hints(SFTConfig)
        sft = config_group(given, hints, "sft", defaults=SFT_DEFAULTS, owned=OWNED_SFT_KEYS)
        return {**groups, "lora": checked_lora(groups.get("lora")), "sft": sft}

    def build_lora(self) -> Any:
        return build_lora(self.lora)

    def answers_file(self) -> Path | None:
        return None if self.answers.file is None else find_file(self.answers.file, self.base)

    def own_files(self) -> dict[str, Path]:
        file = self.answers_file()
        return {} if file is None else {"answers.file": file}

    def names_files(self, key: str) -> bool:
        return key.startswith("answers.sample")


def load_cold_start(path: str | Path, overrides: Sequence[str] = ()) -> ColdStart:
    """Read a cold start's file, apply `key=value` overrides, check everything that needs no model."""
    return ColdStart.read(path, overrides)
