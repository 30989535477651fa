"""What independent slots cost on the diagram task, against the exact joint.

    choice      the greedy policy with the one belief and with the other, on the same rows at the same budget: slots
                right, exact matches, questions
    payment     the dialogues of the factored policy, replayed under the joint: the gains a reward would be paid by the
                factored belief, less those by the joint (bits per dialogue, > 0: overpaid)

Replayed answers are the same, for an environment draws them by (row, slot).

Source:  method card information-gain, sections 1 (factored beliefs) and 10.2; the comparison is ours
Needs:   numpy
"""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from entrl.environments.diagram import DiagramShort
from entrl.environments.diagram_worlds import find_world
from entrl.environments.play import Episode, play
from entrl.environments.policies import GreedyExact
from entrl.stats.intervals import bootstrap_interval
from entrl.tasks import load_task

CHOICE = {"slots right": "score", "exact match": "correct", "questions": "questions"}  # what -> field of an episode
OVERPAID = "overpaid bits"


def independence_cost(
    *, budget: int, size: int = 100, seed: int = 0, environment: Mapping[str, Any] | None = None, **task: Any
) -> dict[str, Any]:
    """Both comparisons over `size` test rows of the diagram task with these options, each as mean, lo, hi, n.

    environment: constructor arguments other than `belief`.
    """
    rows: list[Any] = list(
        load_task({"task": "diagram", "max_questions": budget, **task}, split="test", size=size, seed=seed)
    )
    factored = partial(DiagramShort, **(environment or {}), belief="factored")
    exact = partial(DiagramShort, **(environment or {}), belief="exact")
    by_slots, by_joint = (play(made, rows, GreedyExact()) for made in (factored, exact))
    replayed = [_gains(exact(), row, episode) for row, episode in zip(rows, by_slots, strict=True)]
    claimed = [sum(episode.gains) for episode in by_slots]
    found: dict[str, Any] = {
        "budget": budget,
        "rows": size,
        "dependence_bits": find_world(rows[0]["table_id"]).dependence_bits(),
        "h0": {"factored": fmean(e.h0 for e in by_slots), "exact": fmean(e.h0 for e in by_joint)},
        "other questions": fmean(a.asked != b.asked for a, b in zip(by_slots, by_joint, strict=True)),
    }
    for what, field in CHOICE.items():
        a, b = ([float(getattr(e, field)) for e in played] for played in (by_slots, by_joint))
        found[what] = {"factored": fmean(a), "exact": fmean(b), **_mean([y - x for x, y in zip(a, b, strict=True)])}
    found[OVERPAID] = {
        "factored": fmean(claimed),
        "exact": fmean(replayed),
        **_mean([x - y for x, y in zip(claimed, replayed, strict=True)]),
    }
    return found


def _gains(environment: DiagramShort, row: Mapping[str, Any], episode: Episode) -> float:
    """Bits that the questions of a dialogue told by another belief."""
    environment.reset(**row)
    for slot, _ in episode.asked:
        environment.ask(slot)
    return sum(event.step.realised for event in environment._events if event.step is not None)


def _mean(values: Sequence[float]) -> dict[str, float]:
    lo, hi = bootstrap_interval(np.array(values), seed=0)
    return {"diff": fmean(values), "lo": lo, "hi": hi}
