"""The CPU stand-in for FA3 in TRL's tree attention, against plain Hugging Face attention."""

import pytest
import torch
from rounding import assert_same_gradients, log_prob_gap
from tiny_model import saved_model
from transformers import AutoModelForCausalLM
from trl.experimental.async_grpo import packing

from entrl.engines import cpu_tree_attention
from entrl.engines.cpu_tree_attention import SegmentAttention


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(plain, tree): the same weights under Hugging Face's attention and under tree attention."""
    folder = saved_model(tmp_path_factory.mktemp("model"))
    cpu_tree_attention.install()
    packing.register_tree_attention()
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    tree = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="tree_fa3", dtype=torch.float32)
    return plain, tree


def samples(*rows):
    return [
        {
            "input_ids": torch.tensor(ids).numpy(),
            "completion_mask": torch.tensor([0] * prompt + [1] * (len(ids) - prompt)).numpy(),
            "old_log_probs": torch.zeros(len(ids)).numpy(),
            "advantage": 0.0,
            "group_id": group,
        }
        for group, prompt, ids in rows
    ]


# Two completions of one prompt that part late, one that parts at once, another prompt, and a completion that repeats
# a whole other one but for its end.
ROWS = samples(
    (0, 4, [7, 8, 9, 10, 11, 12, 13, 14]),
    (0, 4, [7, 8, 9, 10, 11, 12, 20]),
    (0, 4, [7, 8, 9, 10, 30, 31, 32, 33, 34]),
    (1, 2, [7, 40, 41, 42, 43]),
    (0, 4, [7, 8, 9, 10, 11, 12, 13, 50]),
)

TOKENS = max(len(row["input_ids"]) for row in ROWS)


def tree_log_probs(model, rows):
    """Per sample the log-probs of its trained tokens, as `AsyncGRPOTrainer.compute_loss` picks them."""
    row = packing.TreeRow()
    for sample in rows:
        row.add(sample)
    packed = row.pack()
    longest_q, longest_k = packed["tree_max_seqlens"].tolist()
    logits = model(
        input_ids=packed["input_ids"][None],
        position_ids=packed["position_ids"][None],
        tree_kv_index=packed["tree_kv_index"],
        tree_cu_seqlens_q=packed["tree_cu_seqlens_q"],
        tree_cu_seqlens_k=packed["tree_cu_seqlens_k"],
        tree_max_seqlen_q=longest_q,
        tree_max_seqlen_k=longest_k,
    ).logits[0]
    index = packed["token_index"]
    picked = torch.log_softmax(logits, -1)[index, packed["shift_labels"][index]]
    assert len(packed["input_ids"]) < sum(len(s["input_ids"]) for s in rows)  # something is shared
    return [picked[packed["segment_id"] == i] for i in range(len(rows))]


def plain_log_probs(model, rows):
    out = []
    for sample in rows:
        ids = torch.tensor(sample["input_ids"])
        log_probs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
        prompt = int((sample["completion_mask"] == 0).sum())
        out.append(log_probs[torch.arange(prompt - 1, len(ids) - 1), ids[prompt:]])
    return out


def test_tree_log_probs_are_those_of_plain_attention(models):
    plain, tree = models
    with torch.no_grad():
        expected, found = plain_log_probs(plain, ROWS), tree_log_probs(tree, ROWS)
    allowed = log_prob_gap(plain, TOKENS)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=allowed, rtol=0)


def test_tree_gradients_are_those_of_plain_attention(models):
    weight = [torch.randn(len(p), generator=torch.Generator().manual_seed(i)) for i, p in enumerate(ROWS)]

    def gradients(model, log_probs):
        model.zero_grad()
        found = log_probs(model, ROWS)
        sum((x * w[: len(x)]).sum() for x, w in zip(found, weight, strict=True)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain, tree = models
    expected, found = gradients(plain, plain_log_probs), gradients(tree, tree_log_probs)
    ours, theirs = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
    assert_same_gradients(ours, theirs, plain, tokens=TOKENS, rows=len(ROWS))


@pytest.mark.parametrize("window", [-1, 0, 2])
def test_segments_against_loops(window):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 4, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(9, 2, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    starts_q, starts_k = [0, 2, 5], [0, 4, 9]
    found = SegmentAttention.flash_attn_varlen_func(
        query, key, value, torch.tensor(starts_q), torch.tensor(starts_k), 3, 5,
        softmax_scale=0.3, causal=True, window_size=(window, 0) if window >= 0 else (-1, -1),
    )  # fmt: skip
    for s in range(2):
        keys = starts_k[s + 1] - starts_k[s]
        for i in range(starts_q[s], starts_q[s + 1]):
            place = keys - (starts_q[s + 1] - i)  # of the query among its keys: the last one sees them all
            seen = [j for j in range(keys) if j <= place and (window < 0 or j >= place - window)]
            for head in range(4):
                k, v = (x[[starts_k[s] + j for j in seen], head // 2] for x in (key, value))
                share = torch.softmax(0.3 * k @ query[i, head], 0)
                torch.testing.assert_close(found[i, head], share @ v)


def test_what_the_stand_in_cannot_do_is_refused():
    x, starts = torch.zeros(1, 1, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="softcap=30"):
        SegmentAttention.flash_attn_varlen_func(x, x, x, starts, starts, 1, 1, softcap=30.0)
    with pytest.raises(ValueError, match="only causal"):
        SegmentAttention.flash_attn_varlen_func(x, x, x, starts, starts, 1, 1, causal=False)
