"""Countdown, asked in a line: `9,2,2->16:` wants an expression of 9, 2 and 2, each once, that is 16.

The problems are those of reasoning-gym's `countdown`; every one has a solution, and the one it was made from is the
row's `answer`. Any expression with the target is right (`entrl.verify.countdown`). The numbers without their order and
the target decide the side of the split. The level is how many numbers there are.
"""

from typing import Any

from entrl.tasks.reasoning_gym_rows import distinct_items
from entrl.tasks.rows import Mode, Row, digest, short_prompt, verifier_json
from entrl.tasks.traces import THINK_CLOSE, THINK_OPEN
from entrl.traces.steps import BACK


def countdown_rows(
    *,
    split: str,
    size: int,
    seed: int,
    min_numbers: int = 3,
    max_numbers: int = 3,
    min_value: int = 1,
    max_value: int = 20,
    min_target: int = 5,
    max_target: int = 99,
    system: str = "",
    mode: Mode = "auto",
) -> list[Row]:
    """Rows of numbers from min_value to max_value; the options are reasoning-gym's.

    system: "" asks in plain strings; else chat messages, this one first. mode: `fast` ends the prompt with
    `<think></think>`, `slow` with `<think>`, `auto` with neither.
    """
    config = {
        "min_numbers": min_numbers,
        "max_numbers": max_numbers,
        "min_value": min_value,
        "max_value": max_value,
        "min_target": min_target,
        "max_target": max_target,
    }
    items = distinct_items("countdown", config, split=split, size=size, seed=seed, key=problem_key)
    return [_row(item, system, mode) for item, _ in items]


def backtrack_count(text: str) -> int:
    """Steps taken back in a completion, of Countdown or Sudoku, well formed or not: for `eval.counts`.

    The thinking is what comes before the first closing tag, all of the text where there is none.
    """
    return text.partition(THINK_CLOSE)[0].replace(THINK_OPEN, "").count(BACK)


def problem_key(item: dict[str, Any]) -> str:
    """The text whose hash decides the side of the split."""
    facts = item["metadata"]
    return f"countdown/{','.join(map(str, sorted(facts['numbers'])))}->{facts['target']}"


def _row(item: dict[str, Any], system: str, mode: Mode) -> Row:
    numbers, target = item["metadata"]["numbers"], item["metadata"]["target"]
    return Row(
        prompt=short_prompt(f"{','.join(map(str, numbers))}->{target}:", system=system, mode=mode),
        answer=item["answer"].replace(" ", ""),
        verifier=verifier_json("countdown", numbers=numbers, target=target),
        problem_id=f"countdown/{digest(problem_key(item)):016x}",
        level=str(len(numbers)),
    )
