"""Selection at scale: no value read on the host, few collectives, top-k, top shares from a histogram."""

import math
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from covariance_batches import Batch, batch, chosen, loss_pass, on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.covariance import cov_spread, token_covariance, token_stats, total
from entrl.controllers.hooks import OneRank, Rows
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.seeded_sample import smallest
from entrl.controllers.top import LAST_ID, agreed_tokens, largest, rule_size, share_of, token_ids
from entrl.controllers.top_shares import TOP_SHARES, share_means

# --- nothing is read on the host ---

READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}


class NoReads(TorchDispatchMode):
    """Refuses what makes the host wait for a device: values, sizes that depend on values, copies between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} reads a value"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            kinds = {i.dtype for i in args[1] if i is not None}
            assert not kinds & {torch.bool, torch.uint8}, f"{name} by a mask has a size that depends on values"
        device = (kwargs or {}).get("device")
        if name == "_to_copy" and device is not None:
            assert torch.device(device) == args[0].device, "copies to another device"
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_read():
    """`NoReads`, and the two reads that reach no operator on a CPU."""

    def refused(*_, **__):
        raise AssertionError("reads values")

    with pytest.MonkeyPatch.context() as patch, NoReads():
        patch.setattr(torch.Tensor, "tolist", refused)
        patch.setattr(torch.Tensor, "numpy", refused)
        yield


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0]),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x[torch.tensor(0), torch.tensor(0)].to("meta"),
        lambda x: x.unique(),
    ],
)
def test_the_watch_catches_reads(read):
    x = torch.randn(3, 4)
    with pytest.raises(AssertionError), nothing_read():
        read(x)


def taken(controller, b, selection):
    """{(row_id, column)} a loss pass acts on; KL-Cov's members also where their penalty is 0."""
    if isinstance(controller, ClipCov):
        return chosen(controller, b, selection)
    members = controller.members(b.rows, selection, log_probs_BT=b.log_probs)
    return {(int(b.rows.row_id_B[i]), j) for i, j in members.nonzero().tolist()}


KINDS = [
    (KLCov, {"fraction": 0.01}),
    (KLCov, {"fraction": 0.01, "penalty": "k3", "dead_zone": 0.01, "max_log_ratio": 5.0, "clip_high": 0.3}),
    (ClipCov, {"fraction": 0.01, "lower": 0.1}),
    (ClipCov, {"fraction": 0.01, "lower": 0.1, "bounds": "std", "clip_low": 0.2, "clip_high": 0.3}),
]


@pytest.mark.parametrize("scope", ["step", "micro_batch"])
@pytest.mark.parametrize(("make", "options"), KINDS)
def test_select_and_on_loss_read_nothing(make, options, scope):
    b, controller = batch(0, B=8, T=200), make(scope=scope, **options)
    log_probs = b.log_probs.clone().requires_grad_(True)
    with nothing_read():
        selection = controller.select(b.window()) if scope == "step" else None
        if selection is not None:
            assert len(controller.window_metrics(selection)) == 2 + len(TOP_SHARES)
        for i in range(0, 8, 2):
            loss_pass(controller, b[i : i + 2], selection, log_probs=log_probs[i : i + 2])


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["step", "micro_batch"])
@pytest.mark.parametrize(("make", "options"), KINDS)
def test_no_synchronisation_on_a_gpu(make, options, scope):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    b = batch(0, B=8, T=200)
    rows = b.rows.map(lambda x: x.cuda())
    g, controller = Batch(rows, b.log_probs.cuda(), b.old.cuda()), make(scope=scope, **options)
    selection = controller.select(g.window()) if scope == "step" else None
    loss_pass(controller, g, selection)  # kernels are loaded by now
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        selection = controller.select(g.window()) if scope == "step" else None
        terms = loss_pass(controller, g, selection)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here = make(scope=scope, **options)
    want = loss_pass(here, b, here.select(b.window()) if scope == "step" else None)
    assert int(terms.sums["selected"]) == int(want.sums["selected"])


# --- collectives of one optimiser step ---


class Counting(OneRank):
    """One rank that notes each collective and the bytes it would send."""

    columns: int | None = None

    def __init__(self):
        self.calls, self.bytes = Counter(), []

    def sum(self, x):
        self.calls["sum"] += 1
        self.bytes.append(x.numel() * x.element_size())
        return x

    def gather(self, x):
        self.calls["gather"] += 1
        self.bytes.append(x.numel() * x.element_size())
        return x

    def max(self, x):
        self.calls["max"] += 1
        return x


@pytest.mark.parametrize(
    ("controller", "calls"),
    [
        (KLCov(log_shares=False), {"gather": 2}),
        (KLCov(), {"gather": 2, "sum": 1}),
        (ClipCov(log_shares=False), {"gather": 2}),
        (ClipCov(), {"gather": 2, "sum": 1}),
        (ClipCov(bounds="std", lower=0.1, upper=5.0), {"gather": 2, "sum": 2}),
    ],
)
def test_collectives_of_a_step(controller, calls):
    b, ranks = batch(0, B=8, T=100), Counting()
    ranks.columns = 128
    loss_pass(controller, b, controller.select(b.window(ranks=ranks)))
    assert ranks.calls == calls  # and on_loss makes none
    size = max(1, int(controller.fraction * 8 * 128)) + 1  # entries each rank brings
    entries = size * (16 if isinstance(controller, KLCov) else 8) + 16
    histogram = 2 * 8 * 4609 if controller.log_shares else 0
    std = 16 if getattr(controller, "bounds", "") == "std" else 0
    assert sum(ranks.bytes) == 24 + entries + histogram + std


def test_without_a_bound_the_ranks_are_asked_for_the_widest():
    b, ranks = batch(0), Counting()
    KLCov(log_shares=False).select(b.window(ranks=ranks))
    assert ranks.calls == {"gather": 2, "max": 1}


def test_a_window_wider_than_the_bound_is_refused():
    ranks = Counting()
    ranks.columns = 99
    with pytest.raises(ValueError, match="100 columns exceeds the ranks' bound of 99; give AccelerateRanks"):
        agreed_tokens(torch.zeros(2, 100), ranks)


@pytest.mark.parametrize("fraction", [2e-4, 2e-3, 0.01, 0.05, 0.07, 0.1, 1 / 3, 0.7, 1.0])
def test_every_rank_brings_enough_for_the_rule(fraction):
    """0.1 x 3 tokens x 10 ranks is 3.0000000000000004 one way round and 3 the other."""
    for tokens in (1, 3, 7, 30, 1000, 262144):
        for world in (1, 3, 8, 10):
            most = tokens * world
            for n in {1, most // 2, most - 1, most} - {0}:
                k = int(share_of(fraction, torch.tensor(float(n), dtype=torch.float64)))
                assert k == max(1, int(n * fraction))
                assert rule_size(fraction, tokens, world) >= min(k + 1, tokens)


# --- top-k ---


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 7, 60, 400, 20000])
def test_largest_equal_a_sort(seed, size):
    """Rows in any order, few distinct values, negative zeros, fewer tokens than asked for."""
    g = torch.Generator().manual_seed(seed)
    B, T = 12, [64, 197, 1000][seed % 3]
    value = (torch.randn(B, T, generator=g) * 4).round() / 4 * (1.0 if seed < 3 else -1.0)
    value = torch.randn(B, T, generator=g) if seed == 5 else value
    mask = torch.rand(B, T, generator=g) < (0.7 if seed != 4 else 0.01)
    ids = token_ids(torch.randperm(50, generator=g)[:B], T)
    want = sorted((-float(value[i, j]), int(ids[i, j])) for i, j in mask.nonzero().tolist())[:size]
    got_value, got_id = largest(torch.where(mask, value, -torch.inf).flatten(), ids.flatten(), size)
    assert len(got_value) == len(got_id) == size
    got = sorted((-v, i) for v, i in zip(got_value.tolist(), got_id.tolist(), strict=True))
    assert got[: len(want)] == want
    assert set(got[len(want) :]) <= {(math.inf, LAST_ID)}


@pytest.mark.parametrize("size", [1, 9, 3000])
def test_smallest_keys_equal_a_sort(size):
    g = torch.Generator().manual_seed(size)
    keys = torch.randint(0, 2**53, (10, 130), generator=g)
    keys[torch.rand(10, 130, generator=g) < 0.5] = LAST_ID
    want = (sorted(keys.flatten().tolist()) + [LAST_ID] * size)[:size]
    assert sorted(smallest(keys.flatten(), size).tolist()) == want


@pytest.mark.parametrize("make", [KLCov, ClipCov])
@pytest.mark.parametrize("seed", range(3))
def test_three_ranks_of_unequal_width_select_what_one_does(make, seed):
    """bfloat16 log-probs and a handful of advantages: thousands of ties, at the threshold too."""
    b = batch(seed, B=12, T=400)
    advantage = b.rows.advantages_BT.mul(2).round().div(2)
    rows = Rows(**{**vars(b.rows), "advantages_BT": advantage, "row_id_B": torch.randperm(12)})
    b = Batch(rows, b.log_probs.bfloat16().float(), b.old.bfloat16().float())
    options = {"fraction": 0.02} if make is KLCov else {"fraction": 0.02, "lower": 0.1}
    whole = make(scope="exact", **options)
    want = taken(whole, b, whole.select(b.window(step=1)))

    def one_rank(part, ranks):
        controller = make(scope="exact", **options)
        return taken(controller, part, controller.select(part.window(ranks=ranks, step=1)))

    parts = [b[i : i + 4] for i in (0, 4, 8)]
    parts = [p.narrow(int(p.rows.mask_BT.sum(-1).max())) for p in parts]
    found = on_ranks(parts, one_rank)
    assert set().union(*found) == want
    assert sum(map(len, found)) == len(want) > 0


# --- sums ---


def test_a_sum_depends_on_no_order_and_on_nothing_beside_it():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 192, generator=g) * 10.0 ** torch.randint(-4, 4, (7, 1), generator=g)
    exact, size = math.fsum(x.flatten().tolist()), float(x.abs().sum())
    wider = torch.cat([x, torch.zeros(7, 100)], dim=1)
    for each in (x, x.flip(0), x.T, wider):
        assert abs(float(total(each)) - exact) < 1e-15 * size


@pytest.mark.parametrize("shift", [0.0, 50.0])
@pytest.mark.parametrize("per_token", [False, True])
def test_stats_and_spread_against_plain_loops(shift, per_token):
    """A mean far from zero, where differences of large sums would have lost the spread."""
    b = batch(3, B=6, T=300)
    log_probs = b.log_probs - shift
    advantages = b.rows.advantages_BT
    if per_token:
        advantages = advantages + 0.1 * torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    rows, mask = Rows(**{**vars(b.rows), "advantages_BT": advantages}), b.rows.mask_BT
    where = mask.nonzero().tolist()
    lp, a = [float(log_probs[i, j]) for i, j in where], [float(advantages[i, j]) for i, j in where]
    mean_lp, mean_a = sum(lp) / len(lp), sum(a) / len(a)
    c = [(x - mean_lp) * (y - mean_a) for x, y in zip(lp, a, strict=True)]
    mean = sum(c) / len(c)
    std = (sum((x - mean) ** 2 for x in c) / len(c)) ** 0.5
    stats = token_stats(log_probs, advantages, mask, OneRank())
    cov = token_covariance(log_probs, rows, mask, stats)
    assert int(stats.n) == len(c)
    assert float(stats.mean_log_prob) == pytest.approx(mean_lp, rel=1e-7)
    assert float(stats.mean_advantage) == pytest.approx(mean_a, abs=1e-7)
    assert torch.equal(
        cov, token_covariance(log_probs, rows, mask, token_stats(log_probs, advantages, mask, OneRank()))
    )
    spread = cov_spread(cov, stats.n, OneRank())
    assert float(spread.mean) == pytest.approx(mean, rel=1e-4, abs=1e-5)  # c itself is float32
    assert float(spread.std) == pytest.approx(std, rel=1e-5)


def test_inputs_are_left_alone():
    b = batch(0)
    before = [b.log_probs.clone(), b.old.clone(), b.rows.advantages_BT.clone(), b.rows.mask_BT.clone()]
    for controller in (KLCov(), ClipCov()):
        loss_pass(controller, b, controller.select(b.window()))
    for x, y in zip(before, [b.log_probs, b.old, b.rows.advantages_BT, b.rows.mask_BT], strict=True):
        assert torch.equal(x, y)


# --- top shares ---


def sorted_shares(cov, mask, negative):
    value, order = cov[mask].double().sort(descending=True)
    flags = negative[mask][order].double()
    count = {name: max(1, int(len(value) * share)) for name, share in TOP_SHARES.items()}
    return {name: (float(value[:k].mean()), float(flags[:k].mean()), float(value[k - 1])) for name, k in count.items()}


@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_top_shares_are_within_their_bound_of_a_sort(seed, scale):
    g = torch.Generator().manual_seed(seed)
    log_prob = -torch.exp(2 * torch.randn(40, 1000, generator=g) - 3)
    advantage = torch.randn(40, 1, generator=g)
    cov = (scale * (log_prob - log_prob.mean()) * advantage).float()
    mask, negative = torch.rand(40, 1000, generator=g) < 0.8, (advantage < 0).expand(40, 1000)
    got = share_means(cov, mask, OneRank(), negative_BT=negative)
    want = sorted_shares(cov, mask, negative)
    assert set(got) == {f"cov_top_{n}" for n in want} | {f"cov_top_{n}_negative" for n in want}
    inexact = 0
    for name, (mean, share, last) in want.items():
        error = abs(float(got[f"cov_top_{name}"]) - mean)
        assert error <= max(abs(last) / 64, 2.0**-19)
        inexact += error > 1e-12 * abs(mean)
        assert float(got[f"cov_top_{name}_negative"]) == pytest.approx(share, abs=0.02)
    assert inexact  # otherwise this shows nothing about the bound
    assert "cov_top_2%_negative" not in share_means(cov, mask, OneRank())


def test_top_shares_do_not_depend_on_the_ranks():
    b = batch(1, B=12, T=300)
    cov, mask = b.log_probs * b.rows.advantages_BT, b.rows.mask_BT
    whole = share_means(cov, mask, OneRank())
    parts = [(cov[:5], mask[:5]), (cov[5:, :299], mask[5:, :299])]
    mask[5:, 299:] = False
    whole = share_means(cov, mask, OneRank())
    for part in on_ranks(parts, lambda p, ranks: share_means(p[0], p[1], ranks)):
        for name, value in whole.items():
            assert float(part[name]) == pytest.approx(float(value), rel=1e-12)


def test_top_shares_of_few_or_no_tokens():
    cov, mask = torch.tensor([[3.0, -1.0, float("nan")]]), torch.tensor([[True, True, False]])
    got = share_means(cov, mask, OneRank())
    assert {float(v) for v in got.values()} == {3.0}  # k is 1 for every share of two tokens
    assert {float(v) for v in share_means(cov, torch.zeros_like(mask), OneRank()).values()} == {0.0}
    # beyond the outermost bins: all values of one bin count as their mean
    big = torch.tensor([[2.0**17, 2.0**16, 1.0, 1.0]])
    assert float(share_means(big, torch.ones(1, 4).bool(), OneRank())["cov_top_50%"]) == 1.5 * 2**16


def test_top_shares_of_a_broken_step_are_nan():
    cov = torch.tensor([[3.0, float("nan"), -1.0]])
    got = share_means(cov, torch.ones(1, 3).bool(), OneRank())
    assert all(math.isnan(float(v)) for v in got.values())
