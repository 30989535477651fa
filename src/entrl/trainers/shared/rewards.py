"""How the trainer meets reward functions: what each one asks for, and clear errors when one misbehaves."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import Tensor, nn
from trl.trainer.utils import is_async_callable

from entrl.errors import brief, is_wanted, told

# What EntropyGRPOTrainer can hand to a reward beside TRL's own arguments. One entry per completion in each.
SIGNALS = ("token_entropies", "token_logprobs", "token_mask", "group_index", "prompt_ids", "truncated", "answer_texts")
ANSWERS = ("answer_texts",)  # delivered unasked: a reward may hand its arguments on to a verifier that reads them
SHARED_SIGNALS = ("think_tags", "gather", "training", "tokenizer")  # one value for all completions
SCORED_SIGNALS = ("token_entropies", "token_logprobs")  # cost a pass over the rollout where TRL runs none
LEAVES = frozenset({int, float, str, bool, bytes, type(None)})


class RewardError(ValueError):
    """A reward function raised, or returned something that cannot be a reward."""


def reward_name(reward: Any) -> str:
    """The name TRL logs the reward under."""
    return getattr(reward, "__name__", type(reward).__name__)


def _signature(reward: Any) -> inspect.Signature | None:
    if isinstance(reward, (str, nn.Module)):
        return None
    return inspect.signature(reward)


def needed_signals(reward: Any) -> frozenset[str]:
    """Signals the reward names among its parameters or in a `needs` attribute."""
    named = set(getattr(reward, "needs", ()))
    known = (*SIGNALS, *SHARED_SIGNALS)
    if unknown := named - set(known):
        raise ValueError(
            f"reward {reward_name(reward)!r} needs unknown signals {sorted(unknown)}; known: {', '.join(known)}"
        )
    signature = _signature(reward)
    if signature is not None:
        named |= set(signature.parameters) & set(known)
    return frozenset(named)


def needs_whole_groups(reward: Any) -> bool:
    """True for a reward that compares the completions of one prompt with each other."""
    return bool(getattr(reward, "needs_whole_groups", False))


class GuardedReward:
    """A reward function as TRL calls it, with errors that name the reward, the row and the next move.

    TRL turns NaN and None alike into 'does not apply'. None means that; NaN is a bug of the reward and stops the run.
    """

    def __init__(self, reward: Callable, shared: dict[str, Any]) -> None:
        self.reward = reward
        self.__name__ = reward_name(reward)
        wanted = needed_signals(reward)
        self.shared = {k: v for k, v in shared.items() if k in wanted}

    def __call__(self, **kwargs: Any) -> list[float | None]:
        return self.checked(self.called(**kwargs), rows=len(kwargs["prompts"]))

    def called(self, **kwargs: Any) -> Any:
        """What the reward returns, whatever it is."""
        kwargs = self._arguments(kwargs)
        try:
            return self.reward(**kwargs)
        except BaseException as error:
            if is_wanted(error):
                raise
            raise RewardError(f"reward {self.__name__!r} raised {told(error)}") from error

    def _arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the reward is called with: its shared signals besides, and nothing unasked that it does not take.

        Everything is its own to change: later rewards, the log and the loss read the same completions and columns.
        """
        kwargs = {name: copied(value) for name, value in kwargs.items()} | self.shared
        signature = _signature(self.reward)
        if signature is None:
            return kwargs
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            kwargs = {k: v for k, v in kwargs.items() if k not in ANSWERS or k in signature.parameters}
        self._refuse_missing(signature, kwargs)
        return kwargs

    def _refuse_missing(self, signature: inspect.Signature, kwargs: dict[str, Any]) -> None:
        required = [
            p.name
            for p in signature.parameters.values()
            if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        missing = [name for name in required if name not in kwargs]
        if missing:
            columns = sorted(k for k, v in kwargs.items() if isinstance(v, list))
            raise RewardError(
                f"reward {self.__name__!r} needs {missing}, which is neither a dataset column nor a signal; got "
                f"{columns}. Add the column to the data set or rename the parameter"
            )

    def sized(self, values: Any, *, rows: int) -> Sequence[Any]:
        """The values, if they are as many as the completions; RewardError else."""
        if values is None or not hasattr(values, "__len__") or isinstance(values, (Mapping, Set, str)):
            raise RewardError(
                f"reward {self.__name__!r} returned {type(values).__name__}; return a list of {rows} floats"
            )
        if len(values) != rows:
            raise RewardError(
                f"reward {self.__name__!r} returned {len(values)} rewards for {rows} completions; return one per "
                "completion, None where the reward does not apply"
            )
        return values

    def checked(self, values: Any, *, rows: int) -> list[float | None]:
        """One finite number, or None, for each completion; RewardError for anything else."""
        for row, value in enumerate(self.sized(values, rows=rows)):
            if value is None:
                continue
            try:
                number = _as_float(value)
            except BaseException as error:  # whatever its __float__ raises
                if is_wanted(error):
                    raise
                raise RewardError(
                    f"reward {self.__name__!r} returned {_written(value)} for row {row} of {rows}; "
                    "return a number, or None where the reward does not apply"
                ) from None
            if not math.isfinite(number):
                raise RewardError(
                    f"reward {self.__name__!r} returned {number} for row {row} of {rows}; return a finite "
                    "number, or None where the reward does not apply"
                )
        return [None if v is None else float(v) for v in values]


class GuardedAsyncReward(GuardedReward):
    """`GuardedReward` for a coroutine function; TRL awaits several of them together."""

    async def __call__(self, **kwargs: Any) -> list[float | None]:
        return self.checked(await self.called(**kwargs), rows=len(kwargs["prompts"]))

    async def called(self, **kwargs: Any) -> Any:
        kwargs = self._arguments(kwargs)
        try:
            return await self.reward(**kwargs)
        except BaseException as error:
            if is_wanted(error) or _is_ended_from_outside(error):
                raise
            raise RewardError(f"reward {self.__name__!r} raised {told(error)}") from error


def guarded(rewards: Sequence[Any], **shared: Any) -> list[Any]:
    """The reward functions, each behind its guard; reward models are left as they are.

    shared: values of `SHARED_SIGNALS`, passed to the rewards that name them.
    """

    def guard(reward: Any) -> Any:
        if isinstance(reward, nn.Module):
            return reward
        return (GuardedAsyncReward if is_async_callable(reward) else GuardedReward)(reward, shared)

    return [guard(r) for r in rewards]


def checked_rollout_func(rollout_func: Callable | None) -> Callable | None:
    """`rollout_func` that refuses empty completions, over which TRL stumbles with an IndexError."""
    if rollout_func is None:
        return None

    @functools.wraps(rollout_func)
    def checked(prompts: list, trainer: Any) -> dict[str, Any]:
        output = rollout_func(prompts, trainer)
        for row, ids in enumerate(output.get("completion_ids", [])):
            if len(ids) == 0:
                raise ValueError(
                    f"rollout_func returned an empty completion for row {row}; return at least the end token"
                )
        return output

    return checked


def copied(value: Any) -> Any:
    """Lists, tuples, mappings, tensors and arrays anew down to their leaves; anything else (an environment) itself."""
    kind = type(value)
    if kind is list and LEAVES.issuperset(map(type, value)):  # token ids are many
        return value.copy()
    if kind is list or kind is tuple:
        return kind(copied(one) for one in value)
    if kind is dict:
        return {name: copied(one) for name, one in value.items()}
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_ended_from_outside(error: BaseException) -> bool:
    """A coroutine that is closed, or whose task was cancelled."""
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return type(error) is GeneratorExit or (task is not None and task.cancelling() > 0)


def _written(value: Any) -> str:
    """As Python writes it, with its type."""
    try:
        return brief(f"{value!r} ({type(value).__name__})")
    except BaseException as error:  # whatever its __repr__ raises
        if is_wanted(error):
            raise
        return brief(f"a {type(value).__name__}")


def _as_float(value: Any) -> float:
    """As `float`; an integer that none holds is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
