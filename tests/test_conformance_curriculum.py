"""`entrl conformance` on DART-Math's and STAT's vectors: all pass, and every number that is changed is seen."""

import copy
import json
from pathlib import Path

import pytest

from entrl.cli.main import main
from entrl_lab.conformance import conformance, run_file

VECTORS = Path(__file__).parent / "vectors"
CONTENT = {name: json.loads((VECTORS / f"{name}.json").read_text()) for name in ("dart_math", "stat")}


def test_every_case_passes_strictly(capsys):
    assert main(["conformance", "--strict", *(str(VECTORS / f"{name}.json") for name in CONTENT)]) == 0
    assert "25 passed, 0 failed, 0 not covered" in capsys.readouterr().out
    for name, content in CONTENT.items():
        cases = sum(len(cases) for section, cases in content.items() if section != "meta")
        assert [result.status for result in run_file(VECTORS / f"{name}.json")] == ["passed"] * cases


@pytest.mark.parametrize(
    ("name", "section", "at", "change"),
    [
        ("dart_math", "stop_rule", 1, {"stop_reason": "max_n_corrects"}),  # 39 of 40
        ("dart_math", "stop_rule", 2, {"stop_reason": None}),
        ("dart_math", "stop_rule", 3, {"stop_reason": "max_n_corrects"}),
        ("dart_math", "prop2diff_allocation", 2, {"target_paper_scaled_by_raw_fail_rate": 5}),
        ("stat", "difficulty_filter", 0, {"difficult": False}),
        ("stat", "difficulty_filter", 0, {"R": 1}),
        ("stat", "difficulty_filter", 2, {"step_rewards": [0.86]}),  # what is not difficult
        ("stat", "profile", 1, {"skill_counts": {"calc": 2, "geo": 1, "alg": 1, "comb": 2}}),
        ("stat", "profile", 1, {"per_skill_draws_at_5": {"calc": 10, "geo": 5, "alg": 5, "comb": 6}}),
        ("stat", "profile", 0, {"total_draws_at_5": 11}),
    ],
)
def test_what_is_changed_is_seen(name, section, at, change, tmp_path):
    case = {**copy.deepcopy(CONTENT[name][section][at]), **change}
    assert case != CONTENT[name][section][at]
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"meta": CONTENT[name]["meta"], section: [case]}))
    assert conformance([file]) == 1
    (result,) = run_file(file)
    assert result.status == "failed"
