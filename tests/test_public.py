"""The public face: every name is there, documented, known to checkers, and costs nothing until it is asked for."""

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entrl

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "trl", "transformers", "datasets", "numpy", "yaml", "scipy", "pydantic", "vllm")
LOOK = f"""
import json, sys, time
started = time.perf_counter()
import entrl
seconds = time.perf_counter() - started
names = dir(entrl), len(entrl.__all__)
heavy = [name for name in {HEAVY} if name in sys.modules]
from entrl import load_task, Command, task_names
light = [name for name in ("torch", "trl", "transformers") if name in sys.modules]
print(json.dumps({{"seconds": seconds, "heavy": heavy, "light": light}}))
"""


def test_the_import_is_quick_and_brings_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"import entrl: {1000 * found['seconds']:.1f} ms")
    assert found["heavy"] == found["light"] == []
    assert found["seconds"] < 0.2


@pytest.mark.parametrize("name", entrl.__all__)
def test_every_name_resolves_and_is_documented(name: str):
    value = getattr(entrl, name)
    text = vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    assert text
    assert not text.startswith(f"{name}(")  # what dataclasses write where nobody did
    assert value.__module__.startswith("entrl.")
    assert value.__name__ == name
    assert name in dir(entrl)


def test_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING, `__all__`, and the modules the names are really taken from."""
    tree = ast.parse(Path(entrl.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.name == alias.asname for alias in node.names)  # `X as X`: handed on, to a checker
        seen |= {alias.name: node.module for alias in node.names}
    assert sorted(seen) == list(entrl.__all__)
    for name, module in seen.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(entrl, name)


def test_no_name_is_also_a_module():
    """`import entrl.plan` would put the module in the function's place."""
    modules = {module.name for module in pkgutil.iter_modules(entrl.__path__)}
    assert modules.isdisjoint(entrl.__all__)


def test_a_name_nobody_has():
    with pytest.raises(AttributeError, match="module 'entrl' has no attribute 'EntropyGRPOTrainr'"):
        entrl.EntropyGRPOTrainr  # noqa: B018


@pytest.mark.parametrize("package", ["entrl", "entrl_lab", "entrl_rewards"])
def test_types_are_handed_on(package: str):
    folder = Path(str(importlib.import_module(package).__file__)).parent
    assert (folder / "py.typed").is_file()


def test_every_controller_is_public():
    """All that a recipe can name, and nothing that cannot be constructed without arguments but the guard."""
    folder = Path(entrl.__file__).parent / "controllers"
    base = entrl.Controller
    found = set()
    for file in folder.glob("*.py"):
        module = importlib.import_module(f"entrl.controllers.{file.stem}") if file.stem != "__init__" else base
        if hasattr(module, "controller"):
            ready = module.controller
            found.add(ready if inspect.isclass(ready) else type(ready))
    assert found
    public = [getattr(entrl, name) for name in entrl.__all__]
    public = {value for value in public if inspect.isclass(value) and issubclass(value, base) and value is not base}
    assert {value.__name__ for value in found} <= {value.__name__ for value in public}
    assert all(dataclasses.is_dataclass(value) for value in public)


def test_the_api_reference_lists_every_public_name_and_no_other():
    """`docs/api` names each by the file that defines it."""
    text = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    listed = re.findall(r"^::: (entrl\.[\w.]+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(f"{module}.{name}" for name, module in entrl._HOMES.items())
