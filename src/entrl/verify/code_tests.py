"""Tests of a program as data: what it is given, and what must come back. Nothing here runs anything.

Shapes that are read (a JSON text, or what it holds):

    {"test_cases": [{"input": ..., "output": ..., "type": ..., "fn_name": ...}, ...], "language": "python"}    open-r1
    {"inputs": [...], "outputs": [...], "fn_name": ...}                                  PRIME, verl, APPS, TACO
    {"asserts": ["assert f(1) == 2", ...]}, or the list alone                            MBPP and its kin

Without `fn_name` a case is text for standard input and the text that must be printed. With it the arguments are a list,
or text with one JSON value a line; the function may be a method of a class `Solution`. `prefix` beside any of them is
put in front of the program (the beginning of a function that the prompt shows).

`assert f(literals) == literal`, and `assert f(...)` with or without `not`, become data. Any other assert stands beside
the program, in its process (`beside`): its verdict comes back with a number that the program is not told, but that it
can find by looking through its own interpreter, as it can the assert's text.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLOSE = 1e-6  # relative and absolute, between printed or returned numbers of which one is written with a point
BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3", "")
SET = "set of"  # how a set is written in JSON: [SET, its members in order]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One of: text for standard input; a function and its arguments; an assert to run beside the program."""

    expected: Any = None
    stdin: str | None = None
    function: str | None = None
    arguments: Sequence[Any] = ()
    beside: str | None = None
    truth: bool = False  # whether the returned value is true is asked, and no more


@dataclass(frozen=True, kw_only=True)
class CodeTests:
    cases: tuple[Case, ...]
    prefix: str = ""


def last_program(answer: str) -> str:
    """The last ```python block of an answer (or one that names no language); "" where there is none."""
    found = [text for language, text in BLOCK.findall(answer + "\n") if language.lower() in PYTHON]
    return found[-1] if found else ""


def read_tests(gold: Any) -> CodeTests:
    """ValueError for anything that is none of the shapes, with what is wrong."""
    try:
        tests = _read(gold)
        for case in tests.cases:
            (case.stdin or case.beside or "").encode()
        return tests
    except UnicodeEncodeError as error:
        raise ValueError(f"the tests hold text that cannot be encoded ({error.reason})") from None
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"the tests have another form ({error}); {_SHAPES}") from None
    except RecursionError:
        raise ValueError("the tests are nested too deeply to be read") from None


def _read(gold: Any) -> CodeTests:
    if isinstance(gold, str):
        try:
            gold = json.loads(gold)
        except ValueError as error:
            raise ValueError(f"the tests are not JSON ({error}): {gold[:60]!r}") from None
    if isinstance(gold, list):
        gold = {"asserts": gold}
    if not isinstance(gold, Mapping):
        raise ValueError(f"the tests are a {type(gold).__name__}; {_SHAPES}")
    language = str(gold.get("language") or "python").lower()
    if language not in PYTHON:
        raise ValueError(f"the tests are for {language}; only Python is run")
    if "test_cases" in gold:
        cases = [_case(c.get("input"), c.get("output"), c.get("fn_name")) for c in gold["test_cases"]]
    elif "inputs" in gold and "outputs" in gold:
        if len(gold["inputs"]) != len(gold["outputs"]):
            raise ValueError(f"{len(gold['inputs'])} inputs and {len(gold['outputs'])} outputs; one of each per case")
        name = gold.get("fn_name")
        cases = [_case(i, o, name) for i, o in zip(gold["inputs"], gold["outputs"], strict=True)]
    elif "asserts" in gold:
        cases = [case for text in gold["asserts"] for case in _asserted(str(text))]
    else:
        raise ValueError(f"the tests have the keys {sorted(gold)}; {_SHAPES}")
    if not cases:
        raise ValueError("there are no test cases, so every program would pass; drop the row")
    if all(case.stdin is not None and not case.expected.strip() for case in cases):
        raise ValueError("every expected output is empty, so a program that prints nothing would pass; drop the row")
    return CodeTests(cases=tuple(cases), prefix=str(gold.get("prefix") or ""))


_SHAPES = "write {test_cases: [{input, output, fn_name}]}, {inputs, outputs, fn_name} or {asserts: [...]}"


def _case(given: Any, expected: Any, function: str | None) -> Case:
    if not function:
        if given is None or expected is None:
            raise ValueError("a test case lacks its input or its output")
        return Case(stdin=_text(given), expected=_text(expected))
    if isinstance(given, str):
        given = [_value(line) for line in given.splitlines() if line.strip()]
    if not isinstance(given, list):
        raise ValueError(f"the arguments of {function} must be a list or JSON values by line, got {given!r}")
    return Case(function=function, arguments=[as_json(a) for a in given], expected=as_json(_value(expected)))


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(value: Any) -> Any:
    """JSON text as what it says; other text stays."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _asserted(text: str) -> list[Case]:
    try:
        statements = ast.parse(text.strip()).body
    except SyntaxError as error:
        raise ValueError(f"a test is no Python ({error.msg}): {text[:60]!r}") from None
    if all(isinstance(s, ast.Assert) for s in statements):
        found = [_as_data(s.test) for s in statements if isinstance(s, ast.Assert)]
        if all(case is not None for case in found):
            return [case for case in found if case is not None]
    if not any(_can_fail(node) for statement in statements for node in ast.walk(statement)):
        raise ValueError(f"nothing in a test can fail, so every program would pass: {text[:60]!r}; write an assert")
    return [Case(beside=text)]


def _can_fail(node: ast.AST) -> bool:
    """An assert, a raise, or a call of anything but print."""
    call = isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id == "print")
    return call or isinstance(node, ast.Assert | ast.Raise)


def _as_data(test: ast.expr) -> Case | None:
    """The call and the literal of an assert; None where there is more to it."""
    wanted: Any = True
    truth = not isinstance(test, ast.Compare)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, wanted = test.operand, False
    elif isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        left, right = test.left, test.comparators[0]
        test, other = (left, right) if isinstance(left, ast.Call) else (right, left)
        try:
            wanted = ast.literal_eval(other)
        except (ValueError, SyntaxError, TypeError):
            return None
    if not isinstance(test, ast.Call) or not isinstance(test.func, ast.Name) or test.keywords:
        return None
    try:
        arguments = [as_json(ast.literal_eval(argument)) for argument in test.args]
        return Case(function=test.func.id, arguments=arguments, expected=as_json(wanted), truth=truth)
    except (ValueError, SyntaxError, TypeError):
        return None


def as_json(value: Any) -> Any:
    """A value as it travels: keys of a dictionary as JSON texts, a set by its mark; TypeError for what has no form."""
    if isinstance(value, set | frozenset):
        return [SET, sorted((as_json(v) for v in value), key=repr)]
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, dict):
        return {json.dumps(as_json(k)): as_json(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def same_value(got: Any, expected: Any) -> bool:
    """A returned value; APPS and its kin put what is expected into a list of one, so that counts too."""
    return _equal(got, expected) or (isinstance(expected, list) and len(expected) == 1 and _equal(got, expected[0]))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if isinstance(one, int | float) and isinstance(other, int | float):
        try:
            return one == other or math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
        except OverflowError:  # an integer beyond what a float holds is near to none
            return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def same_output(got: str, expected: str) -> bool:
    """Printed text, line by line: spaces at the ends of lines and empty lines at the end do not count."""
    one, other = (_lines(text) for text in (got, expected))
    return one == other or (len(one) == len(other) and all(map(_same_line, one, other)))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_line(got: str, expected: str) -> bool:
    one, other = got.split(), expected.split()
    return len(one) == len(other) and all(map(_same_word, one, other))


def _same_word(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if "." not in got + expected and "e" not in (got + expected).lower():
        return False
    try:
        one, other = float(got), float(expected)
    except ValueError:
        return False
    return math.isfinite(one) and math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
