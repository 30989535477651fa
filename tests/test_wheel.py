"""The built wheel, in an environment where nothing else can stand in for it: imported, run, extended by a plugin.

An editable install puts the repository on the path, so a file the wheel forgot is only missed elsewhere. Here the
wheel is unpacked into an empty environment that sees the packages of this one but not its editable `entrl`.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

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
    "typed": [(files(name) / "py.typed").is_file() for name in ("entrl", "entrl_lab", "entrl_rewards")],
    "public": sorted(name for name in entrl.__all__ if not getattr(entrl, name).__module__.startswith("entrl.")),
    "recipes": any((__import__("pathlib").Path(p) / "recipes").is_dir() for p in sys.path),
}))
"""


PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "morgue"
version = "1.0"
[project.entry-points."entrl.commands"]
autopsy = "morgue:autopsy"
""",
    "morgue.py": """
from entrl import Command, read_run
from entrl.cli.parsers import path

def run(options):
    print("steps taken:", len(read_run(options.run).train))
    return 0

def arguments(parser):
    parser.add_argument("run", type=path)

autopsy = Command(help="Say how far a run came.", group="study", arguments=arguments, run=run)
""",
}


def clean() -> dict[str, str]:
    """This process's environment without what would let it see the repository."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def finished(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean())
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """What `python -m build` makes: a source distribution, and the wheel out of that."""
    folder = tmp_path_factory.mktemp("dist")
    finished(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (built,) = dist.glob("*.whl")
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
    site = Path(finished(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if package.suffix != ".pth" and "entrl" not in package.name and not (site / package.name).exists():
            (site / package.name).symlink_to(package)
    install(python, wheel)
    return python


def install(python: Path, what: Path) -> None:
    finished(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"),
        *("--no-build-isolation", what),
    )


def run(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], cwd=folder, env=clean(), capture_output=True, text=True, timeout=300)


def test_what_is_built_is_fit_to_be_published(dist):
    finished(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "src/entrl/py.typed"} < names
    assert {name.split("/")[0] for name in names} == {
        *("src", "rewards", "recipes", "launch", "PKG-INFO", ".gitignore", "pyproject.toml"),
        *("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"),
    }


def test_the_citation_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{cited["version"]}"' in pyproject
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format requires
    assert cited["license"] in pyproject


def test_the_wheel_holds_both_packages_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    packages = {"entrl", "entrl_lab", "entrl_rewards"}
    assert packages < tops
    assert all(top in packages or top.endswith(".dist-info") for top in tops)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 15e6  # 5 MB of it the adapter smollm2-chain-sum, 4 MB the two overthinkers


def test_imports_and_asset_come_from_the_wheel(python, tmp_path):
    done = run(python, tmp_path, "-c", LOOK)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["entrl"].startswith(str(ROOT))
    assert not found["rewards"].startswith(str(ROOT))
    assert found["reward"] == "Pear"
    assert "config.json" in found["asset"]
    assert "manifest.json" in found["asset"]
    assert found["typed"] == [True, True, True]
    assert found["public"] == []
    assert not found["recipes"]


def test_a_recipe_is_planned_from_another_folder(python, tmp_path):
    """Names in a recipe (model, reward, controller) resolve without the repository."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text((ROOT / "recipes" / "tiny-reasoner" / "pear-kl-cov.yaml").read_text())
    done = run(python, tmp_path, "-m", "entrl", "plan", "mine.yaml")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def test_the_command_trains_and_reports_from_another_folder(python, tmp_path):
    """By the console script: a tiny training, a command of ours, one of the laboratory's, one of a plugin."""
    (tmp_path / "mine.yaml").write_text((ROOT / "recipes" / "tiny-reasoner" / "grpo.yaml").read_text())
    script = str(python.parent / "entrl")
    words = ["data.train_size=16", "trainer.per_device_train_batch_size=4", "trainer.num_generations=4"]
    words += ["trainer.max_completion_length=6", "trainer.max_steps=2", "eval=null", "trainer.output_dir=out"]
    done = run(python, tmp_path, script, "train", "mine.yaml", *words)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    done = run(python, tmp_path, script, "report", "out", "--out", "page.html")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "page.html").is_file()
    done = run(python, tmp_path, script, "conformance", "nowhere.json")
    assert done.returncode == 2
    assert "nowhere.json" in done.stderr
    for name, text in PLUGIN.items():
        (tmp_path / "plugin").mkdir(exist_ok=True)
        (tmp_path / "plugin" / name).write_text(text)
    install(python, tmp_path / "plugin")
    assert "autopsy      Say how far a run came." in run(python, tmp_path, script).stdout
    done = run(python, tmp_path, script, "autopsy", "out")
    assert done.stdout == "steps taken: 2\n", done.stdout + done.stderr[-2000:]
