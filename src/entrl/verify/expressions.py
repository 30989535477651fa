"""One expression, in LaTeX or as typed, read into a tree: the only reader of model text, and it runs nothing.

    expression("2\\frac{1}{2}x^2")  ->  ("mul", (("num", 5/2, False), ("pow", ("sym", "x"), ("num", 2, False))))

Nodes: num (a Fraction, whether written as a decimal), sym, const (pi, e, i, inf), add, mul, div, pow, neg, pm, fn.
Limits on length, depth and digits keep it linear and small; past them, or at anything it does not know, it raises
`Unreadable`. Read our way where writers differ: 1/2x is (1/2)x; 2^10 and \\sqrt12 take the whole number, \\frac12 one
digit each; capitals side by side (ABC) are one name, up to three small letters a product; an i alone is imaginary.
"""

import re
from fractions import Fraction
from typing import Any

from entrl.verify.characters import GREEK

Tree = tuple[Any, ...]

MAX_CHARACTERS = 1000
MAX_DIGITS = 1000
MAX_EXPONENT = 5000  # of ten, in 1.2e5
MAX_DEPTH = 40

TOKEN = re.compile(
    r"\s*(?:(?P<num>(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?![\d,])(?:\.\d+)?|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?)"
    r"|(?P<cmd>\\[A-Za-z]+|\\[^A-Za-z])|(?P<word>[A-Za-z]+)|(?P<op>\*\*|[-+*/^_(){}\[\]|!']))"
)
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "arcsinh", "arccosh", "arctanh", "ln", "log", "lg", "exp", "sqrt", "cbrt", "abs", "gcd", "lcm", "max",
    "min", "floor", "ceil", "factorial",
}  # fmt: skip
CONSTANTS = {"pi": "pi", "infty": "inf", "oo": "inf", "inf": "inf", "infinity": "inf", "Infinity": "inf"}
GREEK_NAMES = {*GREEK.values(), "Upsilon", "varphi", "vartheta", "varepsilon", "ell", "hbar"}
ACCENTS = {"vec", "hat", "bar", "overline", "dot", "ddot", "tilde", "mathbf", "boldsymbol", "mathcal", "mathbb",
           "overrightarrow", "widehat", "underline", "mathit", "bm"}  # fmt: skip
STYLES = {"mathrm", "operatorname", "text", "mathsf"}
ENGLISH = (  # words that are no products of their letters
    "so we is of to in if it the and for are was has no yes not all one two per as at be by he do go let get but can "
    "out day six ten its our you she his her may or an any how who why too add sum red big old new top end odd am pm"
)
TIMES = {r"\cdot", r"\times", "*", r"\ast"}
OVER = {"/", r"\div"}
CLOSERS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "|": "|", r"\|": r"\|", r"\lfloor": r"\rfloor",
           r"\lceil": r"\rceil", r"\lvert": r"\rvert", r"\langle": r"\rangle"}  # fmt: skip
ENDS = {*CLOSERS.values(), ","}


class Unreadable(ValueError):
    """Not an expression that this reader knows."""


def expression(text: str) -> Tree:
    """The tree of one expression; `Unreadable` where it is none."""
    reader = _Reader(_tokens(text))
    tree = reader.sum(0)
    if reader.peek() is not None:
        raise Unreadable(f"something is left at {reader.peek()!r}")
    return tree


def number(text: str) -> Fraction:
    """The value of an integer or a decimal as a person writes it: 1,234.5 or 1.2e-5."""
    mantissa, _, power = text.replace(",", "").lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(power) > 6 or abs(int(power or 0)) > MAX_EXPONENT:
        raise Unreadable("a number that long is not read")
    return Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(power or 0)


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("too long")
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"no expression: {text[at : at + 10]!r}")
        token = found[0].strip()
        tokens += _letters(token) if found["word"] else ["^" if token == "**" else token]
        at = found.end()
    if not tokens:
        raise Unreadable("empty")
    return tokens


def _letters(word: str) -> list[str]:
    """A run of letters as tokens: a function, a constant, a name, or single letters that multiply."""
    if word.lower() in FUNCTIONS:
        return ["\\" + word.lower()]
    if word in CONSTANTS or word in GREEK_NAMES:
        return ["\\" + word]
    if len(word) == 1 or (word.isupper() and len(word) <= 6):
        return [word]
    for name in ("sqrt", "sin", "cos", "tan", "ln", "log", "pi"):  # sinx, lnx, pir
        if word.startswith(name) and len(word) == len(name) + 1:
            return ["\\" + name, word[-1]]
    if len(word) > 3 or word.lower() in ENGLISH.split() or (len(word) == 3 and word.istitle()):
        raise Unreadable(f"a word: {word!r}")
    return list(word)


class _Reader:
    """Recursive descent over tokens; each method leaves the position behind what it read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def peek(self, ahead: int = 0) -> str | None:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else None

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if token is None or (wanted and token not in wanted):
            raise Unreadable(f"{' or '.join(wanted) or 'something'} is missing at {token!r}")
        self.at += 1
        return token

    def sum(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        terms = [self.term(depth)]
        while (sign := self.peek()) in ("+", "-", r"\pm", r"\mp"):
            self.at += 1
            one = self.term(depth)
            terms.append({"+": one, "-": ("neg", one)}.get(sign or "", ("pm", one, sign == r"\mp")))
        return terms[0] if len(terms) == 1 else ("add", tuple(terms))

    def term(self, depth: int) -> Tree:
        tree = self.signed(depth)
        while (token := self.peek()) is not None:
            if token in TIMES:
                self.at += 1
                tree = ("mul", tree, self.signed(depth))
            elif token in OVER:
                self.at += 1
                tree = ("div", tree, self.signed(depth))
            elif self.starts(token) and not _digits(token):
                tree = ("mul", tree, self.power(depth))
            else:
                break
        return tree

    def starts(self, token: str) -> bool:
        if token in ENDS or token in ("+", "-", "^", "_", "!", "'", r"\pm", r"\mp") or token in TIMES | OVER:
            return False
        return token not in (r"\circ", r"\\")

    def signed(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        token = self.peek()
        if token in ("-", "+", r"\pm", r"\mp"):
            self.at += 1
            inner = self.signed(depth + 1) if self.peek() in ("-", "+") else self.product(depth + 1)
            return {"-": ("neg", inner), "+": inner}.get(token or "", ("pm", inner, token == r"\mp"))
        return self.power(depth)

    def product(self, depth: int) -> Tree:
        """What a leading sign covers; `term` goes on from here, as -ab/c is the same either way."""
        return self.power(depth)

    def power(self, depth: int) -> Tree:
        base = self.postfix(self.atom(depth + 1), depth)
        if self.peek() == "^":
            self.at += 1
            if self.peek() in (r"\circ", "{") and self._degree():
                return self.postfix(("mul", base, ("const", "degree")), depth)
            return self.postfix(("pow", base, self.exponent(depth + 1)), depth)
        return base

    def _degree(self) -> bool:
        ahead = [self.peek(k) for k in range(3)]
        if ahead[0] == r"\circ":
            self.at += 1
            return True
        if ahead == ["{", r"\circ", "}"]:
            self.at += 3
            return True
        return False

    def exponent(self, depth: int) -> Tree:
        if self.peek() in ("-", "+"):
            return self.signed(depth)
        return self.power(depth)  # right associative: 2^3^2

    def postfix(self, tree: Tree, depth: int) -> Tree:
        while self.peek() == "!":
            self.at += 1
            tree = ("fn", "factorial", (tree,))
        return tree

    def atom(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        token = self.take()
        if _digits(token):
            return self.numeral(token)
        if token in ("|", r"\|", r"\lvert"):
            return ("fn", "abs", (self.group(token, depth),))
        if token in (r"\lfloor", r"\lceil"):
            return ("fn", "floor" if token == r"\lfloor" else "ceil", (self.group(token, depth),))
        if token in CLOSERS and token != r"\langle":
            return self.group(token, depth)
        if token.isalpha():
            return self.symbol(token)
        if token.startswith("\\"):
            return self.command(token[1:], depth)
        raise Unreadable(f"no expression at {token!r}")

    def group(self, opener: str, depth: int) -> Tree:
        inner = self.sum(depth + 1)
        self.take(CLOSERS[opener])
        return inner

    def numeral(self, token: str) -> Tree:
        ahead = self.peek()
        if ahead in (r"\overline", r"\bar", r"\dot") and "." in token:
            self.at += 1
            return ("num", _repeating(token, self.argument_text()), False)
        if ahead == "(" and "." in token and _digits(self.peek(1) or "") and self.peek(2) == ")":
            self.at += 3
            return ("num", _repeating(token, self.tokens[self.at - 2]), False)
        if ahead in (r"\ldots", r"\dots", r"\cdots") and "." in token and self.peek(1) is None:
            self.at += 1
            return ("num", _goes_on(token), False)
        whole = number(token)
        part = self.mixed_part() if token.replace(",", "").isdigit() else None
        return ("num", whole + (part or 0), "." in token)

    def mixed_part(self) -> Fraction | None:
        """The fraction right behind an integer: 2 1/2 or 2\\frac{1}{2}."""
        start = self.at
        parts = None
        if self.peek() == r"\frac":
            self.at += 1
            parts = self.argument_text(one_digit=True), self.argument_text(one_digit=True)
        elif _digits(self.peek() or "") and self.peek(1) == "/" and _digits(self.peek(2) or ""):
            parts = self.tokens[self.at], self.tokens[self.at + 2]
            self.at += 3
        if parts and all(p.isdigit() for p in parts) and 0 < int(parts[0]) < int(parts[1]):
            return Fraction(int(parts[0]), int(parts[1]))
        self.at = start
        return None

    def argument_text(self, *, one_digit: bool = False) -> str:
        """The tokens of a braced argument, or one token, as text."""
        token = self.take()
        if token != "{":
            if one_digit and _digits(token) and len(token) > 1:
                self.tokens[self.at - 1 : self.at] = [token[0], token[1:]]
                return token[0]
            return token
        start, depth = self.at, 1
        while depth:
            depth += {"{": 1, "}": -1}.get(self.take(), 0)
        return "".join(self.tokens[start : self.at - 1])

    def argument(self, depth: int) -> Tree:
        """A braced argument or the next single thing: \\frac12 is one half."""
        token = self.peek() or ""
        if token == "{":
            self.at += 1
            return self.group("{", depth)
        if _digits(token) and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.atom(depth + 1) if not _digits(token) else ("num", number(self.take()), False)

    def symbol(self, name: str) -> Tree:
        while self.peek() in ("'", "_"):
            name += "'" if self.take() == "'" else "_" + self.argument_text()
        if name in ("e", "i"):
            return ("const", name)
        return ("sym", name)

    def command(self, name: str, depth: int) -> Tree:
        if name == "frac":
            return ("div", self.argument(depth), self.argument(depth))
        if name in ("sqrt", "cbrt"):
            return self.root(name, depth)
        if name == "binom":
            return ("fn", "binom", (self.argument(depth), self.argument(depth)))
        if name in FUNCTIONS:
            return self.function(name, depth)
        if name in CONSTANTS:
            return ("const", CONSTANTS[name])
        if name in GREEK_NAMES:
            return self.symbol("\\" + name)
        if name in ACCENTS:
            return self.symbol(f"{name}({self.argument_text()})")
        if name in ("angle", "triangle"):
            return self.symbol(f"{name}({self.argument_text()})")
        if name in STYLES:
            word = self.argument_text()
            if word.lower().lstrip("\\") in FUNCTIONS:
                return self.function(word.lower().lstrip("\\"), depth)
            if name != "text" or len(word) == 1:
                return self.symbol(word)
        raise Unreadable(f"an unknown command: \\{name}")

    def root(self, name: str, depth: int) -> Tree:
        order: Tree = ("num", Fraction(3 if name == "cbrt" else 2), False)
        if self.peek() == "[":
            self.at += 1
            order = self.group("[", depth)
        return ("fn", "root", (self.atom(depth + 1), order))

    def function(self, name: str, depth: int) -> Tree:
        power = base = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                power = self.exponent(depth + 1) if self.peek() != "{" else self.argument(depth)
            else:
                base = self.argument(depth) if self.peek() == "{" else self.atom(depth + 1)
        inner = self.inner(depth)
        if power == ("neg", ("num", Fraction(1), False)) and name in ("sin", "cos", "tan"):
            return ("fn", "arc" + name, inner)
        tree: Tree = ("fn", name, (*inner, base) if base is not None else inner)
        return tree if power is None else ("pow", tree, power)

    def inner(self, depth: int) -> tuple[Tree, ...]:
        """The arguments of a function: bracketed, or the product that follows."""
        token = self.peek()
        if token in ("(", "{", "["):
            self.at += 1
            found = [self.sum(depth + 1)]
            while self.peek() == ",":
                self.at += 1
                found.append(self.sum(depth + 1))
            self.take(CLOSERS[token or ""])
            return tuple(found)
        tree = self.signed(depth + 1) if token in ("-", "+") else self.power(depth + 1)
        while (token := self.peek()) is not None and self.starts(token) and token[1:] not in FUNCTIONS:
            tree = ("mul", tree, self.power(depth + 1))
        return (tree,)


def _digits(token: str) -> bool:
    return token[:1].isdigit() or (token[:1] == "." and len(token) > 1)


def _repeating(lead: str, block: str) -> Fraction:
    if not block.isdigit() or len(block) > 50:
        raise Unreadable("no digits under the line")
    places = len(lead.partition(".")[2])
    return number(lead) + Fraction(int(block), (10 ** len(block) - 1) * 10**places)


def _goes_on(token: str) -> Fraction:
    """0.1666... or 0.142857142857...: the last digits repeat."""
    whole, _, digits = token.partition(".")
    for size in range(1, len(digits) // 2 + 1):
        block = digits[-size:]
        if digits.endswith(block * (3 if size == 1 and len(digits) > 2 else 2)):
            return _repeating(f"{whole}.{digits[:-size]}", block)
    raise Unreadable("digits that go on without repeating")
