"""Diversity of a group's completions: slow twins, properties, its cost, and what entropy per token cannot see."""

import itertools
import json
import math
import time
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from entrl.evaluation.answers import _diversity, evaluate
from entrl.maths.diversity import (
    MEASURES,
    distinct_n,
    group_diversity,
    group_means,
    group_sums,
    pairwise_edit_distance,
    unique_share,
)
from entrl.tasks import load_task
from entrl_lab.nursery.tokenizer import character_tokenizer

GROUPS = st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=2, max_size=6)


def levenshtein(a, b):
    """The textbook table, one row at a time."""
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]


def slow_distance(completions):
    pairs = itertools.combinations(completions, 2)
    return fmean(levenshtein(a, b) / max(len(a), len(b)) if a or b else 0.0 for a, b in pairs)


def slow_distinct(completions, n):
    grams = [tuple(ids[i : i + n]) for ids in completions for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


@settings(deadline=None, max_examples=200)
@given(GROUPS)
def test_equal_to_the_slow_twins(completions):
    assert pairwise_edit_distance(completions, max_pairs=99) == pytest.approx(slow_distance(completions), abs=1e-12)
    for n in (1, 2, 4):
        assert distinct_n(completions, n) == pytest.approx(slow_distinct(completions, n), abs=1e-12, nan_ok=True)
    assert unique_share(completions) == len(set(map(tuple, completions))) / len(completions)


@settings(deadline=None)
@given(GROUPS, st.randoms(use_true_random=False), st.integers(1, 20), st.integers(1, 9))
def test_order_changes_nothing_and_values_stay_in_bounds(completions, shuffle, max_pairs, max_tokens):
    other = list(completions)
    shuffle.shuffle(other)
    options = {"max_pairs": max_pairs, "max_tokens": max_tokens}
    found = group_diversity(completions, len(completions), **options)
    assert group_diversity(other, len(other), **options) == pytest.approx(found, nan_ok=True)
    assert all(math.isnan(v) or 0 <= v <= 1 for v in found.values())
    assert pairwise_edit_distance(completions[::-1]) == pairwise_edit_distance(completions)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=9), st.integers(2, 6))
def test_identical_completions(ids, size):
    group = [ids] * size
    assert pairwise_edit_distance(group) == 0.0
    assert unique_share(group) == 1 / size
    alone = distinct_n([ids], 2)
    assert distinct_n(group, 2) == pytest.approx(alone / size, nan_ok=True)


@settings(deadline=None)
@given(GROUPS, st.integers(0, 3))
def test_one_more_copy_never_makes_a_group_more_distinct(completions, which):
    copied = [*completions, completions[which % len(completions)]]
    assert unique_share(copied) <= unique_share(completions)
    for n in (1, 2):
        before, after = distinct_n(completions, n), distinct_n(copied, n)
        assert math.isnan(before) or after <= before


def test_by_hand():
    group = [[1, 2, 3, 4], [1, 2, 4], [1, 2, 3, 4]]
    # unigrams: 4 different of 11; bigrams: 12, 23, 34, 24 of 3 + 2 + 3; distances: 1/4, 0, 1/4
    found = group_diversity([*group, [5, 5], [6, 6], [6, 7]], 3)
    assert distinct_n(group, 1) == 4 / 11
    assert distinct_n(group, 2) == 4 / 8
    assert pairwise_edit_distance(group) == pytest.approx(0.5 / 3)
    # second group: 3 of 6 unigrams, 3 of 3 bigrams, no 4-gram; distances 1, 1, 1/2
    assert found == pytest.approx(
        {
            "diversity/distinct_1": (4 / 11 + 1 / 2) / 2,
            "diversity/distinct_2": (1 / 2 + 1) / 2,
            "diversity/distinct_4": 1 / 2,  # one of the first group's two; the second group has none and is left out
            "diversity/edit_distance": (0.5 / 3 + 2.5 / 3) / 2,
            "diversity/unique": (2 / 3 + 1) / 2,
            "diversity/truncated": 0.0,
        }
    )


def test_edges():
    assert pairwise_edit_distance([[], []]) == 0.0
    assert pairwise_edit_distance([[], [1, 2]]) == 1.0
    assert math.isnan(pairwise_edit_distance([[1]]))
    assert math.isnan(pairwise_edit_distance([]))
    assert math.isnan(distinct_n([[1], []], 2))
    assert math.isnan(unique_share([]))
    for ids, groups in (([], []), ([], 4), ([[1], [2]], [0, 1]), ([[1], [2]], 1)):  # no group of two
        found = group_diversity(ids, groups)
        assert {f"diversity/{name}" for name in MEASURES} == set(found)
        assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distinct_n([[1]], 0), "n must be >= 1, got 0"),
        (lambda: pairwise_edit_distance([[1]], max_pairs=0), "max_tokens and max_pairs must be >= 1, got 1024 and 0"),
        (lambda: pairwise_edit_distance([[1]], max_tokens=0), "max_tokens and max_pairs must be >= 1, got 0 and 28"),
        (lambda: group_diversity([[1]] * 5, 2), "5 completions do not divide into groups of 2; pass whole groups"),
        (lambda: group_diversity([[1]] * 5, 0), "5 completions do not divide into groups of 0"),
        (lambda: group_diversity([[1]] * 5, [0, 0]), "5 completions but 2 group numbers; pass one per completion"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def random_group(seed, size=16, length=40, vocabulary=6):
    return torch.randint(vocabulary, (size, length), generator=torch.Generator().manual_seed(seed)).tolist()


def test_cut_and_subsampled_as_stated():
    group = random_group(0)
    assert pairwise_edit_distance(group, max_tokens=7, max_pairs=120) == slow_distance([ids[:7] for ids in group])
    exact = slow_distance(group)
    drawn = [pairwise_edit_distance(group, max_pairs=10, seed=seed) for seed in range(300)]
    assert drawn[0] == pairwise_edit_distance(group, max_pairs=10, seed=0)
    assert len(set(drawn)) > 20  # seeds choose other pairs
    error = torch.tensor(drawn).std().item() / 300**0.5
    assert abs(fmean(drawn) - exact) < 4 * error  # and none is preferred
    ids = [*random_group(1, length=5), *random_group(2, length=9)]
    assert group_diversity(ids, 16, max_tokens=5)["diversity/truncated"] == 0.5


def test_groups_by_number_are_the_groups_by_size():
    ids = [*random_group(0, size=4), *random_group(1, size=4)]
    expected = group_diversity(ids, 4)
    assert group_diversity(ids, [0] * 4 + [1] * 4) == expected
    mixed = [ids[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    assert group_diversity(mixed, [0, 1] * 4) == expected
    assert group_diversity([*ids, [9] * 40], [0] * 4 + [1] * 4 + [2]) == expected  # a group of one is left out


def test_sums_of_two_ranks_give_the_means_of_one():
    """Also where one rank has groups without 4-grams, or no group at all."""
    ids = [*random_group(0, size=4), *random_group(1, size=4, length=3), *random_group(2, size=4)]
    whole = group_diversity(ids, [0] * 4 + [1] * 4 + [2] * 4)
    for cut in (0, 4, 8):
        ranks = [group_sums(ids[:cut], [i // 4 for i in range(cut)])]
        ranks.append(group_sums(ids[cut:], [i // 4 for i in range(cut, 12)]))
        total = {name: ranks[0][name] + ranks[1][name] for name in ranks[0]}
        assert set(ranks[0]) == set(ranks[1])
        assert group_means(total | {"entropy/tokens": 3.0}) == pytest.approx(whole)


def test_cost_of_a_large_rollout():
    """32 groups of 16 completions of 16384 tokens; processor time, so that a busy machine does not fail it."""
    ids = torch.randint(50_000, (512, 16_384), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.process_time()
    found = group_diversity(ids, 16)
    assert time.process_time() - started < 2.0  # measured 0.6 s
    assert found["diversity/truncated"] == 1.0


# --- What each of the two measures sees ------------------------------------------------------------------------------


class Toy:
    """An autoregressive policy given by its next-token distribution; entropies are exact."""

    def __init__(self, length, vocabulary, probs):
        self.length, self.vocabulary, self.probs = length, vocabulary, probs  # probs(position, first token) -> (V,)

    def sample(self, size, seed):
        """`size` completions and the mean entropy over their tokens, nats."""
        generator = torch.Generator().manual_seed(seed)
        completions, entropies = [], []
        for _ in range(size):
            ids: list[int] = []
            for position in range(self.length):
                p = self.probs(position, ids[0] if ids else None)
                ids.append(int(torch.multinomial(p, 1, generator=generator)))
                entropies.append(-torch.xlogy(p, p).sum().item())
            completions.append(ids)
        return completions, fmean(entropies)


def planner():
    """All chance is in the first token: it fixes the rest, which differs from plan to plan."""
    plans = torch.randint(256, (256, 64), generator=torch.Generator().manual_seed(5))

    def probs(position, first):
        if first is None:
            return torch.full((256,), 1 / 256)
        return torch.nn.functional.one_hot(plans[first, position], 256).float()

    return Toy(64, 256, probs)


def paraphraser():
    """One text; every eighth token is a free choice among 256 spellings of the same word."""

    def probs(position, first):
        if position % 8 == 0:
            return torch.full((256,), 1 / 256)
        return torch.nn.functional.one_hot(torch.tensor(position), 256).float()

    return Toy(64, 256, probs)


def test_low_token_entropy_with_high_diversity_and_the_converse():
    plans, plan_entropy = planner().sample(16, seed=0)
    words, word_entropy = paraphraser().sample(16, seed=0)
    # ln 256 nats: once in 64 tokens, or eight times
    assert plan_entropy == pytest.approx(math.log(256) / 64)
    assert word_entropy == pytest.approx(math.log(256) / 8)
    plan, word = group_diversity(plans, 16), group_diversity(words, 16)
    assert plan["diversity/edit_distance"] > 0.9
    assert word["diversity/edit_distance"] == pytest.approx(1 / 8, abs=0.01)  # by substitution, place by place
    for name in ("distinct_2", "distinct_4"):
        assert plan[f"diversity/{name}"] > 1.5 * word[f"diversity/{name}"]
    # Eight times less entropy a token, seven times the distance. Whole-text uniqueness sees no difference at all.
    assert plan["diversity/unique"] > 0.9
    assert word["diversity/unique"] > 0.9


def test_collapsed_policy_has_neither():
    same = Toy(64, 256, lambda position, first: torch.nn.functional.one_hot(torch.tensor(position), 256).float())
    completions, entropy = same.sample(16, seed=0)
    found = group_diversity(completions, 16)
    assert entropy == found["diversity/edit_distance"] == 0.0
    assert found["diversity/unique"] == 1 / 16


# --- In evaluations --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).eval()


def evaluation(model, tokenizer, *, samples, temperature=1.0):
    dataset = load_task("sums", split="test", size=3, seed=0)
    options = {"max_new_tokens": 8, "progress": False, "score": lambda texts, *_: [0.0] * len(texts)}
    return evaluate(model, tokenizer, dataset, samples=samples, temperature=temperature, **options)


def test_evaluation_measures_the_samples_of_a_problem(model, tokenizer):
    hot = evaluation(model, tokenizer, samples=4)
    assert json.loads(json.dumps(hot, allow_nan=False)) == hot
    assert hot["diversity"]["edit_distance"] > 0.5  # random weights: anything goes
    assert hot["diversity"]["unique"] == 1.0
    cold = evaluation(model, tokenizer, samples=4, temperature=1e-4)
    assert cold["diversity"]["edit_distance"] == 0.0
    assert cold["diversity"]["unique"] == 1 / 4
    assert "diversity" not in evaluation(model, tokenizer, samples=1)


def test_evaluation_groups_by_problem_and_knows_no_nan():
    def drawn(*rows):
        return [
            {"diversity": group_sums(pair, [i, i])} for i, pair in enumerate(zip(rows[::2], rows[1::2], strict=True))
        ]

    # two samples a problem: the same twice, then two different ones
    found = _diversity(drawn([1, 2], [1, 2], [3, 4], [5, 6]))
    assert found == {"distinct_1": 0.75, "distinct_2": 0.75, "edit_distance": 0.5, "unique": 0.75}
    assert _diversity(drawn([1], [2])) == {"distinct_1": 1, "distinct_2": None, "edit_distance": 1, "unique": 1}
