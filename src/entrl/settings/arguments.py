"""`args` of a settings file -> what they configure: a class, a ready dataclass instance, a factory or a function.

They become fields of a dataclass (class or ready instance), arguments of a class, or bound keywords of a function. One
that takes none of the keywords TRL calls rewards with is a factory: it is called with `args`. Every name is
checked against the signature, also where the function takes **kwargs: a misspelt key must not be swallowed. Every value
is checked against its annotation, where there is one (`entrl.settings.groups`).
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from entrl.errors import named
from entrl.settings.groups import annotations, field_hints, is_group, typed
from entrl.settings.names import suggest

# What TRL 1.16 passes to every reward function, besides the dataset's columns.
TRL_KEYWORDS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


def configure(target: Any, args: Mapping[str, Any], *, source: str) -> Any:
    """Apply the recipe's `args` to a class, a ready dataclass instance, a factory or a plain function."""
    if dataclasses.is_dataclass(target) and not isinstance(target, type):
        return _made_anew(target, args, source)
    if not callable(target):
        raise TypeError(
            f"{source} is a {type(target).__name__}, neither callable nor a class; name a function or a class"
        )
    if inspect.isclass(target) or _is_factory(target):
        return _called(target, _checked(args, argument_hints(target), source), source)
    return _bind(target, args, source) if args else target


def _called(target: Callable[..., Any], args: Mapping[str, Any], source: str) -> Any:
    """What a class or a factory makes of `args`; TypeError naming those it lacks."""
    try:
        inspect.signature(target).bind(**args)
    except TypeError:
        lacking = [
            p.name
            for p in inspect.signature(target).parameters.values()
            if p.default is p.empty and p.name not in args and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        taken = (
            ""
            if inspect.isclass(target)
            else (
                "; or, if it is a reward itself, name `completions` among its parameters: a reward is called once with "
                "all completions of a batch"
            )
        )
        raise TypeError(f"{source} needs {', '.join(lacking)}: write them into its args{taken}") from None
    with named(f"making {source}"):
        return target(**args)


def argument_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Name -> annotation of the arguments of a class or function that can be given by name; Any without one."""
    hints = annotations(target.__init__ if inspect.isclass(target) else target)
    parameters = inspect.signature(target).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind in named}


def _checked(args: Mapping[str, Any], hints: Mapping[str, Any], source: str) -> dict[str, Any]:
    grouped = {f.name: group for group, kind in hints.items() if is_group(kind) for f in dataclasses.fields(kind)}
    for name in args:
        if name not in hints and (group := grouped.get(name)):
            raise ValueError(f"{source}: {name!r} is an {group} option now: write {group}: {{{name}: ...}}")
        if name not in hints:
            raise ValueError(
                f"{source} takes no argument {name!r}.{suggest(name, hints.keys() | grouped.keys())} "
                f"It takes {', '.join(sorted(hints)) or 'none'}"
            )
    return {name: _argument(value, hints[name], f"{source}: {name}") for name, value in args.items()}


def _argument(value: Any, hint: Any, source: str) -> Any:
    if is_group(hint) and isinstance(value, Mapping):
        return configure(hint, value, source=source)
    return typed(value, hint, source, as_written=False)


def _made_anew(ready: Any, args: Mapping[str, Any], source: str) -> Any:
    """A fresh object, so that state is not shared between runs: what `ready` was given, then `args`.

    A mapping for a field that is a dataclass itself changes that one in the same way. Not `dataclasses.replace`: it
    would hand on as given what the class filled in by itself, a mode's values say, and another mode among `args` would
    then keep those of the first.
    """
    hints = field_hints(type(ready))
    inner = {
        name: _made_anew(getattr(ready, name), value, f"{source}: {name}")
        for name, value in args.items()
        if isinstance(value, Mapping) and is_group(hints.get(name))
    }
    args = _checked({**args, **inner}, hints, source)
    with named(f"making {source}"):
        return _given_anew(ready, args)


def _given_anew(ready: Any, args: Mapping[str, Any]) -> Any:
    try:
        plain = type(ready)()
    except TypeError:  # it cannot be made from nothing, so everything it has was given
        return dataclasses.replace(ready, **args)
    fields = [f.name for f in dataclasses.fields(ready) if f.init]
    given = {name: value for name in fields if (value := getattr(ready, name)) != getattr(plain, name)}
    return type(ready)(**{**given, **args})


def _is_factory(target: Callable[..., Any]) -> bool:
    """True when TRL could not call it as a reward: no **kwargs and none of TRL's keywords."""
    parameters = inspect.signature(target).parameters.values()
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return not open_ended and not TRL_KEYWORDS & {p.name for p in parameters}


def _bind(function: Callable[..., Any], args: Mapping[str, Any], source: str) -> Callable[..., Any]:
    """functools.partial with the function's name and attributes; not __wrapped__, which signature() would follow."""
    hints = {name: hint for name, hint in argument_hints(function).items() if name not in TRL_KEYWORDS}
    bound = functools.partial(function, **_checked(args, hints, source))
    bound.__dict__.update(getattr(function, "__dict__", {}))
    bound.__dict__.pop("__wrapped__", None)
    bound.__name__ = getattr(function, "__name__", type(function).__name__.lower())  # pyright: ignore[reportAttributeAccessIssue]
    return bound
