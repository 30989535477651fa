"""The built wheel, in an environment where nothing else can stand in for it.

An editable install puts the repository on the path, so a file the wheel forgot is only missed elsewhere. Here the
wheel is unpacked into an empty environment that sees the packages of this one but not its editable `entrl`.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

LOOK = """
import json, importlib.metadata, sys
import entrl, entrl_rewards.pear
from importlib.resources import files
asset = files("entrl.models.shipped") / "tiny-reasoner"
print(json.dumps({
    "entrl": entrl.__file__,
    "rewards": entrl_rewards.pear.__file__,
    "reward": type(entrl_rewards.pear.reward).__name__,
    "asset": sorted(one.name for one in asset.iterdir()),
    "version": importlib.metadata.version("entrl"),
    "recipes": any((__import__("pathlib").Path(p) / "recipes").is_dir() for p in sys.path),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A clean environment with the wheel in it.

    What the wheel depends on is linked in package by package: with `--system-site-packages`, or this environment's
    site folder added whole, the editable install's .pth file would offer the repository's `entrl` as well.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if package.suffix != ".pth" and "entrl" not in package.name and not (site / package.name).exists():
            (site / package.name).symlink_to(package)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return python


def run(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([python, *words], cwd=folder, env=kept, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_both_packages_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"entrl", "entrl_rewards"} < tops
    assert all(top in ("entrl", "entrl_rewards") or top.endswith(".dist-info") for top in tops)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 6e6  # bytes; the asset alone may have 5 MB


def test_imports_and_asset_come_from_the_wheel(python, tmp_path):
    done = run(python, tmp_path, "-c", LOOK)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["entrl"].startswith(str(ROOT))
    assert not found["rewards"].startswith(str(ROOT))
    assert found["reward"] == "Pear"
    assert "config.json" in found["asset"]
    assert "manifest.json" in found["asset"]
    assert not found["recipes"]


def test_a_recipe_is_planned_from_another_folder(python, tmp_path):
    """Names in a recipe (model, reward, controller) resolve without the repository."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text((ROOT / "recipes" / "tiny-reasoner" / "pear-kl-cov.yaml").read_text())
    done = run(python, tmp_path, "-m", "entrl", "plan", "mine.yaml")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
