"""A statement read into a value: lists, tuples, sets, intervals, equations, quantities, or else words.

    read("x = 2 or x = 3")  ->  Listing("bare", (Named x 2, Named x 3))

Everything is split by text at signs outside of brackets; what is left goes to `expressions`. Nothing is evaluated
here but constant ends of intervals. What cannot be read becomes `Words`, which equal themselves.
"""

import functools
import re

from entrl.verify import regions
from entrl.verify.characters import plain
from entrl.verify.expressions import Tree, Unreadable, expression
from entrl.verify.numerics import has_sign_choice, holds, symbols, with_sign
from entrl.verify.quantities import quantity, tidy
from entrl.verify.values import (
    EMPTY,
    REALS,
    Equation,
    Interval,
    Listing,
    Named,
    Quantity,
    Ratio,
    Region,
    Value,
    Words,
)

MAX_LENGTH = 2000  # characters of a statement; longer ones are words
MAX_PARTS = 200
MAX_DEPTH = 8

OPEN, CLOSE = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"}, {
    ")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end",
}  # fmt: skip
PIECE = re.compile(r"\\[A-Za-z]+|\\.|<=|>=|!=|:=|[A-Za-z]+|\s+|\d[\d.]*|.", re.S)
THOUSANDS = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?![\d,]*,?\d)")
RELATIONS = {
    "=": "=", ":=": "=", r"\equiv": "=", r"\approx": "~", "<": "<", ">": ">", "<=": "<=", ">=": ">=", r"\le": "<=",
    r"\ge": ">=", r"\ne": "!=", "!=": "!=", r"\in": "in",
}  # fmt: skip
NAME = re.compile(
    r"(?:m?\\(?:angle|triangle)\s*|\\)?[A-Za-z]+'*(?:_(?:\w|\{[^{}]*\}))?'*(?:\([A-Za-z\d,\s\\_{}|]{0,30}\))?"
    r"|\\text\{[^{}]*\}|\\frac\{d[^{}]{0,8}\}\{d[^{}]{0,8}\}|(?!.*\b(?:is|are|was|be|at|have|get|that)\b)[A-Za-z:]+(?:\s+[A-Za-z]+){0,5}"
    r"|\\(?:vec|overline|mathbf|hat|bar|overrightarrow)\{[^{}]*\}|\|?[A-Z]{2}\|?"
)
DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}")
CLOCK = re.compile(r"\s*\d{1,2}\s*:\s*\d{2}(?:\s*:\s*\d{2})?\s*")
MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.S)
BRACKETS = {"(": "(", "[": "[", r"\{": "{", r"\langle": "("}
SAYINGS: dict[str, Value] = {
    **dict.fromkeys(("nosolution", "nosolutions", "norealsolution", "norealsolutions", "nosolutionexists", "emptyset",
                     "theemptyset", "therearenosolutions", "therearenosolution", "norealroots"), EMPTY),
    **dict.fromkeys(("allrealnumbers", "allreals", "allrealnumber", "anyrealnumber", "setofallrealnumbers",
                     "allrealvalues", "everyrealnumber"), REALS),
    **dict.fromkeys(("dne", "doesnotexist"), Words("does not exist")),
    "undefined": Words("undefined"),
}  # fmt: skip
NAMES = re.compile(
    r"(?!(?:inf|theta|alpha|beta)\b)[A-Za-z][a-z'-]{2,30}(?: [A-Za-z][a-z'-]{0,30}){0,3}"
)  # Tom and Jerry
EXCEPT = re.compile(
    r"all real numbers,?\s+(?:except(?: for)?|other than|excluding|but)\s+(?:[a-z]\s*=)?\s*(\S.*)", re.I
)
FORMULA = re.compile(r"\\(?:int|sum|prod|lim|det|iint|oint|begin\{vmatrix\})(?![A-Za-z])")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{4,}")


def is_mathematics(text: str) -> bool:
    """Whether a statement reads as something else than words."""
    value = read(text)
    parts = value.items if isinstance(value, Listing) and value.kind == "bare" else (value,)
    return bool(text) and not any(isinstance(p, Words) and not p.formula for p in parts)


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Value:
    """The value of a statement; `Words` for one that is no mathematics."""
    text = tidy(plain(text))
    if not text or len(text) > MAX_LENGTH or DATE.fullmatch(text):
        return words(text[:MAX_LENGTH])
    try:
        return _read(text, 0)
    except (Unreadable, RecursionError):
        return words(text)


def words(text: str) -> Words:
    """A statement as text: without styles, full stops, an article in front; in small letters."""
    found = re.sub(r"\\(?:text|textbf|textit|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    found = re.sub(r"(\\[A-Za-z]+)\s+", r"\1", re.sub(r"\{(\w)\}", r" \1", found))
    found = re.sub(r"\s+", " ", re.sub(r"(?<!\d)\.|\.(?!\d)|[\"'`*]", "", found)).strip(" ,:;!").lower()
    found = re.sub(r"^(?:the|an|a)\s+(?=\w{2})", "", found)
    return Words(
        re.sub(r"\s*([^\w\s])\s*", r"\1", found), text if FORMULA.search(text) and not PROSE.search(text) else ""
    )


def _read(text: str, depth: int) -> Value:
    text = text.strip().rstrip(".,;:").strip()
    if depth > MAX_DEPTH:
        raise Unreadable("nested too deep")
    if not text:
        raise Unreadable("empty")
    for reader in (_saying, _union, _several, _relation, _ratio, _bracketed, _matrix):
        value = reader(text, depth)
        if value is not None:
            return value
    return _plain(text)


def _saying(text: str, depth: int) -> Value | None:
    bare = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    if re.fullmatch(r"\\emptyset|\\\{\s*\\\}|\\\{\s*\\emptyset\s*\\\}", bare):
        return EMPTY
    if re.fullmatch(r"(?:[A-Za-z]\s*\\in\s*)?\\math(?:bb|bf|rm)\s*\{?R\}?", bare):
        return REALS
    if (but := EXCEPT.fullmatch(bare)) is not None:
        return regions.complement(_region(r"\{" + but[1] + r"\}", depth))
    return SAYINGS.get(re.sub(r"[\s.]", "", bare).lower())


def _union(text: str, depth: int) -> Value | None:
    text = re.sub(r"(?<=[\])}])\s*(?:U|\\bigcup)\s*(?=[\[(\\])", r"\\cup ", text)
    parts = _split(text, {r"\cup"})
    if len(parts) > 1:
        return regions.union([_region(part, depth) for part in parts])
    parts = _split(text, {r"\cap"})
    if len(parts) > 1:
        return _both([_region(part, depth) for part in parts])
    parts = _split(text, {r"\setminus", r"\backslash", "\\ "})
    if len(parts) == 2:
        without = regions.complement(_region(parts[1], depth))
        return _both([_region(parts[0], depth), without]) if without else None
    return None


def _region(text: str, depth: int) -> Region:
    value = _read(text, depth + 1)
    found = regions.as_region(value)
    if found is None and isinstance(value, Listing) and value.kind == "set":
        found = regions.from_points(value.items)
    if found is None:
        raise Unreadable("no set of real numbers")
    return found


def _both(parts: list[Region]) -> Region:
    found: Region | None = parts[0]
    for part in parts[1:]:
        found = regions.intersection(found, part) if found else None
    if found is None:
        raise Unreadable("ends that are no numbers")
    return found


def _several(text: str, depth: int) -> Value | None:
    """1, 2 and 3: several values; inequalities joined into one region."""
    parts = [p.strip() for p in _split(text, {",", ";", "and", "or"}, thousands=True)]
    parts = [p for p in parts if p]
    if len(parts) < 2:
        return None
    if len(parts) > MAX_PARTS:
        raise Unreadable("too many")
    values = [words(p) if NAMES.fullmatch(p) else _read(p, depth + 1) for p in parts]
    found = [v for v in values if isinstance(v, Region)]
    if len(found) == len(values):
        overlap = _both(found) if not _split(text, {"or"})[1:] else EMPTY
        return overlap if overlap.parts else regions.union(found)
    if len(found) == len(values) - 1 and found and re.search(r"\\(?:in|ne)\b|[<>]", text):
        return _with_condition(values)
    return Listing("bare", tuple(_common_name(_flat(values))))


def _with_condition(values: list[Value]) -> Value:
    """y = 2x, x > 0: the condition is dropped when it stands last; it is seldom repeated."""
    if isinstance(values[-1], Region) and not isinstance(values[0], Region):
        return values[0]
    raise Unreadable("a mixture of regions and values")


def _flat(values: list[Value]) -> list[Value]:
    found: list[Value] = []
    for value in values:
        found += value.items if isinstance(value, Listing) and value.kind == "bare" else [value]
    return found


def _common_name(values: list[Value]) -> list[Value]:
    """n = 1, 2, 3 and x = 2 or x = 3 and x_1 = 2, x_2 = 3 are lists of values; x = 1, y = 2 keeps its names."""
    names = [re.sub(r"_.*", "", v.name) for v in values if isinstance(v, Named)]
    if not names or len(set(names)) > 1 or not isinstance(values[0], Named):
        return values
    return _flat([v.value if isinstance(v, Named) else v for v in values])


def _relation(text: str, depth: int) -> Value | None:
    signs: list[str] = []
    sides = [s.strip() for s in _split(text, set(RELATIONS), found=signs)]
    if len(sides) < 2:
        return None
    kinds = [RELATIONS[s] for s in signs]
    if kinds[0] == "in" and len(sides) == 2:
        return _read(sides[1], depth + 1)
    if all(k in "=~" for k in kinds):
        return _equation(sides, kinds, depth)
    if "in" in kinds or "~" in kinds:
        raise Unreadable("a mixture of relations")
    return _inequality(sides, kinds)


def _equation(sides: list[str], kinds: list[str], depth: int) -> Value:
    if kinds[-1] == "~" and len(sides) > 1 and not (len(sides) == 2 and NAME.fullmatch(sides[0])):
        sides = sides[:-1]  # 2\pi \approx 6.28: the exact one
        if len(sides) == 1:
            return _read(sides[0], depth + 1)
    first, last = sides[0], sides[-1]
    if NAME.fullmatch(first) and not _is_product(first):
        return Named(re.sub(r"\s", "", first), _read(last, depth + 1))
    try:
        left = expression(first)
    except Unreadable:
        if len(sides) == 2 and re.fullmatch(r"[A-Za-z\s\\{}().,'%$-]+", first):  # Area of the triangle (in cm)
            return Named(re.sub(r"\s", "", first), _read(last, depth + 1))
        raise
    if not symbols(left):
        return _read(last, depth + 1)
    if NAME.fullmatch(last) and not symbols(left):
        return Named(last, _read(first, depth + 1))
    return Equation(left, expression(last), asked=_asked(left))


def _asked(tree: Tree) -> bool:
    """Whether a side is what a question may ask for: m + n = 12 states 12, 2x = 10 does not."""
    if tree[0] == "pow":
        return _asked(tree[1])
    return len(symbols(tree)) > 1 and not holds(tree, lambda node: node[0] in ("num", "fn"))


def _is_product(name: str) -> bool:
    """xy = 6 is a curve, Area = 6 and AB = 6 are names."""
    return 2 <= len(name) <= 3 and name.isalpha() and name.islower()


def _inequality(sides: list[str], kinds: list[str]) -> Value:
    trees = [expression(s) for s in sides]
    found: list[Region] = []
    for left, kind, right in zip(trees, kinds, trees[1:], strict=False):
        region = regions.solved(left, kind, right)
        if region is None:
            if len(trees) > 2:
                raise Unreadable("a chain that is not linear")
            if kind in (">", ">="):
                left, kind, right = right, regions.FLIPPED[kind], left
            return Equation(left, right, kind)  # type: ignore[arg-type]
        found.append(region)
    return _both(found)


def _ratio(text: str, depth: int) -> Value | None:
    parts = _split(text, {":"})
    if len(parts) < 2 or not all(p.strip() for p in parts):
        return None
    return Ratio(tuple(expression(p) for p in parts), bool(CLOCK.fullmatch(text)))


def _bracketed(text: str, depth: int) -> Value | None:
    """A tuple, a set or an interval that fills the whole text."""
    text = re.sub(r"^[A-Z]\s*(?=\()", "", text) if "," in text else text  # P(1, 2)
    ends = _outer(text)
    if ends is None:
        return None
    opener, inner, closer = ends
    if opener == r"\{" and closer == r"\}":
        condition = _split(inner, {"|", r"\mid", ":"})
        if len(condition) == 2:
            return _region(condition[1], depth)
    parts = [p.strip() for p in _split(inner, {",", ";"})]
    if opener == r"\{":
        if any(re.fullmatch(r"\\[lc]?dots", p) for p in parts):
            raise Unreadable("a set that goes on")
        return Listing("set", tuple(_flat([_item(p, depth) for p in parts])))
    if len(parts) < 2:
        if opener == "[" and closer == "]":
            return Listing("closed", (_item(inner, depth),))
        return _read(inner, depth + 1) if not _is_expression(text) else None
    items = tuple(_item(p, depth) for p in parts)
    if {opener, closer} == {"(", "]"} or {opener, closer} == {"[", ")"}:
        low, high = items if len(items) == 2 else (None, None)
        if not (isinstance(low, Quantity) and isinstance(high, Quantity)):
            raise Unreadable("half an interval")
        return regions.merged([Interval(low.tree, high.tree, opener == "(", closer == ")")])
    return Listing("closed" if opener == "[" else "tuple", items)


def _item(text: str, depth: int) -> Value:
    try:
        return _read(text, depth + 1)
    except Unreadable:
        return words(text)


def _is_expression(text: str) -> bool:
    try:
        expression(text)
    except Unreadable:
        return False
    return True


def _outer(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) when one pair of brackets holds the whole text."""
    pieces = PIECE.findall(text)
    if not pieces or pieces[0] not in BRACKETS:
        return None
    depth = 0
    for k, piece in enumerate(pieces):
        depth += (piece in OPEN) - (piece in CLOSE)
        if depth == 0:
            closer = "}" if piece == "}" else piece
            return (pieces[0], "".join(pieces[1:k]), closer) if k == len(pieces) - 1 else None
    return None


def _matrix(text: str, depth: int) -> Value | None:
    found = MATRIX.fullmatch(text)
    if found is None:
        return None
    rows = [r for r in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr\b", found[2]) if r.strip()]
    cells = [[_item(c.strip(), depth) for c in row.split("&")] for row in rows]
    if len(cells) == 1 or all(len(row) == 1 for row in cells):
        return Listing("tuple", tuple(c for row in cells for c in row))
    return Listing("rows", tuple(Listing("tuple", tuple(row)) for row in cells))


def _plain(text: str) -> Value:
    found = quantity(text)
    if has_sign_choice(found.tree):
        return Listing("bare", tuple(Quantity(with_sign(found.tree, s), found.unit) for s in (1, -1)))
    return found


def _split(text: str, at: set[str], *, thousands: bool = False, found: list[str] | None = None) -> list[str]:
    """The text split at signs outside of brackets; a comma between thousands (1,234) is none."""
    kept = (
        {m.start() + k for m in THOUSANDS.finditer(text) for k, c in enumerate(m[0]) if c == ","} if thousands else ()
    )
    parts, depth, where = [""], 0, 0
    for piece in PIECE.findall(text):
        depth = max(0, depth + (piece in OPEN) - (piece in CLOSE))
        if piece in at and depth == 0 and where not in kept:
            parts.append("")
            if found is not None:
                found.append(piece)
        else:
            parts[-1] += piece
        where += len(piece)
    return parts


__all__ = ["Tree", "is_mathematics", "read", "words"]
