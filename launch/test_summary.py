"""Summarise what launch/test.sh left in a folder, and decide whether it passed.

    python launch/test_summary.py FOLDER SUITE ...

FOLDER holds SUITE.status ("exit-code seconds") for each suite that started and SUITE.xml (JUnit) for each that is
made of tests. A suite passes when its command exited with 0 and, if it is made of tests, at least one test passed:
nothing collected, everything skipped or no status file at all is a failure. The last line counts tests and checks.
"""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

CHECKS = ("lint", "types", "docs")  # suites that are one command, not tests


@dataclass(frozen=True, kw_only=True)
class Outcome:
    suite: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: int = 0
    problem: str = ""  # why the suite as a whole counts as failed; empty when it passed


def count_tests(junit: Path) -> tuple[int, int, int]:
    """Passed, failed (errors included) and skipped tests of one JUnit file."""
    passed = failed = skipped = 0
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def problem_of(code: int, passed: int, failed: int, skipped: int) -> str:
    if code in (124, 137):
        return "stopped at its time limit"
    if passed + failed == 0:
        return "every test was skipped" if skipped else "no test ran"
    if failed:
        return "tests failed"
    return f"exit code {code}" if code else ""


def read_suite(folder: Path, suite: str) -> Outcome:
    status = folder / f"{suite}.status"
    if not status.exists():
        return Outcome(suite=suite, failed=1, problem="did not run")
    code, seconds = (int(field) for field in status.read_text().split())
    if suite in CHECKS:
        problem = f"exit code {code}" if code else ""
        return Outcome(suite=suite, passed=int(code == 0), failed=int(code != 0), seconds=seconds, problem=problem)
    junit = folder / f"{suite}.xml"
    passed, failed, skipped = count_tests(junit) if junit.exists() else (0, 0, 0)
    problem = problem_of(code, passed, failed, skipped)
    failed = max(failed, int(bool(problem)))  # a suite that did not run counts as one failure in the total
    return Outcome(suite=suite, passed=passed, failed=failed, skipped=skipped, seconds=seconds, problem=problem)


def main(argv: list[str]) -> int:
    folder, suites = Path(argv[0]), argv[1:]
    outcomes = [read_suite(folder, suite) for suite in suites]
    print(f"\n{'suite':<14}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for one in outcomes:
        row = f"{one.suite:<14}{one.passed:>8}{one.failed:>8}{one.skipped:>9}{one.seconds:>9}"
        print(f"{row}  {one.problem}".rstrip())
    print(f"{'gpu':<14}{'not covered: needs a CUDA device':>36}")
    print(f"{sum(o.passed for o in outcomes)} passed, {sum(o.failed for o in outcomes)} failed")
    return int(any(one.problem for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
