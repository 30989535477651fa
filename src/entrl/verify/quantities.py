"""One number or expression as it is written: LaTeX spacing and styles, money, units, percent, number bases."""

import re
from fractions import Fraction

from entrl.verify import units
from entrl.verify.expressions import FUNCTIONS, Tree, Unreadable, expression
from entrl.verify.values import Quantity

MONEY = "\x01"  # a dollar that is money; any other dollar sign is a delimiter
SPACES = re.compile(r"(?<!\\)\\[,;: >!]|~|\\q?quad\b|\\(?:thin|med|thick|neg\w*)space\b|\\hspace\*?\{[^{}]*\}")
SIZES = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut"
    r"|strut)(?![A-Za-z])\s*\.?(?=\s*)"
)
SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "degree": "circ", "lbrace": "{", "rbrace": "}",
    "lvert": "|", "rvert": "|", "vert": "|", "lbrack": "[", "rbrack": "]", "lor": "vee", "land": "wedge",
    "bigcup": "cup", "dbinom": "binom", "tbinom": "binom", "textdegree": "circ", "dots": "ldots", "backslash":
    "setminus", "smallsetminus": "setminus", "colon": ":", "Reals": "R", "triangleq": "=",
}  # fmt: skip
RENAMED = re.compile(rf"\\({'|'.join(SAME)})(?![A-Za-z])\s?")
TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|mathrm|mathsf|textup|hbox|rm)\s*(?=\{)")
SYSTEM = re.compile(r"\\(?:begin|end)\{(?:cases|aligned|align\*?|gathered|split|dcases)\}")
ABOUT = re.compile(
    r"^(?:\\approx|\\sim|(?:\\text\{\s*)?(?:approximately|about|roughly|around|exactly)\b\s*\}?)\s*(?=\S)",
    re.IGNORECASE,
)
JOIN = re.compile(r"\\text\{\s*,?\s*(and|or)\s*,?\s*\}|\\(?:quad\s*)?(vee|wedge)(?![A-Za-z])")
CURRENCY = re.compile(r"([-+]?)\s*(?:US\s?)?([\x01£€¥₹])\s*([-+]?.+)", re.S)
BASED = re.compile(
    r"\(?\s*([0-9][0-9A-Za-z]*|[A-Z0-9]{2,})\s*\)?\s*(?:_\{?\s*(?:\\text\{)?\s*(\w+)\s*\}?\}?|\s+base\s+(\w+))"
)
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
         "twelve": 12, "sixteen": 16, "hex": 16, "bin": 2, "oct": 8}  # fmt: skip
DEGREES = re.compile(r"((?:(?!\\(?:sin|cos|tan|cot|sec|csc)).)+?)\s*\^\s*\\circ\s*([CF]?)", re.S)
DOTTED = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?(?![\d.,])")  # 1.234.567,8 is no decimal
SPACED = re.compile(r"(?<![\d.,/])(\d{1,3})((?: \d{3})+)(?![\d/])")
SUFFIX = re.compile(r"(.*?[\d)}!\]])(\s*)((?:[A-Za-zµ]|\\circ|\\%|%|¢)[A-Za-zµ\s./^{}\-\d]*)", re.S)
MAX_UNIT_WORDS = 4
NO_UNITS = {"pi", "and", "or", "is", "are", "was", "because", "since", "as", "which", "when", "where", "if", "so",
            "not", "less", "than", "least", "most", "between", "except"}  # fmt: skip
PAIR = re.compile(r"\s*(\d[\d.,/]*)\s*(?:\\text\{([^{}\d]+)\}|([A-Za-z]{1,12}))\s*(?:,|\band\b)?")
SMALL_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
NUMBER_WORDS = {word: k for k, word in enumerate(SMALL_NUMBERS.split())}


def tidy(text: str) -> str:
    """A statement without what only sets its type: spaces, sizes, styles, delimiters of mathematics."""
    text = (
        text.replace("...", r"\ldots ")
        .replace(r"\$", MONEY)
        .replace(r"\%", "%")
        .replace(r"\#", "#")
        .replace(r"\&", "&")
    )
    text = re.sub(r"(?<=\d)'(?=\d{3})", "", re.sub(DOTTED, _undotted, text))
    text = re.sub(r"\(\s*(or|and)\s([^()]*)\)", r" \1 \2", text)
    text = text.replace("{,}", ",").replace("{.}", ".").replace(r",\!", ",").replace(r"\!", "")
    text = re.sub(r"\\([()\[\]])(?!\w*\])", "", text) if re.search(r"\\[(\[]", text) else text
    if r"\begin" not in text or SYSTEM.search(text):
        text = SYSTEM.sub(" ", text).replace("&", " ").replace(r"\\", ", ")  # lines of a system are a list
    text = re.sub(r"\\q?quad(?![A-Za-z])(?=[^,]*[=<>])", ", ", text)
    text = SPACES.sub(" ", SIZES.sub("", text))
    text = _undelimited(text).replace("$", MONEY)
    text = re.sub(r"\\(pounds|euro)(?![A-Za-z])\s?", lambda m: "£" if m[1] == "pounds" else "€", text)
    text = RENAMED.sub(lambda m: "\\" + SAME[m[1]] + " " if SAME[m[1]].isalpha() else _sign(SAME[m[1]]), text)
    text = TEXT.sub(r"\\text", text)
    text = re.sub(r"\{\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"^\\text\{[^{}]*(?::|\bis)\s*\}\s*(?=\S)", "", text)
    text = re.sub(r"\\circ\s*\\text\{\s*([CF])\s*\}", r"\\circ \1", text)
    text = ABOUT.sub("", text.strip())
    text = JOIN.sub(lambda m: f" {m[1] or ('or' if m[2] == 'vee' else 'and')} ", text)
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}", r"^\\circ ", text)
    text = re.sub(r"(?<=[\d.)}])\s*[xX]\s*(?=10\s*\^)", r"\\times ", text)
    text = re.sub(r"\\text\{\s*([-+]?[\d.,/]+|[\x01£€¥₹%])\s*\}", r"\1", text)  # \text{13}
    text = re.sub(r"\\text\{\s*([A-Za-z])\s*\}(?=\s*(?:[=_<>]|$))", r"\1", text) if text.startswith("\\text") else text
    text = SPACED.sub(lambda m: m[1] + m[2].replace(" ", ""), re.sub(r"[ \t\n\r]+", " ", text))
    return re.sub(r"^(\d+)\s+to\s+(\d+)$", r"\1:\2", _unwrapped(text.strip().rstrip(".,;:").strip()))


def _undotted(found: re.Match[str]) -> str:
    return found[0].replace(".", "").replace(",", ".")


def _sign(sign: str) -> str:
    return "\\" + sign if sign in "{}" else sign


def _undelimited(text: str) -> str:
    text = text.replace("$$", " ")
    return re.sub(r"\$(?=\S)([^$]*)(?<=\S)\$(?!\d)", r"\1", text)


def _unwrapped(text: str) -> str:
    """A statement that is one styled text or one braced group: what it holds."""
    for _ in range(4):
        inner = re.fullmatch(r"(?:\\(?:text|boxed|mathbf|boldsymbol|displaystyle)\s*)?\{([^{}]*)\}", text)
        if inner is None:
            break
        text = inner[1].strip().rstrip(".")
    return text


def quantity(text: str) -> Quantity:
    """An expression with its unit; `Unreadable` for anything else."""
    if (based := _based(text)) is not None:
        return based
    if text.lower() in NUMBER_WORDS:
        return Quantity(("num", Fraction(NUMBER_WORDS[text.lower()]), False))
    money = CURRENCY.fullmatch(re.sub(r"(.*\d)\s?([\x01£€¥₹])", r"\2\1", text) if text[-1] in "\x01£€¥₹" else text)
    if money:
        inner = quantity(money[3])
        tree = ("neg", inner.tree) if money[1] == "-" else inner.tree
        name = {MONEY: "dollar"}.get(money[2], money[2])
        return Quantity(tree, units.unit(name) if not inner.unit.name else inner.unit)
    if len(pairs := PAIR.findall(text)) > 1 and PAIR.sub("", text).strip() == "":
        return _together(pairs)
    suffix = SUFFIX.fullmatch(text)
    if DEGREES.fullmatch(text) or (suffix and _known_unit(suffix[3].strip(), bool(suffix[2]))):
        return _with_unit(text)
    readers = (_with_unit, _bare) if text.find(r"\text{") > 0 else (_bare, _with_unit)
    try:
        return readers[0](text)
    except Unreadable:
        return readers[1](text)


def _bare(text: str) -> Quantity:
    return Quantity(expression(text))


def _together(pairs: list[tuple[str, str, str]]) -> Quantity:
    """2 hours 30 minutes: a sum in the first unit."""
    found = [(expression(size), units.unit(styled or bare)) for size, styled, bare in pairs]
    first = found[0][1]
    if not first.name or any(one.name != first.name for _, one in found):
        raise Unreadable("a row of quantities of several kinds")
    terms = tuple(("mul", tree, ("num", one.factor / first.factor, False)) for tree, one in found)
    return Quantity(("add", terms), first)


def _based(text: str) -> Quantity | None:
    found = BASED.fullmatch(text)
    if found is None:
        return None
    name = (found[2] or found[3]).lower()
    base = BASES.get(name, int(name) if name.isdigit() and len(name) < 3 else 0)
    try:
        value = int(found[1], base) if 2 <= base <= 36 and len(found[1]) < 500 else None
    except ValueError:
        return None
    return (
        None
        if value is None
        else Quantity(("num", Fraction(value), False), base=base, digits=found[1].lstrip("0") or "0")
    )


def _with_unit(text: str) -> Quantity:
    head, words = _unit_split(text)
    tree = expression(head)
    count, _, rest = words.strip().partition(" ")
    if count.lower() in units.COUNTS:
        size: Tree = ("num", Fraction(units.COUNTS[count.lower()]), False)
        return Quantity(("mul", tree, size), units.unit(rest))
    return Quantity(tree, units.unit(words))


def _unit_split(text: str) -> tuple[str, str]:
    """(expression, words of the unit) of 12\\text{ cm}, 12 cm, 60^\\circ, 50%, 7 apples."""
    if "%" in text and text.rstrip().endswith("%"):
        return text.rstrip()[:-1], "%"
    styled = text.find(r"\text{")
    if styled > 0:
        tail = re.sub(r"\\text\{([^{}]*)\}", r"\1", text[styled:])
        head = text[:styled].rstrip(" \\cdot*") if text[:styled].rstrip().endswith((r"\cdot", "*")) else text[:styled]
        plain_tail = re.sub(r"\^\s*\{?\s*-?\d", "", tail)
        if re.fullmatch(r"[\w\s./^{}\-%¢()\\\x01]*", tail) and not re.search(r"\d|\\(?!circ)", plain_tail):
            head = re.sub(r"\^\s*\{?\s*$", "", head.rstrip())  # 5^{\text{th}}
            if len(letter := tail.strip(" }{")) == 1 and not units.known(letter):
                raise Unreadable("a letter: 2\\text{i}")
            if NO_UNITS & set(re.findall(r"[a-z]+", tail.lower())):
                raise Unreadable("words that are no unit")
            return head, tail.strip(" }{") if "^" not in tail else tail.strip()
        raise Unreadable("words among the numbers")
    degrees = DEGREES.fullmatch(text)
    if degrees:
        return degrees[1], (r"\circ " + degrees[2]).strip()
    found = SUFFIX.fullmatch(text)
    if found is None or not _may_be_unit(found[3].strip(), bool(found[2])):
        raise Unreadable("no unit")
    return found[1], found[3]


def _may_be_unit(words: str, apart: bool) -> bool:
    """Whether words behind a number are a unit: one of the table, or other words of three letters and more."""
    first = re.match(r"[A-Za-z]+", words)
    if _known_unit(words, apart):
        return True
    if not first or not apart or len(first[0]) < 3 or re.search(r"\d(?<!\^\d)(?<!\^\{\d)", words):
        return False
    parts = re.findall(r"[A-Za-z]+", words.lower())
    return len(parts) <= MAX_UNIT_WORDS and not any(w in FUNCTIONS or w in NO_UNITS for w in parts)


def _known_unit(words: str, apart: bool) -> bool:
    """A unit of the table; a single letter only where a space or its style sets it apart from a product."""
    return units.known(words) and (apart or len(re.match(r"[A-Za-z]*", words)[0]) != 1)  # type: ignore[index]
