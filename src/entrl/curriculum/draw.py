"""Drawing the prompts of a rollout by their weights, without replacement.

    p_i = (1 - floor) w_i / sum(w) + floor / P

The B prompts drawn are those with the B largest keys log p_i + g_i, g_i independent standard Gumbel numbers: one after
the other, each in proportion to p among those left. Weights that are all 0 count as equal.

Source:  Efraimidis and Spirakis 2006, weighted sampling without replacement; Gumbel form: Vieira 2014
Differs: nothing
Needs:   nothing. A draw depends on seed and number alone, so there is no random state to keep

The floor is what neither a rule nor its noise can take from a prompt: alone it draws one after P / (floor B) rollouts
on average.
"""

import numpy as np

from entrl.curriculum.rules import Floats


def probabilities(weights_P: Floats, *, floor: float) -> Floats:
    """(P,) positive where floor > 0, of sum 1; ValueError for weights that are not finite or below 0."""
    wrong_P = ~np.isfinite(weights_P) | (weights_P < 0)
    if wrong_P.any():
        place = int(wrong_P.argmax())
        raise ValueError(f"the rule gave prompt {place} the weight {weights_P[place]}; weights are finite and >= 0")
    scaled_P = weights_P / weights_P.max() if weights_P.any() else np.ones_like(weights_P)  # the sum may not overflow
    return (1 - floor) * scaled_P / scaled_P.sum() + floor / len(weights_P)


def draw(weights_P: Floats, count: int, *, floor: float, seed: int, number: int) -> list[int]:
    """Rollout `number` of the run with this seed: `count` different prompts, the earliest drawn first.

    Where fewer than `count` prompts have a chance, the others are drawn alike for the places left.
    """
    if not 1 <= count <= len(weights_P):
        raise ValueError(f"a rollout of {count} different prompts cannot be drawn from {len(weights_P)}")
    gumbel_2P = np.random.default_rng([seed, number]).gumbel(size=(2, len(weights_P)))
    chance_P = probabilities(weights_P, floor=floor)
    with np.errstate(divide="ignore"):
        key_P = np.log(chance_P) + gumbel_2P[0]
    order_P = np.lexsort((-gumbel_2P[1], -key_P))  # among equal keys, all -inf, by the second row
    return [int(i) for i in order_P[:count]]
