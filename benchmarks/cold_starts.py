"""What the length target of an adaptive cold start changes: the same pool, the same steps, with and without it.

    python benchmarks/cold_starts.py [--seeds 1 2 3]

One pool of lessons for all (recipes/ares/cold-start.yaml), its pass rates measured once with the vanilla start. Each
seed teaches the tiny reasoner twice: `adaptive` takes the answers nearest the length target, `control` takes at
random; both take equally many from every bracket of the pass rate. A seed decides ties, what is taken at random and
the order of SFT. Accuracy and length of sampled answers, per number of terms, on test problems that nothing teaches.
Intervals are over seeds, paired. Needs runs/ares/start (recipes/ares/cold-start-vanilla.yaml).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from entrl.cold_start import cold_start, load_cold_start
from entrl.cold_start.answers import collect
from entrl.evaluate import evaluate, load_policy
from entrl.intervals import seed_differences
from entrl.run_folder import append_lines, git_state, write_json
from entrl.tasks import load_task

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "ares" / "cold-start.yaml"
TERMS = [2, 4, 6]
ARMS = {"control": ["curation.length_target=false"], "adaptive": []}


def measure(model: str) -> dict[str, float]:
    """Sampled accuracy and mean length per number of terms, 8 samples of 100 problems each."""
    problems = load_task({"task": "sums", "terms": TERMS}, split="test", size=300, seed=1)
    found = evaluate(*load_policy(model), problems, samples=8, max_new_tokens=160, batch_size=400, progress=False)
    numbers = {"entropy": found["entropy"]["all"], "truncated": found["truncation_rate"]}
    for terms in TERMS:
        mine = [p for p in found["problems"] if p["level"] == str(terms)]
        numbers[f"accuracy/{terms}"] = sum(p["n_correct"] for p in mine) / sum(p["n_samples"] for p in mine)
        numbers[f"length/{terms}"] = sum(p["mean_length"] for p in mine) / len(mine)
    return numbers


def write_pool(folder: Path, vanilla: str) -> Path:
    """Every lesson with the pass rate of its problem; a pool that is there is used again."""
    file = folder / "pool.jsonl"
    if not file.exists():
        pool = load_cold_start(RECIPE, [f"answers.pass_rate.policy={vanilla}"])
        append_lines(file, collect(pool.answers, None, load_policy(pool.model.path), base=pool.base, say=print))
    return file


def one_seed(seed: int, pool: Path, console: Console) -> dict[str, Any]:
    """arm -> numbers, and what was taught; models that are there are used again."""
    found = {}
    for arm, own in ARMS.items():
        answers = [f'answers={{"file": "{pool}"}}', f"curation.seed={seed}", f"sft.seed={seed}"]
        start = load_cold_start(RECIPE, [*answers, *own, f"out={pool.with_name(f'{arm}-{seed}')}"])
        made = cold_start(start, console=console)
        report = json.loads((start.folder / "report.json").read_text(encoding="utf-8"))
        found[arm] = {
            **measure(str(start.model_dir)),
            "rows": made["rows"],
            "steps": made["steps"],
            "seconds": made["seconds"],
            "taught": report["levels"],
        }
        console.print(seed, arm, {k: round(v, 3) for k, v in found[arm].items() if k[:3] in ("acc", "len")})
    return found


def summarise(values: dict[str, dict[int, dict[str, Any]]], seeds: Sequence[int]) -> dict[str, Any]:
    names = [k for k in values["adaptive"][seeds[0]] if k.startswith(("accuracy", "length", "entropy"))]
    return {
        name: seed_differences(*([values[arm][s][name] for s in seeds] for arm in ("control", "adaptive")))._asdict()
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--vanilla", default="runs/ares/start/model", help="the policy that measures pass rates")
    parser.add_argument("--folder", type=Path, help="keep the pool and the models here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        pool = write_pool(folder, options.vanilla)
        by_seed = {seed: one_seed(seed, pool, console) for seed in options.seeds}
        values = {arm: {seed: by_seed[seed][arm] for seed in options.seeds} for arm in ARMS}
        write_json(
            options.out,
            {
                "git": git_state(ROOT),
                "seeds": options.seeds,
                "vanilla": measure(options.vanilla),
                "values": values,
                "adaptive minus control": summarise(values, options.seeds),
            },
        )


if __name__ == "__main__":
    main()
