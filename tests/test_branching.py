"""Where forks are planned, what tree comes out, and the advantages of its rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrl.maths.branching import (
    BranchOptions,
    Costs,
    Fork,
    branch_tree,
    makes_the_window,
    plan_forks,
    tree_advantages,
    validated_windows,
    window_quantiles,
)


def options(**given):
    return BranchOptions(**({"roots": 2, "window": 2, "at": "window_start"} | given))


def high(*places, length=8, window=2):
    """Entropies 0 but for windows of 1 nat."""
    row = torch.zeros(length)
    for place in places:
        row[place : place + window] = 1.0
    return row


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"roots": 1}, "branch_roots must be >= 2, got 1"),
        ({"at": "anywhere"}, "branch_at must be one of window_start, window_end; got 'anywhere'"),
        ({"window": 0}, "branch_window must be >= 1 token, got 0"),
        ({"quantile": 95}, r"branch_quantile must be in \[0, 1\], got 95"),
        ({"attempts": 0}, "branch_attempts must be >= 1, got 0"),
        ({"token_budget": 0}, "branch_token_budget must be >= 1 token or null, got 0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        options(**wrong)


# Windows


def slow_windows(row, threshold, window, begin):
    found, t = [], begin
    while t + window <= len(row):
        if sum(row[t : t + window]) / window >= threshold:
            found.append(t)
            t += window
        else:
            t += 1
    return found


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4), st.integers(0, 5), st.integers(0, 12))
def test_windows_equal_a_plain_loop(row, window, begin, quarters):
    threshold = quarters / 4
    found = validated_windows(torch.tensor(row, dtype=torch.float64), threshold=threshold, window=window, begin=begin)
    assert found == slow_windows(row, threshold, window, begin)


@given(st.lists(st.floats(0, 2, width=32), min_size=6, max_size=12), st.integers(1, 3), st.integers(1, 6))
def test_a_window_never_depends_on_tokens_after_its_last_but_one(row, window, cut):
    """A token's entropy is known before the token; windows decided by then are the same whatever follows."""
    whole = validated_windows(torch.tensor(row), threshold=1.0, window=window)
    part = validated_windows(torch.tensor(row[:cut]), threshold=1.0, window=window)
    assert part == [t for t in whole if t + window <= cut]


def test_a_window_made_again_is_the_first_one_at_the_same_place():
    parent = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    fork = Fork(0, at=1, start=1, begin=0)
    assert makes_the_window(fork, parent, torch.tensor([1.0, 1.0]), threshold=1.0, window=2)
    assert not makes_the_window(fork, parent, torch.tensor([1.0, 0.9]), threshold=1.0, window=2)
    # three tokens: the window from 0 would need (0 + h_1 + h_2) / 3 >= 1, which 1 and 2 make before the one from 1
    fork = Fork(0, at=1, start=1, begin=0)
    assert makes_the_window(fork, parent, torch.tensor([1.0, 1.0, 1.0]), threshold=1.0, window=3)
    assert not makes_the_window(fork, parent, torch.tensor([1.0, 2.0, 3.0]), threshold=1.0, window=3)
    # and where a window ended before, none is looked for there
    assert makes_the_window(fork._replace(begin=1), parent, torch.tensor([1.0, 2.0, 3.0]), threshold=1.0, window=3)


# Plan


@pytest.mark.parametrize(("at", "first"), [("window_start", 1), ("window_end", 2)])
def test_forks_begin_at_the_first_or_the_last_token_of_the_first_windows(at, first):
    plan = plan_forks([high(1, 4), high(3)], threshold=1.0, slots=4, options=options(at=at))
    assert [(f.root, f.at) for f in plan] == [(0, first), (0, first + 3), (1, first + 2)]
    assert [(f.start, f.begin) for f in plan] == [(1, 0), (4, 3), (3, 0)]


def test_slots_are_shared_evenly_and_flow_to_later_roots_only():
    rich, poor = high(0, 2, 4, 6), high()
    three = options(roots=3)
    by_root = [
        [f.root for f in plan_forks(rows, threshold=1.0, slots=5, options=three)]
        for rows in ([rich, rich, rich], [poor, rich, rich], [rich, rich, poor], [poor, poor, rich])
    ]
    assert by_root == [[0, 0, 1, 1, 2], [1, 1, 1, 2, 2], [0, 0, 1, 1], [2, 2, 2, 2]]


@given(st.lists(st.lists(st.floats(0, 2, width=32), min_size=8, max_size=8), min_size=2, max_size=4), st.integers(1, 6))
def test_forks_before_a_point_do_not_depend_on_what_the_root_writes_after(rows, slots):
    entropies = [torch.tensor(r) for r in rows]
    opts = options(roots=len(rows), at="window_end")
    plan = plan_forks(entropies, threshold=1.0, slots=slots, options=opts)
    changed = [*entropies[:-1], torch.cat([entropies[-1][:4], 2 - entropies[-1][4:]])]
    again = plan_forks(changed, threshold=1.0, slots=slots, options=opts)
    last = len(rows) - 1

    def early(forks):
        return [f for f in forks if f.root < last or f.at < 4]

    assert early(plan) == early(again)


def test_a_budget_leaves_forks_out_and_needs_costs():
    rows, opts = [high(0, 4), high(0, 4)], options(token_budget=24)
    with pytest.raises(ValueError, match="pass costs"):
        plan_forks(rows, threshold=1.0, slots=4, options=opts)
    # roots foreseen 16; the first fork costs 8 - 0, and then nothing is left
    assert [f.at for f in plan_forks(rows, threshold=1.0, slots=4, options=opts, costs=Costs(length=8))] == [0]
    # a budget of 20 has room for one fork at 4
    cheap = options(token_budget=20)
    assert [f.at for f in plan_forks(rows, threshold=1.0, slots=4, options=cheap, costs=Costs(length=8))] == [4]
    assert plan_forks(rows, threshold=1.0, slots=4, options=cheap, costs=Costs(length=8, overrun=2.0)) == []


def test_a_budget_does_not_look_at_the_length_of_the_root_that_forks():
    opts, costs = options(token_budget=25), Costs(length=8)
    long, short = high(0, length=30), high(0, length=2)
    first = [
        [f for f in plan_forks([row, high()], threshold=1.0, slots=2, options=opts, costs=costs) if f.root == 0]
        for row in (long, short)
    ]
    assert first[0] == first[1] != []
    # but a short first root leaves room for the second's fork, and a long one does not
    assert [
        f.root for f in plan_forks([torch.zeros(1), high(0)], threshold=1.0, slots=2, options=opts, costs=costs)
    ] == [1]
    assert plan_forks([torch.zeros(10), high(0)], threshold=1.0, slots=2, options=opts, costs=costs) == []


# Tree


def test_weights_halve_at_every_fork_and_copies_share():
    tree = branch_tree(2, [Fork(0, 1, 1, 0), Fork(0, 4, 4, 3)], 6)
    # root 0: forks 1/2 and 1/4, itself 1/4; root 1 whole and copied twice, a third each
    assert tree.root == [0, 1, 0, 0, 1, 1]
    assert tree.parent == [-1, -1, 0, 0, 1, 1]
    assert tree.fork == [-1, -1, 1, 4, -1, -1]
    assert tree.weight == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1 / 4, 1 / 3, 1 / 3])
    assert tree.copied == [False] * 4 + [True] * 2


@given(st.integers(2, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=4, unique=True), st.data())
def test_a_tree_has_exactly_its_size_and_each_root_weighs_one(roots, places, data):
    forks = [Fork(root % roots, at, at, 0) for root, at in places]
    size = data.draw(st.integers(roots + len(forks), 12))
    tree = branch_tree(roots, forks, size)
    assert {len(column) for column in tree} == {size}
    for root in range(roots):
        assert sum(w for w, r in zip(tree.weight, tree.root, strict=True) if r == root) == pytest.approx(1.0)
    for i, parent in enumerate(tree.parent):
        assert (parent == -1) == (i < roots)
        assert parent == -1 or (tree.root[parent] == tree.root[i] and not tree.copied[parent])
        assert tree.copied[i] == (i >= roots + len(forks))
        assert not tree.copied[i] or tree.weight[i] == tree.weight[parent]


def test_a_tree_too_large_is_refused():
    with pytest.raises(ValueError, match="2 roots and 1 forks do not fit 2 completions"):
        branch_tree(2, [Fork(0, 1, 1, 0)], 2)


# Advantages


def slow_advantages(rewards, groups, roots, weights, scale, eps):
    """Plain loops from the formula; every completion scored."""
    out = []
    rows = range(len(rewards))

    def value(group, root):
        return sum(weights[i] * rewards[i] for i in rows if groups[i] == group and roots[i] == root)

    for i in rows:
        members = [j for j in rows if groups[j] == groups[i]]
        trees = sorted({roots[j] for j in members})
        others = [value(groups[i], t) for t in trees if t != roots[i]]
        a = len(members) / len(trees) * weights[i] * (rewards[i] - sum(others) / len(others))
        if scale != "none":
            cohort = members if scale == "group" else list(rows)
            count = len({(groups[j], roots[j]) for j in cohort})
            share = {j: weights[j] / len({roots[k] for k in rows if groups[k] == groups[j]}) for j in cohort}
            total = sum(share.values())
            mean = sum(share[j] * rewards[j] for j in cohort) / total
            variance = sum(share[j] * (rewards[j] - mean) ** 2 for j in cohort) / total * count / (count - 1)
            a /= math.sqrt(variance) + eps
        out.append(a)
    return out


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_advantages_equal_plain_loops(scale):
    generator = torch.Generator().manual_seed(3)
    trees = [
        branch_tree(2, [Fork(0, 1, 1, 0), Fork(0, 4, 4, 3)], 6),
        branch_tree(2, [], 6),
        branch_tree(3, [Fork(2, 1, 1, 0)], 6),
    ]
    rewards = torch.rand(18, generator=generator, dtype=torch.float64)
    groups = torch.tensor([7] * 6 + [2] * 6 + [5] * 6)
    roots = torch.tensor([r for t in trees for r in t.root])
    weights = torch.tensor([w for t in trees for w in t.weight], dtype=torch.float64)
    found = tree_advantages(rewards, groups, roots, weights, scale=scale, eps=1e-4)
    lists = (x.tolist() for x in (rewards, groups, roots, weights))
    assert found.tolist() == pytest.approx(slow_advantages(*lists, scale, 1e-4), abs=1e-12)


@pytest.mark.parametrize("scale", ["none", "group"])
def test_with_every_completion_a_root_they_are_trls_times_g_over_g_minus_1(scale):
    rewards = torch.tensor([1.0, 0.0, 0.0, 2.0])
    found = tree_advantages(rewards, torch.zeros(4, dtype=torch.long), torch.arange(4), torch.ones(4), scale=scale)
    trl = rewards - rewards.mean()
    if scale == "group":
        trl = trl / (rewards.std() + 1e-4)
    assert torch.allclose(found, 4 / 3 * trl, atol=1e-6)


def test_advantages_by_hand():
    # root 0: weights 1/2, 1/2, rewards 1 and 0, value 1/2; root 1: two copies of reward 1, value 1
    # A = 4/2 * w * (r - value of the other): (1)(1 - 1), (1)(0 - 1), and (1)(1 - 1/2) twice
    found = tree_advantages(
        torch.tensor([1.0, 0.0, 1.0, 1.0]),
        torch.zeros(4, dtype=torch.long),
        torch.tensor([0, 0, 1, 1]),
        torch.full((4,), 0.5),
        scale="none",
    )
    assert found.tolist() == [0.0, -1.0, 0.5, 0.5]


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_a_group_of_equals_has_exactly_no_advantage(scale):
    tree = branch_tree(3, [], 7)  # thirds
    rewards = torch.cat([torch.full((7,), 0.1), torch.arange(7) / 7])
    groups = torch.arange(2).repeat_interleave(7)
    roots, weights = torch.tensor(tree.root * 2), torch.tensor(tree.weight * 2)
    found = tree_advantages(rewards, groups, roots, weights, scale=scale)
    assert torch.equal(found[:7], torch.zeros(7))
    assert found[7:].abs().min() > 0


def test_unscored_completions_are_left_out():
    nan = math.nan
    rewards = torch.tensor([1.0, nan, 0.0, 0.0, nan, nan])
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    roots, weights = torch.tensor([0, 0, 1, 2, 0, 1]), torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 1.0])
    found = tree_advantages(rewards, groups, roots, weights, scale="none")
    # root 0 is worth 1 by its scored leaf; baselines (0 + 0)/2 and (1 + 0)/2; rows count 4/3
    assert found.tolist() == pytest.approx([4 / 3 * 0.5, 0.0, -4 / 3 * 0.5, -4 / 3 * 0.5, 0.0, 0.0])
    alone = tree_advantages(
        torch.tensor([1.0, 0.0, nan]), torch.zeros(3).long(), torch.tensor([0, 0, 1]), torch.ones(3) / 2, scale="none"
    )
    assert alone.tolist() == [0.0, 0.0, 0.0]  # no other root is left to compare with


@given(st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order):
    tree = branch_tree(2, [Fork(0, 1, 1, 0), Fork(1, 4, 4, 3)], 6)
    rewards = torch.arange(12.0).square() % 7
    groups = torch.arange(2).repeat_interleave(6)
    roots, weights = torch.tensor(tree.root * 2), torch.tensor(tree.weight * 2)
    index = torch.tensor(order)
    plain = tree_advantages(rewards, groups, roots, weights, scale="group")
    mixed = tree_advantages(rewards[index], groups[index], roots[index], weights[index], scale="group")
    assert torch.allclose(mixed, plain[index], atol=1e-6)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be group, batch or none, got 'std'"):
        tree_advantages(torch.zeros(2), torch.zeros(2).long(), torch.arange(2), torch.ones(2), scale="std")


def test_quantiles_of_window_means():
    # means of two: 0.5, 1.5, 2.5; a row of one token has no window
    found = window_quantiles([torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([5.0])], window=2, quantile=0.5)
    assert found[0] == 1.5
    assert found[1].isnan()
