"""Every attack of benchmarks/sandbox_attacks.py, in every tier that works here, as the user who runs the tests."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from entrl.sandbox import open_sandbox, probe
from entrl.sandbox.probing import TIERS

FILE = Path(__file__).parents[1] / "benchmarks" / "sandbox_attacks.py"


@pytest.fixture(scope="module")
def attacks():
    spec = importlib.util.spec_from_file_location("sandbox_attacks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FILE.parent))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_every_attack_is_held(attacks, tier):
    why = next(found.why for found in probe() if found.tier == tier)
    if why:
        pytest.skip(f"not covered here: {tier}: {why}")
    box = open_sandbox(tier=tier, limits=attacks.LIMITS)
    results = {name: attacks.attack(box, name) for name in attacks.PROGRAMS if name != "prelude"}
    assert {name: result["through"] for name, result in results.items() if not result["held"]} == {}


@pytest.mark.slow
def test_the_attacks_can_get_through(attacks):
    """Without isolation: what looks for breaches finds them."""
    from entrl.sandbox import Sandbox

    # a busy machine must not stop them, nor what many processes there are to print
    limits = dataclasses.replace(attacks.LIMITS, wall_s=60.0, cpu_s=30, output_kib=16384)
    box = Sandbox(tier="unsafe", limits=limits, workers=1)
    for name in ("environment", "network", "/proc"):  # nothing that would harm the machine
        assert not attacks.attack(box, name)["held"], name
