"""Options of `EntropyAsyncGRPOTrainer` beyond TRL's own; everything else is `AsyncGRPOConfig` verbatim."""

from dataclasses import dataclass, field

from trl.experimental.async_grpo import AsyncGRPOConfig

from entrl.trainers.shared.options import SharedOptions


@dataclass
class EntropyAsyncGRPOConfig(SharedOptions, AsyncGRPOConfig):
    """`AsyncGRPOConfig` plus our options, those of both trainers (`SharedOptions`) among them.

    sampler_entropies: ask the server for the entropies of every sampled token; needed by rewards that read them, and
        by the sampler's side of the staleness metrics. Takes a server started by `entrl serve`.
    pin_group_version: with LoRA, all completions of a group come from one adapter version.
    gap_alarm: warn once when, on tokens of the newest version, the mean |log-prob of the trainer - log-prob of the
        sampler| of a step exceeds this, in nats. The two are then two different policies, whatever the version says.
    api_key_env: the environment variable that holds the server's key; unset or empty = the server asks for none.
    """

    sampler_entropies: bool = field(default=True, metadata={"help": "Ask the server for exact entropies."})
    pin_group_version: bool = field(default=True, metadata={"help": "One adapter version per group."})
    gap_alarm: float = field(default=0.05, metadata={"help": "Mean log-prob gap that raises the alarm, nats."})
    api_key_env: str = field(default="ENTRL_VLLM_API_KEY", metadata={"help": "Variable with the server's key."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gap_alarm > 0:
            raise ValueError(f"gap_alarm must be > 0 nats, got {self.gap_alarm}")
