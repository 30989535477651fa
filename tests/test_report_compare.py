"""Two runs at equal steps, tokens and seconds."""

import io
import json
import re
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from entrl.report.compare import (
    at_equal,
    compare_runs,
    comparison_json,
    print_comparison,
)
from entrl.report.words import words

make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]


def test_at_equal_interpolates_and_never_extrapolates():
    # b has no point at x = 10: between (8, 16) and (12, 24) it is 20
    found = at_equal(([0, 10], [0, 5]), ([0, 8, 12], [0, 16, 24]))
    assert (found.x, found.a, found.b, found.diff) == (10, 5, 20, 15)
    assert (found.recent_a, found.recent_b) == (5, 20)  # no point of b in [9, 10]
    assert at_equal(([0, 1], [0, 1]), ([5, 6], [0, 1])) is None
    assert at_equal(([], []), ([5, 6], [0, 1])) is None


def test_compare_runs(tmp_path):
    a = make_run(tmp_path / "a", steps=40, controller=None, gain=0.3)
    b = make_run(tmp_path / "b[red]", steps=20, seed=1, gain=0.5)
    rows = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    (b / "metrics.jsonl").write_text("".join(json.dumps(row | {"seconds": 9.0 * row["step"]}) + "\n" for row in rows))
    found = json.loads(comparison_json(compare_runs(a, b)))
    assert (found["curves"]["step"]["x"], found["curves"]["step"]["limited_by"]) == (20, "b[red]")
    # by time the other run is the shorter one: 40 * 1.75 = 70 s against 180 s
    assert (found["curves"]["seconds"]["x"], found["curves"]["seconds"]["limited_by"]) == (70, "a")
    reward = found["curves"]["step"]["metrics"]["reward"]
    assert reward["b"] == pytest.approx(rows[-1]["reward"])
    assert "kl_cov/selected" in found["only_b"]
    assert not found["only_a"]
    assert found["evaluation"]["metrics"]["greedy_correct"]["n"] == 200
    console = Console(record=True, width=120, file=io.StringIO())
    print_comparison(compare_runs(a, b), console)
    text = console.export_text()
    assert "At 20 steps, where b[red] ends" in text
    assert "Greedy accuracy, %" in text
    assert "Length, sampled, tokens" in text
    assert not re.search(r"\w/\w|\w_\w", text)  # words, no names of metrics
    assert f"logged only by b[red]: {words('kl_cov/selected').title}" in " ".join(text.split())


def test_dialogues_are_compared_by_their_questions_too(tmp_path):
    runs = [make_run(tmp_path / name, steps=10) for name in ("a", "b")]
    assert "mean_questions" not in compare_runs(*runs)["evaluation"]["metrics"]
    for asked, run in zip((5.0, 3.5), runs, strict=True):
        file = run / "eval_after.json"
        found = json.loads(file.read_text())
        for problem in found["problems"]:
            problem |= {"greedy_questions": asked, "mean_questions": asked - 1, "greedy_score": 1.0, "mean_score": 0.5}
        file.write_text(json.dumps(found | {"inquiry": {"greedy": {}, "sampled": {}}}))
    metrics = compare_runs(*runs)["evaluation"]["metrics"]
    assert metrics["greedy_questions"]["diff"] == metrics["mean_questions"]["hi"] == -1.5
    assert metrics["mean_score"]["diff"] == 0


def test_numbers_nobody_was_judged_by_say_so_and_those_of_neither_run_are_left_out(tmp_path):
    runs = [make_run(tmp_path / name, steps=10) for name in ("a", "b")]
    for run in runs:
        file = run / "eval_after.json"
        found = json.loads(file.read_text())
        for problem in found["problems"]:
            problem |= {"greedy_correct": None}
            problem.pop("mean_length", None)
        file.write_text(json.dumps(found))
    metrics = compare_runs(*runs)["evaluation"]["metrics"]
    assert "why" in metrics["greedy_correct"]
    assert "mean_length" not in metrics


def test_compare_without_evaluations_or_seconds(tmp_path, capsys):
    a, b = (make_run(tmp_path / name, steps=5, with_eval=name == "a") for name in "ab")
    (b / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "reward": 0.5}\n')
    found = compare_runs(a, b)
    assert found["evaluation"]["why"] == "eval_after.json is missing in b"
    assert found["curves"]["seconds"]["why"] == "seconds not recorded by b"
    print_comparison(found)
    assert "seconds not recorded by b" in capsys.readouterr().out


def test_a_run_is_not_compared_with_itself(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    with pytest.raises(ValueError, match="named twice"):
        compare_runs(run, run)
