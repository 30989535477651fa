"""The gradient of branched rollouts on a language small enough to add up every rollout: right with our weights, checks
and baseline, and wrong without any one of them."""

import pytest
import torch
from toy_tree import (
    Language,
    best_windows,
    even_leaves,
    every_rollout,
    misses,
    moments,
    ours,
    own_root_baseline,
    plain,
    settings,
    token_sharers,
    two_roots,
    unweighted,
)

from entrl.maths.branching import Fork, makes_the_window, validated_windows

SHORT = Language(length=3)
POINTS = ["window_end", "window_start"]


def off(language, setting, way=ours):
    """(along, across) of one way to estimate, over every rollout."""
    rollouts, _ = every_rollout(language, setting)
    return misses(language, moments(language, rollouts, way(language, rollouts)))


def test_the_language_knows_its_gradient():
    language = Language(length=3)
    logits = torch.stack(list(language.policy.values())).log().requires_grad_()
    log_p = logits.log_softmax(-1)
    value = sum(
        torch.stack([log_p[language.nodes[text[:t]], text[t]] for t in range(len(text))]).sum().exp()
        * language.rewards[i]
        for i, text in enumerate(language.texts)
    )
    value.backward()
    assert torch.allclose(logits.grad.flatten(), language.gradient(), atol=1e-12)
    assert float(language.chances.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_estimate_is_unbiased_and_some_rollouts_fork(at, seed):
    language = Language(length=3, seed=seed)
    rollouts, _ = every_rollout(language, settings(language, at=at))
    assert sum(r.chance for r in rollouts) == pytest.approx(1.0, abs=1e-12)
    assert sum(r.chance for r in rollouts if r.distinct > 2) > 0.2
    found = moments(language, rollouts, ours(language, rollouts))
    assert torch.allclose(found.mean, language.gradient(), atol=1e-12)


@pytest.mark.parametrize("attempts", [1, 3])
def test_failed_attempts_do_not_bias(attempts):
    setting = settings(SHORT, at="window_start", attempts=attempts)
    assert off(SHORT, setting) == pytest.approx((1.0, 0.0), abs=1e-10)


@pytest.mark.parametrize("at", POINTS)
def test_the_sum_over_rollouts_and_the_formula_agree(at):
    setting = settings(SHORT, at=at)
    rollouts, tokens = every_rollout(SHORT, setting)
    listed, (formula, same_tokens) = moments(SHORT, rollouts, ours(SHORT, rollouts)), two_roots(SHORT, setting)
    assert torch.allclose(listed.mean, formula.mean, atol=1e-12)
    assert listed.variance == pytest.approx(formula.variance, rel=1e-10)
    assert tokens == pytest.approx(same_tokens, rel=1e-12)


@pytest.mark.parametrize("at", POINTS)
def test_several_forks_of_one_root_are_unbiased(at):
    language = Language(length=5, ends=False)
    setting = settings(language, at=at, size=6, below=0.4)
    forks = [len(setting.forks([language.entropies(t), language.entropies(t)])[0]) for t in language.texts]
    assert max(forks) == 4
    found, _ = two_roots(language, setting)
    assert torch.allclose(found.mean, language.gradient(), atol=1e-12)


def test_the_check_that_no_earlier_window_appears_is_needed(monkeypatch):
    """Only from three tokens on does the window before the fork see a token of the fork."""
    language = Language(length=5, ends=False)
    setting = settings(language, at="window_start", window=3, below=0.6)
    assert misses(language, two_roots(language, setting)[0]) == pytest.approx((1.0, 0.0), abs=1e-10)
    language.cache.clear()

    def only_here(fork, parent, drawn, *, threshold, window):
        row = torch.cat([parent[: fork.start], drawn[:window]])
        return bool(validated_windows(row, threshold=threshold, window=window, begin=fork.start))

    monkeypatch.setattr("toy_tree.makes_the_window", only_here)
    assert misses(language, two_roots(language, setting)[0])[1] == pytest.approx(0.121, abs=1e-3)


def test_forks_not_held_to_the_window_bias_the_estimate():
    language = Language(length=3, seed=2)
    along, across = off(language, settings(language, at="window_start")._replace(recheck=False))
    assert along == pytest.approx(0.734, abs=1e-3)
    assert across == pytest.approx(0.0878, abs=1e-3)


@pytest.mark.parametrize("at", POINTS)
def test_other_ways_to_weigh_miss_the_gradient(at):
    setting = settings(SHORT, at=at)
    rollouts, _ = every_rollout(SHORT, setting)
    for way in (unweighted, own_root_baseline):
        assert misses(SHORT, moments(SHORT, rollouts, way(SHORT, rollouts)))[1] > 0.05
    assert misses(SHORT, token_sharers(SHORT, rollouts))[1] > 0.3


def test_even_shares_for_a_number_of_leaves_that_depends_on_the_text_are_biased():
    language = Language(length=3, ends=False)
    setting = settings(language, at="window_end", window=1, size=6, below=0.4)
    assert off(language, setting, even_leaves)[1] > 1e-3
    assert off(language, setting) == pytest.approx((1.0, 0.0), abs=1e-10)


def test_choosing_the_highest_windows_looks_ahead_and_is_biased():
    language = Language(length=3, ends=False)
    setting = settings(language, at="window_end", window=1, below=0.4)
    assert off(language, best_windows(setting))[1] > 0.01


def test_a_threshold_of_the_rollout_in_hand_is_biased():
    assert off(SHORT, settings(SHORT, at="window_start")._replace(own_threshold=True))[1] > 0.01


def test_what_plain_sampling_varies_by_is_right():
    """The closed form against every pair of completions."""
    chances, rewards, scores = SHORT.chances, SHORT.rewards, SHORT.scores
    pair = 0.5 * (rewards[:, None] - rewards)[..., None] * (scores[:, None] - scores)
    chance = chances[:, None] * chances
    mean = (chance[..., None] * pair).sum((0, 1))
    variance = float((chance * (pair - mean).square().sum(-1)).sum())
    found, tokens = plain(SHORT, 2)
    assert torch.allclose(found.mean, mean, atol=1e-12)
    assert found.variance == pytest.approx(variance, rel=1e-10)
    assert tokens == pytest.approx(2 * float(chances @ SHORT.lengths))


def test_forks_pay_where_the_end_decides_and_cost_where_the_beginning_does():
    """At equal generated tokens; the numbers of docs/branching.md come from a longer language."""
    for late, pays in ((True, True), (False, False)):
        language = Language(length=4, late_reward=late)
        found, tokens = two_roots(language, settings(language, at="window_end"))
        number = tokens / float(language.chances @ language.lengths)
        low, high = plain(language, 2)[0].variance, plain(language, 3)[0].variance
        assert 2 < number < 3
        rival = low + (number - 2) * (high - low)
        assert (found.variance < rival) == pays


def test_a_fork_that_ends_before_its_window_makes_none():
    parent = torch.tensor([1.0, 1.0, 0.0])
    assert not makes_the_window(Fork(0, 0, 0, 0), parent, torch.tensor([1.0]), threshold=0.5, window=2)
