"""The rule table over rows, and its faces: the watchdog of a real training, `entrl advise`, the report's health."""

import json
import math
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from short_run import quietly, short_recipe
from synthetic_runs import make_run
from tiny_model import saved_model

from entrl.cli.main import main
from entrl.diagnosis.curves import Curve, Curves, tenth
from entrl.diagnosis.rules import RULES, findings, said_of_the_start, seen, there
from entrl.report.health import health_of
from entrl.report.read import read_run
from entrl.runs.watchdog import Watchdog

WELL = {
    "loss": 0.01,
    "grad_norm": 0.3,
    "reward": 0.4,
    "rewards/accuracy/mean": 0.4,
    "groups/without_spread": 0.3,
    "completions/clipped_ratio": 0.01,
    "completions/thinking_closed": 0.98,
    "pear/missing_close": 0.02,
    "policy_entropy/token_mean": 0.2,
    "clip_ratio/region_mean": 0.01,
}


def rows(count: int = 8, **changes: Any) -> list[dict[str, Any]]:
    return [{"step": i + 1, **WELL, **changes} for i in range(count)]


def symptoms(found: list[dict[str, Any]]) -> list[str]:
    return [f.rule.symptom for f in findings(found)]


ZERO = {"reward": 0.0, "rewards/accuracy/mean": 0.0, "groups/without_spread": 1.0, "grad_norm": 0.0}


@pytest.mark.parametrize(
    ("change", "symptom"),
    [
        ({"loss": math.nan}, "not a number"),
        ({"grad_norm": None}, "not a number"),
        (ZERO, "no reward"),
        ({"groups/without_spread": 1.0, "grad_norm": 0.0}, "rewards equal"),
        ({"groups/without_spread": 0.9}, "groups flat"),
        ({"completions/clipped_ratio": 0.9, "completions/thinking_closed": 0.0}, "truncated"),
        ({"completions/thinking_closed": 0.0, "pear/missing_close": 1.0}, "tags never seen"),
        ({"pear/missing_close": 0.5}, "thinking not closed"),
        ({"grad_norm": 0.0}, "gradient zero"),
        ({"clip_ratio/region_mean": 0.9}, "ratio exploding"),
    ],
)
def test_a_symptom_is_named_alone_with_its_keys_and_goes_away(change, symptom):
    """Within four rollouts, without what only follows from it; ten good rows later it is over."""
    assert symptoms(rows(8)) == []
    sick = rows(4, **change)
    assert symptoms(sick) == [symptom]
    (found,) = findings(sick)
    assert all(key in found.text for key in found.rule.keys)
    assert symptoms([*sick, *rows(12)]) == []
    assert symptoms(sick[:1]) in ([], ["not a number"])  # one rollout is none


@pytest.mark.parametrize(("last", "symptom"), [(0.01, "entropy collapsed"), (2.0, "entropy surged")])
def test_entropy_is_held_against_its_start(last, symptom):
    moved = [*rows(3), *rows(3, **{"policy_entropy/token_mean": last})]
    assert symptoms(moved) == [symptom]
    assert symptoms(moved[3:]) == []  # of a run that began there
    assert symptoms([*moved, *rows(3)]) == []


def test_pear_asks_for_less_entropy_and_that_is_no_finding():
    moved = [*rows(3), *rows(3, **{"policy_entropy/token_mean": 0.01, "pear/alpha": 1.0})]
    assert symptoms(moved) == []
    assert [f.excuse for f in seen(moved)] == ["PEAR asks for that"]


def test_a_value_that_was_infinite_once_is_told_while_it_lasts():
    once = [*rows(20), *rows(1, grad_norm=math.inf), *rows(40)]
    told = [count for count in range(1, len(once) + 1) if symptoms(once[:count])]
    assert told == [21, 22, 23]  # in the last three rows
    (found,) = findings(once[:22])
    assert found.evidence == "not a number: gradient norm in 1 of the last 3 logged steps"
    assert symptoms([*rows(20), *rows(40, grad_norm=math.inf)]) == ["not a number"]


@pytest.mark.parametrize(
    ("start", "symptom"),
    [
        ({"start/entropy": 0.019}, "start without entropy"),
        ({"start/pear_left": 0.0}, "PEAR has nothing to take"),
        ({"start/unverified": 0.01}, "not verified"),
        ({"start/sampler_gap": 0.021}, "sampler and trainer differ"),
        ({"start/entropy": 0.02, "start/pear_left": 0.01, "start/unverified": 0.0, "start/sampler_gap": 0.02}, None),
    ],
)
def test_what_the_doctor_alone_looks_at_stands_in_the_same_table(start, symptom):
    assert symptoms(rows(2, **start)) == ([] if symptom is None else [symptom])


# --- curves that grow -----------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.1, 0.8, 1.0]))), st.integers(1, 12))
def test_means_of_ends_are_those_of_the_points(numbers, least):
    curve = Curve(numbers)
    assert tenth(len(numbers), least) == len(numbers[-max(least, math.ceil(len(numbers) / 10)) :])
    count = max(3, math.ceil(len(numbers) / 10))
    assert curve.end_mean() == (statistics.mean(numbers[-count:]) if numbers else None)
    assert curve.start_mean() == (statistics.mean(numbers[:count]) if numbers else None)


def test_a_mean_at_a_threshold_is_not_above_it():
    """A naive sum of three 0.1 is above 0.3."""
    assert symptoms(rows(3, **{"completions/clipped_ratio": 0.1})) == []


class Counted(dict):
    """A row that counts how often it is asked."""

    asked = 0

    def __getitem__(self, key):
        Counted.asked += 1
        return super().__getitem__(key)

    def get(self, key, default=None):
        Counted.asked += 1
        return super().get(key, default)


def test_a_look_late_in_a_run_reads_no_more_rows_than_an_early_one():
    def asked(steps: int) -> int:
        Counted.asked, curves = 0, Curves()
        for row in rows(steps):
            curves.append(Counted(row))
            findings(curves)
        return Counted.asked

    assert asked(800) < 2.1 * asked(400)


def test_every_symptom_has_a_reason_keys_and_a_move():
    assert all(rule.why and rule.keys and rule.change for rule in RULES)
    known = {rule.symptom for rule in RULES}
    assert len(known) == len(RULES)
    assert all(set(rule.unless) <= known - {rule.symptom} for rule in RULES)


# --- the watchdog ---------------------------------------------------------------------------------------------------


def watched(tmp_path, logs: list[dict[str, Any]], warned: tuple[str, ...] = (), **how: Any) -> list[str]:
    said: list[str] = []
    dog = Watchdog(history=tmp_path / "metrics.jsonl", say=said.append, warned=lambda: warned)
    first = how.get("first", 1)
    state = SimpleNamespace(is_world_process_zero=how.get("main", True), global_step=first - 1)
    dog.on_train_begin(None, state, None)
    for step, row in enumerate(logs, start=first):
        dog.on_log(None, SimpleNamespace(**vars(state) | {"global_step": step}), None, logs=row)
    return said


def test_it_is_said_once_and_so_is_its_end(tmp_path):
    logs = [*rows(6, **ZERO), *rows(12), *rows(4, **ZERO)]
    said = watched(tmp_path, logs)
    assert [line.partition(". ")[0] for line in said] == [
        "step 2: warning: every reward of the last 2 rollouts is 0",
        "step 7: over: no reward",
    ]


def test_evaluations_other_ranks_and_what_the_trainer_said_are_left_out(tmp_path):
    assert watched(tmp_path, [{f"eval_{k}": v for k, v in row.items()} for row in rows(5, **ZERO)]) == []
    assert watched(tmp_path, rows(5, **ZERO), main=False) == []
    text = "every reward of the first 64 completions is 0; look at some in completions.jsonl"
    assert said_of_the_start(text) is not None
    assert watched(tmp_path, rows(5, **ZERO), warned=(text,)) == []


def test_a_resumed_run_is_not_told_again(tmp_path):
    before = [{"kind": "train", **row} for row in rows(5, **ZERO)]
    later = [{"kind": "train", **row, "step": row["step"] + 5} for row in rows(5)]  # cut off by the resume
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*before, *later]))
    said = watched(tmp_path, [*rows(2, **ZERO), *rows(1)], first=6)
    assert said == ["step 8: over: no reward"]


@pytest.mark.slow
def test_a_real_training_is_told_within_ten_steps_and_the_report_says_it_once(tmp_path, capsys):
    from rich.console import Console

    from entrl.runs.train import train

    model = saved_model(tmp_path / "model")
    none = tmp_path / "none.py"
    none.write_text("def reward(completions, **_):\n    return [0.0] * len(completions)\n")
    recipe = short_recipe(model, tmp_path / "run", f"rewards=[{{use: '{none}:reward'}}]", "trainer.max_steps=10")
    with (tmp_path / "said").open("w") as file:
        train(recipe, console=Console(file=file, width=400, soft_wrap=True))
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if ": warning: " in line]
    (told,) = [line for line in lines if "every reward of the last" in line]  # a rollout lasts two steps
    assert told.startswith("step 3: warning: every reward of the last 2 rollouts is 0. Look at completions.jsonl")
    found = health_of(read_run(tmp_path / "run")).findings
    assert len([text for text in found if "every reward" in text]) == 1
    assert main(["advise", str(tmp_path / "run")]) == 0
    assert "every reward of the last 3 rollouts is 0. Look at" in capsys.readouterr().out

    again = short_recipe(model, tmp_path / "fine", "trainer.max_steps=3")
    quietly(again)
    assert main(["advise", str(tmp_path / "fine"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_health_tells_a_symptom_once_and_none_that_went_away(tmp_path):
    run = make_run(tmp_path / "a", steps=40)
    manifest = json.loads((run / "manifest.json").read_text())
    said = "every reward of the first 64 completions is 0; look at some in completions.jsonl"
    (run / "manifest.json").write_text(json.dumps(manifest | {"warnings": [said, "another"]}))
    assert health_of(read_run(run)).findings == ["another"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    zero = {name: 0.0 for name in ("reward", "rewards/accuracy/mean", "rewards/pear/mean")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row | zero) + "\n" for row in lines))
    assert there(read_run(run).train).keys() == {"no reward"}
    assert health_of(read_run(run)).findings == ["every reward of the last 4 rollouts is 0", "another"]


def test_advise_says_what_to_change(tmp_path, capsys):
    run = make_run(tmp_path / "a", steps=40)
    assert main(["advise", str(run)]) == 0
    assert capsys.readouterr().out.startswith("no symptom in 40 logged steps (0% truncated, ")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    cut = [row | {"completions/clipped_ratio": 0.5} for row in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cut))
    assert main(["advise", str(run)]) == 0
    words = "50% of completions truncated in the last rollouts (over 10%). Raise the limit, or add a length reward"
    assert capsys.readouterr().out == f"{words} (trainer.max_completion_length)\n"
    assert main(["advise", str(run), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["symptom"], found["keys"]) == ("truncated", ["trainer.max_completion_length"])
