"""Values of expression trees: exact fractions as long as they last, then 50 digits; and equality of two trees.

Equality of trees with letters is equality of their values at fixed points, which no two different expressions of a
person's size share; a letter may be negative, where both sides are real there. Rational values are compared exactly,
so 0.333 is not 1/3. Others are equal when they agree to 25 digits, or to one part in a million when one of them is
written as a decimal (3.1415927 and \\pi; not 3.14). Towers of powers past 2^64 digits are not evaluated.
"""

import functools
import math
import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath
from mpmath.libmp.libhyper import NoConvergence

from entrl.verify.expressions import Tree

EXACT_BITS = 20_000  # a fraction larger than this goes on as 50 digits
MAX_MAGNITUDE = 64  # bits before the point of an argument of exp, sin, gamma; more would cost memory without end
SAME = 25  # digits in which irrational values agree
DECIMAL_TOLERANCE = 1e-6  # relative, where one side is a decimal and the other is irrational; our choice
POINTS = 6

_local = threading.local()


class Undefined(ArithmeticError):
    """No value: a division by zero, a size past the limits, an unknown function."""


def context() -> Any:
    """An mpmath of 50 digits; one a thread, because mpmath changes its precision while it works."""
    if not hasattr(_local, "mp"):
        _local.mp = mpmath.MPContext()
        _local.mp.dps = 50
    return _local.mp


def symbols(tree: Tree) -> set[str]:
    """The letters of a tree."""
    if tree[0] == "sym":
        return {tree[1]}
    found: set[str] = set()
    for part in _children(tree):
        found |= symbols(part)
    return found


def _children(tree: Tree) -> list[Tree]:
    """The subtrees of a node."""
    if tree[0] in ("num", "sym", "const"):
        return []
    parts: list[Tree] = []
    for child in tree[1:]:
        if isinstance(child, tuple):
            parts += [child] if isinstance(child[0], str) else list(child)
    return parts


def holds(tree: Tree, test: Callable[[Tree], bool]) -> bool:
    """Whether a node of the tree passes the test."""
    return test(tree) or any(holds(part, test) for part in _children(tree))


def has_decimal(tree: Tree) -> bool:
    return holds(tree, lambda node: node[0] == "num" and node[2])


def has_sign_choice(tree: Tree) -> bool:
    return holds(tree, lambda node: node[0] == "pm")


def with_sign(tree: Tree, sign: int) -> Tree:
    """The tree with every \\pm taken as `sign` and every \\mp as its opposite."""
    if tree[0] == "pm":
        inner = with_sign(tree[1], sign)
        return inner if (sign > 0) != tree[2] else ("neg", inner)
    return _mapped(tree, lambda part: with_sign(part, sign))


class _Evaluation:
    """One evaluation of one tree; `noise` is what rounding may have left of a sum that cancels."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self.where, self.noise, self.mp = where, 0, context()

    def value(self, tree: Tree) -> Any:
        kind = tree[0]
        if kind == "num":
            return tree[1]
        if kind == "sym":
            return self.where[tree[1]]
        if kind == "const":
            mp = self.mp
            return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1), "inf": mp.inf, "degree": mp.pi / 180}[tree[1]]
        if kind == "neg":
            return -self.value(tree[1])
        if kind == "add":
            return self.add([self.value(part) for part in tree[1]])
        if kind in ("mul", "div", "pow"):
            return getattr(self, kind)(self.value(tree[1]), self.value(tree[2]))
        if kind == "fn":
            return self.fn(tree[1], [self.value(part) for part in tree[2]])
        raise Undefined(kind)

    def inexact(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / value.denominator
        return value

    def fit(self, value: Any) -> Any:
        """A fraction that has grown too large goes on in 50 digits."""
        if isinstance(value, Fraction) and value.numerator.bit_length() + value.denominator.bit_length() > EXACT_BITS:
            return self.inexact(value)
        return value

    def add(self, values: list[Any]) -> Any:
        if all(isinstance(v, Fraction) for v in values):
            return self.fit(sum(values, Fraction(0)))
        parts = [self.inexact(v) for v in values]
        total = sum(parts[1:], parts[0])
        if self.mp.isnan(total):
            raise Undefined("infinity less infinity")
        if not self.mp.isinf(total):
            self.noise = max(self.noise, max(abs(p) for p in parts) * self.mp.mpf(10) ** -40)
        return total

    def mul(self, a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self.fit(a * b)
        if (isinstance(a, Fraction) and a == 0) or (isinstance(b, Fraction) and b == 0):
            return Fraction(0)
        return self.inexact(a) * self.inexact(b)

    def div(self, a: Any, b: Any) -> Any:
        if b == 0:
            raise Undefined("division by zero")
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self.fit(a / b)
        return self.inexact(a) / self.inexact(b)

    def pow(self, a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            exact = self.exact_power(a, b)
            if exact is not None:
                return exact
        if a == 0:
            if self.mp.re(self.inexact(b)) <= 0:
                raise Undefined("zero to no positive power")
            return Fraction(0)
        real = self.inexact(a)
        if isinstance(b, Fraction) and b.denominator % 2 and self.mp.im(real) == 0 and self.mp.re(real) < 0:
            sign = -1 if b.numerator % 2 else 1  # the real root of a negative number
            return sign * self.pow(-a, b)
        base, exponent = self.inexact(a), self.inexact(b)
        if self.mp.isinf(base) or self.mp.isinf(exponent):
            return self.mp.power(base, exponent)
        return self.mp.exp(self.small(exponent * self.mp.log(base)))

    def exact_power(self, a: Fraction, b: Fraction) -> Fraction | None:
        bits = max(a.numerator.bit_length(), a.denominator.bit_length())
        if b.denominator == 1:
            if a == 0 and b <= 0:
                raise Undefined("zero to no positive power")
            if abs(a) == 1 or a == 0:
                return a if b.numerator % 2 else abs(a)
            return a**b.numerator if bits * abs(b.numerator) <= EXACT_BITS else None
        if b.denominator <= 64 and abs(b.numerator) <= 64 and bits <= EXACT_BITS // 64:
            root = _exact_root(a, b.denominator)
            return None if root is None or (root == 0 and b < 0) else root**b.numerator
        return None

    def small(self, value: Any) -> Any:
        value = self.inexact(value)
        if value != 0 and (self.mp.isinf(value) or self.mp.isnan(value) or self.mp.mag(value) > MAX_MAGNITUDE):
            raise Undefined("too large to evaluate")
        return value

    def fn(self, name: str, args: list[Any]) -> Any:
        if name == "root" and len(args) == 2:
            return self.pow(args[0], self.div(Fraction(1), args[1]))
        if name in ("sqrt", "cbrt") and len(args) == 1:
            return self.pow(args[0], Fraction(1, 2 if name == "sqrt" else 3))
        if all(isinstance(a, Fraction) for a in args) and name in EXACT:
            found = EXACT[name](*args)
            if found is not None:
                return found
        if name in ("log", "ln", "lg"):
            return self.log(name, *args)
        if name not in INEXACT or len(args) != INEXACT_ARGUMENTS.get(name, 1):
            raise Undefined(name)
        try:
            return getattr(self.mp, INEXACT[name])(*[self.small(a) for a in args])
        except (ValueError, ZeroDivisionError, OverflowError) as error:  # a pole
            raise Undefined(name) from error

    def log(self, name: str, value: Any, base: Any = None) -> Any:
        if value == 0 or base in (0, 1):
            raise Undefined("logarithm of zero")
        if base is None:
            base = Fraction(10) if name == "lg" else None
        above = self.mp.log(self.inexact(value))
        return above if base is None else above / self.mp.log(self.inexact(base))


INEXACT = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "exp": "exp",
    "abs": "fabs", "floor": "floor", "ceil": "ceil", "factorial": "factorial", "binom": "binomial",
}  # fmt: skip
INEXACT_ARGUMENTS = {"binom": 2}


def _factorial(n: Fraction) -> Fraction | None:
    if n.denominator != 1 or n < 0:
        raise Undefined("factorial")
    return Fraction(math.factorial(int(n))) if n <= 1000 else None


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    whole = n.denominator == k.denominator == 1 and 0 <= k <= 2000 and 0 <= n <= 2000
    return Fraction(math.comb(int(n), int(k))) if whole else None


def _whole(function: Callable[..., int]) -> Callable[..., Fraction]:
    def applied(*values: Fraction) -> Fraction:
        if any(v.denominator != 1 for v in values):
            raise Undefined("no integers")
        return Fraction(function(*map(int, values)))

    return applied


EXACT: dict[str, Callable[..., Fraction | None]] = {
    "abs": lambda v: abs(v), "floor": lambda v: Fraction(math.floor(v)), "ceil": lambda v: Fraction(math.ceil(v)),
    "factorial": _factorial, "binom": _binomial, "gcd": _whole(math.gcd), "lcm": _whole(math.lcm),
    "max": lambda *v: max(v), "min": lambda *v: min(v),
}  # fmt: skip


def _exact_root(value: Fraction, order: int) -> Fraction | None:
    """The real root when it is rational."""
    if value < 0:
        if order % 2 == 0:
            return None
        root = _exact_root(-value, order)
        return None if root is None else -root
    above, below = _integer_root(value.numerator, order), _integer_root(value.denominator, order)
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, order: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // order + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**order <= value else (low, middle - 1)
    return low if low**order == value else None


def evaluate(tree: Tree, where: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """(value, noise): a Fraction where it is exact, else real or complex; `Undefined` where there is none."""
    work = _Evaluation(where or {})
    try:
        value = work.value(tree)
    except (ZeroDivisionError, OverflowError, ValueError, TypeError, KeyError, NoConvergence) as error:
        raise Undefined(str(error)) from error
    if not isinstance(value, Fraction) and work.mp.isnan(value):
        raise Undefined("not a number")
    return value, work.noise


@functools.lru_cache(maxsize=4096)
def constant(tree: Tree) -> Any:
    """The value of a tree without letters."""
    return evaluate(tree)[0]


def same_value(a: Any, b: Any, noise: Any = 0, *, rough: bool = False) -> bool:
    """Whether two values agree: exactly when both are fractions, else relatively."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    mp = context()
    a, b = (mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in (a, b))
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    tolerance = mp.mpf(DECIMAL_TOLERANCE) if rough else mp.mpf(10) ** -SAME
    return bool(abs(a - b) <= max(tolerance * max(abs(a), abs(b)), noise))


def points(names: set[str]) -> list[dict[str, Any]]:
    """Fixed values for the letters: half of the points are positive, in the others signs alternate."""
    mp = context()
    found = []
    for p in range(POINTS):
        where = {}
        for k, name in enumerate(sorted(names)):
            size = mp.mpf(3) / 10 + 3 * mp.frac(mp.sqrt(2 + p) * mp.sqrt(3 + 7 * k) * 17)
            where[name] = -size if p >= POINTS // 2 and (k + p) % 2 else size
        found.append(where)
    return found


def same(a: Tree, b: Tree) -> bool:
    """Whether two trees are the same expression; False where either has no value anywhere."""
    if a == b:
        return True
    if holds(("add", (a, b)), _bare_log):  # \log may mean either base, in both trees alike
        return any(same(_with_base(a, base), _with_base(b, base)) for base in (("const", "e"), TEN))
    rough = has_decimal(a) != has_decimal(b)
    names = symbols(a) | symbols(b)
    if not names:
        try:
            (x, noise_x), (y, noise_y) = evaluate(a), evaluate(b)
        except Undefined:
            return False
        return same_value(x, y, noise_x + noise_y, rough=rough)
    return _agree(a, b, names, lambda x, y, noise: same_value(x, y, noise, rough=rough))


TEN: Tree = ("num", Fraction(10), False)


def _bare_log(node: Tree) -> bool:
    return node[0] == "fn" and node[1] == "log" and len(node[2]) == 1


def _with_base(tree: Tree, base: Tree) -> Tree:
    """The tree with `base` for every \\log that names none."""
    if _bare_log(tree):
        return ("fn", "log", (_with_base(tree[2][0], base), base))
    return _mapped(tree, lambda part: _with_base(part, base))


def _mapped(tree: Tree, change: Callable[[Tree], Tree]) -> Tree:
    if tree[0] in ("num", "sym", "const"):
        return tree
    return tuple(
        part if not isinstance(part, tuple)
        else change(part) if isinstance(part[0], str)
        else tuple(map(change, part))
        for part in tree
    )  # fmt: skip


def _agree(a: Tree, b: Tree, names: set[str], test: Callable[[Any, Any, Any], bool]) -> bool:
    compared = 0
    for p, where in enumerate(points(names)):
        try:
            (x, noise_x), (y, noise_y) = evaluate(a, where), evaluate(b, where)
        except Undefined:
            continue
        if p >= POINTS // 2 and (_complex(x) or _complex(y)):
            continue  # a root or logarithm of a negative letter: no matter of these expressions
        if not test(x, y, noise_x + noise_y):
            return False
        compared += 1
    return compared >= 2


def _complex(value: Any) -> bool:
    return not isinstance(value, Fraction) and context().im(value) != 0


def proportional(a: Tree, b: Tree, *, positive: bool = False) -> bool:
    """Whether a = c b for one number c that is not zero (and positive, for inequalities)."""
    names = symbols(a) | symbols(b)
    ratios: list[Any] = []

    def test(x: Any, y: Any, noise: Any) -> bool:
        mp = context()
        x, y = (mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in (x, y))
        if abs(y) <= noise or abs(x) <= noise:
            return abs(x) <= noise and abs(y) <= noise
        ratios.append(x / y)
        return same_value(ratios[0], ratios[-1]) and not (positive and mp.re(ratios[-1]) < 0)

    return bool(names) and _agree(a, b, names, test) and bool(ratios)
