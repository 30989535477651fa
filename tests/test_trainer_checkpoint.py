"""A resumed run equals an uninterrupted one, also when it was stopped between two updates of one rollout."""

import pandas
import pytest
import torch
from tiny_model import digits, parameters, prompts, same, trainer
from transformers import TrainerCallback

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.kl_cov import KLCov
from entrl.trainers.shared.checkpoint import load_state, save_state


class Stateful:
    """A reward that pays more for each call it has seen."""

    __name__ = "stateful"

    def __init__(self):
        self.calls = 0

    def __call__(self, completions, token_entropies, **_):
        self.calls += 1
        return [self.calls * d + float(h.mean()) for d, h in zip(digits(completions), token_entropies, strict=True)]

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize("stop", [3, 4], ids=["inside_a_rollout", "between_rollouts"])
@pytest.mark.parametrize("controller", [ClipCov, KLCov])
def test_resuming_equals_not_stopping(tmp_path, stop, controller):
    schedule = {
        "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 8,
        "save_strategy": "steps", "save_steps": stop, "lr_scheduler_type": "constant",
    }  # fmt: skip

    def run():
        return trainer(tmp_path, Stateful(), controllers=[controller(fraction=0.05)], **schedule)

    whole = run()
    whole.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    assert same(parameters(whole), parameters(resumed))
    assert whole.reward_funcs[0].calls == resumed.reward_funcs[0].calls
    assert whole.counters.rows == resumed.counters.rows
    assert whole.counters.completion_tokens == resumed.counters.completion_tokens
    log = {e["step"]: e for e in whole.state.log_history if "reward" in e or "loss" in e}
    for entry in resumed.state.log_history:
        if entry["step"] > stop and "loss" in entry:
            name = f"{controller.name}/selected"
            assert entry[name] == log[entry["step"]][name]


def test_the_printed_table_of_a_rollout_survives_a_checkpoint_inside_it(tmp_path):
    """TRL prints and stores the latest rollout with every log row; a resumed run has not generated it."""
    options = {"steps_per_generation": 2, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def table(**how):
        trainer(tmp_path, log_completions=True, **options).train(**how)
        return pandas.read_parquet(tmp_path / "out" / "completions" / "completions_00002.parquet")

    whole = table()
    assert len(whole) == 8
    assert whole.equals(table(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1")))


class StopsAfter(TrainerCallback):
    """What a signal does to a run: it is saved and ends."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            control.should_training_stop = control.should_save = True


def test_a_run_that_is_stopped_within_a_pass_does_not_do_what_belongs_to_its_end(tmp_path):
    rows = prompts(4)
    options = {"max_steps": 6, "eval_strategy": "epoch", "train_dataset": rows, "eval_dataset": rows}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    stopped = trainer(tmp_path, **options)
    stopped.add_callback(StopsAfter())
    stopped.train()
    assert not [e for e in stopped.state.log_history if "eval_loss" in e]
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert same(parameters(whole), parameters(resumed))
    evaluations = [[e["step"] for e in run.state.log_history if "eval_loss" in e] for run in (whole, resumed)]
    assert evaluations == [[4, 6], [4, 6]]


def test_a_checkpoint_of_another_world_size_is_refused(tmp_path):
    save_state(tmp_path, 0, {"world_size": 2, "x": torch.ones(1)})
    with pytest.raises(ValueError, match="written by 2 processes and this run has 1; resume with 2"):
        load_state(tmp_path, 0, 1)


@pytest.mark.parametrize("part", ["micro_step", "buffered_rows", "controllers", "rewards"])
def test_a_checkpoint_without_a_part_of_the_run_is_refused(tmp_path, part):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    folder = tmp_path / "out" / "checkpoint-1"
    state = load_state(folder, 0, 1)
    del state[part]
    save_state(folder, 0, state)
    with pytest.raises(ValueError, match=f"checkpoint-1 holds no {part}, so the run would not go on as if"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_of_stock_trl_has_no_state(tmp_path):
    assert load_state(tmp_path, 0, 1) is None
