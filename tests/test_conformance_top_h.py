"""`entrl conformance` on Top-H's vectors: both rules pass, every kind of wrong number is seen."""

import copy
import json
from pathlib import Path

import pytest

from entrl.cli.main import main
from entrl_lab.conformance import conformance, run_file

VECTORS = Path(__file__).parent / "vectors" / "top_h.json"
CONTENT = json.loads(VECTORS.read_text())


def one_case(tmp_path, case, meta=None):
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"meta": meta or CONTENT["meta"], "cases": [case]}))
    return file


def named(name):
    return copy.deepcopy(next(c for c in CONTENT["cases"] if c["name"] == name))


def test_every_case_passes_strictly(capsys):
    assert main(["conformance", "--strict", str(VECTORS)]) == 0
    assert "26 passed, 0 failed, 0 not covered" in capsys.readouterr().out
    results = run_file(VECTORS)
    assert len(results) == len(CONTENT["cases"]) == 26
    assert max(r.max_error for r in results) < 1e-8, "the vectors have eight decimals"


def test_the_rules_differ_where_the_card_says_so():
    """The two published codes agree with each other and not with the paper in most of the cases."""
    comparable = [c for c in CONTENT["cases"] if c["repo_keep"] is not None]
    assert sum(c["repo_keep"] == c["hf_keep"] for c in comparable) >= len(comparable) - 1
    assert sum(c["paper_keep"] != c["hf_keep"] for c in comparable) > len(comparable) / 2


def test_ties_and_codes_that_fail_are_told():
    notes = {r.id: r.note for r in run_file(VECTORS) if r.note}
    assert notes["cases/uniform_64_a0.5"] == "equal logits, other ids; repository keeps 32, transformers 31, ours 32"
    assert notes["cases/alpha_one"] == "the repository's code fails here (IndexError)"
    assert "cases/flat_V16_T1.0_a0.4" not in notes


@pytest.mark.parametrize("key", ["paper_H_p_nats", "paper_H_q_nats", "paper_mass"])
def test_a_wrong_number_fails(tmp_path, key):
    case = named("mid_V64_T1.0_a0.4")
    case[key] += 1e-6
    assert conformance([one_case(tmp_path, case)]) == 1


@pytest.mark.parametrize("key", ["paper_keep", "hf_keep"])
def test_a_wrong_set_fails(tmp_path, key):
    case = named("mid_V64_T1.0_a0.4")
    case[key] = case[key][:-1]
    case["repo_keep"] = case["hf_keep"]
    (result,) = run_file(one_case(tmp_path, case))
    assert result.status == "failed"
    assert ("paper_keep" if key == "paper_keep" else "reference_keep") in result.note


def test_another_system_is_not_mistaken_for_this_one(tmp_path, capsys):
    assert conformance([one_case(tmp_path, {}, {"system": "T-REG"})]) == 2
    assert "meta.system 'T-REG', which no check here knows" in capsys.readouterr().err
