"""Names in a recipe -> objects.

    pear                      entrl_rewards.pear:reward          (controllers: entrl.controllers.<name>:controller)
    trl.rewards:accuracy_reward      any importable module
    my_rewards.py:shorter            a file, looked for beside the recipe, then in the working directory

What was loaded always carries the file it came from, so a shadowing `rewards.py` can be seen.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from entrl.errors import is_wanted, told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """An object with where it was found."""

    value: Any
    source: str  # "module:attribute" or "file.py:attribute", resolved
    file: str | None  # None: built in or frozen


SHOWN = 12  # names of a module in an error


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
    """Import one file under a name of its own, once per path; ValueError for one that is no Python or fails itself."""
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
    except BaseException as error:
        del sys.modules[name]
        if not is_wanted(error) and not isinstance(error, ImportError):
            raise ValueError(f"{path} cannot be imported: {told(error)}; mend that file") from error
        raise
    return module


def import_module(name: str) -> ModuleType:
    """importlib.import_module, with a missing module told apart from one that fails itself, a ValueError too."""
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
    except BaseException as error:
        if is_wanted(error) or isinstance(error, ImportError):
            raise
        raise ValueError(f"module {name!r} cannot be imported: {told(error)}; mend it") from error


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
            names = [*getattr(value, "__dict__", ()), *dir(value)]  # the latter of a package that imports when asked
            public = [n for n in dict.fromkeys(names) if not n.startswith("_")]
            own = module.__name__.startswith("entrl_file_")
            where = str(module.__file__) if own else f"{module.__name__} ({module.__file__})"
            hint = suggest(part, public) or f" Name something it has: {', '.join(public[:SHOWN]) or 'it is empty'}"
            raise ValueError(f"{where} has no {wanted!r}.{hint}")
        value = getattr(value, part)
    return value
