"""Real games of twenty questions with scripted players, the same however the batch is cut: one process or two.

TRL's tool loop, the environments, the reward and the credit per turn are the real ones; only what the model writes is
given, keyed by the prompt and by the rollout's place in its group.

As a script (`accelerate launch ... tests/inquiry_runs.py OUT`) it trains on two ranks and writes what each saw to OUT.
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch
from entrl_rewards.information_gain import InformationGain
from tiny_model import options, tiny_model
from window_runs import Gradients, one_window

from entrl.controllers.kl_cov import KLCov
from entrl.environments import load_environment
from entrl.tasks import load_task
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl_lab.nursery.inquirer import InquirerConfig
from entrl_lab.nursery.inquirer.build import tokenizer_of
from entrl_lab.nursery.inquirer.tokenizer import CALL_END, END, call_opening

TURNS = 5


def script(prompt: str, k: int) -> list[str]:
    """What the k-th player of a prompt writes: questions, now and then nonsense, mostly a name at the end."""
    draw = random.Random(f"{prompt}|{k}")
    rows = [line.partition(":") for line in prompt.splitlines() if ": " in line and not line.startswith("Tools")]
    words = sorted({word for _, _, own in rows for word in own.replace("<|im_end|>", "").split()})
    lines = []
    for _ in range(draw.randint(1, TURNS)):
        word = draw.choice([*words, "nosuchword"])
        lines.append(call_opening("ask", "attribute") + word + CALL_END + END)
    if draw.random() < 0.8:
        lines.append(call_opening("submit", "answer") + draw.choice(rows)[0] + CALL_END + END)
    return lines


class Played(EntropyGRPOTrainer):
    """Writes the scripts, and keeps what each rollout gave its rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict] = []
        self.playing: list[list[str]] = []
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        """A first call has every row of this process, the later ones those that called a tool, in their order."""
        texts = [self._tokenizer.decode(ids) for ids in prompt_ids]
        turns = [text.count("<|im_start|>assistant\n") - 1 for text in texts]
        if turns[0] == 0:
            first = self.accelerator.process_index * len(texts)
            self.playing = [script(text, (first + i) % self.num_generations) for i, text in enumerate(texts)]
            going = range(len(texts))
        else:
            going = [i for i, lines in enumerate(self.playing) if turns[0] <= len(lines)]
            assert len(going) == len(texts)
        lines = [self.playing[i] for i in going]
        said = [own[turn] if turn < len(own) else END for own, turn in zip(lines, turns, strict=True)]
        return [self._tokenizer.encode(text, add_special_tokens=False) for text in said], None

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        output = super()._generate_and_score_completions(inputs)
        kept = ("advantages", "completion_ids", "completion_mask", "tool_mask")
        self.seen.append({"rows": [row["problem_id"] for row in inputs], **{k: output[k].clone() for k in kept}})
        return output


def inquiry_run(folder: Path, *, rows: int, slices: int = 1, world: int = 1) -> dict:
    """Two optimiser steps over one window of games."""
    gradients = Gradients()
    tokenizer = tokenizer_of(InquirerConfig())
    window = one_window(rows=rows, slices=slices, steps=2, world=world)
    del window["rollout_func"]
    model = tiny_model(vocabulary=tokenizer)
    model.config.max_position_embeddings = 4096
    reward = InformationGain(credit="expected", pay="turn", question_cost=0.05, invalid_penalty=0.1)
    args = options(folder, loss_type="dapo", max_completion_length=200, turn_credit="return_to_go", **window)
    args.temperature = 1.0
    run = Played(
        model,
        [reward],
        args=args,
        train_dataset=load_task({"task": "twenty_questions", "rows": 6, "columns": 6}, split="train", size=12, seed=0),
        processing_class=tokenizer,
        environment_factory=load_environment("twenty_questions", {"name_ruled_out": True}),
        controllers=[KLCov(fraction=0.05)],
    )
    run.add_callback(gradients)
    run.train()
    logs = [e for e in run.state.log_history if "loss" in e]
    kept = ("turns/", "kl_cov/", "information_gain/", "reward", "tools/")
    return {
        "gradients": gradients.vectors,
        "seen": run.seen,
        "metrics": [{k: v for k, v in e.items() if k.startswith(kept)} for e in logs],
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    # Six rows a process in groups of four: the second group lies on both.
    torch.save(inquiry_run(out, rows=6, world=2), out / f"rank{torch.distributed.get_rank()}.pt")
