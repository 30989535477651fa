"""What an answer can be, once read."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from entrl.verify.expressions import Tree
from entrl.verify.units import Unit

NO_UNIT = Unit("")


@dataclass(frozen=True)
class Quantity:
    """An expression, perhaps with a unit, or with the base it is written in (its digits then count)."""

    tree: Tree
    unit: Unit = NO_UNIT
    base: int = 0
    digits: str = ""


@dataclass(frozen=True)
class Ratio:
    """1:3, 1:2:3, or a time of day: `clock` when it looks like one."""

    parts: tuple[Tree, ...]
    clock: bool


@dataclass(frozen=True)
class Words:
    """Text, compared as text; `squeezed` small letters. `mathematics` when it looks like a formula we cannot read."""

    squeezed: str
    formula: str = ""


@dataclass(frozen=True)
class Named:
    """x = 5 or f(x) = x^2: a name and what it is said to be."""

    name: str
    value: "Value"


@dataclass(frozen=True)
class Listing:
    """Several answers. bare: 1, 2; tuple: (1, 2); closed: [1, 2]; set: {1, 2}; rows: a matrix of several rows."""

    kind: Literal["bare", "tuple", "closed", "set", "rows"]
    items: tuple["Value", ...]


@dataclass(frozen=True)
class Interval:
    """Between two ends, each in or out."""

    low: Tree
    high: Tree
    low_open: bool
    high_open: bool


@dataclass(frozen=True)
class Region:
    """A union of intervals of real numbers, in order and merged where the ends are numbers."""

    parts: tuple[Interval, ...]


@dataclass(frozen=True)
class Equation:
    """left = right, as a curve; for `<` and the like `relation` is the sign and left - right is compared with 0."""

    left: Tree
    right: Tree
    relation: Literal["=", "<", "<=", "!="] = "="
    asked: bool = False  # the left may be what a question asks for, so that the right alone is the answer, too


Value = Quantity | Ratio | Words | Named | Listing | Region | Equation

ZERO: Tree = ("num", Fraction(0), False)
INFINITY: Tree = ("const", "inf")
MINUS_INFINITY: Tree = ("neg", INFINITY)
REALS = Region((Interval(MINUS_INFINITY, INFINITY, True, True),))
EMPTY = Region(())
