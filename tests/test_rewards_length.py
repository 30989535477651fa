"""entrl_rewards.length: soft overlong against TRL's own, L1 by hand, LASER-D's limits, state and ranks."""

import json
import pickle
import random
from types import SimpleNamespace

import pytest
import torch
from entrl_rewards import laser, length
from entrl_rewards.laser import length_limit
from entrl_rewards.length import L1Exact, L1Max, LaserD, SoftOverlong
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import get_soft_overlong_punishment

from entrl.maths.difficulty import BUCKETS, bucket_of


def call(reward, lengths, *, ok=None, step=0, **signals):
    n = len(lengths)
    return reward(
        prompts=["p"] * n,
        completions=["c"] * n,
        completion_ids=[[5] * k for k in lengths],
        ok=[1] * n if ok is None else ok,
        trainer_state=SimpleNamespace(global_step=step),
        log_extra=None,
        unheard_of=3,
        **signals,
    )


@pytest.mark.parametrize(("max_length", "cache"), [(100, 20), (100, 100), (50, 0), (7, 3)])
def test_soft_overlong_equals_trl(max_length, cache):
    lengths = list(range(0, max_length + 5))
    theirs = get_soft_overlong_punishment(max_length, cache)(completion_ids=[[0] * n for n in lengths])
    assert call(SoftOverlong(max_length=max_length, cache=cache), lengths) == pytest.approx(theirs)


def test_soft_overlong_by_hand_without_tool_tokens():
    reward = SoftOverlong(max_length=10, cache=4)
    assert call(reward, [6, 8, 10, 11]) == [0.0, -0.5, -1.0, -1.0]
    mask = [torch.tensor([True] * 6 + [False] * 5)]
    assert call(reward, [11], token_mask=mask) == [0.0]


def test_l1_exact_by_hand():
    reward = L1Exact(a=0.01, correctness="column:ok")
    found = call(reward, [10, 30, 20, 5], ok=[1, 1, 0, None], target_length=[20, 20, 20, 20])
    assert found == pytest.approx([0.9, 0.9, 0.0, None])
    assert call(L1Exact(a=0.01, target=8, correctness="column:ok"), [10]) == pytest.approx([0.98])


def test_l1_max_by_hand():
    signals = {"ok": [1, 1, 0, None, 1, 1], "target_length": [100] * 6}
    lengths = [100, 90, 90, 90, 0, 300]
    multiply = call(L1Max(a=0.01, correctness="column:ok"), lengths, **signals)
    # room: (clip(.01 (100 - n), -1, 1) + 1) / 2 = .5, .55, .55, ., 1, 0
    assert multiply == pytest.approx([0.5, 0.55, 0.0, None, 1.0, 0.0])
    added = call(L1Max(a=0.01, combine="add", correctness="column:ok"), lengths, **signals)
    assert added == pytest.approx([1.5, 1.55, 0.55, None, 2.0, 1.0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.integers(1, 500), st.booleans())
def test_l1_bounds(n, target, ok):
    exact = call(L1Exact(target=target, correctness="column:ok"), [n], ok=[ok])[0]
    assert exact <= float(ok)
    assert exact == pytest.approx(float(ok) - 3e-4 * abs(n - target))
    top = call(L1Max(target=target, correctness="column:ok"), [n], ok=[ok])[0]
    assert 0 <= top <= float(ok)
    longer = call(L1Max(target=target, correctness="column:ok"), [n + 1], ok=[ok])[0]
    assert longer <= top


def slow_limit(correct_lengths, groups, grid):
    """Definition: smallest l with C * coverage(l) >= 1."""
    for limit in grid:
        if not correct_lengths or groups == 0:
            break
        expected_correct = len(correct_lengths) / groups
        coverage = sum(n <= limit for n in correct_lengths) / len(correct_lengths)
        if expected_correct * coverage >= 1 - 1e-9:
            return limit
    return grid[-1]


@pytest.mark.parametrize("seed", range(30))
def test_length_limit_matches_slow_twin(seed):
    rng = random.Random(seed)
    grid = [10, 20, 30, 40, 50]
    lengths = [rng.randint(1, 70) for _ in range(rng.randint(0, 20))]
    groups = rng.randint(0, 8)
    counts = [sum(lo < n <= lo + 10 for n in lengths) for lo in (0, 10, 20, 30, 40)]
    assert length_limit([float(c) for c in counts], float(groups), grid) == slow_limit(lengths, groups, grid)


@pytest.mark.parametrize(("right", "of", "limits"), [(3, 3, "easy"), (2, 3, "easy"), (6, 10, "medium")])
def test_the_group_says_which_limit_it_moves(right, of, limits):
    """Solve rates of 2/3 and more are easy, of 1/3 and more medium (`entrl.maths.difficulty`)."""
    reward = make_laser()
    call(reward, [5] * of, ok=[1] * right + [0] * (of - right), group_index=[0] * of)
    assert {name for name, limit in reward.limits.items() if limit == 10} == {limits}


def test_buckets_are_those_of_difficulty():
    rates = ((3, 3), (2, 3), (3, 5), (1, 3), (3, 10), (0, 3))
    assert [BUCKETS[bucket_of(*r)] for r in rates] == ["easy", "easy", "medium", "medium", "hard", "hard"]


def make_laser(**options):
    mine = {"correctness": "column:ok", "max_length": 40, "grid_step": 10, "refresh_steps": 5, "rule": "measured"}
    return LaserD(**{**mine, **options})


def test_laser_by_hand():
    reward, log = make_laser(), {}
    # group 0 (easy, 4 of 4): lengths 5 15 25 35, one group: the first grid length with one correct is 10
    # group 1 (hard, 1 of 4): its only correct one has 33 tokens: limit 40
    found = call(
        reward,
        [5, 15, 25, 35, 33, 5, 5, 5],
        ok=[1, 1, 1, 1, 1, 0, 0, 0],
        group_index=[0] * 4 + [1] * 4,
        log_metric=log.__setitem__,
    )
    assert reward.limits == {"easy": 10, "medium": 40, "hard": 40}
    assert found == [1.5, 1.0, 1.0, 1.0, 1.5, 0.0, 0.0, 0.0]
    assert log == {
        "laser_d/limit_easy": 10.0,
        "laser_d/limit_medium": 40.0,
        "laser_d/limit_hard": 40.0,
        "laser_d/correct_within_limit": 0.4,
    }


def slow_published_limit(completions, bucket, size, grid):
    """The source's rule, from its text: walk the lengths, count every answer of the bucket, floor the product."""
    at_least = {"easy": int(size * 2 / 3), "medium": int(size * 1 / 3), "hard": 1}[bucket]
    for limit in grid:
        share = len([n for n in completions if n <= limit]) / len(completions)
        if int(share * at_least) >= 1:
            return limit
    return grid[-1]


@pytest.mark.parametrize("seed", range(20))
def test_published_limits_match_a_slow_twin(seed):
    rng = random.Random(seed)
    reward = make_laser(rule="published", max_length=50)
    rows = [(g, rng.randint(1, 70), rng.random() < (0.95, 0.5, 0.1)[g % 3]) for g in range(6) for _ in range(8)]
    groups, lengths, right = zip(*rows, strict=True)
    call(reward, list(lengths), ok=list(right), group_index=list(groups))
    of_group = {g: BUCKETS[bucket_of(sum(r for h, _, r in rows if h == g), 8)] for g in range(6)}
    for bucket in BUCKETS:
        seen = [n for g, n, _ in rows if of_group[g] == bucket]
        expected = slow_published_limit(seen, bucket, 8, reward.grid) if seen else 50
        assert reward.limits[bucket] == expected, bucket


def test_published_limits_by_hand():
    """Groups of 8: the limit covers 1/5 of all lengths where 6 are right, 1/2 where 3 are, all where 1 is."""
    reward = make_laser(rule="published", wrong=-0.5)
    lengths = [5, 15, 25, 25, 35, 35, 35, 35]
    right, groups = [1] * 6 + [0] * 2 + [1] * 3 + [0] * 5 + [1] + [0] * 7, [0] * 8 + [1] * 8 + [2] * 8
    found = call(reward, lengths * 3, ok=right, group_index=groups)
    # easy: floor(16/3) = 5, and 2/8 <= 20 is the first share of 1/5; medium: floor(8/3) = 2, 4/8 <= 30; hard: 8/8 <= 40
    assert reward.limits == {"easy": 20, "medium": 30, "hard": 40}
    assert found[:8] == [1.5, 1.5, 1.0, 1.0, 1.0, 1.0, -0.5, -0.5]
    assert found[8:16] == [1.5, 1.5, 1.5, -0.5, -0.5, -0.5, -0.5, -0.5]
    measured = make_laser()
    call(measured, lengths * 3, ok=right, group_index=groups)
    assert measured.limits == {"easy": 10, "medium": 10, "hard": 10}  # the shortest right answer of each is one


def test_lengths_beyond_the_grid_count_as_not_covered():
    reward = make_laser(rule="published")
    call(reward, [5] + [60] * 7, group_index=[0] * 8)
    assert reward.limits["easy"] == 40  # 1/8 is less than 1/5, and nothing else fits: the longest limit


def test_laser_refresh_interval_and_unseen_buckets():
    reward = make_laser()
    call(reward, [5, 15], group_index=[0, 0], step=0)
    assert reward.limits["easy"] == 10
    call(reward, [25, 25], group_index=[0, 0], step=4)
    assert reward.limits["easy"] == 10  # too early
    call(reward, [25, 25], group_index=[0, 0], step=5)
    assert reward.limits["easy"] == 30  # two groups since the refresh, four correct, all of 25 tokens
    call(reward, [5, 5, 5], ok=[1, 0, 0], group_index=[0, 0, 0], step=10)
    assert reward.limits == {"easy": 30, "medium": 10, "hard": 40}  # easy was not seen: keeps its limit


def test_laser_evaluation_and_unknown_verdicts_teach_nothing():
    reward = make_laser()
    call(reward, [5, 5], group_index=[0, 0], training=False)
    assert reward.limits["easy"] == 40
    assert call(reward, [5, 35], ok=[None, 1], group_index=[0, 0]) == [None, 1.5]
    assert reward.limits["easy"] == 40  # only the 35-token one is known


def test_laser_without_any_correct():
    reward, log = make_laser(), {}
    assert call(reward, [5, 5], ok=[0, 0], group_index=[0, 0], log_metric=log.__setitem__) == [0.0, 0.0]
    assert reward.limits["hard"] == 40
    assert "laser_d/correct_within_limit" not in log
    too_long = make_laser()
    assert call(too_long, [60, 60], group_index=[0, 0]) == [1.0, 1.0]  # beyond every limit


def test_laser_state_resumes_through_json():
    one, other = make_laser(), make_laser()
    batches = [([5, 15, 25], [1, 1, 0], 0), ([12, 22, 32], [1, 0, 1], 3), ([8, 8, 8], [1, 1, 1], 6)]
    for lengths, ok, step in batches[:2]:
        call(one, lengths, ok=ok, group_index=[0] * 3, step=step)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    saved = one.state_dict()
    lengths, ok, step = batches[2]
    found = [call(r, lengths, ok=ok, group_index=[0] * 3, step=step) for r in (one, other)]
    assert found[0] == found[1]
    assert one.state_dict() == other.state_dict()
    assert saved != one.state_dict()  # a saved state is a copy
    with pytest.raises(ValueError, match="the saved state has 4 grid lengths, these options 8"):
        make_laser(max_length=80).load_state_dict(saved)


def test_laser_is_the_same_on_one_and_two_ranks():
    lengths, ok, groups = [5, 15, 25, 33, 8, 40], [1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]
    together = call(one := make_laser(), lengths, ok=ok, group_index=groups)
    facts: list[list[float]] = []
    for part in (slice(0, 3), slice(3, 6)):  # first pass: what each rank would send
        call(make_laser(), lengths[part], ok=ok[part], group_index=groups[part], gather=lambda x: facts.append(x) or x)
    halves, states = [], []
    for part in (slice(0, 3), slice(3, 6)):
        rank = make_laser()
        halves += call(rank, lengths[part], ok=ok[part], group_index=groups[part], gather=lambda x: facts[0] + facts[1])
        states.append(rank.state_dict())
    assert halves == together
    assert states[0] == states[1] == one.state_dict()


def test_laser_gathers_equally_many_floats_on_every_rank():
    sent = []
    call(make_laser(), [5, 6, 7], ok=[None, 0, 1], group_index=[0] * 3, gather=lambda x: sent.append(x) or x)
    assert [len(x) for x in sent] == [12]  # four facts of each of three completions


def test_faces():
    names = ["soft_overlong", "l1_exact", "l1_max", "laser_d"]
    assert [getattr(length, n).__name__ for n in names] == names
    assert length.reward is length.soft_overlong
    assert laser.reward is length.laser_d
    for name in names:
        ready = getattr(length, name)
        assert pickle.loads(pickle.dumps(ready)) == ready
    assert LaserD.needs_whole_groups


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SoftOverlong(max_length=10, cache=11), "cache must be between 0 and max_length=10 tokens, got 11"),
        (lambda: L1Exact(a=0), "a must be > 0"),
        (lambda: L1Exact(target=0), "target must be >= 1 token"),
        (lambda: L1Max(combine="sum"), "combine must be multiply or add, got 'sum'"),
        (lambda: LaserD(bonus=-0.1), "bonus must be >= 0"),
        (lambda: LaserD(grid_step=0), r"grid_step must be in \[1, max_length=8192\] tokens, got 0"),
        (lambda: LaserD(refresh_steps=0), "refresh_steps must be >= 1"),
        (lambda: LaserD(rule="paper"), "rule must be published or measured, got 'paper'"),
        (lambda: LaserD(wrong=1.0), "wrong must be < 1, what a correct completion earns"),
        (lambda: call(L1Exact(correctness="column:ok"), [5]), "no column 'target_length'; add it, or set target"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_laser_outside_its_trainer():
    with pytest.raises(TypeError, match="needs group_index, which stock TRL does not pass; use EntropyGRPOTrainer"):
        call(make_laser(), [5])
