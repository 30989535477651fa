"""Is it shorter at equal accuracy? Pairs of arms, paired over seeds, from the numbers of finished runs.

    tokens      of a sampled completion, the arm less the other      shorter   the 95 % interval lies below 0
    accuracy    of samples, the same                                 held      the 95 % interval lies above -margin

`claims` are asked in their order, each only where those before it hold (shorter, and accuracy held): a fixed sequence
needs no adjustment. `others` are told with the same intervals, not adjusted, and claim nothing. A pair is the same in
length where its whole interval of tokens lies within `same` of the other arm's mean.

Source:  Student's t over paired seeds; the fixed-sequence procedure is a textbook closed test
Needs:   numbers of runs, not their folders
"""

from collections.abc import Mapping, Sequence
from typing import Any

from entrl.stats.intervals import interval_entry
from entrl.stats.pairing import non_inferior, paired_p, seed_differences
from entrl_lab.replicate.folders import NotMeasured, TaskRuns

TITLE = "Shorter at equal accuracy"
PAPER = (
    "PEAR cuts 31 to 59 % of the tokens at less than a point of accuracy (paper notes, several models); retrained by "
    "others on DeepMath it cut 16 to 40 % (one run each)."
)
TOKENS, ACCURACY = "mean_length_sampled", "sampled_accuracy"
Numbers = Mapping[int, Mapping[str, float]]  # seed -> the numbers of a run


def analyse(
    runs: TaskRuns, *, claims: list[list[str]] | None = None, others: list[list[str]] | None = None, same: float = 0.1
) -> dict[str, Any]:
    """claims, others: pairs [arm, other]. same: share of the other's tokens within which lengths count as the same."""
    claims, others = claims or [], others or []
    pairs = {f"{a} - {b}": _pair(runs, a, b, same) for a, b in [*claims, *others]}
    if all(pair is None for pair in pairs.values()):
        raise NotMeasured("no pair of arms has two finished seeds in common")
    asked, holding = [f"{a} - {b}" for a, b in claims], True
    for name in asked:
        pair = pairs[name]
        holding = holding and pair is not None and pair["shorter"] and pair["held"]
        if pair is not None:
            pair["claim"] = holding
    measured = {name: pair for name, pair in pairs.items() if pair is not None}
    return {
        "reference": runs.reference,
        "margin": runs.margin,
        "arms": {name: _arm(own) for name, own in runs.numbers.items() if own},
        "pairs": measured,
        "not_measured": [name for name in pairs if name not in measured],
        "saw": "; ".join(f"{name}: {_told(pair)}" for name, pair in measured.items()),
        "verdict": "; ".join(_verdict(name, pairs[name]) for name in asked or pairs),
    }


def _arm(own: Numbers) -> dict[str, Any]:
    """Means over seeds of every number that all of them have, with t intervals."""
    rows = list(own.values())
    shared = [key for key in rows[0] if all(key in row for row in rows)]
    return {"seeds": len(rows), "numbers": {key: interval_entry([row[key] for row in rows]) for key in shared}}


def _pair(runs: TaskRuns, arm: str, other: str, same: float) -> dict[str, Any] | None:
    """None with fewer than two seeds in common."""
    a, b = runs.numbers.get(other, {}), runs.numbers.get(arm, {})
    common = [seed for seed in a if seed in b]
    if len(common) < 2:
        return None
    first = a[common[0]]
    keys = [key for key in first if all(key in row for seed in common for row in (a[seed], b[seed]))]
    found = {key: _difference([a[s][key] for s in common], [b[s][key] for s in common]) for key in keys}
    tokens, accuracy = found[TOKENS], found[ACCURACY]
    mean = sum(a[s][TOKENS] for s in common) / len(common)
    return {
        "arm": arm,
        "other": other,
        "seeds": len(common),
        "other_tokens": mean,
        "differences": found,
        "p_tokens": paired_p([a[s][TOKENS] for s in common], [b[s][TOKENS] for s in common]),
        "shorter": tokens["hi"] < 0,
        "held": non_inferior(accuracy["mean"], accuracy["lo"], runs.margin),
        "same": max(abs(tokens["lo"]), abs(tokens["hi"])) <= same * mean,
    }


def _difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    return dict(seed_differences(a, b)._asdict())


def _told(pair: Mapping[str, Any]) -> str:
    tokens, accuracy = pair["differences"][TOKENS], pair["differences"][ACCURACY]
    points = {key: 100 * value for key, value in accuracy.items()}
    return (
        f"{tokens['mean']:+.1f} [{tokens['lo']:+.1f}, {tokens['hi']:+.1f}] tokens of {pair['other_tokens']:.1f}, "
        f"accuracy {points['mean']:+.2f} [{points['lo']:+.2f}, {points['hi']:+.2f}] points, {pair['seeds']} seeds"
    )


def _verdict(name: str, pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return f"{name}: not measured"
    if pair.get("claim"):
        return f"{name}: shorter at held accuracy"
    length = "shorter" if pair["shorter"] else "longer" if pair["differences"][TOKENS]["lo"] > 0 else "not told apart"
    length += ", the same length within the bound" if pair["same"] else ""
    words = f"{name}: {length}, accuracy {'held' if pair['held'] else 'not shown to be held'}"
    refused = "claim" in pair and pair["shorter"] and pair["held"]
    return f"{words} (asked only if the claim before it held)" if refused else words
