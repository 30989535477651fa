"""The command line: exit codes, one clear line per user error, and no heavy import before it is needed."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import saved_model

import entrl
from entrl.cli.commands import BUILT_IN
from entrl.cli.main import main, parse
from entrl.cli.parsers import numbers
from entrl.cli.policies import KNOWN
from entrl.environments import ENVIRONMENTS
from entrl.models.load import DTYPES
from entrl.models.shipped import bare_names
from entrl.settings.overrides import split_overrides
from entrl.tasks import INQUIRIES, task_names
from entrl.teach.curation import FALLBACKS
from entrl_lab.estimators import ESTIMATORS

RECIPES = Path(__file__).parents[1] / "recipes" / "tiny-reasoner"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def test_help_imports_nothing_heavy():
    code = "import sys; from entrl.cli.main import main; main(['--help'])"
    code += "; print([m for m in ('torch', 'trl', 'yaml', 'numpy', 'pydantic', 'scipy') if m in sys.modules])"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - started < 5  # under 1 s when nobody shares the machine


def test_module_and_command_are_the_same():
    done = subprocess.run([sys.executable, "-m", "entrl", "--help"], capture_output=True, text=True, check=True)
    known = ("train", "plan", "eval", "report", "compare", "conformance", "merge", "nursery", "curate", "cold-start")
    for command in known:
        assert command in done.stdout


def test_nobody_reads_the_output_any_more():
    """As `entrl --help | head -1`: no traceback, and nothing of Python's at exit."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "entrl", "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


def test_user_error_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "no-such.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: no recipe no-such.yaml")
    assert len(lines) == 2


def test_traceback_on_request():
    with pytest.raises(FileNotFoundError, match=r"no recipe no-such\.yaml"):
        main(["train", "no-such.yaml", "--traceback"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken(options: object) -> int:
        raise RuntimeError("a bug of ours")

    monkeypatch.setitem(BUILT_IN, "plan", replace(BUILT_IN["plan"], run=broken))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        main(["plan", "x.yaml"])


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "no-such.yaml"]) == 2
    assert capsys.readouterr().err == ""


def test_plan_exit_codes(model: str, capsys: pytest.CaptureFixture[str]):
    words = ["plan", str(RECIPES / "pear-kl-cov.yaml"), f"model.path={model}"]
    assert main(words) == 0
    assert "ready to train" in capsys.readouterr().out
    assert main([*words, "trainer.steps_per_generation=1"]) == 1
    assert "kl_cov does nothing" in capsys.readouterr().out
    assert main([*words, "trainer.max_prompt_length=3"]) == 1
    assert "trainer.max_prompt_length is gone" in capsys.readouterr().out


def test_plan_takes_a_world_size(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(RECIPES / "grpo.yaml"), f"model.path={model}", "world_size=2"]) == 0
    assert "32 prompts x 8 completions = 256 rows" in capsys.readouterr().out


def test_run_options_are_not_recipe_keys():
    assert split_overrides(["resume=true", "trainer.seed=1"]) == (["trainer.seed=1"], {"resume": True})
    with pytest.raises(ValueError, match="overwrite must be true or false, got 'yes'"):
        split_overrides(["overwrite=yes"])
    assert split_overrides(["sandbox=unsafe"]) == ([], {"sandbox": "unsafe"})
    with pytest.raises(ValueError, match="sandbox must be unsafe, got 'off'"):
        split_overrides(["sandbox=off"])
    with pytest.raises(ValueError, match="resume must be true or false, got '1'"):
        split_overrides(["resume=1"])


@pytest.mark.parametrize(
    "words",
    [
        ["--traceback", "train", "no-such.yaml", "trainer.seed=1"],
        ["train", "--traceback", "no-such.yaml", "trainer.seed=1"],
        ["train", "no-such.yaml", "--traceback", "trainer.seed=1"],
        ["train", "no-such.yaml", "trainer.seed=1", "--traceback"],
        ["plan", "no-such.yaml", "--device-memory", "80", "--traceback", "trainer.seed=1"],
    ],
)
def test_options_stand_anywhere(words: list[str]):
    command, options = parse(words)
    assert command is BUILT_IN["plan" if "plan" in words else "train"]
    assert options.overrides == ["trainer.seed=1"]
    with pytest.raises(FileNotFoundError, match=r"no recipe no-such\.yaml"):
        main(words)


@pytest.mark.parametrize("words", [["--version"], ["plan", "--version"], ["plan", "x.yaml", "--version"]])
def test_the_version_from_anywhere(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(words)
    assert capsys.readouterr().out == f"entrl {entrl.__version__}\n"


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["--traceback"], ["--traceback", "--help"]])
def test_help_groups_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 0
    shown = capsys.readouterr().out
    titles = [line for line in shown.splitlines() if line and not line.startswith(" ") and line.endswith(":")]
    assert titles == ["run:", "judge what came out:", "study:", "build what runs start from:", "anywhere:"]
    for name in BUILT_IN:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert "".join(BUILT_IN[name].help.split()) in "".join(capsys.readouterr().out.split())


def test_help_lists_what_there_is(capsys: pytest.CaptureFixture[str]):
    """Lists in help texts come from where the things are (B12)."""
    wanted = {
        "eval": [*task_names(), *bare_names(), *DTYPES],
        "play": [*KNOWN, *ENVIRONMENTS, *INQUIRIES, *DTYPES],
        "curate": FALLBACKS,
        "merge": DTYPES,
        "replay": ESTIMATORS,
    }
    for name, words in wanted.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = "".join(capsys.readouterr().out.split())  # lines break at hyphens, too
        assert [word for word in words if word not in shown] == []


def test_a_task_in_the_help_that_is_played_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "eval.json"
    args = "{rows: 8, columns: 8, max_questions: 3}"
    words = ["--task", "twenty_questions", "--task-args", args, "--size", "2", "--max-new-tokens", "60"]
    assert main(["eval", "tiny-inquirer", *words, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["n_problems"] == 2
    assert found["max_new_tokens"] == 60
    assert set(found["inquiry"]) == {"greedy", "sampled"}


def test_thinking_tags_of_a_task_that_is_played_are_refused():
    for option in ("--think-open", "--think-close"):
        with pytest.raises(
            ValueError, match="'twenty_questions' is played, and thinking in a dialogue is not measured"
        ):
            main(["eval", "tiny-inquirer", "--task", "twenty_questions", option, "[", "--traceback"])


def test_a_command_nobody_has(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["trian", "x.yaml"])
    assert "no command 'trian'. Did you mean 'train'? There are train, plan, doctor," in capsys.readouterr().err


def test_misspelt_run_option_is_an_unknown_key(capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(RECIPES / "grpo.yaml"), "overwriet=true"]) == 2
    assert "unknown key 'overwriet' in recipe" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "1,x", "1;8"])
def test_bad_k(text: str):
    with pytest.raises(ValueError, match="-k takes numbers with commas"):
        numbers(text, int, "-k")


def test_eval_writes_one_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "eval.json"
    words = ["-k", "1,2", "--size", "3", "--max-new-tokens", "4", "--task-args", "{max_terms: 3}", "--out", str(out)]
    assert main(["eval", model, "--task", "sums", *words]) == 0
    result = json.loads(out.read_text())
    assert result["n_problems"] == 3
    assert result["samples"] == 2
    assert set(result["pass_at_k"]) == {"1", "2"}
    assert {p["level"] for p in result["problems"]} == {"3"}
    assert '"n_problems": 3' in capsys.readouterr().out


def test_eval_of_a_missing_folder(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "./nowhere", "--task", "sums", "--size", "2"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_report_of_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_conformance_passes_flags_on(capsys: pytest.CaptureFixture[str]):
    assert main(["conformance", "no-such.json", "--strict"]) == 2


def test_merge_needs_an_adapter(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["merge", model, "--out", str(tmp_path / "merged")]) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_unknown_flag_is_refused():
    with pytest.raises(SystemExit) as caught:
        main(["plan", "x.yaml", "--fast"])
    assert caught.value.code == 2


def test_a_model_nobody_has_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "no-such-model", "--task", "sums", "--size", "2"]) == 2
    error = capsys.readouterr().err
    names = ", ".join(bare_names())
    assert "tiny-reasoner" in names
    assert f"model 'no-such-model' is none of ours ({names}) and no folder here" in error


def test_a_trl_outside_the_range_is_one_line(tmp_path: Path):
    """A fresh interpreter that sees another TRL: the seam is checked at import."""
    code = (
        "import importlib.metadata as m; real = m.version\n"
        "m.version = lambda name: '1.18.0' if name == 'trl' else real(name)\n"
        f"from entrl.cli.main import main; raise SystemExit(main(['plan', {str(RECIPES / 'grpo.yaml')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "found TRL 1.18.0" in told
    assert "pip install 'trl>=1.16,<1.17'" in told
    assert "Traceback" not in told
