"""Options of `EntropyGRPOTrainer` beyond TRL's own; everything else is `trl.GRPOConfig` verbatim."""

from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class EntropyGRPOConfig(GRPOConfig):
    """`GRPOConfig` plus what a run asks of its surroundings. A plain `GRPOConfig` works too and gets the defaults.

    expected_world_size, expected_backend: refuse to start when the launcher gave something else; None = do not check.
        Launchers fall back silently (a two-process CPU config can start one process), and a run on fewer ranks than
        asked is a different run.
    think_open, think_close: the tags that split a completion into thinking and answer.
    sample_completions: how many completions of each logged rollout are kept with their entropies for the report.
    allow_truncated_sampling: top_p / top_k / min_p sample from another distribution than the one whose log-probs and
        entropies are computed; with entropy-aware rewards or controllers that is refused unless this is set.
    """

    expected_world_size: int | None = field(default=None, metadata={"help": "Refuse any other world size."})
    expected_backend: str | None = field(default=None, metadata={"help": "Refuse any other process-group backend."})
    think_open: str = field(default="<think>", metadata={"help": "Opening tag of the thinking phase."})
    think_close: str = field(default="</think>", metadata={"help": "Closing tag of the thinking phase."})
    sample_completions: int = field(default=8, metadata={"help": "Completions kept per logged rollout."})
    allow_truncated_sampling: bool = field(default=False, metadata={"help": "Accept top_p, top_k, min_p."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_completions < 0:
            raise ValueError(f"sample_completions must be >= 0, got {self.sample_completions}")
        if self.expected_world_size is not None and self.expected_world_size < 1:
            raise ValueError(f"expected_world_size must be >= 1 or null, got {self.expected_world_size}")
