"""CE-GPPO and GPPO: TRL's clipped loss completed to the published one, in value and gradient."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_trainer_vectors import Bench

from entrl.controllers.ce_gppo import CEGPPO, controller, outside_clip, restored_loss
from entrl.controllers.hooks import LossView, Rows

VECTORS = json.loads((Path(__file__).parent / "vectors" / "entropy_mechanism.json").read_text())
CASES = {c["id"]: c for c in VECTORS["neighbours"] if c["function"] == "klear.compute_gppo_loss"}
INF = math.inf


def rows_of(advantages, mask):
    count = len(mask)
    return Rows(
        advantages_BT=advantages,
        mask_BT=mask,
        row_id_B=torch.arange(count),
        informative_B=torch.ones(count, dtype=torch.bool),
    )


def clipped(log_probs, old, advantages, *, low, high, delta=None):
    """TRL 1.16's per-token loss, from its documentation."""
    ratio = (log_probs - old).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    ratio = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.min(ratio * advantages, bounded * advantages)


def published(x, sg, a, *, low, high, beta_low, beta_high):
    """One token's loss at log-ratio x from the equation; `sg` is the log-ratio under the stop-gradient."""
    if a < 0 and math.exp(sg) < 1 - low:
        return -beta_low * (1 - low) * a * math.exp(x - sg)
    if a > 0 and math.exp(sg) > 1 + high:
        return -beta_high * (1 + high) * a * math.exp(x - sg)
    return -math.exp(x) * a  # inside, or beyond the clip on the side where min() does not clip


def answer(acting, rows, log_probs, old, *, low=0.2, high=0.28, entropies=None):
    return acting.on_loss(
        rows,
        None,
        LossView(
            log_probs_BT=log_probs,
            old_log_probs_BT=old,
            entropies_BT=torch.zeros_like(old) if entropies is None else entropies,
            eps_low=low,
            eps_high=high,
        ),
    )


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    shape = (5, 6)
    old = (-3 * torch.rand(shape, generator=g)).double()
    log_probs = old + 0.5 * torch.randn(shape, generator=g).double()
    advantages = torch.randn(shape[0], 1, generator=g).expand(shape)
    mask = torch.arange(shape[1]) < torch.randint(1, 7, (shape[0], 1), generator=g)
    return rows_of(advantages, mask), log_probs, old


def test_by_hand():
    # eps .2 / .28, betas .5 / 1. A = -1, r = .5: loss .5 * .8 * 1 = .4, TRL has .8: penalty -.4, gradient +.4.
    # A = 2, r = 2: loss -1.28 * 2 = -2.56, TRL has the same value: penalty 0, gradient -2.56.
    rows = rows_of(torch.tensor([[-1.0], [2.0]]), torch.ones(2, 1, dtype=torch.bool))
    leaf = torch.tensor([[0.5], [2.0]]).log().requires_grad_()
    penalty = answer(CEGPPO(), rows, leaf, torch.zeros(2, 1)).penalty_BT
    penalty.sum().backward()
    assert penalty.flatten().tolist() == pytest.approx([-0.4, 0.0])
    assert leaf.grad.flatten().tolist() == pytest.approx([0.4, -2.56])


@pytest.mark.parametrize("betas", [(0.5, 1.0), (1.0, 1.0), (0.25, 2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_slow_twin_in_value_and_gradient(seed, betas):
    rows, log_probs, old = batch(seed)
    options = {"low": 0.2, "high": 0.28, "beta_low": betas[0], "beta_high": betas[1]}
    leaf = log_probs.clone().requires_grad_()
    terms = answer(CEGPPO(beta_low=betas[0], beta_high=betas[1]), rows, leaf, old)
    loss = clipped(leaf, old, rows.advantages_BT, low=0.2, high=0.28) + terms.penalty_BT
    torch.where(rows.mask_BT, loss, 0.0).sum().backward()
    outside, h = 0, 1e-6
    for b, t in rows.mask_BT.nonzero().tolist():
        x, a = float(log_probs[b, t] - old[b, t]), float(rows.advantages_BT[b, t])
        value = float(loss[b, t].detach())
        slope = (published(x + h, x, a, **options) - published(x - h, x, a, **options)) / (2 * h)
        assert value == pytest.approx(published(x, x, a, **options), rel=1e-6)
        assert float(leaf.grad[b, t]) == pytest.approx(slope, rel=1e-6)
        outside += math.exp(x) > 1.28 if a > 0 else math.exp(x) < 0.8
    assert outside >= 2
    assert not terms.penalty_BT[~rows.mask_BT].any()
    assert not leaf.grad[~rows.mask_BT].any()


@pytest.mark.parametrize("name", sorted(CASES))
def test_official_gppo_through_the_trainers_loss(tmp_path, monkeypatch, name):
    """The published dual clip is TRL's `delta`."""
    case = CASES[name]
    p = case["params"]
    bench = Bench(
        tmp_path,
        monkeypatch,
        [CEGPPO(beta_low=1.0, beta_high=1.0)],
        case,
        epsilon=p["clip_low"],
        epsilon_high=p["clip_high"],
        delta=p["dual_clip"],
    )
    loss, grad = bench.run(case)
    mask = torch.tensor(case["inputs"]["response_mask"], dtype=torch.bool)
    ratio = (torch.tensor(case["inputs"]["log_prob"]) - torch.tensor(case["inputs"]["old_log_prob"])).exp()
    assert (mask & (ratio > 3) & (torch.tensor(case["inputs"]["advantages"]) < 0)).any(), "dual clip untested"
    assert loss == pytest.approx(case["outputs"]["loss"], rel=1e-6)
    want = torch.tensor(case["outputs"]["grad_log_prob"], dtype=torch.float64)
    torch.testing.assert_close(grad[mask], want[mask], rtol=1e-6, atol=1e-9)
    assert bench.metric("ce_gppo/outside") == int((want[mask] != 0).sum() - _inside(case, mask))


def _inside(case, mask):
    """Tokens with a gradient that the clip does not silence, counted from the definition."""
    names = ("advantages", "log_prob", "old_log_prob")
    a, log_prob, old = (torch.tensor(case["inputs"][k], dtype=torch.float64) for k in names)
    r, p = (log_prob - old).exp(), case["params"]
    silenced = (a > 0) & (r > 1 + p["clip_high"]) | (a < 0) & (r < 1 - p["clip_low"])
    return int((mask & ~silenced & ~((a < 0) & (r > p["dual_clip"]))).sum())


def test_off_adds_nothing_and_a_beta_of_zero_leaves_its_side():
    rows, log_probs, old = batch(1)
    assert answer(CEGPPO(beta_low=0, beta_high=0), rows, log_probs, old).penalty_BT is None
    outside = outside_clip(log_probs, old, rows, eps_low=0.2, eps_high=0.28)
    assert outside.below_BT.any()
    assert outside.above_BT.any()
    for betas, silent in (((0.0, 1.0), outside.below_BT), ((0.5, 0.0), outside.above_BT)):
        leaf = log_probs.clone().requires_grad_()
        penalty = answer(CEGPPO(beta_low=betas[0], beta_high=betas[1]), rows, leaf, old).penalty_BT
        penalty.sum().backward()
        assert not penalty[silent].any()
        assert not leaf.grad[silent].any()
        assert leaf.grad[(outside.below_BT | outside.above_BT) & ~silent].all()


def test_the_restored_gradient_is_bounded_however_far_out():
    rows = rows_of(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2, dtype=torch.bool))
    leaf = torch.tensor([[1.0, 100.0], [-1.0, -100.0]]).requires_grad_()
    penalty = answer(CEGPPO(), rows, leaf, torch.zeros(2, 2)).penalty_BT
    penalty.sum().backward()
    assert leaf.grad.flatten().tolist() == pytest.approx([-1.28, -1.28, 0.4, 0.4])
    assert penalty.flatten().tolist() == pytest.approx([0.0, 0.0, -0.4, -0.4])


def test_without_a_clip_nothing_is_outside():
    rows, log_probs, old = batch(2)
    outside = outside_clip(log_probs, old, rows, eps_low=INF, eps_high=INF)
    assert not outside.below_BT.any()
    assert not outside.above_BT.any()
    kwargs = {"eps_low": INF, "eps_high": INF, "beta_low": 0.5, "beta_high": 1.0}
    assert restored_loss(log_probs, rows.advantages_BT, outside, **kwargs).eq(0).all()


def test_metrics():
    # A = -1 at r = .5 (pi .1, H .5: rare) and r = .9 (inside); A = 1 at r = 2 (pi .9, H .5: likely) and r = .5 (inside)
    rows = rows_of(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.ones(2, 2, dtype=torch.bool))
    log_probs = torch.tensor([[0.1, 0.9], [0.9, 0.5]]).log()
    old = log_probs - torch.tensor([[0.5, 0.9], [2.0, 0.5]]).log()
    acting = CEGPPO()
    terms = answer(acting, rows, log_probs, old, entropies=torch.full((2, 2), 0.5))
    assert acting.summarise({k: float(v) for k, v in terms.sums.items()}) == {
        "outside": 2.0,
        "below_share": 0.25,
        "above_share": 0.25,
        "negative_advantage": 0.5,
        "rare_share": 0.5,
    }
    nothing = {"outside": 0.0, "below_share": 0.0, "above_share": 0.0}
    assert acting.summarise(dict.fromkeys(terms.sums, 0.0)) == nothing


@pytest.mark.parametrize("options", [{"beta_low": -0.1}, {"beta_high": INF}, {"beta_low": math.nan}])
def test_bad_options(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
        CEGPPO(**options)


def test_face():
    assert controller is CEGPPO
    assert CEGPPO.role == "outside_clip"
    assert CEGPPO.needs_stale_policy
    assert dict(CEGPPO.knobs) == {"beta_low": -1, "beta_high": +1}


@pytest.mark.parametrize("rare", [True, False])
def test_the_signs_of_the_knobs_are_those_of_the_theory_for_rare_tokens(rare):
    """Softmax state of three tokens; a push on one token's logit, as the restored gradient gives it."""
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    token = 0 if rare else 2

    def entropy(push):
        moved = logits.clone()
        moved[token] += push
        log_p = moved.log_softmax(-1)
        return float(-(log_p.exp() * log_p).sum()), float(log_p[token])

    (before, log_p), (down, _), (up, _) = entropy(0.0), entropy(-1e-3), entropy(1e-3)
    assert (log_p < -before) == rare
    if rare:
        assert down < before < up  # beta_low lowers, beta_high raises
    else:
        assert up < before < down
