"""Sets of real numbers: inequalities and unions of intervals as one ordered list of intervals."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from entrl.verify.expressions import Tree
from entrl.verify.numerics import Undefined, constant, context, evaluate, same, symbols
from entrl.verify.values import (
    EMPTY,
    INFINITY,
    MINUS_INFINITY,
    REALS,
    ZERO,
    Equation,
    Interval,
    Listing,
    Quantity,
    Region,
    Value,
)

FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def as_region(value: Value) -> Region | None:
    """The region a value means: itself, an open pair (0, 1), a closed pair [0, 1]; else None."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Listing) and value.kind in ("tuple", "closed") and len(value.items) == 2:
        low, high = value.items
        if isinstance(low, Quantity) and isinstance(high, Quantity):
            is_open = value.kind == "tuple"
            return merged([Interval(low.tree, high.tree, is_open, is_open)])
    return None


def from_points(values: Sequence[Value]) -> Region | None:
    """Single numbers as a region."""
    parts = [Interval(v.tree, v.tree, False, False) for v in values if isinstance(v, Quantity)]
    return merged(parts) if len(parts) == len(values) else None


def solved(left: Tree, relation: str, right: Tree) -> Region | None:
    """The region of an inequality in one letter that is linear in it; None for any other."""
    names = symbols(left) | symbols(right)
    if len(names) != 1:
        return None
    if left[0] == "sym" and not symbols(right):
        return _side(relation, right)
    if right[0] == "sym" and not symbols(left):
        return _side(FLIPPED.get(relation, relation), left)
    if left[:2] == ("fn", "abs") and not symbols(right):
        return _absolute(left[2][0], relation, right)
    if right[:2] == ("fn", "abs") and not symbols(left):
        return _absolute(right[2][0], FLIPPED.get(relation, relation), left)
    (name,) = names
    difference: Tree = ("add", (left, ("neg", right)))
    try:
        at = [evaluate(difference, {name: Fraction(k)})[0] for k in (0, 1, 2, 5)]
    except Undefined:
        return None
    if not all(isinstance(v, Fraction) for v in at):
        return None
    slope = at[1] - at[0]
    if slope == 0 or at[2] - at[1] != slope or at[3] - at[2] != 3 * slope:
        return None
    bound: Tree = ("num", -at[0] / slope, False)
    return _side(relation if slope > 0 else FLIPPED.get(relation, relation), bound)


def _absolute(inner: Tree, relation: str, bound: Tree) -> Region | None:
    """|inner| < bound lies between two bounds, |inner| > bound outside of them."""
    above, below = solved(inner, relation, bound), solved(inner, FLIPPED.get(relation, relation), ("neg", bound))
    if above is None or below is None:
        return None
    return union((above, below)) if relation in (">", ">=") else intersection(above, below)


def _side(relation: str, bound: Tree) -> Region:
    if relation == "!=":
        return Region((Interval(MINUS_INFINITY, bound, True, True), Interval(bound, INFINITY, True, True)))
    if relation in ("<", "<="):
        return Region((Interval(MINUS_INFINITY, bound, True, relation == "<"),))
    return Region((Interval(bound, INFINITY, relation == ">", True),))


def union(regions: Sequence[Region]) -> Region:
    return merged([part for region in regions for part in region.parts])


def intersection(a: Region, b: Region) -> Region | None:
    """What both hold; None where an end is no number."""
    parts = []
    try:
        for p in a.parts:
            for q in b.parts:
                low, low_open = max(((p.low, p.low_open), (q.low, q.low_open)), key=lambda e: (_real(e[0]), e[1]))
                high, high_open = min(
                    ((p.high, p.high_open), (q.high, q.high_open)), key=lambda e: (_real(e[0]), not e[1])
                )
                parts.append(Interval(low, high, low_open, high_open))
    except Undefined:
        return None
    return merged(parts)


def complement(region: Region) -> Region | None:
    """The real numbers outside of a region."""
    left: Region | None = REALS
    for part in region.parts:
        outside = [Interval(MINUS_INFINITY, part.low, True, not part.low_open)]
        outside.append(Interval(part.high, INFINITY, not part.high_open, True))
        left = intersection(left, Region(tuple(outside))) if left is not None else None
    return left


def merged(parts: Sequence[Interval]) -> Region:
    """The intervals in order, empty ones dropped, touching ones joined; as given where an end is no number."""
    try:
        keyed = sorted(((_real(p.low), p.low_open, p) for p in parts), key=lambda k: (k[0], k[1]))
        ends = [_real(p.high) for _, _, p in keyed]
    except Undefined:
        return Region(tuple(parts))
    found: list[Interval] = []
    top: Any = None
    for (low, _, part), high in zip(keyed, ends, strict=True):
        if low > high or (low == high and (part.low_open or part.high_open)):
            continue
        if found and (low < top or (low == top and not (part.low_open and found[-1].high_open))):
            last = found[-1]
            if high > top or (high == top and last.high_open):
                found[-1] = Interval(last.low, part.high, last.low_open, part.high_open)
                top = high
            continue
        found.append(_open_at_infinity(part))
        top = high
    return Region(tuple(found)) if found else EMPTY


def _open_at_infinity(part: Interval) -> Interval:
    """(-oo, 3] and [-oo, 3] are the same."""
    low_open = part.low_open or part.low == MINUS_INFINITY
    return Interval(part.low, part.high, low_open, part.high_open or part.high == INFINITY)


def same_region(a: Region, b: Region) -> bool:
    """Equal ends, each in or out alike."""
    return len(a.parts) == len(b.parts) and all(
        p.low_open == q.low_open and p.high_open == q.high_open and same(p.low, q.low) and same(p.high, q.high)
        for p, q in zip(a.parts, b.parts, strict=True)
    )


def _real(tree: Tree) -> Any:
    if symbols(tree):
        raise Undefined("no number")
    value = constant(tree)
    if isinstance(value, Fraction):
        return context().mpf(value.numerator) / value.denominator  # comparable with the others
    if value.imag != 0:
        raise Undefined("no real number")
    return value.real


def difference(equation: Equation) -> Tree:
    """left - right."""
    return equation.left if equation.right == ZERO else ("add", (equation.left, ("neg", equation.right)))
