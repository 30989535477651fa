"""Credit per turn inside the trainer: what reaches the loss, what is refused, one process against two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rounding import assert_same_gradients, gap
from tiny_model import digits, options, tiny_model
from trl import GRPOTrainer
from turn_runs import TurnReward, dialogue, dialogues, turn_run

from entrl.controllers.ce_gppo import CEGPPO
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.std_floor import StdFloor
from entrl.controllers.steer import Steer
from entrl.controllers.w_reinforce import WReinforce
from entrl.trainers.refusals.checks import check_schedule

REPOSITORY = Path(__file__).parents[1]
CUT = {"rows": 12, "slices": 1}
SIZE = {"tokens": 34, "rows": 12}  # of the window: prompts of up to 8 tokens, dialogues of up to 26


def slow_credit(prompts, ids_B, mask_B, *, weight):
    """(B, T) credit of return_to_go, by loops over groups of four."""
    found = {tuple(ids): rewards for p in set(prompts) for ids, _, rewards in (dialogue(p, k) for k in range(8))}
    rewards = [found[tuple(ids)] for ids in ids_B]
    rows = []
    for i, (ids, mask) in enumerate(zip(ids_B, mask_B, strict=True)):
        group = [j for j in range(len(rewards)) if j // 4 == i // 4]
        row, turn, before = [0.0] * len(ids), -1, 0
        for t, own in enumerate(mask):
            turn += own and not before
            if own:
                others = [sum(rewards[j][turn:]) for j in group if j != i]
                row[t] = weight * (sum(rewards[i][turn:]) - sum(others) / len(others))
            before = own
        rows.append(row)
    return rows


def rows_of(seen):
    ids_B, mask_B = [], []
    for ids, whole, tool in zip(seen["completion_ids"], seen["completion_mask"], seen["tool_mask"], strict=True):
        length = int(whole.sum())
        ids_B.append(ids[:length].tolist())
        mask_B.append(tool[:length].tolist())
    return ids_B, mask_B


def test_every_token_gets_its_turns_credit_and_tools_get_none(tmp_path):
    plain = turn_run(tmp_path, **CUT, reward=plain_reward(), controllers=(), turn_credit=None)["seen"][0]
    seen = turn_run(tmp_path, **CUT, controllers=())["seen"][0]
    assert seen["advantages"].shape == seen["completion_ids"].shape
    ids_B, mask_B = rows_of(seen)
    credit = slow_credit(seen["prompts"], ids_B, mask_B, weight=0.7)
    assert sum(0 in mask for mask in mask_B) > 6  # tools wrote in most of them
    for row, (expected, mask) in enumerate(zip(credit, mask_B, strict=True)):
        got = seen["advantages"][row, : len(mask)] - plain["advantages"][row]
        allowed = gap(float(seen["advantages"].abs().max()), 12)  # rewards of three turns of four rollouts
        torch.testing.assert_close(got, torch.tensor(expected), atol=allowed, rtol=0)
        assert not any(abs(c) > 0 for c, own in zip(expected, mask, strict=True) if not own)


def plain_reward():
    def turn_reward(prompts, completion_ids, **_):
        return TurnReward()(prompts=prompts, completion_ids=completion_ids)

    return turn_reward


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_a_weight_of_zero_is_plain_grpo_bit_for_bit(tmp_path, loss_type):
    zero = turn_run(tmp_path, **CUT, controllers=(), turn_credit_weight=0.0, loss_type=loss_type)
    plain = turn_run(tmp_path, **CUT, controllers=(), turn_credit=None, reward=plain_reward(), loss_type=loss_type)
    credited = turn_run(tmp_path, **CUT, controllers=(), loss_type=loss_type)
    assert zero["seen"][0]["advantages"].dim() == 1
    assert torch.equal(zero["parameters"], plain["parameters"])
    for a, b in zip(zero["gradients"], plain["gradients"], strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(credited["gradients"][0], plain["gradients"][0], atol=1e-6)


class Replaced(GRPOTrainer):
    """Stock TRL, its advantages replaced after the rollout by the slow twin's."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        ids_B, mask_B = rows_of(output)
        extra = torch.zeros(output["completion_ids"].shape)
        for row, credit in enumerate(slow_credit([r["prompt"] for r in inputs], ids_B, mask_B, weight=0.7)):
            extra[row, : len(credit)] = torch.tensor(credit)
        output["advantages"] = output["advantages"][:, None] + extra
        return output


def test_gradients_are_stock_trls_with_those_advantages(tmp_path):
    stock = turn_run(tmp_path, **CUT, controllers=(), turn_credit=None, reward=plain_reward(), cls=Replaced)
    ours = turn_run(tmp_path, **CUT, controllers=())
    for a, b in zip(ours["gradients"], stock["gradients"], strict=True):
        assert_same_gradients(a, b, tiny_model(), **SIZE)


@pytest.mark.parametrize("cut", [(6, 2), (4, 3), (2, 6)])
def test_micro_batches_do_not_matter_with_a_controller_beside_it(tmp_path, cut):
    whole = turn_run(tmp_path, **CUT)
    rows, slices = cut
    other = turn_run(tmp_path, rows=rows, slices=slices)
    for a, b in zip(whole["gradients"], other["gradients"], strict=True):
        assert_same_gradients(a, b, tiny_model(), **SIZE)
    assert whole["metrics"][0]["kl_cov/selected"] == 3


@pytest.mark.parametrize(
    "made",
    [
        lambda: ClipCov(fraction=0.05, lower=0.0, upper=50.0, seed=3),
        CWGRPO,
        lambda: Steer(w_min=0.5),
        CEGPPO,
        WReinforce,
        lambda: StdFloor(floor=0.5),
    ],
    ids=["clip_cov", "cw_grpo", "steer", "ce_gppo", "w_reinforce", "std_floor"],
)
def test_every_kind_of_controller_works_on_advantages_of_turns(tmp_path, made):
    """The cut does not matter, and the turns' credit is still in the gradient."""
    scaling = {"scale_rewards": "none"} if made is WReinforce else {}
    whole, other = (
        turn_run(tmp_path, **cut, controllers=[made()], **scaling) for cut in (CUT, {"rows": 6, "slices": 2})
    )
    for a, b in zip(whole["gradients"], other["gradients"], strict=True):
        assert_same_gradients(a, b, tiny_model(), **SIZE)
    plain = turn_run(tmp_path, **CUT, controllers=[made()], turn_credit=None, reward=plain_reward(), **scaling)
    assert whole["seen"][0]["advantages"].dim() == 2
    assert not torch.allclose(whole["gradients"][0], plain["gradients"][0], atol=1e-4)


@pytest.mark.multiprocess
def test_two_processes_are_one_with_a_group_on_both(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command = [*launch, str(REPOSITORY / "tests/turn_runs.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
    alone = turn_run(tmp_path, **CUT)
    one = alone["seen"][0]
    row = 0
    for rank in ranks:
        got, (ids_B, _) = rank["seen"][0], rows_of(rank["seen"][0])
        assert got["prompts"] == one["prompts"][row : row + 6]
        for i, ids in enumerate(ids_B):
            assert one["completion_ids"][row, : len(ids)].tolist() == ids
            torch.testing.assert_close(got["advantages"][i, : len(ids)], one["advantages"][row, : len(ids)])
            row += 1
    for a, b in zip(alone["gradients"], ranks[0]["gradients"], strict=True):
        assert_same_gradients(a, b, tiny_model(), **SIZE)
    assert alone["metrics"][0] == pytest.approx(ranks[0]["metrics"][0], rel=1e-5)


def same_dialogue(prompts, run):
    out = dialogues(prompts, run)
    first = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(prompt, i)
    for key in ("completion_ids", "env_mask"):
        out[key] = [out[key][first[p]] for p in prompts]
    return out


def test_identical_rollouts_get_exactly_nothing(tmp_path):
    seen = turn_run(tmp_path, **CUT, rollout_func=same_dialogue, controllers=())["seen"][0]
    assert torch.equal(seen["advantages"], torch.zeros_like(seen["advantages"]))


@pytest.mark.parametrize(
    "estimator", ["turnwise_masked", "zero_padded", "joint_norm", "turn_group_sqrt", "first_turn_norm"]
)
def test_the_published_estimators_run(tmp_path, estimator):
    seen = turn_run(tmp_path, **CUT, turn_credit=estimator, controllers=())["seen"][0]
    assert seen["advantages"].isfinite().all()
    assert seen["advantages"].std(1).max() > 0


def test_length_weighting_gives_turns_of_a_row_one_weight(tmp_path):
    common = {**CUT, "controllers": (), "scale_rewards": "none"}
    base = turn_run(tmp_path, **common, turn_credit_weight=0.0)["seen"][0]["advantages"]
    plain = turn_run(tmp_path, **common)["seen"][0]["advantages"]
    weighed = turn_run(tmp_path, **common, turn_length_weighting=True)["seen"][0]
    checked = 0
    for row, mask in enumerate(rows_of(weighed)[1]):
        lengths = [len(run) for run in "".join("x" if own else " " for own in mask).split()]
        per_token = [n for n in lengths for _ in range(n)]
        own = [t for t, written in enumerate(mask) if written]
        for t, length in zip(own, per_token, strict=True):
            before, after = plain[row, t] - base[row], weighed["advantages"][row, t] - base[row]
            torch.testing.assert_close(after, before * sum(lengths) / len(lengths) / length, atol=1e-5, rtol=1e-4)
            checked += len(set(lengths)) > 1 and bool(before)
    assert checked > 10


class Wrong(TurnReward):
    def __call__(self, **given):
        out = super().__call__(**given)
        self.row_columns["turn_rewards"][3] = torch.zeros(9)
        return out


def test_rewards_that_do_not_fit_the_turns_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"9 turn_rewards for row 3, in which the model wrote \d messages"):
        turn_run(tmp_path, **CUT, reward=Wrong())


class Promised(TurnReward):
    def __call__(self, **given):
        out = super().__call__(**given)
        self.row_columns.clear()
        return out


def test_a_reward_that_publishes_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no reward published turn_rewards"):
        turn_run(tmp_path, **CUT, reward=Promised())


@pytest.mark.parametrize(
    ("given", "reward", "problem"),
    [
        ({}, TurnReward(), "nothing turns them into advantages"),
        ({"turn_credit": "return_to_go"}, digits, "no reward here publishes"),
        ({"turn_credit": "return_to_go", "importance_sampling_level": "sequence"}, TurnReward(), "'sequence' spreads"),
        ({"turn_credit": "return_to_go", "filter_on": "reward"}, TurnReward(), "filter drops groups"),
    ],
)
def test_combinations_that_would_be_wrong_or_idle(tmp_path, given, reward, problem):
    found = check_schedule(options(tmp_path, **given), [], [reward], 1)
    assert any(problem in text for text in found), found


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"turn_credit": "reward_to_go"}, "turn_credit must be one of None, return_to_go"),
        ({"turn_credit": "zero_padded", "turn_credit_discount": 0.9}, "sums nothing over turns"),
        ({"turn_credit": "return_to_go", "turn_credit_discount": 1.5}, r"must be in \[0, 1\], got 1.5"),
        ({"turn_credit": "return_to_go", "turn_credit_weight": -1.0}, "must be finite and >= 0"),
    ],
)
def test_options_out_of_range(tmp_path, given, problem):
    with pytest.raises(ValueError, match=problem):
        options(tmp_path, **given)
