"""`entrl conformance` on the information-gain vectors: all pass, and every number that is changed is seen."""

import copy
import json
import math
from pathlib import Path

import pytest

from entrl.cli.main import main
from entrl_lab.conformance import conformance, run_file
from entrl_lab.conformance.information_gain import KINDS

VECTORS = Path(__file__).parent / "vectors" / "information_gain.json"
CONTENT = json.loads(VECTORS.read_text())


def one_case(tmp_path, case, **top):
    file = tmp_path / "one.json"
    file.write_text(json.dumps(CONTENT | {"cases": [case]} | top))
    return file


def first(kind):
    return copy.deepcopy(next(case for case in CONTENT["cases"] if case["kind"] == kind))


def leaves(tree, at=()):
    """Paths of all values: every one, not the first of each list."""
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from leaves(tree[key], (*at, key))
    else:
        yield at


def changed(case, at):
    case = copy.deepcopy(case)
    node = case
    for key in at[:-1]:
        node = node[key]
    value = node[at[-1]]
    if value is None or isinstance(value, str):
        node[at[-1]] = 0.125 if value in (None, "inf") else "BeliefError"
    elif isinstance(value, bool):
        node[at[-1]] = not value
    else:
        node[at[-1]] = value + (1 if isinstance(value, int) else 1e-4)
    return case


def test_every_case_passes_strictly(capsys):
    assert main(["conformance", "--strict", str(VECTORS)]) == 0
    assert "53 passed, 0 failed, 0 not covered" in capsys.readouterr().out.replace("\n", " ")
    results = run_file(VECTORS)
    assert len(results) == len(CONTENT["cases"]) == 53
    own = [r.max_error for r, case in zip(results, CONTENT["cases"], strict=True) if "tol" not in case]
    assert max(error for error in own if error is not None) < 1e-13
    assert {case["kind"] for case in CONTENT["cases"]} == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_changed_number_fails(tmp_path, kind):
    case = first(kind)
    paths = list(leaves(case["expected"], ("expected",)))
    assert paths
    for at in paths:
        (result,) = run_file(one_case(tmp_path, changed(case, at)))
        assert result.status == "failed", at


def test_an_infinite_threshold_is_compared(tmp_path):
    case = next(c for c in CONTENT["cases"] if c["expected"].get("threshold") == "inf")
    assert run_file(one_case(tmp_path, case))[0].status == "passed"
    (result,) = run_file(one_case(tmp_path, changed(case, ("expected", "threshold"))))
    assert result.status == "failed"
    assert result.note.startswith("threshold")


def test_an_own_tolerance_replaces_the_files(tmp_path):
    case = first("entropy")
    case["expected"]["bits"] += 1e-3
    assert run_file(one_case(tmp_path, case))[0].status == "failed"
    assert run_file(one_case(tmp_path, case | {"tol": {"abs": 2e-3}}))[0].status == "passed"
    assert run_file(one_case(tmp_path, first("turn_advantages") | {"tol": {"abs": 1e-12}}))[0].status == "failed"


INVALID = [  # section 8, beyond what the shared file holds
    ({"hypotheses": ["a", "a"], "prior": [0.5, 0.5]}, "DuplicateHypothesis"),
    ({"hypotheses": ["a", "b"], "prior": ["nan", 1.0]}, "InvalidDistribution"),
    ({"prior": [0.5, 0.5], "likelihood": [[0.5, 0.5], [0.5, 0.5]], "answer": 2}, "UnknownAnswer"),
    ({"prior": [0.5, 0.5], "likelihood": [[0.5, "inf"], [0.5, 0.5]], "answer": 0}, "InvalidDistribution"),
    ({"scores": [], "alpha": "0.1"}, "EmptyCalibration"),
    ({"scores": [0.5], "alpha": "1.0"}, "InvalidAlpha"),
    ({"scores": ["nan"], "alpha": "0.1"}, "InvalidScore"),
]


@pytest.mark.parametrize(("given", "error"), INVALID)
def test_every_error_of_the_card_is_covered(tmp_path, given, error):
    case = {"id": "x", "kind": "invalid", "input": {"op": "any", **given}, "expected": {"error": error}}
    assert run_file(one_case(tmp_path, case))[0].status == "passed"
    case["expected"] = {"error": "SomethingElse"}
    assert run_file(one_case(tmp_path, case))[0].status == "failed"


def test_no_error_where_one_is_expected_fails(tmp_path):
    case = first("invalid")
    case["input"] = {"op": "make_belief", "hypotheses": ["a"], "prior": [1.0]}
    (result,) = run_file(one_case(tmp_path, case))
    assert (result.status, result.note) == ("failed", "error is None, expected 'EmptyHypothesisSpace'")


def test_unknown_kinds_and_topics_are_not_called_passed(tmp_path, capsys):
    file = one_case(tmp_path, {"id": "x", "kind": "telepathy", "input": {}, "expected": {}})
    assert run_file(file)[0].status == "not_covered"
    assert conformance([file]) == 0
    assert conformance([file], strict=True) == 1
    capsys.readouterr()
    assert conformance([one_case(tmp_path, first("entropy"), topic="telepathy")]) == 2
    assert "topic 'telepathy', which no check here knows" in capsys.readouterr().err


def test_names_leave_out_kinds(tmp_path, capsys):
    assert conformance([VECTORS], exclude=["turn_advantages", "shared-invalid-0*"]) == 0
    assert "9 excluded" in capsys.readouterr().out
    assert math.isclose(CONTENT["tolerance"]["abs"], 1e-10)
