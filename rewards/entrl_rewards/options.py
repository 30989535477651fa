"""Checks of options that several rewards share: ValueError with the value, the rule and the next move."""

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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
