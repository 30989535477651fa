"""What the options of rewards have in common: presets to fill in, and checks (ValueError: the value and the rule)."""

import types
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Ready = TypeVar("Ready")


def check_choices(options: Any) -> None:
    """Every option annotated with a `Literal` holds one of its values."""
    for name, hint in get_type_hints(type(options)).items():
        hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        choices = [choice for h in hints if get_origin(h) is Literal for choice in get_args(h)]
        value = getattr(options, name, None)
        if choices and value not in choices and not (value is None and type(None) in hints):
            listed = " or ".join(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"
            raise ValueError(f"{name} must be {listed}, got {value!r}")


def check_ranges(options: Any, rules: Mapping[str, tuple[bool, str]]) -> None:
    """rules: option -> whether it is good, and what would be."""
    for name, (good, rule) in rules.items():
        if not good:
            raise ValueError(f"{name} must be {rule}, got {getattr(options, name)!r}")


def filled_in(ready: Ready, *options: Any) -> Ready:
    """A preset with what the options give in its place; an option at None gives nothing."""
    named = {f.name: of for f in fields(ready) for of in options if getattr(of, f.name, None) is not None}  # pyright: ignore[reportArgumentType]
    return replace(ready, **{name: getattr(of, name) for name, of in named.items()})  # pyright: ignore[reportArgumentType, reportCallIssue]
