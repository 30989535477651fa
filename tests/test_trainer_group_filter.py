"""The group filter inside real runs: what is trained on passes, rows keep what is theirs, ranks and checkpoints."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from filter_runs import EITHER, accuracy, filtered_run, level
from kl_runs import Publishes
from rounding import log_prob_gap
from tiny_model import digits, parameters, same, saved_model, tiny_model, trainer
from window_runs import fixed_rollout

from entrl.controllers.hooks import Controller, LossTerms

REPOSITORY = Path(__file__).parents[1]
SAMPLED = {"rollout_func": None}  # the model's own completions, of any length


def counts(run):
    return [{k: v for k, v in e.items() if k.startswith("filter/")} for e in run.state.log_history if "loss" in e]


def test_only_groups_that_pass_are_trained_on(tmp_path):
    run = filtered_run(tmp_path, max_steps=3)
    run.train()
    assert len(run.rollouts) == 3
    for output, logged in zip(run.rollouts, counts(run), strict=True):
        prompts = run.prompts_of(output)
        assert {level(p) for p in prompts} == {EITHER}
        assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, 16, 4))
        assert output["num_items_in_batch"] == output["completion_mask"].sum()
        advantages = output["advantages"].view(4, 4)
        assert (advantages.amax(1) > advantages.amin(1)).all()
        assert logged["filter/unfilled"] == 0
        assert logged["filter/tries"] > 1, "nothing was drawn, nothing was shown"
        assert (
            logged["filter/prompts"]
            == 4 + logged["filter/too_hard"] + logged["filter/too_easy"] + (logged["filter/surplus"])
        )
    assert len(run.draws) == sum(logged["filter/tries"] for logged in counts(run))
    drawn = sum(len(d) for d in run.draws) / 4
    assert counts(run)[-1]["filter/prompts_total"] == drawn
    assert counts(run)[-1]["filter/dropped_total"] == drawn - 12


def test_where_every_group_passes_the_run_is_the_same_bit_for_bit(tmp_path):
    def spread(completion_ids, **_):
        return [float(sum(ids) % 97) for ids in completion_ids]

    found = []
    for extra in ({}, {"filter_on": "reward"}):
        run = trainer(tmp_path, spread, num_iterations=2, **extra)  # seeds the draws
        run.train()
        found.append(parameters(run))
    assert [logged["filter/pass_rate"] for logged in counts(run) if logged] == [1, 1]
    assert same(*found)


@pytest.mark.parametrize(
    "schedule",
    [{"num_iterations": 2}, {"num_iterations": 2, "mask_truncated_completions": True, "max_completion_length": 96}, {}],
    ids=["trl_scores", "truncated", "own_scores"],
)
def test_old_and_reference_log_probs_stay_with_their_tokens(tmp_path, schedule):
    """Before the first update all three policies are one, so a row that got another's scores would show."""
    gaps = []
    allowed = log_prob_gap(tiny_model(), 8 + schedule.get("max_completion_length", 12))

    class Watch(Controller):
        name = "watch"
        scope = "step"

        def select(self, window):
            mask = window.rows.mask_BT
            gaps.append((window.old_log_probs_BT, window.entropies_BT, mask))

        def on_loss(self, rows, selection, view):
            if len(gaps) == 1:
                old_BT, old_entropies_BT, mask = gaps[0]
                for kept, now in ((old_BT, view.log_probs_BT), (view.ref_log_probs_BT, view.log_probs_BT)):
                    assert (kept - now.detach())[mask].abs().max() <= allowed
                assert (old_entropies_BT - view.entropies_BT)[mask].abs().max() <= allowed
                assert mask.any()
            return LossTerms()

    model = saved_model(tmp_path / "m")
    run = filtered_run(tmp_path, model=model, beta=0.1, controllers=[Watch()], max_steps=1, **SAMPLED | schedule)
    run.train()
    assert len(gaps) == 1
    assert counts(run)[0]["filter/tries"] > 1


def test_published_columns_stay_with_their_rows(tmp_path):
    run = filtered_run(tmp_path, rewards=[accuracy, Publishes()], controllers=[Needs()], max_steps=1)
    run.train()
    output = run.rollouts[0]
    assert output["entrl_column_difficulty"].tolist() == [len(p) % 4 - 1 for p in run.prompts_of(output)]
    mask = output["completion_mask"].bool()
    assert torch.equal(output["entrl_column_high_entropy"][mask], output["completion_ids"][mask] % 3 == 0)


class Needs(Controller):
    name = "needs"
    needs_columns = ("difficulty", "high_entropy")


SCALES = [
    {"scale_rewards": "group"},
    {"scale_rewards": "batch"},
    {"scale_rewards": "none"},
    {"multi_objective_aggregation": "normalize_then_sum"},
]


@pytest.mark.parametrize("scale", SCALES, ids=lambda s: next(iter(s.values())))
def test_a_batch_put_together_again_is_trls_own(tmp_path, scale):
    """Every group of one generation in its own place, through the whole machinery: each key as TRL made it."""
    compared = []

    def fill(first, draw):
        again = run.kept["filter"]._assembled([first], [(0, g) for g in range(4)])
        for name, value in first.output.items():
            assert torch.allclose(again.output[name].double(), value.double(), atol=1e-6), name
        assert again.rollout.completion_ids == first.rollout.completion_ids
        compared.append(set(first.output))
        return first

    def sometimes(completions, **_):
        return [d if i % 3 else None for i, d in enumerate(digits(completions))]

    run = trainer(
        tmp_path, [digits, sometimes], filter_on="reward", per_device_train_batch_size=16, max_steps=1,
        num_iterations=2, reward_weights=[1.0, 0.5], beta=0.1, model=saved_model(tmp_path / "m"), **scale,
    )  # fmt: skip
    run.kept["filter"].fill = fill
    run.train()
    assert {"old_per_token_logps", "ref_per_token_logps", "advantages", "num_items_in_batch"} <= compared[0]


@pytest.mark.parametrize("scale", ["batch", "group"])
def test_advantages_are_those_of_the_groups_that_are_trained_on(tmp_path, scale):
    """By hand, from the rewards of the rollout as it is trained on."""
    seen = []

    class Watch(Controller):
        name = "watch"

        def on_rollout(self, rewards_N, groups_N, advantages_N):
            seen.append((rewards_N.view(4, 4).double(), advantages_N.view(4, 4).double()))

    filtered_run(tmp_path, scale_rewards=scale, controllers=[Watch()], max_steps=1).train()
    rewards, advantages = seen[0]
    assert (rewards.amax(1) > rewards.amin(1)).all()
    std = rewards.flatten().std() if scale == "batch" else rewards.std(1, keepdim=True)
    assert torch.allclose(advantages, (rewards - rewards.mean(1, keepdim=True)) / (std + 1e-4), atol=1e-5)


@pytest.mark.parametrize("stop", [1, 2], ids=["inside_a_rollout", "between_rollouts"])
def test_resuming_equals_not_stopping(tmp_path, stop):
    schedule = {
        "num_iterations": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": stop,
        "lr_scheduler_type": "constant", "filter_max_tries": 3,
    }  # fmt: skip

    def run():
        return filtered_run(tmp_path, model=saved_model(tmp_path / "m"), **SAMPLED | schedule)

    whole = run()
    whole.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    assert same(parameters(whole), parameters(resumed))
    assert whole.kept["filter"].state_dict() == resumed.kept["filter"].state_dict()
    assert resumed.draws == whole.draws[-len(resumed.draws) :]
    assert len(whole.draws) > 3


def test_pear_beside_an_accuracy_filter_is_warned_of_once(tmp_path):
    """Whatever ranks right answers goes with their groups; PEAR ranks nothing else."""
    from entrl_rewards.pear import Pear

    pear = Pear(correctness=accuracy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filtered_run(tmp_path, rewards=[accuracy, pear], max_steps=2, **SAMPLED).train()
    texts = [str(w.message) for w in caught if "removes groups of right answers" in str(w.message)]
    assert len(texts) == 1
    assert "pear" in texts[0]


def test_filtering_on_reward_keeps_pears_groups(tmp_path):
    from entrl_rewards.pear import Pear

    run = filtered_run(tmp_path, rewards=Pear(correctness=accuracy), filter_on="reward", max_steps=1, **SAMPLED)
    run.train()
    levels = {level(p) for p in run.prompts_of(run.rollouts[0])}
    assert levels == {0, EITHER}  # groups of right answers stay, hopeless ones have no spread


def test_exhausted(tmp_path):
    def never(completions, **_):
        return [0.0] * len(completions)

    never.__name__ = "accuracy"
    run = filtered_run(tmp_path, rewards=never, filter_max_tries=2, max_steps=1)
    with pytest.warns(UserWarning, match="no group for 4 places in 2 generations"):
        run.train()
    assert counts(run)[0]["filter/unfilled"] == 4
    stopping = filtered_run(tmp_path, rewards=never, filter_max_tries=2, filter_exhausted="error", max_steps=1)
    with pytest.raises(RuntimeError, match="loosen the bounds"):
        stopping.train()


def test_evaluation_is_not_filtered(tmp_path):
    data = trainer(tmp_path).train_dataset.select(range(4))
    run = filtered_run(tmp_path, eval_dataset=data, max_steps=1)
    run.evaluate()
    assert len(run.draws) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": digits}, "finds no verdicts"),
        ({"filter_low": 0.5, "filter_high": 0.4}, "filter_low"),
    ],
)
def test_refusals_at_the_start(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        filtered_run(tmp_path, **options)


@pytest.mark.multiprocess
def test_two_processes_fill_together(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config,
         str(REPOSITORY / "tests/filter_runs.py"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
    for rank in ranks:
        assert len(rank["rollouts"]) == 2
        for prompts in rank["prompts"]:
            assert {level(p) for p in prompts} == {EITHER}
    # as many draws of as many rows, of other prompts
    assert [len(d) for d in ranks[0]["draws"]] == [len(d) for d in ranks[1]["draws"]]
    assert all(not set(a) & set(b) for a, b in zip(ranks[0]["draws"], ranks[1]["draws"], strict=True))
    for of in zip(ranks[0]["rollouts"], ranks[1]["rollouts"], strict=True):
        total = sum(int(o["completion_mask"].sum()) for o in of)
        assert [int(o["num_items_in_batch"]) for o in of] == [total, total]
    last = ranks[0]["log"][-1]
    assert last["filter/prompts_total"] == 2 * sum(len(d) for d in ranks[0]["draws"]) / 4
    assert last["filter/dropped_total"] == last["filter/prompts_total"] - 16


def test_refilled_rows_do_not_share_what_a_rollout_function_writes_into_them(tmp_path):
    """TRL writes a rollout function's extra fields into the rows, so each completion needs a row of its own."""
    seen = []

    def reward(completions, place, **_):
        seen.append(list(place))
        return digits(completions)

    def rollout(prompts, run):
        return {**fixed_rollout(prompts, run), "place": list(range(len(prompts)))}

    trainer(
        tmp_path, reward, rollout_func=rollout, filter_on="reward", filter_min_std=1e6, filter_max_tries=3, max_steps=1
    ).train()
    assert all(places == list(range(len(places))) for places in seen)
    assert len(seen) > 1, "no group was refilled, so nothing was shown"
