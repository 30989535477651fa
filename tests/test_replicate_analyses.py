"""entrl_lab.replicate.analyses and the page: on run folders with planted effects, each is found, and nothing is made
up.

The folders hold made-up numbers in the real format; the real thing, trained, is `test_the_quick_study_...` (slow).
"""

import html.parser
import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from entrl.controllers.hooks import Rows
from entrl.environments.diagram_worlds import find_world, world_id
from entrl.environments.joint import JointBelief
from entrl.environments.play import play, score
from entrl.environments.policies import GreedyExact
from entrl.report.drawing import round_ticks
from entrl.runs.recipe import load_recipe
from entrl.stats.pairing import seed_differences
from entrl.trainers.grpo.window_log import LoggedWindow, StepOptions, save_window
from entrl_lab.replicate import check_same_schedule, load_study, replicate
from entrl_lab.replicate.analyses import analyse_all, check, independence, known, policies, pursuit
from entrl_lab.replicate.analyses.comparison import pass_at
from entrl_lab.replicate.analyses.predicted_change import monitored_points, window_pairs
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, series
from entrl_lab.replicate.names import find_study
from entrl_lab.replicate.plots import BY_ANALYSIS
from entrl_lab.replicate.study import Study

ROOT = Path(__file__).parents[1]
ARMS = {  # arm -> (selected tokens a step, rows per micro-batch, share of the entropy kept, points of accuracy)
    "grpo": (0, 16, 0.3, 0.0),
    "low": (4, 16, 0.45, 0.0),
    "high": (16, 16, 0.6, -0.15),
    "high-4": (16, 4, 0.6, -0.15),
    "cut-16": (16, 16, 0.6, 0.0),
    "cut-4": (32, 4, 0.75, 0.0),
}
STEPS = 80


def write_run(folder: Path, arm: str, seed: int, *, dynamics: bool = True) -> None:
    """One made-up finished run: entropy decays to its arm's share, accuracy follows it by the law, a = 0.5, b = 1.2."""
    selected, rows, kept, points = ARMS[arm]
    rng = random.Random(f"{arm}{seed}")
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, STEPS + 1):
        entropy = 0.5 * (kept + (1 - kept) * math.exp(-step / 20)) + rng.gauss(0, 0.002)
        row = {"step": step, "kind": "train", "seconds": step, "tokens": 100 * step}
        row |= {"policy_entropy/token_mean": entropy, "rewards/accuracy/mean": 1.2 - 0.5 * math.exp(entropy)}
        row |= {"completions/mean_length": 30.0 + seed, "reward": 0.1 * seed, "step_time": 1.0}
        if selected:
            row["clip_cov/selected"] = selected + (rng.choice([-1, 1]) if step > 1 else 0)
        if dynamics:
            row |= {"dynamics/cov_mean": rng.gauss(0, 1), "dynamics/state_cov": 0.02 * math.exp(-step / 20)}
            row["probe/entropy"] = entropy
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    problems = []
    for i in range(60):
        chance = 0.3 + 0.4 * (i % 3) / 2 + points
        correct = sum(rng.random() < chance for _ in range(8))
        problem = {"id": f"p{i}", "greedy_correct": rng.random() < chance, "n_correct": correct, "n_samples": 8}
        shorter = 3 if i % 3 == 2 and arm in ("low", "high") else 0  # on the easiest level alone
        problems.append(problem | {"level": str(12 - i % 3 * 5), "mean_length": 40.0 - 5 * (i % 3) - shorter})
    sampled = sum(p["n_correct"] for p in problems) / 480
    evaluation = {
        "greedy_accuracy": sum(p["greedy_correct"] for p in problems) / 60,
        "sampled_accuracy": sampled,
        "mean_length_greedy": 30.0,
        "mean_length_sampled": 30.0 + rng.random(),
        "pass_at_k": {"1": sampled, "8": 0.9},
        "entropy": {"think": kept, "answer": kept, "all": 0.5 * kept + rng.gauss(0, 0.002)},
        "missing_close_rate": 0.0,
        "truncation_rate": 0.0,
        "problems": problems,
    }
    (folder / "eval_after.json").write_text(json.dumps(evaluation))
    (folder / "manifest.json").write_text(
        json.dumps(
            {"entrl": "0", "config_hash": "0", "status": "finished", "git": {"commit": "0" * 40, "dirty": False}}
        )
    )
    (folder / "recipe.yaml").write_text(f"trainer: {{per_device_train_batch_size: {rows}}}\n")


def write_window(folder: Path, step: int, seed: int, *, sign: float = 1.0) -> None:
    """A window whose entropies move as Theorem 2 says, times `sign`, with noise."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    log_probs_BT = -torch.rand(4, 10, generator=generator) * 3
    entropies_BT = torch.rand(4, 10, generator=generator)
    mask_BT = torch.ones(4, 10, dtype=torch.bool)
    advantages_BT = torch.randn(4, 1, generator=generator).expand(4, 10).contiguous()
    change_BT = -sign * 0.01 * advantages_BT * (log_probs_BT + entropies_BT)
    noise_BT = 0.001 * torch.randn(4, 10, generator=generator)
    options = StepOptions(
        loss_type="dapo",
        accumulation=1,
        steps_per_generation=1,
        max_completion_length=10,
        num_items=40.0,
        temperature=1.0,
        learning_rate=1e-2,
        eps_low=0.2,
        eps_high=0.2,
        fresh=True,
        pad_token_id=0,
        controllers=[],
    )
    window = LoggedWindow(
        step=step,
        rank=0,
        world_size=1,
        rows=Rows(
            advantages_BT=advantages_BT,
            mask_BT=mask_BT,
            row_id_B=torch.arange(4),
            informative_B=torch.ones(4, dtype=torch.bool),
        ),
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=log_probs_BT,
        entropies_BT=entropies_BT,
        entropies_after_BT=entropies_BT + change_BT + noise_BT,
        prompt_ids_BT=torch.ones(4, 2, dtype=torch.long),
        prompt_mask_BT=torch.ones(4, 2, dtype=torch.bool),
        completion_ids_BT=torch.ones(4, 10, dtype=torch.long),
        completion_mask_BT=mask_BT,
        options=options,
    )
    save_window(folder, window)


def written_study(folder: Path, analyses: str, *, dynamics: bool = True, windows: float | None = None) -> Study:
    """A study of made-up runs: four seeds, every arm of ARMS."""
    (folder / "base.yaml").write_text("model: {path: tiny-reasoner}\ndata: {task: sums}\nrewards: [accuracy]\n")
    size = "trainer.per_device_train_batch_size"
    arms = "\n".join(f"  {arm}: {{set: {{{size}: {ARMS[arm][1]}}}, why: '<b>{arm}</b>'}}" for arm in ARMS)
    (folder / "study.yaml").write_text(
        f"title: planted\nrecipe: base.yaml\nout: {folder / 'runs'}\nseeds: [1, 2, 3, 4]\nreference: grpo\n"
        f"margin: 0.05\narms:\n{arms}\nanalyses:\n{analyses}"
    )
    study = load_study(folder / "study.yaml")
    for run in study.runs({}):
        write_run(study.run_dir(run), run.arm.name, run.seed, dynamics=dynamics)
        if windows is not None and run.arm.name == "grpo":
            for step in (3, 9, 20):
                write_window(study.run_dir(run), step, run.seed, sign=windows)
    return study


def only(study: Study) -> dict:
    (analysis,) = analyse_all(study, [(run, {}) for run in study.runs({})])
    return analysis["tasks"][""]


def test_every_analysis_says_what_it_asks():
    assert known() == [
        "accuracy_by_level",
        "asking",
        "by_level",
        "comparison",
        "dose_response",
        "independence",
        "law_forecast",
        "length",
        "micro_batch",
        "policies",
        "predicted_change",
        "pursuit",
        "steps_to",
    ]


def test_law_and_collapse(tmp_path):
    found = only(written_study(tmp_path, "  - {use: law_forecast, early: 0.2}\n"))
    # entropy starts near 0.5 (0.3 + 0.7 e^{-t/20}), mean over the first 8 steps 0.435, and ends near 0.157: 0.36
    assert found["entropy_end_share"]["mean"] == pytest.approx(0.36, abs=0.01)
    assert found["verdict"].startswith("entropy collapsed; the law's forecast is ")
    assert found["verdict"].endswith("(mechanism at this scale)")
    fitted = [run["law"] for run in found["judged"]["runs"]]
    assert all(law["a"] == pytest.approx(0.5, abs=1e-6) and law["b"] == pytest.approx(1.2, abs=1e-6) for law in fitted)


def test_collapse_is_not_claimed_where_entropy_stays(tmp_path):
    found = only(written_study(tmp_path, "  - {use: law_forecast, arm: cut-4, early: 0.2}\n"))
    assert found["verdict"].startswith("entropy fell without collapsing")


def test_windows_that_follow_the_theorem_and_windows_that_go_against_it(tmp_path):
    follows = only(written_study(tmp_path, "  - predicted_change\n", windows=1.0))
    assert follows["windows"]["natural"]["windows"] == 12
    assert follows["windows"]["natural"]["spearman"]["lo"] > 0.5
    assert follows["windows"]["natural"]["spearman_of_tokens"]["mean"] > 0.9
    assert "windows, natural: follows the measured change" in follows["verdict"]
    against = tmp_path / "against"
    against.mkdir()
    opposite = only(written_study(against, "  - predicted_change\n", windows=-1.0))
    assert "windows, natural: opposite to the measured change" in opposite["verdict"]


def test_metrics_against_the_probe(tmp_path):
    found = only(written_study(tmp_path, "  - predicted_change\n"))
    assert found["windows"] is None
    assert found["metrics"]["dynamics/state_cov"]["runs"] == 4
    assert found["metrics"]["dynamics/state_cov"]["spearman"]["lo"] > 0  # both fade with exp(-t / 20)
    assert "dynamics/cov_mean: no relation can be told" in found["verdict"]  # white noise


def test_probe_changes_are_paired_with_the_updates_between_the_probes(tmp_path):
    rows = [
        {"step": s, "kind": "train", "dynamics/cov_mean": 10.0**s, **({"probe/entropy": -float(s)} if s % 2 else {})}
        for s in range(1, 12)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    points = monitored_points(tmp_path, "dynamics/cov_mean")
    assert points is not None
    # probe 1 -> probe 3: the updates of rows 1 and 2, 10 + 100
    assert points[0] == [-110.0, -11000.0, -1100000.0, -110000000.0, -11000000000.0]
    assert points[1] == [-2.0] * 5


def test_windows_without_a_measurement_after_the_step_are_left_out(tmp_path):
    write_window(tmp_path, 3, 0)
    assert len(window_pairs(1, tmp_path)) == 1
    file = tmp_path / "windows" / "step-000003" / "rank0.pt"
    content = torch.load(file, weights_only=True)
    torch.save(content | {"entropies_after_BT": None}, file)
    assert window_pairs(1, tmp_path) == []
    assert window_pairs(1, tmp_path / "nothing here") == []


def test_dose_response(tmp_path):
    found = only(written_study(tmp_path, "  - {use: dose_response, groups: {clip: [high, grpo, low]}}\n"))
    group = found["groups"]["clip"]
    assert group["arms"] == ["grpo", "low", "high"]  # by the measured dose
    assert group["monotone"]["entropy"] == "rising"
    # entropies near 0.156, 0.229, 0.303 at log2(1 + n) = 0, 2.32, 4.09: slope 0.0357 per doubling
    assert group["slopes"]["entropy"]["mean"] == pytest.approx(0.0357, abs=0.002)
    assert found["verdict"].startswith("clip: entropy rises with the dose")


def test_pass_at_k_of_the_tables_is_a_share_of_subsets(tmp_path):
    assert pass_at({"n_samples": 4, "n_correct": 1}, 2) == 0.5  # 3 of the 6 pairs hold the right one
    assert pass_at({"n_samples": 4, "n_correct": 3}, 2) == 1.0  # every pair does
    assert pass_at({"n_samples": 8, "n_correct": 2}, 1) == 0.25
    for problem in ({}, {"n_samples": 0, "n_correct": 0}, {"n_samples": 4, "n_correct": None}):
        assert math.isnan(pass_at(problem, 1))
    assert math.isnan(pass_at({"n_samples": 2, "n_correct": 1}, 4))
    metrics = only(written_study(tmp_path, "  - {use: comparison, arms: [low]}\n"))["metrics"]
    counts = {"grpo": [], "low": []}
    for arm, found in counts.items():
        for file in tmp_path.rglob(f"{arm}-*/eval_after.json"):
            found += [p["n_correct"] for p in json.loads(file.read_text())["problems"]]
    entry = metrics["pass_at_k/8"]["arms"]["low"]  # of 8 samples: was any right?
    for name, arm in (("reference", "grpo"), ("value", "low")):
        assert entry[name] == pytest.approx(np.mean([c > 0 for c in counts[arm]]), rel=1e-12)


def test_comparison(tmp_path):
    found = only(written_study(tmp_path, "  - {use: comparison, arms: [low, high]}\n"))
    sampled = found["metrics"]["sampled_accuracy"]["arms"]
    assert sampled["high"]["verdict"] == "lower"
    assert sampled["high"]["diff"] == pytest.approx(-0.15, abs=0.05)
    assert (sampled["low"]["seeds"], sampled["low"]["problems"]) == (4, 60)
    assert sampled["low"]["verdict"] in ("non-inferior", "not distinguishable")
    for block in found["metrics"].values():
        for arm in block["arms"].values():
            assert arm["p_holm"] >= arm["p"]
    assert found["metrics"]["entropy/all"]["arms"]["high"]["verdict"] == "higher"
    assert "distinct-2" not in found["metrics"]  # not logged, so not there


def test_by_level(tmp_path):
    found = only(written_study(tmp_path, "  - {use: by_level, arms: [low, high], margin: 0.06}\n"))
    assert found["levels"] == ["2", "7", "12"]  # as numbers, easiest first
    easy, hard = (found["metrics"][f"length, level {level}"]["arms"]["low"] for level in ("2", "12"))
    assert (easy["diff"], easy["problems"], easy["seeds"]) == (-3.0, 20, 4)
    assert hard["diff"] == 0.0
    accuracy = found["metrics"]["sampled_accuracy, level 7"]["arms"]
    assert accuracy["high"]["diff"] == pytest.approx(-0.15, abs=0.06)
    assert found["metrics"]["tokens generated"]["arms"]["low"]["value"] == 100 * STEPS
    assert found["answers"]["high"].startswith("shorter on 2, accuracy held on")
    assert "easy shorter, hard not, at equal accuracy" not in found["answers"]["high"]


def test_by_level_says_when_an_arm_does_what_was_asked(tmp_path):
    found = only(written_study(tmp_path, "  - {use: by_level, arms: [low], reference: cut-16, margin: 0.2}\n"))
    assert found["reference"] == "cut-16"
    assert found["answers"]["low"] == "shorter on 2, accuracy held (easy shorter, hard not, at equal accuracy)"


def with_dialogues(study: Study) -> Study:
    """The same runs as if they had been dialogues: `low` asks two questions less than before, others as many."""
    for folder in study.out.iterdir():
        found = json.loads((folder / "eval_after.json").read_text())
        rng = random.Random(folder.name.rpartition("-")[2])  # all arms of a seed begin as one model
        for problem in found["problems"]:
            problem |= {"greedy_questions": 5, "mean_questions": 5 + rng.gauss(0, 0.1)}
            problem |= {"greedy_correct": rng.random() < 0.5, "n_correct": rng.randint(0, 8)}
        found["inquiry"] = {"greedy": {}, "sampled": {"questions": {"mean": 5.0}, "success": {"mean": 0.5}}}
        (folder / "eval_before.json").write_text(json.dumps(found))
        for problem in found["problems"]:
            problem["mean_questions"] -= 2 * folder.name.startswith("low-")
        (folder / "eval_after.json").write_text(json.dumps(found))
    return study


def test_asking(tmp_path):
    study = with_dialogues(written_study(tmp_path, "  - {use: asking, arms: [cut-16, low, high]}\n"))
    found = only(study)
    fewer = found["metrics"]["questions, sampled"]["arms"]["low"]
    assert (fewer["diff"], fewer["hi"] < -1.8) == (pytest.approx(-2, abs=0.05), True)
    start = found["since_start"]
    assert start["questions, sampled"]["arms"]["low"]["diff"] == pytest.approx(-2)
    assert start["questions, sampled"]["arms"]["cut-16"]["diff"] == 0
    assert start["success, sampled"]["arms"]["low"]["diff"] == 0
    since = found["verdict"].split("since the start: ")[1]
    fewer = "sampled fewer questions with success held (fewer questions at equal success)"
    assert f"low: {fewer}, greedy questions not told apart with success held" in since
    assert "cut-16: questions not told apart with success held;" in since


def test_an_arm_taught_offline_is_held_against_where_the_reference_began(tmp_path):
    study = with_dialogues(written_study(tmp_path, "  - {use: asking, arms: [low]}\n"))
    for folder in study.out.iterdir():  # its own start is what it was taught, so nothing would change since
        if folder.name.startswith("low-"):
            (folder / "eval_before.json").write_text((folder / "eval_after.json").read_text())
    start = only(study)["since_start"]["questions, sampled"]["arms"]["low"]
    assert start["diff"] == pytest.approx(-2)


def test_asking_shows_the_share_that_is_right_where_answers_have_parts(tmp_path):
    study = with_dialogues(written_study(tmp_path, "  - {use: asking, reference: cut-16, arms: [low]}\n"))
    assert "score, sampled" not in only(study)["metrics"]
    for folder in study.out.iterdir():
        for name in ("eval_before.json", "eval_after.json"):
            found = json.loads((folder / name).read_text())
            for i, problem in enumerate(found["problems"]):
                more = folder.name.startswith("low-") and name == "eval_after.json"
                problem |= {"mean_score": 0.5 + 0.1 * more, "greedy_score": 0.25 * (i % 4)}
            (folder / name).write_text(json.dumps(found))
    again = only(study)
    assert again["reference"] == "cut-16"
    assert again["metrics"]["score, sampled"]["arms"]["low"]["diff"] == pytest.approx(0.1)
    assert "share right higher" in again["verdict"]
    assert "score, sampled" in BY_ANALYSIS["asking"](again)


def test_asking_needs_dialogues(tmp_path):
    found = only(written_study(tmp_path, "  - asking\n"))
    assert "holds no dialogues" in found["verdict"]


def test_policies_play_the_rows_that_the_arms_were_evaluated_on(tmp_path):
    """An arm that asks one question more than greedy exact on every row, and one that is always right."""
    recipe = load_recipe(ROOT / "recipes" / "twenty-questions" / "outcome.yaml", ["eval.size=12"])
    rows = list(recipe.load_eval_data())
    best = play(recipe.build_environment(), rows, GreedyExact())
    folders: dict[str, dict[int, Path]] = {"outcome": {}, "more": {}}
    for arm, seed in itertools.product(folders, (1, 2)):
        folder = folders[arm][seed] = tmp_path / f"{arm}-{seed}"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        extra = arm == "more"
        inquiry = {w: {"questions": {"mean": 3.0 + extra}} for w in ("greedy", "sampled")}
        problems = [
            {"id": e.problem_id, "n_correct": 2, "n_samples": 2, "mean_questions": e.questions + extra} for e in best
        ]
        (folder / "eval_after.json").write_text(json.dumps({"inquiry": inquiry, "problems": problems}))
    runs = TaskRuns(task="", folders=folders, reference="outcome", margin=0.03)
    found = policies.analyse(runs, policies=["random", "guess"])
    assert found["players"]["policy: greedy"]["questions"] == score(best)["questions"]
    assert found["players"]["policy: guess"]["questions"]["mean"] == 0
    assert found["players"]["more, sampled"]["questions"] == {"mean": 4.0, "lo": 4.0, "hi": 4.0, "n": 2}
    asked = found["metrics"]["questions, sampled"]
    assert asked["reference"] == pytest.approx(np.mean([e.questions for e in best]))
    assert asked["arms"]["outcome"]["diff"] == 0
    assert (asked["arms"]["more"]["diff"], asked["arms"]["more"]["verdict"]) == (1, "higher")
    assert "policy: guess" in BY_ANALYSIS["policies"](found)
    with pytest.raises(ValueError, match="no policy 'gredy'; there are guess, random, fixed, greedy"):
        policies.analyse(runs, policies=["gredy"])


def test_policies_of_the_diagram_game_hold_the_exact_joint():
    recipe = load_recipe(ROOT / "recipes" / "diagram" / "outcome.yaml")
    env = policies.exact_environment(recipe)()
    env.reset(**recipe.load_eval_data()[0])
    assert isinstance(env._estimator.belief, JointBelief)
    assert "grouping=" in env.ask("grouping")  # the recipe's other options are kept


def test_independence_is_averaged_over_draws_of_the_world():
    runs = TaskRuns(task="", folders={}, reference="", margin=0.5)
    worlds = {"two": {"slots": ["kind", "layout"], "opening": False}}
    (cost,) = independence.analyse(runs, budgets=[2], size=10, draws=[0, 1, 2], worlds=worlds)["worlds"]["two"]
    each = [find_world(world_id(slots=["kind", "layout"], world=draw)).dependence_bits() for draw in cost["draws"]]
    assert cost["dependence_bits"] == pytest.approx(np.mean(each))
    # two questions about two slots tell everything, so what is overpaid is what the prior overstates
    assert cost["overpaid bits"]["diff"] == pytest.approx(np.mean(each))
    assert cost["overpaid bits"]["hi"] == pytest.approx(seed_differences([0.0] * 3, each).hi)
    with pytest.raises(NotMeasured, match="two draws"):
        independence.analyse(runs, draws=[0], worlds=worlds)


def test_c_ip_against_ip_on_a_few_tables():
    runs = TaskRuns(task="", folders={}, reference="", margin=0.5)
    options = {"games": 4, "rows": 6, "columns": 6, "max_questions": 4}
    found = pursuit.analyse(runs, tables=[1, 2], **options)
    assert {len(own) for own in found["values"].values()} == {2}
    assert found == pursuit.analyse(runs, tables=[1, 2], **options)
    right = found["c-ip_less_ip"]["over-confident"]["success"]
    ip, cip = (found["values"][f"{name}, over-confident"] for name in ("ip", "c-ip"))
    assert right["mean"] == pytest.approx(np.mean([c["success"] - i["success"] for i, c in zip(ip, cip, strict=True)]))
    assert "C-IP" in found["verdict"] or "not told apart" in found["verdict"]
    assert "over-confident" in BY_ANALYSIS["pursuit"](found)
    with pytest.raises(NotMeasured, match="needs two tables, got"):
        pursuit.analyse(runs, tables=[1])


def test_micro_batches(tmp_path):
    options = "published: [cut-16, cut-4], ours: [high, high-4]"
    found = only(written_study(tmp_path, f"  - {{use: micro_batch, {options}}}\n"))
    assert found["sides"]["published"]["rows_per_micro_batch"] == {"cut-16": 16, "cut-4": 4}
    assert found["sides"]["ours"]["selected_first_step"] == {"high": [16.0] * 4, "high-4": [16.0] * 4}
    assert "published changes with the micro-batch size in selected, entropy" in found["verdict"]
    assert "ours not distinguishable between micro-batch sizes" in found["verdict"]
    assert "first rows identical in number" in found["verdict"]


def test_round_off_between_micro_batch_sizes_is_no_effect(tmp_path):
    study = written_study(tmp_path, "  - {use: micro_batch, published: [cut-16, cut-4], ours: [high, high-4]}\n")
    for seed in study.seeds:  # the other cut's run is this one's, a millionth off in the same direction everywhere
        one, other = (study.out / f"{arm}-{seed}" for arm in ("high", "high-4"))
        rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["policy_entropy/token_mean"] *= 1 + 1e-6
        (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (other / "eval_after.json").write_text((one / "eval_after.json").read_text())
    assert "ours identical for every micro-batch size" in only(study)["verdict"]


@pytest.mark.parametrize(
    ("analysis", "why"),
    [
        ("{use: predicted_change}", "no logged windows .* and no probe"),
        ("{use: dose_response, groups: {a: [low]}}", r"needs two arms or more, got \['low'\]"),
        ("{use: dose_response, groups: {a: [high, high-4]}}", None),
        ("{use: micro_batch, published: [grpo, low], ours: [high, high-4]}", "'grpo' logged no selected tokens"),
    ],
)
def test_what_was_not_measured_is_said_not_invented(tmp_path, analysis, why):
    found = only(written_study(tmp_path, f"  - {analysis}\n", dynamics=False))
    if why is None:  # nearly the same dose: a slope all the same, and no verdict out of noise
        assert found["measured"]
        return
    assert not found["measured"]
    assert re.match(f"not measured: .*{why}", found["verdict"])
    assert set(found) == {"measured", "saw", "verdict"}


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ("{use: law_forcast}", "no analysis 'law_forcast'.*law_forecast"),
        ("{use: law_forecast, erly: 0.2}", "'law_forecast' has no option 'erly'; options: arm, early, late"),
        ("{use: comparison, arms: [hihg]}", "names arm 'hihg'"),
        ("{use: law_forecast, tasks: [sums]}", "names task 'sums'"),
        ("{usee: law_forecast}", "an analysis is written {use: name"),
    ],
)
def test_misspelt_analyses_stop_before_anything_runs(tmp_path, analysis, message):
    with pytest.raises(ValueError, match=message):
        check(written_study(tmp_path, f"  - {analysis}\n"))


class Links(html.parser.HTMLParser):
    """What a page would fetch, and how its tags balance."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not (v or "").startswith("data:")]


def test_one_page_with_a_plot_for_each_analysis(tmp_path):
    study = written_study(
        tmp_path,
        "  - {use: law_forecast, early: 0.2}\n  - predicted_change\n"
        "  - {use: dose_response, groups: {clip: [grpo, low, high]}}\n  - comparison\n"
        "  - {use: micro_batch, published: [cut-16, cut-4], ours: [high, high-4]}\n",
        windows=1.0,
    )
    for run in study.runs({}):  # finished runs are kept only where they are what the study asks for
        (study.run_dir(run) / "recipe.yaml").write_text(study.recipe_of(run).to_yaml())
    result = replicate(study.file, console=Console(quiet=True))
    assert all(a["tasks"][""]["measured"] for a in result["analyses"])
    text = (study.out / "results.html").read_text()
    page = Links()
    page.feed(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("svg") >= 2 + 3 + 2 + 3 + 5 + 3 + 2 * 5
    assert "NaN" not in text
    assert "&lt;b&gt;high&lt;/b&gt;" in text
    assert "<b>high</b>" not in text
    for analysis in result["analyses"]:
        assert analysis["title"] in text.replace("&#39;", "'")
    written = json.loads((study.out / "results.json").read_text())
    assert written["analyses"] == json.loads(json.dumps(result["analyses"]))


def test_ticks_are_round_and_inside():
    assert round_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert round_ticks(-0.013, 0.021) == pytest.approx([-0.01, 0, 0.01, 0.02])
    assert round_ticks(3, 3) == [3]
    for seed in range(200):
        rng = random.Random(seed)
        lo = rng.uniform(-100, 100)
        hi = lo + 10 ** rng.uniform(-6, 6)
        ticks = round_ticks(lo, hi)
        assert 2 <= len(ticks) <= 11
        assert lo - 1e-9 * (hi - lo) <= ticks[0]
        assert ticks[-1] <= hi + 1e-9 * (hi - lo)


def test_a_bare_name_is_a_folder_under_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study("entropy-mechanism") == ROOT / "recipes" / "entropy-mechanism" / "study.yaml"
    assert find_study("entropy-mechanism", quick=True).name == "quick.yaml"
    own = tmp_path / "recipes" / "entropy-mechanism"
    own.mkdir(parents=True)
    (own / "study.yaml").write_text("")
    assert find_study("entropy-mechanism").resolve() == own / "study.yaml"  # the current folder comes first
    with pytest.raises(FileNotFoundError, match=r"no study 'entropy': looked for .*there are .*entropy-mechanism,"):
        find_study("entropy")
    with pytest.raises(FileNotFoundError, match=r"no study 'x'.*no recipes folder there holds a quick.yaml"):
        find_study("x", quick=True, roots=[tmp_path])
    with pytest.raises(ValueError, match="--quick goes with the name of a study"):
        find_study("some/study.yaml", quick=True)
    with pytest.raises(FileNotFoundError, match=r"no study some/study.yaml"):
        find_study("some/study.yaml")


ASKED = {
    "entropy-mechanism": {"comparison", "dose_response", "law_forecast", "micro_batch", "predicted_change"},
    "ares": {"by_level", "comparison"},
    "information-gain": {"asking", "policies", "independence", "pursuit"},
    "overthinker": {"length"},
}


@pytest.mark.parametrize("folder", sorted(ASKED))
@pytest.mark.parametrize("name", ["study", "quick"])
def test_the_shipped_studies_are_sound(folder, name):
    study = load_study(ROOT / "recipes" / folder / f"{name}.yaml")
    check(study)
    check_same_schedule(study)
    assert {a["use"] for a in study.analyses} == ASKED[folder]
    for arm in study.arms if name == "study" and folder == "ares" else []:
        assert len(study.seeds_of(arm)) >= 8, arm.name
    assert name == "quick" or len(study.seeds) >= 8


def test_the_length_study_on_smollm2_is_sound():
    study = load_study(ROOT / "recipes" / "overthinker" / "smollm2-study.yaml")
    check(study)
    check_same_schedule(study)


@pytest.mark.slow
def test_the_quick_information_gain_study_runs_every_arm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = replicate("information-gain", quick=True, jobs=2, console=Console(quiet=True))
    assert all(found["measured"] for a in result["analyses"] for found in a["tasks"].values())
    asking, policies, independence, pursuit = (a["tasks"] for a in result["analyses"])
    for task in ("questions", "diagram"):
        arms = set(result["tasks"][task]["values"])
        assert set(asking[task]["since_start"]["questions, sampled"]["arms"]) == arms
        assert set(policies[task]["metrics"]["questions, sampled"]["arms"]) == arms
        best = policies[task]["players"]["policy: greedy"]
        assert best["success"]["mean"] >= policies[task]["players"]["policy: random"]["success"]["mean"]
    assert "score, sampled" in asking["diagram"]["metrics"]  # slots right; a game of names has no parts
    assert "score, sampled" not in asking["questions"]["metrics"]
    learnt = json.loads(Path("runs/information-gain/quick/questions/dpo-1-offline/report.json").read_text())
    assert learnt
    assert len(independence["diagram"]["worlds"]["five slots"]) == 2
    assert set(pursuit["questions"]["c-ip_less_ip"]) == {"exact", "over-confident"}


@pytest.mark.slow
def test_the_quick_ares_study_runs_every_arm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = replicate("ares", quick=True, jobs=2, console=Console(quiet=True))
    assert all(found["measured"] for a in result["analyses"] for found in a["tasks"].values())
    by_level = result["analyses"][0]["tasks"]["tiers"]
    assert by_level["levels"] == ["2", "3", "5"]
    assert set(by_level["answers"]) == {arm for arm in result["arms"] if arm != "grpo"}
    spent = by_level["metrics"]["tokens generated"]["arms"]["grpo-branch"]
    assert spent["value"] < spent["reference"], "prefixes are written once"
    for seed in (1, 2):
        _, forks = series(Path(f"runs/ares/quick/tiers/grpo-branch-{seed}"), "branch/forks")
        assert forks.max() > 0


@pytest.mark.slow
def test_the_quick_study_runs_every_analysis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = replicate("entropy-mechanism", quick=True, jobs=2, console=Console(quiet=True))
    unmeasured = [a["use"] for a in result["analyses"] for found in a["tasks"].values() if not found["measured"]]
    assert unmeasured == []
    ours = next(a for a in result["analyses"] if a["use"] == "micro_batch")["tasks"]["sums"]["sides"]["ours"]
    assert ours["same_rows_first_step"]
    first, *others = ours["selected_first_step"].values()
    assert all(o == first for o in others)  # the same rows, cut differently: the same number of tokens
