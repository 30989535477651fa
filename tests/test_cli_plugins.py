"""Commands of other packages, found by entry points: listed, run, and no harm to the others when they are broken."""

import ast
import re
from pathlib import Path

import pytest

import entrl
from entrl.cli.main import main

PACKAGE = """
from entrl.cli.parsers import Command, path

def arguments(parser):
    parser.add_argument("run", type=path)

def run(options):
    if not options.run.is_dir():
        raise FileNotFoundError(f"no run {options.run}")
    print("died of", options.run.name)
    return 1

autopsy = Command(help="Say what a run died of, 100 % sure.", group="forensics", arguments=arguments, run=run)
rest = Command(help="Print words.", group="study", run=lambda options: print(options.words), own_parser=True)
number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution `morgue` as pip leaves it: a module, and metadata with entry points."""
    site = tmp_path / "site"
    info = site / "morgue-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "morgue_cli.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: morgue\nVersion: 1.0\n")
    names = {
        "autopsy": "morgue_cli:autopsy",
        "rest": "morgue_cli:rest",
        "gone": "morgue_nowhere:command",
        "number": "morgue_cli:number",
        "train": "morgue_cli:autopsy",
    }
    lines = [f"{name} = {value}" for name, value in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[entrl.commands]", *lines]))
    monkeypatch.syspath_prepend(site)
    return site


def test_a_plugin_is_listed_under_its_group_and_runs(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "\nforensics:\n  autopsy      Say what a run died of, 100 % sure.\n" in capsys.readouterr().out
    assert main(["autopsy", str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"died of {tmp_path.name}\n"
    assert main(["autopsy", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: no run nowhere")
    with pytest.raises(SystemExit, match="0"):
        main(["autopsy", "--help"])
    assert "100 % sure." in capsys.readouterr().out


def test_a_plugin_may_read_its_own_words(package: Path, capsys: pytest.CaptureFixture[str]):
    main(["rest", "--help", "--traceback", "x", "--y=1", "--tra", "--vers"])
    assert capsys.readouterr().out == "['--help', 'x', '--y=1', '--tra', '--vers']\n"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "gone",
            r"the command 'gone' of the package morgue \(morgue_nowhere:command\) cannot be loaded: Mod.*nowhere",
        ),
        ("number", r"the command 'number' of the package morgue \(morgue_cli:number\) is no .*Command but int"),
    ],
)
def test_a_broken_plugin_is_named_and_harms_nobody(
    package: Path, name: str, match: str, capsys: pytest.CaptureFixture[str]
):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "\n  autopsy " in shown
    assert re.search(f"not available:.* {name} +{match}", " ".join(shown.split()))
    assert main([name]) == 2
    assert re.search(f"^error: {match}", capsys.readouterr().err)
    with pytest.raises(ImportError, match=match):
        main([name, "--traceback"])
    assert main(["plan", "no-such.yaml"]) == 1


def test_the_printed_example_is_a_command():
    page = (Path(__file__).parents[1] / "docs" / "stability.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["autopsy"], entrl.Command)


def test_our_commands_cannot_be_taken(package: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "no-such.yaml"]) == 2
    assert "no recipe no-such.yaml" in capsys.readouterr().err


def test_the_laboratory_comes_by_entry_points(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in ("replicate", "conformance", "replay", "nursery"):
        assert f"\n  {name} " in shown


def test_the_library_names_no_laboratory():
    """In no import and no string; of the rewards, whose names a recipe holds, nothing is imported."""
    for file in Path(entrl.__file__).parent.rglob("*.py"):
        text = file.read_text()
        assert "entrl_lab" not in text, file
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("entrl_rewards")], file
