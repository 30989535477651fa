"""The ARES reward in real steps on fixed completions, one process or two, groups that lie on both included.

As a script (`accelerate launch ... tests/ares_runs.py OUT`) it runs with two processes and writes what each rank saw.
"""

import sys
from pathlib import Path

import torch
from entrl_rewards.hierarchical_entropy import HierarchicalEntropy
from tiny_model import trainer
from transformers import TrainerCallback
from window_runs import completion

from entrl_lab.nursery.tokenizer import character_tokenizer

GROUP, ROWS = 8, 24  # three groups; with two processes of twelve rows the second one lies on both
MODES = ("fixed", "code", "paper")


def enough_digits(completions, **_):
    """A verdict that differs from group to group and inside groups."""
    return [float(sum(c.isdigit() for c in text) >= 2) for text in completions]


def dealt_rollout(prompts: list, run) -> dict:
    """The completion of a row follows from its place over all ranks."""
    first = run.accelerator.process_index * len(prompts)
    tokenizer = character_tokenizer()
    return {
        "prompt_ids": [tokenizer.encode(p) for p in prompts],
        "completion_ids": [completion(p, (first + i) % GROUP) for i, p in enumerate(prompts)],
        "logprobs": None,
    }


class States(TrainerCallback):
    """The reward's state after every step."""

    def __init__(self, reward):
        self.reward, self.seen = reward, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.reward.state_dict())


def ares_run(folder: Path, *, mode: str, world: int = 1) -> dict:
    """Three rollouts without a change of the policy: state after each, every reward, every difficulty."""
    reward = HierarchicalEntropy(mode=mode, window=2, correctness=enough_digits)
    states = States(reward)
    run = trainer(
        folder,
        reward,
        rollout_func=dealt_rollout,
        num_generations=GROUP,
        per_device_train_batch_size=ROWS // world,
        max_steps=3,
        learning_rate=0.0,
        expected_world_size=world,
        expected_backend="gloo" if world > 1 else None,
        ddp_find_unused_parameters=False,
    )
    run.add_callback(states)
    run.train()
    rows = [e for e in run.state.log_history if "ares/threshold" in e]
    return {
        "states": states.seen,
        "rewards": list(run._logs["rewards"]["hierarchical_entropy"]),
        "metrics": [{k: v for k, v in e.items() if k.startswith("ares/")} for e in rows],
        "buckets": reward.row_columns["difficulty"],
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    results = {mode: ares_run(out, mode=mode, world=2) for mode in MODES}
    torch.save(results, out / f"rank{torch.distributed.get_rank()}.pt")
