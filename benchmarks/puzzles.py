"""Rows a processor second that the puzzle tasks make, and answers that their verifiers judge.

    rows      `load_task`, the first search for a plan included
    answers   `Accuracy.score`, every other answer right, the others without their last move (or step); no child process
    bombs     megacharacters of answers made to be slow: brackets, lists that do not close, a million moves

    python benchmarks/puzzles.py [--rounds 3] [--rows 1000] [--out benchmarks/puzzles.json]

What an answer costs is set against its characters: a sampler has to write them, at some thousand tokens a second of
one GPU and one to four characters a token. Everything runs in this process on one thread, so processor time is counted
and clock time kept beside it; on a shared machine the latter says little.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entrl_rewards.accuracy import Accuracy

from entrl.tasks import load_task
from entrl.verify.judge import check

ROOT = Path(__file__).parents[1]
TASKS: dict[str, dict[str, Any]] = {
    "hanoi 3": {"task": "hanoi", "n": 3},
    "hanoi 8": {"task": "hanoi", "n": 8},
    "checkers 3": {"task": "checkers", "n": 3},
    "checkers 6": {"task": "checkers", "n": 6},
    "river 3": {"task": "river", "n": 3},
    "river 6, boat 4": {"task": "river", "n": 6, "boat": 4},
    "blocks 5": {"task": "blocks", "n": 5},
    "blocks 6, first": {"task": "blocks", "n": 6, "goal": "first"},
    "graph 2 x 2": {"task": "graph_path", "lookahead": 2},
    "graph 8 x 2": {"task": "graph_path", "lookahead": 8},
    "graph 8 x 8": {"task": "graph_path", "lookahead": 8, "branching": 8},
    "graph 32 x 4": {"task": "graph_path", "lookahead": 32, "branching": 4},
    "proof 8 x 2": {"task": "graph_path", "lookahead": 8, "mode": "proof"},
    "worded 8 x 2": {"task": "graph_path", "lookahead": 8, "mode": "worded"},
}
BOMB = 1_000_000  # characters
BOMBS = {
    "brackets": "[" * BOMB,
    "open lists": "[[1, A, B], " * (BOMB // 12),
    "spaces": ("[" + " " * 1000) * (BOMB // 1000),
    "moves": "[" + "[1, A, B], [1, B, A], " * (BOMB // 22) + "[1, A, B]]",
}


def timed(work: Callable[[], Any], rounds: int = 1) -> tuple[float, float]:
    """Processor and clock seconds, medians."""
    processor, clock = [], []
    for _ in range(rounds):
        before, begun = time.process_time(), time.perf_counter()
        work()
        processor.append(time.process_time() - before)
        clock.append(time.perf_counter() - begun)
    return statistics.median(processor), statistics.median(clock)


def measured(spec: dict[str, Any], number: int, rounds: int) -> dict[str, Any]:
    made = timed(lambda: load_task(spec, size=number))
    rows = load_task(spec, size=number)
    golds, verifiers = rows["answer"], rows["verifier"]
    answers = [gold if i % 2 == 0 else shortened(gold) for i, gold in enumerate(golds)]
    accuracy = Accuracy()
    judged = timed(lambda: accuracy.score(answers, golds, verifiers), rounds)
    characters = sum(map(len, answers))
    return {
        "rows_per_processor_second": round(number / made[0], 1),
        "rows_per_second": round(number / made[1], 1),
        "answers_per_processor_second": round(number / judged[0], 1),
        "answers_per_second": round(number / judged[1], 1),
        "characters_per_answer": round(characters / number, 1),
        "characters_per_processor_second": round(characters / judged[0]),
        "right": sum(filter(None, accuracy.score(answers, golds, verifiers))),
    }


def shortened(gold: str) -> str:
    """Without its last move, step or letter."""
    return gold[: gold.rindex(",")] + "]" * (1 + ("[[" in gold)) if "," in gold else gold[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT)
    hanoi = json.loads(load_task("hanoi", size=1)["verifier"][0])
    found = {
        "commit": head.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rounds": args.rounds,
        "rows": args.rows,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "tasks": {name: measured(spec, args.rows, args.rounds) for name, spec in TASKS.items()},
        "bombs_megacharacters_per_processor_second": {
            name: round(len(text) / 1e6 / timed(lambda t=text: check("puzzle", t, "", hanoi), args.rounds)[0], 2)
            for name, text in BOMBS.items()
        },
        "load_after": [round(load, 2) for load in os.getloadavg()],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
