"""The tiny reasoner's task: reasoning-gym's `chain_sum`, asked as a bare expression such as `12+7-3=`.

A character-level model has no use for an English sentence around the sum, so the prompt is a plain string (no
chat template) of digits, `+`, `-` and `=`. The level is the number of terms. The verifier is chain_sum's own.

Which numbers of terms: a range (`min_terms` to `max_terms`, drawn by chain_sum), or tiers of difficulty (`terms:
[2, 4, 6]`) dealt out in turn, so that every tier has the same number of problems up to one.
"""

import math
from collections.abc import Sequence

from entrl.tasks.reasoning_gym_rows import distinct_items
from entrl.tasks.rows import Row, digest

RANGE = (3, 4)  # terms of a problem where the caller names neither a range nor tiers
SEED_STRIDE = 100  # tiers draw from seeds of their own: from one seed, chain_sum starts all tiers with the same numbers


def sums_rows(
    *,
    split: str,
    size: int,
    seed: int,
    min_terms: int | None = None,
    max_terms: int | None = None,
    min_digits: int = 2,
    max_digits: int = 2,
    terms: Sequence[int] | None = None,
) -> list[Row]:
    """Plain-string rows; all terms of one problem have the same number of digits.

    terms: tiers of difficulty, row i has terms[i % len(terms)] terms. Raises ValueError for tiers next to a range,
    for less than two terms, for a tier named twice, and when a tier has too few different problems for `size`.
    """
    digits = {"min_digits": min_digits, "max_digits": max_digits}
    if terms is None:
        low, high = (RANGE[0] if min_terms is None else min_terms, RANGE[1] if max_terms is None else max_terms)
        return _rows({"min_terms": low, "max_terms": high, **digits}, split=split, size=size, seed=seed)
    _check_tiers(terms, min_terms, max_terms)
    each = math.ceil(size / len(terms))
    tiers = [
        _rows({"min_terms": n, "max_terms": n, **digits}, split=split, size=each, seed=seed * SEED_STRIDE + n)
        for n in terms
    ]
    return [tiers[i % len(terms)][i // len(terms)] for i in range(size)]


def _check_tiers(terms: Sequence[int], min_terms: int | None, max_terms: int | None) -> None:
    if min_terms is not None or max_terms is not None:
        raise ValueError(f"terms {terms!r} and min_terms or max_terms exclude each other; name the tiers or a range")
    if not isinstance(terms, Sequence) or isinstance(terms, str) or not terms:
        raise ValueError(f"terms must be a list of numbers of terms such as [2, 4, 6], got {terms!r}")
    good = all(isinstance(n, int) and not isinstance(n, bool) and n >= 2 for n in terms)
    if not good or len(set(terms)) != len(terms):
        raise ValueError(f"terms must be different integers from 2 on, got {list(terms)}")


def _rows(config: dict[str, int], *, split: str, size: int, seed: int) -> list[Row]:
    rows = []
    for item, verifier in distinct_items("chain_sum", config, split=split, size=size, seed=seed):
        expression = item["metadata"]["expression"].replace(" ", "")
        rows.append(
            Row(
                prompt=f"{expression}=",
                answer=item["answer"],
                verifier=verifier,
                problem_id=f"sums/{digest(item['question']):016x}",
                level=str(item["metadata"]["num_terms"]),
            )
        )
    return rows
