"""Expressions in Python's spelling, as the problems of reasoning-gym ask for them, read without running them.

Python's grammar turns the text into a tree (`ast.parse`, which runs nothing), a whitelist says which nodes may stand
in it, and the value is built here: fractions, integers, plain lists, sympy objects. No text reaches `eval`,
`parse_expr` or `sympify`. Text that is too long, too deep or asks for too large a number is Unreadable, as is
anything that is not on the list: attributes, subscripts, comprehensions, strings in arithmetic, unknown calls.

Not read, though Python or sympy would: `^`, factorials (`3!`), products without `*`, keyword arguments.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_CHARS = 10_000  # characters; a 30 x 30 board written as lists has 3,600
MAX_NODES = 10_000  # nodes of the tree
MAX_DEPTH = 100  # levels; a sum of n terms is n levels deep, and 60 terms are no answer to anything here
MAX_BITS = 4096  # size of an exact result, so 9**9**9 ends before it begins

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_BITS: dict[type, Callable[[int, int], int]] = {
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}


class Unreadable(ValueError):
    """The text is no expression of the kind asked for; it scores as a wrong answer."""


def literal(text: str) -> Any:
    """A list, tuple, string or number written as in Python, or nested ones."""
    _tree(text)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise Unreadable(f"no list or number: {error}") from error


def exact(text: str) -> Fraction:
    """The exact value of arithmetic in + - * / // % ** and parentheses. ZeroDivisionError for a division by zero."""
    return _exact(_tree(text))


def integer(text: str) -> int:
    """The value of integer arithmetic with shifts and bit operations, hexadecimal numbers included."""
    return _integer(_tree(text))


def symbolic(text: str, names: Mapping[str, Any] | None = None) -> Any:
    """A sympy expression over symbols, numbers, + - * / ** and elementary functions, evaluated as sympy does.

    names: symbols that are already made; every other name becomes a symbol of its own, as in sympy's parser.
    """
    return _symbolic(_tree(text), text.strip(), dict(names or {}))


def _tree(text: str) -> ast.expr:
    text = text.strip()
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters, at most {MAX_CHARS} are read")
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Unreadable(f"not an expression: {error}") from error
    level, count = [body], 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if not level:
            return body
        if count > MAX_NODES:
            break
    raise Unreadable(f"nested deeper than {MAX_DEPTH} levels, or more than {MAX_NODES} parts")


def _exact(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if isinstance(value, float) and not math.isfinite(value):
                raise Unreadable("a number too large to hold")
            return _bounded(Fraction(repr(value) if isinstance(value, float) else value))  # 0.3, not its binary
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            return _exact(inner) if isinstance(sign, ast.UAdd) else -_exact(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_exact(left), _exact(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(Fraction(_OPERATORS[type(op)](_exact(left), _exact(right))))
    raise Unreadable(f"{type(node).__name__} has no place in arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise Unreadable(f"exponent {exponent} is no integer")
    if abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > MAX_BITS:
        raise Unreadable(f"a power of more than {MAX_BITS} bits")
    return base ** int(exponent)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Unreadable(f"a number of more than {MAX_BITS} bits")
    return value


def _integer(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_integer(inner)
        case ast.UnaryOp(op=ast.Invert(), operand=inner):
            return ~_integer(inner)
        case ast.BinOp(left=left, op=ast.LShift() | ast.RShift() as op, right=right):
            value, places = _integer(left), _integer(right)
            if not 0 <= places <= MAX_BITS:
                raise Unreadable(f"a shift by {places}")
            return value << places if isinstance(op, ast.LShift) else value >> places
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BITS:
            return _BITS[type(op)](_integer(left), _integer(right))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
            return _bounded(Fraction(_OPERATORS[type(op)](_integer(left), _integer(right)))).numerator
    raise Unreadable(f"{type(node).__name__} has no place in integer arithmetic")


MAX_EXPONENT = 1000  # of a sympy power with a number for exponent; expanding (x + 1)**1000 is slow, not endless
_CONSTANTS = ("pi", "E", "I")
_FUNCTIONS = (
    "exp", "log", "ln", "sqrt", "Abs", "sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "asec",
    "acsc", "acot", "sinh", "cosh", "tanh", "sech", "csch", "coth", "asinh", "acosh", "atanh",
)  # fmt: skip


def _symbolic(node: ast.expr, text: str, names: dict[str, Any]) -> Any:
    import sympy  # takes a second; the other readers do without

    def read(inner: ast.expr) -> Any:
        return _symbolic(inner, text, names)

    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return sympy.Integer(value)
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return sympy.Float(repr(value))
        case ast.Name(id=name) if name not in _FUNCTIONS:
            if name in _CONSTANTS and name not in names:
                return getattr(sympy, name)
            return names.setdefault(name, sympy.Symbol(name))
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=inner):
            return read(inner) if isinstance(sign, ast.UAdd) else -read(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _symbolic_power(read(left), read(right))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            return _OPERATORS[type(op)](read(left), read(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and 1 <= len(args) <= 2:
            return getattr(sympy, name)(*map(read, args))
    raise Unreadable(f"{type(node).__name__} has no place in an expression")


def _symbolic_power(base: Any, exponent: Any) -> Any:
    if exponent.is_Number and abs(exponent) > MAX_EXPONENT:
        raise Unreadable(f"exponent {exponent} beyond {MAX_EXPONENT}")
    if base.is_Rational and exponent.is_Integer:
        _power(Fraction(base.p, base.q), Fraction(exponent.p))  # a number is worked out at once
    return base**exponent
