"""entrl.maths.signals against slow twins written from the equations, hand-made cases and properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import entropy_gap

from entrl.maths.signals import (
    covariance,
    entropy_from_logits,
    entropy_from_topk,
    masked_mean,
    masked_token_mean,
    pad_rows,
)

NAN = float("nan")


def slow_entropy(logits: list[float], temperature: float = 1.0) -> float:
    """-sum p ln p in Python floats."""
    z = [x / temperature for x in logits]
    top = max(z)
    weights = [math.exp(x - top) for x in z]
    p = [w / sum(weights) for w in weights]
    return -sum(x * math.log(x) for x in p if x > 0)


def test_pad_rows():
    padded, mask = pad_rows([torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([3.0])], value=-7)
    assert padded.tolist() == [[1, 2], [-7, -7], [3, -7]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]


def test_pad_rows_all_empty_keeps_one_column():
    padded, mask = pad_rows([torch.tensor([]), torch.tensor([])])
    assert padded.shape == mask.shape == (2, 1)
    assert not mask.any()


def test_pad_rows_refuses():
    with pytest.raises(ValueError, match="no rows"):
        pad_rows([])
    with pytest.raises(ValueError, match=r"row 1 has shape \(1, 2\)"):
        pad_rows([torch.zeros(2), torch.zeros(1, 2)])


def test_masked_means_by_hand():
    x = torch.tensor([[1.0, 3.0, NAN], [NAN, NAN, NAN], [6.0, NAN, 2.0]])
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    assert masked_mean(x, mask).tolist() == [2.0, 0.0, 6.0]  # (1+3)/2, empty, 6/1
    assert masked_token_mean(x, mask).item() == pytest.approx(10 / 3)  # (1+3+6)/3
    assert masked_token_mean(x, torch.zeros_like(mask)).item() == 0.0


def test_masked_mean_gradient_ignores_nan_padding():
    x = torch.tensor([[1.0, NAN]], requires_grad=True)
    masked_mean(x, torch.tensor([[True, False]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0]]


def test_masked_mean_keeps_float64():
    assert masked_mean(torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)).dtype == torch.float64


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("chunk", [1, 4, 2048])
def test_entropy_from_logits_matches_slow_twin(temperature, chunk):
    logits = 3 * torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    found = entropy_from_logits(logits, temperature=temperature, chunk=chunk)
    assert found.shape == (2, 5)
    for row, h in zip(logits.reshape(-1, 11).tolist(), found.reshape(-1).tolist(), strict=True):
        wanted = slow_entropy(row, temperature)
        assert h == pytest.approx(wanted, abs=entropy_gap(wanted, 11, max(map(abs, row)) / temperature))


def test_entropy_by_hand():
    # two equal tokens, the third forbidden: ln 2; and a certain token: 0
    logits = torch.tensor([[5.0, 5.0, -math.inf], [0.0, -math.inf, -math.inf]])
    assert entropy_from_logits(logits).tolist() == pytest.approx([math.log(2), 0.0])


def test_entropy_dtypes():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    assert entropy_from_logits(logits.bfloat16()).dtype == torch.float32
    assert entropy_from_logits(logits.double()).dtype == torch.float64


def test_entropy_gradient_against_finite_differences():
    logits = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: entropy_from_logits(z, temperature=0.8), (logits,))
    forbidden = torch.tensor([[1.0, 0.5, -math.inf]], dtype=torch.float64, requires_grad=True)
    entropy_from_logits(forbidden).sum().backward()
    assert forbidden.grad is not None
    assert forbidden.grad.isfinite().all()


def test_entropy_refuses():
    with pytest.raises(ValueError, match="temperature must be > 0"):
        entropy_from_logits(torch.zeros(1, 2), temperature=0)
    with pytest.raises(ValueError, match="chunk must be >= 1"):
        entropy_from_logits(torch.zeros(1, 2), chunk=0)


def test_topk_by_hand():
    # p = .5 .3 | tail mass .2 over 8 tokens; H_S = .5 ln 2 + .3 ln(10/3); p_k = .3 so min(t, p_k) = t
    e = entropy_from_topk(torch.tensor([[0.5, 0.3]], dtype=torch.float64).log(), vocab_size=10)
    h_s = 0.5 * math.log(2) + 0.3 * math.log(10 / 3)
    assert e.dropped.item() == pytest.approx(h_s)
    assert e.bucket.item() == pytest.approx(h_s - 0.2 * math.log(0.2))
    assert e.lower.item() == pytest.approx(e.bucket.item())
    assert e.upper.item() == pytest.approx(e.bucket.item() + 0.2 * math.log(8))
    assert e.mid.item() == pytest.approx((e.lower.item() + e.upper.item()) / 2)
    assert e.half_width.item() == pytest.approx((e.upper.item() - e.lower.item()) / 2)


def test_topk_sharpened_lower_bound_by_hand():
    # p = .4 .1, tail .5 in tokens of at most .1: lower uses ln .1, bucket only ln .5
    e = entropy_from_topk(torch.tensor([0.4, 0.1], dtype=torch.float64).log(), vocab_size=100)
    assert e.lower.item() - e.dropped.item() == pytest.approx(-0.5 * math.log(0.1))
    assert e.bucket.item() - e.dropped.item() == pytest.approx(-0.5 * math.log(0.5))


def test_appended_sampled_token_is_not_p_k():
    # k = 2 asked for; the sampled token (.01) stands first and is outside the top-2, so p_k = .2, not .01
    listed = torch.tensor([0.01, 0.4, 0.2], dtype=torch.float64).log()
    e = entropy_from_topk(listed, vocab_size=50, k=2)
    assert e.lower.item() - e.dropped.item() == pytest.approx(-0.39 * math.log(0.2))
    wrong = entropy_from_topk(listed, vocab_size=50)
    assert wrong.lower.item() > e.lower.item()  # taking .01 for p_k would claim too much


def test_topk_truncated_sampler_has_no_nan():
    # processed log-probs after top-p: two tokens share all the mass, the others are -inf
    e = entropy_from_topk(torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log(), vocab_size=100)
    for estimate in (e.lower, e.upper, e.bucket, e.dropped, e.mid):
        assert estimate.item() == pytest.approx(math.log(2))
    assert e.half_width.item() == 0


def test_topk_padding_entries():
    full = entropy_from_topk(torch.tensor([[0.5, 0.3]]).log(), vocab_size=10)
    padded = entropy_from_topk(
        torch.tensor([[math.log(0.5), math.log(0.3), NAN]]),
        vocab_size=10,
        listed_NK=torch.tensor([[True, True, False]]),
    )
    assert torch.equal(torch.stack(full), torch.stack(padded))


def test_topk_whole_vocabulary_is_exact():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    e = entropy_from_topk(logits.log_softmax(-1), vocab_size=9)
    torch.testing.assert_close(e.lower, entropy_from_logits(logits))
    torch.testing.assert_close(e.upper, entropy_from_logits(logits))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 19), scale=st.floats(0.1, 6.0))
def test_topk_bounds_hold(seed, k, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(8, 20, generator=generator, dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    top = log_p.topk(k).values
    sampled = log_p.exp().multinomial(1, generator=generator)
    outside = log_p.gather(1, sampled) < top[:, -1:]
    listed = torch.cat([torch.ones_like(top, dtype=torch.bool), outside], 1)
    e = entropy_from_topk(torch.cat([top, log_p.gather(1, sampled)], 1), vocab_size=20, k=k, listed_NK=listed)
    exact = entropy_from_logits(logits)
    assert (e.lower <= exact + 1e-9).all()
    assert (exact <= e.upper + 1e-9).all()
    assert (e.dropped <= e.bucket + 1e-12).all()
    assert (e.bucket <= e.lower + 1e-12).all()
    assert (e.half_width >= 0).all()


def test_topk_refuses():
    with pytest.raises(ValueError, match="k must be >= 1"):
        entropy_from_topk(torch.zeros(1, 1), vocab_size=5, k=0)
    with pytest.raises(ValueError, match="2 tokens listed but vocab_size is 1"):
        entropy_from_topk(torch.tensor([[0.5, 0.5]]).log(), vocab_size=1)
    with pytest.raises(ValueError, match="lists no token"):
        entropy_from_topk(torch.zeros(1, 2), vocab_size=5, listed_NK=torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"sum to 1\.5 > 1"):
        entropy_from_topk(torch.tensor([[0.75, 0.75]]).log(), vocab_size=5)
    with pytest.raises(ValueError, match="sum to nan"):
        entropy_from_topk(torch.tensor([[NAN]]), vocab_size=5)


def test_topk_without_positions():
    assert entropy_from_topk(torch.zeros(0, 3), vocab_size=5).mid.shape == (0,)


def test_covariance_by_hand():
    log_probs = torch.tensor([[-1.0, -3.0, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    cov = covariance(log_probs, torch.tensor([[2.0, 0.0, NAN]]), mask, mean_log_prob=-2.0, mean_advantage=1.0)
    assert cov.tolist() == [[1.0, 1.0, 0.0]]  # (1)(1), (-1)(-1), padding
    assert not cov.requires_grad


def test_covariance_is_float32_for_bfloat16_input():
    mask = torch.ones(1, 2, dtype=torch.bool)
    cov = covariance(torch.ones(1, 2).bfloat16(), torch.ones(1, 2), mask, mean_log_prob=0.0, mean_advantage=0.001)
    assert cov.dtype == torch.float32
    assert cov[0, 0].item() == pytest.approx(0.999)  # bfloat16 would say 1.0
