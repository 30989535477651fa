"""entrl try-reward: what it says of rewards that work and of those that do not, on a file and on a real run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from entrl.cli.main import main
from entrl.runs.recipe import make_recipe
from entrl.runs.stored import read_stored
from entrl.runs.train import train
from entrl.runs.try_reward import find_reward, try_reward

SOURCE = """
import math

def length(completions, **_):
    return [float(len(c)) for c in completions]

def some(completions, answer, **_):
    return [None if c == "4" else float(c == a) for c, a in zip(completions, answer)]

def broken(completions, **_):
    return [math.nan, math.inf, "good", 1.0, None, 0.0][: len(completions)]

def raises(completions, **_):
    raise RuntimeError("no judge here")

def short(completions, **_):
    return [1.0]

def constant(completions, **_):
    return [0.5] * len(completions)

def of_the_prompt(prompts, completions, **_):
    return [float(len(p)) for p in prompts]

def lacks(completions, difficulty, **_):
    return difficulty

def entropies(completions, token_entropies, **_):
    return [0.0] * len(completions)

def log_probabilities(completions, token_logprobs, **_):
    return [0.0] * len(completions)

async def waits(completions, **_):
    return [float(len(c)) for c in completions]
"""
LINES: list[dict[str, Any]] = [
    {"prompt": "1+1=", "completion": "2", "answer": "2", "group": 0, "step": 0},
    {"prompt": "1+1=", "completion": "30", "answer": "2", "group": 0, "step": 0},
    {"prompt": "1+10=", "completion": "4", "answer": "11", "group": 1, "step": 0},
    {"prompt": "1+10=", "completion": "11", "answer": "11", "group": 1, "step": 0},
    {"prompt": "2+2=", "completion": "4", "answer": "4", "group": 0, "step": 1},
    {"prompt": "2+2=", "completion": "22", "answer": "4", "group": 0, "step": 1},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "kept.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    return tmp_path


def tried(here: Path, name: str) -> Any:
    return try_reward(find_reward(f"mine.py:{name}", {}), read_stored(here / "kept.jsonl"))


def test_values_groups_and_time(here: Path):
    found = tried(here, "length")
    assert found.values == [1, 2, 1, 2, 1, 2]
    assert (found.groups, found.flat, found.spread) == (3, 0, 0.5)
    assert len(found.seconds) == 2  # a call per rollout
    assert found.problems == []
    assert found.ends == [(1, "2"), (2, "30")]


def test_columns_asked_for_and_none(here: Path):
    found = tried(here, "some")
    assert found.asked == {"answer": True}
    assert found.values == [1.0, 0.0, None, 1.0, None, 0.0]
    assert found.odd == {"None": 2}
    assert found.problems == []


def test_an_async_reward(here: Path):
    assert tried(here, "waits").values == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raises", "raised RuntimeError: no judge here"),
        ("short", "returned 1 rewards for 4 completions"),
        ("constant", "it returned 0.5 for every completion"),
        ("of_the_prompt", "is the same for all completions of a prompt, in each of 3 groups"),
        ("lacks", "needs difficulty, which the stored completions have not (columns: answer, group_index)"),
        ("entropies", "needs token_entropies, which .* where one of its rewards or controllers reads them"),
        ("log_probabilities", "needs token_logprobs, which .* log-probabilities are not kept"),
    ],
)
def test_what_training_could_not_use(here: Path, name: str, problem: str):
    found = tried(here, name).problems
    assert any(problem in p or re.search(problem, p) for p in found), found


def test_values_that_are_none(here: Path):
    found = tried(here, "broken")
    assert found.odd == {"NaN": 2, "infinite": 2, "not a number (str)": 1}
    assert len([p for p in found.problems if "training stops there" in p]) == 3


def test_a_file_alone_means_its_one_function(here: Path):
    (here / "one.py").write_text("def only(completions, **_):\n    return [1.0] * len(completions)\n")
    assert find_reward("one.py", {}).source == "one.py:only"
    with pytest.raises(ValueError, match=r"mine\.py defines length, some, .* write one of them as mine\.py:NAME"):
        find_reward("mine.py", {})


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["try-reward", "mine.py:length", "--on", "kept.jsonl"]) == 0
    assert "3, 0 without spread" in capsys.readouterr().out
    assert main(["try-reward", "mine.py:constant", "--on", "kept.jsonl", "--limit", "2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["values"] == [0.5, 0.5]
    assert found["problems"]
    assert main(["try-reward", "entrl_rewards.accuracy:reward", "kind=exact", "--on", "kept.jsonl"]) == 0
    assert main(["try-reward", "mine.py:length", "--on", "nothing"]) == 2
    assert main(["try-reward", "pear", "--on", "kept.jsonl"]) == 1  # by what its options need, not its signature
    assert "needs token_entropies" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["try-reward", "mine.py:length", "--on", "kept.jsonl", "--limit", "0"])
    assert "write 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import ctypes; ctypes.string_at(0)", r"reward mine\.py ended its process \(SIGSEGV\)"),
        ("while True: pass", r"reward mine\.py did not come back within 2 s; .*"),
        ("raise KeyboardInterrupt", r"reward mine\.py raised KeyboardInterrupt"),
    ],
)
@pytest.mark.parametrize("where", ["call", "import"])
def test_what_does_not_come_back(here: Path, capsys: pytest.CaptureFixture[str], where: str, body: str, problem: str):
    define = "def reward(completions, **_):\n    "
    (here / "mine.py").write_text(f"{define}{body}\n" if where == "call" else f"{define}pass\n{body}\n")
    assert main(["try-reward", "mine.py", "--on", "kept.jsonl", "--timeout", "2"]) == 1
    said = capsys.readouterr()
    assert re.search(f"problem: {'loading ' * (where == 'import')}{problem}", said.out), said.out
    assert "Traceback" not in said.err
    assert ("raise --timeout" in said.out) == ("while" in body)


def test_what_is_no_exception(here: Path, capsys: pytest.CaptureFixture[str]):
    """Named as any other: a problem of the call, and of a file that cannot be imported."""
    stop = "raise type('Stop', (BaseException,), {})()"
    (here / "mine.py").write_text(f"def reward(completions, **_):\n    {stop}\n")
    assert main(["try-reward", "mine.py", "--on", "kept.jsonl"]) == 1
    assert "problem: reward 'reward' raised Stop\n" in capsys.readouterr().out
    (here / "theirs.py").write_text(f"def reward(completions, **_):\n    pass\n{stop}\n")
    assert main(["try-reward", "theirs.py", "--on", "kept.jsonl"]) == 2
    assert "theirs.py cannot be imported: Stop; mend that file" in capsys.readouterr().err


def test_a_timeout_that_cannot_be_waited(here: Path, capsys: pytest.CaptureFixture[str]):
    for seconds in ("0", "1e18", "nan"):
        assert main(["try-reward", "mine.py:length", "--on", "kept.jsonl", "--timeout", seconds]) == 2
        assert "--timeout must be above 0 and at most 86400 seconds" in capsys.readouterr().err


def test_a_file_that_holds_none(here: Path):
    (here / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no completions"):
        read_stored(here / "empty.jsonl")
    (here / "half.jsonl").write_text('{"prompt": "1+1="}')
    with pytest.raises(ValueError, match=r"half\.jsonl:1 has no completion"):
        read_stored(here / "half.jsonl")


@pytest.mark.slow
def test_the_rewards_of_a_run_come_out_again(tmp_path: Path):
    """PEAR and accuracy of the stored completions are those that training logged, to the rounding of entropies."""
    content = {
        "model": {"path": "tiny-reasoner"},
        "data": {"task": "sums", "train_size": 32},
        "rewards": ["pear", {"use": "accuracy", "weight": 0.5}],
        "trainer": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "num_generations": 8,
            "max_completion_length": 64,
            "scale_rewards": "batch",
            "sample_completions": 16,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
        },
    }
    train(make_recipe(content, name="run", base=tmp_path), console=Console(quiet=True))
    stored = read_stored(tmp_path / "run")
    logged = [json.loads(line)["rewards"] for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert len(logged) == 32
    for name in ("pear", "accuracy"):
        found = try_reward(find_reward(name, {}), stored)
        assert found.values == pytest.approx([row[name] for row in logged], abs=1e-4)
