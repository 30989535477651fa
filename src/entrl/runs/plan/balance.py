"""Seconds of a rollout and of the training it feeds, from tokens and measured throughput.

    generation   rows x length / (engines x tokens per second of one)
    training     rows x (prompt + length) x (1 + passes / 3) / (processes x tokens per second of one)
    sync         engines x bytes / bandwidth, once per rollout

A forward pass is taken to cost a third of a training step's forward and backward (the usual count of operations:
2 P against 6 P per token). `docs/scale.md` holds the formulas against measured numbers.
"""

import math
from dataclasses import dataclass

FORWARD_SHARE = 1 / 3  # of forward and backward: 2 P of 6 P operations per token


@dataclass(frozen=True, kw_only=True)
class Load:
    """One rollout and what is done with it."""

    rows: int  # completions
    prompt: float  # tokens of a prompt, mean
    length: float  # tokens of a completion, mean
    trainings: float = 1.0  # times each row is trained on (num_iterations)
    scorings: float = 0.0  # forward passes over each row besides


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured throughput. Tokens per second of one engine and of one training process."""

    generate: float  # sampled tokens, prompts not counted
    train: float  # tokens through forward and backward, prompts counted
    bandwidth: float = math.inf  # bytes per second from the trainer to all receivers together

    def __post_init__(self) -> None:
        for name, value in (("generate", self.generate), ("train", self.train), ("bandwidth", self.bandwidth)):
            if not value > 0:
                raise ValueError(f"{name} must be a throughput > 0 per second, got {value}")


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Seconds per rollout."""

    generation: float
    training: float
    sync: float

    @property
    def synchronous(self) -> float:
        """One after the other, as TRL's synchronous trainer does."""
        return self.generation + self.training + self.sync

    @property
    def bottleneck(self) -> str:
        parts = {"generation": self.generation, "training": self.training, "sync": self.sync}
        return max(parts, key=lambda name: parts[name])


def balance(load: Load, rates: Rates, *, engines: int, processes: int, bytes_sent: float = 0.0) -> Balance:
    """bytes_sent: of one sync, to one receiver; every engine receives them over the one link of the sender."""
    generation = load.rows * load.length / (engines * rates.generate)
    passes = load.trainings + FORWARD_SHARE * load.scorings
    training = load.rows * (load.prompt + load.length) * passes / (processes * rates.train)
    return Balance(generation=generation, training=training, sync=engines * bytes_sent / rates.bandwidth)


def engines_in_balance(load: Load, rates: Rates, *, processes: int) -> int:
    """The fewest engines whose generation takes no longer than the training of the same rows."""
    one = balance(load, rates, engines=1, processes=processes)
    return max(1, math.ceil(one.generation / one.training))
