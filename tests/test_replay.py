"""Counterfactual replay without a model: gains, estimators, calibration, recommendation, rank correlations."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from entrl.cli.main import main
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.hooks import LossView, OneRank, Rows
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.steer import Steer
from entrl.trainers.grpo.window_log import LoggedWindow, StepOptions, joined, save_window
from entrl_lab.replay import (
    Setting,
    make_setting,
    parse_settings,
    parse_target,
    predict,
    read_windows,
    replay,
    token_gain,
)
from entrl_lab.replay.agreement import (
    Interval,
    Pairs,
    agreement,
    kendall,
    over_windows,
    r_squared,
    scale_through_origin,
    spearman,
)
from entrl_lab.replay.predict import ESTIMATORS, pooled_change, predicted_changes
from entrl_lab.replay.recommend import Target, calibrate, measured_change, recommend
from entrl_lab.replay.settings import logged_setting, split_setting
from entrl_lab.replay.window_loss import check_window, select, window_loss

VECTORS = json.loads((Path(__file__).parent / "vectors" / "entropy_mechanism.json").read_text())


def options(**changes) -> StepOptions:
    plain = StepOptions(
        loss_type="dapo",
        accumulation=2,
        steps_per_generation=2,
        max_completion_length=10,
        num_items=30.0,
        temperature=1.0,
        learning_rate=0.5,
        eps_low=0.2,
        eps_high=0.3,
        fresh=False,
        pad_token_id=0,
        controllers=[],
    )
    return dataclasses.replace(plain, **changes)


def window(
    seed: int = 0, *, rows: int = 6, width: int = 7, drift: float = 0.3, step: int = 3, **changes
) -> LoggedWindow:
    """Random rows in two groups; `drift` is the spread of the log ratio."""
    generator = torch.Generator().manual_seed(seed)
    log_p = -3 * torch.rand(rows, width, generator=generator) - 0.01
    old = log_p + drift * torch.randn(rows, width, generator=generator)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths[:, None]
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width).clone()
    ids = torch.zeros(rows, width, dtype=torch.long)
    named = {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(LoggedWindow)}}
    plain = LoggedWindow(
        step=step,
        rank=0,
        world_size=1,
        rows=Rows(
            advantages_BT=advantages,
            mask_BT=mask,
            row_id_B=torch.arange(rows),
            informative_B=torch.ones(rows, dtype=torch.bool),
        ),
        log_probs_BT=log_p,
        old_log_probs_BT=old,
        entropies_BT=2 * torch.rand(rows, width, generator=generator),
        prompt_ids_BT=ids[:, :2],
        prompt_mask_BT=ids[:, :2],
        completion_ids_BT=ids,
        completion_mask_BT=mask.long(),
        options=options(**{k: v for k, v in changes.items() if k not in named}),
    )
    return dataclasses.replace(plain, **named)


CONTROLLERS = {
    "none": (),
    "clip_cov": (ClipCov(fraction=0.2, allow_large_fraction=True, lower=0.05, upper=50.0),),
    "kl_cov": (KLCov(fraction=0.2, allow_large_fraction=True),),
    "steer": (Steer(w_min=0.5),),
}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")


# --- the gain -----------------------------------------------------------------------------------------------------


def slow_gain(w: LoggedWindow, kind: str) -> list[list[float]]:
    """-d loss / d log pi, token by token from the equations, for the plain loss, Clip-Cov, KL-Cov and STEER."""
    controllers, mask = CONTROLLERS[kind], w.rows.mask_BT
    low, high = (w.options.eps_low, w.options.eps_high) if kind in ("none", "steer") else controllers[0].clip_range
    chosen, weights = set(), None
    if kind == "clip_cov" or kind == "kl_cov":
        chosen = slow_chosen(w, kind)
    if kind == "steer":
        weights = slow_steer(w)
    B, T = mask.shape
    size = B // w.options.accumulation
    out = [[0.0] * T for _ in range(B)]
    for b, t in itertools.product(range(B), range(T)):
        if not mask[b, t]:
            continue
        x = float(w.log_probs_BT[b, t]) - float(w.old_log_probs_BT[b, t])
        r, a = math.exp(x), float(w.rows.advantages_BT[b, t])
        a *= 1.0 if weights is None else weights[b][t]
        silenced = (a > 0 and r > 1 + high) or (a < 0 and r < 1 - low)
        gain = 0.0 if silenced else a * r
        if kind == "clip_cov" and (b, t) in chosen:
            gain = 0.0
        if kind == "kl_cov" and (b, t) in chosen:
            gain -= controllers[0].coef * (x > 0) - controllers[0].coef * (x < 0)
        rows = range(b // size * size, b // size * size + size)
        out[b][t] = gain * slow_share(w, b, rows)
    return out


def slow_share(w: LoggedWindow, b: int, rows: range) -> float:
    """What one token's loss is multiplied with before everything is added up."""
    o, counts = w.options, {i: int(w.rows.mask_BT[i].sum()) for i in rows}
    return {
        "grpo": 1 / max(counts[b], 1) / len(rows) / o.accumulation,
        "bnpo": 1 / max(sum(counts.values()), 1) / o.accumulation,
        "dr_grpo": 1 / (len(rows) * o.max_completion_length) / o.accumulation,
        "dapo": 1 / (o.num_items * o.accumulation / o.steps_per_generation),
    }[o.loss_type]


def slow_chosen(w: LoggedWindow, kind: str) -> set[tuple[int, int]]:
    """KL-Cov's k largest covariances; of Clip-Cov's random draw only the controller knows, so it is asked."""
    controller = CONTROLLERS[kind][0]
    if kind == "clip_cov":
        selection = select(w, [controller])[0]
        terms = controller.on_loss(
            w.rows,
            selection,
            LossView(
                log_probs_BT=w.log_probs_BT,
                old_log_probs_BT=w.old_log_probs_BT,
                entropies_BT=w.entropies_BT,
                eps_low=1.0,
                eps_high=1.0,
            ),
        )
        return {(b, t) for b, t in ((terms.weight_BT == 0) & w.rows.mask_BT).nonzero().tolist()}
    # Scope `step`: means and threshold of the sampling policy, membership by the log-probs of the loss pass.
    tokens = [(b, t) for b, t in w.rows.mask_BT.nonzero().tolist()]
    n = len(tokens)
    mean_lp = sum(float(w.old_log_probs_BT[i]) for i in tokens) / n
    mean_a = sum(float(w.rows.advantages_BT[i]) for i in tokens) / n
    c_old = sorted((float(w.old_log_probs_BT[i]) - mean_lp) * (float(w.rows.advantages_BT[i]) - mean_a) for i in tokens)
    k = max(1, int(n * controller.fraction))
    threshold = (c_old[-k] + c_old[-k - 1]) / 2
    return {
        i
        for i in tokens
        if (float(w.log_probs_BT[i]) - mean_lp) * (float(w.rows.advantages_BT[i]) - mean_a) > threshold
    }


def slow_steer(w: LoggedWindow) -> list[list[float]]:
    """Weights of the mapping `exp` under scope `step`, entropies of the sampling policy not logged."""

    def influence(lp: float, old: float, a: float, h: float) -> float:
        p = math.exp(lp)
        return abs(a * math.exp(lp - old) * (1 - p) * (lp + h))

    grid = [
        [(float(lp), float(old), float(a), float(h)) for lp, old, a, h in zip(*row, strict=True)]
        for row in zip(w.log_probs_BT, w.old_log_probs_BT, w.rows.advantages_BT, w.entropies_BT, strict=True)
    ]
    inside = [(b, t) for b, t in w.rows.mask_BT.nonzero().tolist()]
    largest = max(influence(grid[b][t][1], grid[b][t][1], *grid[b][t][2:]) for b, t in inside)
    k = -math.log(CONTROLLERS["steer"][0].w_min) / max(largest, 0.02)
    return [[max(math.exp(-k * influence(*cell)), CONTROLLERS["steer"][0].w_min) for cell in row] for row in grid]


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("kind", CONTROLLERS)
def test_gain_equals_the_equations(kind: str, loss_type: str):
    for seed in range(3):
        w = window(seed, loss_type=loss_type)
        got = token_gain(w, CONTROLLERS[kind]).gain_BT
        torch.testing.assert_close(got, torch.tensor(slow_gain(w, kind), dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_gain_by_hand():
    # One row, two tokens, A = 2, ratio 1: bnpo divides by 2 tokens and 1 micro-batch, so each gain is 2 * 1 / 2 = 1.
    w = window(rows=1, width=2, loss_type="bnpo", accumulation=1)
    mask = torch.ones(1, 2, dtype=torch.bool)
    rows = dataclasses.replace(w.rows, mask_BT=mask, advantages_BT=torch.full((1, 2), 2.0))
    log_p = torch.tensor([[-1.0, -2.0]])
    w = dataclasses.replace(
        w, rows=rows, log_probs_BT=log_p, old_log_probs_BT=log_p.clone(), entropies_BT=torch.tensor([[0.5, 3.0]])
    )
    gain = token_gain(w, []).gain_BT
    assert gain.tolist() == [[1.0, 1.0]]
    # natural: -0.5 (lr) * [1 * (-1 + 0.5) + 1 * (-2 + 3)] = -0.5 * 0.5 = -0.25
    # policy_gradient: -0.5 * [e^-1 * -0.5 + e^-2 * 1]
    # pooled: gains are alike, so their covariance with anything is 0
    found = predicted_changes(w, gain)
    assert found["natural"] == pytest.approx(-0.25)
    assert found["policy_gradient"] == pytest.approx(-0.5 * (-0.5 * math.exp(-1) + math.exp(-2)))
    assert found["pooled"] == 0.0


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_gain_against_finite_differences(kind: str):
    """The selection is held, as the loss holds it: it is outside the graph."""
    w, h = window(4), 1e-6
    log_p = torch.where(w.rows.mask_BT, w.log_probs_BT.double(), 0.0)
    gain = token_gain(w, CONTROLLERS[kind]).gain_BT
    for b, t in w.rows.mask_BT.nonzero().tolist()[::4]:
        shifted = []
        for sign in (1, -1):
            moved = log_p.clone()
            moved[b, t] += sign * h
            shifted.append(float(held_loss(w, kind, moved, log_p)))
        assert -(shifted[0] - shifted[1]) / (2 * h) == pytest.approx(float(gain[b, t]), abs=1e-6)


def held_loss(w: LoggedWindow, kind: str, log_p: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The loss at `log_p` with every decision and weight as it is at `at`."""
    controllers = CONTROLLERS[kind]

    class Held:
        def __init__(self, real):
            self.real, self.name, self.scope, self.clip_range = real, real.name, real.scope, real.clip_range

        def select(self, seen):
            return self.real.select(seen)

        def on_loss(self, rows, selection, view):
            first = int(rows.row_id_B[0])
            fixed = dataclasses.replace(view, log_probs_BT=at[first : first + len(rows.mask_BT)])
            terms = self.real.on_loss(rows, selection, fixed)
            if terms.penalty_BT is None:
                return terms
            chosen = self.real.members(rows, selection, log_probs_BT=fixed.log_probs_BT)
            x = view.log_probs_BT - view.old_log_probs_BT
            return dataclasses.replace(terms, penalty_BT=torch.where(chosen, self.real.coef * x.abs(), 0.0))

    held: list[Any] = [Held(c) for c in controllers]
    return window_loss(w, held, log_p).loss


def test_policy_weight_multiplies_the_policy_term_and_the_penalty():
    w = window(1)
    halved = dataclasses.replace(w, policy_weight_BT=torch.full_like(w.log_probs_BT, 0.5))
    for kind in ("none", "kl_cov"):
        torch.testing.assert_close(
            token_gain(halved, CONTROLLERS[kind]).gain_BT, 0.5 * token_gain(w, CONTROLLERS[kind]).gain_BT
        )


def test_nan_in_padding_changes_nothing():
    w = window(2)
    assert not bool(w.rows.mask_BT.all())
    holes = {
        n: torch.where(w.rows.mask_BT, getattr(w, n), torch.nan)
        for n in ("log_probs_BT", "old_log_probs_BT", "entropies_BT")
    }
    poisoned = dataclasses.replace(w, **holes)
    for kind, controllers in CONTROLLERS.items():
        setting = Setting(label=kind, controllers=controllers)
        assert predict(poisoned, [setting]) == predict(w, [setting])


def test_two_ranks_joined_give_what_data_parallel_training_gives():
    """DDP averages over ranks: the joined window's gain is that of each rank alone, over the number of ranks."""
    for loss_type in LOSSES:
        ranks = [window(s, loss_type=loss_type, width=5 + s, rank=s, world_size=2) for s in (0, 1)]
        ranks[1] = dataclasses.replace(ranks[1], rows=dataclasses.replace(ranks[1].rows, row_id_B=torch.arange(6, 12)))
        together = token_gain(joined(ranks), []).gain_BT
        for r, w in enumerate(ranks):
            # Alone, dapo's divisor would be the tokens of a run of one rank; under two it is num_items / 2.
            halved = dataclasses.replace(w.options, num_items=w.options.num_items / 2)
            alone = token_gain(dataclasses.replace(w, options=halved), []).gain_BT
            got = together[6 * r : 6 * r + 6, : alone.shape[1]]
            torch.testing.assert_close(got, alone / 2, msg=loss_type)


def test_joined_refuses_ranks_of_different_steps():
    with pytest.raises(ValueError, match="different steps or options"):
        joined([window(0), window(1, step=4)])
    measured = dataclasses.replace(window(1), entropies_after_BT=window(1).entropies_BT)
    with pytest.raises(ValueError, match="do not both have entropies_after_BT"):
        joined([window(0), measured])


# --- estimators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["theory"], ids=lambda c: c["id"])
def test_theorem_two_over_all_actions_is_the_vectors_covariance(case):
    """Every action of a state weighted by pi instead of sampled: the estimator's expectation is the theorem's."""
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    advantage = torch.tensor(case["inputs"]["advantage"], dtype=torch.float64)
    log_pi, pi = torch.log_softmax(logits, -1), torch.softmax(logits, -1)
    V = len(logits)
    w = window(rows=V, width=1, loss_type="bnpo", accumulation=1, learning_rate=case["inputs"]["eta"])
    w = dataclasses.replace(
        w,
        rows=dataclasses.replace(
            w.rows, mask_BT=torch.ones(V, 1, dtype=torch.bool), advantages_BT=(V * pi * advantage)[:, None]
        ),
        log_probs_BT=log_pi[:, None],
        old_log_probs_BT=log_pi[:, None],
        entropies_BT=torch.full((V, 1), case["entropy"], dtype=torch.float64),
    )
    found = predicted_changes(w, token_gain(w, []).gain_BT)
    assert found["natural"] == pytest.approx(case["natural_policy_gradient"]["minus_eta_cov"], rel=1e-7)


def test_theorem_two_by_sampling_converges():
    case = VECTORS["theory"][0]
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    advantage = torch.tensor(case["inputs"]["advantage"], dtype=torch.float64)
    N = 200_000
    action_N = torch.multinomial(torch.softmax(logits, -1), N, replacement=True)
    log_p = torch.log_softmax(logits, -1)[action_N][None]
    w = window(rows=1, width=N, loss_type="bnpo", accumulation=1, learning_rate=case["inputs"]["eta"])
    w = dataclasses.replace(
        w,
        rows=dataclasses.replace(
            w.rows, mask_BT=torch.ones(1, N, dtype=torch.bool), advantages_BT=advantage[action_N][None]
        ),
        log_probs_BT=log_p,
        old_log_probs_BT=log_p,
        entropies_BT=torch.full((1, N), case["entropy"], dtype=torch.float64),
    )
    want = case["natural_policy_gradient"]["minus_eta_cov"]
    assert predicted_changes(w, token_gain(w, []).gain_BT)["natural"] == pytest.approx(want, rel=0.02)


def test_pooled_is_the_covariance_of_the_paper():
    w = window(5)
    gain, mask = token_gain(w, []).gain_BT, w.rows.mask_BT
    pairs = [(float(gain[b, t]), float(w.log_probs_BT[b, t])) for b, t in mask.nonzero().tolist()]
    mean_g, mean_l = (sum(p[i] for p in pairs) / len(pairs) for i in (0, 1))
    want = -sum((g - mean_g) * (lp - mean_l) for g, lp in pairs)
    assert float(pooled_change(gain, w.log_probs_BT, mask)) == pytest.approx(want, rel=1e-6)


def test_a_fresh_window_has_no_kl_penalty_and_clip_cov_still_acts():
    w = window(6, drift=0.0, fresh=True)
    none, kl, clip = predict(w, [Setting(label=k, controllers=CONTROLLERS[k]) for k in ("none", "kl_cov", "clip_cov")])
    assert kl.change == none.change
    assert kl.changed == 0
    assert kl.selected is not None
    assert kl.selected > 0  # named, and left alone
    assert clip.change != none.change
    assert clip.changed == clip.selected
    assert 0 <= clip.changed_negative <= clip.changed


def test_replaying_leaves_the_controllers_as_they_were():
    clip = ClipCov(fraction=0.2, allow_large_fraction=True, lower=0.05, upper=50.0, scope="micro_batch")
    before = clip.state_dict()
    first, second = (predict(window(7), [Setting(label="c", controllers=(clip,))]) for _ in range(2))
    assert first == second
    assert clip.state_dict() == before


# --- settings -----------------------------------------------------------------------------------------------------


def test_words_become_settings():
    assert split_setting("none") == []
    assert split_setting("clip_cov:fraction=0.02,bounds=std+kl_cov") == [
        ("clip_cov", {"fraction": 0.02, "bounds": "std"}),
        ("kl_cov", {}),
    ]
    assert split_setting("my.py:brake") == [("my.py:brake", {})]
    assert split_setting("my.py:brake:strength=2") == [("my.py:brake", {"strength": 2})]
    found = parse_settings(["none", "kl_cov:coef=2", "clip_cov:fraction=0.01", "cw_grpo"], fractions=[0.002, 0.02])
    assert [s.label for s in found] == [
        "none",
        "kl_cov:coef=2,fraction=0.002",
        "kl_cov:coef=2,fraction=0.02",
        "clip_cov:fraction=0.01",
        "cw_grpo",
    ]
    assert found[1].controllers[0].options()["fraction"] == 0.002


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("clip_kov", "no entrl.controllers.clip_kov. Did you mean 'clip_cov'"),
        ("clip_cov:fracton=0.1", "takes no argument 'fracton'. Did you mean 'fraction'"),
        ("clip_cov:fraction=2", "fraction must be in"),
        ("clip_cov:fraction=", "should read option=value"),
        ("clip_cov+", "names no controller"),
        ("none+clip_cov", "names no controller"),
        ("w_reinforce", "w_reinforce replaces advantages from the rewards"),
        ("clip_cov+cw_grpo", "two controllers of role weight, which training refuses"),
        ("clip_cov+kl_cov", "different ratio ranges"),
    ],
)
def test_words_that_cannot_be_replayed(word: str, match: str):
    with pytest.raises(ValueError, match=match):
        make_setting(word)


def test_logged_controllers_are_built_again():
    inner = {"name": "kl_cov", "options": {"fraction": 0.01, "coef": 2.0}}
    guarded = {"name": "kl_cov", "options": {"controller": inner, "knob": "coef"}}
    found = logged_setting([guarded, {"name": "std_floor", "options": {}}])
    assert [(type(c), c.options()["coef"]) for c in found.controllers] == [(KLCov, 2.0)]
    with pytest.raises(ValueError, match=r"no entrl\.controllers\.mine"):
        logged_setting([{"name": "mine", "options": {}}])


# --- bad windows --------------------------------------------------------------------------------------------------


def broken(name: str) -> LoggedWindow:
    w = window(0)
    if name == "masked":
        return dataclasses.replace(w, rows=dataclasses.replace(w.rows, mask_BT=torch.zeros_like(w.rows.mask_BT)))
    if name == "nan":
        log_p = w.log_probs_BT.clone()
        log_p[0, 0] = torch.nan
        return dataclasses.replace(w, log_probs_BT=log_p)
    changed = {"cispo": {"loss_type": "cispo"}, "cold": {"temperature": 0.0}, "uneven": {"accumulation": 4}}[name]
    return dataclasses.replace(w, options=dataclasses.replace(w.options, **changed))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("masked", "no loss token"),
        ("nan", "1 of .* loss tokens with NaN or infinite log_probs_BT"),
        ("cispo", "loss_type='cispo', which has no ratio per token"),
        ("cold", "temperature 0.0; it must be > 0"),
        ("uneven", "6 rows for 4 micro-batches"),
    ],
)
def test_windows_that_mean_nothing(name: str, match: str):
    with pytest.raises(ValueError, match=match):
        predict(broken(name), [Setting(label="none")])


def test_a_controller_not_defined_for_the_loss():
    class Narrow(ClipCov):
        supported_losses = frozenset({"grpo"})

    with pytest.raises(ValueError, match="not defined for loss_type='dapo'"):
        check_window(window(0), [Narrow()])


def test_advantages_without_spread_predict_no_effect():
    w = window(0)
    w = dataclasses.replace(w, rows=dataclasses.replace(w.rows, advantages_BT=torch.zeros_like(w.log_probs_BT)))
    (found,) = predict(w, [Setting(label="none")])
    assert found.change == dict.fromkeys(ESTIMATORS, 0.0)
    with pytest.raises(ValueError, match="without spread"):
        recommend([[found]], Target(value=0.0, share=False))


# --- rank correlations and calibration ----------------------------------------------------------------------------


def test_ranks_and_correlations_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert kendall([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(4 / 6)  # 5 pairs agree, 1 does not
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))  # one tie in x
    assert math.isnan(spearman([1, 1], [1, 2]))
    assert math.isnan(kendall([1], [2]))
    with pytest.raises(ValueError, match="paired one to one"):
        spearman([1, 2], [1])
    with pytest.raises(ValueError, match="paired one to one"):
        kendall([1, 2], [1])


@pytest.mark.parametrize("n", [3, 8, 40])
def test_rank_correlations_equal_scipys_with_ties(n):
    draw = np.random.default_rng(n)
    for _ in range(20):
        x, y = draw.integers(0, n, n).astype(float), draw.integers(0, 2 * n, n) / 2
        assert spearman(x.tolist(), y.tolist()) == pytest.approx(spearmanr(x, y).statistic, nan_ok=True, abs=1e-12)
        assert kendall(x.tolist(), y.tolist()) == pytest.approx(kendalltau(x, y).statistic, nan_ok=True, abs=1e-12)


def test_scale_by_hand():
    x, y = [1.0, 2.0], [2.0, 3.0]
    assert scale_through_origin(x, y) == pytest.approx(8 / 5)  # (1*2 + 2*3) / (1 + 4)
    # residuals 2 - 1.6 = 0.4 and 3 - 3.2 = -0.2; 1 - (0.16 + 0.04) / 0.5 = 0.6
    assert r_squared(x, y, 8 / 5) == pytest.approx(0.6)
    assert math.isnan(scale_through_origin([0.0], [1.0]))
    assert math.isnan(r_squared([1.0], [1.0], 1.0))


def test_interval_over_windows():
    def mean(some):
        return sum(some) / len(some)

    found = over_windows([1.0, 2.0, 3.0, 4.0], mean)
    assert found.lo < found.value == 2.5 < found.hi
    assert over_windows([1.0, 2.0, 3.0, 4.0], mean) == found  # the same seed, the same numbers
    assert math.isnan(over_windows([1.0, 2.0], mean).lo)
    assert math.isnan(over_windows([1.0, 2.0, 3.0], lambda _: math.nan).lo)


def test_agreement_of_a_perfect_and_of_a_reversed_prediction():
    windows = [Pairs((0.0, 1.0 + i, 2.0 + i, 5.0 + i), (0.5, 2.5 + 2 * i, 4.5 + 2 * i, 10.5 + 2 * i)) for i in range(4)]
    found = agreement(windows)
    assert found.spearman_of_means == found.kendall_within == Interval(1.0, 1.0, 1.0)
    assert found.spearman_per_window == [1.0] * 4
    assert found.scale.value == pytest.approx(2.0)  # differences from the first setting: exactly twice
    assert found.r2 == pytest.approx(1.0)
    flipped = agreement([Pairs(w.predicted, tuple(-m for m in w.measured)) for w in windows])
    assert flipped.spearman_of_means.value == flipped.kendall_of_means.value == -1.0
    assert flipped.scale.value == pytest.approx(-2.0)


def measured(w: LoggedWindow, nats: float) -> LoggedWindow:
    return dataclasses.replace(w, entropies_after_BT=w.entropies_BT + nats)


def test_calibration_finds_the_scale_it_was_given():
    settings = [Setting(label="as logged")] * 5
    plain = [window(s) for s in range(5)]
    predicted = [predict(w, settings[:1])[0].change["natural"] for w in plain]
    found = calibrate([measured(w, 0.25 * x) for w, x in zip(plain, predicted, strict=True)], settings)
    assert found is not None
    assert found["natural"].scale.value == pytest.approx(0.25, rel=1e-4)
    assert found["natural"].r2 == pytest.approx(1.0, abs=1e-4)
    assert found["natural"].windows == 5
    assert calibrate(plain, settings) is None  # nothing was measured
    assert calibrate([measured(w, 0.1) for w in plain], [None] * 5) is None  # nothing is known to have acted
    assert measured_change(plain[0]) is None


# --- targets and recommendation -----------------------------------------------------------------------------------


def test_targets():
    assert parse_target("0") == Target(value=0.0, share=False)
    assert parse_target("-0.001") == Target(value=-0.001, share=False)
    assert parse_target("50%") == Target(value=0.5, share=True)
    for text in ("half", "nan", "%"):
        with pytest.raises(ValueError, match="takes nats per step"):
            parse_target(text)


def table(*rows: tuple[float, ...]):
    """Predictions with these natural changes, one row per window, settings a, b, c."""
    blank = predict(window(0), [Setting(label="x")])[0]
    return [
        [
            dataclasses.replace(blank, setting=n, change=dict.fromkeys(ESTIMATORS, v))
            for n, v in zip("abc", row, strict=True)
        ]
        for row in rows
    ]


def test_recommendation_is_the_nearest_setting():
    windows = table((-1.0, -0.4, 0.5), (-1.2, -0.5, 0.6), (-0.8, -0.5, 0.4))
    hold = recommend(windows, parse_target("0"))
    assert (hold.setting, hold.reachable) == ("b", True)  # means -1, -0.467, 0.5: b is 0.467 away, c 0.5
    assert hold.gap == pytest.approx(1.4 / 3)
    assert hold.rank_stability == 1.0
    half = recommend(windows, parse_target("50%"))
    assert (half.setting, half.chosen_share) == ("b", 1.0)
    up = recommend(windows, parse_target("0.02"), scale=0.01)  # 0.02 nats are 2 units: c is nearest, and short of it
    assert (up.setting, up.reachable) == ("c", False)
    with pytest.raises(ValueError, match="needs a scale"):
        recommend(windows, parse_target("0.02"))


def test_an_unstable_choice_says_so():
    windows = table((-1.0, 0.5, -0.5), (-1.0, -0.5, 0.5), (-1.0, 0.52, -0.5), (-1.0, -0.5, 0.5))
    found = recommend(windows, parse_target("0"))
    assert found.chosen_share < 0.9
    assert found.runners_up
    assert found.rank_stability < 1.0


# --- a run folder and the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in range(4):
        w = window(step, step=step, fresh=step == 0, drift=0.0 if step == 0 else 0.3)
        save_window(tmp_path / "checkpoints", measured(w, -0.01))
    return tmp_path


def test_the_command_predicts_and_recommends(run: Path, capsys: pytest.CaptureFixture[str]):
    words = ["replay", str(run), "--controllers", "clip_cov:lower=0.05", "kl_cov", "steer", "--fractions", "0.02,0.05"]
    assert main([*words, "--target", "0"]) == 0
    out = capsys.readouterr().out
    assert "clip_cov:lower=0.05,fraction=0.02" in out
    assert "nats per predicted unit" in out
    assert "recommended:" in out
    assert "1 of 4 windows are fresh" in out
    assert "no entropies of the sampling policy" in out
    assert main([*words, "--json", "--steps", "1,2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"][0]["setting"] == "none"
    assert len(found["settings"]) == 6
    assert [w["step"] for w in found["windows"]] == [1, 2]
    assert found["settings"][0]["relative"]["natural"] == 1.0
    assert found["calibration"] is None  # two windows are too few


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--controllers", "clip_kov"], "Did you mean 'clip_cov'"),
        (["--controllers", "steer", "--steps", "9"], "no window of step 9; logged are 0, 1, 2, 3"),
        (["--controllers", "steer", "--steps", "x"], "--steps takes numbers"),
        (["--controllers", "steer", "--target", "much"], "takes nats per step"),
        (["--controllers", "steer", "--validate"], "has no recipe.yaml"),
    ],
)
def test_the_commands_errors(run: Path, words: list[str], match: str, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", str(run), *words]) == 2
    assert match in capsys.readouterr().err


def test_folders_without_windows(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        read_windows(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no logged windows; train with trainer\.log_windows"):
        read_windows(tmp_path)


def test_mixed_temperatures_and_missing_ranks(tmp_path: Path):
    save_window(tmp_path, window(0, step=0))
    save_window(tmp_path, window(1, step=1, temperature=0.7))
    with pytest.raises(ValueError, match=r"sampled at temperatures \[0\.7, 1\.0\]"):
        read_windows(tmp_path)
    assert len(read_windows(tmp_path, [1])) == 1
    save_window(tmp_path, window(2, step=2, world_size=2))
    with pytest.raises(ValueError, match="1 of 2 ranks"):
        read_windows(tmp_path, [2])


def test_windows_of_an_unknown_controller_are_left_out_of_the_calibration(run: Path):
    odd = measured(window(9, step=9, controllers=[{"name": "mine", "options": {}}]), -0.01)
    save_window(run / "checkpoints", odd)
    found = replay(run, parse_settings(["steer"]))
    assert any("left out of the calibration" in note for note in found.warnings)
    assert found.calibration is not None
    assert found.calibration["natural"].windows == 4


def test_the_window_shows_each_scope_its_policy():
    w = window(0)
    stale = dataclasses.replace(w, old_entropies_BT=w.entropies_BT + 1)
    assert w.window(scope="step").log_probs_BT is w.old_log_probs_BT
    assert w.window().log_probs_BT is w.log_probs_BT
    assert w.window(scope="step").entropies_BT is w.entropies_BT
    assert stale.window(scope="step").entropies_BT is stale.old_entropies_BT
    assert stale.window().entropies_BT is stale.entropies_BT
    assert isinstance(w.window().ranks, OneRank)
