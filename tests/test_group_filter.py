"""Group filter: verdicts against plain loops, filling and splicing of batches by hand, prompts by rank."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrl.controllers.hooks import OneRank
from entrl.maths.group_filter import VERDICTS, GroupFilter, accuracy_verdict, spread_verdict
from entrl.trainers.grpo.group_filter import GroupFiltering, PromptSource
from entrl.trainers.grpo.splice import Batch, spliced
from entrl.trainers.refusals.part_options import filter_problems, filter_rule
from entrl.trainers.shared.rollout import Rollout

G, PAD = 2, 9
scores = st.lists(st.sampled_from([0, 1, None]), min_size=1, max_size=12)


# Verdicts


@given(scores, st.integers(0, 50), st.integers(51, 100))
def test_accuracy_in_whole_numbers(given_scores, low, high):
    """100 c against low n and high n, for right answers c among n known ones."""
    verdict = accuracy_verdict(given_scores, low=low / 100, high=high / 100)
    n, c = sum(s is not None for s in given_scores), sum(s == 1 for s in given_scores)
    if n == 0:
        assert verdict == "unknown"
    elif 100 * c <= low * n:
        assert verdict == "too_hard"
    elif 100 * c >= high * n:
        assert verdict == "too_easy"
    else:
        assert verdict == "kept"


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 0.29])
def test_a_group_on_the_bound_is_outside_whatever_floats_say(bound):
    """29 of 100: the float 0.29 is below 29/100, which would let the group in."""
    right = round(bound * 100)
    assert Fraction(right, 100) != Fraction(bound)
    on_it = [1] * right + [0] * (100 - right)
    assert accuracy_verdict(on_it, low=bound, high=0.99) == "too_hard"
    assert accuracy_verdict(on_it, low=0.01, high=bound) == "too_easy"


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=9), st.floats(0, 2))
def test_spread(rewards, least):
    given_rewards = [r for r in rewards if r is not None]
    verdict = spread_verdict(rewards, min_std=least)
    if not given_rewards:
        assert verdict == "unknown"
    elif len(given_rewards) == 1:
        assert verdict == "flat"
    else:
        mean = sum(given_rewards) / len(given_rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in given_rewards) / (len(given_rewards) - 1))
        if abs(std - least) > 1e-9:
            assert verdict == ("kept" if std > least else "flat")


def test_equal_rewards_are_flat_to_the_last_bit():
    assert spread_verdict([0.1 + 0.2] * 7, min_std=0.0) == "flat"
    assert spread_verdict([0.3, 0.1 + 0.2], min_std=0.0) == "kept"


def test_graded_scores():
    assert accuracy_verdict([0.995, 0.995], low=0.01, high=0.99) == "too_easy"
    assert accuracy_verdict([0.5, None, 0.995], low=0.01, high=0.99) == "kept"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "length"}, "filter_on must be"),
        ({"low": 0.5, "high": 0.5}, "filter_low < filter_high"),
        ({"high": 1.1}, "filter_low < filter_high"),
        ({"min_std": -1.0}, "filter_min_std"),
        ({"max_tries": 0}, "first included"),
        ({"on_exhausted": "stop"}, "on_exhausted"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        GroupFilter(**{"on": "accuracy"} | options)


def test_how_many_are_drawn_next():
    rule = GroupFilter(on="reward")
    assert rule.groups_to_draw(3, kept=0, seen=8, most=8) == 8  # nothing is known of the pass rate
    assert rule.groups_to_draw(3, kept=4, seen=8, most=8) == 6  # one in two passes
    assert rule.groups_to_draw(1, kept=8, seen=8, most=8) == 1
    assert rule.groups_to_draw(7, kept=1, seen=8, most=8) == 8


# Filling: groups of two rows, each row's tokens telling which draw, group and row it is


def token(draw, group, i):
    return 100 * draw + 10 * group + i + 11


def batch(draw, verdicts, *, width=3, prompt_width=2, rewards=None):
    """One group per score pair in `verdicts`; widths in tokens, rows of different lengths."""
    rows = [(g, i) for g in range(len(verdicts)) for i in range(G)]
    prompts = [[token(draw, g, 0)] * (1 + (g % prompt_width)) for g, _ in rows]
    ids = [[token(draw, g, i)] * (1 + (g + i) % width) for g, i in rows]
    P, T = max(map(len, prompts)), max(map(len, ids))

    def right(values, fill):
        return torch.tensor([v + [fill] * (T - len(v)) for v in values])

    lefts = torch.tensor([[PAD] * (P - len(p)) + p for p in prompts])
    known = [float(s) if s is not None else math.nan for pair in verdicts for s in pair]
    scored = torch.tensor([known]).T if rewards is None else torch.tensor(rewards).float()
    return Batch(
        output={
            "prompt_ids": lefts,
            "prompt_mask": (lefts != PAD).long(),
            "completion_ids": right(ids, PAD),
            "completion_mask": right([[1] * len(c) for c in ids], 0),
            "advantages": torch.tensor([float(token(draw, g, i)) for g, i in rows]),
            "old_per_token_logps": right([[-float(t) for t in c] for c in ids], 0.0),
            "num_items_in_batch": torch.tensor(float(sum(map(len, ids)))),
        },
        rollout=Rollout(
            prompt_ids=prompts,
            completion_ids=ids,
            tool_mask=None,
            log_probs_BT=right([[-float(t) for t in c] for c in ids], 0.0),
            entropies_BT=right([[float(t) for t in c] for c in ids], 0.0),
            columns={
                "correct": [-1 if s is None else s for pair in verdicts for s in pair],
                "high_entropy": [torch.tensor(c) % 2 == 0 for c in ids],
            },
        ),
        rewards_NF=scored,
    )


def filtering(
    rule, *, names=("accuracy",), weights=(1.0,), scale="group", aggregation="sum_then_normalize", ranks=None
):
    prompts = PromptSource([{"prompt": i} for i in range(50)], seed=3, rank=0, world_size=1)
    return GroupFiltering(
        rule, prompts, group_size=G, ranks=ranks or OneRank(), reward_names=names,
        reward_weights=torch.tensor(weights), scale=scale, aggregation="sum_then_normalize", pad_token_id=PAD,
    )  # fmt: skip


def draws(later):
    """A `draw` that hands out `later` one after another, as many groups as it was asked for."""
    asked = []

    def draw(rows):
        asked.append([row["prompt"] for row in rows])
        found = later[len(asked) - 1]
        assert len(found) * G == len(rows), f"draw {len(asked)} was asked for {len(rows) // G} groups"
        return batch(len(asked), found, width=5, prompt_width=3)

    return draw, asked


WRONG, RIGHT, MIXED, NONE = (0, 0), (1, 1), (1, 0), (None, None)


def rows_of(filled):
    """(draw, group, row) of each row, read off every column that says so; all must agree."""
    out = []
    for n, ids in enumerate(filled.rollout.completion_ids):
        t = ids[0]
        given_ids = filled.output["completion_ids"][n][filled.output["completion_mask"][n].bool()].tolist()
        prompt = filled.output["prompt_ids"][n][filled.output["prompt_mask"][n].bool()].tolist()
        assert given_ids == ids
        assert prompt == filled.rollout.prompt_ids[n]
        assert prompt[0] == t - (t - 11) % 10
        assert float(filled.output["advantages"][n]) == t
        assert filled.output["old_per_token_logps"][n][: len(ids)].tolist() == [-float(t)] * len(ids)
        assert not filled.output["old_per_token_logps"][n][len(ids) :].any()
        assert filled.rollout.entropies_BT[n][: len(ids)].tolist() == [float(t)] * len(ids)
        assert filled.rollout.columns["high_entropy"][n].tolist() == [t % 2 == 0] * len(ids)
        assert (filled.output["completion_ids"][n][len(ids) :] == PAD).all()
        out.append(((t - 11) // 100, (t - 11) % 100 // 10, (t - 11) % 10))
    return out


def groups(*places):
    return [(draw, group, i) for draw, group in places for i in range(G)]


def test_rejected_places_are_filled_in_order_and_surplus_is_dropped():
    work = filtering(GroupFilter(on="accuracy"))
    first = batch(0, [RIGHT, MIXED, WRONG, MIXED])
    draw, asked = draws([[WRONG, MIXED, MIXED, MIXED]])  # 2 missing at 1 in 2: 4 groups
    filled = work.fill(first, draw)
    assert rows_of(filled) == groups((1, 1), (0, 1), (1, 2), (0, 3))
    assert filled.output["num_items_in_batch"] == sum(len(c) for c in filled.rollout.completion_ids)
    assert asked[0] == [p for p in asked[0][::G] for _ in range(G)]
    assert work.metrics == {
        "filter/pass_rate": 5 / 8, "filter/tries": 2.0, "filter/prompts": 8.0, "filter/too_hard": 2.0,
        "filter/too_easy": 1.0, "filter/unknown": 0.0, "filter/flat": 0.0, "filter/surplus": 1.0,
        "filter/unfilled": 0.0, "filter/dropped_total": 4.0, "filter/prompts_total": 8.0,
    }  # fmt: skip
    assert filled.rewards_NF.tolist() == [[1.0], [0.0]] * 4


def test_where_all_pass_the_batch_is_the_same_object():
    first = batch(0, [MIXED, MIXED])
    draw, asked = draws([])
    assert filtering(GroupFilter(on="accuracy")).fill(first, draw) is first
    assert not asked


def test_several_draws_and_the_smallest_one():
    work = filtering(GroupFilter(on="accuracy"))
    draw, asked = draws([[WRONG, WRONG], [MIXED, RIGHT], [MIXED, WRONG]])
    filled = work.fill(batch(0, [NONE, RIGHT]), draw)
    assert rows_of(filled) == groups((2, 0), (3, 0))
    assert [len(a) // G for a in asked] == [2, 2, 2]
    assert work.metrics["filter/unknown"] == 1


def test_exhausted_keeps_what_was_rejected_in_its_place_and_says_so():
    work = filtering(GroupFilter(on="accuracy", max_tries=2))
    draw, _ = draws([[MIXED, WRONG, WRONG]])
    filled = work.fill(batch(0, [RIGHT, WRONG, RIGHT]), draw)
    assert rows_of(filled) == groups((1, 0), (0, 1), (0, 2))
    assert work.metrics["filter/unfilled"] == 2
    assert work.metrics["filter/dropped_total"] == 3
    assert any("no group for 2 places in 2 generations" in note for note in work.notes)


def test_exhausted_may_stop_the_run():
    work = filtering(GroupFilter(on="accuracy", max_tries=1, on_exhausted="error"))
    with pytest.raises(RuntimeError, match="raise num_generations or filter_max_tries"):
        work.fill(batch(0, [RIGHT, MIXED]), draws([])[0])


def test_on_reward_groups_of_right_answers_with_spread_stay():
    spread, flat = [[1.0], [0.6]], [[0.0], [0.0]]
    first = batch(0, [RIGHT, WRONG], rewards=spread + flat)
    work = filtering(GroupFilter(on="reward", max_tries=1), names=["pear"])
    assert work.fill(first, draws([])[0]) is first
    assert work.metrics["filter/flat"] == 1
    assert work.metrics["filter/pass_rate"] == 0.5
    assert not any("removes groups of right answers" in note for note in work.notes)


def test_accuracy_filtering_warns_where_a_reward_ranks_right_answers():
    """PEAR beside the accuracy it is filtered by: named once, and not for a weight of 0 or a group that stays."""
    rewards = [[1.0, 1.0], [1.0, 0.7], [1.0, 1.0], [0.0, 0.0]]
    first = batch(0, [RIGHT, MIXED], rewards=rewards)
    for weight, warned in ((0.5, True), (0.0, False)):
        work = filtering(GroupFilter(on="accuracy", max_tries=1), names=["accuracy", "pear"], weights=(1.0, weight))
        work.fill(first, draws([])[0])
        text = [note for note in work.notes if "removes groups of right answers, in which pear" in note]
        assert bool(text) == warned


def test_accuracy_comes_from_the_reward_of_that_name_where_none_publishes_verdicts():
    first = batch(0, [RIGHT, MIXED])
    first.rollout.columns.pop("correct")
    work = filtering(GroupFilter(on="accuracy", max_tries=1))
    work.fill(first, draws([])[0])
    assert work.metrics["filter/too_easy"] == 1
    with pytest.raises(ValueError, match="finds no verdicts"):
        filtering(GroupFilter(on="accuracy"), names=["pear"]).fill(first, draws([])[0])


def test_split_groups_are_refused():
    odd = spliced([batch(0, [MIXED, MIXED])], [(0, 0), (0, 1)], group_size=G, pad_token_id=PAD)
    odd.rollout.completion_ids.pop()
    with pytest.raises(ValueError, match="whole groups"):
        filtering(GroupFilter(on="reward")).fill(odd, draws([])[0])


def test_rows_with_images_are_refused():
    with_image = batch(0, [MIXED])
    with_image.output["pixel_values"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="pixel_values"):
        spliced([with_image], [(0, 0)], group_size=G, pad_token_id=PAD)


@given(st.lists(st.lists(st.sampled_from([WRONG, RIGHT, MIXED, NONE]), min_size=3, max_size=3), min_size=1, max_size=4))
def test_every_prompt_is_counted_once(drawn):
    """seen = trained + dropped, and the verdicts add up to seen, for any groups."""
    work = filtering(GroupFilter(on="accuracy", max_tries=len(drawn)))
    later = iter(range(1, len(drawn)))
    total = [list(drawn[0])]

    def draw(rows):
        n = next(later)
        total.append(list(drawn[n][: len(rows) // G]))
        return batch(n, total[-1], width=4)

    filled = work.fill(batch(0, drawn[0]), draw)
    m, flat = work.metrics, [g for part in total for g in part]
    assert m["filter/prompts"] == len(flat)
    assert m["filter/dropped_total"] == len(flat) - 3
    rejected = sum(m[f"filter/{v}"] for v in VERDICTS if v != "kept")
    assert m["filter/pass_rate"] * len(flat) + rejected == pytest.approx(len(flat))
    kept = [i for i in range(3) if filled.rollout.columns["correct"][G * i : G * i + G] == list(MIXED)]
    assert len(kept) == min(3, flat.count(MIXED)) == 3 - m["filter/unfilled"]


# Prompts


def test_every_pass_shows_each_prompt_once_and_ranks_share_it():
    data = [{"prompt": i} for i in range(12)]
    sources = [PromptSource(data, seed=5, rank=r, world_size=2) for r in (0, 1)]
    taken = [[row["prompt"] for s in sources for row in s.take(n)] for n in (2, 1, 3, 6)]
    flat = [p for part in taken for p in part]
    assert sorted(flat[:12]) == sorted(flat[12:]) == list(range(12))
    assert flat[:12] != flat[12:]
    other = PromptSource(data, seed=6, rank=0, world_size=1)
    assert [row["prompt"] for row in other.take(12)] != flat[:12]


def test_prompts_resume_where_they_were():
    data = [{"prompt": i} for i in range(7)]
    whole, first = (PromptSource(data, seed=1, rank=1, world_size=2) for _ in range(2))
    expected = [whole.take(3) for _ in range(5)]
    assert [first.take(3) for _ in range(2)] == expected[:2]
    again = PromptSource(data, seed=1, rank=1, world_size=2)
    again.taken = first.taken
    assert [again.take(3) for _ in range(3)] == expected[2:]


def test_a_stream_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="streaming: false"):
        PromptSource(iter([]), seed=0, rank=0, world_size=1)


# Options


class Options:
    filter_on, filter_low, filter_high, filter_min_std = "accuracy", 0.01, 0.99, 0.0
    filter_max_tries, filter_exhausted = 20, "keep"

    def __init__(self, **changed):
        vars(self).update(changed)


class Published:
    __name__ = "published"
    published_columns = ("difficulty", "correct")


def accuracy(completions, **_):
    return [0.0] * len(completions)


def test_options():
    assert filter_rule(Options()) == GroupFilter(on="accuracy")
    assert filter_rule(Options(filter_on=None)) is None
    assert filter_rule(object()) is None  # a plain GRPOConfig
    assert filter_problems(Options(filter_on=None), [], whole_groups=False) == []
    for rewards in ([accuracy], [Published()]):
        assert filter_problems(Options(), rewards, whole_groups=True) == []
    assert "finds no verdicts" in filter_problems(Options(), [Path], whole_groups=True)[0]
    assert filter_problems(Options(filter_on="reward"), [Path], whole_groups=True) == []
    assert "split over processes" in filter_problems(Options(), [accuracy], whole_groups=False)[0]
    assert "filter_low" in filter_problems(Options(filter_low=2.0), [accuracy], whole_groups=True)[0]
