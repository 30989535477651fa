"""pass@k, here and nowhere else.

    pass@k = 1 - C(n - c, k) / C(n, k)      n verified samples of a problem, c of them right

Source:  Chen et al. 2021 (arXiv 2107.03374), section 2.1
"""

import math


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold one of the c right ones."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
