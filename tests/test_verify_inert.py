"""What a model writes, and what a row of a file says, runs nowhere: not in the trainer, not in a verifier process.

Each test leaves bait: the text would make a marker file if anything evaluated it. Shown to run before the mend.
"""

import builtins
import contextlib
import functools
import json
from pathlib import Path

import pytest
import reasoning_gym
from entrl_rewards.accuracy import Accuracy

from entrl.cli import main
from entrl.environments import TwentyQuestions
from entrl.tasks import load_task
from entrl.verify import gym_scorers

RECIPE = """
model: {path: tiny-reasoner}
data: {task: %r, train_size: 4}
rewards: [accuracy]
trainer: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, bf16: false}
"""
NINE = (  # whose scorers hand the answer to eval or to sympy's parse_expr
    "spiral_matrix", "string_insertion", "binary_matrix", "n_queens", "countdown", "puzzle24",
    "simple_integration", "intermediate_integration", "polynomial_multiplication",
)  # fmt: skip


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def touch(marker: Path) -> str:
    """An expression that makes the marker."""
    return f"__import__('os').system('touch {marker}')"


def baits(marker: Path) -> list[str]:
    """Spellings that would make the marker under eval, sympy's parser, a LaTeX reader that falls back on either."""
    run = touch(marker)
    return [
        run,
        f"[{run}]",
        f"[[1, 2], {run}]",
        f"({run}, 24)[1]",
        f"1 + 2 if {run} else 3",
        f"[x for x in [{run}]]",
        f"(lambda: {run})()",
        f"(x := {run})",
        f"{{{run}: 1}}",
        f'f"{{{run}}}"',
        f"().__class__.__base__.__subclasses__() and {run}",
        f"getattr(__import__('os'), 'system')('touch {marker}')",
        f"open('{marker}', 'w')",
        f"exec('import pathlib; pathlib.Path(\"{marker}\").touch()')",
        f"eval(compile('open(\"{marker}\", \"w\")', '', 'eval'))",
        f"Symbol('x').func({run})",
        f"diff({run}, x)",
        f"<answer>{run}</answer>",
        f"\\boxed{{{run}}}",
        f"\\boxed{{\\text{{{run}}}}}",
        f"${run}$",
        f"The answer is ${{{run}}}$.",
        f"answer: 1+1 if {run} else 2",
        f"x_{{{run}}}",
        f"\\operatorname{{exec}}({run})",
        f"{{0.__class__.__init__.__globals__[{run}]}}",
    ]


@functools.cache
def entry(name: str) -> dict:
    """An entry of a dataset as rows carry it."""
    return json.loads(json.dumps(reasoning_gym.create_dataset(name, seed=1, size=1)[0], default=str))


def verifier(name: str, **changes: object) -> str:
    return json.dumps({"kind": "reasoning_gym", "dataset": name, "config": {}, "entry": entry(name) | changes})


@pytest.mark.parametrize("name", NINE)
def test_an_answer_runs_nowhere(name, marker):
    texts = baits(marker)
    scores = Accuracy().score(texts, ["1"] * len(texts), [verifier(name)] * len(texts))
    assert scores == [0.0] * len(texts)
    assert not marker.exists()


@pytest.mark.parametrize(("kind", "gold"), [("math", "77"), ("math", "x+1"), ("exact", "77"), ("choice", "B")])
def test_an_answer_runs_nowhere_under_the_other_kinds(kind, gold, marker):
    texts = baits(marker)
    scores = Accuracy(kind=kind).score(texts, [gold] * len(texts))
    assert set(scores) <= {0.0}
    assert not marker.exists()


def test_a_bait_is_one(marker):
    """Each spelling that Python can evaluate makes the marker when it is, or these tests could not fail."""
    for bait in baits(marker)[:15]:
        marker.unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            eval(bait, {"__builtins__": builtins})
        assert marker.exists(), bait


@pytest.mark.parametrize("name", ["number_sorting", "bitwise_arithmetic"])
def test_an_entry_runs_nowhere(name, marker):
    bait = touch(marker)
    row = verifier(name, answer=bait, metadata={"problem": bait, "direction": "ascending"})
    assert Accuracy().score(["[1]", "0x1"], ["1"] * 2, [row] * 2) == [0.0, 0.0]
    assert not marker.exists()


def test_a_config_runs_nowhere(marker):
    config = {"operators": ["+", f"+{touch(marker)}+"]}
    row = json.dumps({"kind": "reasoning_gym", "dataset": "basic_arithmetic", "config": config, "index": 0})
    verdict = Accuracy().verdicts(["1"], ["1"], [row])[0]
    assert verdict is not None
    assert verdict.status == "crash"
    assert "only plain words may" in verdict.detail
    assert not marker.exists()


def test_a_scorer_that_hands_on_is_refused_by_name(tmp_path, capsys):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(RECIPE % "reasoning_gym:composite")
    out = f"trainer.output_dir={tmp_path / 'out'}"
    said = "reasoning-gym 'composite' cannot be used: it hands the answer to the scorers of its parts"
    assert main(["plan", str(recipe), out]) == 1
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["train", str(recipe), out]) == 2
    assert said in capsys.readouterr().err
    assert main(["eval", "tiny-reasoner", "--task", "reasoning_gym:composite", "--size", "2"]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="'composite' cannot be used"):
        Accuracy().score(["1"], ["1"], ['{"kind": "reasoning_gym", "dataset": "composite", "entry": {}}'])


def test_a_dataset_that_nobody_looked_at_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(gym_scorers, "INERT", gym_scorers.INERT - {"gcd"})
    with pytest.raises(ValueError, match="'gcd' is not classified: nobody has looked"):
        load_task("reasoning_gym:gcd", size=1)


@pytest.mark.parametrize("kind", ["reasoning_gym", "python", "os.system", None, ["math"]])
def test_a_row_of_a_file_may_not_choose_what_runs(kind, marker, tmp_path, capsys):
    spec = {"kind": kind, "dataset": "number_sorting", "entry": {"answer": touch(marker), "metadata": {}}}
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": "3", "verifier": spec}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    recipe = tmp_path / "run.yaml"
    recipe.write_text(RECIPE % f"jsonl:{file}")
    assert main(["train", str(recipe), f"trainer.output_dir={tmp_path / 'out'}"]) == 2
    assert "rows.jsonl:2: a row of a file may ask for the verifiers math, exact, choice" in capsys.readouterr().err
    assert not marker.exists()


def test_a_row_of_a_file_may_ask_for_comparisons(tmp_path):
    kinds = ("math", "exact", "choice")
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{kind}?", "answer": "A", "verifier": {"kind": kind}} for kind in kinds]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [json.loads(v)["kind"] for v in load_task(f"jsonl:{file}")["verifier"]] == list(kinds)


def test_a_row_may_not_open_a_table(marker, tmp_path):
    code = tmp_path / "own.py"
    code.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ntable = lambda: {{'a': {{'q': 1}}}}\n")
    with pytest.raises(ValueError, match="which no recipe has opened"):
        TwentyQuestions().reset(table_id=f"loaded:{code}:table", target="a")
    assert not marker.exists()
    task = {"task": "twenty_questions", "tables": f"loaded:{code}:table"}
    row = load_task(task, size=1)[0]  # the recipe names it: it is opened, and then rows may go on naming it
    TwentyQuestions().reset(**row)
    assert marker.exists()
