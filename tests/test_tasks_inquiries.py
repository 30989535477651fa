"""Rows of twenty questions: prompts, targets, the split, options that make no sense."""

import numpy as np
import pytest

from entrl.environments import TwentyQuestions, find_table
from entrl.tasks import load_task


def test_rows_hold_what_reset_needs():
    games = load_task({"task": "twenty_questions", "rows": 8, "columns": 8}, size=20, seed=3)
    assert len(games) == 20
    for game in games:
        env = TwentyQuestions()
        env.reset(**game)
        assert env._target == game["answer"] == game["target"]
        text = game["prompt"][0]["content"]
        assert text.startswith("Find the hidden one. Ask about one attribute at a time, then submit its name.\n\n")
        lines = dict(line.split(":") for line in text.split("\n\n")[1].splitlines())
        assert list(lines) == list(env._table.hypotheses)
        for name, values in zip(env._table.hypotheses, env._table.values, strict=True):
            true = [word for word, value in zip(env._table.questions, values, strict=True) if value]
            assert lines[name].split() == true
    assert load_task({"task": "twenty_questions", "rows": 8, "columns": 8}, size=5, seed=3)[4] == games[4]


def test_train_and_test_share_no_table():
    sides = [
        set(
            load_task({"task": "twenty_questions", "rows": 8, "columns": 8}, split=split, size=300, seed=seed)[
                "table_id"
            ]
        )
        for split in ("train", "test")
        for seed in (0, 1)
    ]
    assert not (sides[0] | sides[1]) & (sides[2] | sides[3])
    assert not sides[0] & sides[1], "other seeds, other tables"


def test_targets_are_spread_over_the_rows():
    games = load_task({"task": "twenty_questions", "tables": "animals"}, size=1000)
    counts = np.unique(games["target"], return_counts=True)[1]
    assert len(counts) == 32
    assert counts.max() < 70, "31 expected each"


def test_names_only_prompt_lists_attributes_and_names():
    game = load_task({"task": "twenty_questions", "tables": "animals", "show": "names"}, size=1)[0]
    text = game["prompt"][0]["content"]
    table = find_table("animals")
    assert text.endswith(f"Attributes: {' '.join(table.questions)}\nNames: {' '.join(table.hypotheses)}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"show": "all"}, "show must be 'table' or 'names'"),
        ({"user_noise": 2}, "user_noise must be in"),
        ({"max_questions": 0}, "max_questions must be >= 1"),
        ({"tables": "birds"}, "unknown table 'birds'"),
        ({"rows": 1000}, "rows must be in 1..320"),
        ({"row": 8}, "has no option 'row'"),
    ],
)
def test_task_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        load_task({"task": "twenty_questions", **options}, size=2)


def test_the_task_needs_a_size():
    with pytest.raises(ValueError, match="say how many"):
        load_task("twenty_questions")
