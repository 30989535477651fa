"""`~` and `$NAME` in the paths of recipes, task files and commands: replaced here and nowhere else.

A path that is left as written becomes a folder called `$SCRATCH` or `~`, or two places for one run. Only keys that hold
paths are touched: a `$` in a prompt, a pattern or a gold answer stays.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

VARIABLE = re.compile(r"\$(?:\{(?P<braced>[^}]*)\}|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))")
# Keys of a group of settings that hold a path or a hub id, wherever the group stands.
PATH_KEYS = frozenset(
    {
        "path", "tokenizer", "output_dir", "logging_dir", "out", "file", "recipe", "policy",
        "vllm_adapter_dir", "deepspeed", "fsdp_config", "accelerator_config",
    }
)  # fmt: skip
PATH_ENDINGS = ("_path", "_file", "_dir", "_folder")  # of the options of tasks, rewards and environments
AFTER_COLON = ("task", "tables")  # keys whose value may read KIND:PATH, such as jsonl:rows.jsonl
BEFORE_COLON = "use"  # file.py:name


def expand_path(text: str, where: str) -> str:
    """The path with `~`, `$NAME` and `${NAME}` replaced; ValueError naming a variable or a home that is not there."""

    def value(found: re.Match[str]) -> str:
        name = found["braced"] if found["bare"] is None else found["bare"]
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise ValueError(f"{where} is {text!r} and the variable {name} is {state}; set it, or write the path out")
        return os.environ[name]

    path = VARIABLE.sub(value, text)
    if not path.startswith("~"):
        return path
    home = os.path.expanduser(path)
    if home == path:
        raise ValueError(f"{where} is {text!r}, and {path.split('/')[0]} is nobody's home here; write the path out")
    return home


def expand_paths(content: Any, where: str = "") -> Any:
    """Settings as read, every value under a key that holds a path expanded; the rest as it is."""
    if isinstance(content, Mapping):
        return {key: _expanded(key, value, f"{where}.{key}" if where else str(key)) for key, value in content.items()}
    if isinstance(content, list):
        return [expand_paths(value, f"{where}.{position}") for position, value in enumerate(content)]
    return content


def _expanded(key: Any, value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return expand_paths(value, where)
    if key in PATH_KEYS or str(key).endswith(PATH_ENDINGS):
        return expand_path(value, where)
    kind, colon, path = value.partition(":")
    if key in AFTER_COLON and colon:
        return f"{kind}:{expand_path(path, where)}"
    file, colon, name = value.rpartition(":")
    if key == BEFORE_COLON and colon and file.endswith(".py"):
        return f"{expand_path(file, where)}:{name}"
    return value
