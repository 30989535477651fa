"""Words of a command, `key=value`: what to run differently (dotted keys of a settings file) and how to run it."""

import itertools
from collections.abc import Sequence
from typing import Any

from entrl.settings.yaml import parse_yaml

SHORT_OVERRIDES = {"world_size": "launch.world_size", "backend": "launch.backend"}
# Words that say how to run, not what, with their values.
RUN_OPTIONS: dict[str, tuple[Any, ...]] = {"resume": (True, False), "overwrite": (True, False), "sandbox": ("unsafe",)}


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(recipe overrides, run options) of the key=value words."""
    overrides, options = [], {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in RUN_OPTIONS:
            overrides.append(word)
            continue
        value, allowed = parse_yaml(text, name=word), RUN_OPTIONS[key]
        if (type(value), value) not in [(type(one), one) for one in allowed]:  # 1 is no true
            words = "true or false" if True in allowed else " or ".join(allowed)
            raise ValueError(f"{key} must be {words}, got {text!r}")
        options[key] = value
    return overrides, options


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` in place; missing groups are made, lists may grow by one."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ValueError(f"override {override!r} should read key=value, such as trainer.learning_rate=1e-5")
    parts = SHORT_OVERRIDES.get(key, key).split(".")
    value = parse_yaml(text, name=f"override {override!r}")
    target: Any = content
    for part, after in itertools.pairwise(parts):
        child = _child(target, part, override)
        if child is None:
            child = [] if after.isdigit() else {}
            _put(target, part, child, override)
        target = child
    _put(target, parts[-1], value, override)


def _child(target: Any, part: str, override: str) -> Any:
    if not isinstance(target, list):
        return _mapping(target, override).get(part)
    if not part.isdigit():
        raise ValueError(f"override {override!r}: {part!r} should be a position in a list of {len(target)}")
    return target[int(part)] if int(part) < len(target) else None


def _put(target: Any, part: str, value: Any, override: str) -> None:
    if not isinstance(target, list):
        _mapping(target, override)[part] = value
        return
    if not part.isdigit() or int(part) > len(target):
        raise ValueError(f"override {override!r}: the list has {len(target)} entries")
    target[int(part) : int(part) + 1] = [value]


def _mapping(target: Any, override: str) -> dict[str, Any]:
    if not isinstance(target, dict):
        raise ValueError(f"override {override!r}: nothing can be set below {target!r}")
    return target
