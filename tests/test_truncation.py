"""Top-H under both rules, top-k, top-p, min-p, entropy and kept mass: slow twins, properties, hand cases, edges."""

import json
import math
from pathlib import Path

import pytest
import torch
from rounding import entropy_gap, gap
from transformers.generation import logits_process as hf

from entrl.maths.truncation import (
    FIRST_LOOK,
    entropy_and_kept_mass,
    min_p_keep,
    top_h_keep,
    top_k_keep,
    top_p_keep,
)

CASES = json.loads((Path(__file__).parent / "vectors" / "top_h.json").read_text())["cases"]


def logits(seed, rows=8, vocabulary=300, scale=2.0, dtype=torch.float32):
    return (
        torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        * scale
    )


def probabilities(row):
    top = max(row)
    weights = [math.exp(z - top) for z in row]
    return [w / sum(weights) for w in weights]


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def paper_twin(row, alpha):
    """Algorithm 1 as written: add tokens by falling probability until the renormalised entropy breaks the bound."""
    p = probabilities(row)
    order = sorted(range(len(p)), key=lambda i: (-row[i], i))
    kept = [order[0]]
    for i in order[1:]:
        mass = sum(p[j] for j in [*kept, i])
        if entropy([p[j] / mass for j in [*kept, i]]) > alpha * entropy(p):
            break
        kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.9])
def test_paper_rule_equals_its_slow_twin(seed, alpha):
    z_BV = logits(seed, rows=4, vocabulary=60, scale=1.0 + seed, dtype=torch.float64)
    keep_BV = top_h_keep(z_BV, alpha)
    for row, keep in zip(z_BV.tolist(), keep_BV, strict=True):
        assert keep.nonzero().flatten().tolist() == paper_twin(row, alpha)


def test_the_prefix_found_in_a_first_look_is_the_one_of_a_full_sort():
    """Rows whose prefix ends early, beyond the first look, and in a tie that straddles its edge."""
    vocabulary = 8 * FIRST_LOOK
    early = logits(0, rows=1, vocabulary=vocabulary, scale=4.0)
    flat = logits(1, rows=1, vocabulary=vocabulary, scale=0.01)  # keeps vocabulary ** 0.9 = 1783 tokens
    tied = torch.zeros(1, vocabulary)
    tied[0, ::2] = 12.0  # 2048 equal tokens; 0.6 of the entropy is 97 of them
    z_BV = torch.cat([early, flat, tied])
    for alpha in (0.6, 0.9):
        keep_BV = top_h_keep(z_BV, alpha)
        assert torch.equal(keep_BV, top_h_keep(z_BV.double(), alpha))
        assert int(keep_BV[1].sum()) > FIRST_LOOK or alpha < 0.9
        count = int(keep_BV[2].sum())
        assert keep_BV[2].nonzero().flatten().tolist() == list(range(0, 2 * count, 2))  # ties: the lower ids
    assert torch.equal(
        top_h_keep(z_BV[:1], 0.4),
        torch.zeros(1, vocabulary, dtype=torch.bool).scatter_(
            -1, torch.tensor([paper_twin(z_BV[0].double().tolist(), 0.4)]), True
        ),
    )


@pytest.mark.parametrize("rule", ["paper", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_holds_for_any_logits(rule, dtype):
    z_BV = logits(3, rows=16, dtype=dtype) * torch.linspace(0.1, 4, 16, dtype=dtype)[:, None]
    before = torch.zeros(16, z_BV.shape[1], dtype=torch.bool)
    for alpha in (0.1, 0.3, 0.5, 0.7, 1.0):
        keep_BV = top_h_keep(z_BV, alpha, rule=rule)
        assert bool(keep_BV.gather(-1, z_BV.argmax(-1, keepdim=True)).all())
        assert not bool((before & ~keep_BV).any()), "a larger alpha keeps whatever a smaller one keeps"
        smallest_kept = torch.where(keep_BV, z_BV, torch.inf).amin(-1)
        assert bool((torch.where(keep_BV, -torch.inf, z_BV).amax(-1) <= smallest_kept).all()), "a prefix"
        assert torch.equal(keep_BV, torch.cat([top_h_keep(row[None], alpha, rule=rule) for row in z_BV]))
        before = keep_BV
    if rule == "paper":
        assert bool(before.all()), "all of the entropy is all of the tokens"


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.8])
def test_only_the_papers_rule_keeps_its_bound(alpha):
    z_BV = logits(4, rows=32, vocabulary=90, dtype=torch.float64) * torch.linspace(0.1, 3, 32)[:, None]
    entropy_B, _ = entropy_and_kept_mass(z_BV)
    broken = {}
    for rule in ("paper", "reference"):
        cut_BV = z_BV.masked_fill(~top_h_keep(z_BV, alpha, rule=rule), -torch.inf)
        broken[rule] = int((entropy_and_kept_mass(cut_BV)[0] > alpha * entropy_B * (1 + 1e-9)).sum())
    assert broken["paper"] == 0
    assert broken["reference"] > 0


def test_shifting_logits_changes_nothing():
    z_BV = logits(5, dtype=torch.float64)
    for rule in ("paper", "reference"):
        assert torch.equal(top_h_keep(z_BV, 0.4, rule=rule), top_h_keep(z_BV + 37.0, 0.4, rule=rule))


def test_uniform_distributions_by_hand():
    """n equal tokens: k of them have entropy log k, so the paper keeps floor(n^alpha); -p log p is equal for all, so
    the reference keeps floor(alpha n). 64 tokens at 0.5: 8 and 32; at 0.4: 64^0.4 = 5.28 and 25.6."""
    z_1V = torch.zeros(1, 64)
    for alpha, paper, reference in ((0.5, 8, 32), (0.4, 5, 25)):
        assert int(top_h_keep(z_1V, alpha).sum()) == paper
        assert int(top_h_keep(z_1V, alpha, rule="reference").sum()) == reference


def test_two_equal_tokens_at_the_top_keep_the_first():
    z_1V = torch.tensor([[0.0, 5.0, 5.0, 0.0]])
    assert top_h_keep(z_1V, 0.4).tolist() == [[False, True, False, False]]


def test_impossible_tokens_stay_impossible():
    z_BV = logits(6, rows=3, vocabulary=50)
    z_BV[:, ::2] = -torch.inf
    for rule in ("paper", "reference"):
        for alpha in (0.4, 1.0):
            keep_BV = top_h_keep(z_BV, alpha, rule=rule)
            assert not bool(keep_BV[:, ::2].any())
            assert torch.equal(keep_BV[:, 1::2], top_h_keep(z_BV[:, 1::2], alpha, rule=rule))
    entropy_B, mass_B = entropy_and_kept_mass(z_BV)
    assert torch.allclose(entropy_B, entropy_and_kept_mass(z_BV[:, 1::2])[0], rtol=0, atol=gap(math.log(25), 50))
    assert mass_B.tolist() == [1.0, 1.0, 1.0]


def test_top_n_bounds_what_can_be_kept():
    z_1V = torch.zeros(1, 64)
    assert int(top_h_keep(z_1V, 1.0, top_n=10).sum()) == 10
    peaked = logits(7, rows=4, vocabulary=400, scale=5.0)
    assert torch.equal(top_h_keep(peaked, 0.4, top_n=100), top_h_keep(peaked, 0.4)), "no prefix here is longer"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_the_reference_rule_is_what_transformers_runs(case):
    """The installed warper on the vectors' logits; a tie at the edge may keep other ids of equal logits."""
    z_1V = torch.tensor([case["logits"]]) / case["temperature"]
    warper = hf.TopHLogitsWarper(top_h=case["alpha"])
    got = warper(torch.zeros(1, 1, dtype=torch.long), z_1V) > -torch.inf
    ours = top_h_keep(z_1V, case["alpha"], rule="reference")
    difference = abs(int(got.sum()) - int(ours.sum()))
    assert difference == (1 if case["name"].startswith("uniform") else 0)  # the sum of 32 equal terms, rounded
    if not difference:
        assert z_1V[got].sort().values.tolist() == z_1V[ours].sort().values.tolist()


@pytest.mark.parametrize(
    ("warper", "ours"),
    [
        (hf.TopKLogitsWarper(top_k=7), lambda z: top_k_keep(z, 7)),
        (hf.TopPLogitsWarper(top_p=0.8), lambda z: top_p_keep(z, 0.8)),
        (hf.MinPLogitsWarper(min_p=0.1), lambda z: min_p_keep(z, 0.1)),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_the_other_cuts_are_those_of_transformers(warper, ours):
    z_BV = logits(8, rows=12)
    z_BV[0, :20] = z_BV[0].max()  # ties at the top
    assert torch.equal(warper(torch.zeros(1, 1, dtype=torch.long), z_BV.clone()) > -torch.inf, ours(z_BV))


def test_cuts_that_cut_nothing():
    z_BV = logits(9, rows=3, vocabulary=20)
    for keep_BV in (top_k_keep(z_BV, 20), top_k_keep(z_BV, 99), top_p_keep(z_BV, 1.0), min_p_keep(z_BV, 0.0)):
        assert bool(keep_BV.all())


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_entropy_and_mass_equal_a_double_precision_twin(scale):
    z_BV = logits(10, rows=5, vocabulary=1000, scale=scale)
    keep_BV = top_p_keep(z_BV, 0.7)
    entropy_B, mass_B = entropy_and_kept_mass(z_BV, keep_BV)
    assert entropy_B.dtype == mass_B.dtype == torch.float32
    for row, keep, h, g in zip(z_BV.double().tolist(), keep_BV.tolist(), entropy_B, mass_B, strict=True):
        p = probabilities(row)
        assert float(h) == pytest.approx(entropy(p), abs=entropy_gap(entropy(p), 1000, float(z_BV.abs().max())))
        assert float(g) == pytest.approx(sum(x for x, k in zip(p, keep, strict=True) if k), abs=gap(1.0, 1000))


def test_one_certain_token_has_no_entropy():
    z_BV = torch.full((2, 1000), -torch.inf)
    z_BV[:, 3] = 4.0
    assert entropy_and_kept_mass(z_BV)[0].tolist() == [0.0, 0.0]
    z_BV[:] = 0.0
    z_BV[:, 3] = 400.0
    assert entropy_and_kept_mass(z_BV, z_BV > 0)[0].tolist() == [0.0, 0.0]


def test_half_precision_logits_are_worked_on_in_float32():
    z_BV = logits(11).bfloat16()
    assert torch.equal(entropy_and_kept_mass(z_BV)[0], entropy_and_kept_mass(z_BV.float())[0])


def test_nothing_the_size_of_the_logits_is_allocated():
    """256 rows of 16,384: 16 MiB of logits, worked on 64 rows at a time."""
    z_BV = torch.zeros(256, 16_384)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        entropy_and_kept_mass(z_BV)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest <= z_BV.nbytes // 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: top_h_keep(z, 0.0), r"alpha must be in \(0, 1\], got 0.0"),
        (lambda z: top_h_keep(z, 1.5), r"alpha must be in \(0, 1\], got 1.5"),
        (lambda z: top_h_keep(z, 0.4, rule="published"), "rule must be one of paper, reference, got 'published'"),
        (lambda z: top_h_keep(z, 0.4, top_n=0), "top_n must be >= 1, got 0"),
        (lambda z: top_k_keep(z, 0), "k must be >= 1, got 0"),
        (lambda z: top_p_keep(z, 0.0), r"p must be in \(0, 1\], got 0.0"),
        (lambda z: min_p_keep(z, 1.1), r"p must be in \[0, 1\], got 1.1"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 4))
