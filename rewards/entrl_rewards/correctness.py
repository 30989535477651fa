"""Is the answer right: yes, no, or not known. The gate inside rewards that pay only for correct completions.

A verifier is anything called as TRL calls a reward and answering 1, 0 or None (None: verification crashed or
timed out). Named as an object, as `"module:attribute"`, or as `"column:NAME"` for a dataset column that
already holds the verdict. A graded score is an error: a gate needs a yes or a no, so round it in a verifier
of your own.
"""

import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

Verifier = str | Callable[..., Sequence[float | None]]

ACCURACY = "entrl_rewards.accuracy:reward"


class Gated:
    """A reward that pays by the verdict of its option `correctness`."""

    correctness: Verifier

    @property
    def judges(self) -> str | None:
        """The kind of verifier that golds are meant for, where this package's own judges them (`Accuracy.judges`)."""
        if isinstance(self.correctness, str) and self.correctness.startswith("column:"):
            return None
        return getattr(load_verifier(self.correctness), "judges", None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data set columns training cannot do without; a run that lacks one stops before it starts."""
        return columns_of(self.correctness)


def judge(verifier: Verifier, /, *, completions: Sequence[Any], **kwargs: Any) -> list[bool | None]:
    """One verdict per completion; `kwargs` is what else TRL passed (prompts, completion_ids, columns,
    log_metric). The verifier is positional-only because `verifier` is also the name of a dataset column.
    """
    if isinstance(verifier, str) and verifier.startswith("column:"):
        verdicts = _column(verifier.removeprefix("column:"), kwargs)
    else:
        verdicts = load_verifier(verifier)(completions=completions, **kwargs)
    if len(verdicts) != len(completions):
        raise ValueError(
            f"correctness {verifier!r} gave {len(verdicts)} verdicts for {len(completions)} completions; "
            "return one per completion"
        )
    return [_binary(v, verifier) for v in verdicts]


def columns_of(verifier: Verifier) -> tuple[str, ...]:
    """Data set columns the verifier cannot do without, where it says so."""
    if isinstance(verifier, str):
        named = (verifier.removeprefix("column:"),) if verifier.startswith("column:") else ()
        return ("answer",) if verifier == ACCURACY else named
    return tuple(getattr(verifier, "columns", ()))


def load_verifier(verifier: Verifier) -> Callable[..., Any]:
    """The callable itself, or what `"module:attribute"` names."""
    if isinstance(verifier, str):
        try:
            found = pkgutil.resolve_name(verifier)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"correctness {verifier!r} cannot be loaded ({error}); {_FORMS}") from error
    else:
        found = verifier
    if isinstance(found, type) or not callable(found):
        raise TypeError(f"correctness {verifier!r} is not a ready reward function; {_FORMS}")
    return found


_FORMS = "pass a callable, 'module:attribute' (an instance, not a class) or 'column:NAME'"


def _column(name: str, kwargs: dict[str, Any]) -> Sequence[float | None]:
    if name not in kwargs:
        raise ValueError(f"correctness names column {name!r}, which the dataset lacks; it has {sorted(kwargs)}")
    return kwargs[name]


def _binary(verdict: float | None, verifier: Verifier) -> bool | None:
    if verdict is None:
        return None
    if verdict not in (0, 1):
        raise ValueError(f"correctness {verifier!r} answered {verdict!r}; it must be 1, 0 or None")
    return bool(verdict)
