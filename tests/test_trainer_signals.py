"""What rewards receive: entropies and log-probs of the very ids they score, under the policy that wrote them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rounding import log_prob_gap
from tiny_model import digits, parameters, prompts, saved_model, tiny_model, trainer

from entrl_lab.nursery.tokenizer import character_tokenizer

SCHEDULES = {
    "on_policy": {},
    "several_updates": {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "iterations": {"num_iterations": 2},
    "reference_model": {"num_iterations": 2, "beta": 0.1},
    "reference_on_policy": {"beta": 0.1},
    "truncation_masked": {"num_iterations": 2, "mask_truncated_completions": True},
    "truncation_masked_on_policy": {"mask_truncated_completions": True},
    "temperature": {"temperature": 0.7, "num_iterations": 2},
}


class Recorder:
    """A reward that asks for everything and checks nothing: the tests do."""

    __name__ = "recorder"

    def __init__(self):
        self.calls = []

    def __call__(
        self,
        completions,
        completion_ids,
        token_entropies,
        token_logprobs,
        token_mask,
        group_index,
        truncated,
        prompt_ids,
        think_tags,
        **_,
    ):
        self.calls.append(
            {
                "ids": completion_ids,
                "prompts": prompt_ids,
                "entropies": token_entropies,
                "log_probs": token_logprobs,
                "mask": token_mask,
                "groups": group_index,
                "truncated": truncated,
                "tags": think_tags,
            }
        )
        return digits(completions)


def reference(model, prompt_ids, completion_ids, temperature):
    """Entropies and log-probs of one row in float64 from plain softmax, without padding."""
    model = model.double().eval()
    ids = torch.tensor([prompt_ids + completion_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1] / temperature
    log_p = logits.double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1), log_p.gather(-1, torch.tensor(completion_ids)[:, None])[:, 0]


def policy_of(run, adapter):
    """The run's policy as a model of its own, the adapter merged."""
    if adapter is None:
        return tiny_model()
    model = get_peft_model(tiny_model(), adapter)
    set_peft_model_state_dict(model, get_peft_model_state_dict(run.model))
    return model.merge_and_unload()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_entropies_equal_a_float64_reference_on_the_same_ids(tmp_path, schedule, lora):
    kwargs = dict(SCHEDULES[schedule])
    # An adapter that changes the policy: the reference pass with beta > 0 goes without it and must not be mistaken.
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    reward = Recorder()
    run = trainer(
        tmp_path,
        reward,
        model=saved_model(tmp_path / "m"),
        max_steps=1,
        learning_rate=0.0,
        peft_config=adapter,
        **kwargs,
    )
    run.train()
    model = policy_of(run, adapter)
    call = reward.calls[0]
    temperature = kwargs.get("temperature", 1.0)
    allowed = {"rtol": 0, "atol": log_prob_gap(model, 20, temperature=temperature)}
    assert any(call["truncated"]), "no truncated row: the masked cases would show nothing"
    for i, ids in enumerate(call["ids"]):
        entropies, log_probs = reference(model, call["prompts"][i], list(ids), temperature)
        assert call["entropies"][i].dtype == torch.float32
        assert call["entropies"][i].shape == (len(ids),)
        torch.testing.assert_close(call["entropies"][i].double(), entropies, **allowed)
        torch.testing.assert_close(call["log_probs"][i].double(), log_probs, **allowed)
        assert call["mask"][i].all()


def test_entropies_are_those_of_the_policy_that_wrote_the_completion_not_of_the_first_one(tmp_path):
    reward = Recorder()
    run = trainer(tmp_path, reward, max_steps=3, learning_rate=0.05, num_iterations=2, optim="sgd")
    run.train()
    second = reward.calls[1]  # generated after two updates
    entropies, _ = reference(tiny_model(), second["prompts"][0], list(second["ids"][0]), 1.0)
    assert (second["entropies"][0].double() - entropies).abs().max() > 1e-3


def test_groups_count_over_the_generation_batch(tmp_path):
    reward = Recorder()
    trainer(tmp_path, reward, max_steps=1, steps_per_generation=2).train()
    assert reward.calls[0]["groups"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_conversational_prompts_and_evaluation(tmp_path):
    reward = Recorder()
    chat = prompts(conversational=True)
    run = trainer(tmp_path, reward, max_steps=1, train_dataset=chat, eval_dataset=chat.select(range(4)))
    run.train()
    trained = len(reward.calls)
    before = parameters(run)
    metrics = run.evaluate()
    assert "eval_rewards/recorder/mean" in metrics
    assert len(reward.calls) == trained + 4  # one prompt a batch of four rows
    assert all(len(e) == len(i) for c in reward.calls for e, i in zip(c["entropies"], c["ids"], strict=True))
    assert all(torch.equal(before[k], v) for k, v in parameters(run).items())


def env_rollout(prompt_texts, run):
    """A rollout whose completions hold four tokens of a tool; the k-th of a group writes k digits of its own."""
    tokenizer = character_tokenizer()
    written = [
        [*tokenizer.encode("ab" + "7" * (i % 4) + "[42]cd"), tokenizer.eos_token_id] for i in range(len(prompt_texts))
    ]
    mask = [[1] * (len(w) - 7) + [0] * 4 + [1] * 3 for w in written]
    ids = [tokenizer.encode(p) for p in prompt_texts]
    return {"prompt_ids": ids, "completion_ids": written, "logprobs": None, "env_mask": mask}


def test_tool_tokens_are_marked(tmp_path):
    reward = Recorder()
    run = trainer(tmp_path, reward, max_steps=2, num_iterations=2, rollout_func=env_rollout)
    run.train()
    call = reward.calls[0]
    assert [m.tolist().count(False) for m in call["mask"]] == [4] * 4
    for ids, mask in zip(call["ids"], call["mask"], strict=True):
        assert character_tokenizer().decode([t for t, m in zip(ids, mask.tolist(), strict=True) if not m]) == "[42]"


def test_a_plain_reward_gets_nothing_extra_and_an_aware_one_beside_it_does(tmp_path):
    seen = {}

    def plain(completions, **kwargs):
        seen["plain"] = set(kwargs)
        return digits(completions)

    def aware(completions, token_entropies, **_):
        return [-float(h.mean()) for h in token_entropies]

    run = trainer(tmp_path, [plain, aware], max_steps=1, reward_weights=[1.0, 0.5])
    run.train()
    assert {"answer", "trainer_state", "log_metric"} <= seen["plain"]
    assert "rewards/aware/mean" in run.state.log_history[0]


def test_an_async_reward_may_name_signals(tmp_path):
    async def aware(completions, token_entropies, **_):
        return [float(h.mean()) for h in token_entropies]

    run = trainer(tmp_path, aware, max_steps=1)
    run.train()
    assert run.state.log_history[0]["rewards/aware/mean"] > 0


def test_gather_over_one_process_is_the_identity_and_comes_once(tmp_path):
    def grouped(completions, gather, training, **_):
        assert gather([1.0, 2.5]) == [1.0, 2.5]
        assert training
        return digits(completions)

    trainer(tmp_path, grouped, max_steps=1).train()


def test_needs_attribute_asks_for_signals_too(tmp_path):
    class Aware:
        __name__ = "aware"
        needs = ("token_entropies",)

        def __call__(self, **kwargs):
            return [float(h.sum()) for h in kwargs["token_entropies"]]

    run = trainer(tmp_path, Aware(), max_steps=1)
    run.train()
    assert run.state.log_history[0]["rewards/aware/mean"] > 0


def test_a_column_with_the_name_of_a_signal_is_refused(tmp_path):
    data = prompts().add_column("token_entropies", [0.0] * 64)
    run = trainer(tmp_path, Recorder(), max_steps=1, train_dataset=data)
    with pytest.raises(ValueError, match=r"token_entropies.*rename"):
        run.train()


def test_completions_are_sampled_with_their_entropies_and_phases(tmp_path):
    run = trainer(tmp_path, Recorder(), max_steps=2, sample_completions=3)
    run.train()
    rows = list(run.completion_samples)
    assert [r["step"] for r in rows] == [0, 0, 0, 1, 1, 1]
    for row in rows:
        assert len(row["tokens"]) == len(row["entropies"]) == len(row["phases"])
        assert set(row["rewards"]) == {"recorder"}
        assert row["reward"] == row["rewards"]["recorder"]
