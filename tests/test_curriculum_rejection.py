"""Rejection sampling: targets are met and no more, hard problems get more, a crash changes nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from entrl.curriculum.dart import expected_trials
from entrl.curriculum.rejection import Asking, RejectionSpec, first_right
from entrl.models.load import load_policy
from entrl.teach.cold_start import cold_start, load_cold_start
from entrl.teach.cold_start.policy_answers import Answering, sample_problems
from entrl.teach.cold_start.rejection import Kept, rejection_report, rejection_rows
from entrl.teach.cold_start.spec import AnswersSpec, SampleSpec, SamplingSpec


def toss(chance, problem, turn, samples, seed=0):
    """The answers of one problem in one round, whoever else is asked."""
    return (np.random.default_rng([seed, problem, turn]).random(samples) < chance[problem]).tolist()


def asked(spec, chance, *, seed=0, asking=None, rounds=10**6):
    asking = asking or Asking.of(spec, len(chance))
    while (indices := asking.open()) and asking.rounds < rounds:
        asking.add({i: toss(chance, i, asking.rounds, asking.samples, seed) for i in indices})
    return asking


CHANCES = np.array([1.0, 0.9, 0.6, 0.3, 0.1, 0.0])


def kept(asking, spec, chance):
    """Rows of each problem."""
    rows = []
    for i, trials in enumerate(asking.trials_P.tolist()):
        right, turn = [], 0
        while len(right) < trials:
            right += toss(chance, i, turn, spec.per_round if turn else spec.pilot)
            turn += 1
        rows.append(len(first_right([str(n) for n in range(trials)], right, target=int(asking.target_P[i]))))
    return rows


def test_uniform_ends_with_k_u_for_each_problem_that_can_be_solved():
    spec = RejectionSpec(correct=12, max_trials=2048, per_round=4)
    asking = asked(spec, CHANCES)
    assert kept(asking, spec, CHANCES) == [12] * 5 + [0]
    assert (asking.correct_P[:5] > 12).all()  # strictly more before it stops
    assert [asking.stop(i) for i in range(6)] == ["max_n_corrects"] * 5 + ["max_n_trials"]
    assert asking.trials_P[5] == 2048


def test_prop2diff_gives_hard_problems_more_and_each_at_least_one():
    spec = RejectionSpec(rule="prop2diff", correct=20, max_trials=4000, pilot=400, per_round=8)
    asking = asked(spec, CHANCES)
    rows = kept(asking, spec, CHANCES)
    assert rows[:5] == sorted(rows[:5])
    assert min(rows[:5]) >= 1  # Cover, below the cap
    assert rows[:5] == asking.target_P[:5].tolist()
    assert rows[5] == 0  # nothing to keep, and said so
    assert asking.stop(5) == "max_n_trials"
    hardest = asked(RejectionSpec(rule="prop2diff", correct=20, pilot=400, divide_by_max=True), CHANCES)
    assert hardest.target_P.max() == 20


@pytest.mark.parametrize(("right", "target"), [(8, 1), (7, 24), (4, 96), (0, 192)])
def test_a_pilot_of_eight_sets_the_targets_of_the_table(right, target):
    asking = Asking.of(RejectionSpec(rule="prop2diff", correct=192, max_trials=8000), 1)
    asking.add({0: [True] * right + [False] * (8 - right)})
    assert asking.target_P.tolist() == [target]


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 9), st.sampled_from(["uniform", "prop2diff"]))
@settings(max_examples=60, deadline=None)
def test_every_problem_closes_and_overshoots_by_less_than_a_round(correct, limit, per_round, rule):
    spec = RejectionSpec(rule=rule, correct=correct, max_trials=limit, pilot=per_round, per_round=per_round)
    asking = asked(spec, CHANCES)
    assert asking.open() == []
    assert (asking.trials_P < limit + per_round).all()
    assert (asking.correct_P[asking.trials_P < limit] > asking.target_P[asking.trials_P < limit]).all()


@pytest.mark.parametrize("fail_rate", [0.25, 0.5, 0.8])
def test_raw_samples_approach_target_over_one_minus_the_fail_rate(fail_rate):
    """One at a time the trials are negative binomial: (k + 1) / (1 - f) on average, by the strict comparison."""
    target, problems = 100, 60
    spec = RejectionSpec(correct=target, max_trials=10**6, pilot=1, per_round=1)
    trials = asked(spec, np.full(problems, 1 - fail_rate)).trials_P
    deviation = np.sqrt((target + 1) * fail_rate) / (1 - fail_rate) / np.sqrt(problems)
    assert abs(trials.mean() - expected_trials(target + 1, fail_rate)) < 4 * deviation
    assert trials.mean() == pytest.approx(expected_trials(target, fail_rate), rel=0.04)


@pytest.mark.parametrize("rule", ["uniform", "prop2diff"])
def test_a_crash_between_rounds_changes_no_count(rule):
    spec = RejectionSpec(rule=rule, correct=6, max_trials=64, pilot=4, per_round=4)
    whole = asked(spec, CHANCES)
    again = asked(spec, CHANCES, asking=asked(spec, CHANCES, rounds=3))
    assert again.trials_P.tolist() == whole.trials_P.tolist()
    assert again.correct_P.tolist() == whole.correct_P.tolist()


def test_giving_up():
    spec = RejectionSpec(correct=3, max_trials=2048, give_up=16, pilot=8, per_round=8)
    asking = asked(spec, CHANCES)
    assert asking.stop(5) == "gave_up"
    assert asking.trials_P[5] == 16


@pytest.mark.parametrize(
    ("duplicates", "kept_rows"), [("keep", [0, 1, 2]), ("exact", [0, 2, 4]), ("normalised", [0, 4])]
)
def test_duplicates(duplicates, kept_rows):
    texts = ["It is 4", "It is 4", "it  is 4", "5", "four"]
    assert first_right(texts, [True, True, True, False, True], target=3, duplicates=duplicates) == kept_rows


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"correct": 0}, "rejection.correct must be at least 1, got 0"),
        ({"max_trials": 0}, "rejection.max_trials must be at least 1, got 0"),
        ({"give_up": -1}, "rejection.give_up counts trials"),
        ({"divide_by_max": True}, "rejection.divide_by_max is of prop2diff"),
    ],
)
def test_what_it_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        RejectionSpec(**options)


def test_pass_rates_are_not_measured_twice():
    sample = SampleSpec(task="sums", rejection=RejectionSpec())
    with pytest.raises(ValueError, match=r"leave answers\.pass_rate out"):
        AnswersSpec(sample=sample, pass_rate=SamplingSpec())


# --- with a policy ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny-reasoner", device="cpu")


SAMPLE = SampleSpec(
    task="sums", args={"terms": [2, 3]}, size=6, max_new_tokens=40, batch_size=8, seed=1,
    rejection=RejectionSpec(correct=1, max_trials=12, pilot=4, per_round=4),
)  # fmt: skip


class Stopped(Exception):
    pass


def drawn(policy, file, stop_after=None):
    """rows and the file's lines; stop_after: lines, after which the process is taken to have died."""
    said = []

    def say(text):
        said.append(text)
        if stop_after is not None and len(said) == stop_after:
            raise Stopped

    rows = rejection_rows(SAMPLE, sample_problems(SAMPLE, None), policy, kept=Kept(path=file, of="x"), say=say)
    return rows, said


@pytest.mark.slow
def test_a_policy_is_asked_until_it_has_been_right_often_enough_and_goes_on_after_a_crash(policy, tmp_path):
    whole, said = drawn(policy, tmp_path / "whole.jsonl")
    assert whole
    by_problem = {}
    for row in whole:
        assert row["correct"] == 1
        assert not {"truncated", "round", "problem"} & row.keys()
        by_problem.setdefault(row["problem_id"], []).append(row)
    assert max(map(len, by_problem.values())) == 1
    assert said[-1].startswith(f"rejection sampling: {len(whole)} answers to {len(by_problem)} of 6 problems out of")
    assert len(said) > 2  # several rounds

    lines = (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(Stopped):
        drawn(policy, tmp_path / "cut.jsonl", stop_after=1)
    rows, _ = drawn(policy, tmp_path / "cut.jsonl")
    assert (rows, (tmp_path / "cut.jsonl").read_bytes()) == (whole, lines)

    places = [i + 1 for i, byte in enumerate(lines) if byte == ord("\n")]
    batch = 2 * 4  # two problems of four answers are written at once; the header is a line of its own
    (tmp_path / "cut.jsonl").write_bytes(lines[: places[batch] + 30])  # within the second batch of the first round
    assert drawn(policy, tmp_path / "cut.jsonl")[0] == whole
    assert (tmp_path / "cut.jsonl").read_bytes() == lines

    report = rejection_report(Kept(path=tmp_path / "whole.jsonl", of="x"), SAMPLE.rejection)
    assert report["problems"] == 6
    assert report["rows"] == len(whole)
    assert report["covered"] == len(by_problem)
    assert report["trials"] == len(lines.splitlines()) - 1
    assert sum(report["stopped"].values()) == 6


def test_other_settings_draw_anew(policy, tmp_path):
    file = tmp_path / "kept.jsonl"
    file.write_text(json.dumps({"of": "another"}) + "\n" + json.dumps({"problem": 0, "round": 0}) + "\n")
    assert Kept(path=file, of="x").read(SAMPLE.rejection) == []
    assert file.read_text() == '{"of": "x"}\n'


class Scripted:
    """In place of a policy: answers that depend on seed and problem alone, right a quarter of the time."""

    def __init__(self):
        self.batches = []

    def together(self, samples):
        return 2

    def answers(self, batch, *, samples, seed):
        self.batches.append((tuple(batch), seed))
        for i in batch:
            right = np.random.default_rng([seed, i]).random(samples) < 0.25
            yield [
                {"problem_id": f"p{i}", "completion": f"ä{seed}.{k}", "correct": int(right[k]), "truncated": False}
                for k in range(samples)
            ]


def test_wherever_a_kill_cuts_the_file_the_same_answers_come_of_it(tmp_path, monkeypatch):
    scripted = Scripted()
    monkeypatch.setattr(Answering, "of", lambda *_: scripted)

    def play(name):
        kept = Kept(path=tmp_path / name, of="x")
        rows = rejection_rows(SAMPLE, [0] * 6, None, kept=kept, say=lambda _: None)
        return rows, kept.path.read_bytes(), rejection_report(kept, SAMPLE.rejection)

    whole = play("whole")
    assert whole[2]["rounds"] == 3
    assert whole[2]["trials"] == len(whole[1].splitlines()) - 1
    lines = whole[1].splitlines(keepends=True)
    for n in range(len(lines)):
        for cut in (0, 5, len(lines[n]) - 1):
            (tmp_path / "cut").write_bytes(b"".join(lines[:n]) + lines[n][:cut])
            assert play("cut") == whole
    scripted.batches.clear()
    play("whole")
    assert scripted.batches == []  # all of it is there


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "rejection.jsonl"
    file.write_text('{"of": "x"}\n{"problem": 0, "rou\n{"problem": 1, "round": 0}\n')
    with pytest.raises(ValueError, match=r"rejection.jsonl:2 is not JSON .*; take the line out"):
        Kept(path=file, of="x").read(SAMPLE.rejection)


def test_a_file_in_which_answers_lie_twice_is_mended(tmp_path, monkeypatch):
    """As interrupted starts wrote them once."""
    monkeypatch.setattr(Answering, "of", lambda *_: Scripted())
    spec, file = SAMPLE.rejection, tmp_path / "kept"
    play = lambda: rejection_rows(SAMPLE, [0] * 6, None, kept=Kept(path=file, of="x"), say=lambda _: None)  # noqa: E731
    rows, lines = play(), file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[1:]))  # two of the first problem's four
    assert play() == rows
    assert sorted(file.read_text().splitlines(keepends=True)) == sorted(lines)
    assert rejection_report(Kept(path=file, of="x"), spec)["trials"] == len(lines) - 1


@pytest.mark.slow
def test_a_cold_start_keeps_what_it_drew_and_reports_it(tmp_path):
    file = tmp_path / "start.yaml"
    file.write_text(
        "model: {path: tiny-reasoner}\n"
        "answers: {sample: {task: sums, args: {terms: [2, 3]}, size: 6, max_new_tokens: 40, batch_size: 8, seed: 1,\n"
        "  rejection: {correct: 1, max_trials: 12, pilot: 4, per_round: 4}}}\n"
        f"sft: {{max_steps: 1, per_device_train_batch_size: 2, bf16: false, use_cpu: true}}\nout: {tmp_path / 'out'}\n"
    )
    quiet = Console(quiet=True)
    drawn_file, report = tmp_path / "out" / "rejection.jsonl", tmp_path / "out" / "report.json"
    with pytest.raises(ValueError, match="no_such is not a valid"):  # after the answers, before the training
        cold_start(load_cold_start(file, ["sft.optim=no_such"]), console=quiet)
    kept_lines = drawn_file.read_text()
    manifest = cold_start(load_cold_start(file), console=quiet)
    assert drawn_file.read_text() == kept_lines
    found = json.loads(report.read_text())["rejection"]
    assert found["rows"] == manifest["rows"] == 2
    assert found["trials"] == len(kept_lines.splitlines()) - 1
