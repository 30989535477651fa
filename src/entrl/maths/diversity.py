"""How different the completions of one prompt are from each other: sequence-level diversity, over token ids.

    distinct_n     = number of different n-grams / number of n-grams, over all completions of a group
    edit_distance  = mean over pairs of Levenshtein(a, b) / max(|a|, |b|)
    unique         = number of different completions / number of completions

Beside the entropy per token, because the two can part: a policy that draws its plan with the first token and is then
certain has little entropy per token and groups full of different answers; one that flips between two spellings in
every sentence has much and says the same thing each time.

Source:  distinct-n: Li et al. 2016 (arXiv 1510.03055), its distinct-1 and distinct-2; normalised Levenshtein
    distance: common usage
Differs: distinct-n is counted within a group and divided by its n-grams (there: over a test set, divided by tokens).
    Completions are cut at `max_tokens`, and a group's pairs are drawn where there are more than `max_pairs`, so that
    32 groups of 16 long completions cost well under a second; how many were cut is returned with the rest.
    Distinct-n falls with length, so cutting also makes runs of different length easier to compare
Needs:   token ids; rapidfuzz for the distances
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from math import fsum, isnan, nan
from statistics import fmean

from rapidfuzz.distance import Levenshtein

Ids = Sequence[int]

MAX_TOKENS = 1024  # our choice: a distance of two cut completions takes under 0.1 ms
MAX_PAIRS = 28  # every pair of a group of 8
ORDERS = (1, 2, 4)  # n of the logged distinct-n
MEASURES = (*(f"distinct_{n}" for n in ORDERS), "edit_distance", "unique", "truncated")
PREFIX, COUNT = "diversity/", "/groups"


def distinct_n(completions: Sequence[Ids], n: int) -> float:
    """In (0, 1]: share of the group's n-grams that are different ones; NaN where no completion has n tokens."""
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    seen: set[tuple[int, ...]] = set()
    total = 0
    for ids in completions:
        total += max(len(ids) - n + 1, 0)
        seen.update(zip(*(ids[i:] for i in range(n)), strict=False))
    return len(seen) / total if total else nan


def pairwise_edit_distance(
    completions: Sequence[Ids], *, max_tokens: int = MAX_TOKENS, max_pairs: int = MAX_PAIRS, seed: int | str = 0
) -> float:
    """In [0, 1]: mean normalised Levenshtein distance over pairs of a group; NaN for fewer than two completions.

    max_tokens: completions are cut there first
    max_pairs: with more pairs than this, that many are drawn without replacement. They are drawn among the sorted
        completions, so the order in which a group arrives changes nothing.
    """
    if max_tokens < 1 or max_pairs < 1:
        raise ValueError(f"max_tokens and max_pairs must be >= 1, got {max_tokens} and {max_pairs}")
    ordered = sorted(tuple(ids[:max_tokens]) for ids in completions)
    pairs = list(itertools.combinations(range(len(ordered)), 2))
    if not pairs:
        return nan
    if len(pairs) > max_pairs:
        pairs = random.Random(seed).sample(pairs, max_pairs)
    return fmean(Levenshtein.normalized_distance(ordered[i], ordered[j]) for i, j in pairs)


def unique_share(completions: Sequence[Ids]) -> float:
    """In (0, 1]: different completions / completions, uncut; 1 / G for G equal ones, NaN for none."""
    return len({tuple(ids) for ids in completions}) / len(completions) if completions else nan


def group_diversity(
    completion_ids: Sequence[Ids],
    groups: Sequence[int] | int,
    *,
    max_tokens: int = MAX_TOKENS,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
) -> dict[str, float]:
    """Means over prompt groups of two and more completions; a measure that no group has is NaN.

    groups: prompt group of each completion, or the size of consecutive groups. Every group must be whole.

        diversity/distinct_1, _2, _4   of the first `max_tokens` tokens of each completion
        diversity/edit_distance        of the same
        diversity/unique               of whole completions
        diversity/truncated            share of completions longer than `max_tokens`
    """
    return group_means(group_sums(completion_ids, groups, max_tokens=max_tokens, max_pairs=max_pairs, seed=seed))


def group_sums(
    completion_ids: Sequence[Ids],
    groups: Sequence[int] | int,
    *,
    max_tokens: int = MAX_TOKENS,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
) -> dict[str, float]:
    """What `group_diversity` divides, to be added over ranks first: each measure's sum and number of groups.

    Every rank has the same names, one without groups as well; no NaN.
    """
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for group, completions in _by_group(completion_ids, groups).items():
        cut = [ids[:max_tokens] for ids in completions]
        for n in ORDERS:
            found[f"distinct_{n}"].append(distinct_n(cut, n))
        # A seed of its own: the same picks in every group would compare the same ranks of the sorting throughout.
        distance = pairwise_edit_distance(cut, max_tokens=max_tokens, max_pairs=max_pairs, seed=f"{seed}/{group}")
        found["edit_distance"].append(distance)
        found["unique"].append(unique_share(completions))
        found["truncated"].append(fmean(len(ids) > max_tokens for ids in completions))
    known = {name: [v for v in values if not isnan(v)] for name, values in found.items()}
    sums = {f"{PREFIX}{name}": fsum(values) for name, values in known.items()}
    return sums | {f"{PREFIX}{name}{COUNT}": float(len(values)) for name, values in known.items()}


def group_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means from (totals of) `group_sums`; other names in `sums` are left alone, a mean over no groups is NaN."""
    means: dict[str, float] = {}
    for name in (f"{PREFIX}{measure}" for measure in MEASURES):
        if count := sums.get(name + COUNT, 0.0):
            means[name] = sums[name] / count
        else:
            means[name] = nan
    return means


def _by_group(completion_ids: Sequence[Ids], groups: Sequence[int] | int) -> dict[int, list[Ids]]:
    """Groups of two and more."""
    count = len(completion_ids)
    if isinstance(groups, int):
        if groups < 1 or count % groups:
            raise ValueError(f"{count} completions do not divide into groups of {groups}; pass whole groups")
        groups = [i // groups for i in range(count)]
    if len(groups) != count:
        raise ValueError(f"{count} completions but {len(groups)} group numbers; pass one per completion")
    members: dict[int, list[Ids]] = {}
    for ids, group in zip(completion_ids, groups, strict=True):
        members.setdefault(int(group), []).append(ids)
    return {group: completions for group, completions in members.items() if len(completions) > 1}
