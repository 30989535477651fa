"""The law section of the report: what it draws, what it refuses, and that no run folder can break it."""

import json
import math
import runpy
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from entrl.report import read_run, write_report
from entrl.report.drawing import round_ticks
from entrl.report.law import FORECASTS, law_card
from entrl.stats.forecasts import judge
from entrl.stats.law import ACCURACY, ENTROPY, bootstrap_law, fit_law, law_series

make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]


def law_run(folder, *, entropies=None, accuracies=None, controller=None, evals=(), **more):
    """A SYNTHETIC run folder whose entropy and accuracy are given."""
    count = 80 if entropies is None else len(entropies)
    run = make_run(folder, steps=count, controller=controller, with_eval=False, completions=False)
    if entropies is None:
        entropies = [0.05 + 0.8 * math.exp(-i / 20) for i in range(count)]
    if accuracies is None:
        draw = np.random.default_rng(0)
        accuracies = [0.8 - 0.2 * math.exp(h) + draw.normal(0, 0.01) for h in entropies]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{**r, ENTROPY: h, ACCURACY: a, **more} for r, h, a in zip(rows, entropies, accuracies, strict=True)]
    rows += [{"step": s, "kind": "eval", ACCURACY: a} for s, a in evals]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def shapes(svg, name):
    """Elements of one class, the drawing parsed as XML."""
    return [e for e in ElementTree.fromstring(svg).iter() if name in (e.get("class") or "").split()]


def test_a_fitted_run_shows_the_numbers_of_the_law(tmp_path):
    run = read_run(law_run(tmp_path / "a"))
    card = law_card(run)
    series, _ = law_series(run.train, run.evals)
    fit, ends = fit_law(series.entropy, series.accuracy), bootstrap_law(series.entropy, series.accuracy, seed=0)
    lo, hi = ends.ceiling
    assert card.facts["Ceiling at H = 0, %"] == f"{100 * fit.ceiling:.1f} [{100 * lo:.1f}, {100 * hi:.1f}]"
    assert card.facts["R² in sample"] == f"{fit.r2:.3f}"
    assert card.facts["Points used"] == "80, accuracy of rollouts"
    assert card.refused == ""
    assert card.interventions == []
    assert len(shapes(card.svg, "dot")) == 80
    assert len(shapes(card.svg, "band")) == len(shapes(card.svg, "ceiling")) == len(shapes(card.svg, "beyond")) == 1


def test_the_table_is_the_judgement(tmp_path):
    run = read_run(law_run(tmp_path / "a"))
    card = law_card(run)
    out = judge(*law_series(run.train, run.evals)[0])
    assert [row.label for row in card.forecasts] == [label for label, _ in FORECASTS.values()]
    for row, name in zip(card.forecasts, FORECASTS, strict=True):
        assert row.rmse == f"{100 * out['forecasts'][name]['rmse']:.1f}"
        assert row.told == (name in ("law_given_entropy", "law_given_trend"))
    assert f"first 15 % of the run ({out['early_points']} points)" in card.caption
    page = write_report([run.path]).read_text()
    assert "Entropy and accuracy: the law" in page
    assert all(label in page for label, _ in FORECASTS.values())


def test_dots_stand_where_the_numbers_say(tmp_path):
    card = law_card(read_run(law_run(tmp_path / "a")))
    dots = shapes(card.svg, "dot")
    across, up = [float(d.get("cx", "")) for d in dots], [float(d.get("cy", "")) for d in dots]
    entropies = [0.05 + 0.8 * math.exp(-i / 20) for i in range(80)]
    assert np.corrcoef(across, np.exp(entropies))[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(across, up)[0, 1] > 0.9  # svg's y runs down: low accuracy, far right
    assert all(0 < x < 560 and 0 < y < 320 for x, y in zip(across, up, strict=True))
    opacity = [float(d.get("style", "").partition("opacity:")[2]) for d in dots]
    assert opacity == sorted(opacity)


def test_a_refused_fit_says_why_and_draws_the_points(tmp_path):
    run = law_run(tmp_path / "a", entropies=[0.1 + 1e-4 * i for i in range(60)], accuracies=[0.4] * 60)
    card = law_card(read_run(run))
    assert "below 0.02 the slope a is not determined" in card.refused
    assert len(shapes(card.svg, "dot")) == 60
    assert shapes(card.svg, "fit") == []
    page = write_report([run]).read_text()
    assert page.count("Not fitted:") == 1
    assert page.count("Refused: e^H runs") == 1  # one reason for three refused forms


@pytest.mark.parametrize(
    ("recipe", "more", "expected"),
    [
        ("controllers: [{use: kl_cov}]\ntrainer: {beta: 0.1}", {}, ["controller kl_cov", "beta=0.1"]),
        ("trainer: {epsilon_high: 0.28}", {}, ["epsilon_high=0.28"]),
        ("trainer: {beta: 0.0}", {"law/intervention": 1.0}, ["a reward that reads entropies"]),
        ("trainer: {beta: 0.0}", {"law/intervention": 0.0}, []),
        ("trainer: 3", {}, []),
    ],
)
def test_interventions_are_named(tmp_path, recipe, more, expected):
    run = law_run(tmp_path / "a", **more)
    (run / "recipe.yaml").write_text(recipe)
    found = law_card(read_run(run)).interventions
    assert len(found) == len(expected)
    assert all(e in f for e, f in zip(expected, found, strict=True))
    assert ("the law does not bind here" in write_report([run]).read_text()) == bool(expected)


def test_evaluations_are_preferred_and_end_the_note_on_shared_luck(tmp_path):
    draw = np.random.default_rng(1)
    luck = draw.normal(0, 0.03, 80)
    entropies = [0.1 + 0.8 * math.exp(-i / 20) + e for i, e in enumerate(luck)]
    accuracies = [0.8 - 0.2 * math.exp(h) for h in entropies]
    rollouts = law_card(read_run(law_run(tmp_path / "a", entropies=entropies, accuracies=accuracies)))
    assert "share their luck (correlation of the noise −1.00)" in rollouts.notes[0]
    evals = [(s, 0.3 + 0.002 * s) for s in range(1, 80, 8)]
    tested = law_card(read_run(law_run(tmp_path / "b", entropies=entropies, accuracies=accuracies, evals=evals)))
    assert tested.facts["Points used"] == "10, accuracy of evaluations"
    assert tested.notes == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_points(tmp_path, count):
    run = law_run(tmp_path / "a", entropies=[0.9 / (i + 1) for i in range(count)])
    card = law_card(read_run(run))
    assert bool(card.refused) == (count < 3)
    assert card.forecasts == []
    assert "Not judged out of sample" in card.caption
    assert len(shapes(card.svg, "band")) == 0  # a line through three points has no interval
    write_report([run])


def test_a_run_without_the_metrics_and_values_that_are_no_accuracy(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**r, ENTROPY: None}) + "\n" for r in rows))
    card = law_card(read_run(run))
    assert not card.svg
    assert "at least 3 points, got 0" in card.refused
    assert "at least 3 points, got 0" in write_report([run]).read_text()
    odd = law_card(read_run(law_run(tmp_path / "b", accuracies=[30.0 + i for i in range(80)])))
    assert "Not judged out of sample: accuracy runs from 30 to 109" in odd.caption


def test_names_stay_text(tmp_path):
    page = write_report([law_run(tmp_path / "<b>x")]).read_text()
    assert "<b>x" not in page


@pytest.mark.parametrize(("lo", "hi"), [(0.98, 1.19), (0, 100), (-0.05, 0.07), (1.0801, 1.0802), (3, 900)])
def test_ticks_are_round_inside_and_few(lo, hi):
    found = round_ticks(lo, hi)
    assert 3 <= len(found) <= 8
    assert all(lo <= t <= hi for t in found)
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3
