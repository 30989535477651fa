"""A run whose prompts are hopeless, solved or in between, filtered: what each rank trained on.

As a script (`accelerate launch ... tests/filter_runs.py OUT`) it writes what each of two processes saw to OUT.
"""

import sys
from pathlib import Path

import torch
from tiny_model import tiny_model, trainer
from window_runs import fixed_rollout

from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

EASY, HARD, EITHER = range(3)


def level(prompt: str) -> int:
    """Two prompts in three are not worth training on."""
    return int(prompt.split("+")[0]) % 3


def accuracy(prompts, completion_ids, **_):
    """Solved prompts are right, hopeless ones wrong, the others right in three completions of four."""
    known = {EASY: lambda ids: True, HARD: lambda ids: False, EITHER: lambda ids: sum(ids) % 4 > 0}
    return [float(known[level(p)](ids)) for p, ids in zip(prompts, completion_ids, strict=True)]


class Kept(EntropyGRPOTrainer):
    """Notes each rollout as the rest of the trainer gets it, and the prompts of each draw."""

    def __init__(self, *args, **kwargs):
        self.rollouts, self.draws = [], []
        super().__init__(*args, **kwargs)

    def _generate(self, prompts):
        self.draws.append(list(prompts))
        return super()._generate(prompts)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.rollouts.append({k: v.clone() for k, v in output.items()})
        return output

    def prompts_of(self, output) -> list[str]:
        rows = zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        return [self._tokenizer.decode(ids[mask.bool()]) for ids, mask in rows]


def filtered_run(folder: Path, *, world: int = 1, **options):
    """Two rollouts of four groups of four a rank, unless the options say otherwise."""
    defaults = {
        "model": tiny_model(),
        "per_device_train_batch_size": 16,
        "max_steps": 2,
        "filter_on": "accuracy",
        "rollout_func": fixed_rollout,
        "expected_world_size": world,
        "expected_backend": "gloo" if world > 1 else None,
        "ddp_find_unused_parameters": False,
    }
    rewards = options.pop("rewards", accuracy)
    run = trainer(folder, rewards, cls=Kept, **defaults | options)
    return run


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    run = filtered_run(out, world=2)
    run.train()
    seen = {
        "prompts": [run.prompts_of(o) for o in run.rollouts],
        "rollouts": run.rollouts,
        "draws": run.draws,
        "log": [{k: v for k, v in e.items() if k.startswith("filter/")} for e in run.state.log_history if "loss" in e],
    }
    torch.save(seen, out / f"rank{torch.distributed.get_rank()}.pt")
