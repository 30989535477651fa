"""Rows on their way to the asynchronous loss: trails, layout, ages by hand; and what is refused. No engine."""

import numpy as np
import pytest
import torch
from async_setup import GROUP, async_options, large, make_samples, packed, saved_model

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.guard import Guard
from entrl.controllers.hooks import OneRank, Window
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.std_floor import StdFloor
from entrl.engines import cpu_tree_attention
from entrl.engines.trails import UNKNOWN
from entrl.trainers.async_grpo.checks import check_async
from entrl.trainers.async_grpo.rows import FlatBatch, Layout, padded_rows
from entrl.trainers.async_grpo.staleness import SUMS, staleness_metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    cpu_tree_attention.install()
    return saved_model(tmp_path_factory.mktemp("model"))


# ---- rows


def test_every_trained_token_brings_its_own_entropy_and_version(model):
    samples = make_samples(model, 2, versions=lambda group, i: 10 * group + i)
    batch, seen = packed(samples)
    assert len(seen) == len(samples)
    flat = FlatBatch.of(batch)
    expected = np.concatenate([s.metrics.trail.entropies[s.completion_mask == 1] for s in samples])
    np.testing.assert_array_equal(flat.entropies_M.numpy(), expected)
    for row, sample in enumerate(samples):
        mine = flat.versions_M[flat.layout.row_M == row]
        assert mine.tolist() == [sample.model_version] * int(sample.completion_mask.sum())
    assert flat.rows.row_id_B.tolist() == [s.metrics.trail.row_id for s in samples]
    # Log-probs of the same tokens ride in TRL's own columns: the two must be in one order.
    old = np.concatenate([s.old_log_probs[s.completion_mask == 1] for s in samples])
    np.testing.assert_array_equal(flat.old_log_probs_M.numpy(), old)


def test_ranks_get_their_own_rows_with_padding_between_them_left_out(model):
    samples = make_samples(model, 2)
    batch, _ = packed(samples, rows=2)
    for rank, mine in enumerate((samples[:GROUP], samples[GROUP:])):
        flat = FlatBatch.of({k: v[rank : rank + 1] if v.dim() else v for k, v in batch.items()})
        assert len(flat.entropies_M) == sum(int(s.completion_mask.sum()) for s in mine)
        assert not flat.entropies_M.isnan().any()


def test_a_sample_of_another_worker_has_no_version_and_counts(model):
    batch, _ = packed(make_samples(model, 1, trails=False))
    flat = FlatBatch.of(batch)
    assert (flat.versions_M == UNKNOWN).all()
    assert flat.entropies_M.isnan().all()
    assert flat.rows.informative_B.all()
    assert len(flat.rows.row_id_B.unique()) == GROUP


def test_layout_is_a_round_trip_and_refuses_scattered_samples():
    segment_M = torch.tensor([0, 0, 0, 2, 2, 3])  # sample 1 has no trained token
    layout = Layout.of(segment_M)
    x_M = torch.arange(6.0, requires_grad=True)
    x_BT = layout.spread(x_M)
    assert x_BT.tolist() == [[0, 1, 2], [0, 0, 0], [3, 4, 0], [5, 0, 0]]
    assert torch.equal(layout.flat(x_BT), x_M)
    layout.flat(x_BT).square().sum().backward()
    assert x_M.grad.tolist() == [0, 2, 4, 6, 8, 10]
    with pytest.raises(ValueError, match="not together"):
        Layout.of(torch.tensor([0, 1, 0]))


def test_padded_rows_select_as_the_rows_themselves(model):
    """Ranks hold different numbers of rows here, which gathers cannot take: masked rows must change nothing."""
    flat = FlatBatch.of(packed(make_samples(model, 4, noise=0.3))[0])
    old_BT = flat.layout.spread(flat.old_log_probs_M)
    controller = large()

    def rule(rows, old):
        return controller.select(Window(rows=rows, log_probs_BT=old, old_log_probs_BT=old, step=0, ranks=OneRank()))

    plain = rule(flat.rows, old_BT)
    rows, others = padded_rows(flat.rows, {"old": old_BT}, shape=(flat.layout.rows + 3, flat.layout.columns + 5))
    wide = rule(rows, others["old"])
    assert wide.top.threshold == plain.top.threshold
    assert wide.stats.n == plain.stats.n
    assert len(rows.row_id_B.unique()) == len(rows.row_id_B)


def test_staleness_metrics_by_hand():
    sums = [[0.0] * len(SUMS) for _ in range(3)]
    sums[1] = [4.0, 2.0, -0.4, 0.8, 2.0, 1.5, 1.0, 0.5]
    sums[2] = [1.0, 0.3, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]
    found = staleness_metrics(sums)
    assert found["staleness/1/entropy"] == (2.0, 4.0)
    assert found["staleness/1/entropy_change"] == (-0.5, 2.0)  # trainer's 1.0 less the sampler's 1.5, of 2 tokens
    assert found["staleness/unknown/tokens_total"] == 1.0
    assert "staleness/unknown/sampler_entropy" not in found
    assert not any(name.startswith("staleness/0") for name in found)


# ---- refusals


def plain(completions, **_):
    return [0.0] * len(completions)


def hungry(completions, token_entropies, **_):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("options", "controllers", "reward", "message"),
    [
        ({}, [KLCov(penalty="k2", scope="exact")], plain, "take scope 'step'"),
        ({}, [KLCov()], plain, "penalty 'abs' pushes"),
        ({}, [Guard(controller=KLCov(), knob="coef")], plain, "penalty 'abs' pushes"),
        ({}, [StdFloor()], plain, "scale_rewards=group"),
        ({"top_p": 0.9}, [CWGRPO()], plain, "truncated distribution"),
        ({"min_p": 0.1}, [], hungry, "truncated distribution"),
        ({"sampler_entropies": False}, [], hungry, "sampler_entropies=True"),
        ({"epsilon": 0.3}, [KLCov(penalty="k2")], plain, "sets the ratio range itself"),
        ({}, [CWGRPO(), ClipCov()], plain, "cannot be combined"),
    ],
)  # fmt: skip
def test_what_would_train_something_else_is_refused(tmp_path, options, controllers, reward, message):
    problems = check_async(async_options(tmp_path, **options), controllers, [reward])
    assert any(message in p for p in problems), problems


def test_what_is_sound_is_not_refused(tmp_path):
    args = async_options(tmp_path)
    for controllers in ([large()], [KLCov(dead_zone=0.01)], [ClipCov()], [CWGRPO(scope="micro_batch")], []):
        assert check_async(args, controllers, [hungry]) == []


def test_options_refuse_what_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="gap_alarm must be > 0"):
        async_options(tmp_path, gap_alarm=0)
    with pytest.raises(ValueError, match="sample_completions"):
        async_options(tmp_path, sample_completions=-1)
