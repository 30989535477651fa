"""What each sampling rule draws from prompts that never change, and how soon it finds one that has changed.

64 prompts, of which 8 are always solved, 8 never, and 48 with chances spread evenly between 1/50 and 49/50. A rollout
is 8 prompts with 8 completions each; the course is a run's own (`entrl.curriculum.course`), completions are coin
tosses.

    share       draws of the solved, the impossible and the other prompts, beside 1/8, 1/8 and 3/4 of even draws
    relative    of one prompt: its draws over even draws; the least drawn of the 48, and the most drawn of all 64
    found       after half the rollouts the impossible prompts get a chance of 1/2: rollouts until one is first solved,
                median and largest over prompts and seeds; "never" counts those that were not

Skills: 8, each with one solved, one impossible and six other prompts; or one that the impossible prompts have to
themselves beside 7 of the others ("impossible apart"), also where the rest have chances of 3/4; or one for each prompt.
Tasks of the mixture: one of each of the three kinds. Losses for PreSelect: drawn at random, so what it keeps has
nothing to do with chances.

    python benchmarks/curriculum.py [--rollouts 1000] [--seeds 5] [--out result.json] [--plot result.svg]
"""

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from entrl.curriculum.band import Band
from entrl.curriculum.birdie import Birdie
from entrl.curriculum.course import Course
from entrl.curriculum.dart import Dart
from entrl.curriculum.preselect import PreSelect
from entrl.curriculum.rules import Rule
from entrl.curriculum.skills import Skills
from entrl.curriculum.uniform import Uniform
from entrl.report.drawing import Frame

PROMPTS, END, GROUP, BATCH = 64, 8, 8, 8
CHANCE = np.concatenate([np.ones(END), np.linspace(0.98, 0.02, PROMPTS - 2 * END), np.zeros(END)])
KINDS = {"solved": slice(0, END), "impossible": slice(PROMPTS - END, PROMPTS), "rest": slice(END, PROMPTS - END)}
RULES: dict[str, Callable[[], Rule]] = {
    "uniform": Uniform,
    "band": Band,
    "dart prop2diff": Dart,
    "dart prop2diff, by the largest": lambda: Dart(divide_by_max=True),
    "dart prop2diff, give_up: 0": lambda: Dart(give_up=0),
    "dart uniform": lambda: Dart(mode="uniform"),
    "dart uniform, give_up: 0": lambda: Dart(mode="uniform", give_up=0),
    "skills": Skills,
    "skills, impossible apart": lambda: Skills(column="apart"),
    "skills, impossible apart, give_up: 0": lambda: Skills(column="apart", give_up=0),
    "skills, one a prompt": lambda: Skills(column="single"),
    "skills, one a prompt, give_up: 0": lambda: Skills(column="single", give_up=0),
    "skills, the rest at 3/4": lambda: Skills(column="apart"),
    "skills, the rest at 3/4, give_up: 0": lambda: Skills(column="apart", give_up=0),
    "birdie": Birdie,
    "preselect": lambda: PreSelect(benchmark=list(range(6)), keep=0.25),
}
EASIER = CHANCE.copy()
EASIER[KINDS["rest"]] = 0.75
CHANCES = {name: EASIER for name in RULES if "3/4" in name}  # CHANCE for the others


class Rows:
    """As much of a data set as a course reads."""

    def __init__(self, seed: int) -> None:
        kind = np.full(PROMPTS, "rest", dtype=object)
        for name in ("solved", "impossible"):
            kind[KINDS[name]] = name
        self.columns: dict[str, list[Any]] = {
            "problem_id": [f"p{i}" for i in range(PROMPTS)],
            "prompt": [f"{i}?" for i in range(PROMPTS)],
            "skills": [[f"s{i % 8}"] for i in range(PROMPTS)],
            "apart": [["impossible"] if name == "impossible" else [f"s{i % 7}"] for i, name in enumerate(kind)],
            "single": [[f"s{i}"] for i in range(PROMPTS)],
            "task": kind.tolist(),
            "losses": np.random.default_rng(seed).normal(size=(PROMPTS, 6)).tolist(),
        }
        self.column_names = list(self.columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


def simulate(name: str, *, rollouts: int, seed: int) -> tuple[np.ndarray, list[int | None]]:
    """Draws of each prompt before the change, and for each impossible prompt the rollouts from it to its first pass."""
    course, rng = Course(RULES[name]()).bind(Rows(seed), seed=seed), np.random.default_rng([seed, 1])
    chance, draws = CHANCES.get(name, CHANCE).copy(), np.zeros(PROMPTS, dtype=int)
    found: dict[int, int] = {}
    half, number = rollouts // 2, 0
    for passed in range(-(-rollouts * BATCH // PROMPTS)):
        order = rng.permutation(PROMPTS).tolist()
        course.start_pass(passed)
        for place in range(PROMPTS // BATCH):
            if number == half:
                chance[KINDS["impossible"]] = 0.5
            chosen = course.prompts_of(place, order[place * BATCH : (place + 1) * BATCH])
            verdicts = rng.random((BATCH, GROUP)) < chance[chosen][:, None]
            course.record(np.repeat(chosen, GROUP).tolist(), verdicts.ravel().tolist(), group_size=GROUP, write=False)
            if number < half:
                draws[chosen] += 1
            for row, verdict in zip(chosen, verdicts, strict=True):
                if number >= half and row >= PROMPTS - END and verdict.any():
                    found.setdefault(row, number - half + 1)
            number += 1
    return draws, [found.get(row) for row in range(PROMPTS - END, PROMPTS)]


def measure(rule: str, *, rollouts: int, seeds: int) -> dict[str, Any]:
    runs = [simulate(rule, rollouts=rollouts, seed=seed) for seed in range(seeds)]
    relative = np.mean([draws / draws.mean() for draws, _ in runs], axis=0)
    waits = [wait for _, found in runs for wait in found]
    known = [wait for wait in waits if wait is not None]
    return {
        "share": {name: round(float(relative[rows].sum() / PROMPTS), 4) for name, rows in KINDS.items()},
        "relative": {
            "least of the rest": round(float(relative[KINDS["rest"]].min()), 3),
            "most": round(float(relative.max()), 3),
            "most of the solved": round(float(relative[KINDS["solved"]].max()), 3),
        },
        "found": {
            "median": median(known) if known else None,
            "largest": max(known, default=None),
            "never": len(waits) - len(known),
        },
        "draws_relative": [round(float(value), 3) for value in relative],
    }


STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#3a3835} .grid{stroke:#eceae6} .head{font-size:12px;font-weight:600} "
    ".zero{stroke:#8a8680;stroke-dasharray:4 3} .axis{stroke:#8a8680}"
)
COLOURS = {"solved": "#2a7a3f", "impossible": "#b3261e", "rest": "#3b6ea8"}
COLUMNS, WIDE, HIGH = 4, 250, 210


def plot(results: dict[str, Any]) -> str:
    """One frame for each rule: draws of a prompt over even draws, by its chance; dashed is even."""
    rows = -(-len(results) // COLUMNS)
    parts, top = [], max(max(result["draws_relative"]) for result in results.values())
    for i, (name, result) in enumerate(results.items()):
        frame = Frame(
            x=(-0.05, 1.05),
            y=(0.0, 1.05 * top),
            x_label="chance of a right answer",
            y_label="draws over even draws",
            label=name,
            width=WIDE - 10,
            height=HIGH - 30,
        )
        frame.level(1.0)
        for kind, where in KINDS.items():
            for chance, value in zip(CHANCES.get(name, CHANCE)[where], result["draws_relative"][where], strict=True):
                frame.dot(float(chance), value, COLOURS[kind], radius=2.5)
        x, y = i % COLUMNS * WIDE, 30 + i // COLUMNS * HIGH
        parts.append(f'<g transform="translate({x} {y})"><text class="head" x="8" y="8">{name}</text>')
        sized = frame.svg().replace("<svg ", f'<svg y="14" width="{frame.width}" height="{frame.height}" ', 1)
        parts.append(f"{sized}</g>")
    legend = "".join(
        f'<circle cx="{12 + 130 * i}" cy="14" r="4" fill="{COLOURS[kind]}"/>'
        f'<text x="{22 + 130 * i}" y="18">{text}</text>'
        for i, (kind, text) in enumerate({"solved": "solved", "rest": "between", "impossible": "impossible"}.items())
    )
    size = f'viewBox="0 0 {COLUMNS * WIDE} {40 + rows * HIGH}" width="{COLUMNS * WIDE}" height="{40 + rows * HIGH}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Draws of prompts by rule">'
    return f'{head}<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{legend}{"".join(parts)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description="What each sampling rule draws.")
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.rollouts < 2 or args.seeds < 1:
        parser.error(f"at least 2 rollouts and 1 seed, got {args.rollouts} and {args.seeds}")
    results = {name: measure(name, rollouts=args.rollouts, seeds=args.seeds) for name in RULES}
    for name, result in results.items():
        print(f"{name:40} share {result['share']}  {result['relative']}  found {result['found']}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    about = {"commit": commit, "rollouts": args.rollouts, "seeds": args.seeds, "floor": 0.1, "decay": 0.5}
    if args.out:
        args.out.write_text(json.dumps({**about, "rules": results}, indent=1) + "\n")
    if args.plot:
        args.plot.write_text(plot(results))


if __name__ == "__main__":
    main()
