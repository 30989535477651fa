"""Rewards that misbehave stop the run with their name, the row and the next move; nothing is trained on silence."""

import asyncio
import copy
import inspect
import os
import signal
import time

import numpy as np
import pytest
import torch
from tiny_model import digits, prompts, tiny_model, trainer
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from entrl.errors import RunStopped, TimeIsUp
from entrl.runs.reward_call import called
from entrl.trainers.shared.rewards import RewardError, guarded, needed_signals
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


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException, asyncio.CancelledError])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_no_exception_is_named_too(kind, is_async):
    class Mine(kind):
        pass

    def bad(completions, **_):
        raise Mine("over")

    async def bad_later(completions, **_):
        raise Mine("over")

    (guard,) = guarded([bad_later if is_async else bad])
    with pytest.raises(RewardError, match=r"reward 'bad(_later)?' raised Mine: over"):
        called(guard, {"prompts": [""], "completions": [""]})


def test_a_kind_of_interrupt_of_its_own_ends_training_with_the_rewards_name(tmp_path):
    class Mine(KeyboardInterrupt):
        pass

    def bad(completions, **_):
        raise Mine

    with pytest.raises(RewardError, match="reward 'bad' raised Mine"):
        trainer(tmp_path, bad, max_steps=1).train()


def test_ctrl_c_and_what_ends_a_run_go_through(tmp_path):
    """As they come while a reward is at work: a real signal, a run that was asked to end, a limit."""

    def interrupted(completions, **_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, interrupted, max_steps=1).train()

    for stop in (RunStopped("stopped", 130), TimeIsUp()):

        def asked(completions, stop=stop, **_):
            raise stop

        (guard,) = guarded([asked])
        with pytest.raises(type(stop)):
            guard(prompts=[""], completions=[""])


def test_a_cancelled_task_and_a_closed_coroutine_of_a_reward_stay_what_they_are():
    async def waits(completions, **_):
        await asyncio.sleep(60)

    (guard,) = guarded([waits])

    async def cancels():
        task = asyncio.create_task(guard(prompts=[""], completions=[""]))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancels())
    coroutine = guard(prompts=[""], completions=[""])
    coroutine.close()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_a_reward_that_empties_its_columns_spoils_nothing_for_the_next_or_the_log(tmp_path):
    seen = []

    def spoils(completions, answer, completion_ids, prompts, token_entropies, **columns):
        for i in range(len(completions)):
            answer[i], completions[i], prompts[i] = "", "", ""
            completion_ids[i].clear()
            token_entropies[i].fill_(float("nan"))
        answer.clear()
        return [float(i) for i in range(len(completions))]

    def reads(completions, answer, completion_ids, prompts, token_entropies, **_):
        seen.append((list(answer), list(completions), [len(ids) for ids in completion_ids], list(prompts)))
        assert all(torch.isfinite(entropies).all() for entropies in token_entropies)
        return [1.0] * len(completions)

    run = trainer(tmp_path, [spoils, reads], max_steps=1)
    run.train()
    ((answers, completions, lengths, asked),) = seen
    assert len(answers) == 4
    assert all(answers)
    assert all(asked)
    assert all(completions)
    assert min(lengths) > 0
    assert list(run._logs["completion"]) == completions


def test_messages_and_nested_columns_are_handed_out_anew_too():
    messages = [[{"role": "user", "content": "1+1="}]]
    signals = {
        "prompts": messages,
        "completions": [[{"role": "assistant", "content": "2"}]],
        "tests": [({"input": ["1"]}, np.ones(2))],
        "environments": [object()],
    }
    kept = copy.deepcopy({name: value for name, value in signals.items() if name != "environments"})
    found = []

    def spoils(prompts, completions, tests, environments, **_):
        prompts[0].append({})
        completions[0][0]["content"] = ""
        tests[0][0]["input"].clear()
        tests[0][1][:] = 0
        found.append(environments[0])
        return [0.0]

    guarded([spoils])[0](**signals)
    assert {name: signals[name] for name in ("prompts", "completions")} == {
        n: kept[n] for n in ("prompts", "completions")
    }
    assert signals["tests"][0][0] == {"input": ["1"]}
    assert signals["tests"][0][1].tolist() == [1, 1]
    assert found[0] is signals["environments"][0]  # which remembers what was played


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
