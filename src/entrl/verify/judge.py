"""One check of one answer, by its kind; the kinds that can hang run in a child process of `entrl.verify.pool`."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from entrl.puzzles import KINDS as PUZZLE_KINDS
from entrl.puzzles import Judged, graph_of, judge, puzzle_of
from entrl.verify.answers import final_answer
from entrl.verify.choices import chosen_letter, gold_letter
from entrl.verify.code_tests import read_tests
from entrl.verify.countdown import makes_target
from entrl.verify.gym import reasoning_gym_score
from entrl.verify.gym_scorers import check_dataset
from entrl.verify.mathematics import gold_statement, math_score, quick_score
from entrl.verify.sudoku import check_puzzle, fills_puzzle

Kind = Literal["math", "reasoning_gym", "exact", "choice", "countdown", "sudoku", "puzzle", "graph_path", "code"]
INLINE = ("exact", "choice", "countdown", "sudoku", *PUZZLE_KINDS)  # cannot hang: no process needed
LETTERS = "ABCD"  # of kind choice, where a row names no others
KINDS = ("math", "reasoning_gym", *INLINE, "code")
IMPORTS = {"math": "math_verify", "reasoning_gym": "reasoning_gym"}  # loaded before an item's clock starts
# What a row of a file or of the hub may ask for: comparisons that run nothing, and programs in the sandbox.
FILE_KINDS = ("math", "exact", "choice", "code")
KIND_FIELDS = {"choice": ("letters",)}  # what such a row may give beside the kind
# Characters at the end of an answer part that are looked at, twice the gold where that is longer: the answer stands at
# the end, and the expressions below look for it with patterns whose time grows with the square of a run of spaces.
MAX_TEXT = 8_000
MAX_PUZZLE = 1_000_000  # the same of a list of moves, which is read in one pass: 65,535 moves of hanoi fit
CHECK = "entrl.verify.judge:check"  # what a child process is told to call


def check(kind: str, text: str, gold: str, spec: Mapping[str, Any]) -> float:
    """Graded score of one answer part; the last MAX_TEXT characters of it count. Not of programs, which run apart."""
    if kind == "code":
        raise ValueError("programs are judged by entrl_rewards.code, in the sandbox")
    if kind in PUZZLE_KINDS:
        return float(judged_plan(text, spec).solved)
    text = _end(text, gold)
    if kind == "math":
        return math_score(text, gold)
    if kind == "reasoning_gym":
        return reasoning_gym_score(final_answer(text), spec)
    if kind == "choice":
        letters = "".join(spec.get("letters", LETTERS))
        return float(chosen_letter(text, letters) == gold_letter(gold, letters))
    if kind == "countdown":
        return float(makes_target(final_answer(text), spec["numbers"], spec["target"]))
    if kind == "sudoku":
        return float(fills_puzzle(final_answer(text), spec["puzzle"]))
    return float(" ".join(final_answer(text).split()) == " ".join(gold.split()))


def judged_plan(text: str, spec: Mapping[str, Any]) -> Judged:
    """The verdict on one answer part to a puzzle or graph, with its error and the move at fault."""
    return judge(final_answer(text[-MAX_PUZZLE:]), spec)


def quick_check(kind: str, text: str, gold: str, spec: Mapping[str, Any]) -> float | None:
    """`check` where it is bounded and runs nothing of others, so that it needs no child process; else None."""
    if kind == "math":
        return quick_score(_end(text, gold), gold)
    return check(kind, text, gold, spec) if kind in INLINE else None


def _end(text: str, gold: str) -> str:
    return text[-max(MAX_TEXT, 2 * len(gold)) :]


def gold_problem(kind: str, gold: str, spec: Mapping[str, Any]) -> str | None:
    """Why no answer can be verified against the gold of a row of this kind; None for a row in order."""
    try:
        if kind == "math":
            gold_statement(gold)
        elif kind == "choice":
            gold_letter(gold, "".join(spec.get("letters", LETTERS)))
        elif kind == "code":
            read_tests(gold)
        elif kind in PUZZLE_KINDS and not judge(gold, spec).solved and gold:  # "": judged without one
            return f"the plan in it does not solve the puzzle: {judge(gold, spec).why}"
        elif kind == "exact" and not gold.strip():
            return "the gold answer is empty; give it a value or drop the row"
    except ValueError as error:
        return str(error)
    return None


def read_verifier(column: Any, row: int, *, default: str = "auto") -> tuple[str, dict[str, Any]]:
    """(kind, options) of a row's `verifier` column; `default` other than auto overrules the column's kind."""
    try:
        spec = json.loads(column) if isinstance(column, str) else dict(column or {})
    except ValueError:
        why = "is empty, as of a game, which its environment judges" if not column else f"is no JSON: {column[:40]!r}"
        raise ValueError(
            f"row {row}: the column 'verifier' {why}; take another task, or leave the rewards out that judge answers"
        ) from None
    kind = default if default != "auto" else spec.get("kind", "math")
    if kind not in KINDS:
        raise ValueError(f"row {row}: verifier kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "reasoning_gym" and not ("dataset" in spec and ("entry" in spec or "index" in spec)):
        raise TypeError(
            f"row {row}: kind 'reasoning_gym' needs the dataset column 'verifier' with the keys "
            f"'dataset' and 'entry', got {sorted(spec) or 'none'}; entrl.tasks.load_task writes it"
        )
    if kind == "reasoning_gym":
        check_dataset(str(spec["dataset"]))
    if kind == "choice":
        _check_letters(spec.get("letters", LETTERS), row)
    if kind in BOARDS:
        try:
            BOARDS[kind](spec)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"row {row}: kind {kind!r} needs the dataset column 'verifier' with its problem ({error}); "
                "entrl.tasks.load_task writes it"
            ) from error
    return kind, spec


def _check_countdown(spec: Mapping[str, Any]) -> None:
    if not all(type(number) is int for number in (*spec["numbers"], spec["target"])):
        raise ValueError("numbers and target must be integers")


# What raises where the spec of a row describes no problem.
BOARDS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "puzzle": puzzle_of,
    "graph_path": graph_of,
    "countdown": _check_countdown,
    "sudoku": lambda spec: check_puzzle(spec.get("puzzle", ())),
}


def _check_letters(letters: Any, row: int) -> None:
    """They become part of patterns, so a row may not write a pattern there."""
    named = "".join(map(str, letters)) if isinstance(letters, str | list | tuple) else ""
    if not named.isalnum() or len(set(named)) < len(named):
        raise ValueError(f"row {row}: verifier letters must be different letters such as 'ABCD', got {letters!r}")


def file_verifier(column: Any, where: str, *, default: str = "math") -> str:
    """The `verifier` value of a row that somebody else wrote, as JSON; ValueError names `where` (file and line).

    column: a word ("exact"), an object ({"kind": "choice", "letters": "ABCDE"}), its JSON, or None for `default`.
    reasoning-gym's scorers read an entry, a config and a place in a generator, which a file could fill with anything;
    rows that ask for them are made by `entrl.tasks.reasoning_gym_rows` only.
    """
    spec: Any = default if column is None else column
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except ValueError as error:
            raise ValueError(f"{where}: column 'verifier' is not JSON: {error}") from error
    spec = {"kind": spec} if isinstance(spec, str) else spec
    known = ", ".join(FILE_KINDS)
    if not isinstance(spec, Mapping) or "kind" not in spec:
        raise ValueError(
            f"{where}: column 'verifier' must be {known}, as a word or as an object with the key kind, or null for the "
            f"task's own; got {column!r}"
        )
    kind = spec["kind"]
    if kind not in FILE_KINDS:
        other = "; write the task as reasoning_gym:NAME instead" if kind == "reasoning_gym" else ""
        other = "; name the task (hanoi, graph_path, ...) instead" if kind in PUZZLE_KINDS else other
        raise ValueError(
            f"{where}: a row of a file may ask for the verifiers {known}, its column 'verifier' says "
            f"{kind!r}{other or '; write one of them'}"
        )
    takes = KIND_FIELDS.get(kind, ())
    if odd := sorted(set(spec) - {"kind", *takes}):
        raise ValueError(f"{where}: column 'verifier': {kind} takes no {odd[0]!r}, only {list(takes)}")
    letters = spec.get("letters", "ABCD")
    if not (isinstance(letters, str) and letters.isalpha() and len(set(letters)) == len(letters) > 1):
        raise ValueError(f"{where}: column 'verifier': letters must be different ones such as 'ABCDE', got {letters!r}")
    return json.dumps(dict(spec), sort_keys=True)
