"""Settings of recipes, studies, cold starts and offline runs: strict YAML, overrides, typed groups.

A key that is not known, is written twice or was removed stops the file with the next move. YAML is read as YAML 1.2
reads scalars: `1e-4` is a number, `no` is the word "no". Nothing is read from the environment.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from entrl.settings.names import suggest

MOST_VALUES = 100_000  # of one file, what its aliases stand for included; our recipes have about a hundred


def check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and no duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen and key != "<<":
                raise ValueError(f"{self.name}: line {key_node.start_mark.line + 1}: key {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        if text.lstrip("+-") in (".inf", ".nan"):
            return float(text.replace(".", ""))
        if re.fullmatch(r"[-+]?0[xo][0-9a-f]+", text):
            return int(text, 0)
        return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: quotes exactly the strings `Loader` would take for something else."""


_INT = r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {}
    _class.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"])
    _class.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    _class.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INT})$"), list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$"), list("-+0123456789."))
for _tag in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", Loader.construct_number)


def parse_yaml(text: str, *, name: str = "recipe") -> Any:
    """YAML text -> plain objects; errors say where."""
    try:
        loader = Loader(text)
    except yaml.YAMLError as error:  # a control character
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := count_values(node, {}, name)) > MOST_VALUES:
            raise ValueError(
                f"{name} stands for {count:,} values by its aliases (*name), at most {MOST_VALUES:,} are read"
            )
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply; a recipe has a handful of levels") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def count_values(node: yaml.Node, known: dict[int, int], name: str) -> int:
    """Values a YAML node stands for once every alias is written out; ValueError for one that holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in known:
        check(known[id(node)] > 0, f"{name}: line {node.start_mark.line + 1} holds an alias of itself")
        return known[id(node)]
    known[id(node)] = 0  # being counted
    inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    known[id(node)] = 1 + sum(count_values(part, known, name) for part in inner)
    return known[id(node)]


def read_settings(path: Path, overrides: Sequence[str], *, what: str) -> dict[str, Any]:
    """The groups of a YAML file, with `key=value` overrides applied; `what` names its kind in an error."""
    if not path.is_file():
        raise FileNotFoundError(f"no {what} {path}{_nearby(path)}")
    content = parse_yaml(path.read_text(encoding="utf-8"), name=str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a mapping of groups")
    for override in overrides:
        apply_override(content, override)
    return content


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    known = [p.name for p in folder.glob("*.yaml")]
    return f".{suggest(path.name, known)} There are {', '.join(sorted(known))}" if known else ""


def check_keys(
    group: Any,
    known: Sequence[str],
    *,
    where: str,
    removed: Mapping[str, str] | None = None,
    elsewhere: Callable[[str], str] | None = None,
) -> None:
    """ValueError for a group that is no mapping or has a key that is not known.

    removed: key -> the next move, for keys that other versions had. elsewhere: where else a key may belong, as words.
    """
    check(isinstance(group, Mapping), f"{where} must be a mapping, got {group!r}")
    for key in group:
        if removed and key in removed:
            raise ValueError(f"{where}.{key} is gone: {removed[key]}")
        if key not in known:
            hint = suggest(str(key), known)
            hint = (elsewhere(str(key)) if elsewhere is not None else "") or hint
            listing = f" Valid keys: {', '.join(known)}" if len(known) <= 30 else ""
            raise ValueError(f"unknown key {key!r} in {where}.{hint}{listing}")


def build(cls: type, group: Any, where: str, removed: Mapping[str, str] | None = None) -> Any:
    """A spec dataclass from a mapping, every value checked against its annotation."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    check_keys(group, list(fields), where=where, removed=removed)
    hints = typing.get_type_hints(cls)
    values = {key: typed(value, hints[key], f"{where}.{key}") for key, value in group.items()}
    for f in fields.values():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        check(not required or f.name in values, f"{where} needs a {f.name!r}")
    return cls(**values)


def build_list(cls: type, group: Any, where: str, at_least: int = 0) -> list[Any]:
    """Rewards and controllers: a list; a bare word stands for {use: word}."""
    check(isinstance(group, list), f"{where} must be a list like [{{use: name}}], got {group!r}")
    check(len(group) >= at_least, f"{where} is empty; name at least one")
    items = [{"use": item} if isinstance(item, str) else item for item in group]
    return [build(cls, item, f"{where}.{i}") for i, item in enumerate(items)]


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value` if it fits a simple annotation; int is welcome where float is asked; unknown annotations pass."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind in (Any, typing.Literal) or not isinstance(kind, type):
            return value
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is int):
            _check_items(value, option, where)
            return value
    names = " or ".join(
        "null" if o is type(None) else getattr(typing.get_origin(o) or o, "__name__", str(o)) for o in options
    )
    hint_text = (
        f"; write {where.rsplit('.', 1)[-1]}: true or false" if bool in options and isinstance(value, str) else ""
    )
    raise ValueError(f"{where} must be {names}, got {value!r}{hint_text}")


def _check_items(value: Any, hint: Any, where: str) -> None:
    """A list of plain values holds values of that kind; they are left as written."""
    kinds = typing.get_args(hint)
    if isinstance(value, list) and len(kinds) == 1 and kinds[0] in (int, float, str, bool):
        for position, item in enumerate(value):
            typed(item, kinds[0], f"{where}.{position}")


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


SHORT_OVERRIDES = {"world_size": "launch.world_size", "backend": "launch.backend"}


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` in place; missing groups are made, lists may grow by one."""
    key, equals, text = override.partition("=")
    key = key.strip()
    check(bool(equals and key), f"override {override!r} should read key=value, such as trainer.learning_rate=1e-5")
    parts = SHORT_OVERRIDES.get(key, key).split(".")
    value = parse_yaml(text, name=f"override {override!r}")
    target: Any = content
    for i, part in enumerate(parts[:-1]):
        child = _child(target, part, override)
        if child is None:
            child = [] if parts[i + 1].isdigit() else {}
            _put(target, part, child, override)
        target = child
    _put(target, parts[-1], value, override)


def _child(target: Any, part: str, override: str) -> Any:
    if isinstance(target, list):
        check(part.isdigit(), f"override {override!r}: {part!r} should be a position in a list of {len(target)}")
        return target[int(part)] if int(part) < len(target) else None
    check(isinstance(target, dict), f"override {override!r}: nothing can be set below {target!r}")
    return target.get(part)


def _put(target: Any, part: str, value: Any, override: str) -> None:
    if isinstance(target, list):
        check(part.isdigit() and int(part) <= len(target), f"override {override!r}: the list has {len(target)} entries")
        target[int(part) : int(part) + 1] = [value]
        return
    check(isinstance(target, dict), f"override {override!r}: nothing can be set below {target!r}")
    target[part] = value
