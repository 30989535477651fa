"""The option a text settles on, in multiple choice: one function brings gold and answer to a letter.

`option_letter` reads a short statement (a box, a gold): B, (B), B., b, \\text{(B)}, B) 42, Option B. A gold that is a
number counts options from 0, as data sets with integer labels do. `chosen_letter` finds the last statement in a text;
one that names several options, or an option that is not offered, chooses nothing. Only the end of a text is read.
"""

import re

from entrl.verify.answers import ANSWER_WORDS, final_answer
from entrl.verify.characters import plain

TAIL = 4000  # characters at the end in which the choice is looked for
STYLE = re.compile(r"\\(?:text(?:bf|it|rm|sf)?|math(?:bf|rm|sf|it)|mbox|bm)(?![A-Za-z])|[${}*_`\"']|\\[,;:! ()\[\]]|~")
SAID = re.compile(
    r"^(?:the\s)?(?:(?:final|correct|right|best)\s)?(?:answer\s?(?:is|:)?\s?)?(?:option|choice|letter|statement|answer)?\s?:?\s?",
    re.I,
)
MARK = re.compile(
    rf"(?:{ANSWER_WORDS}|\bsolution\b)(?:\s?(?:to|of|for)\b[^.:\n]{{0,60}}?|\s[^\W\d]{{1,12}}(?=\s(?:es|est|ist|è|é)\s))?"
    r"(?:\s(?:is|would be|will be|must be|should be|est|ist|es|è|é)(?![A-Za-z])\s?:?|\s?[:=→是为為は은는]|\s-)\s?"
    r"(?:(?:therefore|thus|hence|clearly|then|definitely|la|le|il|el|die|not\s\(?[A-Z]\)?,?\s(?:but|it is|it's)),?\s)?"
    r"|\b(?:hence|therefore|thus|so|must be),?\s(?=\([A-Za-z]\)|(?:option|choice)\s|[A-Z]\.?\s*$)"
    r"|(?:正确选项|选)\s?(?:是|为|為)?\s?:?\s?"
    r"|\b(?:choose|chose|pick|select|go with|going with)\s"
    r"|\b(?:correct|right|best|final)\s(?:option|choice|letter)\s?(?:is\b|:)\s?:?\s?",
    re.I,
)
AFTER = re.compile(
    r"\b(?:option|choice|answer)?\s?\(?([A-Za-z])\)?\s(?:is|must be)\s(?:the\s)?(?:correct|right|answer|best|true)\b",
    re.I,
)
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s?")
ARTICLES = "AI"  # letters that are words: "A function" chooses nothing
REASONS = {"because", "since", "as", "due", "not", "with", "which", "given", "by", "for", "is"}


def chosen_letter(text: str, letters: str) -> str | None:
    """The option that an answer part settles on, or None; its last statement counts."""
    text = re.sub(r"[^\S\n]+", " ", plain(final_answer(text)[-TAIL:])).strip()
    found = [*_boxes(text, letters), *_marks(text, letters), *_afters(text, letters), *_lines(text, letters)]
    return max(found, key=lambda f: f[0])[1] if found else option_letter(text, letters)


def gold_letter(gold: str, letters: str) -> str:
    """The letter of a gold answer; ValueError for one that is no option."""
    text = re.sub(r"\s+", " ", plain(final_answer(gold))).strip()
    boxed = list(BOX.finditer(text))
    letter = option_letter(_inside(text, boxed[-1].end()) if boxed else text, letters)
    if letter is None and text.isdigit() and int(text) < len(letters):
        letter = letters[int(text)]
    if letter is None:
        raise ValueError(
            f"the gold answer {gold[:80]!r} is none of the options {', '.join(letters)}; "
            "give the letter (or its number from 0), or set 'letters' in the verifier column"
        )
    return letter


def option_letter(statement: str, letters: str) -> str | None:
    """The one option that a short statement names, as its letter in capitals; None for none or several."""
    text = SAID.sub("", re.sub(r"\s+", " ", STYLE.sub(" ", plain(statement)[:400])).strip())
    return _leading(text, letters, whole=True)


def _leading(text: str, letters: str, *, whole: bool) -> str | None:
    """The option at the start of a text, if it is said as one; `whole`: nothing but its own words may follow."""
    found = re.match(r"[(\[]{0,2}\s?([A-Za-z])(?![A-Za-z\d'_^])\s?([)\].:]?)", text)
    if found is None or found[1].upper() not in letters.upper():
        return None
    letter, closed = found[1].upper(), bool(found[2]) or text[0] in "(["
    rest = text[found.end() :].strip()
    if found[1].islower() and not (closed or not rest) and not (not whole and rest[:1] in ".,;"):
        return None
    if _another(rest, letters):
        return None
    follower = re.match(r"[A-Za-z]+", rest)
    if closed or not rest:
        return letter
    if whole or rest[0] in "+-*/=^<>":
        return letter if rest[0] in ",;" and not whole else None
    if letter in ARTICLES and follower and follower[0].lower() not in REASONS:
        return None
    return letter


def _another(rest: str, letters: str) -> bool:
    """Whether a second option is offered: A or B, A and B, A, B, A/B."""
    found = re.match(r"(?:,?\s?(?:or|and)\b|[,/&])\s?\(?([A-Za-z])(?![A-Za-z\d])\)?", rest)
    return found is not None and found[1] in letters.upper() + letters.lower()


def _boxes(text: str, letters: str) -> list[tuple[int, str | None]]:
    """Boxes that speak of options: a letter, or a row of capitals; a box of mathematics is passed over."""
    found = []
    for box in list(BOX.finditer(text))[-20:]:
        inside = _inside(text, box.end())
        letter = option_letter(inside, letters)
        bare = re.sub(r"[\s(),.]|\b(?:and|or)\b", "", STYLE.sub("", inside))
        if letter is not None or (bare.isalpha() and bare.isupper()):
            found.append((box.start(), letter))
    return found


def _inside(text: str, at: int) -> str:
    if text[at : at + 1] != "{":
        return text[at : at + 1]
    depth = 0
    for i in range(at, min(len(text), at + 400)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[at + 1 : i]
    return ""


def _marks(text: str, letters: str) -> list[tuple[int, str | None]]:
    """Statements such as "The answer is B"; one that goes on as a sentence about something else states nothing."""
    found: list[tuple[int, str | None]] = []
    for mark in MARK.finditer(text):
        after = STYLE.sub(" ", text[mark.end() : mark.end() + 200].lstrip(" \n*_:"))
        after = re.sub(r"\\(?:boxed|fbox)(?![A-Za-z])", " ", after.partition("\n")[0])
        after = SAID.sub("", re.sub(r"\s+", " ", after).strip())
        letter = _leading(after, letters, whole=False)
        if letter is not None or re.match(r"\(?[A-Z]{1,3}\)?(?:\s?(?:or|and|,|/)\s?\(?[A-Z]\b|[\s.)]*$)", after):
            found.append((mark.start(), letter))
    return found


def _afters(text: str, letters: str) -> list[tuple[int, str | None]]:
    """B is correct."""
    known = letters.upper()
    return [(m.start(), m[1]) for m in AFTER.finditer(text) if m[1] in known]


def _lines(text: str, letters: str) -> list[tuple[int, str | None]]:
    """A last line that is an option: B, (B), B) 42."""
    start = text.rfind("\n") + 1
    line = text[start:]
    if (said := re.match(r"(?:#{1,6}\s)?[^\W\d](?:[^:\n]{0,30}):\s?(?=\S{1,6}$)|#{1,6}\s?", line)) is not None:
        start, line = start + 1, line[said.end() :]  # Choice: B, in any language
    elif not start:
        return []
    letter = option_letter(line, letters)
    return [(start, letter)] if letter else []
