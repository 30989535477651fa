"""The code reward: shapes of tests, what counts as equal, programs that cheat."""

import json
import pickle

import pytest
from entrl_rewards.code import Code, reward

from entrl.sandbox import probe
from entrl.verify.code_tests import Case, last_program, read_tests, same_output, same_value

pytestmark = pytest.mark.skipif(not any(f.works for f in probe()), reason="not covered: no sandbox works here")

DOUBLE = {"inputs": ["1\n", "21\n"], "outputs": ["2\n", "42\n"]}
SQUARE = {"test_cases": [{"type": "function_call", "fn_name": "f", "input": "3", "output": "9"},
                         {"type": "function_call", "fn_name": "f", "input": [4], "output": [16]}]}  # fmt: skip


def fenced(program):
    return f"I think so:\n```python\n{program}\n```\nDone."


def paid(program, gold, **options):
    return Code(**options)(completions=[fenced(program)], answer=[json.dumps(gold)])[0]


def test_right_wrong_and_in_part():
    programs = ["print(2 * int(input()))", "print(2)", "print(3)", "1/0", "import time; time.sleep(60)"]
    golds = [json.dumps(DOUBLE)] * 5
    few = {"timeout_s": 1.0}
    assert Code(**few)(completions=[fenced(p) for p in programs], answer=golds) == [1, 0, 0, 0, 0]
    assert Code(credit="fraction", **few)(completions=[fenced(p) for p in programs], answer=golds) == [1, 0.5, 0, 0, 0]


def test_functions_methods_prefixes_and_asserts():
    assert paid("def f(x): return x * x", SQUARE) == 1
    assert paid("class Solution:\n    def f(self, x):\n        print('noise'); return x * x", SQUARE) == 1
    assert paid("def f(x): return 9", SQUARE, credit="fraction") == 0.5
    assert paid("def g(x): return 9", SQUARE) == 0
    asserts = ["assert f([1, 2]) == (2, 1)", "assert f([]) == []", "assert not f(())"]
    assert paid("def f(x): return x[::-1]", asserts) == 1  # `not ()` holds, as Python has it
    assert paid("def f(x): return x[::-1] or [0]", asserts) == 0
    assert paid("import re\ndef f(x): return re.match('a', x)", ["assert f('ab')", "assert not f('b')"]) == 1
    assert paid("def f(x): return {1, 2}", ["assert f(0) == {2, 1}"]) == 1
    assert paid("def f(d): return {k: len(v) for k, v in d.items()}", ["assert f({'a': 'xy'}) == {'a': 2}"]) == 1
    gold = {"prefix": "def f():\n    return ", "test_cases": [{"fn_name": "f", "input": [], "output": 7}]}
    assert reward(completions=["3+4", "8"], answer=[json.dumps(gold)] * 2) == [1, 0]


def detail(program, gold, **options):
    (verdict,) = Code(credit="fraction", **options).verdicts([fenced(program)], [json.dumps(gold)])
    return verdict.detail


def test_errors_of_function_cases_are_in_the_verdict():
    """The first, by its case; those of the whole process and none of a case that passes or is only wrong."""
    assert detail("def f(x): return x * x", SQUARE) == ""
    assert detail("def f(x): return 0", SQUARE) == ""
    assert (
        detail("def f(x): return 9 if x == 3 else 1 / 0", SQUARE)
        == "error: case 2: ZeroDivisionError: division by zero"
    )
    assert detail("def g(x): return 9", SQUARE) == "error: case 1: KeyError: 'f'"
    assert detail("def f(x): return object()", SQUARE).startswith("error: case 1: TypeError: Object of type object")
    assert detail("def f(x): assert False", ["assert abs(f(2)) < 1"]) == "error: case 1: AssertionError: "
    assert detail("1/0", SQUARE) == "error: ZeroDivisionError: division by zero"
    assert detail("import time; time.sleep(60)", SQUARE, timeout_s=0.5) == "timeout"


def test_what_a_program_says_of_its_errors_is_cut_and_printable():
    strange = "class E(Exception):\n    def __str__(self): {}\ndef f(x): raise E"
    assert detail(strange.format("1/0"), SQUARE) == "error: case 1: E"
    assert detail(strange.format("return '\\ud800' * 10**6"), SQUARE) == f"error: case 1: E: {'?' * 197}"


def test_an_assert_beside_the_program():
    beside = ["assert abs(f(2) - 1.41) < 0.01"]
    assert read_tests(beside).cases == (Case(beside=beside[0]),)
    assert paid("def f(x): return x ** 0.5", beside) == 1
    assert paid("def f(x): return x", beside) == 0
    echo = """
import json, os
try:
    calls = json.loads(os.read(0, 65536))
except ValueError:
    calls = []
for d in range(1, 10):
    for n, call in enumerate(calls):
        try:
            os.write(d, json.dumps({"case": n, "nonce": call["nonce"]}).encode() + b"\\n")
        except OSError:
            pass
os._exit(0)
"""
    assert paid(echo, beside) == 0  # it reads nothing: the calls are taken from the pipe before it runs


def test_values_that_only_a_program_could_think_of_are_wrong_and_stop_nothing():
    for value in ("10**400", "float('inf')", "[[[0]]]", "'x' * 9"):
        assert paid(f"def f(x): return {value}", ["assert f(3) == 9.5"]) == 0, value


CHEATS = [
    "class Same(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return Same(0)",
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "import atexit, os, json\nfor d in range(1, 20):\n    try:\n        for c in (0, 1):\n"
    "            os.write(d, json.dumps({'case': c, 'nonce': True, 'value': True, 'passed': True}).encode() + b'\\n')\n"
    "    except OSError: pass\nos._exit(0)",
    'import json\njson.dumps = lambda *a, **k: \'{"case": 0, "value": null, "passed": true}\'\ndef f(x): return 1',
    "import builtins\nbuiltins.print('ok'); builtins.all = lambda *a, **k: True\ndef f(x): return True",
]


@pytest.mark.parametrize("program", CHEATS)
def test_cheats_are_not_paid(program):
    assert paid(program, SQUARE, credit="fraction") == 0


def test_what_is_expected_is_not_in_the_process():
    gold = {"test_cases": [{"fn_name": "f", "input": [3], "output": 918273}]}
    program = """
import gc, sys
def f(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [repr(v) for v in (frame.f_locals | frame.f_globals).values()]
        frame = frame.f_back
    seen += [repr(o) for o in gc.get_objects()]
    wanted = "".join(map(str, (9, 1, 8, 2, 7, 3)))  # after the look around, which would find it
    return int(wanted) if any(wanted in text for text in seen) else 0
"""
    assert paid(program, gold) == 0
    assert paid("def f(x): return x * 306091", gold) == 1


def test_only_the_last_block_counts():
    text = "```python\nprint(1)\n```\nor\n```py\nprint(2)\n```\n```json\n{}\n```"
    assert last_program(text) == "print(2)\n"
    assert last_program("```\nprint(3)\n```") == "print(3)\n"
    assert last_program("print(3)") == ""
    assert last_program("```python\nnever closed") == ""
    assert reward(completions=["no program", ""], answer=[json.dumps(DOUBLE)] * 2) == [0, 0]
    assert reward(completions=[fenced("1")], answer=[None]) == [None]


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [("1 \n\n", "1", True), ("1e3", "1000", True), ("0.3333333", "0.33333333", True), ("1", "1.0", True),
     ("10", "11", False), ("a", "b", False),
     ("1 2", "1  2", True), ("1\n2", "1 2", False), ("nan", "1.0", False), ("", "0", False)],
)  # fmt: skip
def test_printed_texts(got, expected, same):
    assert same_output(got, expected) is same


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [(1, 1, True), (True, 1, False), (1.0, 1, True), ([1], [[1]], True), ([1], 1, False), (2, [2], True),
     ("1", 1, False), (2**60 + 1, 2**60, False), ({"a": 1}, {"a": 1.0000001}, True), (None, False, False)],
)  # fmt: skip
def test_returned_values(got, expected, same):
    assert same_value(got, expected) is same


@pytest.mark.parametrize(
    ("gold", "why"),
    [("{", "not JSON"), (3, "are a int"), ({}, "have the keys"), ({"test_cases": []}, "no test cases"),
     ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"), (["def"], "no Python"),
     ({"language": "cpp", "test_cases": []}, "for cpp"), ({"test_cases": ["a"]}, "another form"),
     ({"inputs": None, "outputs": [1]}, "another form"), ({"asserts": None}, "another form"),
     ({"inputs": ["\ud800"], "outputs": ["1"]}, "cannot be encoded"), ("[" * 100_000, "nested too deeply"),
     ({"inputs": [None], "outputs": ["1"]}, "lacks its input")],
)  # fmt: skip
def test_bad_tests_are_refused(gold, why):
    with pytest.raises(ValueError, match=why):
        read_tests(gold)


def test_the_face():
    with pytest.raises(TypeError, match="needs the dataset column 'verification_info'"):
        Code(column="verification_info")(completions=["x"], answer=["x"])
    with pytest.raises(ValueError, match="credit must be all or fraction"):
        Code(credit="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout_s must be > 0"):
        Code(timeout_s=0)
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert reward.score([fenced("print(2 * int(input()))"), "?"], [DOUBLE, DOUBLE]) == [1, 0]
