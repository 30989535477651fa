"""Answers of an evaluation by transformers: the writer of today against that of another commit, in one process.

    python benchmarks/evaluation_writer.py --old 4172815 [--out benchmarks/evaluation_writer.json]

64 problems of the tiny reasoner, a greedy and 8 drawn answers each, up to 96 tokens, batches of 64; arms in the order
old, new, new, old. `ratio` is new / old of tokens per second, geometric mean over pairs with Student's t interval: by
the wall clock, and by the process's own time, which other work on the machine does not enter.
"""

import argparse
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.writing import Asked, Sampling, encode
from entrl.models.load import load_policy
from entrl.settings.provenance import entrl_commit
from entrl.stats.pairing import seed_ratio
from entrl.tasks import load_task

PROBLEMS, SAMPLES, TOKENS, ROWS = 64, 8, 96, 64
OLD = "src/entrl/evaluation/writer.py"


def old_writer(commit: str) -> Any:
    """The module as it was; both versions use the rest of the package as it is."""
    source = subprocess.run(["git", "show", f"{commit}:{OLD}"], capture_output=True, text=True, check=True).stdout
    module = types.ModuleType("old_writer")
    sys.modules["old_writer"] = module
    exec(compile(source, OLD, "exec"), module.__dict__)
    return module


def arms(old: Any) -> dict[str, Callable[[int], int]]:
    """Arm -> a run with a seed; gives the number of tokens written."""
    model, tokenizer = load_policy("tiny-reasoner", device="cpu")
    dataset = load_task("sums", split="test", size=PROBLEMS, seed=1)
    prompts = [encode(tokenizer, prompt, {}) for prompt in dataset["prompt"]]

    def before(seed: int) -> int:
        with old.as_sampler(model, tokenizer, seed), Progress(disable=True) as bar:
            writer = old.Writer(model, tokenizer, TOKENS, ROWS, bar)
            greedy = writer.write("greedy", prompts, [len(ids) for ids in prompts])
            hints = [len(ids) + len(g.ids) for ids, g in zip(prompts, greedy, strict=True) for _ in range(SAMPLES)]
            rows = [ids for ids in prompts for _ in range(SAMPLES)]
            drawn = writer.write("sampling", rows, hints, temperature=1.0)
        return sum(len(c.ids) for c in [*greedy, *drawn])

    def today(seed: int) -> int:
        sampling = Sampling(samples=SAMPLES, temperature=1.0, top_p=1.0, max_new_tokens=TOKENS, seed=seed)
        writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=ROWS)
        order = sorted(range(PROBLEMS), key=lambda i: (-len(prompts[i]), i))
        found = list(writer.write([Asked(index=i, prompt_ids=prompts[i]) for i in order]))
        return sum(len(c.ids) for a in found for c in [*([a.greedy] if a.greedy else []), *a.drawn])

    return {"old": before, "new": today}


def measure(run: Callable[[int], int], seed: int) -> dict[str, float]:
    wall, own = time.perf_counter(), time.process_time()
    tokens = run(seed)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return {"tokens": tokens, "tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, metavar="COMMIT")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = arms(old_writer(options.old))
    for run in runs.values():
        run(0)
    found: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for pair in range(options.pairs):
        for arm in ("old", "new") if pair % 2 == 0 else ("new", "old"):
            found[arm].append(measure(runs[arm], pair + 1))
            print(arm, {k: round(v) for k, v in found[arm][-1].items()}, flush=True)
    ratios = {
        clock: list(seed_ratio(*([r[clock] for r in found[arm]] for arm in ("old", "new"))))
        for clock in ("tokens_per_s", "tokens_per_cpu_s")
    }
    content = {
        "date": date.today().isoformat(),
        "commit": entrl_commit(),
        "old": options.old,
        "threads": 1,
        "problems": PROBLEMS,
        "samples": SAMPLES,
        "max_new_tokens": TOKENS,
        "rows": ROWS,
        "ratio new/old": ratios,
        "pairs": found,
    }
    print(json.dumps(content["ratio new/old"], indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
