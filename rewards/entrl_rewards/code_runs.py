"""Programs of completions against their tests: run in `entrl.sandbox`, compared here.

A case with standard input has a process of its own. The function cases of a program share one: it gets the calls as
JSON once it has run, and writes what came back as JSON; what is expected never goes there.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from entrl.sandbox import Outcome, Sandbox
from entrl.verify import Verdict
from entrl.verify.code_tests import SET, Case, CodeTests, same_output, same_value

LONGEST = 200  # characters of what a program says that a verdict holds

# Reads the calls, so that the program's own reading finds nothing, runs the program, then makes them. `{source}` is the
# program's text as a literal.
HARNESS = """
def _harness():
    import json, os, sys
    with open(0, encoding="utf-8", closefd=False) as calls:
        calls = json.load(calls)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the program prints is not asked for
    space = {{"__name__": "program"}}
    exec(compile({source}, "program.py", "exec", dont_inherit=True), space)
    def plain(value):
        if isinstance(value, (set, frozenset)):
            return [{set!r}, sorted(map(plain, value), key=repr)]
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {{json.dumps(plain(k)): plain(v) for k, v in value.items()}}
        return value
    def back(value):
        if isinstance(value, list):
            return set(map(back, value[1])) if value[:1] == [{set!r}] else [back(v) for v in value]
        if isinstance(value, dict):
            return {{key(json.loads(k)): back(v) for k, v in value.items()}}
        return value
    def key(value):
        return tuple(map(key, value)) if isinstance(value, list) else value
    def found(name):
        if name in space or "Solution" not in space:
            return space[name]
        return getattr(space["Solution"](), name)
    def said(error):
        try:
            return f"{{type(error).__name__}}: {{error}}"[:{longest}]
        except Exception:  # of the error's own text
            return type(error).__name__
    for number, call in enumerate(calls):
        reply = {{"case": number}}
        try:
            if "beside" in call:
                exec(compile(call["beside"], "test.py", "exec", dont_inherit=True), space)
                reply["nonce"] = call["nonce"]
            else:
                value = found(call["function"])(*back(call["arguments"]))
                reply["value"] = bool(value) if call["truth"] else plain(value)
            line = json.dumps(reply)
        except Exception as error:
            line = json.dumps({{"case": number, "error": said(error)}})
        os.write(out, line.encode() + b"\\n")
_harness()
"""


@dataclass
class _Item:
    """One program and what is known of its cases: True, False, or nothing yet."""

    program: str
    tests: CodeTests
    passed: list[bool | None] = field(default_factory=list)
    nonces: dict[int, str] = field(default_factory=dict)
    why: str = ""

    def __post_init__(self) -> None:
        self.passed = [None] * len(self.tests.cases)


def run_tests(
    programs: Sequence[str], tests: Sequence[CodeTests], *, box: Sandbox, stop_at_first: bool
) -> list[Verdict]:
    """The share of passed cases of each program, as a verdict; a sandbox that fails stops the run (SandboxError).

    stop_at_first: only whether all pass is asked, so a program that fails its first case is not run again.
    """
    items = [_Item(t.prefix + p, t) for p, t in zip(programs, tests, strict=True)]
    _round(items, box, first=True)
    if stop_at_first:
        for item in items:
            if False in item.passed:
                item.passed = [passed or False for passed in item.passed]
    _round(items, box, first=False)
    return [Verdict(status="ok", value=sum(map(bool, i.passed)) / len(i.passed), detail=i.why) for i in items]


def _round(items: Sequence[_Item], box: Sandbox, *, first: bool) -> None:
    """Function cases and the first of the others; then the rest. All programs at once."""
    jobs: list[tuple[_Item, list[int]]] = []
    for item in items:
        open_ones = [i for i, passed in enumerate(item.passed) if passed is None]
        calls = [i for i in open_ones if item.tests.cases[i].stdin is None]
        texts = [[i] for i in open_ones if item.tests.cases[i].stdin is not None]
        groups = [calls] * bool(calls) + texts
        jobs += [(item, group) for group in (groups[:1] if first else groups)]
    outcomes = box.run_all([_job(item, group) for item, group in jobs])
    for (item, group), outcome in zip(jobs, outcomes, strict=True):
        _settle(item, group, outcome)


def _job(item: _Item, group: list[int]) -> tuple[str, bytes]:
    cases = [item.tests.cases[i] for i in group]
    if cases[0].stdin is not None:
        return item.program, cases[0].stdin.encode()
    calls = [_call(item, i) for i in group]
    return HARNESS.format(source=repr(item.program), set=SET, longest=LONGEST), json.dumps(calls).encode()


def _call(item: _Item, number: int) -> dict[str, Any]:
    case = item.tests.cases[number]
    if case.beside is not None:
        item.nonces[number] = secrets.token_hex(16)
        return {"beside": case.beside, "nonce": item.nonces[number]}
    return {"function": case.function, "arguments": list(case.arguments), "truth": case.truth}


def _settle(item: _Item, group: list[int], outcome: Outcome) -> None:
    if outcome.status != "ok" and not item.why:
        said = outcome.stderr.decode(errors="replace").strip().splitlines()
        item.why = f"{outcome.status}: {said[-1][:LONGEST]}" if said else outcome.status
    if item.tests.cases[group[0]].stdin is not None:
        expected = item.tests.cases[group[0]].expected
        got = outcome.stdout.decode(errors="replace")
        item.passed[group[0]] = outcome.status == "ok" and same_output(got, expected)
        return
    replies = _replies(outcome.stdout)
    for position, number in enumerate(group):
        reply = replies.get(position, {})
        item.passed[number] = _right(item.tests.cases[number], item.nonces.get(number), reply)
        if not item.passed[number] and not item.why and isinstance(error := reply.get("error"), str):
            printable = error.encode(errors="replace").decode()
            item.why = f"error: case {number + 1}: {printable[:LONGEST]}"


def _replies(output: bytes) -> dict[int, dict[str, Any]]:
    """Lines of a process that may write what it likes: one that is no reply is passed over."""
    found = {}
    for line in output.splitlines():
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(reply, dict) and type(reply.get("case")) is int:
            found[reply["case"]] = reply
    return found


def _right(case: Case, nonce: str | None, reply: dict[str, Any]) -> bool:
    if case.beside is not None:
        return nonce is not None and reply.get("nonce") == nonce
    try:
        return "value" in reply and same_value(reply["value"], case.expected)
    except (RecursionError, OverflowError, ValueError):  # values that only a program could think of
        return False
