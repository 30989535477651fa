"""Rows before training: what plan says and train refuses, and a run that ended short of its steps (F1, F9, F23)."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_model import saved_model

import entrl.runs.plan.rows
from entrl.cli.main import main
from entrl.runs.plan import plan
from entrl.runs.recipe import Recipe, make_recipe
from entrl.runs.train import check_trained, train
from entrl.settings.yaml import parse_yaml
from entrl_lab.nursery.tokenizer import character_tokenizer

SMALL = """
rewards: [accuracy]
trainer: {max_steps: 2, per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 4, bf16: false,
          gradient_checkpointing: false, save_strategy: "no"}
"""
ROWS = [{"prompt": f"1{i}+11=", "answer": str(21 + i)} for i in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(model: str, tmp_path: Path):
    def make(rows: list[dict[str, Any]] = ROWS, held: list[dict[str, Any]] | None = None, **groups: Any) -> Recipe:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        content = parse_yaml(SMALL) | {"model": {"path": model}, "data": {"task": "jsonl:rows.jsonl"}}
        if held is not None:
            (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
            content["eval"] = {"task": "jsonl:held.jsonl", "size": 1, "samples": 1, "k": [1], "before": False}
        for name, group in groups.items():
            content[name] = {**content.get(name, {}), **group} if isinstance(group, dict) else group
        content["trainer"]["output_dir"] = str(tmp_path / "run")
        return make_recipe(content, name="small", base=tmp_path)

    return make


def refused(recipe: Recipe, text: str) -> None:
    """By plan and by train alike, and train makes no folder."""
    problems = plan(recipe).problems
    assert [p for p in problems if text in p], problems
    with pytest.raises(ValueError) as error:
        train(recipe, console=Console(quiet=True))
    assert text in str(error.value)
    assert not recipe.run_dir.exists()


# --- enough prompts (F1) ------------------------------------------------------------------------------------------


def test_fewer_prompts_than_a_rollout_needs(recipe: Any):
    # 8 rows x 2 micro-batches = 16 rows = 4 prompts x 4
    words = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    assert plan(recipe(trainer=words)).ok
    refused(recipe(ROWS[:3], trainer=words), "one rollout needs 4 prompts (16 rows in groups of 4) and data has 3")
    refused(recipe(data={"train_size": 3}, trainer=words), "needs 4 prompts (16 rows in groups of 4) and data has 3")
    by_epochs = {**words, "max_steps": -1, "num_train_epochs": 1}
    refused(recipe(ROWS[:3], trainer=by_epochs), "one rollout needs 4 prompts")
    refused(recipe(data={"task": "sums", "train_size": 3}, trainer=words), "and data has 3: no step would be trained")


def test_the_number_of_processes_counts(recipe: Any):
    assert plan(recipe(), world_size=2).ok
    assert any("needs 6 prompts" in p and "has 4" in p for p in plan(recipe(), world_size=3).problems)


def test_a_run_that_ends_short_is_not_finished(recipe: Any, monkeypatch: pytest.MonkeyPatch):
    """transformers stops without an error when the data give no batch; the check before it is taken away."""
    monkeypatch.setattr(entrl.runs.plan.rows, "too_few_prompts", lambda *_: [])
    short = recipe(ROWS[:1])
    with pytest.raises(ValueError, match="training ended at step 0 of 2, so the run is not finished"):
        train(short, console=Console(quiet=True))
    manifest = json.loads((short.run_dir / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "step 0 of 2" in manifest["error"]
    check_trained(2, 2)


def test_the_command_says_so_and_fails(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "a.yaml").write_text(f"model: {{path: {model}}}\ndata: {{task: 'jsonl:rows.jsonl'}}\n{SMALL}")
    assert main(["plan", str(tmp_path / "a.yaml")]) == 1
    assert "one rollout needs 2 prompts" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "a.yaml"), f"trainer.output_dir={tmp_path / 'run'}"]) == 2
    assert "one rollout needs 2 prompts" in capsys.readouterr().err


# --- golds and columns (F9, F13, F19) -----------------------------------------------------------------------------


def test_rows_without_golds(recipe: Any):
    some = [{**row, "answer": None if i else "1"} for i, row in enumerate(ROWS)]
    (warning,) = plan(recipe(some)).warnings
    assert "3 of 4 rows have no gold answer (line-2, line-3, line-4), which entrl_rewards.accuracy:reward" in warning
    none = [{**row, "answer": ""} for row in ROWS]
    refused(recipe(none), "data: none of the 4 rows has a gold answer, which entrl_rewards.accuracy:reward needs")
    assert plan(recipe(none, rewards=["think_format"])).ok  # reads no golds
    refused(recipe(held=none), "eval: none of the 1 rows has a gold answer, which the evaluation needs")


def test_train_says_what_it_warns_of(recipe: Any, tmp_path: Path):
    with (tmp_path / "said").open("w") as file:
        some = [{**ROWS[0], "answer": None}, *ROWS[1:]]
        train(recipe(some, trainer={"max_steps": 1}), console=Console(file=file, soft_wrap=True))
    assert "warning: data: 1 of 4 rows have no gold answer (line-1)" in (tmp_path / "said").read_text()


def test_plan_reads_the_whole_file(recipe: Any):
    """Faults behind the first rows: a bad line, an id that returns, a prompt that returns."""
    refused(recipe([*ROWS * 3, {**ROWS[0], "verifier": "maths"}]), "rows.jsonl:13: a row of a file may ask for")
    refused(recipe([{**row, "problem_id": i % 11} for i, row in enumerate(ROWS * 3)]), "'0' occurs more than once")
    (warning,) = plan(recipe(ROWS * 2)).warnings
    assert "4 of 8 prompts occur before (line-5 as line-1, line-6 as line-2, line-7 as line-3, ...)" in warning
    refused(recipe(held=[{**ROWS[0], "answer": True}]), "held.jsonl:1 column 'answer' is a boolean")


NEEDY = """
seen = []
def mine(completions, difficulty, tests, **columns):
    assert sorted(set(map(repr, difficulty))) == ["1.5"], difficulty
    assert tests == [["a"]] * len(completions), tests
    assert set(columns["source"]) == {"x"} and "entrl_phase" not in columns
    seen.append(len(completions))
    return [0.0] * len(completions)
"""


def test_other_columns_reach_rewards(recipe: Any, tmp_path: Path):
    (tmp_path / "mine.py").write_text(NEEDY)
    rewards = [{"use": "mine.py:mine"}]
    rows = [{**row, "difficulty": 1.5, "tests": ["a"], "source": "x"} for row in ROWS]
    train(recipe(rows, rewards=rewards, trainer={"max_steps": 1}), console=Console(quiet=True))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"


def test_plan_knows_which_columns_rewards_need(recipe: Any, tmp_path: Path):
    (tmp_path / "mine.py").write_text(NEEDY)
    refused(recipe(rewards=[{"use": "mine.py:mine"}]), "reward mine.py:mine needs 'difficulty', which is neither")
    for name in ("L1Exact", "L1Max"):
        target = [{"use": f"entrl_rewards.length:{name}"}]
        refused(recipe(rewards=target), f"reward entrl_rewards.length:{name} needs 'target_length'")
        assert plan(recipe([{**row, "target_length": 20} for row in ROWS], rewards=target)).ok
        assert plan(recipe(rewards=[{**target[0], "args": {"target": 20}}])).ok
        other = [{**target[0], "args": {"correctness": "column:solved"}}]
        assert any("needs 'solved'" in p for p in plan(recipe(rewards=other)).problems)
    half = [{**row, "target_length": None if i else 20} for i, row in enumerate(ROWS)]
    assert any("3 of 4 rows have no 'target_length'" in w for w in plan(recipe(half, rewards=target)).warnings)


# --- what the model is shown (F23) --------------------------------------------------------------------------------


def long(tokens: int) -> dict[str, str]:
    return {"prompt": "1" * (tokens - 1) + "=", "answer": "2"}


def test_prompts_longer_than_the_context(recipe: Any):
    """The tiny model has 512 positions, 4 are for the completion, and its tokenizer makes a token of a character."""
    assert not plan(recipe([*ROWS, long(508)])).warnings
    (warning,) = plan(recipe([*ROWS, long(509), long(700)])).warnings
    assert "data: 2 of 6 prompts are longer than the 508 tokens" in warning
    assert "the longest has 700 (line-5, line-6). Leave them out, or lower trainer.max_completion_length" in warning
    refused(recipe([long(509), long(510)]), "2 of 2 prompts are longer than the 508 tokens")
    refused(recipe(held=[long(509)]), "eval: 1 of 1 prompts are longer than the 508 tokens")
    found = plan(recipe(trainer={"max_completion_length": 512}))
    assert found.ok
    assert "trainer.max_completion_length of 512 leaves no room for a prompt in the context of 512" in found.warnings[0]


def test_chat_prompts_are_measured_as_shown(recipe: Any):
    """The tiny reasoner's template writes the contents alone."""
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in [*ROWS, long(509)]]
    assert "1 of 5 prompts are longer than the 508 tokens" in plan(recipe(chat)).warnings[0]


def test_control_tokens_in_prompts_are_named(recipe: Any):
    token = character_tokenizer().eos_token
    rows = [*ROWS[:-1], {**ROWS[-1], "prompt": f"1+1={token}"}]
    assert any(f"1 of {len(rows)} prompts hold control tokens" in w and token in w for w in plan(recipe(rows)).warnings)
    assert not any("control tokens" in w for w in plan(recipe(ROWS)).warnings)


def test_a_tokenizer_that_cannot_take_the_prompts(recipe: Any, tmp_path: Path):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    odd = recipe(chat, model={"tokenizer": str(tmp_path / "tokenizer")})
    refused(odd, "data: the chat template cannot take the prompt of line-1: no system role here")
    for template, why in (("{{ 1 / 0 }}", "division by zero"), ("{% for i in range(10**9) %}{% endfor %}", "ange")):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        problems = plan(odd).problems
        assert [p for p in problems if "cannot take the prompt of line-1" in p and why in p], problems
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    padless = recipe(held=ROWS, model={"tokenizer": str(tmp_path / "tokenizer")}, eval={"before": True})
    refused(padless, "eval: the tokenizer has no pad token, which the evaluation before training needs")
