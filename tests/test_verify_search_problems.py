"""The verifiers of Countdown and Sudoku, attacked, and compared with slow twins that were written apart from them."""

import random
import re
from fractions import Fraction
from functools import cache

import pytest
from entrl_rewards.accuracy import reward
from reasoning_gym import create_dataset

from entrl.tasks.rows import verifier_json
from entrl.verify.countdown import makes_target
from entrl.verify.gym import reasoning_gym_score
from entrl.verify.judge import check, read_verifier
from entrl.verify.sudoku import check_puzzle, fills_puzzle, read_grid

# --- Countdown ----------------------------------------------------------------------------------------------------


def slow_value(text: str) -> tuple[Fraction, list[int]] | None:
    """Value and numbers of an expression, by hand: a character at a time, one rule of the grammar a function."""
    place, numbers = 0, []

    def spaces():
        nonlocal place
        while place < len(text) and text[place] == " ":
            place += 1

    def at(chars: str) -> str:
        spaces()
        return text[place] if place < len(text) and text[place] in chars else ""

    def take() -> str:
        nonlocal place
        place += 1
        return text[place - 1]

    def number() -> Fraction:
        digits = ""
        spaces()
        while place < len(text) and text[place] in "0123456789":
            digits += take()
        if not digits or (digits[0] == "0" and digits.strip("0")):  # Python has no 07, and 00 is 0
            raise SyntaxError
        numbers.append(int(digits))
        return Fraction(int(digits))

    def factor() -> Fraction:
        if at("+-"):
            return factor() if take() == "+" else -factor()
        if at("("):
            take()
            inner = sum_()
            if not at(")"):
                raise SyntaxError
            take()
            return inner
        return number()

    def product() -> Fraction:
        value = factor()
        while at("*/"):
            value = value * factor() if take() == "*" else value / factor()
        return value

    def sum_() -> Fraction:
        value = product()
        while at("+-"):
            value = value + product() if take() == "+" else value - product()
        return value

    try:
        value = sum_()
        spaces()
        return (value, numbers) if place == len(text) else None
    except (SyntaxError, ZeroDivisionError):
        return None


def slow_makes_target(text: str, numbers: list[int], target: int) -> bool:
    found = slow_value(text)
    return found is not None and found[0] == target and sorted(found[1]) == sorted(numbers)


def expression(rng: random.Random, numbers: list[int]) -> str:
    """A random expression of all the numbers, right or not, with spaces and signs here and there."""
    parts = [str(number) for number in rng.sample(numbers, len(numbers))]
    while len(parts) > 1:
        right, left = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
        joined = rng.choice(["", " "]).join([left, rng.choice("+-*/"), right])
        parts.append(rng.choice([joined, f"({joined})", f"({joined})", f"-({joined})"]))
    return parts[0]


def mutated(rng: random.Random, text: str, letters: str) -> str:
    for _ in range(rng.randrange(1, 4)):
        place, char = rng.randrange(len(text) + 1), rng.choice(letters)
        text = text[:place] + rng.choice([char, "", char + text[place : place + 1]]) + text[place + 1 :]
    return text


LETTERS = "0123456789+-*/() .,_#ex=\n\t٣１²×"


def countdown_case(rng: random.Random) -> tuple[str, list[int], int]:
    numbers = [rng.randrange(0, 13) for _ in range(rng.randrange(2, 5))]
    text = expression(rng, numbers)
    value = slow_value(text)
    right = value is not None and value[0].denominator == 1
    target = int(value[0]) if right and rng.random() < 0.7 else rng.randrange(1, 60)
    kind = rng.random()
    if kind < 0.5:
        return text, numbers, target
    if kind < 0.85:
        return mutated(rng, text, LETTERS), numbers, target
    return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(25))), numbers, target


def fuzz_countdown(cases: int, seed: int) -> int:
    rng, right = random.Random(seed), 0
    for _ in range(cases):
        text, numbers, target = countdown_case(rng)
        verdict = makes_target(text, numbers, target)
        assert verdict == slow_makes_target(text, numbers, target), (text, numbers, target)
        gym = reasoning_gym_score(text, gym_spec(numbers, target))
        assert gym < 0.99 or right_in_python(text, numbers, target), (text, numbers, target)
        right += verdict
    return right


def gym_spec(numbers: list[int], target: int) -> dict:
    return {"dataset": "countdown", "entry": {"answer": "1", "metadata": {"numbers": numbers, "target": target}}}


def right_in_python(text: str, numbers: list[int], target: int) -> bool:
    """reasoning-gym's own reading lets `//` and `**` stand; nothing but plain arithmetic gets as far as here."""
    if not set(text.strip()) <= set("0123456789+-*/() "):
        return False
    value = eval(re.sub("[0-9]+", r"Fraction(\g<0>)", text), {"Fraction": Fraction})
    return sorted(map(int, re.findall("[0-9]+", text))) == sorted(numbers) and value == target


def test_fuzzed_countdown_answers():
    assert fuzz_countdown(3_000, seed=1) > 500  # right ones are among them


@pytest.mark.slow
def test_a_hundred_thousand_countdown_answers():
    assert fuzz_countdown(100_000, seed=2) > 20_000


# Every one of these has been right somewhere: in reasoning-gym, in sympy, in Python, or to a regular expression.
ATTACKS = [
    "0x11 # 3 4", "3*4+0x5", "3*4+0b101", "3*4+5_0/10", "17", "17.0", "3.4*5", "3 4", "34/2", "1e1+3+4", "+17",
    "3*4+5", "3*4+'5'", "(3,4)", "[3,4]", "3*4 if 0 else 17", "__import__('os').system('true') or 17", "3+4=17",
    "lambda: 17", "3;4", "3*4+True+4", "3+4+10", "3**4", "3//4+17", "4!-3-4", "3*4+٥", "３*4+5", "3*4+5\n", "3\n4",
    "3*4\x00+5", "(" * 500 + "3" + ")" * 500, "-" * 900 + "3", "9" * 999, "9**9**9**9", "3^4", "3×4+5", "", " ", "()",
    "3*4+5 (using 3 and 4)", "target", "nan", "inf", "3 + 4 # = 17", "3/0+4", "(3-3)*4/0", "3*4+5*1e0",
]  # fmt: skip


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_on_countdown(text):
    assert not makes_target(text, [3, 4], 17)
    assert check("countdown", text, "", {"numbers": [3, 4], "target": 17}) == 0.0
    assert reasoning_gym_score(text, gym_spec([3, 4], 17)) < 0.99
    assert reasoning_gym_score(text, {**gym_spec([3, 4], 17), "dataset": "puzzle24"}) < 0.99


@pytest.mark.parametrize("text", ["0x18 # 6 4 1 1", "2.4*10 # 6 4 1 1", "6*4*1*1.0", "0x6*4*1*1", "6_*4*1*1"])
def test_numbers_that_hid_from_the_graders_of_reasoning_gym(text):
    entry = {"answer": "6*4*1*1", "metadata": {"numbers": [6, 4, 1, 1], "target": 24}}
    for dataset in ("countdown", "puzzle24"):
        assert reasoning_gym_score("6*4*1*1", {"dataset": dataset, "entry": entry}) == 1.0
        assert reasoning_gym_score(text, {"dataset": dataset, "entry": entry}) < 0.1


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("4**2", [4, 2], 16),
        ("7//2", [7, 2], 3),
        ("2.5*10", [2, 5, 10], 25),
        ("1_2+3", [1, 2, 3], 15),
        ("2e1+4", [2, 1, 4], 24),
        ("3*4#", [3, 4], 12),
        ("3*4\n", [3, 4], 12),
    ],
)
def test_the_right_value_in_a_spelling_that_is_not_asked_for(text, numbers, target):
    assert not makes_target(text, numbers, target)
    assert not slow_makes_target(text, numbers, target)


def test_a_value_near_the_target_is_not_the_target():
    # 998 + 2/250 = 998.008; within reasoning-gym's 1e-5 of the target (0.00998), and not it
    assert (
        create_dataset("countdown", seed=0, size=1).score_answer("998+2/250", gym_spec([998, 2, 250], 998)["entry"])
        == 1
    )
    assert not makes_target("998+2/250", [998, 2, 250], 998)
    assert reasoning_gym_score("998+2/250", gym_spec([998, 2, 250], 998)) < 0.99


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("3*4+5", [5, 3, 4], 17),
        (" ( 3 * 4 ) + 5 ", [5, 3, 4], 17),
        ("-(3-4*5)", [5, 3, 4], 17),
        ("5/(3/9)", [9, 3, 5], 15),  # a third on the way
        ("2+2", [2, 2], 4),
        ("5", [5], 5),
    ],
)
def test_answers_that_are_right(text, numbers, target):
    assert makes_target(text, numbers, target)
    assert slow_makes_target(text, numbers, target)


@pytest.mark.parametrize("text", ["2+2*1", "2", "4", "2+2+0", "2+1+1"])
def test_every_number_once_and_no_other(text):
    assert not makes_target(text, [2, 2], 4)


def test_prompt_and_checker_of_reasoning_gym_agree():
    """The checker wants every number; a prompt that says "some or all" would not."""
    for entry in create_dataset("countdown", seed=5, size=20):
        assert "all the numbers" in entry["question"] or "all of these numbers" in entry["question"]
        facts = entry["metadata"]
        assert makes_target(entry["answer"], facts["numbers"], facts["target"])
        assert not makes_target(entry["answer"], [*facts["numbers"], 1], facts["target"])


# --- Sudoku -------------------------------------------------------------------------------------------------------


@cache
def sudokus() -> list[tuple[list[list[int]], str]]:
    """(puzzle, its only solution in reasoning-gym's form)."""
    sets = [create_dataset("mini_sudoku", seed=3, size=20), create_dataset("sudoku", seed=3, size=4, max_empty=30)]
    return [(entry["metadata"]["puzzle"], entry["answer"]) for dataset in sets for entry in dataset]


def slow_fills_puzzle(text: str, puzzle: list[list[int]]) -> bool:
    """A character at a time; every digit against every other that it may not equal, and against the givens."""
    side, rows, row, before = len(puzzle), [], [], ""
    for char in text.strip() + "/":
        if char in "/\n":
            rows.append(row)
            row = []
        elif char in "123456789":
            if before and before not in "/\n " and not before.isdigit():
                return False
            row.append(int(char))
        elif char != " ":
            return False
        elif before == " " and 0 < len(row) < side:
            return False  # two spaces between digits
        before = char
    if len(rows) != side or any(len(row) != side for row in rows):
        return False
    box = {4: 2, 9: 3}[side]
    for i in range(side):
        for j in range(side):
            if not 1 <= rows[i][j] <= side or puzzle[i][j] not in (0, rows[i][j]):
                return False
            for k in range(side):
                for m in range(side):
                    meets = i == k or j == m or (i // box, j // box) == (k // box, m // box)
                    if (i, j) != (k, m) and meets and rows[i][j] == rows[k][m]:
                        return False
    return True


def sudoku_case(rng: random.Random) -> tuple[str, list[list[int]]]:
    puzzle, answer = rng.choice(sudokus()[:20] if rng.random() < 0.97 else sudokus())
    text = answer if rng.random() < 0.6 else rng.choice(sudokus())[1]
    text = rng.choice([text, text.replace("\n", "/"), text.replace(" ", ""), text.replace(" ", "").replace("\n", "/")])
    if rng.random() < 0.6:
        text = mutated(rng, text, "12349_/ \n\tx٣１0,")
    if rng.random() < 0.1:
        text = rng.choice([text + text, " " + text, "\n" + text + "\n", text[:-1], "|" + text, text[::-1]])
    return text, puzzle


def fuzz_sudoku(cases: int, seed: int) -> int:
    rng, right = random.Random(seed), 0
    for _ in range(cases):
        text, puzzle = sudoku_case(rng)
        verdict = fills_puzzle(text, puzzle)
        assert verdict == slow_fills_puzzle(text, puzzle), (text, puzzle)
        right += verdict
    return right


def test_fuzzed_sudoku_answers():
    assert fuzz_sudoku(3_000, seed=1) > 300


@pytest.mark.slow
def test_a_hundred_thousand_sudoku_answers():
    assert fuzz_sudoku(100_000, seed=2) > 10_000


@pytest.mark.parametrize("name", ["mini_sudoku", "sudoku"])
def test_the_scorers_of_reasoning_gym_pay_for_solutions_alone(name):
    dataset, rng = create_dataset(name, seed=6, size=3), random.Random(1)
    for entry in dataset:
        spec = {"dataset": name, "entry": entry}
        assert reasoning_gym_score(entry["answer"], spec) == 1.0
        for _ in range(200):
            text = mutated(rng, entry["answer"], "123456789_/ \n\tx٣１0,")
            assert reasoning_gym_score(text, spec) < 0.99 or fills_puzzle(text.strip(), entry["metadata"]["puzzle"])


TWO_SOLUTIONS = [[0, 0, 3, 4], [3, 4, 0, 0], [0, 0, 4, 3], [4, 3, 0, 0]]


@pytest.mark.parametrize("text", ["1234/3412/2143/4321", "2134/3421/1243/4312", "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1"])
def test_a_puzzle_may_have_several_right_answers(text):
    assert fills_puzzle(text, TWO_SOLUTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "1234/3412/2143/4312",  # a column twice
        "1243/3412/2134/4321",  # a given changed
        "1234/3412/2143",
        "1234/3412/2143/4321/",
        "1234/3412/2143/4321/1234",
        "1234341221434321",
        "The grid: 1234/3412/2143/4321",
        "__34/34__/__43/43__",
        "1234/3412/2143/432١",
        "1  2 3 4/3412/2143/4321",
        "1234/3412/2143/4321" * 1000,
        "",
        "\x00",
    ],
)
def test_attacks_on_sudoku(text):
    assert not fills_puzzle(text, TWO_SOLUTIONS)
    assert not slow_fills_puzzle(text, TWO_SOLUTIONS)


def test_rows_and_columns_are_not_enough():
    square = "1234/2143/3412/4321"  # 1 2 / 2 1 in the first box
    assert not fills_puzzle(square, [[0] * 4] * 4)
    assert not slow_fills_puzzle(square, [[0] * 4] * 4)


def test_what_is_read_as_a_grid():
    assert read_grid(" 1 2 3 4 \n3412/2143/ 4321", 4) == [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
    assert read_grid("1235/3412/2143/4321", 4) is None


# --- as rewards ---------------------------------------------------------------------------------------------------


def test_through_the_reward():
    column = verifier_json("countdown", numbers=[3, 4, 5], target=17)
    grid = verifier_json("sudoku", puzzle=TWO_SOLUTIONS)
    texts = ["<think>3*4=12</think>3*4+5", "<think></think><answer> 3*4+5 </answer>", "<think>3*4+5</think>17", "3*4+5"]
    assert reward.score(texts, ["17"] * 4, [column] * 4) == [1.0, 1.0, 0.0, 1.0]
    texts = ["<think>?</think>1234/3412/2143/4321", "<think></think>1234/3412/2143/4312"]
    assert reward.score(texts, ["?"] * 2, [grid] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ('{"kind": "countdown", "numbers": [3, 4]}', r"row 7: kind 'countdown' needs .* \('target'\); .*load_task"),
        ('{"kind": "countdown", "numbers": ["3"], "target": 3}', r"numbers and target must be integers"),
        ('{"kind": "countdown", "numbers": 3, "target": 3}', r"row 7: kind 'countdown' needs"),
        ('{"kind": "sudoku"}', r"row 7: kind 'sudoku' needs .*4 or 9 rows of as many digits"),
        ('{"kind": "sudoku", "puzzle": [[1, 2], [3, 4]]}', r"4 or 9 rows"),
    ],
)
def test_rows_without_a_board(column, message):
    with pytest.raises(ValueError, match=message):
        read_verifier(column, 7)


@pytest.mark.parametrize(
    "puzzle", [[], [[0] * 4] * 3, [[0] * 4] * 3 + [[0, 0, 0, 5]], [[0] * 4] * 3 + [[0, 0, 0, True]]]
)
def test_what_is_no_puzzle(puzzle):
    with pytest.raises(ValueError, match=r"a Sudoku is 4 or 9 rows of as many digits"):
        check_puzzle(puzzle)
