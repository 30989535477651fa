"""The rule table over metrics of real runs (`benchmarks/diagnosis.py record`), as its published result has it."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from diagnosis import RESULT, judge, recorded, rows_of  # noqa: E402
from diagnosis_runs import HEALTHY, RUNS, SEEN, SYMPTOMS, judges  # noqa: E402

from entrl.diagnosis.rules import RULES, findings  # noqa: E402


def test_what_is_published_is_what_the_table_says_today():
    """A rule or a threshold that moves a verdict on a recorded run has to be judged anew."""
    published = json.loads(RESULT.read_text())
    found = json.loads(json.dumps(judge("judges")))
    assert found["runs"] == published["runs"]
    assert found["matrix"] == published["matrix"]


def test_no_run_is_in_both_halves_and_each_symptom_is_a_rule():
    assert set(SYMPTOMS) <= {rule.symptom for rule in RULES}
    assert not judges() & set(SEEN)
    sets, judged = judge("sets")["runs"].keys(), judge("judges")["runs"].keys()
    assert not sets & judged
    assert sets | judged == recorded().keys() & {run.name for run in RUNS}


@pytest.mark.parametrize("name", sorted(run.name for run in RUNS if run.label == HEALTHY and run.name in recorded()))
def test_a_healthy_run_is_never_alarmed(name):
    rows = rows_of(recorded()[name])
    assert len(rows) >= 10
    assert {f.rule.symptom for count in range(1, len(rows) + 1) for f in findings(rows[:count])} == set()
