"""The verdict on a run: every case as a made-up run record, for the function is pure. Numbers here measure nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from entrl.report.read import RunRecord
from entrl.report.verdict import verdict_of

PROBLEMS = 200
UNCHANGED = "Little changed: accuracy not distinguishable, length within a tenth"


def evaluation(right, think=50.0, **more):
    """Of 200 problems, the first `right` are answered; thinking takes `think` tokens, the answer three."""
    problems = [
        {
            "id": f"p{i}",
            "prompt": f"{i}=",
            "greedy_correct": i < right,
            "n_correct": 8 * (i < right),
            "n_samples": 8,
            "mean_length": think + 4 + i % 2,
            "mean_think_length": think + i % 2,
            "mean_answer_length": 3.0,
        }
        for i in range(PROBLEMS)
    ]
    return {
        "task": "sums",
        "split": "test",
        "seed": 1,
        "n_problems": PROBLEMS,
        "greedy_accuracy": right / PROBLEMS,
        "greedy_accuracy_ci": [0.0, 1.0],
        "sampled_accuracy": right / PROBLEMS,
        "mean_length_sampled": think + 4.5,
        "length": {"think": think + 0.5, "answer": 3.0},
        "entropy": {"think": 0.168, "answer": 0.01, "all": 0.1},
        "missing_close_rate": 0.0,
        "truncation_rate": 0.0,
        "problems": problems,
    } | more


def shuffled(result, moves):
    """The same accuracy from other problems: `moves` right answers become wrong, as many wrong ones right."""
    flipped = {*range(moves), *range(PROBLEMS - moves, PROBLEMS)}
    now = [p["greedy_correct"] != (i in flipped) for i, p in enumerate(result["problems"])]
    problems = [p | {"greedy_correct": r, "n_correct": 8 * r} for r, p in zip(now, result["problems"], strict=True)]
    return result | {"problems": problems}


def sampled(result, right):
    """The same, with other samples: 8 of 8 right in the first `right` problems."""
    problems = [p | {"n_correct": 8 * (i < right)} for i, p in enumerate(result["problems"])]
    return result | {"sampled_accuracy": right / PROBLEMS, "problems": problems}


def record(before=None, after=None, *, rows=None, **manifest):
    """A finished run of 60 steps, healthy by every check; rows: what all of its metrics rows have besides."""
    train = [
        {
            "step": step,
            "seconds": float(step),
            "tokens": 100 * step,
            "loss": 0.01,
            "reward": step / 60,
            "completions/clipped_ratio": 0.0,
            "pear/missing_close": 0.0,
            "groups/without_spread": 0.25,
            "policy_entropy/token_mean": 0.1,
        }
        | (rows or {})
        for step in range(1, 61)
    ]
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:01:28+00:00"}
    return RunRecord(
        path=Path("run"),
        name="run",
        manifest={"status": "finished", "device": "cpu", "world_size": 1, **times, **manifest},
        recipe={"trainer": {"max_steps": 120}},
        recipe_text="",
        train=train,
        evals=[],
        completions=[],
        eval_before=before,
        eval_after=after,
    )


@pytest.mark.parametrize(
    ("before", "after", "tone", "headline", "said"),
    [
        (
            evaluation(80),
            evaluation(130),
            "good",
            "More accurate",
            "on 200 test problems: when sampled 40.0 → 65.0 % (+25.0 points, 95",
        ),
        (evaluation(80), evaluation(130, 20), "good", "More accurate, thinking shorter", "Thinking 50.5 → 20.5 tokens"),
        (evaluation(80), evaluation(130, 90), "good", "More accurate, thinking longer", "(+40.0 [+40.0, +40.0])"),
        (evaluation(80), evaluation(80, 20), "good", "Thinking shorter, accuracy not lower", "[+0.0, +0.0]"),
        (evaluation(80), evaluation(80, 90), "open", "Thinking longer, accuracy not higher", "+0.0 points"),
        (evaluation(80), evaluation(80), "open", UNCHANGED, "answers 3.0 → 3.0"),
        (evaluation(130), evaluation(80), "bad", "Less accurate", "−25.0 points, 95 % interval [−"),
        (evaluation(130), evaluation(80, 20), "bad", "Less accurate, thinking shorter", "65.0 → 40.0 %"),
        (evaluation(130), evaluation(80, 90), "bad", "Less accurate, thinking longer", "65.0 → 40.0 %"),
        (  # 40 problems changed their side: 200 cannot tell two points from none
            evaluation(80),
            shuffled(evaluation(80, 20), 40),
            "open",
            "Thinking shorter; whether accuracy held cannot be told",
            "+0.0 points",
        ),
        (evaluation(80), shuffled(evaluation(80), 40), "open", UNCHANGED, "95 % interval [−"),
        (evaluation(80), evaluation(80, 48), "open", UNCHANGED, "50.5 → 48.5"),  # under a tenth
        (evaluation(80), evaluation(130, seed=2), "open", UNCHANGED, "no interval: evaluations with diff"),
        (
            evaluation(80, length={"think": None, "answer": None}, entropy={"think": None, "all": 0.2}),
            evaluation(80, 20, length={"think": None, "answer": None}, entropy={"think": None, "all": 0.1}),
            "good",
            "Completions shorter, accuracy not lower",
            "Entropy in all tokens 0.200 → 0.100 nats",
        ),
    ],
)
def test_before_and_after(before, after, tone, headline, said):
    found = verdict_of(record(before, after))
    assert (found.tone, found.headline) == (tone, headline)
    assert said in " ".join([*found.results, *found.entropies])
    assert found.healthy


@pytest.mark.parametrize(
    ("before", "after", "tone", "headline"),
    [
        (evaluation(200), sampled(evaluation(200, 20), 180), "open", "Less accurate when sampled, thinking shorter"),
        (evaluation(100), sampled(evaluation(60), 100), "open", "Less accurate when greedy"),
        (evaluation(100), sampled(evaluation(100), 140), "good", "More accurate when sampled"),
        (evaluation(100), sampled(evaluation(60, 90), 140), "open",
         "Accuracy higher when sampled, lower when greedy, thinking longer"),
    ],
)  # fmt: skip
def test_samples_and_greedy_answers_that_do_not_agree_are_told_apart(before, after, tone, headline):
    found = verdict_of(record(before, after))
    assert (found.tone, found.headline) == (tone, headline)
    assert found.results[0].count("95 % interval") == 2


def test_greedy_answers_that_were_not_asked_for_leave_the_samples():
    asked = [evaluation(right, greedy_accuracy=None) for right in (80, 130)]
    found = verdict_of(record(*asked))
    assert found.headline == "More accurate"
    assert "greedy" not in found.results[0]


def test_no_problem_judged_on_both_sides():
    one, two = ({"id": "1", "greedy_correct": None}, {"id": "2", "greedy_correct": True})
    before = {"greedy_accuracy": 1.0, "problems": [one, two]}
    after = {"greedy_accuracy": 1.0, "problems": [one | {"greedy_correct": True}, two | {"greedy_correct": None}]}
    found = verdict_of(record(before, after))
    assert "no problem was judged both before and after training" in found.results[0]
    assert found.headline == UNCHANGED


@pytest.mark.parametrize(
    ("before", "after", "headline", "said"),
    [
        (None, None, "Not measured", "No evaluation of the trained model (eval_before.json is missing, eval_after"),
        (None, None, "Not measured", "Training reward 0.06 → 0.96 (first and last steps, the run's own samples"),
        (evaluation(80), None, "Not measured", "No evaluation of the trained model (eval_after.json is missing)"),
        (None, evaluation(80), "Measured after training only", "when greedy 40.0 % (95 % interval [0.0, 100.0])"),
        (None, evaluation(80), "Measured after training only", "eval_before.json is missing), so a gain cannot"),
    ],
)
def test_evaluations_that_are_missing(before, after, headline, said):
    found = verdict_of(record(before, after))
    assert (found.tone, found.headline) == ("open", headline)
    assert said in " ".join(found.results)


@pytest.mark.parametrize(
    ("status", "error", "tone", "headline", "said"),
    [
        ("failed", "ValueError: no", "bad", "Failed after 60 of 120 steps", "It stopped with ValueError: no."),
        ("interrupted", "KeyboardInterrupt: ", "open", "Interrupted after 60 of 120 steps", "resume=true goes on"),
        (
            "interrupted",
            "X: take resume=true",
            "open",
            "Interrupted after 60 of 120 steps",
            "resume=true. No evaluation",
        ),
        ("running", None, "open", "Not finished: running, after 60 of 120 steps", "still running, or was killed"),
        ("unknown", None, "open", "Not finished: unknown, after 60 of 120 steps", "still running, or was killed"),
    ],
)
def test_runs_that_did_not_finish(status, error, tone, headline, said):
    found = verdict_of(record(evaluation(80), status=status, error=error))
    assert (found.tone, found.headline) == (tone, headline)
    assert said in " ".join(found.results)


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        ({"completions/clipped_ratio": 0.4}, "40% of completions truncated in the last rollouts (over 10%)"),
        ({"pear/missing_close": 0.3}, "30% of completions never close their thinking in the last rollouts (over 10%)"),
        ({"groups/without_spread": 1.0}, "in 100% of the last 10 rollouts every group had equal rewards"),
        ({"loss": None}, "not a number: loss in 3 of the last 3 logged steps"),
        ({"accuracy/verify_crash": 1.0}, "verifier: crashes in 60 of 60 logged steps"),
    ],
)
def test_what_is_unhealthy(rows, finding):
    found = verdict_of(record(evaluation(80), evaluation(130), rows=rows))
    assert found.healthy is False
    assert finding in found.health_words
    assert len(found.health.findings) == 1


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_falling_entropy_is_a_finding_unless_a_reward_asks_for_it(alpha):
    run = record(rows={"pear/alpha": alpha})
    falling = [row | {"policy_entropy/token_mean": 1.0 if row["step"] < 10 else 0.1} for row in run.train]
    found = verdict_of(replace(run, train=falling))
    assert found.healthy is bool(alpha)
    words = found.health.notes if alpha else found.health.findings
    assert len(words) == 1
    assert words[0].startswith("entropy fell to 10% of its start (1.000 → 0.100 nats)")


def test_truncation_and_tags_of_the_evaluation_count_where_training_logged_none():
    run = record(evaluation(80), evaluation(130, truncation_rate=0.5, missing_close_rate=0.6))
    rows = [{"step": 1, "loss": 0.1}]
    found = verdict_of(replace(run, train=rows)).health.findings
    assert found == [
        "50% of completions truncated in the evaluation after training (over 10%)",
        "60% of completions never close their thinking in the evaluation after training (over 10%)",
    ]


def test_the_warnings_a_run_gave_are_findings():
    found = verdict_of(record(warnings=["adapters were left on the server"]))
    assert found.health.findings == ["adapters were left on the server"]


def test_healthy_says_what_was_looked_at_and_nothing_logged_is_not_healthy():
    assert verdict_of(record()).health_words == (
        "healthy (0% truncated, 0% without a closing tag, 25% of groups without spread, entropy at 100% of its start)"
    )
    empty = verdict_of(replace(record(), train=[]))
    assert empty.healthy is None
    assert empty.health_words == "not known: no training metrics were logged"
    assert empty.cost.startswith("No step logged")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (
            {},
            "60 steps in 1 min 00 s (1 min 28 s with loading and evaluations) on 1 CPU process, 6,000 tokens generated",
        ),
        ({"world_size": 2}, "on 2 CPU processes,"),
        ({"device": "cuda:0", "device_name": "NVIDIA H200", "world_size": 4}, "on 4 × NVIDIA H200,"),
        ({"resumed_from": "checkpoint-50"}, "60 steps in 1 min 00 s on 1 CPU process,"),  # times are of the last part
        ({"finished": None, "device": None}, "60 steps in 1 min 00 s, 6,000 tokens generated"),
    ],
)
def test_cost(manifest, words):
    assert words in verdict_of(record(**manifest)).cost


def test_several_tasks_are_told_apart():
    before = {"tasks": {"easy": evaluation(80), "hard": evaluation(130)}}
    after = {"tasks": {"easy": evaluation(130), "hard": evaluation(80)}}
    found = verdict_of(record(before, after))
    assert (found.tone, found.headline) == ("bad", "More accurate (1 of 2 tasks); Less accurate (1 of 2 tasks)")
    assert found.results[0].startswith("easy: Accuracy on 200 test problems: when sampled 40.0 → 65.0 %")
    assert any(
        text.startswith("hard: Accuracy on 200 test problems: when sampled 65.0 → 40.0 %") for text in found.results
    )
    alike = verdict_of(record(before, before))
    assert alike.headline == UNCHANGED
