"""Rewards that misbehave stop the run with their name, the row and the next move; nothing is trained on silence."""

import pytest
from tiny_model import digits, prompts, tiny_model, trainer
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from entrl.trainers.shared.rewards import RewardError, needed_signals
from entrl_lab.nursery.tokenizer import character_tokenizer


def returning(values):
    def bad(completions, **_):
        return values(len(completions))

    return bad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: [1.0] * (n - 1), "reward 'bad' returned 3 rewards for 4 completions; return one per completion"),
        (lambda n: [1.0, float("nan")] + [0.0] * (n - 2), "reward 'bad' returned nan for row 1 of 4.*or None"),
        (lambda n: [float("inf")] * n, "reward 'bad' returned inf for row 0 of 4"),
        (lambda n: [10**400] * n, "reward 'bad' returned inf for row 0 of 4"),
        (lambda n: ["high"] * n, r"reward 'bad' returned 'high' \(str\) for row 0 of 4; return a number"),
        (lambda n: None, "reward 'bad' returned NoneType; return a list of 4 floats"),
        (lambda n: 1 / 0, "reward 'bad' raised ZeroDivisionError: division by zero"),
    ],
)
def test_bad_returns_are_named(tmp_path, values, message):
    with pytest.raises(RewardError, match=message):
        trainer(tmp_path, returning(values), max_steps=1).train()


def test_a_bad_async_reward_is_named_too(tmp_path):
    async def bad(completions, **_):
        return [float("nan")] * len(completions)

    with pytest.raises(RewardError, match="reward 'bad' returned nan for row 0"):
        trainer(tmp_path, bad, max_steps=1).train()


def test_none_means_does_not_apply(tmp_path):
    def sometimes(completions, **_):
        return [None, 1.0, 0.0, 1.0]

    run = trainer(tmp_path, sometimes, max_steps=1)
    run.train()
    assert run.state.log_history[0]["rewards/sometimes/mean"] == pytest.approx(2 / 3)


def test_a_column_that_is_not_there_stops_step_0(tmp_path):
    def gold(completions, *, target, **_):
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=r"reward 'gold' needs \['target'\].*'answer'"):
        trainer(tmp_path, gold, max_steps=1).train()


def test_an_empty_completion_of_a_rollout_function_is_named(tmp_path):
    def rollout(texts, run):
        ids = [character_tokenizer().encode(t) for t in texts]
        return {"prompt_ids": ids, "completion_ids": [[]] * len(ids), "logprobs": None}

    with pytest.raises(ValueError, match="empty completion for row 0; return at least the end token"):
        trainer(tmp_path, rollout_func=rollout, max_steps=1).train()


def test_an_unknown_signal_in_needs_is_named():
    class Wants:
        needs = ("token_entropy",)

        def __call__(self, **_):
            return []

    with pytest.raises(ValueError, match=r"unknown signals \['token_entropy'\]; known: token_entropies"):
        needed_signals(Wants())


def test_an_all_truncated_batch_trains_nothing_and_divides_by_nothing(tmp_path):
    def aware(completions, token_entropies, **_):
        return [float(h.mean()) for h in token_entropies]

    run = trainer(
        tmp_path, aware, max_steps=2, num_iterations=2, mask_truncated_completions=True, max_completion_length=2,
        weight_decay=0.0,
    )  # fmt: skip
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.train()
    logged = run.state.log_history[0]
    assert logged["completions/clipped_ratio"] == 1.0
    assert logged["rewards/aware/mean"] > 0.1, "truncated rows were scored behind TRL's zero mask"
    assert "policy_entropy/token_mean" not in logged, "an entropy of no tokens was reported"
    assert all((before[k] == v).all() for k, v in run.model.state_dict().items())


def test_rewards_without_signals_run_in_stock_grpo_and_rloo(tmp_path):
    trainer(tmp_path, digits, cls=GRPOTrainer, plain=True, max_steps=1).train()
    args = RLOOConfig(
        output_dir=str(tmp_path / "rloo"), per_device_train_batch_size=4, num_generations=4, max_steps=1, bf16=False,
        max_completion_length=8, use_cpu=True, report_to=[], save_strategy="no", gradient_checkpointing=False, beta=0.0,
    )  # fmt: skip
    run = RLOOTrainer(tiny_model(), digits, args, train_dataset=prompts(), processing_class=character_tokenizer())
    run.train()
    assert run.state.global_step == 1
