"""Dynamic KL: rules against loops and vectors, penalty against finite differences, sums over the step, state."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrl.controllers.dynamic_kl import (
    DynamicKL,
    KLState,
    kappa_step,
    kl_beta_step,
    measured_kl,
    token_factors,
)
from entrl.controllers.guard import Guard
from entrl.controllers.hooks import LossView, Rows, StepFeedback
from entrl.maths.difficulty import BUCKETS
from entrl.trainers.shared.loss import LossPass, Tally, step_metrics

VECTORS = json.loads((Path(__file__).parent / "vectors/ares.json").read_text())
finite_kl = st.floats(0, 50)


# The rules


def twin(calls, p):
    """The published update, one call after the other, in plain Python from the card's text."""
    beta = dict.fromkeys(BUCKETS, p["beta_init"])
    kl, e_ema = dict.fromkeys(BUCKETS), dict.fromkeys(BUCKETS, 0.0)
    for n, (difficulty, means) in enumerate(calls, 1):
        for d, target in zip(BUCKETS, p["targets"], strict=True):
            mine = [m for name, m in zip(difficulty, means, strict=True) if name == d]
            if not mine:
                continue
            mean = sum(mine) / len(mine)
            kl[d] = mean if kl[d] is None else p["ema_decay"] * kl[d] + (1 - p["ema_decay"]) * mean
            e = kl[d] / target - 1
            if abs(e) < p["deadzone"] or n % p["update_interval"]:
                continue
            e_ema[d] = p["ema_decay"] * e_ema[d] + (1 - p["ema_decay"]) * e
            log_beta = math.log(beta[d]) + p["log_lr"] * max(-p["err_clip"], min(p["err_clip"], e_ema[d]))
            beta[d] = math.exp(max(math.log(p["beta_min"]), min(math.log(p["beta_max"]), log_beta)))
    return beta, kl, e_ema


def published(p):
    return DynamicKL(
        update="micro_batch", targets=p["targets"], start=[p["beta_init"]] * 3, interval=p["update_interval"],
        decay=p["ema_decay"], log_rate=p["log_lr"], error_clip=p["err_clip"], dead_zone=p["deadzone"],
        minimum=p["beta_min"], maximum=p["beta_max"],
    )  # fmt: skip


@pytest.mark.parametrize("case", VECTORS["kl_beta"][:-1], ids=lambda c: c["name"])
def test_micro_batch_updates_are_the_authors(case):
    controller, calls = published(case["params"]), []
    for call in case["calls"]:
        act(controller, rows_with_means(call["difficulty"], call["seq_mean_kl"]))
        calls.append((call["difficulty"], call["seq_mean_kl"]))
        beta, kl, error = twin(calls, case["params"])
        for d, state in zip(BUCKETS, controller._states, strict=True):
            assert state.multiplier == pytest.approx(call["beta_after"][d], abs=1e-9)
            assert state.error == pytest.approx(call["e_ema_after"][d], abs=1e-9)
            assert state.kl == pytest.approx(call["kl_ema_after"][d], abs=1e-9) if state.kl else kl[d] is None
            assert state.multiplier == pytest.approx(beta[d], abs=1e-12)
            assert state.error == pytest.approx(error[d], abs=1e-12)


def rows_with_means(difficulty, means):
    """One completion per entry whose mean k(x) is the entry: a single token with k(x) = mean, float64."""
    x = torch.tensor([solve_k3(m) for m in means], dtype=torch.float64)[:, None]
    return batch_of(torch.zeros_like(x), x, torch.tensor([BUCKETS.index(d) for d in difficulty]))


def solve_k3(target):
    """x > 0 with exp(x) - x - 1 = target, by bisection."""
    low, high = 0.0, 3.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.expm1(middle) - middle < target else (low, middle)
    return (low + high) / 2


def test_defaults_are_the_published_constants():
    case = VECTORS["kl_beta"][-1]
    states = {d: KLState() for d in BUCKETS}
    after = {t["after_calls"]: t["beta"] for t in case["trace"]}
    for n in range(1, max(after) + 1):
        for d, kl in case["constant_kl"].items():
            states[d] = kl_beta_step(states[d], kl, target=0.01, move=n % 100 == 0)
        if n in after:
            for d in BUCKETS:
                assert states[d].multiplier == pytest.approx(after[n][d], abs=1e-9)


@pytest.mark.parametrize("case", VECTORS["paper_mode"]["kappa"])
def test_the_papers_rule(case):
    got = kappa_step(
        case["kappa"], case["kl_ctrl"], target=case["delta"], rate=case["alpha_kappa"],
        minimum=case["kappa_min"], maximum=case["kappa_max"],
    )  # fmt: skip
    assert got == pytest.approx(case["expect"]["kappa_next"], abs=1e-12)


@pytest.mark.parametrize("case", VECTORS["paper_mode"]["token_beta"])
def test_the_papers_token_factor(case):
    inside = torch.tensor([case["in_window"]]).bool()
    got = token_factors(torch.tensor([case["beta_d"]], dtype=torch.float64), inside, case["rho"])
    assert got[0].tolist() == pytest.approx(case["expect"]["beta"], abs=1e-12)


@given(st.lists(finite_kl, max_size=30), st.floats(1e-4, 1.0))
def test_a_multiplier_stays_within_its_limits_and_moves_the_right_way(kls, target):
    state, kappa = KLState(), 1.0
    for kl in kls:
        before, kappa_before = state, kappa
        state = kl_beta_step(state, kl, target=target, minimum=0.5, maximum=2.0)
        kappa = kappa_step(kappa, kl, target=target, minimum=0.5, maximum=2.0)
        assert 0.5 <= kappa <= 2.0
        assert 0.5 - 1e-12 <= state.multiplier <= 2.0 + 1e-12
        assert abs(math.log(state.multiplier / before.multiplier)) <= 0.05 * 0.2 + 1e-12
        assert (kappa - kappa_before) * (kl - target) >= 0
        assert (state.multiplier - before.multiplier) * state.error >= -1e-12


def test_by_hand():
    # K = 0.02, e = 0.02/0.01 - 1 = 1, E = 0.03, ln m = 0.05 * 0.03
    assert kl_beta_step(KLState(), 0.02, target=0.01) == pytest.approx((math.exp(0.0015), 0.02, 0.03))
    assert kl_beta_step(KLState(), 0.0101, target=0.01) == KLState(1.0, 0.0101, 0.0)  # e = 0.01: dead zone
    assert kappa_step(1.0, 0.02, target=0.01) == pytest.approx(1.1)
    assert kappa_step(1.0, 1.0, target=0.01, error_clip=1.0) == pytest.approx(1.1)  # 99 times too large counts as 1


# What one micro-batch adds


def batch_of(log_probs, ref, difficulty, mask=None, high=None):
    mask = torch.ones(log_probs.shape, dtype=torch.bool) if mask is None else mask
    columns = {"difficulty": difficulty} | ({} if high is None else {"high_entropy": high})
    count = len(log_probs)
    rows = Rows(
        advantages_BT=torch.zeros_like(log_probs), mask_BT=mask, row_id_B=torch.arange(count),
        informative_B=torch.ones(count, dtype=torch.bool), columns=columns,
    )  # fmt: skip
    return rows, log_probs, ref


def act(controller, batch, columns=...):
    rows, log_probs, ref = batch
    view = LossView(
        log_probs_BT=log_probs, old_log_probs_BT=log_probs.detach(), ref_log_probs_BT=ref,
        entropies_BT=torch.ones_like(log_probs), eps_low=0.2, eps_high=0.2,
    )  # fmt: skip
    return controller.on_loss(rows, None, view)


def random_batch(seed=0, B=7, T=9, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(B, T, generator=g, dtype=dtype) * 3
    ref = log_probs + torch.randn(B, T, generator=g, dtype=dtype) * 0.3
    mask = torch.arange(T) < torch.randint(0, T + 1, (B, 1), generator=g)
    difficulty = torch.tensor([0, 1, 2, -1, 0, 2, 1])[torch.arange(B) % 7]
    return batch_of(log_probs, ref, difficulty, mask, torch.rand(B, T, generator=g) < 0.4)


@pytest.mark.parametrize("window_factor", [None, 0.5, 1.0, 0.0])
def test_the_total_is_the_weighed_k3(window_factor):
    """beta k + beta penalty = beta s m_d rho^win k, token by token, in a loop."""
    controller = DynamicKL(rule="fixed", start=[1.25, 1, 0.75], strength=1.5, window_factor=window_factor)
    rows, log_probs, ref = random_batch()
    penalty = act(controller, (rows, log_probs, ref)).reference_penalty_BT
    for b in range(log_probs.shape[0]):
        d = int(rows.columns["difficulty"][b])
        for t in range(log_probs.shape[1]):
            x = float(ref[b, t] - log_probs[b, t])
            k = (math.exp(x) - x - 1) if rows.mask_BT[b, t] else 0.0
            m = 1.5 * (1.0 if d < 0 else (1.25, 1.0, 0.75)[d])
            if window_factor is not None and rows.columns["high_entropy"][b, t]:
                m *= window_factor
            assert float(k + penalty[b, t]) == pytest.approx(m * k, abs=1e-12)


def test_gradient_in_float64():
    controller = DynamicKL(rule="fixed", start=[1.25, 1, 0.75], window_factor=0.5)
    rows, log_probs, ref = random_batch()

    def loss(x):
        return act(controller, (rows, x, ref)).reference_penalty_BT

    assert torch.autograd.gradcheck(loss, (log_probs.clone().requires_grad_(),))
    # the reference is held constant
    assert not act(controller, (rows, log_probs, ref.requires_grad_())).sums["kl_easy"].requires_grad


def test_nan_in_the_padding_reaches_nothing():
    rows, log_probs, ref = random_batch()
    dirty = torch.where(rows.mask_BT, log_probs, math.nan).requires_grad_()
    controller = DynamicKL(rule="fixed", start=[2, 2, 2], window_factor=0.5)
    clean_terms, terms = act(controller, (rows, log_probs, ref)), act(controller, (rows, dirty, ref))
    assert torch.equal(terms.reference_penalty_BT, clean_terms.reference_penalty_BT)
    assert all(torch.equal(v, clean_terms.sums[k]) for k, v in terms.sums.items())
    terms.reference_penalty_BT.sum().backward()
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~rows.mask_BT] == 0).all()


@pytest.mark.parametrize("window_factor", [None, 1.0])
def test_off_means_nothing_is_added(window_factor):
    controller = DynamicKL(window_factor=window_factor)
    assert controller.idle
    assert act(controller, random_batch()).reference_penalty_BT is None
    for busy in (DynamicKL(strength=2.0), DynamicKL(start=[1, 1, 2]), DynamicKL(window_factor=0.9)):
        assert act(busy, random_batch()).reference_penalty_BT is not None


def test_the_penalty_carries_beta_and_none_of_the_policy_terms_weights():
    rows, log_probs, ref = random_batch()
    current = LossPass(
        rows=rows, old_log_probs_BT=None, ref_log_probs_BT=ref, controllers=[DynamicKL(start=[2, 2, 2], rule="fixed")],
        selections=[None], beta=0.25,
    )  # fmt: skip
    assert not current.penalised
    assert current.run(log_probs, torch.ones_like(log_probs)) is None
    assert current.penalised
    current.weigh_policy(torch.zeros_like(log_probs))  # TRL's masks do not touch its KL term
    known = (rows.columns["difficulty"] >= 0)[:, None] & rows.mask_BT
    expected = torch.where(known, 0.25 * torch.expm1(ref - log_probs) - 0.25 * (ref - log_probs), 0.0)
    assert torch.allclose(current.weighted_penalty(), expected, atol=1e-12)


def test_under_trls_correction_the_penalty_carries_the_ratio_with_its_graph():
    rows, log_probs, ref = random_batch()
    old = log_probs - 0.1 * torch.randn_like(log_probs)
    x = log_probs.clone().requires_grad_()
    current = LossPass(
        rows=rows, old_log_probs_BT=old, ref_log_probs_BT=ref, controllers=[DynamicKL(strength=3, rule="fixed")],
        selections=[None], beta=0.25, corrected_kl=True,
    )  # fmt: skip
    current.run(x, torch.ones_like(x))
    found = current.weighted_penalty()
    y = log_probs.clone().requires_grad_()
    expected = torch.where(rows.mask_BT, 0.5 * (torch.exp(ref - y) - (ref - y) - 1) * torch.exp(y - old), 0.0)
    assert torch.allclose(found, expected, atol=1e-12)
    found.sum().backward()
    expected.sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-12)


def test_a_loss_without_that_term_is_refused():
    rows, log_probs, ref = random_batch()
    kwargs = {"rows": rows, "old_log_probs_BT": None, "selections": [None], "controllers": [DynamicKL(strength=2)]}
    with pytest.raises(ValueError, match="beta=0"):
        LossPass(ref_log_probs_BT=ref, **kwargs).run(log_probs, torch.ones_like(log_probs))
    with pytest.raises(ValueError, match="set beta above 0"):
        LossPass(ref_log_probs_BT=None, beta=0.1, **kwargs).run(log_probs, torch.ones_like(log_probs))


@pytest.mark.parametrize("window_factor", [None, 0.5])
def test_missing_columns_name_the_next_move(window_factor):
    rows, log_probs, ref = random_batch()
    bare = Rows(**{k: v for k, v in vars(rows).items() if k != "columns"})
    with pytest.raises(ValueError, match=r"difficulty.*hierarchical_entropy"):
        act(DynamicKL(window_factor=window_factor), (bare, log_probs, ref))


# One update per optimiser step


def one_step(controller, batches, *, world=1):
    """Sums of the step's micro-batches, whoever held them, then the feedback; returns the step's metrics."""
    tally = Tally()
    for rows, log_probs, ref in batches:
        current = LossPass(
            rows=rows, old_log_probs_BT=None, ref_log_probs_BT=ref, beta=0.1,
            controllers=[controller], selections=[None],
        )  # fmt: skip
        current.run(log_probs, torch.ones_like(log_probs))
        tally.add(current.sums)
    metrics = step_metrics({k: float(v) for k, v in tally.take().items()}, [controller])
    metrics = {k: v for k, v in metrics.items() if not math.isnan(v)}
    controller.on_step(StepFeedback(step=0, entropy=None, metrics=metrics))
    return metrics


def pieces(batch, cuts):
    rows, log_probs, ref = batch
    parts = torch.arange(len(log_probs)).tensor_split(cuts)
    return [(rows.map(lambda x, part=part: x[part]), log_probs[part], ref[part]) for part in parts]


@pytest.mark.parametrize("rule", ["log", "multiplicative"])
@pytest.mark.parametrize("window_factor", [None, 0.5])
def test_how_rows_are_dealt_out_changes_nothing(rule, window_factor):
    found = []
    for cuts in ([], [3], [1, 2, 3, 4, 5, 6]):
        controller = DynamicKL(rule=rule, window_factor=window_factor)
        for seed in range(6):
            metrics = one_step(controller, pieces(random_batch(seed, dtype=torch.float32), cuts))
        assert controller.multipliers != [1, 1, 1]
        found.append((controller.multipliers, metrics))
    for multipliers, metrics in found[1:]:
        assert multipliers == pytest.approx(found[0][0], rel=1e-12)
        assert metrics == pytest.approx(found[0][1], rel=1e-6)


def test_the_published_update_depends_on_it():
    found = []
    for cuts in ([], [1, 2, 3, 4, 5, 6]):
        controller = DynamicKL(update="micro_batch")
        one_step(controller, pieces(random_batch(), cuts))
        found.append(controller.multipliers)
    assert found[0] != pytest.approx(found[1], rel=1e-6)


def test_one_step_by_hand():
    """Two easy tokens of k = 0.3 and 0.1 (mean 0.2 = 40 times the target), no medium one, a hard one in a window."""
    x = torch.tensor([[solve_k3(0.3), solve_k3(0.1)], [solve_k3(0.5), solve_k3(0.04)]], dtype=torch.float64)
    high = torch.tensor([[False, False], [True, False]])
    batch = batch_of(torch.zeros_like(x), x, torch.tensor([0, 2]), high=high)
    controller = DynamicKL(rule="multiplicative", window_factor=0.5)
    metrics = one_step(controller, [batch])
    assert metrics["dynamic_kl/kl_easy"] == pytest.approx(0.2)
    assert "dynamic_kl/kl_medium" not in metrics
    assert metrics["dynamic_kl/kl_hard"] == pytest.approx(0.04)
    assert metrics["dynamic_kl/kl_windows"] == pytest.approx(0.5)
    assert metrics["dynamic_kl/window_share"] == pytest.approx(1 / 4)
    assert metrics["dynamic_kl/multiplier_easy"] == 1.0  # the one the step was trained with
    # error 39 clipped to 1; medium absent; hard 0.04 / 0.02 - 1 = 1
    assert controller.multipliers == pytest.approx([1.1, 1.0, 1.1])


def test_interval_counts_steps():
    controller = DynamicKL(rule="multiplicative", interval=3)
    moved = []
    for _ in range(6):
        one_step(controller, [random_batch()])
        moved.append(controller.multipliers[0])
    assert moved[0] == moved[1] == 1.0
    assert moved[2] == moved[3] == moved[4] != 1.0
    assert moved[5] != moved[4]


def test_fixed_stays_and_unknown_difficulty_is_counted():
    controller = DynamicKL(rule="fixed", start=[1.25, 1, 0.75])
    metrics = one_step(controller, [random_batch()])
    assert controller.multipliers == [1.25, 1.0, 0.75]
    assert metrics["dynamic_kl/unknown_share"] == pytest.approx(1 / 7)


def on_a_plant(controller, power, steps):
    """ln(m_easy / 4) per step, of a policy whose KL answers its coefficient as target_easy (4 / m)^power."""
    trace = []
    for step in range(steps):
        kl = controller.targets[0] * (4 / controller.multipliers[0]) ** power
        controller.on_step(StepFeedback(step=step, entropy=None, metrics={"dynamic_kl/kl_easy": kl}))
        trace.append(math.log(controller.multipliers[0] / 4))
    return trace


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("rule", "settled"), [("log", 200), ("multiplicative", 30)])
def test_the_loop_settles_at_its_target(rule, settled, power):
    assert max(map(abs, on_a_plant(DynamicKL(rule=rule), power, 400)[settled:])) < 0.1


def test_with_the_published_averages_and_a_move_a_step_it_swings_for_ever():
    late = on_a_plant(DynamicKL(decay=0.97), 2, 3000)[-500:]
    assert max(late) - min(late) > 0.5


def test_small_gaps_are_measured_without_cancellation():
    """x = 1e-4 in float32: exp(x) - x - 1 is 0 or 1e-7 there, and 5e-9 in truth."""
    x = torch.full((1, 1), 1e-4)
    got = float(measured_kl(torch.zeros(1, 1), x, torch.ones(1, 1, dtype=torch.bool)))
    assert got == pytest.approx(5.00017e-9, rel=1e-4)


def test_a_huge_gap_counts_as_ten_nats():
    x = torch.tensor([[80.0]])
    assert float(measured_kl(torch.zeros(1, 1), x, torch.ones(1, 1, dtype=torch.bool))) == 10.0


# State, options, errors


@pytest.mark.parametrize("rule", ["log", "multiplicative"])
@pytest.mark.parametrize("update", ["step", "micro_batch"])
def test_state_resumes_through_json(rule, update):
    make = {"rule": rule, "update": update, "interval": 2}
    whole, first = DynamicKL(**make), DynamicKL(**make)
    for seed in range(6):
        if seed == 3:
            saved, first = json.loads(json.dumps(first.state_dict())), DynamicKL(**make)
            first.load_state_dict(saved)
        one_step(whole, [random_batch(seed)])
        one_step(first, [random_batch(seed)])
    assert whole.multipliers != [1, 1, 1]
    assert first.state_dict() == whole.state_dict()


def test_a_guard_may_drive_the_strength():
    inner = DynamicKL(rule="fixed", window_factor=0.5)
    guard = Guard(controller=inner, knob="strength")
    assert guard.needs_columns == ("difficulty", "high_entropy")
    assert guard.needs_reference
    assert guard.role == "reference_kl"


def test_nothing_reads_the_device():
    """Tensors without values: whatever needs one on the host, and would wait for a GPU, raises."""
    rows, log_probs, ref = random_batch()
    rows = rows.map(lambda x: x.to("meta"))
    terms = act(DynamicKL(window_factor=0.5), (rows, log_probs.to("meta"), ref.to("meta")))
    with pytest.raises(RuntimeError, match="meta"):
        terms.sums["kl_easy"].item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "pid"}, "rule must be"),
        ({"update": "rank"}, "update must be"),
        ({"targets": 0.01}, "one number each for easy, medium, hard"),
        ({"targets": [0.01, 0.01]}, "one number each"),
        ({"targets": [0.0, 0.01, 0.01]}, "targets must be > 0"),
        ({"start": [1, 1, 1000]}, "start must lie in"),
        ({"strength": -1}, "strength must be"),
        ({"window_factor": math.inf}, "window_factor must be"),
        ({"interval": 0}, "interval must be"),
        ({"decay": 1.0}, "decay must be"),
        ({"log_rate": -0.1}, "log_rate must be"),
        ({"rule": "multiplicative", "rate": 1.0}, "rate must be below 1"),
        ({"error_clip": 0.0}, "error_clip must be"),
        ({"minimum": 0.0}, "minimum < maximum"),
    ],
)
def test_refusals(options, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            DynamicKL(**options)
