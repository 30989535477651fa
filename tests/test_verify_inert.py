"""What a model writes, and what a row of a file says, runs nowhere: not in the trainer, not in a verifier process.

Each test leaves bait: the text would make a marker file if anything evaluated it. Shown to run before the mend.
"""

import json
from pathlib import Path

import pytest
from entrl_rewards.accuracy import Accuracy

from entrl.cli import main
from entrl.environments import TwentyQuestions
from entrl.tasks import load_task

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


@pytest.mark.parametrize("name", [*NINE, "composite"])
def test_a_dataset_whose_scorer_evaluates_is_refused_by_name(name, tmp_path, capsys):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(RECIPE % f"reasoning_gym:{name}")
    out = f"trainer.output_dir={tmp_path / 'out'}"
    said = f"reasoning-gym '{name}' cannot be used: its scorer evaluates"
    assert main(["plan", str(recipe), out]) == 1
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["train", str(recipe), out]) == 2
    assert said in capsys.readouterr().err
    assert main(["eval", "tiny-reasoner", "--task", f"reasoning_gym:{name}", "--size", "2"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", [*NINE, "composite", "number_sorting", "bitwise_arithmetic"])
def test_a_verifier_that_names_such_a_scorer_scores_nothing(name, marker):
    bait = touch(marker)
    entry = {"answer": bait, "metadata": {"problem": bait, "direction": "ascending", "source_dataset": "n_queens"}}
    spec = {"kind": "reasoning_gym", "dataset": name, "config": {}, "entry": entry}
    with pytest.raises(ValueError, match=f"reasoning-gym '{name}' cannot be used"):
        Accuracy().score([bait], ["1"], [json.dumps(spec)])
    assert not marker.exists()


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
