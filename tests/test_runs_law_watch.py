"""The watch over a training run: what it logs, its one warning, resume, and evaluations that are dense at the start."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_model import options, parameters, prompts, same, saved_model, trainer
from transformers import TrainerControl

from entrl.controllers.std_floor import StdFloor
from entrl.runs.law_watch import DenseEvaluation, LawWatch, evaluation_steps, interventions
from entrl.runs.plan import prepare
from entrl.runs.recipe import load_recipe
from entrl.runs.train import train
from entrl.stats.law import ACCURACY, ENTROPY

RECIPES = Path(__file__).parents[1] / "recipes" / "tiny-reasoner"
STATE: dict[str, Any] = {"is_world_process_zero": True, "max_steps": 100}


def feed(watch: LawWatch, rows: list[dict[str, Any]], first: int = 1) -> list[dict[str, Any]]:
    """Log rows one step after the other; returns what each became."""
    for step, logs in enumerate(rows, start=first):
        watch.on_log(None, SimpleNamespace(global_step=step, **STATE), None, logs=logs)
    return rows


def falling(count: int, *, tau: float = 12.0, a: float = 0.3, floor: float = 0.02) -> list[dict[str, Any]]:
    """Logs of a run that follows R = 0.9 - a e^H."""
    entropy = [floor + 0.7 * math.exp(-i / tau) for i in range(count)]
    return [{ENTROPY: h, ACCURACY: 0.9 - a * math.exp(h)} for h in entropy]


def test_the_fit_reaches_the_logs_every_few_points():
    rows = feed(LawWatch(every=5, say=pytest.fail), falling(17, tau=30))
    assert [i for i, row in enumerate(rows, 1) if "law/a" in row] == [6, 11, 16]
    last = rows[15]
    assert (last["law/a"], last["law/b"], last["law/ceiling"]) == pytest.approx((0.3, 0.9, 0.6))
    assert last["law/r2"] == pytest.approx(1.0)
    assert last["law/ceiling_lo"] <= 0.6 + 1e-9
    assert last["law/ceiling_hi"] >= 0.6 - 1e-9
    wanted = {"law/points": 16, "law/from_eval": 0, "law/intervention": 0, "law/refused": 0, "law/spent": 0}
    assert {key: last[key] for key in wanted} == wanted


def test_a_refused_fit_is_logged_as_refused():
    row = feed(LawWatch(say=pytest.fail), [{ENTROPY: 0.1, ACCURACY: 0.01 * i} for i in range(6)])[5]
    assert row["law/refused"] == 1
    assert "law/a" not in row


def test_rows_without_the_numbers_and_other_ranks_are_left_alone():
    watch = LawWatch(say=pytest.fail)
    rows = feed(watch, [{"loss": 1.0}, {ENTROPY: None, ACCURACY: math.nan}, {"train_runtime": 1.0, ENTROPY: 1.0}])
    assert rows[0] == {"loss": 1.0}
    other = SimpleNamespace(global_step=1, is_world_process_zero=False)
    for logs in falling(12):
        watch.on_log(None, other, None, logs=logs)
        assert not any(key.startswith("law/") for key in logs)


def test_evaluations_take_over_as_accuracy_once_there_are_enough():
    watch = LawWatch(every=1, say=pytest.fail)
    rows = falling(30, tau=30)
    for step, logs in enumerate(rows, 1):
        watch.on_log(None, SimpleNamespace(global_step=step, **STATE), None, logs=logs)
        if step % 3 == 0:  # held-out accuracy of the policy after `step` updates: another line than the rollouts'
            h = rows[min(step, 29)][ENTROPY]
            tested = {"eval_loss": 0.0, f"eval_{ACCURACY}": 0.7 - 0.2 * math.exp(h)}
            watch.on_log(None, SimpleNamespace(global_step=step, **STATE), None, logs=tested)
            assert not any(key.startswith("law/") for key in tested)
    assert rows[15]["law/from_eval"] == 0
    assert rows[15]["law/a"] == pytest.approx(0.3)
    # After step 18 there are six; the entropy of the newest is that of the last row seen, so nearly the exact line.
    assert rows[18]["law/from_eval"] == 1
    assert rows[18]["law/points"] == 6
    assert rows[27]["law/a"] == pytest.approx(0.2, rel=0.05)


def test_it_warns_once_when_the_ceiling_is_near():
    said: list[str] = []
    rows = feed(LawWatch(every=1, say=said.append), falling(60, a=0.02, tau=30, floor=0.3))
    assert len(said) == 1
    assert "entropy is spent: " in said[0]
    assert "by the law R = b - a e^H" in said[0]
    assert "points are left below 88.0%" in said[0]
    assert rows[-1]["law/spent"] == 1


def test_entropy_that_has_not_fallen_is_not_spent():
    said: list[str] = []
    entropy = [0.5 - 0.001 * i for i in range(40)]
    feed(LawWatch(every=1, say=said.append), [{ENTROPY: h, ACCURACY: 0.9 - 0.01 * math.exp(h)} for h in entropy])
    assert len(said) == 1
    assert said[0].startswith("accuracy is at its ceiling: ")
    assert said[0].endswith("or take harder problems")


def test_it_warns_once_when_entropy_fell_below_a_tenth():
    said: list[str] = []
    feed(LawWatch(every=1, say=said.append, active=["controller x"]), falling(60))
    assert len(said) == 1
    assert "of its start (0.6" in said[0]


def test_an_intervention_silences_the_law_but_not_the_entropy():
    rows = feed(LawWatch(every=1, say=pytest.fail, active=["beta=0.1"]), falling(60, a=0.02, tau=30, floor=0.3))
    assert rows[-1]["law/intervention"] == 1
    assert rows[-1]["law/spent"] == 0


def test_the_default_way_to_speak_is_a_warning():
    with pytest.warns(UserWarning, match="entropy is spent: it fell to"):
        feed(LawWatch(every=1), falling(60))


def test_a_resumed_watch_goes_on_where_it_stopped(tmp_path: Path):
    whole = feed(LawWatch(say=lambda _: None), falling(40))
    file = tmp_path / "metrics.jsonl"
    first = feed(LawWatch(say=lambda _: None), falling(23))
    tests = [{"step": 5, "kind": "eval", ACCURACY: 0.5}]
    kept = [{**row, "step": i, "kind": "train"} for i, row in enumerate(first, 1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *tests, {**kept[0], "step": 99}]))
    said: list[str] = []
    watch = LawWatch(history=file, say=said.append)
    watch.on_train_begin(None, SimpleNamespace(global_step=23, **STATE), None)
    assert len(watch.train) == 23
    assert watch.evals == [{"step": 5, ACCURACY: 0.5}]
    rest = feed(watch, falling(40)[23:], first=24)
    assert rest == whole[23:]
    assert [row["law/spent"] for row in whole if "law/spent" in row][-1] == 1
    warned_before = any(row.get("law/spent") for row in first)
    assert len(said) == (0 if warned_before else 1)
    fresh = LawWatch(history=file)
    fresh.on_train_begin(None, SimpleNamespace(global_step=0, **STATE), None)
    assert fresh.train == []
    LawWatch(history=tmp_path / "none").on_train_begin(None, SimpleNamespace(global_step=3, **STATE), None)


def test_every_must_be_positive():
    with pytest.raises(ValueError, match=r"every must be at least 1 point, got 0; 5 refits"):
        LawWatch(every=0)


def test_what_counts_as_an_intervention(tmp_path: Path):
    def reads(completions: list, token_entropies: list, **_: object) -> list[float]:
        return [0.0] * len(completions)

    assert interventions(options(tmp_path)) == []
    assert interventions(SimpleNamespace()) == []
    assert interventions(options(tmp_path, epsilon_high=0.2)) == []
    changed = {
        "entropy_coef": 0.001,
        "use_adaptive_entropy": True,
        "beta": 0.1,
        "epsilon_high": 0.28,
        "top_entropy_quantile": 0.2,
    }
    for key, value in changed.items():
        (found,) = interventions(options(tmp_path, **{key: value}))
        assert key in found
    assert interventions(SimpleNamespace(), [StdFloor()], [reads]) == [
        "controller std_floor",
        "reward reads reads entropies",
    ]


def test_early_evaluations_are_dense_first_and_regular_later():
    assert evaluation_steps("early", 32) == [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32]
    assert evaluation_steps("early", 1000)[:13] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]
    for last in (1, 2, 3, 7, 120, 2400):
        steps = evaluation_steps("early", last)
        assert steps[-1] == last
        assert steps == sorted(set(steps))
        assert max(b - a for a, b in pairwise(steps)) <= max(2, 1.6 * last / 16) if last > 1 else 1
        assert len(steps) < 40
    assert evaluation_steps([3, 9], -1) == [3, 9]
    assert evaluation_steps(None, -1) == []
    with pytest.raises(ValueError, match=r"needs the number of steps, got max_steps=-1; set trainer.max_steps"):
        evaluation_steps("early", -1)


def test_dense_evaluation_asks_at_its_steps_only():
    dense = DenseEvaluation([1, 4])
    asked = []
    for step in range(1, 6):
        control = TrainerControl()
        dense.on_step_end(None, SimpleNamespace(global_step=step), control)
        asked.append(control.should_evaluate)
    assert asked == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("eval={task: sums, at: often}", "eval.at must be a list of steps or early, got 'often'"),
        ("eval={task: sums, at: [0, 4]}", r"eval.at must list optimiser steps from 1 on, got \[0, 4\]; eval.before"),
        ("eval={task: sums, at: []}", r"eval.at must list optimiser steps from 1 on, got \[\]"),
        ("eval={task: sums, at: 4}", r"eval.at must be list or str or null, got 4"),
    ],
)
def test_recipe_refuses_other_values(override: str, match: str):
    with pytest.raises(ValueError, match=match):
        load_recipe(RECIPES / "grpo.yaml", [override])


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["eval.at=[2, 900]"], r"eval.at names \[900\], but training ends at step \d+; leave them out"),
        (["eval.at=early", "trainer.max_steps=-1", "trainer.num_train_epochs=1"], "set trainer.max_steps"),
        (["eval.at=early", "trainer.per_device_eval_batch_size=3"], "global eval batch size"),
    ],
)
def test_plan_finds_what_cannot_be_evaluated(more: list[str], match: str):
    problems = prepare(load_recipe(RECIPES / "grpo.yaml", ["eval={task: sums}", *more])).problems
    assert any(re.search(match, problem) for problem in problems), problems


def test_without_the_key_nothing_is_evaluated():
    assert prepare(load_recipe(RECIPES / "grpo.yaml")).args.eval_strategy == "no"


def test_a_run_evaluates_at_its_steps_and_logs_the_law(tmp_path: Path):
    words = (
        "data.train_size=32", "trainer.per_device_train_batch_size=4", "trainer.per_device_eval_batch_size=4",
        "trainer.num_generations=4", "trainer.max_completion_length=4", "trainer.max_steps=7",
        "trainer.steps_per_generation=1", "eval={task: sums, size: 2, samples: 1, before: false, at: [1, 2, 5]}",
        f"model.path={saved_model(tmp_path / 'model')}", f"trainer.output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    train(load_recipe(RECIPES / "grpo.yaml", words), console=Console(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [1, 2, 5]
    assert all(ACCURACY in row for row in rows if row["kind"] == "eval")
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in trained if "law/points" in row] == [6]
    assert trained[5]["law/refused"] == 1  # a random model learns nothing in six steps


def test_evaluating_does_not_change_training(tmp_path: Path):
    plain = trainer(tmp_path, max_steps=3)
    plain.train()
    dense = trainer(tmp_path, max_steps=3, eval_strategy="steps", eval_delay=10**9, eval_dataset=prompts(2))
    dense.evaluation_seed = 1
    dense.add_callback(DenseEvaluation([1, 2]))
    dense.train()
    assert [row["step"] for row in dense.state.log_history if "eval_reward" in row] == [1, 2]
    assert same(parameters(plain), parameters(dense))
