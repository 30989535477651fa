"""Tokens per second of an evaluation: by vLLM, by transformers' generate, and as it was before both were one interface.

    engine        entrl.evaluation.engine, an engine of our own that runs already; its start is timed by itself
    transformers  entrl.evaluation.generation, batches of --rows
    before        the batched writer of commit --before, greedy first and then the samples, batches of --rows

    python benchmarks/evaluation_throughput.py --model tiny-reasoner --task sums [--before COMMIT] [--out result.json]

The same problems in every arm, arms in rotation, one warm-up of each that is not counted. A token is one that stands in
an answer, its end token included. Processor seconds are of all processes an arm uses: on a shared machine they say
more than the clock. Tokens differ between arms by the draw alone.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.progress import Progress

from entrl.evaluation.engine import open_engine
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.writing import Asked, Sampling, Writer, encode
from entrl.models.load import load_policy
from entrl.settings.provenance import entrl_commit
from entrl.tasks import load_task

REPOSITORY = Path(__file__).parents[1]
OLD = "src/entrl/evaluation/writer.py"


def tokens_of(writer: Writer, asked: list[Asked]) -> int:
    found = list(writer.write(asked))
    return sum(len(c.ids) for a in found for c in [*([a.greedy] if a.greedy else []), *a.drawn])


@contextlib.contextmanager
def old_way(commit: str, policy: Any, sampling: Sampling, rows: int) -> Iterator[Callable[[list[Asked]], int]]:
    source = subprocess.run(
        ["git", "show", f"{commit}:{OLD}"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "old_writer.py"
        file.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("old_writer", file)
        assert spec is not None
        assert spec.loader is not None
        old = importlib.util.module_from_spec(spec)
        sys.modules["old_writer"] = old  # its dataclasses look there
        spec.loader.exec_module(old)

        def run(asked: list[Asked]) -> int:
            prompts = [a.prompt_ids for a in asked]
            with old.as_sampler(*policy, sampling.seed), Progress(disable=True) as bar:
                writer = old.Writer(*policy, sampling.max_new_tokens, rows, bar)
                greedy = writer.write("", prompts, [len(ids) for ids in prompts])
                hints = [
                    len(i) + len(g.ids) for i, g in zip(prompts, greedy, strict=True) for _ in range(sampling.samples)
                ]
                every = [ids for ids in prompts for _ in range(sampling.samples)]
                drawn = writer.write("", every, hints, temperature=sampling.temperature, top_p=sampling.top_p)
            return sum(len(c.ids) for c in [*greedy, *drawn])

        yield run


def processor_seconds() -> float:
    """Of this process and those below it, ended ones included."""
    me = psutil.Process()
    total = sum(me.cpu_times()[:4])
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:2])
    return total


def timed(arm: Callable[[list[Asked]], int], asked: list[Asked]) -> dict[str, float]:
    wall, processor = time.perf_counter(), processor_seconds()
    tokens = arm(asked)
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - wall,
        "processor_seconds": processor_seconds() - processor,
        "load": os.getloadavg()[0],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    sampling = Sampling(
        samples=options.samples, temperature=1.0, top_p=1.0, max_new_tokens=options.max_new_tokens, seed=0
    )
    policy = load_policy(options.model)
    task: dict[str, Any] = {"task": options.task, **json.loads(options.task_args)}
    dataset = load_task(task, split="test", size=options.size, seed=0)  # type: ignore[arg-type]
    asked = [Asked(index=i, prompt_ids=encode(policy[1], p, {})) for i, p in enumerate(dataset["prompt"])]
    by_hf = TransformersWriter(model=policy[0], tokenizer=policy[1], sampling=sampling, rows=options.rows)
    with contextlib.ExitStack() as stack:
        arms: dict[str, Callable[[list[Asked]], int]] = {"transformers": lambda a: tokens_of(by_hf, a)}
        engine = stack.enter_context(open_engine(options.model, sampling=sampling, tokenizer=policy[1]))
        arms["engine"] = lambda a: tokens_of(engine, a)
        if options.before:
            arms["before"] = stack.enter_context(old_way(options.before, policy, sampling, options.rows))
        started = time.perf_counter()
        next(iter(engine.write(asked[:1])))
        start = time.perf_counter() - started
        for name in arms:
            timed(arms[name], asked[: max(1, len(asked) // 8)])
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        names = list(arms)
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                rounds[name].append(timed(arms[name], asked))
                print(name, rounds[name][-1], flush=True)
    return {
        "commit": entrl_commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "engine_start_seconds": start,
        "arms": {
            name: {
                "tokens_per_second": statistics.median(r["tokens"] / r["seconds"] for r in rows),
                "tokens_per_processor_second": statistics.median(r["tokens"] / r["processor_seconds"] for r in rows),
                "rounds": rows,
            }
            for name, rows in rounds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-reasoner")
    parser.add_argument("--task", default="sums")
    parser.add_argument("--task-args", default="{}", help="JSON")
    parser.add_argument("--size", type=int, default=200, help="problems")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="of a batch of transformers'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help=f"a commit that has {OLD}")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options)
    text = json.dumps(result, indent=2, default=str)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
