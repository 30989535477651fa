"""First-order entropy changes, the step's covariance monitor and the split of a change, against loops and theory."""

import json
import math
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch

from entrl.controllers.hooks import OneRank, Rows
from entrl.controllers.monitor import (
    ANSWER,
    OTHER,
    THINK,
    Monitor,
    decompose,
    first_order_change,
    state_covariance,
    tabular_entropy_change,
)
from entrl.controllers.top_shares import TOP_SHARES
from entrl.report import read_runs
from entrl.report.page import payload

THEORY = json.loads((Path(__file__).with_name("vectors") / "entropy_mechanism.json").read_text())["theory"]
KEYS = {1: "policy_gradient", 2: "natural_policy_gradient"}
HISTOGRAM = 1 / 64  # relative error of a top share's mean, see `share_means`


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("theorem", [1, 2])
@pytest.mark.parametrize("case", THEORY, ids=lambda c: c["id"])
def test_theory_vectors(case, theorem):
    given = case["inputs"]
    found = tabular_entropy_change(f64(given["logits"]), f64(given["advantage"]), given["eta"], theorem=theorem)
    expected = case[KEYS[theorem]]
    assert found.change.item() == pytest.approx(expected["entropy_change"], rel=1e-7, abs=1e-9)
    assert found.minus_eta_cov.item() == pytest.approx(expected["minus_eta_cov"], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("theorem", [1, 2])
def test_prediction_is_the_slope_of_the_exact_change(theorem):
    """Halving eta halves the relative gap: the theorem is right to first order, and only to first order."""
    logits, _, advantage = states(seed=3)
    gaps = []
    for eta in (1e-3, 5e-4):
        found = tabular_entropy_change(logits, advantage, eta, theorem=theorem)
        gaps.append(((found.change - found.minus_eta_cov) / eta).abs())
    assert gaps[0].max() < 0.01
    torch.testing.assert_close(gaps[1], gaps[0] / 2, rtol=0.05, atol=1e-9)


def states(seed, count=6, actions=5):
    """(S, V) logits, probabilities and advantages of mean 0 under the policy, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, actions, generator=generator, dtype=torch.float64)
    pi = logits.softmax(-1)
    advantage = torch.randn(count, actions, generator=generator, dtype=torch.float64)
    return logits, pi, advantage - (pi * advantage).sum(-1, keepdim=True)


@pytest.mark.parametrize("theorem", [1, 2])
def test_token_prediction_is_unbiased_for_the_theorem(theorem):
    """Rows are states, columns are actions: weighted by pi, the per-token values add up to -Cov."""
    logits, pi, advantage = states(seed=1)
    entropy = -(pi * pi.log()).sum(-1, keepdim=True).expand_as(pi)
    every = torch.ones_like(pi, dtype=torch.bool)
    each = first_order_change(advantage, pi.log(), entropy, every, theorem=theorem)
    expected = tabular_entropy_change(logits, advantage, 1.0, theorem=theorem).minus_eta_cov
    torch.testing.assert_close((pi * each).sum(-1), expected, rtol=1e-12, atol=1e-14)
    if theorem == 2:
        torch.testing.assert_close(state_covariance(pi.log(), entropy, advantage, every), -each)


def test_first_order_change_by_hand():
    # p = 1/4 in a state of ln 2 nats: log p + H = -ln 4 + ln 2 = -ln 2. A gain of 3 on an unlikely token raises
    # entropy by 3 ln 2 a unit of eta (theorem 2), a quarter of that under theorem 1; at p = e^-H nothing moves.
    log_p, entropy = torch.tensor([[0.25, 0.5, 0.25]]).log(), torch.full((1, 3), math.log(2))
    gain, mask = torch.tensor([[3.0, 3.0, torch.nan]]), torch.tensor([[True, True, False]])
    ln2 = math.log(2)
    torch.testing.assert_close(first_order_change(gain, log_p, entropy, mask), torch.tensor([[3 * ln2, 0.0, 0.0]]))
    found = first_order_change(gain, log_p, entropy, mask, theorem=1)
    torch.testing.assert_close(found, torch.tensor([[0.75 * ln2, 0.0, 0.0]]))


def test_gain_is_minus_the_slope_of_the_loss_and_carries_no_graph():
    """The gain of a plain policy-gradient loss is the advantage, so both spellings give the same prediction."""
    log_p = torch.tensor([[-0.5, -2.0]], requires_grad=True)
    advantage, entropy, mask = torch.tensor([[1.0, -2.0]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    (-(advantage * torch.exp(log_p - log_p.detach())).sum()).backward()
    assert log_p.grad is not None
    found = first_order_change(-log_p.grad, log_p, entropy, mask)
    assert not found.requires_grad
    torch.testing.assert_close(found, -state_covariance(log_p, entropy, advantage, mask))


@pytest.mark.parametrize("theorem", [0, 3, "2"])
def test_unknown_theorem(theorem):
    x = torch.zeros(1, 1)
    for call in (
        lambda: tabular_entropy_change(x, x, 0.1, theorem=theorem),
        lambda: first_order_change(x, x, x, x.bool(), theorem=theorem),
    ):
        with pytest.raises(ValueError, match=r"theorem must be 1 \(policy gradient\) or 2"):
            call()


# --- Monitor ---------------------------------------------------------------------------------------------------------


def batch(seed, B=12, T=30):
    """Rows of one optimiser step and what a pass would give for them; padding is NaN, two rows lack spread."""
    g = torch.Generator().manual_seed(seed)
    mask_BT = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)
    advantages_B = torch.randn(B, generator=g)
    informative_B = torch.ones(B, dtype=torch.bool)
    informative_B[[1, 5]] = False
    advantages_B[~informative_B] = 0.0
    phase_BT = torch.randint(0, 3, (B, T), generator=g, dtype=torch.int8)
    rows = Rows(
        advantages_BT=advantages_B[:, None].expand(B, T).clone(),
        mask_BT=mask_BT,
        row_id_B=torch.arange(B),
        informative_B=informative_B,
    )
    log_p_BT = torch.where(mask_BT, -torch.empty(B, T).exponential_(1.0, generator=g), torch.nan)
    entropy_BT = torch.where(mask_BT, torch.rand(B, T, generator=g), torch.nan)
    return rows, log_p_BT, entropy_BT, phase_BT


def cut(taken, rows, *tensors, width=None):
    """Some rows, cut to the width their micro-batch would have."""
    width = width or int(rows.mask_BT[taken].sum(1).max())
    part = Rows(
        advantages_BT=rows.advantages_BT[taken, :width],
        mask_BT=rows.mask_BT[taken, :width],
        row_id_B=rows.row_id_B[taken],
        informative_B=rows.informative_B[taken],
    )
    return part, *(x[taken, :width] for x in tensors)


def observed(step, *, size=None):
    """A step's metrics as floats, out of micro-batches of `size` rows."""
    monitor, B = Monitor(), len(step[0].mask_BT)
    for taken in torch.arange(B).split(size or B):
        monitor.observe(*cut(taken, *step))
    return {name: value.item() for name, value in monitor.finish(OneRank()).items()}


def slow(rows, log_p_BT, entropy_BT, phase_BT):
    """The same from plain lists, written from the equations."""
    tokens, thinks, answers = [], [], []
    for b, t in rows.mask_BT.nonzero().tolist():
        h, phase = entropy_BT[b, t].item(), int(phase_BT[b, t])
        (thinks if phase == THINK else answers if phase == ANSWER else []).append(h)
        if rows.informative_B[b]:
            tokens.append((log_p_BT[b, t].item(), h, rows.advantages_BT[b, t].item()))
    mean_log_p, mean_a = fmean(x for x, _, _ in tokens), fmean(a for _, _, a in tokens)
    scored = sorted((((x - mean_log_p) * (a - mean_a), a) for x, _, a in tokens), reverse=True)
    out = {
        "dynamics/cov_mean": fmean(c for c, _ in scored),
        "dynamics/cov_std": pstdev(c for c, _ in scored),
        "dynamics/state_cov": fmean((x + h) * a for x, h, a in tokens),
        "dynamics/tokens": len(tokens),
        "policy_entropy/think": fmean(thinks),
        "policy_entropy/answer": fmean(answers),
    }
    for name, share in TOP_SHARES.items():
        top = scored[: max(1, int(share * len(scored)))]
        out[f"dynamics/cov_top_{name}"] = fmean(c for c, _ in top)
        out[f"dynamics/cov_top_{name}_negative"] = fmean(a < 0 for _, a in top)
    return out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [None, 1, 5])
def test_monitor_equals_the_loops_for_any_micro_batch(seed, size):
    step = batch(seed)
    found, expected = observed(step, size=size), slow(*step)
    assert set(found) == set(expected)
    for name, value in expected.items():
        # The bin of the last token of a top share is taken by its mean: one bin's tokens may be off by their spread.
        loose = "cov_top" in name
        margin = 0.05 if "negative" in name else 1e-6
        assert found[name] == pytest.approx(value, rel=HISTOGRAM if loose else 1e-5, abs=margin), name


def test_one_state_by_hand():
    """Sixteen tokens in the policy's own proportions: the pooled mean log-prob is -H, so both covariances agree.

    pi = 8, 4, 2, 2 sixteenths: H = (8 ln 2 + 4 ln 4 + 4 ln 8) / 16 = 1.75 ln 2. A = 1 on the likeliest action and -1
    on the rest has mean 0; E[(log pi + H) A] = (8 (-1 + 1.75) - 4 (-2 + 1.75) - 4 (-3 + 1.75)) / 16 ln 2 = 0.75 ln 2.
    """
    log_p = torch.tensor([[0.5] * 8 + [0.25] * 4 + [0.125] * 4]).log()
    advantages = torch.tensor([[1.0] * 8 + [-1.0] * 8])
    rows = one_group(advantages)
    monitor = Monitor()
    monitor.observe(rows, log_p, torch.full_like(log_p, 1.75 * math.log(2)))
    found = monitor.finish(OneRank())
    for name in ("dynamics/cov_mean", "dynamics/state_cov"):
        assert found[name].item() == pytest.approx(0.75 * math.log(2), abs=1e-6)
    assert found["dynamics/cov_top_20%_negative"].item() == 1.0  # the three top ones are the unlikely, punished ones
    predicted = tabular_entropy_change(f64([8, 4, 2, 2]).log(), f64([1, -1, -1, -1]), 1e-2, theorem=2).minus_eta_cov
    assert -1e-2 * found["dynamics/state_cov"].item() == pytest.approx(predicted.item(), abs=1e-8)


def one_group(advantages_BT, mask_BT=None):
    B, T = advantages_BT.shape
    mask_BT = torch.ones(B, T, dtype=torch.bool) if mask_BT is None else mask_BT
    return Rows(
        advantages_BT=advantages_BT,
        mask_BT=mask_BT,
        row_id_B=torch.arange(B),
        informative_B=torch.ones(B, dtype=torch.bool),
    )


def test_states_of_different_entropy_move_the_pooled_mean_alone():
    """Two deterministic-looking states, each with tokens at exactly -H: no state says anything, pooling does."""
    log_p = torch.tensor([[-0.1] * 4, [-2.0] * 4])
    monitor = Monitor()
    monitor.observe(one_group(torch.tensor([[1.0] * 4, [-1.0] * 4])), log_p, -log_p)
    found = monitor.finish(OneRank())
    assert found["dynamics/state_cov"].item() == 0.0
    assert found["dynamics/cov_mean"].item() == pytest.approx(0.95, abs=1e-6)  # (0.95 * 1 + -0.95 * -1) / 2


def test_rows_without_spread_count_for_entropy_only():
    rows, log_p, entropy, _ = batch(0)
    lone = Rows(
        advantages_BT=rows.advantages_BT,
        mask_BT=rows.mask_BT,
        row_id_B=rows.row_id_B,
        informative_B=torch.zeros(12, dtype=torch.bool),
    )
    monitor = Monitor()
    monitor.observe(lone, log_p, entropy, torch.full_like(rows.mask_BT, THINK, dtype=torch.int8))
    found = monitor.finish(OneRank())
    assert found.pop("dynamics/tokens").item() == 0
    assert found.pop("policy_entropy/think").item() == pytest.approx(entropy[rows.mask_BT].mean().item(), rel=1e-6)
    assert all(value.isnan() for value in found.values())


@pytest.mark.parametrize("kind", ["never observed", "all masked", "no tokens at all", "finished before"])
def test_nothing_to_count_is_nan(kind):
    monitor = Monitor()
    rows, log_p, entropy, phase = batch(0)
    if kind == "all masked":
        monitor.observe(one_group(rows.advantages_BT, torch.zeros_like(rows.mask_BT)), log_p, entropy, phase)
    elif kind == "no tokens at all":
        monitor.observe(one_group(torch.zeros(2, 0)), torch.zeros(2, 0), torch.zeros(2, 0))
    elif kind == "finished before":
        monitor.observe(rows, log_p, entropy, phase)
        monitor.finish(OneRank())
    found = monitor.finish(OneRank())
    assert set(found) == set(observed(batch(0)))
    assert found.pop("dynamics/tokens").item() == 0
    assert all(value.isnan() and value.dim() == 0 for value in found.values())


@pytest.mark.parametrize("advantage", [0.0, 1.0, -0.3])
def test_constant_advantages_have_no_covariance(advantage):
    rows, log_p, entropy, _ = batch(2)
    monitor = Monitor()
    monitor.observe(one_group(torch.full_like(rows.advantages_BT, advantage), rows.mask_BT), log_p, entropy)
    found = monitor.finish(OneRank())
    assert found["dynamics/cov_mean"].item() == pytest.approx(0.0, abs=1e-12)
    assert found["dynamics/cov_std"].item() == 0.0
    assert found["dynamics/cov_top_2%"].item() == pytest.approx(0.0, abs=1e-6)
    expected = advantage * (log_p + entropy)[rows.mask_BT].mean().item()
    assert found["dynamics/state_cov"].item() == pytest.approx(expected, rel=1e-5)


def test_one_token_and_extreme_log_probs_stay_finite():
    monitor = Monitor()
    monitor.observe(one_group(torch.tensor([[1.0]])), torch.tensor([[-100.0]]), torch.tensor([[0.0]]))
    found = monitor.finish(OneRank())
    assert found["dynamics/cov_mean"].item() == found["dynamics/cov_std"].item() == 0.0
    assert found["dynamics/state_cov"].item() == -100.0


def test_phases_may_be_unknown_or_absent():
    rows, log_p, entropy, _ = batch(0)
    for phase in (None, torch.full(rows.mask_BT.shape, OTHER, dtype=torch.int8)):
        monitor = Monitor()
        monitor.observe(rows, log_p, entropy, phase)
        found = monitor.finish(OneRank())
        assert found["policy_entropy/think"].isnan()
        assert found["policy_entropy/answer"].isnan()


def test_no_graph_is_kept():
    rows, log_p, entropy, phase = batch(0)
    monitor = Monitor()
    monitor.observe(rows, log_p.requires_grad_(), entropy.requires_grad_(), phase)
    assert not any(x.requires_grad for x in monitor.sums().values())
    assert not any(x.requires_grad for x in monitor.finish(OneRank()).values())


def test_nothing_is_read_back_from_the_device():
    """On the meta device there are shapes and no values, so any .item(), boolean index or copy to the host raises."""
    real, log_p, entropy, phase = batch(0)
    rows = real.map(lambda x: x.to("meta"))
    for reading in (torch.Tensor.item, lambda x: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):  # the device does what is said of it
            reading(torch.zeros(1, device="meta"))
    monitor = Monitor()
    for _ in range(2):
        monitor.observe(rows, log_p.to("meta"), entropy.to("meta"), phase.to("meta"))
    found = monitor.finish(OneRank())
    assert set(found) == set(observed(batch(0)))
    assert all(value.device.type == "meta" for value in found.values())


def test_two_collectives_a_step_of_fixed_size():
    class Counting(OneRank):
        def __init__(self):
            self.sizes = []

        def sum(self, x):
            self.sizes.append(x.numel())
            return x

    seen = []
    for rows in (4, 40):
        ranks, monitor = Counting(), Monitor()
        for seed in range(3):
            monitor.observe(*batch(seed, B=max(rows, 6)))
        monitor.finish(ranks)
        seen.append(ranks.sizes)
    assert len(seen[0]) == 2
    assert seen[0] == seen[1]


def test_sums_of_two_halves_add_up():
    """What the all-reduce relies on: every entry of `sums` is additive over rows."""
    step = batch(4)
    parts = [torch.arange(12), torch.arange(0, 5), torch.arange(5, 12)]
    whole, first, second = (Monitor() for _ in parts)
    for monitor, taken in zip((whole, first, second), parts, strict=True):
        monitor.observe(*cut(taken, *step))
    for name, value in whole.sums().items():
        torch.testing.assert_close(first.sums()[name] + second.sums()[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.multiprocess
def test_two_gloo_ranks_equal_one_process(tmp_path):
    """Unequal halves, one of them split again; the second rank's last micro-batch is all padding."""
    script = tmp_path / "two_ranks.py"
    script.write_text(
        textwrap.dedent(f"""
            import json, runpy, sys
            import torch
            import torch.distributed as dist
            from entrl.controllers.monitor import Monitor

            class Gloo:
                def sum(self, x):
                    x = x.clone()
                    dist.all_reduce(x)
                    return x

            rank = int(sys.argv[1])
            dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
            here = runpy.run_path({str(Path(__file__))!r})
            step, monitor = here["batch"](7), Monitor()
            for taken in (torch.arange(0, 3), torch.arange(3, 5)) if rank == 0 else (torch.arange(5, 12),):
                monitor.observe(*here["cut"](taken, *step))
            if rank == 1:
                rows, *tensors = here["cut"](torch.arange(5, 12), *step)
                monitor.observe(here["one_group"](rows.advantages_BT, rows.mask_BT & False), *tensors)
            print(json.dumps({{k: v.item() for k, v in monitor.finish(Gloo()).items()}}))
            dist.destroy_process_group()
        """)
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script)]
    runs = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True, env=env)
        for rank in range(2)
    ]
    first, second = (json.loads(run.communicate(timeout=120)[0]) for run in runs)
    assert first == second
    expected = observed(batch(7))
    assert set(first) == set(expected)
    for name, value in expected.items():
        assert first[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


# --- Decomposition ---------------------------------------------------------------------------------------------------


def rollout_entropy(entropy_by_state, visits):
    return sum(h * v for h, v in zip(entropy_by_state, visits, strict=True)) / sum(visits)


@pytest.mark.parametrize(
    ("now", "visits_now", "within", "occupancy"),
    [
        ((0.2, 1.0), (3, 1), 0.0, 0.0),  # nothing moved
        ((0.1, 0.6), (3, 1), -0.175, 0.0),  # surer in each state: (3 * -0.1 + -0.4) / 4
        ((0.2, 1.0), (1, 3), 0.0, 0.4),  # same policy in each state, other states: 0.8 - 0.4
        ((0.1, 0.6), (1, 3), -0.175, 0.25),  # both: (0.1 + 1.8) / 4 = 0.475 = 0.4 - 0.175 + 0.25
    ],
)
def test_decomposition_of_a_policy_with_two_states(now, visits_now, within, occupancy):
    start, visits = (0.2, 1.0), (3, 1)
    found = decompose(
        rollout_entropy(now, visits_now),
        rollout_entropy(now, visits),
        rollout_entropy(start, visits),
        rollout_entropy(start, visits),
    )
    assert found.within == pytest.approx(within, abs=1e-12)
    assert found.occupancy == pytest.approx(occupancy, abs=1e-12)
    assert found.total == pytest.approx(within + occupancy, abs=1e-12)


def test_what_a_probe_is_off_by_at_the_start_cancels():
    assert decompose(0.3, 0.7, 0.4, 0.8) == pytest.approx((-0.1, -0.1, 0.0), abs=1e-12)


# --- In the report ---------------------------------------------------------------------------------------------------


def test_report_draws_what_watches_entropy(tmp_path):
    """The run is SYNTHETIC (synthetic_runs.py); names are those of the monitor, the probe, the guard and the law."""
    make_run = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))["make_run"]
    data = payload(read_runs([make_run(tmp_path / "run", steps=3, dynamics=True)]))
    drawn = {chart["title"]: chart["metrics"] for section in data["sections"] for chart in section["charts"]}
    assert set(drawn["Covariance, mean"]) == {"dynamics/cov_mean", "kl_cov/cov_mean", "dynamics/state_cov"}
    shares = drawn["Covariance, top shares"]
    assert {f"dynamics/cov_top_{name}" for name in TOP_SHARES} < set(shares)
    assert not [name for name in shares if "negative" in name]
    negative = drawn["Top shares, negative advantage"]
    assert sorted(negative) == sorted(f"dynamics/cov_top_{name}_negative" for name in TOP_SHARES)
    assert drawn["Entropy by phase"][:2] == ["policy_entropy/think", "policy_entropy/answer"]
    assert drawn["Fixed probe prefixes"] == ["probe/entropy", "probe/within", "probe/occupancy"]
    assert "diversity/edit_distance" in drawn["Sequence diversity"]
    assert "diversity/truncated" not in drawn["Sequence diversity"]
    assert drawn["Guard knob"] == ["kl_cov/guard_knob"]
    assert drawn["Guard, entropy held"] == ["kl_cov/guard_share"]
    assert drawn["Law ceiling"] == ["law/ceiling", "law/ceiling_lo", "law/ceiling_hi"]
    assert drawn["Entropy coefficient"] == ["entropy_coef"]
