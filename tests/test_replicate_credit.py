"""A study with a control reward says which methods earn no credit. The numbers of the lines are MADE UP in here."""

import json

import pytest
from rich.console import Console
from study_lines import put_line

from entrl.report.control import credit
from entrl.report.metrics import named
from entrl.stats.pairing import seed_differences
from entrl_lab.replicate import load_study, replicate

RECIPE = """
model: {path: tiny-reasoner}
data: {task: sums, train_size: 32}
rewards: [{use: accuracy}]
eval: {task: sums, size: 4, samples: 2}
trainer: {per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, max_steps: 2, bf16: false,
  logging_steps: 1, save_strategy: "no", gradient_checkpointing: false, learning_rate: 0.01}
"""
STUDY = """
title: Made up
recipe: base.yaml
out: OUT/runs
rows: rows.jsonl
seeds: [1, 2, 3]
reference: grpo
margin: 0.02
arms:
  grpo: {}
  pear: {set: {rewards: [{use: pear}]}}
  coin: {set: {rewards: [{use: controls, args: {arm: random}}, {use: accuracy, weight: 0}]}}
  truth: {set: {rewards: [{use: "controls:truth"}]}}
  start: {set: {trainer.learning_rate: 0.0}}
"""
SAMPLED = {  # seed by seed
    "grpo": (0.60, 0.62, 0.61),
    "pear": (0.50, 0.40, 0.48),
    "coin": (0.45, 0.46, 0.44),
    "truth": (0.60, 0.60, 0.62),
    "start": (0.30, 0.30, 0.30),
}


def results(folder, study=STUDY, metric="sampled_accuracy"):
    (folder / "base.yaml").write_text(RECIPE)
    (folder / "study.yaml").write_text(study.replace("OUT", str(folder)))
    made = load_study(folder / "study.yaml")
    for run in made.runs({}):
        put_line(made, run, {metric: SAMPLED[run.arm.name][run.seed - 1]})
    console = Console(record=True, width=400, quiet=False, file=(folder / "said.txt").open("w"))
    replicate(made.file, report_only=True, out=folder / "results.json", console=console)
    return json.loads((folder / "results.json").read_text())


def test_a_gain_that_is_not_told_apart_from_the_random_arms_earns_no_credit(tmp_path):
    said = results(tmp_path)["credit"]
    assert [sentence.split()[0] for sentence in said] == ["grpo", "pear", "truth"]  # neither the control nor the start
    grpo, pear, truth = said
    assert grpo.startswith("grpo gains more than the random control 'coin': Sampled accuracy, % +16.0 [")
    assert truth.startswith("truth gains more than")
    found = seed_differences(SAMPLED["coin"], SAMPLED["pear"])  # +5, -6, +4 points: 1 on average
    assert found.lo < 0 < found.mean < found.hi
    shown = [f"{100 * value:+.1f}".replace("-", "−") for value in (found.mean, found.lo, found.hi)]
    assert pear == (
        f"pear gains no more than the random control 'coin': Sampled accuracy, % {shown[0]} [{shown[1]}, {shown[2]}] "
        "over it; its reward earns no credit"
    )
    page = (tmp_path / "runs" / "results.html").read_text().replace("&#39;", "'")
    for place in (page, (tmp_path / "results.md").read_text(), (tmp_path / "said.txt").read_text()):
        assert all(sentence in place for sentence in said)


def test_a_study_without_a_control_says_nothing(tmp_path):
    assert "credit" not in results(tmp_path, STUDY.replace("controls, args: {arm: random}", "pear"))


def test_greedy_answers_decide_where_nothing_was_sampled_and_other_starts_are_said(tmp_path):
    other = STUDY.replace("pear: {set: {", "pear: {set: {model.path: tiny-guesser, ")
    said = results(tmp_path, other, "greedy_accuracy")["credit"]
    assert "Greedy accuracy, % +1.0" in said[1]
    assert [sentence.endswith("(they did not start alike: compare gains instead)") for sentence in said] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(("lo", "earned"), [(0.001, True), (0.0, False), (-0.01, False)])
def test_credit_needs_an_interval_above_nothing(lo, earned):
    sentence = credit("m", "random control", named("sampled_accuracy"), 0.1, lo, 0.2)
    assert sentence.endswith("its reward earns no credit") != earned
