"""Engine against trainer: the gap, and whose tokens the correction gives up, against sums written out by hand."""

import math

import pytest
import torch

from entrl.trainers.grpo.sampler_gap import alarms, gap_metrics, kept_tokens

B, T = 30, 12


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (B,), generator=draw)
    return {
        "mask": torch.arange(T)[None, :] < lengths[:, None],
        "train": -torch.rand(B, T, generator=draw) * 3,
        "sampler": -torch.rand(B, T, generator=draw) * 3,
        "kept": torch.rand(B, T, generator=draw) < 0.7,
        "entropies": torch.rand(B, T, generator=draw) * 2,
        "sampled": torch.rand(B, T, generator=draw) * 2,
    }


def metrics_of(b: dict[str, torch.Tensor], gather=lambda x: x, **changes) -> dict[str, float]:
    given = {
        "train_log_probs_BT": b["train"],
        "sampler_log_probs_BT": b["sampler"],
        "kept_BT": b["kept"] & b["mask"],
        "entropies_BT": b["entropies"],
        "sampler_entropies_BT": b["sampled"],
        "mask_BT": b["mask"],
        "gather": gather,
    }
    return gap_metrics(**{**given, **changes})


def test_gap_kept_share_and_entropy_gap_equal_sums_over_single_tokens():
    b = batch()
    gaps, entropy_gaps, kept = [], [], []
    for i in range(B):
        for t in range(T):
            if b["mask"][i, t]:
                gaps.append(abs(float(b["train"][i, t]) - float(b["sampler"][i, t])))
                entropy_gaps.append(abs(float(b["entropies"][i, t]) - float(b["sampled"][i, t])))
                kept.append(bool(b["kept"][i, t]))
    found = metrics_of(b)
    assert found["sampler/gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)
    assert found["sampler/gap_max"] == pytest.approx(max(gaps), rel=1e-6)
    assert found["sampler/entropy_gap"] == pytest.approx(sum(entropy_gaps) / len(entropy_gaps), rel=1e-5)
    assert found["sampler/kept"] == pytest.approx(sum(kept) / len(kept), rel=1e-6)


def test_deciles_of_length_are_tenths_of_the_completions_from_short_to_long():
    b = batch()
    b["kept"] = torch.ones(B, T, dtype=torch.bool)
    order = b["mask"].sum(1).argsort(stable=True)
    b["kept"][order[-3:]] = False  # the longest tenth loses everything
    found = metrics_of(b)
    assert [found[f"sampler/kept_by_length/{i}"] for i in range(1, 11)] == [1.0] * 9 + [0.0]
    assert found["sampler/kept"] < 1


def test_deciles_of_entropy_run_from_certain_to_uncertain_tokens():
    b = batch(1)
    tokens = b["entropies"][b["mask"]]
    b["kept"] = b["entropies"] < tokens.quantile(0.5)
    found = metrics_of(b)
    shares = [found[f"sampler/kept_by_entropy/{i}"] for i in range(1, 11)]
    assert shares[:4] == [1.0] * 4
    assert shares[6:] == [0.0] * 4


def test_padding_holding_nan_and_unscored_tokens_are_left_out():
    b = batch(2)
    expected = metrics_of(b)
    for name in ("train", "sampler", "entropies", "sampled"):
        b[name] = torch.where(b["mask"], b[name], torch.nan)
    assert metrics_of(b) == pytest.approx(expected)
    first = b["mask"].nonzero()[0]
    b["sampler"][first[0], first[1]] = math.nan
    without = metrics_of(b)
    assert all(math.isfinite(v) for v in without.values())
    assert without["sampler/gap"] != expected["sampler/gap"]


def test_two_ranks_give_the_numbers_of_one():
    b, other = batch(3), batch(4)
    both = {k: torch.cat([b[k], other[k]]) for k in b}
    expected = metrics_of(both)

    # Each rank's gather is answered from the same call of the other rank: record, then replay.
    calls: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for rank, mine in enumerate((b, other)):
        metrics_of(mine, gather=lambda x, rank=rank: calls[rank].append(x) or x)
    count = iter(range(10_000))

    def gather(x: torch.Tensor) -> torch.Tensor:
        i = next(count)
        # A rank's own edges of the deciles differ before and after the gather, so only counts that do not depend on
        # them can be replayed; the entropy deciles are compared in the two-process test.
        return torch.cat([x, calls[1][i]])

    found = metrics_of(b, gather=gather)
    for name in expected:
        if "by_entropy" not in name:
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_tokens_at_a_bound_or_zeroed_are_not_kept():
    mask = torch.ones(2, 3, dtype=torch.bool)
    ratio = torch.tensor([[0.0, 1.0, 3.0], [0.5, 2.9, 0.1]])
    assert kept_tokens(ratio, mask, low=0.1, high=3.0).tolist() == [[False, True, False], [True, True, False]]
    assert kept_tokens(torch.tensor([[1.0], [0.0]]), mask, low=None, high=3.0).tolist() == [[True] * 3, [False] * 3]


def test_alarms_name_the_number_and_the_next_move():
    assert alarms({"sampler/gap": 0.001}, gap_limit=0.02) == []
    (text,) = alarms({"sampler/gap": 0.5}, gap_limit=0.02)
    assert "0.5 nats" in text
    assert "vllm_gap_alarm=0.02" in text
    (text,) = alarms({"sampler/kept_by_length/1": 0.9, "sampler/kept_by_length/10": 0.1}, gap_limit=1.0)
    assert "90%" in text
    assert "token_truncate" in text
