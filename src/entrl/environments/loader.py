"""An environment by name: one of ours, or a user's own class, with tools that a model can be told of."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entrl.environments.diagram import DiagramShort, DiagramSpecification, ScoredDiagramSpecification
from entrl.environments.events import InquiryEnv
from entrl.environments.twenty_questions import ScoredTwentyQuestions, TwentyQuestions, TwentyQuestionsAny
from entrl.errors import named
from entrl.settings.arguments import argument_hints
from entrl.settings.groups import typed
from entrl.settings.names import load_object, suggest

ENVIRONMENTS: dict[str, type[InquiryEnv]] = {
    "twenty_questions": TwentyQuestions,
    "twenty_questions_any": TwentyQuestionsAny,
    "twenty_questions_scored": ScoredTwentyQuestions,
    "diagram": DiagramSpecification,
    "diagram_short": DiagramShort,
    "diagram_scored": ScoredDiagramSpecification,
}
NOT_TOOLS = ("reset", "get_reward")


def load_environment(use: str, args: Mapping[str, Any] | None = None, *, base: Path | None = None) -> Callable[[], Any]:
    """What TRL's `environment_factory` wants: a callable that makes instances with `args`.

    use: a name of ENVIRONMENTS, `module:Class` or `path/file.py:Class` (looked for in `base`, then the working
    directory). One instance is made at once, so that bad arguments and tools without documentation stop here rather
    than at the first generation. Raises ValueError, TypeError (no class), FileNotFoundError.
    """
    cls = _environment_class(use, base)
    known, open_ended = _constructor_arguments(cls)
    arguments = {}
    for name, value in (args or {}).items():
        if name not in known and not open_ended:
            takes = ", ".join(sorted(known)) or "none"
            raise ValueError(f"environment {use!r} has no argument {name!r}.{suggest(name, known)} It takes: {takes}")
        arguments[name] = typed(value, known.get(name, Any), f"environment {use!r}: {name}", as_written=False)
    check_tools(cls)
    factory = functools.partial(cls, **arguments)
    with named(f"making environment {use!r}"):
        factory()
    return factory


def _environment_class(use: str, base: Path | None) -> type:
    if use in ENVIRONMENTS:
        return ENVIRONMENTS[use]
    if ":" not in use:
        names = ", ".join(ENVIRONMENTS)
        raise ValueError(
            f"no environment {use!r}.{suggest(use, ENVIRONMENTS)} There are {names}; your own go by 'module:Class' or "
            "'file.py:Class'"
        )
    loaded = load_object(use, base=base)
    if not inspect.isclass(loaded.value):
        raise TypeError(f"environment {loaded.source} ({loaded.file}) is a {type(loaded.value).__name__}, not a class")
    if not callable(getattr(loaded.value, "reset", None)):
        raise TypeError(f"environment {loaded.source} ({loaded.file}) has no method reset(**row)")
    return loaded.value


def _constructor_arguments(cls: type) -> tuple[dict[str, Any], bool]:
    """Keywords of __init__ with their annotations, over the classes that hand **options on; whether any other goes."""
    known: dict[str, Any] = {}
    for ancestor in cls.__mro__:
        if "__init__" not in vars(ancestor) or ancestor is object:
            continue
        known = argument_hints(ancestor) | known
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(vars(ancestor)["__init__"]).parameters.values()):
            return known, False
    return known, bool(known)


def tools(cls: type) -> list[str]:
    """Names of the methods a model sees, as TRL finds them."""
    members = inspect.getmembers(cls, predicate=inspect.isfunction)
    return [name for name, _ in members if not name.startswith("_") and name not in NOT_TOOLS]


def check_tools(cls: type) -> None:
    """Each tool has type hints and a docstring that describes every argument. TypeError.

    TRL would say so at the first generation, and as a parser's error.
    """
    for name in tools(cls):
        method = getattr(cls, name)
        text = inspect.getdoc(method) or ""
        for parameter in list(inspect.signature(method).parameters.values())[1:]:
            hinted = parameter.annotation is not inspect.Parameter.empty
            if not hinted or "Args:" not in text or f"{parameter.name}:" not in text.split("Args:", 1)[1]:
                raise TypeError(
                    f"tool {cls.__name__}.{name}: argument {parameter.name!r} needs a type hint and a line under "
                    "'Args:' in the docstring; start a method with an underscore when it is no tool"
                )
        if not text:
            raise TypeError(f"tool {cls.__name__}.{name} needs a docstring; the model reads it")
