"""What an overthinking base has to meet before any method runs: (a) to (h) of `recipes/overthinker/README.md`.

Completions are sampled by the evaluation's own writer, judged by the `accuracy` reward and read by the `pear` reward,
so lengths, phases and the penalty are those that training sees.

    entrl nursery --model tiny-overthinker --conditions FILE.json            what is not on record yet is measured
    entrl nursery --model tiny-overthinker --conditions FILE.json --run RUN  (d), from a run of plain GRPO
    entrl nursery --model tiny-overthinker --conditions FILE.json --records RUN   (f), (g) of another run's completions

    a accuracy   b slope   c length   d drift   e ends   f correlation   g answers   h split

Other weights under the same name are another round of calibration: the earlier rounds stay on record.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from entrl_rewards.accuracy import reward as accuracy
from entrl_rewards.groups import rank_correlations
from entrl_rewards.pear import phase_rewards
from entrl_rewards.pear import reward as pear

from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.scoring import tags_of
from entrl.evaluation.writing import Asked, Completion, Sampling, encode
from entrl.models.load import load_policy
from entrl.models.shipped import model_path
from entrl.settings.json_lines import json_lines
from entrl.settings.provenance import built_from
from entrl.stats.intervals import bootstrap_interval, wilson_interval
from entrl.stats.logistic import logistic_slope
from entrl.tasks import load_task
from entrl.tasks.additions import problem_key
from entrl.tasks.rechecks import needed_length, recheck_count
from entrl.tasks.traces import terms_of
from entrl_lab.nursery.overthinker import (
    LEAST_ACCURACY,
    LEAST_RATIO,
    MAX_NEW_TOKENS,
    MODELS,
    RL_PROBLEMS,
    TEST_PROBLEMS,
    OverthinkerConfig,
    lessons,
)
from entrl_lab.nursery.sft import sha256

GROUP = 8  # completions of a prompt that training compares
SAMPLES = 24  # of each of 202 problems: 4,848 samples, 606 groups
FLAT_GROUPS = 0.95
POINTS = 0.5  # of accuracy, per re-check
CORRELATION = {"tiny-overthinker": (0.5, 1.0), "overthinker-flat": (-0.1, 0.1)}
ANSWER_SHARE, ANSWER_SPREAD = 0.3, 0.05
DRIFT = 0.10  # share of the tokens that plain GRPO may take by itself


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One completion at temperature 1; entropies in nats."""

    problem: int
    group: int
    right: bool
    tokens: int
    rechecks: int
    truncated: bool
    h_think: float
    h_answer: float
    penalty: float


def sample(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    samples: int = SAMPLES,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    greedy: bool = True,
) -> tuple[list[Sampled], list[Completion]]:
    """`samples` completions a problem, cut into groups of eight, and the greedy ones."""
    sampling = Sampling(
        samples=samples, temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens, seed=seed, greedy=greedy
    )
    prompts = [encode(tokenizer, row["prompt"], {}) for row in rows]
    asked = [Asked(index=i, prompt_ids=ids) for i, ids in enumerate(prompts)]
    found, greedily = [], []
    for answered in TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=250).write(asked):
        found += _read(tokenizer, rows[answered.index], prompts[answered.index], answered.index, answered.drawn)
        greedily += [answered.greedy] if answered.greedy else []
    return found, greedily


def _read(
    tokenizer: Any, row: Mapping[str, Any], prompt: list[int], index: int, drawn: list[Completion]
) -> list[Sampled]:
    signals = {
        "token_entropies": [one.entropies for one in drawn],
        "think_tags": tags_of(tokenizer, "<think>", "</think>"),
        "prompt_ids": [prompt] * len(drawn),
    }
    phases = pear.phases([one.ids for one in drawn], signals)
    right = accuracy.score([one.text for one in drawn], [row["answer"]] * len(drawn), [row["verifier"]] * len(drawn))
    right_B = torch.tensor([verdict == 1 for verdict in right])
    penalty_B = phase_rewards(phases.h_think, phases.h_answer, right_B).penalty
    return [
        Sampled(
            problem=index,
            group=index * (len(drawn) // GROUP) + place // GROUP,
            right=bool(right_B[place]),
            tokens=len(one.ids),
            rechecks=recheck_count(one.text),
            truncated=one.truncated,
            h_think=float(phases.h_think[place]),
            h_answer=float(phases.h_answer[place]),
            penalty=float(penalty_B[place]),
        )
        for place, one in enumerate(drawn)
    ]


def accuracy_condition(rows: Sequence[Sampled]) -> dict[str, Any]:
    """(a)"""
    right, groups = sum(row.right for row in rows), grouped(rows)
    flat = fmean(len({row.right for row in group}) == 1 for group in groups)
    share = right / len(rows)
    return {
        "samples": len(rows),
        "sampled_accuracy": share,
        "interval": wilson_interval(right, len(rows)),
        "groups": len(groups),
        "flat_groups": flat,
        "holds": share >= LEAST_ACCURACY and flat >= FLAT_GROUPS,
    }


def slope_condition(rows: Sequence[Sampled]) -> dict[str, Any]:
    """(b); with few errors the log odds are hardly told, the points they stand for are."""
    fit = logistic_slope([row.rechecks for row in rows], [row.right for row in rows])
    points, lo, hi = fit.points
    return {
        "errors": sum(not row.right for row in rows),
        "log_odds": {"slope": fit.slope, "lo": fit.lo, "hi": fit.hi},
        "points_a_recheck": {"slope": points, "lo": lo, "hi": hi},
        "holds": lo >= -POINTS and hi <= POINTS,
    }


def length_condition(rows: Sequence[Sampled], prompts: Sequence[str]) -> dict[str, Any]:
    """(c)"""
    needed = fmean(needed_length(prompts[row.problem]) for row in rows)
    tokens = fmean(row.tokens for row in rows)
    return {
        "tokens": tokens,
        "needed": needed,
        "ratio": tokens / needed,
        "rechecks": fmean(row.rechecks for row in rows),
        "holds": tokens >= LEAST_RATIO * needed,
    }


def end_condition(rows: Sequence[Sampled], greedy: Sequence[Completion]) -> dict[str, Any]:
    """(e)"""
    sampled, cut = sum(row.truncated for row in rows), sum(one.truncated for one in greedy)
    return {
        "greedy_tokens": fmean(len(one.ids) for one in greedy),
        "greedy_rechecks": fmean(recheck_count(one.text) for one in greedy),
        "greedy_truncated": cut,
        "sampled_truncated": sampled,
        "holds": not cut and not sampled,
    }


def correlation_condition(rows: Sequence[Sampled], bounds: tuple[float, float]) -> dict[str, Any]:
    """(f): the mean over groups of Spearman's rho of length and penalty among right rows."""
    found = correlations(rows)
    mean = fmean(found) if found else float("nan")
    return {
        "rho": mean,
        "interval": bootstrap_interval(np.array(found)) if len(found) > 1 else None,
        "groups": len(found),
        "groups_without_spread": len(grouped(rows)) - len(found),
        "bounds": bounds,
        "holds": bounds[0] <= mean <= bounds[1],
    }


def correlations(rows: Sequence[Sampled]) -> list[float]:
    """Spearman's rho of each group in which both length and penalty of right rows differ."""
    groups = grouped(rows)
    group_B = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    in_order = [row for group in groups for row in group]
    tokens_B = torch.tensor([row.tokens for row in in_order])
    penalty_B = torch.tensor([row.penalty for row in in_order], dtype=torch.float64)
    return rank_correlations(tokens_B, penalty_B, group_B, torch.tensor([row.right for row in in_order]))


def answer_condition(rows: Sequence[Sampled]) -> dict[str, Any]:
    """(g)"""
    think, answer = fmean(row.h_think for row in rows), fmean(row.h_answer for row in rows)
    spread = fmean(pstdev([row.h_answer for row in group]) for group in grouped(rows))
    return {
        "h_think": think,
        "h_answer": answer,
        "share": answer / think,
        "spread_within_groups": spread,
        "spread_share": spread / answer,
        "penalty": fmean(row.penalty for row in rows),
        "penalty_zero": fmean(row.penalty == 0 for row in rows),
        "holds": answer >= ANSWER_SHARE * think and spread >= ANSWER_SPREAD * answer,
    }


def split_condition(config: OverthinkerConfig) -> dict[str, Any]:
    """(h): the lessons that were taught, everything RL is asked, and the test side share no problem."""
    test = _keys(load_task("additions", split="test", size=TEST_PROBLEMS)["prompt"])
    parts: Any = lessons(config)  # a data set's rows are typed as lists
    taught = _keys([row["prompt"] for part in parts for row in part])  # a part may be empty
    trained = _keys(load_task({"task": "additions", "part": "rl"}, size=RL_PROBLEMS)["prompt"])
    shared = {"lessons": len(test & taught), "rl": len(test & trained), "rl_lessons": len(trained & taught)}
    return {"test_problems": TEST_PROBLEMS, "shared": shared, "holds": not any(shared.values())}


def _keys(prompts: Sequence[str]) -> set[str]:
    return {problem_key(tuple(terms_of(prompt))) for prompt in set(prompts)}


def drift(run: Path) -> dict[str, Any]:
    """(d), from the folder of a run of plain GRPO with evaluations before and after."""
    before, after = (json.loads((run / f"eval_{when}.json").read_text()) for when in ("before", "after"))
    tokens = [one["mean_length_sampled"] for one in (before, after)]
    change = tokens[1] / tokens[0] - 1
    return {
        "tokens_before": tokens[0],
        "tokens_after": tokens[1],
        "change": change,
        "sampled_accuracy": [one["sampled_accuracy"] for one in (before, after)],
        "holds": change > -DRIFT,
    }


def grouped(rows: Sequence[Sampled]) -> list[list[Sampled]]:
    """Rows by group, in the order of the groups."""
    found: dict[int, list[Sampled]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return [found[group] for group in sorted(found)]


def main(argv: list[str] | None = None, *, name: str) -> int:
    """The command; returns 1 when a condition fails."""
    parser = argparse.ArgumentParser(prog=f"entrl nursery --model {name}", description="Conditions (a) to (h).")
    parser.add_argument(
        "--conditions", type=Path, required=True, metavar="FILE.json", help="the record, kept up to date"
    )
    parser.add_argument("--base", default=name, help="the model's folder (default: the shipped one)")
    parser.add_argument("--run", type=Path, help="the folder of a finished run of plain GRPO on it")
    parser.add_argument("--records", type=Path, metavar="RUN", help="instead: (f) and (g) of another run's completions")
    options = parser.parse_args(argv)
    if options.records:
        return recorded(options.records, options.conditions)
    return measure(name, options.base, options.conditions, run=options.run)


def measure(name: str, base: str, path: Path, *, run: Path | None = None) -> int:
    """Write what is not on record yet into `path` and print it; 1 where a condition fails."""
    folder = Path(model_path(base))
    weights = sha256(folder / "model.safetensors")
    entry = _kept(path).get(name, {})
    if entry.get("weights_sha256") != weights:
        earlier = [*entry.get("earlier_rounds", []), *([_without_rounds(entry)] if entry else [])]
        entry = {"weights_sha256": weights, **_measured(name, folder)}
        entry |= {"earlier_rounds": earlier} if earlier else {}
    if run is not None:
        entry["conditions"]["d"] = drift(run)
    _keep(path, {name: entry})
    for letter, found in sorted(entry["conditions"].items()):
        print(letter, "holds" if found["holds"] else "FAILS", json.dumps(found))
    return int(not all(found["holds"] for found in entry["conditions"].values()))


def recorded(run: Path, path: Path) -> int:
    """(f) and (g) of the completions that a run logged while it trained, one group a step: which twin is it like?"""
    rows = [_from_line(line) for _, line in json_lines(run / "completions.jsonl")]
    found = {
        "groups_logged": len(grouped(rows)),
        "rewarded": fmean(row.right for row in rows),
        "tokens": fmean(row.tokens for row in rows),
        "f": {k: v for k, v in correlation_condition(rows, (-1.0, 1.0)).items() if k not in ("holds", "bounds")},
        "g": {k: v for k, v in answer_condition(rows).items() if k != "holds"},
    }
    _keep(path, {"records": {**_kept(path).get("records", {}), f"{run.parent.name}/{run.name}": found}})
    print(json.dumps(found))
    return 0


def _from_line(line: Mapping[str, Any]) -> Sampled:
    """A line of `completions.jsonl`; right is what earned anything."""
    nats = [(h, phase) for h, phase in zip(line["entropies"], line["phases"], strict=True)]
    think = [h for h, phase in nats if phase in ("open", "think")]
    answer = [h for h, phase in nats if phase == "answer"]
    means = [fmean(part) if part else 0.0 for part in (think, answer)]
    right_B = torch.tensor([line["reward"] > 0])
    penalty_B = phase_rewards(torch.tensor(means[:1]), torch.tensor(means[1:]), right_B).penalty
    return Sampled(
        problem=line["step"],
        group=line["step"],
        right=bool(right_B[0]),
        tokens=len(nats),
        rechecks=0,
        truncated=line["truncated"],
        h_think=means[0],
        h_answer=means[1],
        penalty=float(penalty_B[0]),
    )


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _keep(path: Path, entries: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**_kept(path), **entries}, indent=2) + "\n")


def _without_rounds(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "earlier_rounds"}


def _measured(name: str, folder: Path) -> dict[str, Any]:
    model, tokenizer = load_policy(str(folder), dtype="float32")
    problems = [dict(row) for row in load_task("additions", split="test", size=TEST_PROBLEMS)]
    rows, greedy = sample(model, tokenizer, problems)
    manifest = json.loads((folder / "manifest.json").read_text())["config"]
    manifest.pop("start", None)  # of a time when the twin went on from the other
    return {
        "commit": built_from(Path(__file__).parent, ".", "../../entrl/tasks"),
        "conditions": {
            "a": accuracy_condition(rows),
            "b": slope_condition(rows),
            "c": length_condition(rows, [row["prompt"] for row in problems]),
            "e": end_condition(rows, greedy),
            "f": correlation_condition(rows, CORRELATION[name]),
            "g": answer_condition(rows),
            "h": split_condition(OverthinkerConfig(**{**manifest, "style": MODELS[name]})),
        },
    }
