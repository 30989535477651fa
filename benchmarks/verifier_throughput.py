"""Items a second that the verifiers judge, with warm child processes.

    corpus     the mathematics of tests/data/verdict_corpus.json, repeated to about 2,000 items
    integers   2,000 whole numbers in a box against whole numbers

    python benchmarks/verifier_throughput.py [--rounds 3] [--workers 2] [--record before]

Only `Accuracy` is imported, so the same script measures any state of the code. Clock time on a shared machine says
little alone: the load average before and after each round is kept beside it, and the median of the rounds is shown.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from entrl_rewards.accuracy import Accuracy

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_suffix(".json")
ITEMS = 2_000
TIMEOUT_S = 60.0  # no item may end early: a killed child would be measured too


def corpus() -> tuple[list[str], list[str]]:
    rows = json.loads((ROOT / "tests" / "data" / "verdict_corpus.json").read_text(encoding="utf-8"))
    rows = list(itertools.islice(itertools.cycle([r for r in rows if r["kind"] == "math"]), ITEMS))
    return [r["text"] for r in rows], [r["gold"] for r in rows]


def integers() -> tuple[list[str], list[str]]:
    """Every other one right."""
    return [rf"so \boxed{{{n + n % 2}}}" for n in range(ITEMS)], [str(n) for n in range(ITEMS)]


def measured(accuracy: Accuracy, texts: list[str], golds: list[str], rounds: int) -> dict[str, Any]:
    accuracy.score(texts[:64], golds[:64])  # the children start and import
    seconds, loads, unverified = [], [], 0
    for _ in range(rounds):
        before, start = os.getloadavg()[0], time.perf_counter()
        scores = accuracy.score(texts, golds)
        seconds.append(round(time.perf_counter() - start, 3))
        loads.append([round(load, 2) for load in (before, os.getloadavg()[0])])
        unverified = sum(s is None for s in scores)
    rate = round(len(texts) / statistics.median(seconds), 1)
    return {"items": len(texts), "items_per_second": rate, "seconds": seconds, "load": loads, "unverified": unverified}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", metavar="NAME", help=f"keep the result under this name in {RESULT.name}")
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT)
    accuracy = Accuracy(workers=args.workers, timeout_s=TIMEOUT_S)
    entry = {
        "commit": head.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "workers": args.workers,
        "corpus": measured(accuracy, *corpus(), args.rounds),
        "integers": measured(accuracy, *integers(), args.rounds),
    }
    print(json.dumps(entry, indent=1))
    if args.record:
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps(kept | {args.record: entry}, indent=1) + "\n")


if __name__ == "__main__":
    main()
