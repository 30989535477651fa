"""Groups of settings: frozen dataclasses, against whose annotations pydantic checks every value of a YAML file.

The dataclasses are plain ones, so that TRL's, peft's and a user's own are read by the same rule as ours. A key that is
not known or was removed, and a value of another type, stop the file with the next move. Nothing is converted but what
YAML has no other way to write: 1 where a float is asked, a mapping where a group is, and a word where a group
{use: word} is.
"""

import collections.abc
import contextlib
import dataclasses
import hashlib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic

from entrl.settings.json_lines import read_text
from entrl.settings.names import suggest
from entrl.settings.overrides import apply_override
from entrl.settings.paths import expand_paths
from entrl.settings.secrets import mask, refuse_masked
from entrl.settings.yaml import dump_yaml, parse_yaml

# "8" is no number and 1 is not true: pydantic would convert them. Lists do become tuples, which YAML does not have.
STRICT = {int: pydantic.StrictInt, float: pydantic.StrictFloat, bool: pydantic.StrictBool, str: pydantic.StrictStr}
LAZY = (collections.abc.Iterable, collections.abc.Generator)  # of which pydantic makes what can be read once only


def check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


def at_least_one(name: str, value: int | None) -> None:
    check(value is None or value >= 1, f"{name} must be at least 1, got {value}")


def check_keys(
    group: Any,
    known: Sequence[str],
    *,
    where: str,
    removed: Mapping[str, str] | None = None,
    owned: Mapping[str, str] | None = None,
    elsewhere: Callable[[str], str] | None = None,
) -> None:
    """ValueError for a group that is no mapping or has a key that is not known.

    removed, owned: key -> the next move, for keys that other versions had and for those that are set in another group.
    elsewhere: where else a key may belong, as words.
    """
    check(isinstance(group, Mapping), f"{where} must be a mapping, got {group!r}")
    for key in group:
        if owned and key in owned:
            raise ValueError(f"{where}.{key} is set elsewhere: {owned[key]}")
        if key in known:
            continue
        if removed and key in removed:
            raise ValueError(f"{where}.{key} is gone: {removed[key]}")
        hint = (elsewhere(str(key)) if elsewhere is not None else "") or suggest(str(key), known)
        listing = f" Valid keys: {', '.join(known)}" if len(known) <= 30 else ""
        if not hint and not listing:
            hint = " Correct it, or leave it out"
        raise ValueError(f"unknown key {key!r} in {where}.{hint}{listing}")


def field_hints(cls: type) -> dict[str, Any]:
    """Field name -> annotation of what a dataclass is made with."""
    hints = annotations(cls)
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls) if f.init}


def annotations(source: Any) -> dict[str, Any]:
    """Of a class or function; none where a name in them is known to type checkers alone."""
    try:
        return typing.get_type_hints(source)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def build(cls: type, group: Any, where: str, **how: Any) -> Any:
    """A group from a mapping, its values by `typed`; `REMOVED` of its class holds the keys that are gone."""
    hints = field_hints(cls)
    check_keys(group, list(hints), where=where, removed=getattr(cls, "REMOVED", None))
    group = _without_empty(group, hints)
    for name in required(cls):
        check(name in group, f"{where} needs a {name!r}")
    return cls(**{key: typed(value, hints[key], f"{where}.{key}", **how) for key, value in group.items()})


def _without_empty(group: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """A group inside that is null, where it may not be, has its default."""
    return {key: value for key, value in group.items() if value is not None or not _is_inside(hints[key])}


def _is_inside(hint: Any) -> bool:
    return is_group(hint) or typing.get_origin(hint) in (list, dict)


def required(cls: type) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


def config_group(
    group: Any, hints: Mapping[str, Any], where: str, *, defaults: Mapping[str, Any] | None = None, **rules: Any
) -> dict[str, Any]:
    """Fields of somebody else's dataclass (TRL's, peft's), which is made later: with our defaults, by `check_keys`."""
    check_keys(group, list(hints), where=where, **rules)
    return {key: typed(value, hints[key], f"{where}.{key}") for key, value in {**(defaults or {}), **group}.items()}


def typed(value: Any, hint: Any, where: str, *, as_written: bool = True) -> Any:
    """`value` if it fits the annotation; ValueError naming value and rule. An annotation nobody can check passes.

    as_written: lists and mappings that fit stay as they are, so that what is kept of a run equals its file.
    """
    for option in _options(hint):
        (item,) = typing.get_args(option) if typing.get_origin(option) is list else (None,)
        if is_group(item) and isinstance(value, list):
            return [typed(entry, item, f"{where}.{i}", as_written=as_written) for i, entry in enumerate(value)]
        if is_group(option) and isinstance(value, str) and "use" in field_hints(option):
            return build(option, {"use": value}, where, as_written=as_written)
        if is_group(option) and isinstance(value, Mapping):
            return build(option, value, where, as_written=as_written)
    try:
        fitting = pydantic.TypeAdapter(_strict(hint)).validate_python(value)
    except pydantic.errors.PydanticUserError:  # nothing that a file can hold, such as a tensor
        return value
    except pydantic.ValidationError as error:
        raise ValueError(_told(error, value, hint, where)) from None
    return value if as_written and isinstance(value, (list, dict)) else fitting


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_group(hint: Any) -> bool:
    """A dataclass that a mapping can be written for; not the base class of controllers, which has no fields."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and bool(dataclasses.fields(hint))


def _strict(hint: Any) -> Any:
    """The annotation as pydantic reads it: strict scalars, and dataclasses as they are, for `build` makes them."""
    if dataclasses.is_dataclass(hint):
        return pydantic.InstanceOf[hint] if is_group(hint) else Any
    hint = getattr(hint, "__supertype__", hint)  # of a NewType
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_strict, inner))]  # noqa: UP007
    if hint in LAZY or origin in LAZY:
        return _strict(Sequence[inner[0]] if inner else Sequence)
    if inner and isinstance(origin, type) and issubclass(origin, collections.abc.Collection):
        container: Any = origin
        return container[tuple(map(_strict, inner))]
    return STRICT.get(hint, hint)


def _told(error: pydantic.ValidationError, value: Any, hint: Any, where: str) -> str:
    """What is wrong in our form, of the value that lies deepest: pydantic names the ways it tried as well."""
    deepest: Any = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    kind = deepest["type"].removesuffix("_type").replace("string", "str")
    wanted = " or ".join(_name(option) for option in _options(hint))
    for step in deepest["loc"]:
        if step in value if isinstance(value, Mapping) else isinstance(value, list) and step in range(len(value)):
            value, where, wanted = value[step], f"{where}.{step}", deepest.get("ctx", {}).get("expected", kind)
    return f"{where} must be {wanted}, got {value!r}{_advice(value, wanted.split(' or '), re.split('[. ]', where)[-1])}"


def _name(option: Any) -> str:
    option = getattr(option, "__supertype__", option)
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin is list and is_group(inner[0]):
        return "a list like [{use: name}]"
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if (origin or option) in (tuple, collections.abc.Sequence, *LAZY):
        of = ", ".join(_name(one) for one in (inner[:1] if origin in LAZY else inner) if one is not ...)
        return f"a list of {of}" if of else "a list"
    known = {type(None): "null"}
    return "a mapping" if is_group(option) else known.get(option, getattr(origin or option, "__name__", str(option)))


def _advice(value: Any, wanted: Sequence[str], name: str) -> str:
    if not isinstance(value, str):
        return ""
    if "bool" in wanted:
        return f"; write {name}: true or false"
    with contextlib.suppress(ValueError):
        number = type(parse_yaml(value))
        if number in (int, float) and {number.__name__, "float"} & set(wanted):
            return f"; write {name}: {value}, without quotes"
    return ""


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted names."""
    if isinstance(content, dict) and content:
        items: collections.abc.Iterable[tuple[Any, Any]] = content.items()
    elif isinstance(content, list) and content:
        items = enumerate(content)
    else:
        return {prefix: content}
    return {k: v for key, value in items for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def content_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


# --- a file of groups ---------------------------------------------------------------------------------------------

OWN = ("name", "base", "file")  # of a settings file, and no groups of it


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """The groups of one YAML file, which a recipe is, a cold start, an offline run or a study.

    `base` is where its relative files are looked for.
    """

    WHAT: ClassVar[str] = "settings"  # its kind, in errors
    DOCS: ClassVar[str] = "docs"  # where its groups are described

    name: str
    base: Path
    file: Path = field(default=Path(), compare=False)  # as it was named; nothing for plain objects

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The file with `key=value` overrides applied, and everything checked that needs no model."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no {cls.WHAT} {path}{_nearby(path)}")
        content = parse_yaml(read_text(path), name=str(path))
        if not isinstance(content, dict):
            what = "is empty" if content is None else f"holds a {type(content).__name__}, not a mapping of groups"
            raise ValueError(f"{path} {what}; write the groups that {cls.DOCS} describes, such as model: {{path: ...}}")
        for override in overrides:
            apply_override(content, override)
        return dataclasses.replace(cls.make(content, name=path.stem, base=path.resolve().parent), file=path)

    @classmethod
    def make(cls, content: Mapping[str, Any], *, name: str, base: Path) -> Self:
        """The same of plain objects."""
        hints = {key: hint for key, hint in field_hints(cls).items() if key not in OWN}
        check_keys(content, list(hints), where=cls.WHAT, elsewhere=cls.elsewhere)
        refuse_masked(content)
        given = _without_empty(expand_paths(content), hints)
        for group in required(cls):
            if group in hints and given.get(group) is None:
                what = f"{group!r} group" if _is_inside(hints[group]) else repr(group)
                raise ValueError(f"the {cls.WHAT} {name} has no {what}; see {cls.DOCS}")
        groups = cls.prepared(given, name=name, base=base)
        return cls(name=name, base=base, **{key: typed(value, hints[key], key) for key, value in groups.items()})

    @classmethod
    def elsewhere(cls, key: str) -> str:
        """Where a key belongs that is none of ours, as words."""
        return ""

    @classmethod
    def prepared(cls, groups: dict[str, Any], *, name: str, base: Path) -> dict[str, Any]:
        """The groups with those checked that are fields of somebody else's dataclass."""
        return groups

    def resolved(self) -> dict[str, Any]:
        """With every default of ours filled in; reading it back gives the same."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in OWN}

    def to_yaml(self) -> str:
        """What is printed and kept: without tokens and keys."""
        return dump_yaml(mask(self.resolved()))


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    known = [p.name for p in folder.glob("*.yaml")]
    return f".{suggest(path.name, known)} There are {', '.join(sorted(known))}" if known else ""
