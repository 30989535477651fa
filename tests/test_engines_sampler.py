"""The sampler plugin in a real engine on the CPU: its entropies and kept mass against a plain forward pass."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import entrl
from entrl.engines.recording import TopHOptions, request_options
from entrl.engines.records import STORE, RecordError, Trace, match_all, take, unpack
from entrl.maths.truncation import top_h_keep

pytestmark = pytest.mark.vllm

MODEL = str(Path(entrl.__file__).parent / "models" / "shipped" / "tiny-reasoner")
# Largest gaps seen on the CPU, float32 against float64 logits of transformers' float32 forward: entropy 1.2e-5 nats,
# log-prob 2.8e-5. The engine's own attention kernel, not the entropy, makes them.
ENTROPY_GAP, LOGPROB_GAP = 1e-4, 2e-4

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def start(**settings):
    """An engine small enough that its batch is reordered, its prompts are cut and its memory runs out."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": "entrl.engines.records.WorkerExtension",
        "seed": 1,
    }
    return LLM(MODEL, **(defaults | settings))


@pytest.fixture(scope="module")
def llm():
    engine = start(enable_prefix_caching=False)
    yield engine
    del engine
    gc.collect()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def _empty_store():
    yield
    assert (len(STORE), STORE.tokens) == (0, 0), "a test left records behind"


def sampling(key=None, top_h=None, **settings):
    from vllm import SamplingParams

    asked = None if key is None and top_h is None else request_options(key or "", record=key is not None, top_h=top_h)
    return SamplingParams(**({"temperature": 0.7, "max_tokens": 24, "logprobs": 0, "extra_args": asked} | settings))


def prompts(count, length=1):
    return ["".join(f"{a + i}+{a + 3}=" for i in range(length)) for a in range(11, 11 + count)]


@torch.no_grad()
def reference_logits(model, output, completion, temperature):
    """(T, V) float64 logits after temperature at the positions the completion's tokens were drawn from."""
    ids = [*output.prompt_token_ids, *completion.token_ids]
    logits = model(torch.tensor([ids])).logits[0, len(output.prompt_token_ids) - 1 : -1]
    return logits.double() / temperature


def gaps(model, outputs, records, temperature=0.7):
    """Largest gaps: entropy, and sampled log-prob - policy log-prob + log G. Counts the tokens it looked at."""
    completions = [(o, c) for o in outputs for c in o.outputs]
    found = match_all(
        records, [list(c.token_ids) for _, c in completions], [list(o.prompt_token_ids) for o, _ in completions]
    )
    entropy_gap = logprob_gap = 0.0
    for (output, completion), record in zip(completions, found, strict=True):
        z_TV = reference_logits(model, output, completion, temperature)
        log_p_TV = z_TV.log_softmax(-1)
        entropy_T = -(log_p_TV.exp() * log_p_TV).sum(-1)
        entropy_gap = max(entropy_gap, float((entropy_T - torch.tensor(record.entropies)).abs().max()))
        ids = list(completion.token_ids)
        policy_T = log_p_TV.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)
        sampled_T = torch.tensor([step[i].logprob for step, i in zip(completion.logprobs, ids, strict=True)])
        mass_T = torch.tensor(record.kept_mass)
        logprob_gap = max(logprob_gap, float((sampled_T - policy_T + mass_T.log()).abs().max()))
    tokens = sum(len(c.token_ids) for _, c in completions)
    assert tokens > 3 * len(completions)
    return entropy_gap, logprob_gap, [record for record in found]


def test_entropies_equal_a_plain_forward_pass(llm, model):
    outputs = llm.generate(prompts(4), sampling("a", n=3), use_tqdm=False)
    entropy_gap, logprob_gap, found = gaps(model, outputs, take("a"))
    assert entropy_gap < ENTROPY_GAP
    assert logprob_gap < LOGPROB_GAP
    assert {g for r in found for g in r.kept_mass} == {1.0}
    entropies = [h for r in found for h in r.entropies]
    assert max(entropies) > 0.5, "an engine that is always sure would prove nothing"


@pytest.mark.parametrize(
    ("settings", "top_h"),
    [
        ({"top_k": 3}, None),
        ({"top_p": 0.8}, None),
        ({"top_k": 4, "top_p": 0.8}, None),
        ({}, TopHOptions(alpha=0.4)),
        ({}, TopHOptions(alpha=0.6, rule="reference")),
        ({"top_k": 3, "top_p": 0.9}, TopHOptions(alpha=0.8)),
    ],
    ids=["top_k", "top_p", "both", "top_h", "top_h reference", "all"],
)
def test_sampled_minus_policy_log_prob_is_minus_log_kept_mass(llm, model, settings, top_h):
    """At temperature 1.5, so that every cut really removes something."""
    outputs = llm.generate(prompts(4), sampling("b", top_h, n=2, temperature=1.5, **settings), use_tqdm=False)
    entropy_gap, logprob_gap, found = gaps(model, outputs, take("b"), temperature=1.5)
    assert entropy_gap < ENTROPY_GAP
    assert logprob_gap < LOGPROB_GAP
    assert min(g for r in found for g in r.kept_mass) < 0.95


@pytest.mark.parametrize("rule", ["paper", "reference"])
def test_only_tokens_top_h_keeps_are_drawn(llm, model, rule):
    """Without a record too: a cut needs no key."""
    outputs = llm.generate(
        prompts(6), sampling(top_h=TopHOptions(alpha=0.3, rule=rule), n=2, temperature=2.0), use_tqdm=False
    )
    drawn = outside = 0
    for output in outputs:
        for completion in output.outputs:
            keep_TV = top_h_keep(reference_logits(model, output, completion, 2.0), 0.3, rule=rule)
            kept_T = keep_TV.gather(-1, torch.tensor(list(completion.token_ids))[:, None])
            drawn, outside = drawn + len(kept_T), outside + int((~kept_T).sum())
    assert drawn > 50
    assert outside == 0


def test_recording_does_not_change_what_is_drawn(llm):
    plain, recorded = (
        [
            [(tuple(c.token_ids), c.cumulative_logprob) for c in o.outputs]
            for o in llm.generate(prompts(5), sampling(key, n=2, seed=3), use_tqdm=False)
        ]
        for key in (None, "c")
    )
    assert plain == recorded
    take("c")


def test_long_prompts_in_parts_beside_requests_that_ask_for_nothing(llm, model):
    """Prompts of several times the 32-token budget, four rows, twelve requests of four kinds ending at any time."""
    short, long = prompts(7), prompts(6, length=25)
    kinds = [
        (p, settings)
        for i, p in enumerate(p for pair in zip(long, short, strict=False) for p in pair)
        for settings in [
            [
                sampling("d", max_tokens=5 + i),
                sampling(max_tokens=3 + i),
                sampling("e", temperature=1.3, max_tokens=20 - i),
                sampling(temperature=0.0, max_tokens=9),
            ][i % 4]
        ]
    ]
    assert min(len(llm.get_tokenizer()(p).input_ids) for p in long) > 3 * 32
    outputs = llm.generate([p for p, _ in kinds], [s for _, s in kinds], use_tqdm=False)
    for key, offset, temperature in (("d", 0, 0.7), ("e", 2, 1.3)):
        records = take(key)
        entropy_gap, logprob_gap, found = gaps(model, outputs[offset::4], records, temperature)
        assert len(records) == len(found) == 3
        assert entropy_gap < ENTROPY_GAP
        assert logprob_gap < LOGPROB_GAP


def test_a_finished_request_can_be_read_before_the_batch_changes_and_an_aborted_one_too(llm, model):
    engine = llm.llm_engine
    engine.add_request("finishes", prompts(1)[0], sampling("f", max_tokens=4, ignore_eos=True))
    engine.add_request("aborted", prompts(2)[1], sampling("g", max_tokens=50, ignore_eos=True))
    while not (finished := [o for o in engine.step() if o.finished]):
        pass
    assert gaps(model, finished, take("f"))[0] < ENTROPY_GAP
    engine.step()
    engine.abort_request(["aborted"])
    while engine.has_unfinished_requests():
        engine.step()
    (record,) = take("g")
    assert 4 <= len(record.entropies) <= 6
    assert len(record.token_ids) == len(record.entropies) - 1


def test_the_store_is_bounded_under_requests_nobody_takes(llm, monkeypatch):
    monkeypatch.setattr(STORE, "max_tokens", 60)
    before = STORE.dropped
    for i in range(5):
        llm.generate(prompts(1), sampling(f"h{i}", max_tokens=16, ignore_eos=True), use_tqdm=False)
    assert STORE.tokens <= 60
    assert STORE.dropped > before
    with pytest.raises(RecordError, match="'h0' were dropped"):
        take("h0")
    assert len(take("h4")) == 1
    for i in range(1, 4):
        try:
            take(f"h{i}")
        except RecordError:
            continue


def test_workers_answer_as_a_server_would_ask_them(llm, model):
    outputs = llm.generate(prompts(2), sampling("i", n=2), use_tqdm=False)
    replies = llm.collective_rpc("entrl_take", args=(["i", "unknown"],))
    answers = json.loads(json.dumps(replies))
    assert [a["key"] for a in answers[0]] == ["i", "unknown"]
    assert "nothing was recorded under 'unknown'" in answers[0][1]["error"]
    assert gaps(model, outputs, unpack([answers[0][:1]])["i"])[0] < ENTROPY_GAP


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "greedy choice has no sampling distribution"),
        ({"min_p": 0.1}, "entrl record with min_p=0.1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"presence_penalty": 0.5}, "presence_penalty=0.5"),
        ({"min_tokens": 3}, "min_tokens=3"),
        ({"logit_bias": {3: 1.0}}, "logit_bias="),
        ({"allowed_token_ids": [3, 4]}, "allowed_token_ids="),
        ({"bad_words": ["1"]}, "bad_words="),
    ],
)
def test_what_would_falsify_a_record_is_refused(llm, settings, message):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        llm.generate(prompts(1), sampling("j", **settings), use_tqdm=False)


def test_wrong_wishes_are_refused_by_the_engine(llm):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    for asked, message in (
        ({"record": True}, "needs a key"),
        ({"top_h": {"alpha": 3}}, r"alpha must be a number in \(0, 1\], got 3"),
        ({"recrod": True}, "unknown keys 'recrod'"),
    ):
        with pytest.raises(VLLMValidationError, match=message):
            llm.generate(prompts(1), SamplingParams(extra_args={"entrl": asked}), use_tqdm=False)


def test_a_second_engine_runs_out_of_memory_and_resumes(llm, model, monkeypatch):
    """Two engines in one process, the second with room for a few blocks only, and the plugin named besides installed.

    Sequences are preempted and computed again, prompt and beginning, in parts; their records have neither holes nor
    repetitions.
    """
    resumed = []
    adopt = Trace.adopt
    monkeypatch.setattr(Trace, "adopt", lambda self, ids: (resumed.append(len(ids)), adopt(self, ids)))
    second = start(
        num_gpu_blocks_override=8,
        block_size=32,
        max_model_len=160,
        enable_prefix_caching=False,
        logits_processors=["entrl.engines.sampler:EntropyRecorder"],
    )
    wanted = sampling("k", max_tokens=90, ignore_eos=True, temperature=1.2)
    outputs = second.generate(prompts(6), wanted, use_tqdm=False)
    other = llm.generate(prompts(2), sampling("l"), use_tqdm=False)
    assert resumed, "nothing was preempted, so nothing was tested"
    assert min(resumed) > 0
    assert gaps(model, other, take("l"))[0] < ENTROPY_GAP
    records = take("k")
    entropy_gap, logprob_gap, found = gaps(model, outputs, records, 1.2)
    assert entropy_gap < ENTROPY_GAP
    assert logprob_gap < LOGPROB_GAP
    assert len(records) == len(found) == 6, "one record per sequence: the named plugin did not record once more"
    assert all(len(r.entropies) == 90 for r in found)
    del second
    gc.collect()
