"""The trial call of a user's rewards before training: what never returns, what ends its process, what is only slow."""

import os
import time

import pytest
from short_run import quietly, short_recipe
from tiny_model import saved_model

from entrl.runs.plan import plan
from entrl.runs.plan.limits import apart
from entrl.runs.recipe import deciding
from entrl.trainers.shared.rewards import RewardError

WRONG = {
    "loops": ("while True: pass", r"did not come back within 0.5 s; mend .* raise reward_trial_s"),
    "waits": ("import time; time.sleep(60)", r"did not come back within 0.5 s"),
    "holds the interpreter": (
        "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
        r"did not come back within 0.5 s",
    ),
    "ends the process": ("import os; os._exit(3)", r"ended its process \(exit code 3\); raise an error there"),
    "crashes": ("import ctypes; ctypes.string_at(0)", r"ended its process \(SIGSEGV\)"),
    "asks to exit": ("import sys; sys.exit(0)", r"raised SystemExit: 0"),
    "interrupts": ("raise KeyboardInterrupt", r"ended its process \(exit code 1\)"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"))


def recipe_of(model, tmp_path, body, *overrides):
    file = tmp_path / "mine.py"
    file.write_text(
        f"calls = []\ndef reward(completions, **_):\n    {body}\n    return [len(str(c)) for c in completions]\n"
    )
    own = f"rewards=[{{use: '{file}:reward'}}]"
    return short_recipe(model, tmp_path / "run", own, "reward_trial_s=0.5", "trainer.max_steps=1", *overrides)


@pytest.mark.parametrize("what", WRONG)
def test_plan_and_train_name_it_alike(what, model, tmp_path):
    body, words = WRONG[what]
    recipe = recipe_of(model, tmp_path, body)
    (problem,) = plan(recipe).problems
    with pytest.raises(ValueError, match=words) as raised:
        quietly(recipe)
    assert problem == str(raised.value)
    assert problem.endswith("(in a trial call on 8 short completions)")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_only_slow_trains_and_has_not_seen_the_trial(model, tmp_path):
    """Seconds for the trial, and calls counted in the file itself: training's first is the first."""
    note = f"open('{tmp_path}/seen', 'a').write(str(len(calls)))"
    body = f"calls.append(1); import time; time.sleep(1.5 * (len(calls) == 1)); {note}"
    recipe = recipe_of(model, tmp_path, body, "reward_trial_s=30")
    assert plan(recipe).problems == []
    quietly(recipe)
    assert (tmp_path / "seen").read_text() == "11" + "1"  # plan's trial, train's, then the run
    assert (tmp_path / "run" / "model").is_dir()


def test_without_a_trial_nothing_is_called(model, tmp_path):
    recipe = recipe_of(model, tmp_path, f"open('{tmp_path}/seen', 'w')", "reward_trial_s=0")
    assert plan(recipe).problems == []
    assert not (tmp_path / "seen").exists()
    with pytest.raises(ValueError, match=r"reward_trial_s must be a number of seconds, 0 for no trial call, got -1"):
        recipe_of(model, tmp_path, "pass", "reward_trial_s=-1")
    assert deciding(recipe.resolved()) == deciding(recipe_of(model, tmp_path, "pass").resolved())


def test_apart_leaves_nothing_behind(tmp_path):
    assert apart(5, lambda: [1.0, None], "it") == [1.0, None]
    with pytest.raises(RewardError, match="as it was"):
        apart(5, lambda: _raise(RewardError("as it was")), "it")

    class Local(Exception):
        """Cannot be pickled."""

    with pytest.raises(ValueError, match="Local: here"):
        apart(5, lambda: _raise(Local("here")), "it")

    def daemon():
        if (child := os.fork()) == 0:
            time.sleep(60)
        (tmp_path / "child").write_text(str(child))
        os._exit(0)

    with pytest.raises(ValueError, match=r"it ended its process \(exit code 0\)"):
        apart(20, daemon, "it")
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5
    while time.monotonic() < end and _lives(child):
        time.sleep(0.05)
    assert not _lives(child)


def _raise(error):
    raise error


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
