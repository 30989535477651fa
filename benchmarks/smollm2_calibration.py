"""Where a cold start should stop: one of its file, evaluated on the way.

    python benchmarks/smollm2_calibration.py recipes/smollm2/cold-start.yaml --steps 160 --every 20 --out rows.jsonl

The file is taught for --steps steps (its learning rate must be constant, so that a shorter run is a prefix of this
one); every --every steps test problems of its task are sampled and a JSON row is written: accuracy, pass@8, missing
tags, lengths, entropies. With --keep the adapters of those steps are saved as well.

recipes/smollm2/calibration.json was measured by a script of the same loop before `entrl cold-start` knew adapters;
losses of the first 20 steps of the two agree in every printed digit.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from entrl.evaluation.answers import evaluate
from entrl.models.load import load_model
from entrl.tasks import load_task
from entrl.teach.cold_start import ColdStart, load_cold_start
from entrl.teach.cold_start.answers import collect
from entrl.teach.cold_start.run import teach

NAMES = ("sampled_accuracy", "sampled_accuracy_ci", "greedy_accuracy", "pass_at_k", "missing_close_rate")
MORE = ("truncation_rate", "mean_length_sampled", "entropy")


class Look(TrainerCallback):
    """Samples the test problems every so many steps."""

    def __init__(self, options: argparse.Namespace, start: ColdStart, tokenizer: Any) -> None:
        lessons = start.answers.lessons
        assert lessons is not None  # main
        task = {"task": lessons.task, **(lessons.args or {})}
        self.options, self.tokenizer = options, tokenizer
        self.problems = load_task(task, split="test", size=options.problems, seed=7)  # runs are evaluated with seed 1

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.options.every:
            return
        how: dict[str, Any] = {"samples": 8, "k": (1, 8), "batch_size": 128, "seed": 1}
        how["max_new_tokens"] = self.options.max_new_tokens
        found = evaluate(model, self.tokenizer, self.problems, progress=False, **how)
        row = {"step": state.global_step, "problems": len(self.problems), "samples": 8}
        row |= {name: found[name] for name in (*NAMES, *MORE)}
        with self.options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.options.keep is not None:
            model.save_pretrained(self.options.keep / str(state.global_step))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    start = load_cold_start(options.recipe, [f"sft.max_steps={options.steps}"])
    if start.answers.lessons is None or start.answers.lessons.task is None:
        raise ValueError(f"{options.recipe} has no lessons of a named task, so there is nothing to test on")
    if not str(start.sft.get("lr_scheduler_type", "linear")).startswith("constant"):
        raise ValueError("the learning rate is not constant: a run that stops earlier would be another run")
    torch.set_num_threads(start.threads or torch.get_num_threads())
    lora = start.build_lora()
    model, tokenizer = load_model(start.model, lora)
    rows = collect(start.answers, None, (model, tokenizer), base=start.base, say=print)
    teach(model, tokenizer, rows, start, lora=lora, callbacks=[Look(options, start, tokenizer)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
