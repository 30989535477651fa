"""Recipes with an environment: what a run leaves behind, what is refused before it starts."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_model import tiny_model

from entrl.runs.plan import prepare
from entrl.runs.recipe import load_recipe
from entrl.runs.train import train
from entrl_lab.nursery.inquirer.build import tokenizer_of
from entrl_lab.nursery.inquirer.config import InquirerConfig

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = (
    "data.train_size=16",
    "trainer.per_device_train_batch_size=4",
    "trainer.num_generations=4",
    "trainer.max_completion_length=24",
    "trainer.max_steps=2",
)
EVALUATION = "eval={task: twenty_questions, size: 3, samples: 2, args: {rows: 8, columns: 8}}"
TURN = "rewards=[{use: information_gain, args: {pay: turn}}]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights behind the tokenizer of the tiny inquirer."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), tokenizer_of(InquirerConfig())
    tiny_model(vocabulary=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(model: str, out: Path, *more: str):
    words = (*TINY, EVALUATION, f"model.path={model}", f"trainer.output_dir={out}", *more)
    return load_recipe(RECIPES / "twenty-questions/outcome.yaml", words)


def test_a_run_leaves_dialogues_and_their_numbers_behind(model: str, tmp_path: Path):
    made = recipe(model, tmp_path / "run", TURN, "trainer.turn_credit=return_to_go")
    result = train(made, console=Console(quiet=True))
    assert result.eval_after is not None
    greedy = result.eval_after["inquiry"]["greedy"]
    assert greedy["success"]["n"] == 3
    assert result.eval_after["greedy_accuracy"] == greedy["success"]["mean"]
    assert [p["n_samples"] for p in result.eval_after["problems"]] == [2, 2, 2]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train" and "loss" in line]
    assert len(trained) == 2  # the second uses the first one's rollout
    assert {"turns/credit_abs", "information_gain/success"} <= set(trained[0])
    assert "environment" in (tmp_path / "run/recipe.yaml").read_text()


def test_a_reward_of_events_needs_an_environment(model: str, tmp_path: Path):
    found = prepare(recipe(model, tmp_path / "run", "environment=null")).problems
    assert any("reads an environment's events, and the recipe has none" in text for text in found)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["environment=twenty_question"], "Did you mean 'twenty_questions'"),
        (["environment={use: twenty_questions, args: {budget: 3}}"], "has no argument 'budget'"),
        ([TURN], "nothing turns them into advantages"),
        (["trainer.turn_credit=return_to_go"], "no reward here publishes"),
    ],
)
def test_what_prepare_finds(model: str, tmp_path: Path, words: list[str], problem: str):
    found = prepare(recipe(model, tmp_path / "run", *words)).problems
    assert any(problem in text for text in found), found


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data={task: sums, train_size: 16}"], "prompts that are lists of messages"),
        (["data={task: diagram, train_size: 16}"], "cannot open the task's first row"),
    ],
)
def test_rows_that_the_environment_cannot_open(model: str, tmp_path: Path, words: list[str], problem: str):
    with pytest.raises(ValueError, match=problem):
        train(recipe(model, tmp_path / "run", *words), console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
