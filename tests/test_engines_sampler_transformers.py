"""Top-H as a processor of transformers' `generate`: after temperature, both rules, and what the kept mass is for."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import entrl
from entrl.engines.top_h import TopHLogitsProcessor
from entrl.maths.truncation import entropy_and_kept_mass, top_h_keep

MODEL = str(Path(entrl.__file__).parent / "models" / "shipped" / "tiny-reasoner")
TEMPERATURE = 1.6


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompt_ids():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return tokenizer(["11+14=", "12+15=", "13+16="], return_tensors="pt").input_ids


def generate(model, prompt_ids, **settings):
    torch.manual_seed(0)
    return model.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        max_new_tokens=30,
        min_new_tokens=30,  # rows of one length
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )


@torch.no_grad()
def policy_logits(model, sequences, prompt_length):
    """(B, T, V) after temperature, without the end token generate forbids here."""
    z_BTV = model(sequences).logits[:, prompt_length - 1 : -1] / TEMPERATURE
    z_BTV[:, :, model.generation_config.eos_token_id] = -torch.inf
    return z_BTV


@pytest.mark.parametrize("rule", ["paper", "reference"])
def test_sampler_minus_policy_log_prob_is_minus_log_kept_mass(model, prompt_ids, rule):
    processor = TopHLogitsProcessor(0.4, temperature=TEMPERATURE, rule=rule, record=True)
    out = generate(model, prompt_ids, logits_processor=[processor])
    z_BTV = policy_logits(model, out.sequences, prompt_ids.shape[1])
    ids_BT1 = out.sequences[:, prompt_ids.shape[1] :, None]
    policy_BT = z_BTV.log_softmax(-1).gather(-1, ids_BT1).squeeze(-1)
    sampler_BT = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, ids_BT1).squeeze(-1)
    kept_BT = torch.stack(processor.kept_mass, 1)
    assert torch.allclose(sampler_BT - policy_BT, -kept_BT.log(), atol=1e-4)
    assert float(kept_BT.min()) < 0.9, "nothing was cut"
    entropy_BT, _ = entropy_and_kept_mass(z_BTV.flatten(0, 1))
    assert torch.allclose(torch.stack(processor.entropies, 1).flatten(), entropy_BT, atol=1e-4)
    keep_BTV = top_h_keep(z_BTV.flatten(0, 1), 0.4, rule=rule)
    assert bool(keep_BTV.gather(-1, ids_BT1.reshape(-1, 1)).all())


def test_the_reference_rule_draws_what_transformers_own_option_draws(model, prompt_ids):
    own = generate(model, prompt_ids, top_h=0.4).sequences
    ours = generate(
        model, prompt_ids, logits_processor=[TopHLogitsProcessor(0.4, temperature=TEMPERATURE, rule="reference")]
    ).sequences
    papers = generate(model, prompt_ids, logits_processor=[TopHLogitsProcessor(0.4, temperature=TEMPERATURE)]).sequences
    assert torch.equal(own, ours)
    assert not torch.equal(ours, papers)


def test_a_processor_that_is_not_told_the_temperature_cuts_another_set(model, prompt_ids):
    """A custom processor runs before generate's temperature: this is what the argument is for."""
    z_BV = policy_logits(model, prompt_ids, 2)[:, -1] * TEMPERATURE
    told = TopHLogitsProcessor(0.6, temperature=TEMPERATURE)(prompt_ids, z_BV)
    untold = TopHLogitsProcessor(0.6)(prompt_ids, z_BV)
    assert torch.equal(told > -torch.inf, top_h_keep(z_BV / TEMPERATURE, 0.6))
    assert not torch.equal(told, untold)


def test_nothing_is_kept_unasked_and_a_reset_forgets():
    scores = torch.randn(2, 20)
    silent, recording = TopHLogitsProcessor(0.4), TopHLogitsProcessor(0.4, record=True)
    for processor in (silent, recording):
        processor(torch.zeros(2, 1), scores)
    assert (silent.kept_mass, silent.entropies) == ([], [])
    assert len(recording.kept_mass) == len(recording.entropies) == 1
    recording.reset()
    assert recording.kept_mass == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, r"alpha must be in \(0, 1\], got 0"),
        ({"alpha": 0.4, "temperature": 0}, "temperature must be > 0, got 0"),
        ({"alpha": 0.4, "rule": "hf"}, "rule must be one of paper, reference"),
    ],
)
def test_settings_are_checked_before_a_run(settings, message):
    with pytest.raises(ValueError, match=message):
        TopHLogitsProcessor(**settings)
