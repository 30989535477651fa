"""STEER: the official weights, the slow twin, range over the step."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_controllers_covariance import on_ranks

from entrl.controllers.hooks import LossView, OneRank, Rows, Window
from entrl.controllers.steer import Steer, controller, entropy_influence, influence_range, steer_weights

VECTORS = json.loads((Path(__file__).parent / "vectors" / "entropy_mechanism.json").read_text())
CASES = {c["id"]: c for c in VECTORS["neighbours"] if c["function"] == "steer.compute_token_weights"}
RTOL, ATOL = 1e-4, 1e-5  # the vectors' own: their code runs in float32 only


def batch(seed, rows=6, columns=5):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(columns) < torch.randint(1, columns + 1, (rows, 1), generator=g)
    made = Rows(
        advantages_BT=torch.randn(rows, 1, generator=g).expand(rows, columns),
        mask_BT=mask,
        row_id_B=torch.arange(rows),
        informative_B=torch.ones(rows, dtype=torch.bool),
    )
    old = -3 * torch.rand(rows, columns, generator=g) - 0.01
    current = old - 0.2 * torch.rand(rows, columns, generator=g)
    return made, old, current, 2 * torch.rand(rows, columns, generator=g)


def cut(rows, index):
    return Rows(**{k: getattr(rows, k)[index] for k in ("advantages_BT", "mask_BT", "row_id_B", "informative_B")})


def window(rows, log_probs, entropies, ranks=None):
    return Window(
        rows=rows,
        log_probs_BT=log_probs,
        old_log_probs_BT=log_probs,
        entropies_BT=entropies,
        step=0,
        ranks=ranks or OneRank(),
    )


def answer(acting, rows, selection, log_probs, old, entropies):
    return acting.on_loss(
        rows,
        selection,
        LossView(
            log_probs_BT=log_probs,
            old_log_probs_BT=old,
            entropies_BT=entropies,
            eps_low=0.2,
            eps_high=0.2,
        ),
    )


def slow_influence(rows, log_probs, old, entropies, b, t):
    log_p, log_old, h, a = (float(x[b, t]) for x in (log_probs, old, entropies, rows.advantages_BT))
    p = math.exp(log_p)
    return abs(a / math.exp(log_old) * p * (1 - p) * (log_p + h))


def slow_weight(x, low, high, acting):
    if acting.mapping == "exp":
        w = math.exp(math.log(acting.w_min) / max(high, 0.02) * x)
        return min(max(w, acting.w_min), 1.0)
    if high <= low:
        return (acting.w_min + acting.w_max) / 2
    w = acting.w_max - (acting.w_max - acting.w_min) * (x - low) / (high - low)
    return min(max(w, acting.w_min), acting.w_max)


def slow_twin(rows, current, old, entropies, scored, acting):
    """Range of |O| from `scored`: the window's (log_probs, old, entropies)."""
    places = rows.mask_BT.nonzero().tolist()
    of_window = [slow_influence(rows, *scored, *p) for p in places]
    out = torch.ones(rows.mask_BT.shape)
    for b, t in places:
        x = slow_influence(rows, current, old, entropies, b, t)
        out[b, t] = slow_weight(x, min(of_window), max(of_window), acting)
    return out


@pytest.mark.parametrize("name", sorted(CASES))
def test_official_vectors(name):
    case = CASES[name]
    x = {k: torch.tensor(v, dtype=torch.float64) for k, v in case["inputs"].items()}
    mask = x["response_mask"].bool()
    influence = entropy_influence(x["log_prob"], x["old_log_prob"], x["advantages"], x["entropy"], mask)
    p = case["params"]
    got = steer_weights(
        influence,
        mask,
        influence_range(influence, mask, OneRank()),
        w_min=p["weight_min"],
        w_max=p["weight_max"],
        mapping="linear" if p["linear"] else "exp",
    )
    want = torch.tensor(case["outputs"]["weights"])
    torch.testing.assert_close(got[mask], want[mask], rtol=RTOL, atol=ATOL)
    assert (got[~mask] == 1).all()


def test_by_hand():
    # pi = .5, H = .2, r = 1: O = A * .5 * (ln .5 + .2) = -.24657 A. A = 2: .49315, A = -1: .24657; max .49315,
    # w_min .8: w = .8 and sqrt(.8) = .89443
    rows = Rows(
        advantages_BT=torch.tensor([[2.0], [-1.0]]),
        mask_BT=torch.ones(2, 1, dtype=torch.bool),
        row_id_B=torch.arange(2),
        informative_B=torch.ones(2, dtype=torch.bool),
    )
    log_probs, entropies = torch.full((2, 1), math.log(0.5)), torch.full((2, 1), 0.2)
    acting = Steer()
    selection = acting.select(window(rows, log_probs, entropies))
    assert float(selection.largest) == pytest.approx(0.49315, abs=1e-5)
    got = answer(acting, rows, selection, log_probs, log_probs, entropies).weight_BT
    assert got.flatten().tolist() == pytest.approx([0.8, 0.89443], abs=1e-5)


OPTIONS = [{"w_min": 0.8}, {"w_min": 0.3}, {"w_min": 0.8, "w_max": 1.2, "mapping": "linear"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_slow_twin(seed, options):
    rows, old, current, entropies = batch(seed)
    acting = Steer(**options)
    got = answer(acting, rows, acting.select(window(rows, old, entropies)), current, old, entropies + 0.1)
    want = slow_twin(rows, current, old, entropies + 0.1, (old, old, entropies), acting)
    torch.testing.assert_close(got.weight_BT, want, rtol=1e-5, atol=1e-6)
    published = Steer(**options, scope="micro_batch")
    got = answer(published, rows, None, current, old, entropies)
    want = slow_twin(rows, current, old, entropies, (current, old, entropies), published)
    torch.testing.assert_close(got.weight_BT, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_ranks_agree_with_one_process(options):
    rows, old, current, entropies = batch(7)
    acting = Steer(**options)
    whole = answer(acting, rows, acting.select(window(rows, old, entropies)), current, old, entropies).weight_BT

    def work(index, ranks):
        index = torch.tensor(index)
        mine = cut(rows, index)
        selection = acting.select(window(mine, old[index], entropies[index], ranks))
        return answer(acting, mine, selection, current[index], old[index], entropies[index]).weight_BT

    assert torch.equal(torch.cat(on_ranks([[0, 1], [2, 3], [4, 5]], work)), whole)


def test_weights_stay_in_range_where_the_loss_pass_outgrows_the_window():
    rows, old, current, entropies = batch(8)
    for options in OPTIONS:
        acting = Steer(**options)
        calm = Rows(**{**vars(rows), "advantages_BT": rows.advantages_BT / 100})
        terms = answer(acting, rows, acting.select(window(calm, old, entropies)), current, old, entropies)
        assert float(terms.weight_BT[rows.mask_BT].min()) == pytest.approx(acting.w_min)
        assert float(terms.weight_BT.max()) <= acting.w_max
        metrics = acting.summarise({k: float(v) for k, v in terms.sums.items()})
        assert metrics["beyond_share"] > 0.5


@pytest.mark.parametrize("options", [{"w_min": 1.0}, {"w_min": 1.0, "mapping": "linear"}])
def test_off_is_exactly_one(options):
    rows, old, current, entropies = batch(9)
    acting = Steer(**options)
    selection = acting.select(window(rows, old, entropies))
    assert (answer(acting, rows, selection, current, old, entropies).weight_BT == 1).all()


def test_a_small_influence_is_hardly_damped():
    """Below 0.02 the largest |O| does not set the scale: nothing there is worth damping."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    influence = torch.tensor([[0.002, 0.001]])
    got = steer_weights(influence, mask, influence_range(influence, mask, OneRank()), w_min=0.8)
    assert got.flatten().tolist() == pytest.approx([0.8**0.1, 0.8**0.05], rel=1e-6)


def test_linear_without_a_range_takes_the_middle_as_the_official_code_does():
    mask = torch.tensor([[True, True, False]])
    influence = torch.tensor([[0.3, 0.3, 0.0]])
    span = influence_range(influence, mask, OneRank())
    got = steer_weights(influence, mask, span, w_min=0.8, w_max=1.1, mapping="linear")
    assert got.flatten().tolist() == pytest.approx([0.95, 0.95, 1.0])


def test_a_window_without_entropies_is_refused():
    rows, old, _, _ = batch(1)
    with pytest.raises(ValueError, match="needs the token entropies of the window"):
        Steer().select(window(rows, old, None))


def test_the_weight_has_no_graph():
    rows, old, current, entropies = batch(2)
    leaf = current.clone().requires_grad_()
    for acting in (Steer(), Steer(scope="micro_batch")):
        selection = acting.select(window(rows, old, entropies)) if acting.scope == "step" else None
        assert not answer(acting, rows, selection, leaf, old, entropies).weight_BT.requires_grad


def test_metrics():
    rows, old, current, entropies = batch(3)
    acting = Steer(w_min=0.1)
    selection = acting.select(window(rows, old, entropies))
    terms = answer(acting, rows, selection, current, old, entropies)
    metrics = acting.summarise({k: float(v) for k, v in terms.sums.items()})
    weight = terms.weight_BT[rows.mask_BT]
    influence = [slow_influence(rows, current, old, entropies, *p) for p in rows.mask_BT.nonzero().tolist()]
    assert metrics["weight_mean"] == pytest.approx(float(weight.mean()), rel=1e-5)
    assert metrics["influence_mean"] == pytest.approx(sum(influence) / len(influence), rel=1e-5)
    assert metrics["damped_share"] == pytest.approx(float((weight < 0.5).float().mean()), rel=1e-6)
    assert float(acting.window_metrics(selection)["influence_max"]) == float(selection.largest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w_min": 0.0}, r"w_min must be in \(0, 1\], got 0.0"),
        ({"w_min": 1.1}, r"w_min must be in \(0, 1\], got 1.1"),
        ({"mapping": "log"}, "mapping must be 'exp' or 'linear', got 'log'"),
        ({"w_max": 1.2}, "w_max=1.2 has no meaning with mapping='exp'"),
        ({"mapping": "linear", "w_max": 0.5}, "w_max must be finite and at least w_min=0.8, got 0.5"),
        ({"scope": "batch"}, "scope must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Steer(**options)


def test_face():
    assert controller is Steer
    assert Steer.role == "weight"
    assert dict(Steer.knobs) == {"w_min": -1}
