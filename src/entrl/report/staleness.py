"""The staleness table of an asynchronous run: entropy and the gap between trainer and sampler, by versions of age.

A token's age is how many versions the policy had moved on, when it was trained, from the one that wrote it. At age 0
trainer and sampler are one policy in two engines, so what they disagree about there is numerics; what older tokens add
is the policy's own movement.

Needs: metrics `staleness/<age>/...` of `EntropyAsyncGRPOTrainer`; runs of other trainers have none
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from entrl.settings.json_lines import is_number

METRIC = re.compile(r"staleness/(\d+|unknown)/(\w+)")
UNKNOWN = -1  # sorts last all the same, see `staleness_rows`


class StalenessRow(NamedTuple):
    """One age over the whole run; means over tokens, nats. None where no token of the age had the number."""

    age: int  # versions; UNKNOWN where no single version wrote the token
    tokens: int
    share: float  # of the tokens trained
    entropy: float | None  # of the trainer's policy, when it trained the tokens
    sampler_entropy: float | None  # of the sampler's, when it drew them
    entropy_change: float | None  # the first less the second, where both are known
    log_ratio: float | None  # trainer's log-prob less the sampler's
    abs_log_ratio: float | None


MEANS = ("entropy", "sampler_entropy", "entropy_change", "log_ratio", "abs_log_ratio")


def staleness_rows(train: Sequence[dict[str, Any]]) -> list[StalenessRow]:
    """Ages in order, the unknown last; empty for a run without them.

    Logged means are weighed by the tokens logged beside them. A logging window's tokens with a sampler's entropy are
    taken to be all of the age or none, which they are unless the server changed while the run went on.
    """
    sums: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    weights: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in train:
        found: dict[int, dict[str, float]] = defaultdict(dict)
        for name, value in row.items():
            match = METRIC.fullmatch(name)
            if match and is_number(value):
                age, what = match.groups()
                found[UNKNOWN if age == "unknown" else int(age)][what] = float(value)
        for age, values in found.items():
            tokens = values.get("tokens_total", 0.0)
            sums[age]["tokens"] += tokens
            for name in MEANS:
                if name in values:
                    sums[age][name] += tokens * values[name]
                    weights[age][name] += tokens
    total = sum(s["tokens"] for s in sums.values())
    order = sorted(sums, key=lambda age: (age == UNKNOWN, age))
    return [_row(age, sums[age], weights[age], total) for age in order if sums[age]["tokens"]]


def _row(age: int, sums: dict[str, float], weights: dict[str, float], total: float) -> StalenessRow:
    means = {name: sums[name] / weights[name] if weights.get(name) else None for name in MEANS}
    return StalenessRow(age=age, tokens=round(sums["tokens"]), share=sums["tokens"] / total, **means)


def staleness_table(train: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """`staleness_rows` as text for a page or a terminal; column -> cell, empty where there is nothing."""

    def nats(value: float | None, *, sign: bool = False) -> str:
        return "" if value is None else f"{value:{'+' if sign else ''}.4g}".replace("-", "−")

    return [
        {
            "Versions old": "unknown" if r.age == UNKNOWN else str(r.age),
            "Tokens": f"{r.tokens:,}",
            "Share": f"{r.share:.0%}",
            "Entropy when sampled": nats(r.sampler_entropy),
            "Entropy when trained": nats(r.entropy),
            "Change": nats(r.entropy_change, sign=True),
            "Mean log-ratio": nats(r.log_ratio, sign=True),
            "Mean |log-ratio|": nats(r.abs_log_ratio),
        }
        for r in staleness_rows(train)
    ]
