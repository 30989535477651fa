"""Preferences between questions: a better and a worse one after the same prefix.

    chosen   = the candidate with the largest reward, the first of equals
    rejected = candidates worth at least `margin` bits less, `per_prefix` of them at random

Source:  Mazzaccara et al. (arXiv 2406.17453): pairs of a question of high and one of low expected gain, then DPO
Differs: there a language model answers its own questions and gains are estimates; here they are exact. The margin,
    how many pairs a prefix gives and that repeats are among the rejected is ours
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrl.environments.play import Message
from entrl.teach.offline.candidates import Candidate, Group


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """Which pairs are made."""

    margin: float = 0.1  # bits between chosen and rejected, at least
    per_prefix: int = 1  # pairs of each prefix, at most
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.margin < float("inf"):
            raise ValueError(f"pairs.margin must be > 0 bits, got {self.margin}; equals have no better one")
        if self.per_prefix < 1:
            raise ValueError(f"pairs.per_prefix must be >= 1, got {self.per_prefix}")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row for a preference trainer; messages, as TRL's DPOTrainer reads conversations with tools."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]]
    margin: float  # bits
    chosen_kind: str
    rejected_kind: str


def make_pairs(groups: Sequence[Group], spec: PairSpec) -> list[Pair]:
    """Pairs of all groups in their order. Raises ValueError where no pair is far enough apart."""
    found = []
    for number, group in enumerate(groups):
        best = max(group.candidates, key=lambda candidate: candidate.reward)
        worse = [candidate for candidate in group.candidates if best.reward - candidate.reward >= spec.margin]
        order = np.random.default_rng([spec.seed, number]).permutation(len(worse))
        found += [_pair(group, best, worse[i]) for i in order[: spec.per_prefix]]
    if not found:
        widest = max((group.spread for group in groups), default=0.0)
        raise ValueError(
            f"no two candidates of a prefix are {spec.margin} bits apart, the widest of {len(groups)} prefixes is "
            f"{widest:.3g}; lower pairs.margin, or take more candidates"
        )
    return found


def _pair(group: Group, best: Candidate, worse: Candidate) -> Pair:
    return Pair(
        prompt=group.prompt,
        chosen=[best.message],
        rejected=[worse.message],
        tools=group.tools,
        margin=best.reward - worse.reward,
        chosen_kind=best.kind,
        rejected_kind=worse.kind,
    )


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    path.write_text("".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in pairs), encoding="utf-8")
