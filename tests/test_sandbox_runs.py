"""Who may say unsafe, and where it is written."""

from types import SimpleNamespace

import pytest
from entrl_rewards.accuracy import reward as accuracy
from entrl_rewards.code import reward as code
from short_run import manifest, quietly, short_recipe
from tiny_model import saved_model

from entrl.errors import SandboxError
from entrl.report.summary import run_facts
from entrl.runs.plan import plan
from entrl.runs.recipe import load_recipe
from entrl.runs.sandboxed import missing_sandbox, sandbox_note
from entrl.sandbox import boxes, permit_unsafe, probe

RECIPE = "recipes/tiny-reasoner/code.yaml"


def test_a_recipe_may_not_say_it(tmp_path):
    with pytest.raises(
        ValueError, match=r"'sandbox' in recipe\. It is a word of the command line alone: sandbox=unsafe"
    ):
        load_recipe(RECIPE, ["sandbox.tier=unsafe"])
    with pytest.raises(ValueError, match="tier must be"):
        load_recipe(RECIPE, ["rewards.0.args.tier=unsafe"]).build_rewards()


@pytest.mark.skipif(not any(f.works for f in probe()), reason="not covered: no sandbox works here")
def test_manifest_and_report(monkeypatch):
    monkeypatch.setattr(boxes, "_permitted", [])
    assert sandbox_note([accuracy]) == {}
    assert sandbox_note([accuracy, code])["sandbox"] in ("bubblewrap", "landlock")
    permit_unsafe()
    assert sandbox_note([accuracy]) == {"sandbox": "unsafe"}
    run = SimpleNamespace(manifest={"sandbox": "unsafe"}, recipe={}, train=[])
    assert run_facts(run)["Sandbox"] == "none: code of the model ran unprotected (sandbox=unsafe)"  # type: ignore[arg-type]
    run.manifest = {}
    assert "Sandbox" not in run_facts(run)  # type: ignore[arg-type]


def test_plan_and_train_say_it_where_nothing_works(monkeypatch):
    monkeypatch.setattr(boxes, "_permitted", [])
    monkeypatch.setattr(boxes, "probe", tuple)
    assert missing_sandbox([accuracy]) == []
    assert "no sandbox works here" in missing_sandbox([code])[0]
    with pytest.raises(SandboxError):
        sandbox_note([code])


CODE_ROWS = ("data={task: functions, args: {ask: expression}, train_size: 32}", "rewards=[{use: accuracy}]")
CODE_EVAL = ("eval={task: functions, args: {ask: expression}, size: 4, samples: 1, k: [1], before: false}",)


@pytest.mark.parametrize("change", [CODE_ROWS, CODE_EVAL])
def test_rows_that_ask_for_code_need_a_sandbox_as_the_code_reward_does(monkeypatch, tmp_path, change):
    """Of training, where `accuracy` judges them, and of an evaluation."""
    model = saved_model(tmp_path / "model")
    recipe = short_recipe(model, tmp_path / "run", "trainer.max_completion_length=24", *change)
    monkeypatch.setattr(boxes, "_permitted", [])
    monkeypatch.setattr(boxes, "probe", tuple)
    (words,) = missing_sandbox([code])
    assert words in plan(recipe).unchecked
    with pytest.raises(SandboxError, match="no sandbox works here") as raised:
        quietly(recipe)
    assert str(raised.value) == words
    assert not (tmp_path / "run").exists()
    plain = short_recipe(model, tmp_path / "run")
    assert words not in plan(plain).unchecked


@pytest.mark.skipif(not any(f.works for f in probe()), reason="not covered: no sandbox works here")
def test_their_tier_is_in_the_manifest(monkeypatch, tmp_path):
    monkeypatch.setattr(boxes, "_permitted", [])
    model = saved_model(tmp_path / "model")
    quietly(short_recipe(model, tmp_path / "run", *CODE_ROWS, "trainer.max_steps=1"))
    assert manifest(tmp_path / "run")["sandbox"] in ("bubblewrap", "landlock")
