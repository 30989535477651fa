"""Clip-Cov and KL-Cov: slow twins, splits over micro-batches and ranks, edges, gradients, options."""

import warnings

import pytest
import torch
from covariance_batches import Batch, batch, chosen, loss_pass, on_ranks, window_metrics

from entrl.controllers import clip_cov, kl_cov
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.covariance import token_covariance
from entrl.controllers.hooks import TOKEN_RATIO_LOSSES, Rows
from entrl.controllers.kl_cov import KLCov, log_ratio_penalty
from entrl.controllers.seeded_sample import NO_KEY, key_rule, token_keys
from entrl.controllers.top import LAST_ID, in_top, token_ids, top_rule
from entrl.controllers.top_shares import TOP_SHARES

INF = float("inf")


def kl(**options):
    return KLCov(**{"fraction": 0.1, "allow_large_fraction": True, "scope": "exact", **options})


def clip(**options):
    defaults = {"fraction": 0.08, "allow_large_fraction": True, "scope": "exact", "lower": 0.05, "upper": 50.0}
    return ClipCov(**{**defaults, **options})


# --- slow twins, written from the equations ---


def slow_covariances(b):
    tokens = [
        (int(b.rows.row_id_B[i]), j, float(b.log_probs[i, j]), float(b.rows.advantages_BT[i, j]), float(b.old[i, j]))
        for i in range(len(b.old))
        for j in range(b.old.shape[1])
        if b.rows.mask_BT[i, j]
    ]
    mean_lp = sum(t[2] for t in tokens) / len(tokens)
    mean_a = sum(t[3] for t in tokens) / len(tokens)
    return [(row, j, (lp - mean_lp) * (a - mean_a), lp - old, a) for row, j, lp, a, old in tokens]


def slow_kl_cov(b, fraction):
    tokens = sorted(slow_covariances(b), key=lambda t: (-t[2], t[0], t[1]))
    return {(t[0], t[1]) for t in tokens[: max(1, int(len(tokens) * fraction))]}


def slow_mix(x):
    bits = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & bits
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
    return x ^ (x >> 31)


def slow_key(seed, step, row, column):
    stream = slow_mix(slow_mix(seed % 2**64) + step)
    return slow_mix(slow_mix(row * 2**24 + column) ^ stream) >> 11


def slow_clip_cov(b, controller, step):
    tokens = slow_covariances(b)
    ratios = [(t, 2.718281828459045 ** t[3]) for t in tokens]
    candidates = [
        t
        for t, r in ratios
        if controller.lower < t[2] < controller.upper
        and not (t[4] > 0 and r > 1 + controller.clip_high)
        and not (t[4] < 0 and r < 1 - controller.clip_low)
    ]
    candidates.sort(key=lambda t: slow_key(controller.seed, step, t[0], t[1]))
    return {(t[0], t[1]) for t in candidates[: max(int(controller.fraction * len(tokens)), 1)]}, len(candidates)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["micro_batch", "exact"])
def test_kl_cov_takes_the_k_largest_covariances(seed, fraction, scope):
    b = batch(seed)
    controller = kl(fraction=fraction, scope=scope)
    selection = controller.select(b.window()) if scope == "exact" else None
    assert chosen(controller, b, selection) == slow_kl_cov(b, fraction)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("eps", [(1.0, 1.0), (0.05, 0.1)])
@pytest.mark.parametrize("scope", ["micro_batch", "exact"])
def test_clip_cov_takes_the_smallest_keys_among_its_candidates(seed, eps, scope):
    b = batch(seed)
    controller = clip(scope=scope, clip_low=eps[0], clip_high=eps[1], seed=-7)
    step = 5 if scope == "exact" else 0
    want, n_candidates = slow_clip_cov(b, controller, step)
    selection = controller.select(b.window(step=step)) if scope == "exact" else None
    terms = loss_pass(controller, b, selection)
    assert int(terms.sums["candidates"]) == n_candidates
    controller = clip(scope=scope, clip_low=eps[0], clip_high=eps[1], seed=-7)
    assert chosen(controller, b, selection) == want


def tied_batch(seed, *, padding=0.0):
    """128 tokens, 64 of which count, in quarters of a nat and advantages -1, 0, 1: every number of Eq. 10 is exact in
    float32, dozens of covariances are equal, and zeros come with both signs."""
    g = torch.Generator().manual_seed(seed)
    B, T = 8, 16
    advantage = torch.randint(-1, 2, (B, 1), generator=g).float().expand(B, T)
    old = -torch.randint(0, 8, (B, T), generator=g) / 4
    log_probs = old + torch.randint(-1, 2, (B, T), generator=g) / 4
    mask = torch.zeros(B * T, dtype=torch.bool)
    mask[torch.randperm(B * T, generator=g)[:64]] = True
    mask = mask.view(B, T)
    rows = Rows(
        advantages_BT=torch.where(mask, advantage, padding),
        mask_BT=mask,
        row_id_B=torch.randperm(50, generator=g)[:B],
        informative_B=torch.ones(B, dtype=torch.bool),
    )
    return Batch(rows, torch.where(mask, log_probs, padding), torch.where(mask, old, padding))


def union_over_ranks(controller, b, cuts, step=0):
    parts = [b[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(b.old)], strict=True)]

    def one_rank(part, ranks):
        selection = controller.select(part.window(ranks=ranks, step=step))
        if isinstance(controller, ClipCov):
            return chosen(controller, part, selection)
        members = controller.members(part.rows, selection, log_probs_BT=part.log_probs)  # also of penalty 0
        return {(int(part.rows.row_id_B[i]), j) for i, j in members.nonzero().tolist()}

    found = on_ranks(parts, one_rank)
    assert sum(map(len, found)) == len(set().union(*found))
    return set().union(*found)


@pytest.mark.parametrize("padding", [0.0, float("nan"), INF, -INF])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cuts", [[], [3], [1, 6]])
def test_ties_are_broken_as_the_twins_break_them(seed, padding, cuts):
    b = tied_batch(seed, padding=padding)
    covariances = sorted(t[2] for t in slow_covariances(b))
    assert len(set(covariances)) < 40
    for fraction in (0.001, 0.1, 0.3, 0.5, 63 / 64, 1.0):
        assert union_over_ranks(kl(fraction=fraction), b, cuts) == slow_kl_cov(b, fraction)
    for lower, upper in (
        (0.0, covariances[-2]),
        (covariances[10], covariances[-1]),
        (-INF, INF),
    ):  # open at values of c
        controller = clip(lower=lower, upper=upper, clip_low=0.2, clip_high=0.25)
        assert union_over_ranks(controller, b, cuts, step=seed) == slow_clip_cov(b, controller, seed)[0]


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
@pytest.mark.parametrize("where", ["log_probs", "advantages_BT"])
def test_a_broken_step_takes_no_token_whose_covariance_is_none(bad, where):
    """A number that is none where it counts spoils the mean, hence every c; the run is lost, the rule still holds."""
    b = batch(0)
    x = b.log_probs if where == "log_probs" else b.rows.advantages_BT.clone()
    x[1, 1] = bad
    b = Batch(Rows(**{**vars(b.rows), "advantages_BT": x}), b.log_probs, b.old) if where == "advantages_BT" else b
    for controller in (kl(fraction=0.5), kl(fraction=1.0), clip(lower=-INF, upper=INF)):
        selection = controller.select(b.window())
        cov = token_covariance(b.log_probs, b.rows, b.rows.mask_BT, selection.stats)
        assert not any(
            cov[b.rows.row_id_B.tolist().index(row), j].isnan() for row, j in chosen(controller, b, selection)
        )


def test_keys_equal_splitmix64_in_plain_integers():
    ids = token_ids(torch.tensor([0, 1, 2**30]), 5)
    for seed, step in [(0, 0), (-7, 3), (2**63 - 1, 10**6)]:
        got = token_keys(ids, seed=seed, step=step)
        want = [[slow_key(seed, step, row, j) for j in range(5)] for row in (0, 1, 2**30)]
        assert got.tolist() == want
        assert int(got.min()) >= 0


# --- the selection does not depend on how the window is cut ---


def all_of(controller, b, selection, size, **kwargs):
    return set().union(*(chosen(controller, b[i : i + size], selection, **kwargs) for i in range(0, len(b.old), size)))


@pytest.mark.parametrize("make", [kl, clip])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_two_ranks_and_any_micro_batch_select_what_one_does(make, seed, cut):
    b = batch(seed)
    controller = make(seed=3) if make is clip else make()
    whole = chosen(controller, b, controller.select(b.window(step=9)))
    for size in (1, 2, 3):
        assert all_of(controller, b, controller.select(b.window(step=9)), size) == whole

    def one_rank(part, ranks):
        mine = make(seed=3) if make is clip else make()
        selection = mine.select(part.window(ranks=ranks, step=9))
        return all_of(mine, part, selection, 1), window_metrics(mine, selection), selection.stats

    second = b[cut:]
    second = second.narrow(int(second.rows.mask_BT.sum(-1).max()))  # ranks pad to widths of their own
    (left, metrics, stats), (right, metrics_2, stats_2) = on_ranks([b[:cut], second], one_rank)
    assert left | right == whole
    assert not left & right
    assert metrics == metrics_2
    assert metrics == pytest.approx(window_metrics(controller, controller.select(b.window(step=9))), abs=1e-6)
    assert stats.n == stats_2.n == int(b.rows.mask_BT.sum())


@pytest.mark.parametrize("make", [kl, clip])
def test_row_order_does_not_matter(make):
    b = batch(1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    controller = make()
    want = chosen(controller, b, controller.select(b.window(step=2)))
    assert chosen(controller, b[order], controller.select(b[order].window(step=2))) == want


@pytest.mark.parametrize("advantage", [0.5, 0.1])  # 0.1: summed in float32 its mean would not be 0.1
def test_ties_go_to_the_smallest_ids_over_all_ranks(advantage):
    b = batch(0, drift=0.5)
    b.rows.mask_BT.fill_(True)
    flat = torch.full_like(b.old, advantage)  # equal advantages: every covariance is exactly 0
    rows = Rows(
        advantages_BT=flat,
        mask_BT=b.rows.mask_BT,
        row_id_B=torch.tensor([5, 0, 3, 1, 4, 2]),
        informative_B=b.rows.informative_B,
    )
    b = Batch(rows, b.log_probs, b.old)
    n = b.old.numel()
    k = int(n * 0.3)
    want = {divmod(i, b.old.shape[1]) for i in range(k)}
    controller = kl(fraction=0.3)
    assert chosen(controller, b, controller.select(b.window())) == want
    assert chosen(kl(fraction=0.3, scope="micro_batch"), b) == want

    def one_rank(part, ranks):
        return chosen(controller, part, controller.select(part.window(ranks=ranks)))

    left, right = on_ranks([b[:2], b[2:]], one_rank)
    assert left | right == want


def test_a_rank_without_tokens_takes_part():
    b = batch(2)
    controller = kl()
    want = chosen(controller, b[:3], controller.select(b[:3].window()))
    empty = b[3:]
    empty.rows.mask_BT.zero_()

    def one_rank(part, ranks):
        return chosen(controller, part, controller.select(part.window(ranks=ranks)))

    assert on_ranks([b[:3], empty], one_rank) == [want, set()]


def test_candidates_on_one_rank_only():
    b = batch(3)
    quiet = b[3:]
    quiet = Batch(
        Rows(
            advantages_BT=torch.full_like(quiet.old, float(b.rows.advantages_BT[0, 0])),
            mask_BT=torch.zeros_like(quiet.rows.mask_BT),
            row_id_B=quiet.rows.row_id_B,
            informative_B=quiet.rows.informative_B,
        ),
        quiet.log_probs,
        quiet.old,
    )
    controller = clip()
    want = chosen(controller, b[:3], controller.select(b[:3].window()))

    def one_rank(part, ranks):
        return chosen(controller, part, controller.select(part.window(ranks=ranks)))

    assert on_ranks([quiet, b[:3]], one_rank) == [set(), want]
    assert want


# --- scope `step`: threshold from the old policy, membership from the current one ---


def test_step_scope_scores_with_the_old_policy_then_decides_with_the_current_one():
    b = batch(4, drift=0.0)
    controller = kl(fraction=0.2)
    selection = controller.select(b.window())
    before = {tuple(p) for p in controller.members(b.rows, selection, log_probs_BT=b.old).nonzero().tolist()}
    moved = b.old.clone()
    row, column = next(iter(before))
    moved[row, column] = selection.stats.mean_log_prob  # its covariance is now 0
    after = {tuple(p) for p in controller.members(b.rows, selection, log_probs_BT=moved).nonzero().tolist()}
    assert after == before - {(row, column)}


def test_round_off_between_the_passes_flips_no_token():
    b = batch(5)
    controller = kl(fraction=0.2)
    selection = controller.select(b.window())
    noise = 1e-6 * torch.randn(b.old.shape, generator=torch.Generator().manual_seed(0))
    assert chosen(controller, b, selection, log_probs=b.log_probs + noise) == chosen(controller, b, selection)


def test_a_token_the_ratio_clip_silences_now_is_no_candidate_now():
    b = batch(6, drift=0.0)
    controller = clip(fraction=1.0, clip_low=0.2, clip_high=0.2)
    selection = controller.select(b.window())
    taken = chosen(controller, b, selection)
    row_id, column = min(taken)
    row = b.rows.row_id_B.tolist().index(row_id)
    # Push the old log-prob away instead of the current one, so that the covariance stays what it was.
    away = b.old.clone()
    away[row, column] -= 1.0 if b.rows.advantages_BT[row, column] > 0 else -1.0
    assert chosen(controller, Batch(b.rows, b.log_probs, away), selection) == taken - {(row_id, column)}


# --- edges ---


@pytest.mark.parametrize("make", [kl, clip])
@pytest.mark.parametrize("scope", ["step", "micro_batch"])
def test_nothing_to_select_from(make, scope):
    b = batch(0)
    b.rows.mask_BT.zero_()
    controller = make(scope=scope)
    selection = controller.select(b.window()) if scope == "step" else None
    terms = loss_pass(controller, b, selection)
    assert int(terms.sums["selected"]) == 0
    for x in (terms.weight_BT, terms.penalty_BT):
        assert x is None or bool(x.isfinite().all())
    metrics = controller.summarise({k: float(v) for k, v in terms.sums.items()})
    assert metrics["selected_fraction"] == 0
    assert "selected_probability" not in metrics
    if selection is not None:
        assert set(window_metrics(controller, selection).values()) == {0.0}


def test_no_candidates_changes_nothing():
    b = batch(0)
    controller = clip(lower=1e6, upper=1e7)
    assert bool((loss_pass(controller, b, controller.select(b.window())).weight_BT == 1).all())


def test_top_rule_by_hand():
    value, ids = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([10, 11, 13, 12])

    def rule(k, n=4):
        return top_rule(value[:n], ids[:n], torch.tensor(k), torch.tensor(n))

    assert rule(1) == (torch.tensor(2.5), torch.tensor(-1))  # between 3 and 2
    assert rule(2) == (torch.tensor(2.0), torch.tensor(12))  # 2 and 2: id 12 first
    assert rule(3) == (torch.tensor(1.5), torch.tensor(-1))
    assert rule(4).threshold == -INF
    assert rule(1, n=0).threshold == INF


def test_key_rule_by_hand():
    keys = torch.tensor([9, 5, 7])
    assert int(key_rule(keys, torch.tensor(2))) == 7
    assert int(key_rule(keys, torch.tensor(3))) == LAST_ID  # no choice: later candidates come in as well
    assert int(key_rule(keys[:0], torch.tensor(3))) == NO_KEY


def test_neighbouring_float32_values_are_told_apart():
    low = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))  # odd mantissa: in float32 the midpoint rounds to high
    high = torch.nextafter(low, torch.tensor(2.0))
    top = top_rule(torch.stack([low, high]), torch.tensor([0, 1]), torch.tensor(1), torch.tensor(2))
    inside = in_top(torch.stack([low, high])[None], torch.tensor([[0, 1]]), torch.ones(1, 2).bool(), top)
    assert inside.tolist() == [[False, True]]


def test_groups_without_spread_are_left_out_of_everything():
    b = batch(7)
    b.rows.informative_B[1] = b.rows.informative_B[4] = False
    kept = b[torch.tensor([0, 2, 3, 5])]
    for make in (kl, clip):
        controller = make()
        want = chosen(controller, kept, controller.select(kept.window()))
        selection = controller.select(b.window())
        assert chosen(controller, b, selection) == want
        assert selection.stats.n == int(kept.rows.mask_BT.sum())
        everything = make(skip_zero_std_groups=False)
        assert everything.select(b.window()).stats.n == int(b.rows.mask_BT.sum())


@pytest.mark.parametrize("make", [kl, clip])
@pytest.mark.parametrize("scope", ["step", "micro_batch"])
@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_padding_reaches_nothing(make, scope, bad):
    b, clean = batch(8), batch(8)
    for x in (b.log_probs, b.old):
        x[~b.rows.mask_BT] = bad
    results = []
    for each in (clean, b):
        controller = make(scope=scope, **({"penalty": "k3"} if make is kl else {}))
        selection = controller.select(each.window()) if scope == "step" else None
        log_probs = each.log_probs.clone().requires_grad_(True)
        terms = loss_pass(controller, each, selection, log_probs=log_probs)
        value = terms.weight_BT if terms.penalty_BT is None else terms.penalty_BT
        grad = torch.autograd.grad(terms.penalty_BT.sum(), log_probs)[0] if terms.penalty_BT is not None else value
        results.append((value.detach(), grad, terms.sums, window_metrics(controller, selection) if selection else {}))
    (value, grad, sums, metrics), (value_2, grad_2, sums_2, metrics_2) = results
    assert torch.equal(value, value_2)
    assert torch.equal(grad, grad_2)
    assert sums == sums_2
    assert metrics == metrics_2


def test_weight_and_selection_carry_no_graph():
    b = batch(0)
    controller = clip(scope="micro_batch")
    terms = loss_pass(controller, b, log_probs=b.log_probs.clone().requires_grad_(True))
    assert not terms.weight_BT.requires_grad
    assert not any(x.requires_grad for x in terms.sums.values())


# --- penalties ---


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("abs", [0.5, 0.25, 0.0], [-1.0, 1.0, 0.0]),
        ("k2", [0.125, 0.03125, 0.0], [-0.5, 0.25, 0.0]),
        # exp(-.5) - 1 + .5 = .106531, exp(.25) - 1 - .25 = .034025; slope exp(x) - 1
        ("k3", [0.10653066, 0.03402542, 0.0], [-0.39346934, 0.28402542, 0.0]),
    ],
)
def test_penalty_by_hand(kind, value, slope):
    x = torch.tensor([[-0.5, 0.25, 0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    take = torch.tensor([[True, True, True, False]])
    out = log_ratio_penalty(x, torch.zeros_like(x), take, coef=2.0, kind=kind)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.tolist()[0] == pytest.approx([2 * v for v in value] + [0.0], abs=1e-7)
    assert grad.tolist()[0] == pytest.approx([2 * v for v in slope] + [0.0], abs=1e-7)


@pytest.mark.parametrize("kind", ["abs", "k2", "k3"])
@pytest.mark.parametrize("options", [{}, {"dead_zone": 0.1}, {"max_log_ratio": 0.3}])
def test_penalty_gradient_against_finite_differences(kind, options):
    g = torch.Generator().manual_seed(1)
    old = torch.randn(3, 5, dtype=torch.float64, generator=g)
    x = (old + torch.randn(3, 5, dtype=torch.float64, generator=g)).requires_grad_(True)
    take = torch.rand(3, 5, generator=g) < 0.7
    assert torch.autograd.gradcheck(
        lambda v: log_ratio_penalty(v, old, take, coef=0.7, kind=kind, **options), (x,), eps=1e-7
    )


def test_dead_zone_and_clamp_by_hand():
    x = torch.tensor([[0.05, -0.2, 100.0]], requires_grad=True)
    take, zero = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    assert log_ratio_penalty(x, zero, take, coef=1.0, dead_zone=0.1)[0].tolist() == pytest.approx([0.0, 0.2, 100.0])
    out = log_ratio_penalty(x, zero, take, coef=1.0, kind="k3", max_log_ratio=20.0)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert bool(out.isfinite().all())
    assert float(grad[0, 2]) == 0.0


def test_kl_cov_is_silent_while_the_policy_is_the_one_that_sampled():
    b = batch(0, drift=0.0)
    controller = kl(scope="step")
    log_probs = b.log_probs.clone().requires_grad_(True)
    terms = loss_pass(controller, b, controller.select(b.window()), log_probs=log_probs)
    (grad,) = torch.autograd.grad(terms.penalty_BT.sum(), log_probs)
    assert int(terms.sums["selected"]) > 0
    assert float(terms.penalty_BT.detach().abs().sum()) == 0.0
    assert float(grad.abs().sum()) == 0.0


# --- the draw of Clip-Cov ---


def test_the_draw_follows_seed_and_step():
    b = batch(0, B=12, T=30)

    def draw(seed, step):
        controller = clip(seed=seed, fraction=0.05)
        return frozenset(chosen(controller, b, controller.select(b.window(step=step))))

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(seed, step) for seed in range(3) for step in range(5)}) == 15


def test_every_candidate_is_equally_likely():
    b = batch(0)
    controller = clip(fraction=0.06)
    counts: dict = {}
    draws = 600
    m, total = (
        max(int(0.06 * int(b.rows.mask_BT.sum())), 1),
        int(loss_pass(clip(scope="micro_batch"), b).sums["candidates"]),
    )
    for step in range(draws):
        for token in chosen(controller, b, controller.select(b.window(step=step))):
            counts[token] = counts.get(token, 0) + 1
    p = m / total
    assert len(counts) == total
    for count in counts.values():
        assert abs(count - draws * p) < 5 * (draws * p * (1 - p)) ** 0.5


def test_micro_batch_draws_resume_from_the_state():
    b = batch(0, B=12, T=30)
    controller = clip(scope="micro_batch", fraction=0.02)
    first = [chosen(controller, b) for _ in range(3)]
    state = controller.state_dict()
    onward = [chosen(controller, b) for _ in range(3)]
    resumed = clip(scope="micro_batch", fraction=0.02)
    resumed.load_state_dict(state)
    assert [chosen(resumed, b) for _ in range(3)] == onward
    assert first != onward


def test_bounds_in_multiples_of_the_std():
    b = batch(3)
    c = torch.tensor([t[2] for t in slow_covariances(b)])
    std = float(c.std(unbiased=False))
    portable = clip(bounds="std", lower=0.3, upper=2.0, fraction=1.0)
    absolute = clip(lower=0.3 * std, upper=2.0 * std, fraction=1.0)
    want = chosen(absolute, b, absolute.select(b.window()))
    assert chosen(portable, b, portable.select(b.window())) == want
    assert 0 < len(want) < len(c)


# --- metrics ---


def test_metrics_by_hand():
    old = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]])
    x = torch.tensor([[0.5, 0.0], [-0.25, 9.0]])  # 9.0 sits in the padding
    rows = Rows(
        advantages_BT=torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),
        mask_BT=torch.tensor([[True, True], [True, False]]),
        row_id_B=torch.arange(2),
        informative_B=torch.ones(2, dtype=torch.bool),
    )
    b = Batch(rows, old + x, old)
    # log-probs -.5, -2, -3.25, mean -1.91667; A - 1/3: 2/3, 2/3, -4/3; c = .9444, -.0556, 1.7778
    controller = kl(fraction=0.4, coef=2.0)  # k = int(1.2) = 1: the token of the failed row
    selection = controller.select(b.window())
    terms = loss_pass(controller, b, selection, eps=(0.2, 0.2))
    metrics = controller.summarise({k: float(v) for k, v in terms.sums.items()})
    assert metrics == pytest.approx(
        {
            "tokens": 3,
            "candidates": 3,
            "selected": 1,
            "selected_fraction": 1 / 3,
            "selected_negative_advantage": 1.0,
            "selected_probability": 0.0387742,  # exp(-3.25)
            "ppo_clipped": 2 / 3,  # exp(.5) > 1.2 with A > 0, exp(-.25) = .779 < .8 with A < 0
            "abs_log_ratio": 0.25,  # (.5 + 0 + .25) / 3
            "penalty": 0.5 / 3,  # 2 * .25 over the three tokens of the loss
        },
        abs=1e-6,
    )
    # mean of (.9444, -.0556, 1.7778) = .8889; std = sqrt((.0031 + .8920 + .7901) / 3) = .7495
    window = window_metrics(controller, selection)
    assert window["cov_mean"] == pytest.approx(0.88889, abs=1e-4)
    assert window["cov_std"] == pytest.approx(0.74949, abs=1e-4)
    assert window["cov_top_50%"] == pytest.approx(1.77778, abs=1e-4)


def test_top_shares_equal_a_sort():
    b = batch(0, B=20, T=60)
    metrics = kl().window_metrics(kl().select(b.window()))
    values = sorted((t[2] for t in slow_covariances(b)), reverse=True)
    for name, share in TOP_SHARES.items():
        top = values[: max(1, int(len(values) * share))]
        assert metrics[f"cov_top_{name}"] == pytest.approx(sum(top) / len(top), rel=1e-5)
    quiet = kl(log_shares=False)
    assert set(quiet.window_metrics(quiet.select(b.window()))) == {"cov_mean", "cov_std"}


# --- options ---


@pytest.mark.parametrize("make", [KLCov, ClipCov])
@pytest.mark.parametrize("fraction", [0.2, 0.051, 0.0, -0.1, float("nan")])
def test_fractions_that_look_like_percent_are_refused(make, fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 0.05\].*not a percentage"):
        make(fraction=fraction)


def test_large_fractions_need_a_word():
    assert KLCov(fraction=0.2, allow_large_fraction=True).fraction == 0.2
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        KLCov(fraction=1.5, allow_large_fraction=True)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (KLCov, {"scope": "batch"}, "scope must be"),
        (KLCov, {"penalty": "k1"}, "penalty must be 'abs', 'k2' or 'k3'"),
        (KLCov, {"coef": -1.0}, "coef must be"),
        (KLCov, {"dead_zone": -0.1}, "dead_zone must be >= 0"),
        (KLCov, {"max_log_ratio": 0.0}, "max_log_ratio must be > 0"),
        (KLCov, {"clip_low": -0.2}, "clip_low must be > 0"),
        (ClipCov, {"bounds": "quantile"}, "bounds must be"),
        (ClipCov, {"lower": 5.0, "upper": 1.0}, "lower must be below upper"),
        (ClipCov, {"clip_high": 0.0}, "clip_high must be > 0"),
        (ClipCov, {"seed": 2**63}, "seed must fit 64 bits"),
    ],
)
def test_options_are_checked(make, options, match):
    with pytest.raises(ValueError, match=match):
        make(**options)


@pytest.mark.parametrize("name", ["kl_cov_ratio", "k_percent", "kl_cov_frac"])
def test_other_names_of_the_fraction_are_unknown(name):
    with pytest.raises(TypeError, match=name):
        KLCov(**{name: 0.2})


def test_published_defaults_and_declarations():
    k, c = kl_cov.controller(), clip_cov.controller()
    assert (k.fraction, k.coef, k.penalty, k.scope, k.clip_range) == (2e-3, 1.0, "abs", "step", (INF, INF))
    assert (c.fraction, c.lower, c.upper, c.scope, c.clip_range) == (2e-4, 1.0, 5.0, "step", (1.0, 1.0))
    assert (k.needs_stale_policy, c.needs_stale_policy) == (True, False)
    assert k.supported_losses == c.supported_losses == TOKEN_RATIO_LOSSES
    assert KLCov(clip_high=0.28).clip_range == (INF, 0.28)
    assert k.options()["fraction"] == 2e-3
    assert not any(name.startswith("_") for name in c.options())


def test_one_completion_per_micro_batch_warns_once():
    b = batch(0)[:1]
    controller = kl(scope="micro_batch")
    with pytest.warns(UserWarning, match="one completion per micro-batch"):
        loss_pass(controller, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_pass(controller, b)


def test_ids_leave_room_for_padding_values():
    assert int(token_ids(torch.tensor([2**38]), 3).max()) < LAST_ID
