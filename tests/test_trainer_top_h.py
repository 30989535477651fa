"""Top-H rollouts by transformers: only kept tokens are drawn, and the trainer's log-probs stay the whole policy's."""

import copy

import pytest
import torch
from rounding import log_prob_gap
from tiny_model import digits, tiny_model, trainer

from entrl.maths.truncation import top_h_keep

ALPHA, TEMPERATURE = 0.3, 1.3


class Recorder:
    __name__ = "recorder"

    def __init__(self):
        self.rows = []

    def __call__(self, completions, completion_ids, prompt_ids, token_logprobs, **_):
        self.rows += zip(prompt_ids, completion_ids, token_logprobs, strict=True)
        return digits(completions)


@pytest.mark.parametrize("rule", ["paper", "reference"])
def test_only_tokens_of_the_rule_are_drawn_and_scored_under_the_whole_policy(tmp_path, rule):
    recorder, model = Recorder(), tiny_model()
    before = copy.deepcopy(model).double().eval()
    options = {"top_h": ALPHA, "top_h_rule": rule, "temperature": TEMPERATURE, "allow_truncated_sampling": True}
    run = trainer(tmp_path, recorder, model=model, max_steps=1, steps_per_generation=8, **options)
    run.train()
    assert "generate" not in vars(run.model)  # the wrapper is gone
    cut, allowed = [], log_prob_gap(tiny_model(), 20, temperature=TEMPERATURE)
    for prompt, completion, log_probs in recorder.rows:
        with torch.no_grad():
            logits = before(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        keep = top_h_keep(logits, ALPHA, rule=rule)
        ids = torch.tensor(completion)
        assert keep.gather(1, ids[:, None]).all()
        torch.testing.assert_close(
            log_probs.double(), logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], atol=allowed, rtol=0
        )
        cut += (~keep).sum(1).tolist()
    assert len(recorder.rows) == 32
    assert sum(c > 0 for c in cut) > len(cut) / 2  # the rule had something to cut


def test_without_top_h_the_same_run_draws_tokens_the_rule_would_cut(tmp_path):
    recorder, model = Recorder(), tiny_model()
    before = copy.deepcopy(model).double().eval()
    trainer(tmp_path, recorder, model=model, max_steps=1, steps_per_generation=8, temperature=TEMPERATURE).train()
    outside = 0
    for prompt, completion, _ in recorder.rows:
        with torch.no_grad():
            logits = before(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        outside += int((~top_h_keep(logits, ALPHA).gather(1, torch.tensor(completion)[:, None])).sum())
    assert outside > 0


def test_top_h_beside_an_entropy_aware_reward_is_refused_unless_accepted(tmp_path):
    with pytest.raises(ValueError, match=r"top_h=0\.4 samples from a reshaped or truncated distribution"):
        trainer(tmp_path, Recorder(), top_h=0.4)
