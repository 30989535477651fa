"""Dialogues that are the same in every cut of the batch, with rewards of their turns: one process or two.

As a script (`accelerate launch ... tests/turn_runs.py OUT`) it trains on two ranks and writes what each saw to OUT.
"""

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tiny_model import trainer
from window_runs import Gradients, one_window

from entrl.controllers.kl_cov import KLCov
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl_lab.nursery.tokenizer import character_tokenizer

WHOLE = {"turn_credit": "return_to_go", "turn_credit_weight": 0.7}


def dialogue(prompt: str, k: int) -> tuple[list[int], list[int], list[float]]:
    """The k-th dialogue of a prompt: ids, 1 where the model wrote, one reward per turn. The last one has no answer."""
    tokenizer, draw = character_tokenizer(), random.Random(f"{prompt}|{k}")
    ids: list[int] = []
    mask: list[int] = []
    rewards = []
    for _ in range(draw.randint(1, 3)):
        for written, length in ((1, draw.randint(1, 4)), (0, draw.randint(1, 3))):
            ids += [draw.randrange(5, len(tokenizer)) for _ in range(length)]
            mask += [written] * length
        rewards.append(draw.uniform(-1, 1))
    if draw.random() < 0.7:
        ids, mask, rewards = [*ids, tokenizer.eos_token_id], [*mask, 1], [*rewards, 0.0]
    return ids, mask, rewards


def dialogues(prompts: list, run) -> dict:
    # Rows go on from one process to the next: the first prompt here may have had rollouts on the one before.
    seen: Counter[str] = Counter({prompts[0]: run.accelerator.process_index * len(prompts) % run.num_generations})
    made = []
    for prompt in prompts:
        made.append(dialogue(prompt, seen[prompt]))
        seen[prompt] += 1
    tokenizer = character_tokenizer()
    return {
        "prompt_ids": [tokenizer.encode(p) for p in prompts],
        "completion_ids": [ids for ids, _, _ in made],
        "logprobs": None,
        "env_mask": [mask for _, mask, _ in made],
    }


class TurnReward:
    """An outcome, and the rewards of the turns, found again by the ids."""

    __name__ = "turn_reward"
    published_columns = ("turn_rewards",)

    def __init__(self) -> None:
        self.row_columns: dict[str, list] = {}

    def __call__(self, prompts: list, completion_ids: list, **_: object) -> list[float]:
        known = {tuple(ids): rewards for p in set(prompts) for ids, _, rewards in (dialogue(p, k) for k in range(8))}
        self.row_columns["turn_rewards"] = [torch.tensor(known[tuple(ids)]) for ids in completion_ids]
        return [float(len(ids) % 3) for ids in completion_ids]


class Seen(EntropyGRPOTrainer):
    """Keeps what each rollout gave its rows."""

    def __init__(self, *args, **kwargs) -> None:
        self.seen: list[dict] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.seen.append(
            {
                "prompts": [row["prompt"] for row in inputs],
                **{k: output[k].clone() for k in ("advantages", "completion_ids", "completion_mask", "tool_mask")},
            }
        )
        return output


def turn_run(folder: Path, *, rows: int, slices: int, world: int = 1, controllers: Any = None, **options) -> dict:
    """Two optimiser steps over one window of dialogues; controllers: None = KL-Cov."""
    gradients = Gradients()
    settings = WHOLE | options
    reward = settings.pop("reward", None) or TurnReward()
    window = one_window(rows=rows, slices=slices, steps=2, world=world)
    window["rollout_func"] = settings.pop("rollout_func", dialogues)
    run = trainer(
        folder,
        reward,
        cls=settings.pop("cls", Seen),
        controllers=[KLCov(fraction=0.05)] if controllers is None else controllers,
        **{"loss_type": "dapo", "max_completion_length": 64, **window, **settings},
    )
    run.add_callback(gradients)
    run.train()
    parameters = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    logs = [e for e in run.state.log_history if "loss" in e]
    return {
        "gradients": gradients.vectors,
        "seen": getattr(run, "seen", None),
        "parameters": parameters,
        "metrics": [{k: v for k, v in e.items() if k.startswith(("turns/", "kl_cov/"))} for e in logs],
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    # Six rows a process in groups of four: the second group lies on both.
    result = turn_run(out, rows=6, slices=1, world=2)
    torch.save(result, out / f"rank{torch.distributed.get_rank()}.pt")
