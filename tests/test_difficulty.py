"""entrl.maths.difficulty: buckets by whole numbers, targets, and answers that do not depend on order or ranks."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrl.maths.difficulty import BUCKETS, UNKNOWN, Targets, bucket_means, bucket_of, group_buckets
from entrl_lab.conformance.published_ares import difficulty_update


def level_of(correct, known):
    return BUCKETS[bucket_of(correct, known)]


def test_groups_of_eight_are_the_papers():
    assert [level_of(c, 8) for c in range(9)] == ["hard"] * 3 + ["medium"] * 3 + ["easy"] * 3


@pytest.mark.parametrize(
    ("correct", "known", "level"),
    # borders are inside the easier bucket: 2/3 is easy, 1/3 medium, for every size
    [
        *((2, 3, "easy"), (1, 3, "medium"), (0, 3, "hard"), (4, 6, "easy"), (2, 6, "medium"), (200, 300, "easy")),
        *((199, 300, "medium"), (100, 300, "medium"), (99, 300, "hard")),
        *((1, 1, "easy"), (0, 1, "hard"), (1, 2, "medium")),
    ],
)
def test_borders(correct, known, level):
    assert level_of(correct, known) == level


def test_buckets_agree_with_exact_fractions_and_with_the_published_floats():
    """The published code compares c / G with 2/3 and 1/3 in floats; both sides are rounded once, so it agrees."""
    for known in range(1, 200):
        for correct in range(known + 1):
            share = Fraction(correct, known)
            exact = 0 if share >= Fraction(2, 3) else 1 if share >= Fraction(1, 3) else 2
            floats = 0 if correct / known >= 2 / 3 else 1 if correct / known >= 1 / 3 else 2
            assert bucket_of(correct, known) == exact == floats


@given(st.integers(1, 64), st.data())
def test_more_right_answers_are_never_harder(known, data):
    correct = data.draw(st.integers(0, known - 1))
    assert bucket_of(correct + 1, known) <= bucket_of(correct, known)


def test_a_group_without_a_verdict_has_no_bucket():
    assert bucket_of(0, 0) == UNKNOWN
    assert group_buckets([4, 4, 9], [None, None, True]) == {4: UNKNOWN, 9: 0}


def test_unknown_verdicts_are_neither_right_nor_wrong():
    assert group_buckets([1, 1, 1, 1], [True, True, None, False]) == {1: bucket_of(2, 3)} == {1: 0}


@pytest.mark.parametrize(("correct", "known"), [(3, 2), (-1, 4), (1, 0)])
def test_impossible_counts_are_refused(correct, known):
    with pytest.raises(ValueError, match=f"a group has {correct} right answers of {known}"):
        bucket_of(correct, known)


# Slow twins


def slow_buckets(groups, verdicts):
    found = {}
    for group in groups:
        known = [v for g, v in zip(groups, verdicts, strict=True) if g == group and v is not None]
        if not known:
            found[group] = UNKNOWN
        elif Fraction(sum(known), len(known)) >= Fraction(2, 3):
            found[group] = 0
        else:
            found[group] = 1 if Fraction(sum(known), len(known)) >= Fraction(1, 3) else 2
    return found


def slow_means(groups, values, buckets):
    """Mean over prompts of the prompt's mean, in fractions."""
    found = []
    for d in range(3):
        prompts = [g for g in dict.fromkeys(groups) if buckets[g] == d]
        means = [
            Fraction(sum(Fraction(v) for h, v in zip(groups, values, strict=True) if h == g), groups.count(g))
            for g in prompts
        ]
        found.append(float(sum(means) / len(means)) if means else None)
    return found


verdict = st.sampled_from([True, False, None])
a_row = st.tuples(st.integers(0, 5), verdict, st.floats(0, 1e6) | st.integers(0, 300))
some_rows = st.lists(a_row, min_size=1, max_size=40)


@given(some_rows)
def test_buckets_and_means_match_the_loop(rows):
    groups, verdicts, values = (list(column) for column in zip(*rows, strict=True))
    buckets = group_buckets(groups, verdicts)
    assert buckets == slow_buckets(groups, verdicts)
    want = slow_means(groups, values, buckets)
    got = bucket_means(groups, values, buckets)
    assert [m is None for m in got] == [m is None for m in want]
    assert [m for m in got if m is not None] == pytest.approx([m for m in want if m is not None], rel=1e-12)


@given(some_rows, st.randoms(use_true_random=False))
def test_not_a_bit_depends_on_order_or_on_how_groups_lie_on_ranks(rows, rng):
    """Ranks hand over their rows one after the other, so any deal of rows to ranks is some order of the same rows."""
    shuffled = rows[:]
    rng.shuffle(shuffled)

    def means(rows):
        groups, verdicts, values = (list(column) for column in zip(*rows, strict=True))
        buckets = group_buckets(groups, verdicts)
        return buckets, bucket_means(groups, values, buckets)

    assert means(shuffled) == means(rows)


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_exact_so_that_order_cannot_reach_the_last_bit(seed):
    rng = random.Random(seed)
    groups = [g for g in range(30) for _ in range(5)]
    values = [rng.random() * 10 ** rng.randint(-3, 3) for _ in groups]
    order = list(range(len(groups)))
    rng.shuffle(order)
    buckets = {g: g % 3 for g in range(30)}
    shuffled = bucket_means([groups[i] for i in order], [values[i] for i in order], buckets)
    assert shuffled == bucket_means(groups, values, buckets)


def test_a_prompt_counts_once_however_many_completions_it_has():
    # prompt 1: mean 10 from four completions, prompt 2: mean 2 from one; (10 + 2) / 2 = 6, not 42 / 5
    buckets = {1: 0, 2: 0}
    assert bucket_means([1, 1, 1, 1, 2], [10, 10, 4, 16, 2], buckets) == [6.0, None, None]


def test_means_of_an_unknown_group_reach_no_bucket():
    assert bucket_means([7, 7], [3.0, 5.0], {7: UNKNOWN}) == [None, None, None]


# Targets

means_of_steps = st.lists(st.lists(st.none() | st.floats(0, 500), min_size=3, max_size=3), min_size=1, max_size=8)


@given(means_of_steps, st.floats(0, 0.99))
def test_targets_match_the_loop(steps, decay):
    targets, want = Targets(decay=decay), [None, None, None]
    for means in steps:
        promised = targets.after(means)
        assert targets.after(means) == promised, "asking changes nothing"
        targets.update(means)
        for d, mean in enumerate(means):
            if mean is not None:
                want[d] = mean if want[d] is None else decay * want[d] + (1 - decay) * mean
        assert targets.values == promised
        assert [t is None for t in targets.values] == [t is None for t in want]
        assert [t for t in targets.values if t is not None] == pytest.approx([t for t in want if t is not None])


@given(means_of_steps, st.integers(0, 7))
def test_a_checkpoint_continues_to_the_bit(steps, at):
    straight, first = Targets(), Targets()
    for means in steps:
        straight.update(means)
    for means in steps[:at]:
        first.update(means)
    second = Targets()
    second.load_state_dict(first.state_dict())
    for means in steps[at:]:
        second.update(means)
    assert second.values == straight.values


def test_state_is_a_copy():
    targets = Targets()
    state = targets.state_dict()
    targets.update([1.0, 2.0, None])
    assert state == {"values": [None, None, None]}
    assert Targets().values == [None, None, None], "no instance shares its list with another"


def test_targets_by_hand():
    targets = Targets(decay=0.9)
    targets.update([10.0, None, 4.0])
    assert targets.values == [10.0, None, 4.0], "a bucket begins with its own mean"
    targets.update([20.0, 8.0, None])
    assert targets.values == pytest.approx([11.0, 8.0, 4.0]), "and one that is absent stays"


def test_published_targets_round_half_to_even_and_forget():
    targets = Targets(rounded=True)
    targets.update([2.5, 3.5, 40.4])
    assert targets.values == [2.0, 4.0, 40.0]
    targets.update([7.6, None, None])
    assert targets.values == [8.0, 4.0, 40.0]


@pytest.mark.parametrize("decay", [1.0, -0.5])
def test_target_decay_is_checked(decay):
    with pytest.raises(ValueError, match="decay must be in"):
        Targets(decay=decay)


# Ours against the published update


@pytest.mark.parametrize("seed", range(5))
def test_the_published_step_has_our_buckets_and_rounded_means(seed):
    rng = random.Random(seed)
    groups = [g for g in range(9) for _ in range(8)]
    rng.shuffle(groups)
    skill = [rng.random() for _ in range(9)]
    correct = [int(rng.random() < skill[g]) for g in groups]
    counts = [rng.randint(0, 60) for _ in groups]
    theirs = difficulty_update(groups, correct, counts, alpha=dict.fromkeys(BUCKETS, 0.5), target={})
    buckets = group_buckets(groups, [bool(c) for c in correct])
    targets = Targets(rounded=True, decay=0.0)
    targets.update(bucket_means(groups, counts, buckets))
    assert theirs.difficulty == {g: BUCKETS[d] for g, d in buckets.items()}
    assert theirs.target == {name: t for name, t in zip(BUCKETS, targets.values, strict=True) if t is not None}


def test_the_published_alpha_walks_at_random():
    """Its steps are the rounding residue of the target: at most 0.025, without drift (card, section 3)."""
    rng = random.Random(0)
    alpha, walks = dict.fromkeys(BUCKETS, 0.5), []
    for _ in range(250):
        correct = [int(rng.random() < g / 12) for g in range(12) for _ in range(8)]
        groups = [g for g in range(12) for _ in range(8)]
        after = difficulty_update(groups, correct, [rng.randint(0, 60) for _ in groups], alpha=alpha, target={}).alpha
        walks.extend(after[d] - alpha[d] for d in BUCKETS)
        alpha = after
    assert max(map(abs, walks)) <= 0.05 / 2 + 1e-12
    assert abs(math.fsum(walks) / len(walks)) < 0.002
    assert max(abs(alpha[d] - 0.5) for d in BUCKETS) > 0.05, "and yet it has gone somewhere"
