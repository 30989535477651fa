"""The tiny reasoner's task: reasoning-gym's `chain_sum`, asked as a bare expression such as `12+7-3=`.

A character-level model has no use for an English sentence around the sum, so the prompt is a plain string (no
chat template) of digits, `+`, `-` and `=`. The level is the number of terms. The verifier is chain_sum's own.
"""

from entrl.tasks.procedural import distinct_items
from entrl.tasks.rows import Row, digest


def sums_rows(
    *,
    split: str,
    size: int,
    seed: int,
    min_terms: int = 3,
    max_terms: int = 4,
    min_digits: int = 2,
    max_digits: int = 2,
) -> list[Row]:
    """Plain-string rows; all terms of one problem have the same number of digits."""
    config = {
        "min_terms": min_terms,
        "max_terms": max_terms,
        "min_digits": min_digits,
        "max_digits": max_digits,
    }
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
