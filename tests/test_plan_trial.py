"""The trial call of a user's rewards before training: what never returns, what ends its process, what is only slow."""

import os
import re
import signal
import time

import pytest
from short_run import quietly, short_recipe
from tiny_model import saved_model

from entrl.runs.plan import plan
from entrl.runs.plan.checks import prepare
from entrl.runs.plan.limits import NotBack, apart
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
    "raises no Exception": ("raise type('Stop', (BaseException,), {})('now')", r"raised Stop: now \(in"),
    "raises what cannot be said": (
        "raise type('Silent', (Exception,), {'__str__': lambda self: 1 / 0})()",
        r"raised Silent, whose message raised ZeroDivisionError",
    ),
    "raises what cannot be written": ("raise ValueError('bad \\ud800')", r"raised ValueError: bad \\ud800 \("),
    "interrupts": ("raise KeyboardInterrupt", r"raised KeyboardInterrupt; raise an Exception there instead"),
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
    with pytest.raises(ValueError, match=r"reward_trial_s must be .* up to 86400 \(a day\), 0 for .*, got -1"):
        recipe_of(model, tmp_path, "pass", "reward_trial_s=-1")
    with pytest.raises(ValueError, match=r"up to 86400 \(a day\), .*, got 1e\+18"):
        recipe_of(model, tmp_path, "pass", "reward_trial_s=1e18")
    assert deciding(recipe.resolved()) == deciding(recipe_of(model, tmp_path, "pass").resolved())


IMPORTS = {
    "loops": ("while True: pass", r"loading reward .*mine.py:reward did not come back within 1 s; .* reward_trial_s"),
    "ends": ("import os; os._exit(0)", r"loading reward .*mine.py:reward ended its process \(exit code 0\)"),
    "interrupts": ("raise KeyboardInterrupt", r"loading reward .*mine.py:reward raised KeyboardInterrupt"),
    "raises": ("1 / 0", r"mine.py cannot be imported: ZeroDivisionError: division by zero; mend that file"),
    "exits": ("raise SystemExit(2)", r"mine.py cannot be imported: SystemExit: 2; mend that file"),
}


@pytest.mark.parametrize("what", IMPORTS)
def test_a_file_that_does_it_while_it_is_imported(what, model, tmp_path):
    """In the fork; here it is imported once it came back."""
    line, words = IMPORTS[what]
    recipe = recipe_of(model, tmp_path, "pass", "reward_trial_s=1")
    wrong = recipe_of(model, tmp_path, "pass", "reward_trial_s=1", "trainer.num_generations=0")
    (tmp_path / "mine.py").write_text(f"def reward(completions, **_):\n    pass\n\n\n{line}\n")
    problems = plan(wrong).problems
    assert [bool(re.search(words, problem)) for problem in problems].count(True) == 1, problems
    assert any("num_generations must be" in problem for problem in problems)
    with pytest.raises(ValueError, match=words):
        quietly(recipe)


def problems_of(recipe, group):
    """Of what is found before rows are loaded, where that is enough."""
    return plan(recipe).problems if group == "tables" else prepare(recipe, world_size=1).problems


OTHERS = {
    "controllers": ("controllers=[{{use: '{0}:name'}}]", "loading controller"),
    "inner controllers": (
        "controllers=[{{use: guard, args: {{knob: coef, controller: {{use: '{0}:name'}}}}}}]",
        "loading controller",
    ),
    "curriculum": ("curriculum={{use: '{0}:name'}}", "loading curriculum"),
    "environment": ("environment={{use: '{0}:name'}}", "loading environment"),
    "counts": ("eval={{task: sums, counts: {{words: '{0}:name'}}}}", "loading count"),
    "tables": ("data={{task: twenty_questions, train_size: 4, args: {{tables: 'loaded:{0}:name'}}}}", "loading table"),
}


@pytest.mark.parametrize("group", OTHERS)
@pytest.mark.parametrize(
    ("line", "words"), [("while True: pass", "did not come back within 0.5 s"), ("import os; os._exit(0)", "ended its")]
)
def test_other_files_of_the_users_are_loaded_in_a_fork_first(group, line, words, model, tmp_path):
    (tmp_path / "theirs.py").write_text(f"class name: pass\n\n{line}\n")
    override, what = OTHERS[group]
    recipe = short_recipe(model, tmp_path / "run", override.format(tmp_path / "theirs.py"), "reward_trial_s=0.5")
    found = [problem for problem in problems_of(recipe, group) if words in problem]
    assert len(found) == 1, found
    assert f"{what} {tmp_path}/theirs.py:name " in found[0]


@pytest.mark.parametrize("group", OTHERS)
@pytest.mark.parametrize("line", ["raise SystemExit(2)", "class Mine(KeyboardInterrupt): pass\nraise Mine"])
def test_other_files_that_raise_what_is_no_exception_are_named_even_without_a_trial(group, line, model, tmp_path):
    (tmp_path / "theirs.py").write_text(f"class name: pass\n\n{line}\n")
    override, _ = OTHERS[group]
    recipe = short_recipe(model, tmp_path / "run", override.format(tmp_path / "theirs.py"), "reward_trial_s=0")
    assert any(re.search(r"theirs.py cannot be imported: (SystemExit: 2|Mine)", p) for p in problems_of(recipe, group))


@pytest.mark.parametrize("stop", ["SystemExit(2)", "RuntimeError('no')", "GeneratorExit"])
def test_a_class_that_raises_while_it_is_made_is_named(stop, model, tmp_path):
    """As a reward, a controller, an environment."""
    (tmp_path / "theirs.py").write_text(
        f"class Name:\n    def __init__(self):\n        raise {stop}\n    reset = print\n"
    )
    use = f"{{use: '{tmp_path}/theirs.py:Name'}}"
    for override in (f"rewards=[{use}]", f"controllers=[{use}]", f"environment={use}"):
        problems = prepare(short_recipe(model, tmp_path / "run", override, "reward_trial_s=0")).problems
        assert any(re.search(r"making .*theirs.py:Name'? raised (Sys|Run|Gen)", p) for p in problems), problems


def test_an_environment_that_never_opens_its_first_row_is_named(model, tmp_path):
    (tmp_path / "theirs.py").write_text("class Slow:\n    def reset(self, **row):\n        while True: pass\n")
    recipe = short_recipe(
        model,
        tmp_path / "run",
        f"environment={{use: '{tmp_path}/theirs.py:Slow'}}",
        "data={task: twenty_questions, train_size: 4}",
        "reward_trial_s=0.5",
    )
    problems = plan(recipe).problems
    assert any("opening the task's first row did not come back within 0.5 s" in p for p in problems), problems


def test_apart_tells_whatever_is_raised():
    for stop, kind in ((KeyboardInterrupt, "KeyboardInterrupt"), (GeneratorExit, "GeneratorExit")):
        with pytest.raises(ValueError, match=f"it raised {kind}"):
            apart(5, lambda stop=stop: _raise(stop()), "it")
    with pytest.raises(ValueError, match="it: TwoArguments: a and b"):
        apart(5, lambda: _raise(TwoArguments("a", "b")), "it")


class TwoArguments(Exception):
    """Can be sent and not received."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def test_apart_where_the_kernel_gives_no_descriptor_of_a_process(monkeypatch):
    def forbidden(pid):
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    assert apart(5, lambda: 1, "it") == 1
    with pytest.raises(NotBack, match=r"ended its process \(exit code 3\)"):
        apart(20, lambda: os._exit(3), "it")
    with pytest.raises(NotBack, match=r"did not come back within 0.2 s"):
        apart(0.2, lambda: time.sleep(60), "it")


def test_the_fork_dies_with_a_killed_parent(tmp_path):
    note = tmp_path / "fork"

    def work():
        note.write_text(str(os.getpid()))
        time.sleep(60)

    if (parent := os.fork()) == 0:
        apart(60, work, "it")
        os._exit(0)
    _until(lambda: note.exists() and note.read_text(), 20)
    fork = int(note.read_text())
    assert _lives(fork)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _until(lambda: not _lives(fork), 5)
    assert not _lives(fork)


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
    _until(lambda: not _lives(child), 5)
    assert not _lives(child)


def _until(found, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not found():
        time.sleep(0.05)


def _raise(error):
    raise error


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
