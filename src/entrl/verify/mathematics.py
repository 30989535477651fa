r"""Equality as mathematics: the statement of a text against a gold answer.

    math_score(r"so \boxed{\frac{2}{4}}", "0.5")  ->  1.0
    quick_score(text, gold)  ->  the same without a child process, or None for what may take long

First the two as they are written (`characters.squeeze`), so everything equals itself at once; then both are read by
`reading` (which runs nothing) and compared by `comparison`. Only formulas it does not know (sums, integrals, limits,
determinants) go to latex2sympy and sympy, in a child process: `quick_score` says None to them.

Rationals are compared exactly: 0.33 is not 1/3. Other numbers agree to 25 digits, or to one part in a million when one
of them is a decimal (3.1415927 is \pi, 3.14 is not). Order counts in (1, 2), not in {1, 2} nor in 1, 2; ends of
intervals are open or closed; an inequality is its interval; equations are curves up to a factor; two alternatives
("5 or 6") are two answers.

Not told apart, on purpose:
- a unit, a percent or degree sign or a base from none (12 cm, 50 %, 60°, 1011_2: 12, 50, 60, 1011); two of them are;
- x = 5 from 5 and from y = 5; f(x) = x^2 from x^2; an open interval from a pair; a vector from a tuple;
- 1, 2 in that order from (1, 2); a set of one from its member; 1:2 from 2:4 (but times of day are told apart);
- 50 % from 0.5, 180° from \pi; capitals from small letters in words; 1.0 from 1 (no significant figures);
- expressions that agree at six points; \ln and \log; a formula that nobody here can read from one written the same.
Not seen as equal: 1,5 and 1.5; ABC and ACB; an equation and its roots; xy = 1 and y = 1/x; words that mean the same;
\sum, \int and the like against anything that sympy cannot work out in the time.
"""

import functools
import re

from entrl.verify.answers import final_answer
from entrl.verify.characters import plain, squeeze
from entrl.verify.choices import option_letter
from entrl.verify.comparison import equal
from entrl.verify.numerics import SAME
from entrl.verify.reading import is_mathematics, read, words
from entrl.verify.statements import Statement, last_box, stated
from entrl.verify.values import Listing, Value, Words

DIGITS = 40  # of what sympy evaluates
MAX_TEXT = 1000  # characters of a statement that is compared as text
MAX_GOLD_WORDS = 25  # a gold of more words is prose; no answer will equal it
OPTION = re.compile(r"\$?(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*(?:\(([A-J])\)|([A-J]))[.)]?\s*\}?(?:\\|\s)*\$?")
LABELLED = re.compile(r"\$?\\(?:text|textbf|mathrm|mathbf)\s*\{\s*(?:\(([A-J])\)|([A-J])[.)])\s*\}.+", re.S)
OPTIONS = "ABCDEFGHIJ"

# What sympy and the LaTeX grammar raise over an answer that is no mathematics: that answer is wrong. Anything else
# (memory, recursion, a bug) says nothing about the answer and must reach the pool as a crash.
UNREADABLE = (ValueError, TypeError, SyntaxError, AttributeError, ArithmeticError, LookupError)


class UnreadableGold(ValueError):
    """A gold answer that no text can be compared with."""


def math_score(text: str, gold: str) -> float:
    """1.0 where the statement of an answer part equals the gold, else 0.0; `UnreadableGold` says whose fault it is."""
    score = quick_score(text, gold)
    if score is None:
        return float(_by_sympy(statement(text, gold).answer, gold_statement(gold)))
    return score


def quick_score(text: str, gold: str) -> float | None:
    """`math_score` where it takes no child process (bounded, safe and mostly under a millisecond); else None."""
    wanted = gold_statement(gold)
    found, line, ending = statement(text, gold)
    if not (found or line):
        return 0.0
    if {squeeze(wanted), squeeze(gold)} & {squeeze(found), squeeze(line)}:
        return 1.0
    option = OPTION.fullmatch(wanted) or LABELLED.fullmatch(wanted)
    if option is not None and option_letter(found, OPTIONS) == (option[1] or option[2]):
        return 1.0
    answer, right = read(found), read(wanted)
    if equal(right, answer) or (isinstance(answer, Words) and _same_text(wanted, found)):
        return 1.0
    if isinstance(right, Words) and _same_text(wanted, found, line, ending):
        return 1.0
    return None if _formula(answer) or _formula(right) else 0.0


def statement(text: str, gold: str) -> Statement:
    """What the text states as its answer; boxes side by side count together where the gold is a list."""
    right = read(gold_statement(gold))
    several = isinstance(right, Listing) and right.kind in ("bare", "set")
    return stated(final_answer(text), several=several, reads=is_mathematics)


@functools.lru_cache(maxsize=4096)
def gold_statement(gold: str) -> str:
    """The answer in a gold: itself, what follows its last ####, or its last box; `UnreadableGold` without one."""
    text = plain(final_answer(gold))
    after = text.rpartition("####")
    found = after[2].strip().partition("\n")[0] if after[1] else last_box(text) if _is_text_with_box(text) else text
    found = (found or "").strip()
    if not re.search(r"\w|\\[{a-zA-Z]", found):
        raise UnreadableGold(
            f"the gold answer {gold[:80]!r} says nothing to compare with; give it a value or drop the row"
        )
    if _unbalanced(found):
        raise UnreadableGold(f"the gold answer {gold[:80]!r} has braces that do not close; mend it or use kind 'exact'")
    if isinstance(read(found), Words) and len(found.split()) > MAX_GOLD_WORDS:
        raise UnreadableGold(
            f"the gold answer {gold[:80]!r} is prose of {len(found.split())} words, which no answer will equal; "
            "give the short answer or use kind 'exact'"
        )
    return found


def is_words(gold: str) -> bool:
    """Whether a readable gold holds no mathematics, so that answers are compared with it as texts."""
    found = read(gold_statement(gold))
    return isinstance(found, Words) and not found.formula


def _same_text(gold: str, *statements: str) -> bool:
    """Whether one way of cutting the statement out is the gold's words."""
    right = words(plain(gold)).squeezed
    return bool(right) and any(words(plain(s)[:MAX_TEXT]).squeezed == right for s in statements)


def _is_text_with_box(text: str) -> bool:
    return "\\boxed" in text or "\\fbox" in text


def _unbalanced(text: str) -> bool:
    depth = 0
    for sign in re.findall(r"\\?.", text, flags=re.S):
        depth += (sign == "{") - (sign == "}")
        if depth < 0 or sign == "\\":
            return True
    return depth > 0


def _formula(value: Value) -> bool:
    """Whether a value holds a formula that only sympy may know."""
    if isinstance(value, Listing):
        return any(map(_formula, value.items))
    return isinstance(value, Words) and bool(value.formula)


def _by_sympy(answer: str, gold: str) -> bool:
    """Equality by math-verify, which reads LaTeX by a grammar; its reader of plain text evaluates and is left out."""
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    try:
        found, right = (
            parse(f"\\boxed{{{s}}}", config, "no_fallback", parsing_timeout=0, raise_on_error=True)[0]
            for s in (answer, gold)
        )
        values = [sympy.N(v.doit(), DIGITS) for v in (found, right)]
        if all(v.is_Number for v in values):
            return bool(abs(values[0] - values[1]) <= sympy.Float(10) ** -SAME * max(map(abs, values)))
        return bool(verify(right, found, timeout_seconds=0, raise_on_error=True))
    except UNREADABLE:
        return False
