"""What errors of somebody else's code are printed as: one line, not too long, such as can be written."""

import contextlib
import json
import sys

import pytest

from entrl.cli.main import main
from entrl.errors import LONGEST, brief, said, told
from entrl.runs.plan import Plan
from entrl.runs.try_reward import Tried
from entrl.runs.wording import shown
from entrl.trainers.shared.rewards import RewardError, guarded


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Exits(Exception):
    def __str__(self):
        sys.exit(3)


class Odd(Exception):
    def __str__(self):
        return 5  # type: ignore[return-value]


def test_an_error_that_cannot_be_printed_is_named_by_its_kind():
    assert told(Silent()) == said(Silent()) == "Silent, whose message raised RuntimeError"
    assert told(Exits()) == "Exits, whose message raised SystemExit"
    assert told(Odd()) == "Odd, whose message raised TypeError"
    assert told(KeyError("answer")) == "KeyError: 'answer'"
    assert said(ValueError()) == told(ValueError("\n")) == "ValueError"


def test_on_one_line_and_not_too_long():
    assert brief("a\nready to train\u2028b\x85c") == "a ready to train b c"
    assert brief("x" * LONGEST) == "x" * LONGEST
    long = brief("x" * 3_000_000)
    assert long == "x" * LONGEST + " ... (3,000,000 characters)"
    assert brief("\n" * 8 * LONGEST + "end") == " ... (4,003 characters)"
    assert type(told(type("A\nready to train", (Exception,), {})())) is str
    assert "\n" not in told(type("A\nready to train", (Exception,), {})())


def test_lone_surrogates_are_written_out():
    assert told(ValueError("bad \ud800")) == r"ValueError: bad \ud800"
    assert said(ValueError("bad \ud800")) == r"bad \ud800"
    assert shown("row \udfff\u2028end") == r"row \udfff\u2028end"


class Number:
    def __float__(self):
        raise RuntimeError("no number")

    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize("error", [Silent(), Odd(), ValueError("bad \ud800\nready to train"), ValueError("x" * 10**6)])
def test_a_reward_that_raises_it(error):
    def reward(completions, **_):
        raise error

    (guard,) = guarded([reward])
    with pytest.raises(RewardError, match=r"reward 'reward' raised (Silent, whose|Odd, whose|ValueError: )") as raised:
        guard(prompts=[""], completions=[""])
    words = str(raised.value)
    words.encode()
    assert "\n" not in words
    assert len(words) < LONGEST + 100


def test_a_value_that_is_no_number_and_cannot_be_printed():
    (guard,) = guarded([lambda completions, **_: [Number()]])
    with pytest.raises(RewardError, match=r"returned a Number for row 0 of 1"):
        guard(prompts=[""], completions=[""])


def test_no_finding_takes_two_lines():
    forged = ["reward x raised\nready to train"]
    made = Plan(rows=[], problems=forged, warnings=forged, notes=forged, unchecked=forged)
    assert "\nready to train" not in made.render()
    assert "\nready" not in Tried(reward="r", file=None, completions=0, problems=forged, notes=forged).render()


def test_try_reward_prints_what_cannot_be_encoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def reward(completions, **_):\n    raise ValueError('bad \\ud800')\n")
    (tmp_path / "kept.jsonl").write_text(json.dumps({"prompt": "1", "completion": "2"}))
    with contextlib.redirect_stdout(open(tmp_path / "out", "w", encoding="utf-8")) as out, out:
        assert main(["try-reward", "mine.py", "--on", "kept.jsonl"]) == 1
        assert main(["try-reward", "mine.py", "--on", "kept.jsonl", "--json"]) == 1
    assert (tmp_path / "out").read_text().count(r"ud800") == 2
