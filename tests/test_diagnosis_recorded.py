"""The rule table over metrics of real runs (`benchmarks/diagnosis.py record`), as its published result has it."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from diagnosis import FIRST, SECOND, STUDIES, judge, recorded, rows_of  # noqa: E402
from diagnosis_runs import SAME, SEEN, SYMPTOMS, judges  # noqa: E402

from entrl.diagnosis.curves import Curves  # noqa: E402
from entrl.diagnosis.rules import RULES, findings, seen, there  # noqa: E402


def test_what_is_published_is_what_the_table_says_today():
    """A rule or a threshold that moves a verdict on a recorded run has to be judged anew."""
    published = json.loads(FIRST.result.read_text())
    found = json.loads(json.dumps(judge("judges")))
    assert found["runs"] == published["runs"]
    assert found["matrix"] == published["matrix"]
    assert found["studies"] == published["studies"]


def test_so_it_is_of_the_second_round():
    published, found = json.loads(SECOND.result.read_text()), json.loads(json.dumps(judge("judges", SECOND)))
    assert found["runs"].keys() == recorded(SECOND.kept).keys()
    assert {name: found[name] for name in ("runs", "matrix", "not_recorded")} == {
        name: published[name] for name in ("runs", "matrix", "not_recorded")
    }


def test_no_run_is_in_both_halves_and_each_symptom_is_a_rule():
    assert set(SYMPTOMS) <= {rule.symptom for rule in RULES}
    assert not judges() & set(SEEN)
    sets, judged = judge("sets")["runs"].keys(), judge("judges")["runs"].keys()
    assert not sets & judged
    assert sets | judged == recorded().keys() & {run.name for run in FIRST.runs}


def test_the_second_round_is_fresh_and_has_three_runs_of_each_symptom_and_ten_healthy_ones():
    labels = [run.label for run in SECOND.runs]
    assert all(labels.count(symptom) >= 3 for symptom in SYMPTOMS)
    assert labels.count("healthy") >= 10
    assert not {run.name for run in SECOND.runs} & {run.name for run in FIRST.runs}
    assert not {(run.recipe, run.change) for run in SECOND.runs} & {(run.recipe, run.change) for run in FIRST.runs}
    assert all(not run.may for run in SECOND.runs if run.label == "healthy")
    allowed = {*SYMPTOMS, *SAME}
    assert all({*run.shows, *run.may} <= allowed for run in SECOND.runs)


def test_a_run_read_row_by_row_is_told_what_all_its_rows_are():
    """As the watchdog reads them; looked at again after every third step of every recorded run."""
    for row in (*recorded().values(), *recorded(STUDIES).values()):
        rows, growing = rows_of(row), Curves()
        for count, one in enumerate(rows, 1):
            growing.append(one)
            if count % 3:
                continue
            now = [(f.rule.symptom, f.evidence, f.excuse) for f in seen(growing)]
            assert now == [(f.rule.symptom, f.evidence, f.excuse) for f in seen(rows[:count])], row["name"]
            assert there(growing) == there(rows[:count])


@pytest.mark.parametrize("name", sorted(recorded(STUDIES)))
def test_whole_runs_of_a_study_are_told_what_they_show_and_no_more(name):
    """PEAR and its control learn; plain GRPO on a model that is always right has nothing to learn from."""
    rows = rows_of(recorded(STUDIES)[name])
    assert len(rows) >= 60
    named = {f.rule.symptom for count in range(1, len(rows) + 1) for f in findings(rows[:count])}
    if "/grpo-" in name:
        assert {"rewards equal"} <= named <= {"rewards equal", "groups flat"}
        assert [f.rule.symptom for f in findings(rows)] == ["rewards equal"]
    else:
        assert named == set()
