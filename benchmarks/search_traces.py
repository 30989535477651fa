"""Search problems, lessons and verdicts a second, beside what the tiny reasoner samples on the same machine.

    python benchmarks/search_traces.py [--out benchmarks/search_traces.json]

problems   `load_task`: reasoning-gym's generators, the split, the rows
lessons    `trace_lesson`, each form
verdicts   `accuracy.score` on completions of which half are right
sampler    completions of `tiny-reasoner` to Countdown prompts, TOKENS tokens each, one batch at a time (`--no-sampler`)

One process, one thread. On a shared machine seconds alone say little: compare what stands in one file.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entrl_rewards.accuracy import Accuracy

from entrl.tasks import load_task
from entrl.traces import DropSpec, NoiseSpec, TraceSpec, problem_of, trace_lesson

ROOT = Path(__file__).parents[1]
PROBLEMS: dict[str, tuple[dict[str, Any], int]] = {
    "countdown, 3 numbers": ({"task": "countdown"}, 300),
    "countdown, 4 numbers to 100": ({"task": "countdown", "min_numbers": 4, "max_numbers": 4, "max_value": 100,
                                     "min_target": 100, "max_target": 999}, 100),
    "sudoku 4 x 4": ({"task": "sudoku"}, 300),
    "sudoku 9 x 9": ({"task": "sudoku", "side": 9}, 40),
}  # fmt: skip
FORMS = {
    "search": TraceSpec(form="search"),
    "detours k=3": TraceSpec(form="detours", k=3),
    "solution": TraceSpec(form="solution"),
    "search, dropped": TraceSpec(form="search", costs=True, drop=DropSpec(levels=[0.2, 0.2, 0.2, 0.2])),
    "search, static noise": TraceSpec(form="search", noise=NoiseSpec(kind="static", intensity=0.2)),
    "search, dynamic noise": TraceSpec(form="search", noise=NoiseSpec(kind="dynamic", intensity=0.2)),
}
VERDICTS = 20_000
BATCH, TOKENS = 64, 64  # completions at once, tokens of each


def rate(function: Callable[[], Any], count: int) -> tuple[dict[str, Any], Any]:
    """How fast, and what came of it."""
    began = time.perf_counter()
    made = function()
    seconds = time.perf_counter() - began
    return {"count": count, "seconds": round(seconds, 3), "per_second": round(count / seconds, 1)}, made


def lessons(rows: Sequence[Any], spec: TraceSpec) -> dict[str, Any]:
    """Lessons a second, mean characters of the trace, share of right answers."""
    problems, accuracy = [problem_of(row["verifier"]) for row in rows], Accuracy()
    asked = [(problem, row["problem_id"]) for problem, row in zip(problems, rows, strict=True)]
    found, made = rate(lambda: [trace_lesson(problem, spec, seed=seed) for problem, seed in asked], len(rows))
    columns = [[row[key] for row in rows] for key in ("answer", "verifier")]
    right = accuracy.score([lesson.answer for lesson in made], *columns)
    characters = sum(len(lesson.trace) for lesson in made) / len(made)
    return found | {"characters": round(characters, 1), "right": round(sum(map(bool, right)) / len(right), 3)}


def verdicts(rows: Any) -> dict[str, Any]:
    accuracy, picked = Accuracy(), [rows[i % len(rows)] for i in range(VERDICTS)]
    texts = [f"<think></think>{row['answer'] if i % 2 else row['answer'][::-1]}" for i, row in enumerate(picked)]
    golds, columns = [row["answer"] for row in picked], [row["verifier"] for row in picked]
    return rate(lambda: accuracy.score(texts, golds, columns), VERDICTS)[0]


def sampler(prompts: list[str]) -> dict[str, Any]:
    import torch

    from entrl.models.load import load_policy

    torch.set_num_threads(1)
    model, tokenizer = load_policy("tiny-reasoner", device="cpu")
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    asked = {"do_sample": True, "min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    return rate(lambda: model.generate(**batch, **asked), len(prompts))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    parser.add_argument("--no-sampler", action="store_true")
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT)
    load_task("sums", size=1)  # what is imported late
    entry: dict[str, Any] = {
        "commit": head.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "problems": {},
        "lessons": {},
        "verdicts": {},
    }
    for name, (task, count) in PROBLEMS.items():
        entry["problems"][name], rows = rate(lambda task=task, count=count: list(load_task(task, size=count)), count)
        entry["lessons"][name] = {form: lessons(rows, spec) for form, spec in FORMS.items()}
        entry["verdicts"][name] = verdicts(rows)
    if not args.no_sampler:
        prompts = list(load_task("countdown", size=BATCH)["prompt"])
        entry["sampler"] = sampler(prompts) | {"model": "tiny-reasoner", "tokens": TOKENS}
    print(text := json.dumps(entry, indent=1))
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
