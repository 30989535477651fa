"""Options that both trainers have beyond TRL's, and what a plain configuration of TRL's gets in their place."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments as Base
else:
    Base = object  # mixed in before a configuration of TRL's


@dataclass
class SharedOptions(Base):
    """What a run asks of its surroundings and what it logs.

    expected_world_size, expected_backend: refuse to start when the launcher gave something else; None = do not check.
        Launchers fall back silently (a two-process CPU config can start one process), and a run on fewer ranks than
        asked is a different run.
    think_open, think_close: the tags that split a completion into thinking and answer.
    sample_completions: how many completions of each logged rollout are kept with their entropies for the report.
    log_dynamics: covariance of log-probability and advantage (pooled, its top shares, state-centred) and entropy by
        phase, from the training pass; no extra forward pass.
    allow_truncated_sampling: top_p / top_k / min_p sample from another distribution than the one whose log-probs and
        entropies are computed; with entropy-aware rewards or controllers that is refused unless this is set.
    """

    expected_world_size: int | None = field(default=None, metadata={"help": "Refuse any other world size."})
    expected_backend: str | None = field(default=None, metadata={"help": "Refuse any other process-group backend."})
    think_open: str = field(default="<think>", metadata={"help": "Opening tag of the thinking phase."})
    think_close: str = field(default="</think>", metadata={"help": "Closing tag of the thinking phase."})
    sample_completions: int = field(default=8, metadata={"help": "Completions kept per logged rollout."})
    log_dynamics: bool = field(default=True, metadata={"help": "Log covariances and entropy by phase."})
    allow_truncated_sampling: bool = field(default=False, metadata={"help": "Accept top_p, top_k, min_p."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_completions < 0:
            raise ValueError(f"sample_completions must be >= 0, got {self.sample_completions}")
        if self.expected_world_size is not None and self.expected_world_size < 1:
            raise ValueError(f"expected_world_size must be >= 1 or null, got {self.expected_world_size}")


def complete(args: Any, ours: type) -> None:
    """Give `args` every option of the dataclass `ours` that it lacks, at its default."""
    for option in dataclasses.fields(ours):
        if not hasattr(args, option.name) and option.default is not dataclasses.MISSING:
            setattr(args, option.name, option.default)


def refuse(problems: list[str]) -> None:
    """ValueError with all of them, where there are any."""
    if problems:
        raise ValueError("; and ".join(problems))
