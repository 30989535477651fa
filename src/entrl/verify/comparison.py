"""Whether an answer that was read is the gold that was read."""

from collections.abc import Sequence
from fractions import Fraction

from entrl.verify import regions
from entrl.verify.expressions import Tree
from entrl.verify.numerics import Undefined, constant, proportional, same, symbols
from entrl.verify.values import EMPTY, Equation, Listing, Named, Quantity, Ratio, Region, Value, Words

HUNDREDTH: Tree = ("num", Fraction(1, 100), False)
DEGREE: Tree = ("const", "degree")


def equal(gold: Value, answer: Value) -> bool:
    """Equality in both directions: swapping the two changes nothing."""
    if gold == answer:
        return True
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _same_words(gold, answer)
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _same_named(gold, answer)
    if isinstance(gold, Equation) or isinstance(answer, Equation):
        if isinstance(gold, Equation) and isinstance(answer, Equation):
            return _same_curve(gold, answer)
        equation, other = (gold, answer) if isinstance(gold, Equation) else (answer, gold)
        assert isinstance(equation, Equation)
        stated = equation.asked and not symbols(equation.right)
        return stated and isinstance(other, Quantity) and same(equation.right, other.tree)
    if isinstance(gold, Region) or isinstance(answer, Region):
        a, b = regions.as_region(gold), regions.as_region(answer)
        return regions.same_region(a, b) if a is not None and b is not None else _empty(gold) and _empty(answer)
    if isinstance(gold, Listing) or isinstance(answer, Listing):
        return _same_listing(gold, answer)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _same_ratio(gold, answer)
    return _same_quantity(gold, answer)


def _empty(value: Value) -> bool:
    return value == EMPTY or (isinstance(value, Listing) and not value.items)


def _same_words(gold: Value, answer: Value) -> bool:
    return (
        isinstance(gold, Words)
        and isinstance(answer, Words)
        and bool(gold.squeezed)
        and gold.squeezed == answer.squeezed
    )


def _same_named(gold: Value, answer: Value) -> bool:
    """x = 5 is 5, and y = 5; of two curves y = 2x and x = 2y the names matter."""
    if isinstance(gold, Named) and isinstance(answer, Named):
        a, b = _as_equation(gold), _as_equation(answer)
        if a and b and gold.name != answer.name and _mentions(gold, answer):
            return _same_curve(a, b)
        return equal(gold.value, answer.value) or (a is not None and b is not None and _same_curve(a, b))
    named, other = (gold, answer) if isinstance(gold, Named) else (answer, gold)
    assert isinstance(named, Named)
    if isinstance(other, Equation):
        curve = _as_equation(named)
        return curve is not None and _same_curve(curve, other)
    return equal(named.value, other)


def _mentions(a: Named, b: Named) -> bool:
    """Whether the name of one stands in the value of the other."""
    return any(isinstance(y.value, Quantity) and x.name in symbols(y.value.tree) for x, y in ((a, b), (b, a)))


def _as_equation(named: Named) -> Equation | None:
    if isinstance(named.value, Quantity) and symbols(named.value.tree):
        return Equation(("sym", named.name), named.value.tree)
    return None


def _same_curve(a: Equation, b: Equation) -> bool:
    """Both sides up to a factor, positive for inequalities."""
    directed = a.relation in ("<", "<=")
    left, right = regions.difference(a), regions.difference(b)
    return a.relation == b.relation and proportional(left, right, positive=directed)


def _same_listing(gold: Value, answer: Value) -> bool:
    if not (isinstance(gold, Listing) and isinstance(answer, Listing)):
        listing, single = (gold, answer) if isinstance(gold, Listing) else (answer, gold)
        assert isinstance(listing, Listing)
        return len(listing.items) == 1 and listing.kind in ("set", "closed") and equal(listing.items[0], single)
    a, b, kinds = gold.items, answer.items, {gold.kind, answer.kind}
    if kinds == {"set"}:
        return _each_in(a, b) and _each_in(b, a)
    if "set" in kinds:
        return kinds == {"set", "bare"} and len(a) == len(b) and _each_in(a, b) and _each_in(b, a)
    if len(a) != len(b) or (kinds == {"tuple", "closed"} and len(a) == 2) or ("rows" in kinds and len(kinds) > 1):
        return False
    if kinds == {"bare"} and not any(isinstance(v, Named) for v in (*a, *b)):
        return _matched(a, b)
    if all(isinstance(v, Named) for v in (*a, *b)):
        names = [{v.name for v in items if isinstance(v, Named)} for items in (a, b)]
        if names[0] == names[1]:
            return _matched(sorted(a, key=repr), sorted(b, key=repr), named=True)
    return all(equal(x, y) for x, y in zip(a, b, strict=True))


def _each_in(a: Sequence[Value], b: Sequence[Value]) -> bool:
    return all(any(isinstance(x, Listing) == isinstance(y, Listing) and equal(x, y) for y in b) for x in a)


def _matched(a: Sequence[Value], b: Sequence[Value], *, named: bool = False) -> bool:
    """Equal in some order, each used once."""
    left = list(b)
    for x in a:
        k = next((k for k, y in enumerate(left) if (not named or _name(x) == _name(y)) and equal(x, y)), None)
        if k is None:
            return False
        del left[k]
    return not left


def _name(value: Value) -> str:
    return value.name if isinstance(value, Named) else ""


def _same_ratio(gold: Value, answer: Value) -> bool:
    """2:4 is 1:2, and one half; 2:40 is no 1:20 when both look like times of day."""
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        if len(gold.parts) != len(answer.parts) or (gold.clock and answer.clock):
            return gold.parts == answer.parts
        cross = [
            same(("mul", gold.parts[0], answer.parts[k]), ("mul", answer.parts[0], gold.parts[k]))
            for k in range(1, len(gold.parts))
        ]
        return all(cross)
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    assert isinstance(ratio, Ratio)
    written = isinstance(other, Quantity) and not other.unit.name and _is_fraction(other.tree)
    return written and len(ratio.parts) == 2 and same(("div", *ratio.parts), other.tree)  # type: ignore[union-attr]


def _is_fraction(tree: Tree) -> bool:
    return tree[0] == "div"


def _same_quantity(gold: Value, answer: Value) -> bool:
    assert isinstance(gold, Quantity)
    assert isinstance(answer, Quantity)
    if gold.base or answer.base:
        return _same_base(gold, answer)
    a, b = gold.unit, answer.unit
    if a.name and b.name:
        if a.name != b.name:
            return _angle_or_percent(gold, answer)
        return same(_scaled(gold.tree, a.factor), _scaled(answer.tree, b.factor))
    return same(gold.tree, answer.tree) or _angle_or_percent(gold, answer)


def _scaled(tree: Tree, factor: Fraction) -> Tree:
    return tree if factor == 1 else ("mul", tree, ("num", factor, False))


def _angle_or_percent(gold: Quantity, answer: Quantity) -> bool:
    """50% is also 0.5, and 180 degrees also \\pi."""
    for one, other in ((gold, answer), (answer, gold)):
        size = {"percent": HUNDREDTH, "angle": DEGREE}.get(one.unit.name)
        if size is not None and other.unit.name in ("", "radian") and same(("mul", one.tree, size), other.tree):
            return True
    return False


def _same_base(gold: Quantity, answer: Quantity) -> bool:
    """With two bases the values count; without one, the digits as they are written."""
    if gold.base and answer.base:
        return gold.tree == answer.tree
    based, other = (gold, answer) if gold.base else (answer, gold)
    try:
        value = constant(other.tree) if not symbols(other.tree) else None
    except Undefined:
        return False
    return isinstance(value, Fraction) and value.denominator == 1 and str(value.numerator) == based.digits
