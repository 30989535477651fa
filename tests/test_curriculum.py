"""Rules, draws, pass rates and their file: what no trainer is needed for."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from entrl.curriculum.band import Band
from entrl.curriculum.birdie import Birdie, loss_reward
from entrl.curriculum.course import Course, CourseOptions
from entrl.curriculum.dart import Dart, expected_trials, prop2diff_targets, stop_reason
from entrl.curriculum.draw import draw, probabilities
from entrl.curriculum.pass_rates import Count, Group, PassRateFile, PassRates, problem_key
from entrl.curriculum.preselect import PreSelect, bits_per_character, concordance
from entrl.curriculum.rules import Prompts, Rule, Tried
from entrl.curriculum.skills import Skills, agreeing, draw_questions, is_difficult, missing_skills, skill_counts
from entrl.curriculum.uniform import Uniform
from entrl.settings.names import import_file


def prompts(trials, passes, failed=None, **columns):
    failed = [0] * len(trials) if failed is None else failed
    return Prompts(
        trials_P=np.array(trials, dtype=float),
        passes_P=np.array(passes, dtype=float),
        failed_P=np.array(failed),
        columns=columns,
    )


class Rows:
    """As much of a `datasets.Dataset` as a course reads."""

    def __init__(self, **columns):
        if "problem_id" in columns:
            columns = {"prompt": [f"{problem}?" for problem in columns["problem_id"]], **columns}
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name):
        return self.columns[name]


def course_of(rule, count=4, *, options=None, file=None, **columns):
    rows = Rows(problem_id=[f"p{i}" for i in range(count)], **columns)
    return Course(rule, options, file=file).bind(rows, seed=3)


# --- draws --------------------------------------------------------------------------------------------------------


def test_probabilities_by_hand():
    # floor .1 over 4 prompts: .9 * w / 4 + .025
    got = probabilities(np.array([0.0, 1.0, 1.0, 2.0]), floor=0.1)
    assert got.tolist() == pytest.approx([0.025, 0.25, 0.25, 0.475])


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=30), st.floats(0, 1))
def test_probabilities_sum_to_one_and_keep_the_floor(weights, floor):
    got = probabilities(np.array(weights), floor=floor)
    assert got.sum() == pytest.approx(1)
    assert (got >= floor / len(weights) * (1 - 1e-12)).all()


@given(st.lists(st.sampled_from([0.0, 1.0, 5.0]), min_size=3, max_size=12), st.integers(0, 10**6), st.data())
def test_a_draw_is_different_prompts_and_repeats_itself(weights, number, data):
    count = data.draw(st.integers(1, len(weights)))
    drawn = draw(np.array(weights), count, floor=0.0, seed=1, number=number)
    assert len(set(drawn)) == count
    assert drawn == draw(np.array(weights), count, floor=0.0, seed=1, number=number)
    weighty = sum(w > 0 for w in weights)
    if any(weights):  # those with weight come before those without
        assert sum(weights[i] > 0 for i in drawn) == min(weighty, count)


def test_the_first_prompt_is_drawn_in_proportion_to_its_weight():
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    first = [draw(weights, 2, floor=0.0, seed=0, number=n)[0] for n in range(4000)]
    counts = np.bincount(first, minlength=4)
    assert chisquare(counts, 4000 * weights / weights.sum()).pvalue > 1e-3
    assert chisquare(counts).pvalue < 1e-6  # the test can tell


@pytest.mark.parametrize("weights", [[1.0, math.nan], [1.0, -0.5], [math.inf, 1.0]])
def test_senseless_weights_are_named(weights):
    with pytest.raises(ValueError, match="weights are finite and >= 0"):
        draw(np.array(weights), 1, floor=0.1, seed=0, number=0)


def test_more_prompts_than_there_are():
    with pytest.raises(ValueError, match="a rollout of 3 different prompts cannot be drawn from 2"):
        draw(np.ones(2), 3, floor=0.1, seed=0, number=0)


# --- pass rates and their file ------------------------------------------------------------------------------------


def test_counts_fade_and_a_pass_ends_a_row_of_failures():
    rates = PassRates(decay=0.5)
    rates.add([Group("a", 8, 0), Group("b", 8, 8)])
    rates.add([Group("a", 8, 0)])
    assert rates.of("a") == Count(12.0, 0.0, 16)  # 8 / 2 + 8
    rates.add([Group("a", 4, 1), Group("b", 0, 0)])
    assert rates.of("a") == Count(10.0, 1.0, 0)
    assert rates.of("b") == Count(8.0, 8.0, 0)  # nobody judged: nothing fades
    assert rates.of("never") == Count()


# --- rules --------------------------------------------------------------------------------------------------------


def test_smoothed_rates_by_hand():
    # nothing known 1/2; 0 of 8: 1/10; 8 of 8: 9/10
    got = prompts([0, 8, 8], [0, 0, 8])
    assert got.pass_rate_P.tolist() == pytest.approx([0.5, 0.1, 0.9])
    assert got.fail_rate_P.tolist() == pytest.approx([0.5, 0.9, 0.1])


def test_uniform_says_nothing():
    assert Uniform().weights(prompts([8], [1])) is None


def test_band_takes_one_to_seven_of_eight_and_what_nobody_tried():
    known = prompts([8] * 9 + [0], [*range(9), 0])
    assert Band().weights(known).tolist() == [0, *[1] * 7, 0, 1]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1)])
def test_band_refuses(low, high):
    with pytest.raises(ValueError, match=r"0 <= low < high <= 1 is needed, got low"):
        Band(low=low, high=high)


@given(st.integers(1, 400), st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.booleans())
def test_prop2diff_is_monotone_covers_and_ends_at_its_limit(k_p, rates, divide):
    rate_P = np.array(sorted(rates)) / 1000
    got = prop2diff_targets(rate_P, k_p=k_p, divide_by_max=divide)
    assert (np.diff(got) >= 0).all()
    assert got.min() >= 1  # Cover
    assert got.max() <= k_p
    if divide and rate_P.max() > 0:
        assert got.max() == k_p


@given(st.integers(1, 400), st.integers(0, 1000))
def test_prop2diff_slow_twin(k_p, thousandths):
    want = max(1, -(-k_p * thousandths // 1000))  # ceil in whole numbers
    assert prop2diff_targets(np.array([thousandths / 1000]), k_p=k_p).tolist() == [want]


def test_prop2diff_refuses_what_is_no_rate():
    with pytest.raises(ValueError, match=r"fail rates lie in \[0, 1\]"):
        prop2diff_targets(np.array([0.5, 1.2]), k_p=8)


@pytest.mark.parametrize(
    ("trials", "correct", "reason"),
    [(0, 40, None), (0, 41, "max_n_corrects"), (52, 41, "max_n_trials"), (51, 40, None)],
    ids=["strict", "one_more", "trials_first", "below_both"],
)
def test_stop_reason(trials, correct, reason):
    assert stop_reason(max_trials=52, min_correct=40, trials=trials, correct=correct) == reason


def test_expected_trials():
    assert expected_trials(40, 0.75) == 160
    assert expected_trials(40, 1.0) == math.inf


def test_dart_weights_by_hand():
    # smoothed fail rates .1, .5, .9: ceil of 192 times them; 40 over the pass rates .9, .5, .1
    known = prompts([8, 8, 8], [8, 4, 0], failed=[0, 0, 8])
    assert Dart().weights(known).tolist() == [20, 96, 173]
    assert Dart(mode="uniform").weights(known).tolist() == pytest.approx([40 / 0.9, 80, 400])
    assert Dart(divide_by_max=True).weights(known).tolist() == [22, 107, 192]  # 192 / 9 = 21.3, 192 5/9 = 106.7


def test_dart_gives_up_on_what_never_passes_and_caps_it_before():
    known = prompts([8, 8, 1e6], [8, 4, 0], failed=[0, 0, 128])
    assert Dart().weights(known).tolist() == [20, 96, 20]
    assert Dart(give_up=0).weights(known).tolist() == [20, 96, 192]
    assert Dart(mode="uniform", give_up=0).weights(known)[2] == 2048


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "half"}, "mode must be prop2diff or uniform, got 'half'"),
        ({"k_p": 0}, "k_p must be at least 1, got 0"),
        ({"give_up": -1}, "give_up counts trials"),
    ],
)
def test_dart_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Dart(**options)


@pytest.mark.parametrize(
    ("rewards", "difficult"),
    [
        ([0.9, 0.85], True),  # the last at tau1
        ([0.85, 0.85, 0.86, 0.84 + 0.02], False),
        ([0.7, 1.0, 1.0], True),  # an earlier one at tau2
        ([0.71, 1.0, 1.0], False),
        ([1.0, 0.75, 0.75, 0.9], True),  # mean .85
        ([0.8, 0.9], True),  # the same, where floats say a little more
        ([0.85], True),
        ([0.86], False),
    ],
)
def test_thresholds_of_difficulty_are_inside(rewards, difficult):
    assert is_difficult(rewards) is difficult


def test_an_answer_without_steps():
    with pytest.raises(ValueError, match="at least one step"):
        is_difficult([])


def test_a_profile_from_a_stub_teacher_and_a_stub_reward_model():
    answers = {"q0": "a0", "q1": "a1", "q2": "a2"}
    steps = {"q0": [0.9, 0.5], "q1": [0.95, 0.99], "q2": [0.6, 0.9]}
    taught = {"q0": ["geo", "alg", "geo"], "q2": ["magic"]}
    asked = []

    def teacher(question, answer):
        asked.append((question, answer))
        return taught[question]

    hard = {q: a for q, a in answers.items() if is_difficult(steps[q])}
    found = missing_skills(hard, teacher=teacher, skills=["geo", "alg", "comb"])
    assert found.profile == {"q0": ["geo", "alg"], "q2": []}
    assert found.unknown == 1
    assert asked == [("q0", "a0"), ("q2", "a2")]
    assert skill_counts(found.profile) == {"geo": 1, "alg": 1}


def test_draws_of_skills_follow_the_profile_and_repeat_with_their_seed():
    profile = {f"q{i}": ["geo"] * (i % 3 != 0) + ["alg"] * (i % 4 == 0) for i in range(600)}
    questions = {skill: [f"{skill}{i}" for i in range(40)] for skill in ("geo", "alg", "unused")}
    drawn = draw_questions(profile, questions, per_skill=5, seed=7)
    assert drawn == draw_questions(profile, questions, per_skill=5, seed=7)
    assert drawn != draw_questions(profile, questions, per_skill=5, seed=8)
    per_skill = {s: sum(d.startswith(s) for d in drawn) for s in questions}
    assert per_skill == {"geo": 2000, "alg": 750, "unused": 0}
    # inside a skill every question alike: 2000 / 40 each
    counts = [drawn.count(q) for q in questions["geo"]]
    assert chisquare(counts).pvalue > 1e-3


def test_a_skill_with_few_questions_repeats_them_up_to_a_limit():
    profile, questions = {"q": ["geo"], "r": ["geo"], "s": ["nobody"]}, {"geo": ["g0", "g1"]}
    drawn = draw_questions(profile, questions, per_skill=5)
    assert len(drawn) == 10
    assert set(drawn) <= {"g0", "g1"}
    limited = draw_questions(profile, questions, per_skill=5, most_repeats=2)
    assert sorted(limited) == ["g0", "g0", "g1", "g1"]


@pytest.mark.parametrize(
    ("answers", "kept"),
    [(["1", "2", "3"], []), (["1", "2", "1"], [0, 2]), ([], []), (["4"], []), (["5"] * 3, [0, 1, 2])],
)
def test_one_of_three_is_no_agreement(answers, kept):
    assert agreeing(answers) == kept


SKILLED = [["geo"], ["geo", "alg"], ["alg"], ["comb"], []]


def test_skill_weights_are_the_draws_a_prompt_expects():
    # prompts 0 and 1 failed: geo is missed twice and has 2 prompts, alg once and has 2
    known = prompts([8, 8, 8, 8, 0], [0, 0, 8, 8, 0], skills=SKILLED)
    got = Skills().weights(known)
    assert got is not None
    assert got.tolist() == pytest.approx([2 / 2, 2 / 2 + 1 / 2, 1 / 2, 0, 0])
    profile = {"0": ["geo"], "1": ["geo", "alg"]}
    linked = {"geo": ["0", "1"], "alg": ["1", "2"]}
    drawn = [q for seed in range(400) for q in draw_questions(profile, linked, per_skill=1, seed=seed)]
    counts = [drawn.count(str(i)) for i in range(3)]
    assert chisquare(counts, 400 * got[:3]).pvalue > 1e-3


def test_the_skill_sampler_converges_to_the_profile():
    """Frequencies of skills among the prompts drawn, each prompt with one skill."""
    skills = [["geo"]] * 10 + [["alg"]] * 10 + [["comb"]] * 10
    passes = [0] * 6 + [8] * 4 + [0] * 3 + [8] * 7 + [0] * 1 + [8] * 9
    weights = Skills().weights(prompts([8] * 30, passes, skills=skills))
    assert weights is not None
    drawn = [draw(weights, 1, floor=0.0, seed=5, number=n)[0] for n in range(3000)]
    counts = [sum(skills[i] == [s] for i in drawn) for s in ("geo", "alg", "comb")]
    assert chisquare(counts, np.array([0.6, 0.3, 0.1]) * 3000).pvalue > 1e-3


def test_skills_says_nothing_before_anything_failed():
    assert Skills().weights(prompts([0] * 5, [0] * 5, skills=SKILLED)) is None
    assert Skills().weights(prompts([8] * 5, [8] * 5, skills=SKILLED)) is None


def test_skills_refuses():
    with pytest.raises(ValueError, match="holds 'geo'; it lists each prompt's skills"):
        Skills().weights(prompts([8], [0], skills=["geo"]))
    with pytest.raises(ValueError, match="difficult_at is a pass rate inside"):
        Skills(difficult_at=0)


@pytest.mark.parametrize(
    ("old", "new", "reward"),
    [(2, 1.98, 0.0015), (2, 1.9, 0.18), (2, 1.82, 1), (2, 2.2, -1), (2, 2, 0), (0, 0, 0), (0.3, 0, 0), (0, 0.3, 0)],
    ids=["one_percent", "five_percent", "nine_percent", "ten_up", "no_change", "solved", "reaches_0", "leaves_0"],
)
def test_the_card_s_numbers_of_birdie(old, new, reward):
    assert loss_reward(old, new) == pytest.approx(reward, rel=0.05)


@given(st.floats(0.01, 5), st.floats(0, 5))
def test_birdie_s_reward_opposes_the_change_and_is_clipped(old, new):
    got = loss_reward(old, new)
    assert -1 <= got <= 1
    assert got == 0 or (got > 0) == (new < old)


def test_birdie_refuses_a_negative_loss():
    with pytest.raises(ValueError, match="losses are >= 0"):
        loss_reward(-1, 1)


def observed(rule, known, *rollouts):
    for passes in rollouts:
        rule.observed(known, Tried(prompt_G=[0, 1], trials_G=[100, 100], passes_G=list(passes)))


def test_birdie_s_bandit_by_hand():
    known = prompts([0] * 3, [0] * 3, task=["a", "b", "b"])
    rule = Birdie(every=1, step=0.5, temperature=0.5, explore=0.2)
    assert rule.weights(known).tolist() == pytest.approx([1 / 3] * 3)
    observed(rule, known, (10, 50), (50, 50))  # losses .9 and .5, then .5 and .5
    # a: reward 1, value .5; b: no change, 0: e, 1 and 1 over e + 2, times .8, and .2 / 3 for each
    total = math.e + 2
    want = [0.8 * e / total + 0.2 / 3 for e in (math.e, 1, 1)]
    assert rule.weights(known).tolist() == pytest.approx(want)


def test_birdie_goes_on_from_its_state():
    known = prompts([0] * 2, [0] * 2, task=["a", "b"])
    whole, first, second = (Birdie(every=2) for _ in range(3))
    steps = [(9, 49), (20, 48), (30, 50), (60, 50), (70, 40)]
    observed(whole, known, *steps)
    observed(first, known, *steps[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    observed(second, known, *steps[3:])
    assert second.state_dict() == whole.state_dict()
    assert second.weights(known).tolist() == whole.weights(known).tolist()


def test_a_task_that_nobody_judged_keeps_its_loss_and_value():
    known = prompts([0] * 2, [0] * 2, task=["a", "b"])
    rule = Birdie(every=1)
    observed(rule, known, (50, 50), (60, 60))
    before = rule.state_dict()
    rule.observed(known, Tried(prompt_G=[0, 1], trials_G=[0, 100], passes_G=[0, 70]))
    after = rule.state_dict()
    for part in ("losses", "values"):
        assert after[part]["a"] == before[part]["a"]
        assert after[part]["b"] != before[part]["b"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"every": 0}, "every counts rollouts"), ({"step": 0}, "step must be in"),
     ({"temperature": 0}, "temperature must"), ({"explore": 1.5}, "explore must be in")],
)  # fmt: skip
def test_birdie_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Birdie(**options)


def test_birdie_refuses_a_prompt_without_a_task():
    with pytest.raises(
        ValueError, match="birdie: the column 'task' holds None for prompt 1; it names each prompt's task"
    ):
        course_of(Birdie(), 2, task=["a", None])


def test_concordance_of_six_models():
    scores = np.arange(6.0)
    falling = 3 - scores / 10
    got = concordance(np.stack([falling, falling[::-1], np.ones(6)]), scores)
    assert got.tolist() == [15, 0, 0]  # reversed, and all equal


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=7))
def test_concordance_slow_twin(pairs):
    want = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in combinations(pairs, 2))
    losses, scores = (np.array([float(p[i]) for p in pairs]) for i in (0, 1))
    assert concordance(losses[None], scores).tolist() == [want]


def test_preselect_keeps_the_top_share_and_its_equals():
    losses = [[3, 2, 1], [1, 2, 3], [3, 2, 1], [3, 1, 2]]
    rule = PreSelect(benchmark=[0.1, 0.2, 0.3], keep=0.25)
    assert rule.weights(prompts([0] * 4, [0] * 4, losses=losses)).tolist() == [1, 0, 1, 0]


def test_preselect_refuses():
    with pytest.raises(ValueError, match="scores of 2 models, and prompt 1 has 3 losses"):
        PreSelect(benchmark=[0.1, 0.2]).weights(prompts([0] * 2, [0] * 2, losses=[[1, 2], [1, 2, 3]]))
    with pytest.raises(ValueError, match="scores of 0 models"):
        PreSelect().weights(prompts([0], [0], losses=[[]]))
    for losses, held in ((None, "None"), ([1, None], r"\[1, None\]"), ([math.nan, 2], r"\[nan, 2\]")):
        with pytest.raises(ValueError, match=f"'losses' holds {held} for prompt 1; it lists .* leave the prompt out"):
            course_of(PreSelect(benchmark=[0.1, 0.2]), 2, losses=[[1, 2], losses])
    with pytest.raises(ValueError, match="one model makes no pair"):
        PreSelect(benchmark=[0.5])
    with pytest.raises(ValueError, match="keep is a share"):
        PreSelect(keep=0)


def test_bits_per_character():
    assert bits_per_character(math.log(2) * 12, "abcd") == pytest.approx(3)
    with pytest.raises(ValueError, match="an empty text"):
        bits_per_character(1.0, "")


# --- a course -----------------------------------------------------------------------------------------------------


def test_a_course_judges_by_the_reward_and_leaves_out_what_nobody_judged(tmp_path):
    file = PassRateFile(tmp_path / "rates.jsonl", run="r")
    course = course_of(Uniform(), file=file)
    course.record([0, 0, 0, 2, 2, 2], [1.0, 0.5, math.nan, 0.0, 0.6, 1.0], group_size=3, write=True)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert lines == [
        {"run": "r", "start": True},
        {"run": "r", "rollout": 0, "groups": [[course.problems[0], 2, 1], [course.problems[2], 3, 2]]},
    ]
    assert course.prompts().trials_P.tolist() == [2, 0, 3, 0]
    assert course.metrics()["curriculum/known"] == 0.5
    assert course.metrics()["curriculum/pass_rate"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_the_metrics_of_a_course_by_hand():
    course = course_of(Band(), options=CourseOptions(floor=0.0, decay=1.0))
    course.record([0] * 8 + [1] * 8 + [2] * 8, [1.0] * 8 + [0.0] * 8 + [1.0] * 2 + [0.0] * 6, group_size=8, write=False)
    # of 4 prompts: one solved, one unsolved, one at 2 of 8, one unknown; the band takes the last two alike
    assert course.metrics() == {
        "curriculum/known": 0.75,
        "curriculum/solved": 0.25,
        "curriculum/unsolved": 0.25,
        "curriculum/effective_prompts": 0.5,
        "curriculum/pass_rate": pytest.approx((1 + 0 + 0.25) / 3),
    }
    course.record([1] * 8 + [3] * 8, [1.0] * 8 + [0.0] * 8, group_size=8, write=False)
    course.record([0] * 8, [0.0] * 8, group_size=8, write=False)
    got = course.metrics()
    assert (got["curriculum/solved"], got["curriculum/unsolved"]) == (0.0, 0.25)


def test_rows_of_one_problem_share_their_counts():
    course = Course(Band()).bind(Rows(problem_id=["a", "b", "a"]), seed=0)
    course.record([course.code("a")] * 4, [1.0] * 4, group_size=4, write=False)
    assert course.prompts().trials_P.tolist() == [4, 0, 4]


def test_ranks_that_drew_differently_are_found():
    with pytest.raises(RuntimeError, match="one group answer different prompts"):
        course_of(Uniform()).record([0, 1], [1.0, 1.0], group_size=2, write=False)


def test_a_course_that_is_interrupted_goes_on_as_if_it_had_not_been():
    def play(course, first, last):
        course.start_pass(0)
        chosen = [course.prompts_of(n, [0, 1]) for n in range(first)]  # gone through again
        for n in range(first, last):
            chosen.append(course.prompts_of(n, [0, 1]))
            verdicts = [float((row + n + k) % 3 == 0) for row in chosen[-1] for k in range(4)]
            course.record([row for row in chosen[-1] for _ in range(4)], verdicts, group_size=4, write=False)
        return chosen

    make = lambda: course_of(Dart(), 12)  # noqa: E731
    whole, stopped, resumed = make(), make(), make()
    order = play(whole, 0, 9)
    play(stopped, 0, 5)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert play(resumed, 5, 9) == order
    assert resumed.state_dict() == whole.state_dict()
    assert len({tuple(rows) for rows in order}) > 1


def test_the_next_pass_draws_anew():
    course = course_of(Band(), 30)
    passes = []
    for number in (0, 1):
        course.start_pass(number)
        passes.append([course.prompts_of(n, [0, 1]) for n in range(5)])
    assert passes[0] != passes[1]


def test_a_course_starts_with_what_others_found():
    course = course_of(Band(), options=CourseOptions(decay=1.0))
    name = course.problems[1]
    assert name == problem_key("p1", ["p1?"])
    course.begin([[Group(name, 8, 8)], [Group(name, 8, 0), Group(problem_key("p1", ["other"]), 8, 1)]])
    assert course.prompts().trials_P.tolist() == [0, 16, 0, 0]
    assert course.prompts().passes_P.tolist() == [0, 8, 0, 0]


def test_what_a_course_refuses():
    with pytest.raises(ValueError, match=r"no column 'problem_id' \(pass rates are kept by it\), only prompt"):
        Course(Band()).bind(Rows(prompt=["a"]), seed=0)
    with pytest.raises(ValueError, match=r"no column 'skills' \(skills reads it\)"):
        Course(Skills()).bind(Rows(problem_id=["a"]), seed=0)

    with pytest.raises(
        ValueError, match=r"prompt 1 has no 'problem_id' \(null, as in 2 of 3 rows\).*give each row one"
    ):
        Course(Band()).bind(Rows(problem_id=["a", None, None]), seed=0)
    with pytest.raises(ValueError, match="a streamed data set cannot give"):
        Course(Band()).bind(iter([]), seed=0)


class Given(Rule):
    name = "given"

    def __init__(self, weights):
        self.given = weights

    def weights(self, prompts):
        return self.given


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(1), r"given gave weights of shape \(1,\) for 4 prompts"),
        ([1, 1, math.nan, 1], r"gave prompt 2 the weight nan; weights are finite and >= 0"),
        ([1, -1, 1, 1], r"gave prompt 1 the weight -1\.0"),
        (["a"] * 4, r"given gave weights that are no numbers \(could not convert string to float: 'a'\); return one"),
        ([[1], [1, 2]], r"given gave weights that are no numbers"),
    ],
)
def test_senseless_weights_are_refused_before_the_run(weights, words):
    with pytest.raises(ValueError, match=words):
        course_of(Given(weights))


def test_a_plain_list_of_weights_is_as_good_as_an_array():
    lists, arrays = (course_of(Given(weights)) for weights in ([0, 1, 2, 0], np.array([0.0, 1.0, 2.0, 0.0])))
    assert lists.prompts_of(0, [0, 1]) == arrays.prompts_of(0, [0, 1])
    assert lists.metrics() == arrays.metrics()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"decay": 0}, r"decay must be in \(0, 1\]"), ({"floor": 1.1}, "floor is a share"),
     ({"pass_above": math.nan}, "pass_above must be a finite reward")],
)  # fmt: skip
def test_course_options_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        CourseOptions(**options)


# --- nobody crowds, nobody starves --------------------------------------------------------------------------------

BENCHMARK = import_file(Path(__file__).parents[1] / "benchmarks" / "curriculum.py")


# Share of the draws that go to the solved and to the impossible prompts, at most, and the least drawn of the rest over
# even draws, at least. Even draws are 1/8, 1/8 and 1, the floor is 0.1, where some rules leave a prompt on purpose.
BOUNDS = {
    "uniform": (0.13, 0.13, 0.97),
    "band": (0.03, 0.03, 0),
    "dart prop2diff": (0.05, 0.09, 0.2),
    "dart prop2diff, by the largest": (0.05, 0.09, 0.2),
    "dart prop2diff, give_up: 0": (0.05, 0.26, 0.2),
    "dart uniform": (0.08, 0.115, 0.35),
    "dart uniform, give_up: 0": (0.06, 0.45, 0.2),
    "skills": (0.14, 0.14, 0.6),
    "skills, impossible apart": (0.15, 0.08, 0.6),
    "skills, impossible apart, give_up: 0": (0.13, 0.27, 0.45),
    "skills, one a prompt": (0.03, 0.07, 0),
    "skills, one a prompt, give_up: 0": (0.03, 0.34, 0),
    "skills, the rest at 3/4": (0.14, 0.18, 0.7),
    "skills, the rest at 3/4, give_up: 0": (0.04, 0.88, 0),
    "birdie": (0.15, 0.15, 0.6),
    "preselect": (0.08, 0.15, 0),
}


@pytest.fixture(scope="module")
def shares():
    """64 prompts, 8 solved and 8 impossible, floor .1"""
    return {name: BENCHMARK.measure(name, rollouts=800, seeds=2) for name in BENCHMARK.RULES}


@pytest.mark.parametrize("name", BENCHMARK.RULES)
def test_a_solved_prompt_does_not_crowd_and_an_impossible_one_not_starve_the_rest(name, shares):
    solved, impossible, least = BOUNDS[name]
    found = shares[name]
    assert found["share"]["solved"] < solved
    assert found["share"]["impossible"] < impossible
    assert found["relative"]["least of the rest"] > least
    assert found["found"]["median"] < 100


@pytest.mark.parametrize("name", [name for name in BOUNDS if "give_up: 0" in name])
def test_giving_up_is_what_keeps_impossible_prompts_from_taking_over(name, shares):
    """So the bounds above can tell."""
    with_it = name.removesuffix(", give_up: 0")
    assert shares[name]["share"]["impossible"] > 1.5 / 8
    assert shares[name]["share"]["impossible"] > 2 * shares[with_it]["share"]["impossible"]


def test_a_skill_is_not_missed_by_what_was_given_up_until_it_passes_once():
    given_up = prompts([16, 16], [0, 4], failed=[128, 0], skills=[["geo"], ["alg"]])
    assert Skills().weights(given_up).tolist() == [0, 1]
    assert Skills(give_up=0).weights(given_up).tolist() == [1, 1]
    assert Skills(give_up=129).weights(given_up).tolist() == [1, 1]
    assert Skills().weights(prompts([16], [0], failed=[128], skills=[["geo"]])) is None
    with pytest.raises(ValueError, match="skills: give_up counts trials, 0 for never; got -1"):
        Skills(give_up=-1)
