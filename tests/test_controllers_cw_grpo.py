"""CW-GRPO: a bell over covariance, its constants over the whole step, mean weight 1."""

import math

import pytest
import torch
from test_controllers_covariance import on_ranks

from entrl.controllers.cw_grpo import CWGRPO, controller, gaussian_weights
from entrl.controllers.hooks import LossView, OneRank, Rows, Window

INF = math.inf


def batch(seed, rows=8, columns=7):
    g = torch.Generator().manual_seed(seed)
    advantages = torch.randn(rows, 1, generator=g).expand(rows, columns)
    informative = torch.arange(rows) % 4 != 3
    length = torch.randint(1, columns + 1, (rows, 1), generator=g)
    made = Rows(
        advantages_BT=torch.where(informative[:, None], advantages, 0.0),
        mask_BT=torch.arange(columns) < length,
        row_id_B=torch.arange(rows),
        informative_B=informative,
    )
    log_probs = -3 * torch.rand(rows, columns, generator=g)
    return made, log_probs


def cut(rows, index):
    return Rows(**{k: getattr(rows, k)[index] for k in ("advantages_BT", "mask_BT", "row_id_B", "informative_B")})


def window(rows, log_probs, ranks=None):
    return Window(rows=rows, log_probs_BT=log_probs, old_log_probs_BT=log_probs, step=3, ranks=ranks or OneRank())


def answer(acting, rows, selection, log_probs, old=None):
    return acting.on_loss(
        rows,
        selection,
        LossView(
            log_probs_BT=log_probs,
            old_log_probs_BT=log_probs.detach() if old is None else old,
            entropies_BT=torch.zeros_like(log_probs).detach(),
            eps_low=0.2,
            eps_high=0.2,
        ),
    )


def slow_twin(rows, scored, current, width):
    """Constants from `scored`, weights at `current`, from the equation."""
    places = [
        (b, t)
        for b in range(len(rows.mask_BT))
        for t in range(rows.mask_BT.shape[1])
        if rows.mask_BT[b, t] and rows.informative_B[b]
    ]

    def cov(log_probs, b, t):
        return (float(log_probs[b, t]) - mean_l) * (float(rows.advantages_BT[b, t]) - mean_a)

    mean_l = sum(float(scored[p]) for p in places) / len(places)
    mean_a = sum(float(rows.advantages_BT[p]) for p in places) / len(places)
    c = [cov(scored, *p) for p in places]
    mean_c = sum(c) / len(c)
    sigma = math.sqrt(sum((x - mean_c) ** 2 for x in c) / len(c))
    mean_v = sum(math.exp(-(x**2) / (2 * (width * sigma) ** 2)) for x in c) / len(c)
    out = torch.ones(rows.mask_BT.shape)
    for p in places:
        out[p] = math.exp(-(cov(current, *p) ** 2) / (2 * (width * sigma) ** 2)) / mean_v
    return out


def test_by_hand():
    # mean log pi -2, mean A 0: c = 2, -2, 0, 0; sigma = sqrt(8 / 4); v = exp(-4 / 4) = .36788
    # twice, 1 twice; mean .68394
    rows = Rows(
        advantages_BT=torch.tensor([[2.0, 2.0], [-2.0, -2.0]]),
        mask_BT=torch.ones(2, 2, dtype=torch.bool),
        row_id_B=torch.arange(2),
        informative_B=torch.ones(2, dtype=torch.bool),
    )
    log_probs = torch.tensor([[-1.0, -3.0], [-2.0, -2.0]])
    acting = CWGRPO()
    selection = acting.select(window(rows, log_probs))
    weight = answer(acting, rows, selection, log_probs).weight_BT
    assert weight.flatten().tolist() == pytest.approx([0.53788, 0.53788, 1.46212, 1.46212], abs=1e-5)
    metrics = acting.window_metrics(selection)
    assert float(metrics["mean_before_renormalising"]) == pytest.approx(0.68394, abs=1e-5)
    assert float(metrics["smallest_weight"]) == pytest.approx(0.53788, abs=1e-5)
    assert float(metrics["cov_std"]) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_slow_twin(seed, width):
    rows, scored = batch(seed)
    current = scored + 0.1 * torch.randn_like(scored)
    acting = CWGRPO(width=width)
    got = answer(acting, rows, acting.select(window(rows, scored)), current)
    torch.testing.assert_close(got.weight_BT, slow_twin(rows, scored, current, width), rtol=2e-5, atol=1e-6)
    published = CWGRPO(width=width, scope="micro_batch")
    got = answer(published, rows, None, current)
    torch.testing.assert_close(got.weight_BT, slow_twin(rows, current, current, width), rtol=2e-5, atol=1e-6)


def test_the_mean_weight_is_one_and_uncounted_tokens_weigh_one():
    rows, log_probs = batch(1)
    acting = CWGRPO()
    terms = answer(acting, rows, acting.select(window(rows, log_probs)), log_probs)
    counted = acting.counted(rows)
    assert float(terms.weight_BT[counted].double().mean()) == pytest.approx(1.0, abs=1e-6)
    assert (~counted).any()
    assert (terms.weight_BT[~counted] == 1).all()
    everybody = CWGRPO(skip_zero_std_groups=False)
    assert not torch.equal(
        answer(everybody, rows, everybody.select(window(rows, log_probs)), log_probs).weight_BT, terms.weight_BT
    )


@pytest.mark.parametrize("parts", [[range(0, 4), range(4, 8)], [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]])
def test_ranks_agree_with_one_process(parts):
    rows, log_probs = batch(2)
    acting = CWGRPO()
    whole = answer(acting, rows, acting.select(window(rows, log_probs)), log_probs).weight_BT

    def work(index, ranks):
        index = torch.tensor(list(index))
        mine = cut(rows, index)
        selection = acting.select(window(mine, log_probs[index], ranks))
        smallest = float(acting.window_metrics(selection)["smallest_weight"])
        return answer(acting, mine, selection, log_probs[index]).weight_BT, smallest

    answers = on_ranks(parts, work)
    torch.testing.assert_close(torch.cat([a for a, _ in answers]), whole, rtol=1e-6, atol=0)
    assert len({s for _, s in answers}) == 1
    assert answers[0][1] == pytest.approx(float(whole[acting.counted(rows)].min()), rel=1e-6)


def test_off_is_exactly_one():
    rows, log_probs = batch(3)
    for advantages in (rows.advantages_BT, torch.zeros_like(rows.advantages_BT)):
        flat = Rows(**{**vars(rows), "advantages_BT": advantages})
        acting = CWGRPO(width=INF)
        assert (answer(acting, flat, acting.select(window(flat, log_probs)), log_probs).weight_BT == 1).all()


def test_a_wider_bell_damps_less():
    cov = torch.linspace(-3, 3, 13)
    narrow, wide = (gaussian_weights(cov, 1.0, width=w) for w in (1.0, 2.0))
    assert (narrow <= wide).all()
    assert (narrow < wide).any()
    assert torch.equal(narrow, narrow.flip(0))  # both tails alike
    assert gaussian_weights(cov, 0.0, width=1.0).eq(1).all()


def test_the_weight_has_no_graph():
    rows, log_probs = batch(4)
    leaf = log_probs.clone().requires_grad_()
    for acting in (CWGRPO(), CWGRPO(scope="micro_batch")):
        selection = acting.select(window(rows, log_probs)) if acting.scope == "step" else None
        assert not answer(acting, rows, selection, leaf).weight_BT.requires_grad


def test_metrics():
    rows, log_probs = batch(5)
    acting = CWGRPO()
    selection = acting.select(window(rows, log_probs))
    terms = answer(acting, rows, selection, log_probs)
    metrics = acting.summarise({k: float(v) for k, v in terms.sums.items()})
    weight = terms.weight_BT[acting.counted(rows)].double()
    damped = weight < 0.5
    assert metrics["tokens"] == len(weight)
    assert metrics["weight_mean"] == pytest.approx(float(weight.mean()))
    assert metrics["damped_share"] == pytest.approx(float(damped.double().mean()))
    assert metrics["effective_share"] == pytest.approx(float(weight.sum() ** 2 / (len(weight) * weight.square().sum())))
    negative = (rows.advantages_BT < 0)[acting.counted(rows)]
    assert damped.any()
    assert metrics["damped_negative_advantage"] == pytest.approx(float(negative[damped].double().mean()))
    assert acting.summarise(dict.fromkeys(terms.sums, 0.0)) == {"tokens": 0.0, "damped": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width must be at least 0.25, got 0.0"),
        ({"width": math.nan}, "width must be at least 0.25, got nan"),
        ({"scope": "batch"}, "scope must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CWGRPO(**options)


def test_face():
    assert controller is CWGRPO
    assert CWGRPO.role == "weight"
    assert dict(CWGRPO.knobs) == {"width": -1}
    assert CWGRPO().options() == {"width": 1.0, "scope": "step", "skip_zero_std_groups": True}
