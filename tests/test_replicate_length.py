"""A study's finished runs as committed lines, and what is made of lines alone: results, tables, picture, claims.

The numbers of the lines are MADE UP in here; that real runs give such lines is a slow test's at the end.
"""

import json
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from rich.console import Console
from study_lines import put_line
from tiny_model import saved_model

from entrl.settings.provenance import git_state
from entrl.stats.pairing import seed_differences
from entrl_lab.replicate import load_study, replicate
from entrl_lab.replicate.analyses import check
from entrl_lab.replicate.rows import Rows, hashes

QUIET = Console(quiet=True)
RECIPE = """
model: {path: MODEL}
data: {task: sums, train_size: 32}
rewards: [{use: pear}]
eval: {task: sums, size: 4, samples: 2, counts: {rechecks: "entrl.tasks.rechecks:recheck_count"}}
trainer: {per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, max_steps: 2, bf16: false,
  logging_steps: 1, save_strategy: "no", gradient_checkpointing: false, learning_rate: 0.01, scale_rewards: batch}
"""
STUDY = """
title: Made up
recipe: base.yaml
out: OUT/runs
rows: rows.jsonl
seeds: [1, 2, 3]
reference: grpo
margin: 0.02
tasks: {long: {}, flat: {arms: [grpo, pear, shuffled]}}
arms:
  grpo: {set: {rewards: [{use: accuracy}]}}
  pear: {}
  shuffled: {set: {rewards.0.args.expert.shuffle_entropies_in_group: true}}
  other: {set: {trainer.temperature: 1.5}}
analyses:
  - {use: length, tasks: [long], claims: [[pear, shuffled], [pear, grpo]], others: [[other, grpo]]}
  - {use: length, title: The twin, tasks: [flat], claims: [[pear, shuffled]]}
"""
TOKENS = {  # made up: seed by seed
    "long/grpo": (50.0, 52.0, 51.0),
    "long/pear": (20.0, 21.0, 19.5),
    "long/shuffled": (48.0, 50.0, 50.5),
    "long/other": (55.0, 51.0, 50.0),
    "flat/grpo": (60.0, 61.0, 60.5),
    "flat/pear": (60.1, 60.4, 60.3),
    "flat/shuffled": (60.0, 60.5, 60.2),
}


def written(folder, study=STUDY, model="tiny-reasoner"):
    (folder / "base.yaml").write_text(RECIPE.replace("MODEL", str(model)))
    (folder / "study.yaml").write_text(study.replace("OUT", str(folder)))
    return folder / "study.yaml"


def made_lines(file, *, accuracy=0.99, without=()):
    """Lines for every run of the study; numbers by arm and seed from TOKENS."""
    study = load_study(file)
    for run in study.runs({}):
        if run.name in without:
            continue
        tokens = TOKENS[f"{run.task.name}/{run.arm.name}"][run.seed - 1]
        told = {"greedy_accuracy": 1.0, "sampled_accuracy": accuracy + 0.001 * run.seed}
        told |= {"mean_length_greedy": tokens + 3, "mean_length_sampled": tokens}
        told |= {"entropy/think": 0.1, "counts/rechecks": tokens / 17 - 1}
        told |= {"train/flat_groups": 0.9, "train/flat_rollouts": 0.5, "train/reward_std": 0.02, "train/grad_norm": 0.3}
        put_line(study, run, told)
    return study


def test_results_are_made_of_lines_alone(tmp_path):
    file = written(tmp_path)
    made_lines(file, without=["long/other-3"])
    result = replicate(file, report_only=True, out=tmp_path / "results.json", console=QUIET)
    assert result["missing"] == ["long/other-3"]
    assert "**Missing runs, 1:** long/other (1)." in (tmp_path / "results.md").read_text()
    assert result["commits"] == ["0123456789abcdef"]
    assert (
        json.loads((tmp_path / "results.json").read_text())["tasks"]["long"]["values"]["pear"]["2"][
            "mean_length_sampled"
        ]
        == 21.0
    )
    long, flat = (a["tasks"][task] for a, task in zip(result["analyses"], ("long", "flat"), strict=True))
    first = long["pairs"]["pear - shuffled"]
    by_hand = seed_differences(TOKENS["long/shuffled"], TOKENS["long/pear"])  # -28, -29, -31
    assert first["differences"]["mean_length_sampled"] == pytest.approx(by_hand._asdict())
    assert by_hand.mean == pytest.approx(-88 / 3)
    assert (first["claim"], first["shorter"], first["held"], first["same"]) == (True, True, True, False)
    assert long["pairs"]["pear - grpo"]["claim"] is True
    assert "claim" not in long["pairs"]["other - grpo"]
    assert long["pairs"]["other - grpo"]["seeds"] == 2
    assert "shorter at held accuracy" in long["verdict"]
    twin = flat["pairs"]["pear - shuffled"]
    assert (twin["claim"], twin["shorter"], twin["same"]) == (False, False, True)
    assert "not told apart, the same length within the bound" in flat["verdict"]


def test_an_analysis_without_claims_tells_its_pairs_and_claims_nothing(tmp_path):
    claimed = "claims: [[pear, shuffled], [pear, grpo]], others: [[other, grpo]]"
    file = written(tmp_path, STUDY.replace(claimed, "others: [[pear, shuffled]]"))
    made_lines(file)
    result = replicate(file, report_only=True, out=tmp_path / "results.json", console=QUIET)
    found = result["analyses"][0]["tasks"]["long"]
    assert "claim" not in found["pairs"]["pear - shuffled"]
    assert found["verdict"] == "pear - shuffled: shorter, accuracy held (mechanism at this scale)"
    (row,) = [
        line
        for line in (tmp_path / "results.md").read_text().splitlines()
        if line.startswith("| pear - shuffled | 3 | -5")
    ]
    assert "claim" not in row


def test_tables_and_picture_say_what_the_lines_say(tmp_path):
    file = written(tmp_path)
    made_lines(file)
    replicate(file, report_only=True, out=tmp_path / "results.json", console=QUIET)
    table = (tmp_path / "results.md").read_text()
    (pear,) = [line for line in table.splitlines() if line.startswith("| pear - shuffled | 3 | -59% |")]
    assert "-29.3 [-33.1, -25.5] | +0.00 [+0.00, +0.00] | shorter, accuracy held | claim, holds |" in pear
    assert "| pear | 3 | 100.0 (+0.0 [+0.0, +0.0]) | 99.2 (+0.0 [+0.0, +0.0]) | 20.2 (−30.8 " in table
    assert "Flat groups, %" in table
    assert "Missing runs" not in table
    assert "rechecks a completion" in table
    drawn = ElementTree.fromstring((tmp_path / "results.svg").read_text())  # stands alone, well formed
    texts = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("pear") == 2  # a row in each panel
    assert {"20.2", "60.3", "The twin, flat"} <= set(texts)
    titles = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert "shuffled: 49.5 [46.21, 52.79]" in titles


def test_a_second_claim_waits_for_the_first_and_accuracy_counts(tmp_path, monkeypatch):
    monkeypatch.setitem(TOKENS, "long/shuffled", (20.5, 20.6, 20.2))
    file = written(tmp_path)
    made_lines(file)
    long = replicate(file, report_only=True, console=QUIET)["analyses"][0]["tasks"]["long"]
    assert [long["pairs"][p]["claim"] for p in ("pear - shuffled", "pear - grpo")] == [False, False]
    assert long["pairs"]["pear - grpo"]["shorter"]
    assert "asked only if the claim before it held" in long["verdict"]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for line in lines:  # right less often by 3 points
        if line["run"].startswith("long/pear"):
            line["numbers"]["sampled_accuracy"] -= 0.03
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    long = replicate(file, report_only=True, console=QUIET)["analyses"][0]["tasks"]["long"]
    assert not long["pairs"]["pear - grpo"]["held"]


def test_a_line_of_other_settings_is_refused_and_named(tmp_path):
    file = written(tmp_path)
    made_lines(file)
    (tmp_path / "base.yaml").write_text((tmp_path / "base.yaml").read_text().replace("0.01", "0.02"))
    with pytest.raises(ValueError, match=r"rows.jsonl has long/grpo-1 with other settings than .*: trainer; take"):
        replicate(file, report_only=True, console=QUIET)
    (tmp_path / "base.yaml").write_text(RECIPE.replace("MODEL", "tiny-reasoner") + "\n# a comment is no setting\n")
    assert replicate(file, report_only=True, console=QUIET)["tasks"]


def test_an_option_that_is_off_by_default_leaves_lines_alone(tmp_path):
    file = written(tmp_path)
    study = load_study(file)
    run = study.runs({})[1]
    before = hashes(study, run)
    told = (tmp_path / "base.yaml").read_text()
    (tmp_path / "base.yaml").write_text(
        told.replace("logging_steps: 1", "logging_steps: 1, log_dynamics: false, beta: 0.0")
    )
    assert hashes(load_study(file), run) == before
    (tmp_path / "base.yaml").write_text(told.replace("logging_steps: 1", "logging_steps: 1, beta: 0.1"))
    assert {k for k, v in hashes(load_study(file), run).items() if v != before[k]} == {"trainer"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"run": "long/pear-1"}', r"rows.jsonl, line 1 is no finished run: it has no commit, settings, numbers; take"),
        ('{"run": "a", "commit": "b", "settings": {}, "numbers": {}}\n' * 2, r"line 2 is a second line of a; keep one"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    file = written(tmp_path)
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        Rows(load_study(file))


def test_what_cannot_be_asked_is_refused_before_anything_runs(tmp_path):
    file = written(tmp_path)
    with pytest.raises(ValueError, match=r"no run of .* is finished; leave out report_only"):
        replicate(file, report_only=True, console=QUIET)
    with pytest.raises(ValueError, match=r"no arm 'paer' in .*Did you mean 'pear'\? There are grpo, pear"):
        replicate(file, arms=["paer"], console=QUIET)
    with pytest.raises(ValueError, match=r"claims lists pairs \[arm, other\], got \['pear'\]"):
        check(load_study(written(tmp_path, STUDY.replace("claims: [[pear, shuffled]]", "claims: [[pear]]"))))
    with pytest.raises(ValueError, match=r"names arm 'paer'"):
        check(load_study(written(tmp_path, STUDY.replace("others: [[other, grpo]]", "others: [[paer, grpo]]"))))
    with pytest.raises(ValueError, match="rows keeps the runs of the comparison and no tuning runs"):
        load_study(written(tmp_path, STUDY + "tuning: {seeds: [9]}\n"))


def test_lines_that_a_study_adds_make_no_tree_dirty(tmp_path):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)  # noqa: E731
    git("init", "-q")
    for name in ("rows.jsonl", "code.py"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    (tmp_path / "rows.jsonl").write_text("1\n2\n")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "code.py").write_text("2\n")
    assert git_state(tmp_path)["dirty"] is True


@pytest.mark.slow
def test_a_fresh_checkout_goes_on_where_the_lines_end(tmp_path):
    saved_model(tmp_path / "model")
    small = STUDY.replace("seeds: [1, 2, 3]", "seeds: [1, 2]").replace(
        "flat: {arms: [grpo, pear, shuffled]}", "flat: {}"
    )
    file = written(tmp_path, small, tmp_path / "model")
    first = replicate(file, arms=["grpo", "pear", "shuffled"], console=QUIET)
    assert first["missing"] == [f"{task}/other-{seed}" for seed in (1, 2) for task in ("long", "flat")]
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 12
    told = json.loads(lines[0])["numbers"]
    assert {
        "mean_length_greedy",
        "counts/rechecks",
        "length/think",
        "train/grad_norm",
        "train/flat_rollouts",
    } <= told.keys()
    assert first["analyses"][0]["tasks"]["long"]["measured"]
    shutil.rmtree(tmp_path / "runs")  # a fresh checkout has the lines alone
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    second = replicate(file, arms=["grpo", "pear", "shuffled"], console=QUIET)
    made = sorted(p.parent.name for p in (tmp_path / "runs").rglob("manifest.json"))
    assert made == [json.loads(lines[-1])["run"].rpartition("/")[2]], "a run was run again whose line was there"
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 12
    timed = ("seconds", "step_time")
    for task, block in first["tasks"].items():
        for arm, own in block["means"].items():
            for name, value in own.items():
                if not name.endswith(timed):
                    assert second["tasks"][task]["means"][arm][name] == value, name
