"""One table of characters: what people and models type for the same sign, brought to plain LaTeX.

`plain` is applied to answers and to golds alike, before anything is looked for in them. Whole texts are translated,
so it is linear. Not told apart after it: a hyphen, a dash and a minus; `×` and `\\times`; `½` and `\\frac{1}{2}`;
full-width and plain letters and digits; digits of any script; curly and straight quotes; spaces of any width.
"""

import re
import unicodedata

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₙₘₖᵢⱼₓ", "0123456789+-=()aenmkijx", strict=True))
GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
GREEK = dict(zip("αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ", GREEK_NAMES.split(), strict=True))

COMMANDS = {
    "×": "times", "✕": "times", "✖": "times", "⨯": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "∗": "cdot",
    "√": "sqrt", "π": "pi", "𝜋": "pi", "∞": "infty", "≤": "le", "⩽": "le", "≦": "le", "≥": "ge", "⩾": "ge",
    "≧": "ge", "≠": "ne", "≈": "approx", "≅": "cong", "≡": "equiv", "±": "pm", "∓": "mp", "∪": "cup", "∩": "cap",
    "∈": "in", "∅": "emptyset", "⌀": "emptyset", "ø": "emptyset", "Ø": "emptyset", "⟨": "langle", "〈": "langle",
    "⟩": "rangle", "〉": "rangle", "∠": "angle", "△": "triangle", "∑": "sum", "∏": "prod", "∫": "int", "⌊": "lfloor",
    "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "…": "ldots", "⋯": "cdots", "→": "to", "∖": "setminus", "∨": "vee",
    "∧": "wedge", "ϕ": "phi", "ϵ": "epsilon", "ϑ": "theta", "ℓ": "ell", "∣": "mid", "∥": "parallel",
}  # fmt: skip

LETTERS = {
    **dict.fromkeys("−‐‑‒–—―﹣－➖˗", "-"),
    **dict.fromkeys("‘’‚‛′`´ʼ", "'"),
    **dict.fromkeys("“”„‟″«»「」『』", '"'),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u00ad\u2061\u2062\u2063\ufe0e\ufe0f", ""),
    **dict.fromkeys("\u2028\u2029\x85", "\n"),
    "÷": "/", "∕": "/", "⁄": "/", "∶": ":", "﹕": ":", "。": ".", "、": ",", "٫": ".", "٬": ",", "＄": "$",
    "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F",
    "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "µ": r"\mu ", "∘": r"\circ ",
}  # fmt: skip

TABLE = str.maketrans(
    {**LETTERS, **{sign: f"\\{name} " for sign, name in (COMMANDS | GREEK).items()}, "\u2009": " ", "\u202f": " "}
)
RAISED = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
LOWERED = re.compile(f"[{''.join(SUBSCRIPTS)}]+")
FRACTION = re.compile("[¼-¾⅐-⅞]")


def plain(text: str) -> str:
    """The text in ASCII where the table reaches; other letters (names, other scripts) stay."""
    if text.isascii():
        return text
    text = RAISED.sub(lambda m: f"^{{{''.join(SUPERSCRIPTS[c] for c in m[0])}}}", text)
    text = LOWERED.sub(lambda m: f"_{{{''.join(SUBSCRIPTS[c] for c in m[0])}}}", text)
    text = FRACTION.sub(_fraction, text).translate(TABLE)
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text).translate(TABLE)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def _fraction(found: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", found[0]).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def squeeze(text: str) -> str:
    """For comparing as written: no space but between two letters or two digits, no sentence's full stop."""
    text = re.sub(r"\s+", " ", plain(text).strip().rstrip(" ."))
    return re.sub(r"(?<=[^\w,]) | (?=[^\w])|(?<=\d) (?=[^\W\d])|(?<=[^\W\d]) (?=\d)", "", text)
