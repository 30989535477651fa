"""Scores for the datasets of reasoning-gym whose own scorer runs text as code, or pays for anything at all.

Same scores as reasoning-gym's on its own answers and on ordinary wrong ones, from text that is read without running it
(`entrl.verify.gym_expressions`). A grader gets the answer, the entry, and the config of its dataset.

Source:  reasoning-gym 0.1.25, `score_answer` of each dataset
Differs: lists are literals: `[1] * 3` or a comprehension is not worked out
         `x* *2`, which sympy's parser joins, is no power
         countdown wants exactly the target (there: within 1e-5) from digits, + - * / and ( ) alone: `0x11 # 3 4` is 17
         to a parser and holds 3 and 4
         puzzle24 wants exactly 24 from the row's own numbers (there: anything from 24 to 25 of four numbers in range)
         the integrals read elementary functions only (`Integral(...)` is the question again and scores 0) and compare
         numbers at eight points (there: sympy's simplify, which needs 40 s for cos(8*x - 3)**4/4 and calls it wrong)
         number_sorting takes finite numbers (there: a list of NaN is right)
         coin_flip's partial credit is the common start over the longer text (there: the shorter, so "0" is right)
         complex_arithmetic takes finite numbers (there: `nan` is right)
         game_of_life_halting wants the word True or False (there: any text is right)
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from entrl.verify.countdown import makes_target
from entrl.verify.gym_expressions import Unreadable, exact, integer, literal, symbolic

Grader = Callable[[str, Mapping[str, Any], Any], float]
UNREADABLE = (Unreadable, ValueError, TypeError, ArithmeticError, RecursionError)  # an answer that is none: wrong


def spiral_matrix(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the numbers in a row, 0.1 for the right ones as a list."""
    gold = entry["answer"].strip()
    return _as_list(text.strip(), gold, lambda items: " ".join(map(str, items)), [gold], 0.1)


def string_insertion(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the string, 0.1 for its characters as a list."""
    return _as_list(text, entry["answer"], "".join, [entry["answer"]], 0.1)


def binary_matrix(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the rows of numbers, 0.1 for a list of lists."""
    return _as_list(text, entry["answer"], _rows, [entry["answer"]], 0.1)


def n_queens(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for a board that is a solution, 0.5 for one written as a list of lists."""
    boards = entry["metadata"]["valid_answers"]
    return 1.0 if text in boards else _as_list(text, None, _rows, boards, 0.5)


def _rows(board: Any) -> str:
    return "\n".join(" ".join(map(str, row)) for row in board)


def _as_list(text: str, gold: str | None, render: Callable[[Any], str], right: Any, credit: float) -> float:
    if text == gold:
        return 1.0
    try:
        return credit if render(literal(text)) in right else 0.0
    except UNREADABLE:
        return 0.0


def countdown(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the target from exactly the row's numbers, 0.05 for other arithmetic, 0.01 for anything else."""
    if makes_target(text, entry["metadata"]["numbers"], entry["metadata"]["target"], python=True):
        return 1.0
    try:
        exact(text)
    except UNREADABLE:
        return 0.01
    return 0.05


def puzzle24(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for 24 from exactly the row's numbers, else 0.01."""
    return 1.0 if makes_target(text, entry["metadata"]["numbers"], 24, python=True) else 0.01


def integration(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 when the derivative of the answer is the integrand."""
    import sympy

    try:
        x = sympy.Symbol(entry["metadata"]["variable"])
        names = {str(x): x}
        slope = sympy.diff(symbolic(text, names), x)
        return float(_equal_at_points(slope, symbolic(entry["metadata"]["integrand"], names)))
    except (*UNREADABLE, AttributeError, NotImplementedError):
        return 0.0


def _equal_at_points(one: Any, other: Any) -> bool:
    """Whether two elementary functions agree, to 12 digits, wherever they are defined among eight odd points."""
    names, agreed = sorted(one.free_symbols | other.free_symbols, key=str), 0
    for point in range(8):
        at = {name: (37 + 61 * point + 17 * i) / 100 * (-1) ** point for i, name in enumerate(names)}
        try:
            a, b = (complex(side.evalf(30, subs=at)) for side in (one, other))
        except (TypeError, OverflowError):  # not defined here, or beyond a double
            continue
        if not abs(a - b) <= 1e-12 * max(abs(a), abs(b), 1.0):
            return False
        agreed += math.isfinite(abs(a))
    return agreed >= 3


def polynomial_multiplication(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the same polynomial, multiplied out."""
    try:
        return float(symbolic(text) == symbolic(entry["answer"]))
    except (*UNREADABLE, AttributeError):
        return 0.0


def number_sorting(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for a JSON list in the order asked for, each number within 1 of the answer's."""
    try:
        found = json.loads(text.replace("'", '"'))
        if not isinstance(found, list):
            return 0.0
        numbers, gold = ([float(number) for number in numbers] for numbers in (found, literal(entry["answer"])))
    except UNREADABLE:
        return 0.0
    ordered = sorted(numbers, reverse=entry["metadata"]["direction"] != "ascending")
    near = len(numbers) == len(gold) and all(abs(a - b) <= 1 for a, b in zip(numbers, gold, strict=True))
    return float(near and numbers == ordered)


def bitwise_arithmetic(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the value of the row's problem, in any base Python writes."""
    try:
        return float(int(text, 0) == integer(entry["metadata"]["problem"]))
    except UNREADABLE:
        return 0.0


def coin_flip(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 within 1e-4 of the probability, else the share of the leading characters that agree."""
    try:
        found, gold = float(exact(text.replace(",", ""))), float(entry["answer"])
    except UNREADABLE:
        return 0.0
    if abs(found - gold) <= 1e-4:
        return 1.0
    one, other = f"{found:.10g}", f"{gold:.10g}"
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / max(len(one), len(other))


def complex_arithmetic(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """exp(-distance) to the result; `i` or `j` with a coefficient written out or left away."""
    bare = text.replace(" ", "").lower().replace("i", "j").strip("()")
    bare = re.sub(r"(?<![\d.])j", "1j", bare)
    try:
        distance = abs(complex(bare) - complex(*entry["metadata"]["result"]))
    except (ValueError, OverflowError):
        return 0.0
    return math.exp(-distance) if math.isfinite(distance) else 0.0


def game_of_life_halting(text: str, entry: Mapping[str, Any], config: Any) -> float:
    """1 for the right word, True or False."""
    return float(text.strip().lower() == str(entry["answer"]).lower())


GRADERS: dict[str, Grader] = {
    "spiral_matrix": spiral_matrix,
    "string_insertion": string_insertion,
    "binary_matrix": binary_matrix,
    "n_queens": n_queens,
    "countdown": countdown,
    "puzzle24": puzzle24,
    "simple_integration": integration,
    "intermediate_integration": integration,
    "polynomial_multiplication": polynomial_multiplication,
    "number_sorting": number_sorting,
    "bitwise_arithmetic": bitwise_arithmetic,
    "coin_flip": coin_flip,
    "complex_arithmetic": complex_arithmetic,
    "game_of_life_halting": game_of_life_halting,
}
