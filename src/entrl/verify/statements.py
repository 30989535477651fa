"""The statement of an answer in a text: which few characters of it a person would read out as the result.

In this order: the last box; what follows the last ####; what follows the last "answer is" or "Answer:"; the last
line that states something. One statement is chosen by its form alone, never by what the gold is, so no text
can offer several answers and be paid for the right one. Boxes that stand beside each other (\\boxed{3} and \\boxed{4})
are one list where the gold is a list. An empty last box states nothing.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from entrl.verify.answers import ANSWER_WORDS
from entrl.verify.characters import plain

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s{0,5}")
BARE = re.compile(r"-?[\w.,/%\\]+")  # \boxed 5
BRACE = re.compile(r"\\.|[{}]", re.S)  # escaped ones do not count
MAX_BOX = 4000  # characters in a box; no answer is that long
MAX_BOXES = 20  # boxes side by side
TAIL = 4000  # characters at the end in which an answer without a box is looked for
MAX_LINE = 1000  # characters of a line, the last ones, or the first ones behind a mark
LINES = 12  # lines from the end in which it is looked for

BESIDE = re.compile(r"(?:[\s$.,;&]|\\text\s?\{\s{0,3}(?:and|or)\s{0,3}\}|\\[()\[\],;]|\b(?:and|or)\b|\*\*|\\quad)*")
MARK = re.compile(
    rf"{ANSWER_WORDS}(?:[^.\n:=]{{0,80}}?(?:\b(?:is|are|be|was|equals|es|est|ist|è|é)\b|[:=是为為は])|\s{{1,3}}-(?=\s))\s{{0,10}}:?",
    re.IGNORECASE,
)
SEGMENT = re.compile(
    r"\$\$([^$]{1,1000})\$\$|\\\[(.{1,1000}?)\\\]|\\\((.{1,1000}?)\\\)|\$(?=\S)([^$\n]{1,500})(?<=\S)\$(?!\d)", re.S
)
BOLD = re.compile(r"\*\*([^*\n]{1,300})\*\*")
SENTENCE = re.compile(r"(?<=[^\s.A-Z])[.!?](?=\s|$)|(?<=[^\s.])[.!?](?=$|\s+[A-Z])|\n")
VERB = re.compile(r"\b(?:is|are|was|were|equals|be|get|have|gives|has)\b\s*:?|[:=]|\\approx|\\implies|=>")
BEING = re.compile(r"\b(?:is|are|was|were|equals|be)\b\s*:?")
OPENING = re.compile(
    r"^(?:(?:so|thus|therefore|hence|then|finally|and|or|now|we|get|have|find|obtain|that|in total|altogether|total|it"
    r"|approximately|about|exactly|just|only|equal to|equals|simply|is|are|be|to|either|both)\b[\s,:]*)+",
    re.IGNORECASE,
)
LEAD = re.compile(r"^(?:[\s*_:]|\b(?:thus|therefore|then|hence|simply|just|given by|as follows)\b)*", re.IGNORECASE)
CONCLUSION = re.compile(r"\b(?:so|thus|hence|therefore)\b(?!.*\b(?:so|thus|hence|therefore)\b)", re.IGNORECASE)
DENIED = re.compile(r"\bnot\s[^.\n]{1,60}?,?\sbut\s(?:rather\s)?|(?:,|\sand)\snot\s[^.,\n]{1,40}(?=[.\s]*$)", re.I)
DENYING = re.compile(r"^[\s*]*not\b|\b(?:is|are|was|were|be)\s+not\b|\b(?:isn|wasn|aren|can)'t\b", re.I)
CLAUSE = re.compile(r"[.;,]\s|\b(?:so|thus|hence|therefore|but)\b", re.I)
CLOSING = re.compile(
    r"\s*(?:,?\s*\b(?:because|since|as|which|where|when|so|for|that|if|by|with|from|in total|altogether|left|i hope|"
    r"respectively|each|per person|every)\b.*|\s\((?!or\b|and\b)[A-Za-z][^()]*\))$",
    re.IGNORECASE | re.S,
)
NUMBER = re.compile(
    r"(?<![\w.,])[-+]?\s?[$£€¥₹]?(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)?(?:\.\d+|(?<=\d))(?:/\d+|\s?%|\^\\circ)?(?![\w^])"
)


class Statement(NamedTuple):
    """An answer as stated: what reads as mathematics in it, its whole line, and the words at the line's end."""

    answer: str
    line: str = ""
    words: str = ""


def stated(text: str, *, several: bool, reads: Callable[[str], bool]) -> Statement:
    """The statement of a text's answer, empty where there is none.

    several: boxes beside each other are one list. reads: whether a string is mathematics, for choosing among forms.
    """
    text = plain(text)
    boxed = _boxed(text, several)
    if boxed is not None:
        return Statement(boxed)
    hashed = text.rpartition("####")
    if hashed[1]:
        return Statement(_clean(hashed[2].strip().partition("\n")[0]))
    tail = re.sub(r"[^\S\n]+", " ", text[-TAIL:])
    marks = [found.end() for found in MARK.finditer(tail)]
    if marks and (after := _paragraph(tail[marks[-1] :])):
        return _narrow(after, reads, last=False)
    lines = [line for line in tail.splitlines() if line.strip(" *_#-")][-LINES:]
    for line in reversed(lines):
        found = _narrow(line, reads, last=True)
        if reads(found.answer):
            return found
    return _narrow(lines[-1], reads, last=True) if lines else Statement("")


def last_box(text: str) -> str | None:
    """What the last box of a text holds; None without a box that closes."""
    return _boxed(plain(text), several=False)


def _boxed(text: str, several: bool) -> str | None:
    boxes = list(BOX.finditer(text))[-MAX_BOXES:]
    found: list[tuple[int, int, str]] = []  # the last ones, from the end
    for box in reversed(boxes):
        end, content = _content(text, box.end())
        if content is None:
            continue
        if found and (not several or end > found[-1][0] or not BESIDE.fullmatch(text[end : found[-1][0]][:80])):
            break
        found.append((box.start(), end, content))
    return ", ".join(content for _, _, content in reversed(found)) if found else None


def _content(text: str, at: int) -> tuple[int, str | None]:
    """Where a box ends and what it holds; None when it does not close."""
    if at >= len(text):
        return at, None
    if text[at] != "{":
        bare = BARE.match(text, at)
        return (bare.end(), bare[0].rstrip(".,")) if bare else (at, None)
    depth = 0
    for brace in BRACE.finditer(text, at, at + MAX_BOX):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0 and len(brace[0]) == 1:
            return brace.end(), text[at + 1 : brace.start()].strip()
    return at, None


def _paragraph(text: str) -> str:
    """The rest of the line, or the next line that says something; a display formula is one line."""
    text = LEAD.sub("", text)
    if text.startswith((r"\[", "$$")):
        found = SEGMENT.match(text)
        return found[0] if found else text.partition("\n")[0]
    return text.partition("\n")[0]


def _narrow(line: str, reads: Callable[[str], bool], *, last: bool) -> Statement:
    """The part of a line that is the answer: the first candidate that reads as mathematics, else its words."""
    line = line[-MAX_LINE:] if last else line[:MAX_LINE]
    said = DENIED.sub("", line)
    if DENYING.search(CLAUSE.split(said.rstrip(" ."))[-1] if last else said[:4]):
        return Statement("", _clean(line), _clean(line))
    candidates = list(_candidates(said, last))
    return Statement(next((c for c in candidates if c and reads(c)), candidates[-1]), _clean(line), candidates[-1])


def _candidates(line: str, last: bool) -> Iterator[str]:
    """Ways to cut an answer out of a line, the widest first: of its last sentence, or of its first behind a mark."""
    concluded = CONCLUSION.search(line[-400:]) if last else None
    conclusion = re.sub(r"[.!?]\s*$", "", line[-400:][concluded.end() :]) if concluded else ""
    yield _trimmed(conclusion)
    yield _clean(line)
    sentences = [s for s in SENTENCE.split(line) if s and s.strip(" *_")]
    if not sentences:
        return
    pick = -1 if last else 0
    sentence = conclusion if re.search(r"[\d\\]", conclusion) else sentences[pick]
    yield _clean(sentence)
    yield _trimmed(sentence)
    yield from map(_clean, BOLD.findall(sentence)[pick:][:1])
    unmarked = _clean(SEGMENT.sub(lambda m: next(g for g in m.groups() if g), sentence))
    if last and len(said := BEING.split(unmarked)) > 1:
        yield _trimmed(said[-1])
    yield from _side_by_side(sentence)[pick:][:1]
    pieces = VERB.split(unmarked)
    if last:
        yield from map(_trimmed, pieces[:-4:-1] if len(pieces) > 3 else pieces[:0:-1])
    numbers = [m[0].strip() for m in NUMBER.finditer(unmarked) if m[0].strip(" +-.")]
    yield from numbers[pick:][:1]
    yield _trimmed(pieces[-1] if last else unmarked)


def _side_by_side(sentence: str) -> list[str]:
    """The formulas of a sentence; those with nothing but "and" or a comma between are one list."""
    found: list[str] = []
    end = -1
    for segment in SEGMENT.finditer(sentence):
        inner = _clean(next(g for g in segment.groups() if g))
        if end >= 0 and BESIDE.fullmatch(sentence[end : segment.start()][:80]):
            found[-1] += ", " + inner
        else:
            found.append(inner)
        end = segment.end()
    return found


def _trimmed(text: str) -> str:
    text = _clean(text)
    return _clean(CLOSING.sub("", OPENING.sub("", text)))


def _clean(text: str) -> str:
    text = text.replace("...", r"\ldots ")
    return text.strip().replace("**", "").replace("__", "").strip(" \t*_\"'`,;").rstrip(" .:").strip()
