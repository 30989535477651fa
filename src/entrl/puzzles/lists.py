r"""The one list of an answer that is judged: the last that opens, whole or not at all.

    moves   [[1, A, C], [2, A, B]]     a list of lists; brackets opened by one bracket alone do not count
    path    [4, 17, 9]                 a flat list

Prose may stand around it. A list that does not close, holds something else, stands inside another list or beside one
(`[[..]], [[..]]`) is no answer, and no earlier list takes its place: several answers would be several chances. `\[`
opens LaTeX, not a list. Each character is looked at a fixed number of times, so time grows with the length alone.

Items are the words between commas, with or without quotes, as they are written.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

OPENS = {"moves": re.compile(r"(?<!\\)\[\s*(?=\[)"), "path": re.compile(r"(?<!\\)\[")}
FLAT = re.compile(r"\[([^\[\]]*)\]")
CUT = re.compile(r"\[[^\[\]]*\Z")  # the text ends inside a move
SPACE = re.compile(r"\s*")

Items = tuple[str, ...]


class Unreadable(ValueError):
    """There is no list, or not one. `cut`: the text ended inside it."""

    def __init__(self, why: str, *, cut: bool = False) -> None:
        super().__init__(why)
        self.cut = cut


class Found(NamedTuple):
    items: list[Items]  # of a path: one
    end: int  # characters of the text up to and with the closing bracket


def last_moves(text: str) -> list[Items]:
    """The moves of the last list of lists. Raises Unreadable."""
    start = _last(OPENS["moves"], text)
    return _alone(text, start, _moves_at(text, start)).items


def last_path(text: str) -> Items:
    """The items of the last flat list. Raises Unreadable."""
    start = _last(OPENS["path"], text)
    found = FLAT.match(text, start)
    if found is None:
        raise Unreadable("the text ends inside the list", cut=True)
    return _alone(text, start, Found([_items(found[1])], found.end())).items[0]


def every_moves(text: str) -> Iterator[Found]:
    """All readable lists of moves of a text, in order: a trace may hold several."""
    end = 0
    for start in OPENS["moves"].finditer(text):
        if start.start() < end:
            continue  # inside the one before
        try:
            found = _alone(text, start.start(), _moves_at(text, start.start()))
        except Unreadable:
            continue
        end = found.end
        yield found


def _last(opens: re.Pattern[str], text: str) -> int:
    """Where the last list opens."""
    starts = deque(opens.finditer(text), maxlen=1)
    if not starts:
        raise Unreadable("there is no list")
    return starts[0].start()


def _moves_at(text: str, start: int) -> Found:
    """The list of lists whose bracket stands at `start`."""
    moves, at, expected = [], _after_space(text, start + 1), True
    while expected and (found := FLAT.match(text, at)):
        moves.append(_items(found[1]))
        at = _after_space(text, found.end())
        expected = text.startswith(",", at)
        at = _after_space(text, at + expected)
        if text.startswith("]", at):
            return Found(moves, at + 1)
    if at == len(text) or (expected and CUT.match(text, at)):
        raise Unreadable("the text ends inside the list of moves", cut=True)
    raise Unreadable(f"what stands after {len(moves)} moves is none: {text[at : at + 20]!r}")


def _items(inside: str) -> Items:
    """The words between commas; one comma may follow the last."""
    parts = [part.strip() for part in inside.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    if "'" in inside or '"' in inside:
        parts = [p[1:-1] if len(p) > 2 and p[0] == p[-1] and p[0] in "'\"" else p for p in parts]
        if any("'" in part or '"' in part for part in parts):
            raise Unreadable(f"a quote is open: {inside[:40]!r}")
    if not all(parts):
        raise Unreadable(f"these are no names with commas between them: {inside[:40]!r}")
    return tuple(parts)


def _alone(text: str, start: int, found: Found) -> Found:
    """What was found, unless it stands inside another list or beside one."""
    before, after = _space_before(text, start), _after_space(text, found.end)
    inside = text.endswith("[", 0, before) and not text.endswith("\\[", 0, before)
    follows = text.endswith(",", 0, before) and text.endswith("]", 0, _space_before(text, before - 1))
    leads = text.startswith(",", after) and text.startswith("[", _after_space(text, after + 1))
    if inside or follows or leads or text.startswith("]", after):
        raise Unreadable("the last list stands inside another or beside one")
    return found


def _after_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _space_before(text: str, at: int) -> int:
    """Where the space in front of `at` begins."""
    while at > 0 and text[at - 1].isspace():
        at -= 1
    return at
