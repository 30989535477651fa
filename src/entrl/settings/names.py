"""Names in a recipe -> objects.

    pear                      entrl_rewards.pear:reward          (controllers: entrl.controllers.<name>:controller)
    trl.rewards:accuracy_reward      any importable module
    my_rewards.py:shorter            a file, looked for beside the recipe, then in the working directory

`args` become fields of a dataclass (class or ready instance), arguments of a class, or bound keywords of a plain
function. A function that takes none of the keywords TRL calls rewards with is a factory: it is called with `args`.
Every name is checked against the signature, also where the function takes **kwargs: a misspelt key must not be
swallowed. An option that is a dataclass of options (`expert` of the rewards) is written as a mapping and configured the
same way. An argument of a controller that is itself written {use, args} becomes a controller first (`guard` wraps one
that way). What was loaded always carries the file it came from, so a shadowing `rewards.py` can be seen.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

# What TRL 1.16 passes to every reward function, besides the dataset's columns.
TRL_KEYWORDS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """An object with where it was found."""

    value: Any
    source: str  # "module:attribute" or "file.py:attribute", resolved
    file: str | None  # None: built in or frozen


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' when a known name is close, else ''."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def find_file(name: str, base: Path | None) -> Path:
    """A path as written in a recipe: absolute, beside the recipe, or in the working directory."""
    path = Path(name).expanduser()
    tried = [path] if path.is_absolute() else [folder / path for folder in (base, Path.cwd()) if folder is not None]
    for candidate in tried:
        if candidate.is_file():
            return candidate.resolve()
    places = " and ".join(dict.fromkeys(str(p.parent) for p in tried))
    raise FileNotFoundError(f"no file {path.name!r} in {places}; write the path relative to the recipe")


def import_file(path: Path) -> ModuleType:
    """Import one file under a name of its own, once per path; a syntax error or failing import keeps its traceback."""
    name = f"entrl_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # find_file gave an existing .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before exec: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_module(name: str) -> ModuleType:
    """importlib.import_module, with a missing module told apart from an import that fails inside it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module exists and itself imports something that is not installed
        parent = sys.modules.get(name.rpartition(".")[0])
        where = f" (its package is {parent.__file__})" if parent is not None and parent.__file__ else ""
        raise ValueError(
            f"no module {name!r}{where}; name it as 'package.module:attribute', or a file as 'path.py:attribute'"
        ) from error


def load_object(
    name: str, *, base: Path | None = None, package: str | None = None, attribute: str = "reward"
) -> Loaded:
    """Resolve `name`; a bare word means `<package>.<word>:<attribute>`."""
    target, colon, wanted = name.rpartition(":")
    if not colon:
        if package is None or name.endswith(".py") or "." in name:
            raise ValueError(f"{name!r} names no attribute; write '{name}:name'")
        target, wanted = f"{package}.{name}", attribute
    if not target or not wanted:
        raise ValueError(f"{name!r} should read 'module:attribute' or 'file.py:attribute'")
    if not colon:
        _check_bare(name, package or "", attribute)
    module = import_file(find_file(target, base)) if target.endswith(".py") else import_module(target)
    return Loaded(value=_attribute(module, wanted), source=f"{target}:{wanted}", file=getattr(module, "__file__", None))


def _check_bare(name: str, package: str, attribute: str) -> None:
    """A bare word must be a module of the package; the package's own file is named in case something shadows it."""
    root = import_module(package)
    files = [f for folder in getattr(root, "__path__", []) for f in Path(folder).glob("*.py")]
    ready = re.compile(rf"^{attribute}\b.*=", re.MULTILINE)  # helpers of the package have no such line
    known = {f.stem for f in files if ready.search(f.read_text(encoding="utf-8"))}
    if name not in known:
        raise ValueError(
            f"no {package}.{name}.{suggest(name, known)} There are {', '.join(sorted(known)) or 'none'} "
            f"in {root.__file__}; your own go by 'file.py:name'"
        )


def _attribute(module: ModuleType, wanted: str) -> Any:
    """`module.wanted`, dotted paths allowed."""
    value: Any = module
    for part in wanted.split("."):
        if not hasattr(value, part):
            public = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise ValueError(f"{module.__name__} ({module.__file__}) has no {wanted!r}.{suggest(part, public)}")
        value = getattr(value, part)
    return value


def load_reward(use: str, args: Mapping[str, Any], *, base: Path | None = None) -> Loaded:
    """A reward function ready for the trainer, which logs it by its `__name__` or its class."""
    loaded = load_object(use, base=base, package="entrl_rewards", attribute="reward")
    value = configure(loaded.value, args, source=loaded.source)
    if not callable(value):
        raise TypeError(
            f"reward {loaded.source} is a {type(value).__name__}, not callable; write a function or a class"
        )
    return dataclasses.replace(loaded, value=value)


def load_controller(use: str, args: Mapping[str, Any], *, base: Path | None = None) -> Loaded:
    """A `Controller` with its options set; an option written {use, args} is loaded the same way."""
    from entrl.controllers.hooks import Controller

    loaded = load_object(use, base=base, package="entrl.controllers", attribute="controller")
    built = {k: _nested(v, f"{use}: argument {k!r}", base) if _is_nested(v) else v for k, v in args.items()}
    value = configure(loaded.value, built, source=loaded.source)
    if not isinstance(value, Controller):
        raise TypeError(
            f"controller {loaded.source} ({loaded.file}) is a {type(value).__name__}; "
            "subclass entrl.controllers.hooks.Controller"
        )
    return dataclasses.replace(loaded, value=value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and "use" in value


def _nested(spec: Mapping[str, Any], where: str, base: Path | None) -> Any:
    """The controller that {use: name, args: {...}} describes."""
    extra = [k for k in spec if k not in ("use", "args")]
    if extra:
        raise ValueError(f"{where} has the key {extra[0]!r}; write it as {{use: name, args: {{...}}}}")
    args = spec.get("args") or {}
    if not isinstance(spec["use"], str) or not isinstance(args, Mapping):
        raise ValueError(f"{where} should read {{use: name, args: {{...}}}}, got {dict(spec)!r}")
    return load_controller(spec["use"], args, base=base).value


def configure(target: Any, args: Mapping[str, Any], *, source: str) -> Any:
    """Apply the recipe's `args` to a class, a ready dataclass instance, a factory or a plain function."""
    groups = option_groups(target)
    args = {
        name: configure(groups[name], value, source=f"{source}: {name}")
        if name in groups and isinstance(value, Mapping)
        else value
        for name, value in args.items()
    }
    if inspect.isclass(target):
        _check_names(args, _parameters(target), source, groups)
        return target(**args)
    if dataclasses.is_dataclass(target):
        _check_names(args, {f.name for f in dataclasses.fields(target) if f.init}, source, groups)
        return _made_anew(target, args)
    if not callable(target):
        raise TypeError(f"{source} is a {type(target).__name__}, neither callable nor a class")
    if _is_factory(target):
        _check_names(args, _parameters(target), source)
        return target(**args)
    return _bind(target, args, source) if args else target


def option_groups(target: Any) -> dict[str, Any]:
    """The options that are dataclasses of options, as a ready instance has them or a class would make them."""
    if not dataclasses.is_dataclass(target):
        return {}
    found: dict[str, Any] = {}
    for f in (f for f in dataclasses.fields(target) if f.init):
        made = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        found[f.name] = made if isinstance(target, type) else getattr(target, f.name)
    return {name: of for name, of in found.items() if dataclasses.is_dataclass(of) and not isinstance(of, type)}


def _made_anew(ready: Any, args: Mapping[str, Any]) -> Any:
    """A fresh object, so that state is not shared between runs: what `ready` was given, then `args`.

    Not `dataclasses.replace`: it would hand on as given what the class filled in by itself, a mode's values say, and
    another mode among `args` would then keep those of the first.
    """
    try:
        plain = type(ready)()
    except TypeError:  # it cannot be made from nothing, so everything it has was given
        return dataclasses.replace(ready, **args)
    fields = [f.name for f in dataclasses.fields(ready) if f.init]
    given = {name: value for name in fields if (value := getattr(ready, name)) != getattr(plain, name)}
    return type(ready)(**(given | dict(args)))


def _parameters(target: Callable[..., Any]) -> set[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in inspect.signature(target).parameters.values() if p.kind in named}


def _is_factory(target: Callable[..., Any]) -> bool:
    """True when TRL could not call it as a reward: no **kwargs and none of TRL's keywords."""
    parameters = inspect.signature(target).parameters.values()
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return not open_ended and not TRL_KEYWORDS & {p.name for p in parameters}


def _check_names(
    args: Mapping[str, Any], known: set[str], source: str, groups: Mapping[str, Any] | None = None
) -> None:
    homes = {f.name: group for group, of in (groups or {}).items() for f in dataclasses.fields(of) if f.init}
    for name in args:
        if name not in known:
            if home := homes.get(name):
                raise ValueError(f"{source}: {name!r} is an {home} option now: write {home}: {{{name}: ...}}")
            raise ValueError(
                f"{source} takes no argument {name!r}.{suggest(name, known | set(homes))} "
                f"It takes {', '.join(sorted(known)) or 'none'}"
            )


def _bind(function: Callable[..., Any], args: Mapping[str, Any], source: str) -> Callable[..., Any]:
    """functools.partial with the function's name and attributes; not __wrapped__, which signature() would follow."""
    _check_names(args, _parameters(function) - TRL_KEYWORDS, source)
    bound = functools.partial(function, **args)
    bound.__dict__.update(getattr(function, "__dict__", {}))
    bound.__dict__.pop("__wrapped__", None)
    bound.__name__ = getattr(function, "__name__", type(function).__name__.lower())  # pyright: ignore[reportAttributeAccessIssue]
    return bound
