"""The tasks `countdown` and `sudoku`: problems asked in a line."""

import json
import re

import pytest
from entrl_rewards.accuracy import reward

from entrl.evaluation.scoring import tags_of
from entrl.evaluation.writing import encode
from entrl.maths.phases import answer_text
from entrl.tasks import load_task
from entrl.tasks.countdown import backtrack_count
from entrl.tasks.reasoning_gym_rows import create
from entrl.tasks.rows import digest
from entrl_lab.nursery.tokenizer import character_tokenizer

NINE = {"task": "sudoku", "side": 9, "min_empty": 20, "max_empty": 25}


@pytest.mark.parametrize("task", ["countdown", "sudoku", NINE])
def test_golds_are_right_and_boards_are_asked_as_they_are_judged(task):
    rows = load_task(task, size=4 if task is NINE else 30)
    assert reward.score(rows["answer"], rows["answer"], rows["verifier"]) == [1.0] * len(rows)
    assert len(set(rows["problem_id"])) == len(rows)
    for row in rows:
        spec = json.loads(row["verifier"])
        if spec["kind"] == "countdown":
            numbers, target = re.fullmatch(r"([\d,]+)->(\d+):", row["prompt"]).groups()
            assert [int(n) for n in numbers.split(",")] == spec["numbers"]
            assert (int(target), row["level"]) == (spec["target"], str(len(spec["numbers"])))
        else:
            side = len(spec["puzzle"])
            asked = [[0 if c == "_" else int(c) for c in line] for line in row["prompt"].rstrip(":").split("/")]
            assert asked == spec["puzzle"]
            assert len(asked) == side == (9 if task is NINE else 4)
            assert row["level"] == str(row["prompt"].count("_"))


def test_the_sides_share_no_board_and_more_rows_begin_with_the_same():
    narrow = {"task": "countdown", "max_value": 4, "min_target": 5, "max_target": 12}
    train, test = (load_task(narrow, split=side, size=8, seed=s) for side, s in (("train", 0), ("test", 3)))
    boards = [{board(row) for row in rows} for rows in (train, test)]
    assert not boards[0] & boards[1]
    assert [len(one) for one in boards] == [8, 8]  # whatever order the numbers stand in
    assert load_task(narrow, size=5)["prompt"] == train["prompt"][:5]


def board(row) -> tuple[tuple[int, ...], int]:
    spec = json.loads(row["verifier"])
    return tuple(sorted(spec["numbers"])), spec["target"]


def test_a_generator_that_gives_up_says_so():
    with pytest.raises(ValueError, match=r"'countdown' makes no problem with .*Failed to generate.*; widen its config"):
        load_task({"task": "countdown", "min_numbers": 2, "max_numbers": 2, "max_value": 2, "min_target": 40}, size=1)


def test_an_item_that_the_generator_gives_up_is_left_out():
    """Three numbers up to 20 that make 2,000 to 2,300: a hundred attempts, which an item takes, often fail."""
    rare = {"min_numbers": 3, "max_numbers": 3, "max_value": 20, "min_target": 2000, "max_target": 2300}
    dataset = create("countdown", {**rare, "seed": digest("countdown/0") % 2**30, "size": 1})
    with pytest.raises(ValueError, match="Failed to generate"):
        dataset[0]
    rows = load_task({"task": "countdown", **rare}, size=1)
    assert 2000 <= json.loads(rows[0]["verifier"])["target"] <= 2300


@pytest.mark.parametrize(("mode", "ending"), [("auto", ""), ("slow", "<think>"), ("fast", "<think></think>")])
def test_a_mode_ends_the_prompt_and_the_answer_is_found_behind_it(mode, ending):
    """What an evaluation takes for the answer of a completion that follows such a prompt."""
    (row,) = load_task({"task": "countdown", "mode": mode}, size=1)
    plain = load_task("countdown", size=1)[0]
    assert row["prompt"] == plain["prompt"] + ending
    assert row["problem_id"] == plain["problem_id"]
    tokenizer = character_tokenizer()
    completion = {"auto": "<think>1</think>", "slow": "1+1=2</think>", "fast": ""}[mode] + row["answer"]
    ids = tokenizer(completion)["input_ids"]
    prompt_ids = encode(tokenizer, row["prompt"], {})
    tags = tags_of(tokenizer, "<think>", "</think>")
    assert answer_text(ids, tags, tokenizer, prompt_ids=prompt_ids) == row["answer"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<think>7+5=12,12+3=15<,12*3=36<<,7*3=21,21+5=26</think>7*3+5", 3),
        ("7+5=12<<</think><answer>12</answer>", 2),  # the prompt opened the thinking
        ("<think></think>7<8", 0),
        ("<think>7+5=12<", 1),
        ("", 0),
    ],
)
def test_backtracks_of_a_completion(text, count):
    assert backtrack_count(text) == count


def test_a_system_prompt_makes_messages():
    (row,) = load_task({"task": "sudoku", "system": "Fill the grid."}, size=1)
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert row["prompt"][1]["content"] == load_task("sudoku", size=1)[0]["prompt"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": "sudoku", "side": 6}, r"side must be 4 or 9, got 6"),
        ({"task": "sudoku", "min_empty": 14}, r"refuses .*min_empty must be between 0 and 12"),
        ({"task": "countdown", "mode": "slow", "system": "Think."}, r"leave system or mode out"),
        ({"task": "countdown", "mode": "quick"}, r"mode must be one of auto, slow, fast"),
        ({"task": "countdown", "number": 3}, r"no option 'number'. Did you mean '\w+_number"),
        ({"task": "countdown", "min_numbers": 1}, r"min_numbers must be greater than 1"),
    ],
)
def test_options_that_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        load_task(spec, size=1)
