"""What the length target of an adaptive cold start changes: the same pool, the same steps, with and without it.

    python benchmarks/cold_starts.py [--seeds 1 2 3]

One pool of lessons for all (recipes/ares/cold-start.yaml), its pass rates measured once with the vanilla start. Each
seed teaches the tiny reasoner twice: `adaptive` takes the answers nearest the length target, `control` takes at
random; both take equally many from every bracket of the pass rate. A seed decides ties, what is taken at random and
the order of SFT. Accuracy and length of sampled answers, per number of terms, on test problems that nothing teaches.
Intervals are over problems of one seed, and over seeds from three on; both paired. Needs
runs/ares/start (recipes/ares/cold-start-vanilla.yaml).
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console

from entrl.evaluation.answers import evaluate
from entrl.models.load import load_policy
from entrl.runs.folder import append_lines, write_json
from entrl.settings.provenance import git_state
from entrl.stats.intervals import bootstrap_interval
from entrl.stats.pairing import seed_differences
from entrl.tasks import load_task
from entrl.teach.cold_start import cold_start, load_cold_start
from entrl.teach.cold_start.answers import collect

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "ares" / "cold-start.yaml"
TERMS = [2, 4, 6]
ARMS = {"control": ["curation.length_target=false"], "adaptive": []}


def measure(model: str) -> dict[str, dict[str, list[float]]]:
    """ "accuracy" and "length" -> number of terms -> per problem: share of 8 samples that is right, mean length."""
    problems = load_task({"task": "sums", "terms": TERMS}, split="test", size=300, seed=1)
    found = evaluate(*load_policy(model), problems, samples=8, max_new_tokens=160, batch_size=400, progress=False)
    by_terms = {str(n): [p for p in found["problems"] if p["level"] == str(n)] for n in TERMS}
    return {
        "accuracy": {n: [p["n_correct"] / p["n_samples"] for p in mine] for n, mine in by_terms.items()},
        "length": {n: [p["mean_length"] for p in mine] for n, mine in by_terms.items()},
    }


def means(measured: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    return {f"{what}/{n}": fmean(v) for what, by_terms in measured.items() for n, v in by_terms.items()}


def write_pool(folder: Path, vanilla: str) -> Path:
    """Every lesson with the pass rate of its problem; a pool that is there is used again."""
    file = folder / "pool.jsonl"
    if not file.exists():
        pool = load_cold_start(RECIPE, [f"answers.pass_rate.policy={vanilla}"])
        append_lines(file, collect(pool.answers, None, load_policy(pool.model.path), base=pool.base, say=print))
    return file


def one_seed(seed: int, pool: Path, console: Console) -> dict[str, Any]:
    """What was taught and measured in both arms, and their difference; models that are there are used again."""
    arms, measured = {}, {}
    for arm, own in ARMS.items():
        answers = [f'answers={{"file": "{pool}"}}', f"curation.seed={seed}", f"sft.seed={seed}"]
        start = load_cold_start(RECIPE, [*answers, *own, f"out={pool.with_name(f'{arm}-{seed}')}"])
        made = cold_start(start, console=console)
        report = json.loads((start.folder / "report.json").read_text(encoding="utf-8"))
        measured[arm] = measure(str(start.model_dir))
        arms[arm] = {"taught": report["levels"], "rows": made["rows"], "steps": made["steps"], **means(measured[arm])}
        console.print(seed, arm, {k: round(v, 3) for k, v in means(measured[arm]).items()})
    return {**arms, "adaptive minus control, over problems": over_problems(measured)}


def over_problems(measured: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, Any]:
    """Paired differences on the same test problems, with bootstrap intervals: how SFT itself varies is not in them."""
    found = {}
    for what, by_terms in measured["control"].items():
        for n, control in by_terms.items():
            gaps = np.array(measured["adaptive"][what][n]) - np.array(control)
            low, high = bootstrap_interval(gaps)
            found[f"{what}/{n}"] = {"mean": float(gaps.mean()), "lo": low, "hi": high}
    return found


def over_seeds(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Paired over seeds, with Student's t intervals; None with fewer than three seeds, which say nothing."""
    if len(by_seed) < 3:
        return None
    names = [f"{what}/{n}" for what in ("accuracy", "length") for n in TERMS]
    arms = {name: [[found[arm][name] for found in by_seed.values()] for arm in ARMS] for name in names}
    return {name: seed_differences(control, adaptive)._asdict() for name, (control, adaptive) in arms.items()}


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
        result = {
            "git": git_state(ROOT),
            "seeds": options.seeds,
            "vanilla": means(measure(options.vanilla)),
            "by seed": by_seed,
            "adaptive minus control, over seeds": over_seeds(by_seed),
        }
        write_json(options.out, result)


if __name__ == "__main__":
    main()
