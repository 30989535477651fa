"""C-IP against Information Pursuit where the answer model is over-confident: success, questions, coverage.

Needs no run: both policies play the same games over many tables, `games` about each, with the exact posterior at
`temperature` as the model (below 1: the ranking is right, the probabilities are not) and, as the control, the exact
posterior itself. One value per table; intervals are Student's t over tables.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from entrl.environments.loader import load_environment
from entrl.environments.play import play, values_of
from entrl.environments.pursuit import ConformalPursuit, InformationPursuit, exact_beliefs, pursuit_coverage
from entrl.stats.intervals import mean_interval
from entrl.stats.pairing import non_inferior, seed_differences
from entrl.tasks import load_task
from entrl_lab.replicate.folders import NotMeasured, TaskRuns

TITLE = "C-IP against IP with an over-confident answer model"
PAPER = (
    "C-IP against IP, 20 questions with Llama-3.1-8B, five runs: success 0.83 +- 0.05 against 0.65 +- 0.18 (open "
    "questions, free text), 0.83 against 0.71 (closed, free text), 0.37 against 0.31 and 0.29 against 0.29 (yes/no); "
    "alike on MediQ; coverage is not promised on histories that C-IP chose (arXiv 2507.03279, Tables 1-2, section F)."
)
POLICIES = {"ip": InformationPursuit, "c-ip": ConformalPursuit}


def analyse(
    runs: TaskRuns,
    *,
    tables: Sequence[int] = tuple(range(1, 17)),
    games: int = 50,
    temperature: float = 0.25,
    rows: int = 16,
    columns: int = 16,
    user_noise: float = 0.1,
    max_questions: int = 12,
    alpha: str = "0.1",
) -> dict[str, Any]:
    """tables: seeds of procedural tables, not of the training side. alpha: share of C-IP's sets that may miss."""
    if len(tables) < 2:
        raise NotMeasured(f"an interval needs two tables, got {list(tables)}")
    task = {"task": "twenty_questions", "user_noise": user_noise, "max_questions": max_questions}
    factory = load_environment("twenty_questions", {})
    values: dict[str, list[dict[str, float]]] = {}
    for seed in tables:
        table = {**task, "tables": f"procedural:rows={rows},columns={columns},seed={seed}"}
        games_of = list(load_task(table, split="test", size=games, seed=seed))
        for model, warmth in (("exact", 1.0), ("over-confident", temperature)):
            beliefs = functools.partial(exact_beliefs, temperature=warmth)
            for name, made in POLICIES.items():
                policy = made(beliefs=beliefs, seed=seed, **({"alpha": alpha} if made is ConformalPursuit else {}))
                values.setdefault(f"{name}, {model}", []).append(_one(policy, factory, games_of, alpha))
    differences = {
        model: _differences(values[f"ip, {model}"], values[f"c-ip, {model}"]) for model in ("exact", "over-confident")
    }
    means = {name: _means(found) for name, found in values.items()}
    return {
        "tables": list(tables),
        "games": games,
        "wanted_coverage": 1 - float(alpha),
        "margin": runs.margin,
        "values": values,
        "means": means,
        "c-ip_less_ip": differences,
        "saw": "; ".join(f"{name}: {_saw(found)}" for name, found in means.items()),
        "verdict": "; ".join(f"{model}: {_words(found, runs.margin)}" for model, found in differences.items()),
    }


def _one(policy: InformationPursuit, factory: Any, games: Sequence[Any], alpha: str) -> dict[str, float]:
    """The games of one table."""
    played = play(factory, games, policy)
    scores = [values_of(episode) for episode in played]
    coverage = pursuit_coverage(policy, factory, games, played, alpha=alpha)
    found = {name: sum(s[name] or 0.0 for s in scores) / len(scores) for name in ("success", "questions")}
    for kind in ("calibration-like", "self-chosen"):
        groups = coverage[kind].values()
        total = sum(g["n"] for g in groups)
        for name in ("coverage", "naive", "size"):
            found[f"{name}, {kind}"] = sum(g[name] * g["n"] for g in groups) / total
    return found


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: mean_interval([f[name] for f in found])._asdict() for name in found[0] if all(name in f for f in found)
    }


def _differences(ip: Sequence[Mapping[str, float]], cip: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: seed_differences([f[name] for f in ip], [f[name] for f in cip])._asdict()
        for name in ("success", "questions")
    }


def _saw(found: Mapping[str, Mapping[str, float]]) -> str:
    def share(name: str) -> str:
        return f"{100 * found[name]['mean']:.1f} [{100 * found[name]['lo']:.1f}, {100 * found[name]['hi']:.1f}]"

    asked = found["questions"]
    return (
        f"right {share('success')} %, {asked['mean']:.2f} [{asked['lo']:.2f}, {asked['hi']:.2f}] questions, "
        f"conformal coverage {share('coverage, calibration-like')} % of fresh histories and "
        f"{share('coverage, self-chosen')} % of its own "
        f"(the model's probabilities: {share('naive, calibration-like')} and {share('naive, self-chosen')})"
    )


def _words(found: Mapping[str, Mapping[str, float]], margin: float) -> str:
    right, asked = found["success"], found["questions"]
    if right["lo"] > 0:
        said = "C-IP is right more often"
    elif right["hi"] < 0:
        said = "C-IP is right less often"
    else:
        shown = non_inferior(right["mean"], right["lo"], margin)
        said = "success not told apart" + (", not inferior" if shown else "")
    said += f" ({100 * right['mean']:+.1f} [{100 * right['lo']:+.1f}, {100 * right['hi']:+.1f}] points)"
    return said + f", questions {asked['mean']:+.2f} [{asked['lo']:+.2f}, {asked['hi']:+.2f}]"
