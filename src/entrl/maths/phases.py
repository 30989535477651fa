"""Token ids -> which tokens think, which answer, which came from a tool; and the answer as text.

A completion is cut into turns (maximal runs of model tokens between tool tokens). Inside a turn

    y_1 .. y_{k-1} think | closing tag | answer        k = first token of the closing tag

and everything before the tag counts as thinking, the opening tag included when the model wrote it (PEAR,
arXiv 2510.08026, Eq. 6). What stands in front of a turn (the prompt, a tool's tokens with what the template adds)
may say where it starts (`prompt_start`): thinking left open by it is the turn's; where it closed the thinking (a
template with thinking switched off), the turn is all answer, unless it begins by opening a phase of its own.

A turn without a closing tag, where nothing in front of it says

    - that writes an opening tag is thinking from its first token on,
    - otherwise goes on with what the turn before it ended in: thinking that was interrupted by a tool call
      continues, an answer that was interrupted stays an answer. The first turn starts in thinking.

A completion has no closing tag (`closed` is False) when its last turn ends in thinking. Closing tags after
the one that counts, and tags opened again behind it in the same turn, are ordinary answer tokens.

The answer that is judged (`answer_text`) is what follows the last closing tag of the last turn. Thinking that was
opened, by the model or by the prompt, and never closed has no answer. A completion without any tag, after a prompt
without any, comes from a model that does not mark its thinking: all of its last turn is the answer.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Which = Literal["first", "last"]
Start = Literal["think", "answer"]

NO_PIECE = "\0"  # in the place of a token that is no part of a tag
# How vocabularies write a space, a line feed, a tab and a carriage return.
WRITTEN_BLANKS = {"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"} | {f"<0x{ord(c):02X}>": c for c in " \n\t\r"}


@dataclass(frozen=True, kw_only=True)
class ThinkTags:
    """The tags as token ids: one token where the vocabulary has it, several otherwise.

    A tag that was not added to the vocabulary has as many spellings as it has neighbours: "</think>\\n\\n" may end in
    the token ">\\n\\n". So it is found as text among its pieces: every token of the vocabulary that can be part of it,
    with its text. A neighbour merged into a token of the tag belongs to the tag.
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    open_text: str = ""
    close_text: str = ""
    open_pieces: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)
    close_pieces: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)
    blank_ids: frozenset[int] = field(default=frozenset(), repr=False, compare=False)  # white space alone
    marker_ids: frozenset[int] = field(default=frozenset(), repr=False, compare=False)  # a template's: end of turn

    def __post_init__(self) -> None:
        for name in ("open_ids", "close_ids"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"{name} is empty; a tag needs at least one token id")
        if self.open_ids == self.close_ids:
            raise ValueError(
                f"one tag ({self.open_text or self.open_ids!r}) cannot both open and close thinking; set think_open "
                "and think_close apart"
            )

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, open: str = "<think>", close: str = "</think>") -> "ThinkTags":
        """Encode both tags without special tokens added; ValueError when the tokenizer cannot spell one."""
        open_ids, close_ids = _encode_tag(tokenizer, open), _encode_tag(tokenizer, close)
        blank_ids = _blank_ids(tokenizer)
        markers = set(getattr(tokenizer, "added_tokens_decoder", {})) - {
            tokenizer.bos_token_id,
            tokenizer.unk_token_id,  # stands for a character of the text
            *open_ids,
            *close_ids,
        }
        return cls(
            open_ids=open_ids,
            close_ids=close_ids,
            open_text=open,
            close_text=close,
            open_pieces=_pieces(tokenizer, open, open_ids),
            close_pieces=_pieces(tokenizer, close, close_ids),
            blank_ids=blank_ids,
            marker_ids=frozenset(markers - blank_ids),
        )

    def find_open(self, ids: Sequence[int], *, which: Which = "first") -> range:
        """Where the opening tag stands, an empty range when it does not."""
        return _find_tag(ids, self.open_ids, self.open_text, self.open_pieces, which)

    def find_close(self, ids: Sequence[int], *, which: Which = "first") -> range:
        """Where the closing tag stands, an empty range when it does not."""
        return _find_tag(ids, self.close_ids, self.close_text, self.close_pieces, which)


def _encode_tag(tokenizer: Any, tag: str) -> tuple[int, ...]:
    ids = tuple(tokenizer.encode(tag, add_special_tokens=False)) if tag else ()
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or (unknown is not None and unknown in ids):
        raise ValueError(f"the tokenizer cannot encode the tag {tag!r}; set think_open / think_close to tags it knows")
    return ids


def _pieces(tokenizer: Any, tag: str, ids: tuple[int, ...]) -> dict[int, str]:
    """Token -> its text, of the tokens that can be part of the tag; {} for an added token, which stays whole."""
    if len(ids) == 1 and ids[0] in getattr(tokenizer, "added_tokens_decoder", {}):
        return {}
    found = {}
    for token, i in tokenizer.get_vocab().items():
        if tag.isascii() and not _touches(_plain(token), tag):  # only ASCII stands in a vocabulary as it is
            continue
        text = tokenizer.decode([i], clean_up_tokenization_spaces=False)
        if token.startswith("▁") and not text.startswith(" "):  # decoding takes a first space for the text's own
            text = f" {text}"
        if _touches(text, tag):
            found[i] = text
    return found


def _touches(text: str, tag: str) -> bool:
    """Whether some of `text` can be some of `tag`, with text around it."""
    if text in tag or tag in text:
        return bool(text)
    return any(text.endswith(tag[:n]) or text.startswith(tag[-n:]) for n in range(1, len(tag)))


def _plain(token: str) -> str:
    for written, blank in WRITTEN_BLANKS.items():
        token = token.replace(written, blank)
    return token


def _blank_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(i for token, i in tokenizer.get_vocab().items() if token and _plain(token).isspace())


def locate_close(ids: Sequence[int], close_ids: Sequence[int], *, which: Which = "first") -> int | None:
    """0-based index of the first token of the first or last occurrence of `close_ids`, None when absent."""
    if which not in ("first", "last"):
        raise ValueError(f"which must be 'first' or 'last', got {which!r}")
    if len(close_ids) == 0:
        raise ValueError("close_ids is empty; a tag needs at least one token id")
    ids, close = list(ids), list(close_ids)
    starts = range(len(ids) - len(close) + 1)
    for i in starts if which == "first" else reversed(starts):
        if ids[i] == close[0] and ids[i : i + len(close)] == close:
            return i
    return None


def _find_tag(ids: Sequence[int], tag_ids: tuple[int, ...], tag: str, pieces: Mapping[int, str], which: Which) -> range:
    start = locate_close(ids, tag_ids, which=which)
    spans = [] if start is None else [range(start, start + len(tag_ids))]
    if pieces and (spelled := _find_spelled(ids, tag, pieces, which)):
        spans.append(spelled)
    if not spans:
        return range(0)
    return min(spans, key=lambda s: (s.start, -len(s))) if which == "first" else max(spans, key=lambda s: s.stop)


def _find_spelled(ids: Sequence[int], tag: str, pieces: Mapping[int, str], which: Which) -> range:
    """The tokens over which the tag's text stretches."""
    words = [pieces.get(i, NO_PIECE) for i in ids]
    text = "".join(words)
    at = text.find(tag) if which == "first" else text.rfind(tag)
    if at < 0:
        return range(0)
    ends = list(accumulate(map(len, words)))
    return range(bisect_right(ends, at), bisect_left(ends, at + len(tag)) + 1)


def prompt_start(prompt_ids: Sequence[int], tags: ThinkTags, *, by_template: bool = False) -> Start | None:
    """Where the tokens behind a prompt start: in thinking that it left open, in the answer where it closed the
    thinking, None where it does not say. A tag in front of another of the template's tokens (the end of a turn)
    belongs to what was said before.

    by_template: only a tag that stands behind a token of the template's counts; a tool may write tags as well.
    """
    ids = list(prompt_ids)
    opened, closed = tags.find_open(ids, which="last"), tags.find_close(ids, which="last")
    if not opened and not closed:
        return None
    last = opened if opened and (not closed or opened.start >= closed.stop) else closed
    behind = ids[last.stop :]
    templated = not tags.marker_ids.isdisjoint(ids[: last.start])
    if not tags.marker_ids.isdisjoint(behind) or (by_template and not templated):
        return None
    if last is opened:
        return "think"
    # Behind a closed block an answer may have been begun; in a prompt without a template that is prose about tags.
    return "answer" if templated or tags.blank_ids.issuperset(behind) else None


def opened_in_prompt(prompt_ids: Sequence[int], tags: ThinkTags) -> bool:
    """Whether the prompt leaves a thinking phase open."""
    return prompt_start(prompt_ids, tags) == "think"


@dataclass(frozen=True, kw_only=True)
class TurnSpans:
    """One turn, as ranges of positions in the completion; `open` lies inside `think`.

    start: what stands in front of the turn says of it, None where nothing does.
    """

    think: range
    open: range
    close: range
    answer: range
    start: Start | None = None

    @property
    def ends_thinking(self) -> bool:
        return len(self.close) == 0 and len(self.answer) == 0


def turn_ranges(token_mask: Sequence[bool]) -> list[range]:
    """Maximal runs of True: the model's turns between a tool's tokens."""
    turns, start = [], None
    for i, by_model in enumerate([*token_mask, False]):
        if by_model and start is None:
            start = i
        elif not by_model and start is not None:
            turns.append(range(start, i))
            start = None
    return turns


def phase_spans(
    ids: Sequence[int],
    tags: ThinkTags,
    token_mask: Sequence[bool] | Tensor | None = None,
    *,
    which: Which = "first",
    prompt_ids: Sequence[int] = (),
) -> tuple[TurnSpans, ...]:
    """One `TurnSpans` per turn, by the rules at the top of this file; () for a completion without model
    tokens. Without `prompt_ids` nothing is known of what the prompt opened or closed.
    """
    spans: list[TurnSpans] = []
    ids, front, end = list(ids), list(prompt_ids), 0
    for turn in turn_ranges(_as_bools(ids, token_mask)):
        start = prompt_start([*front, *ids[end : turn.start]], tags, by_template=bool(spans))
        thinking = start == "think" if start else not spans or spans[-1].ends_thinking
        spans.append(_cut_turn(ids, turn, tags, which=which, thinking=thinking, start=start))
        front, end = [], turn.stop
    return tuple(spans)


def _cut_turn(
    ids: list[int], turn: range, tags: ThinkTags, *, which: Which, thinking: bool, start: Start | None
) -> TurnSpans:
    words = ids[turn.start : turn.stop]
    close = _shift(tags.find_close(words, which=which), turn.start)
    head = words[: close.start - turn.start] if close else words
    opened = _shift(tags.find_open(head), turn.start)
    nothing = range(turn.stop, turn.stop)
    anew = bool(opened) and tags.blank_ids.issuperset(ids[turn.start : opened.start])
    if start == "answer" and which == "first" and not anew:  # the closing tag that counts stands in the prompt
        return TurnSpans(think=nothing, open=nothing, close=nothing, answer=turn, start=start)
    if close:
        think, answer = range(turn.start, close.start), range(close.stop, turn.stop)
        return TurnSpans(think=think, open=opened, close=close, answer=answer, start=start)
    if opened or thinking:
        return TurnSpans(think=turn, open=opened, close=nothing, answer=nothing, start=start)
    return TurnSpans(think=nothing, open=nothing, close=nothing, answer=turn, start=start)


def _shift(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)


def _as_bools(ids: Sequence[int], token_mask: Sequence[bool] | Tensor | None) -> list[bool]:
    if token_mask is None:
        return [True] * len(ids)
    mask = token_mask.tolist() if isinstance(token_mask, Tensor) else list(token_mask)
    if len(mask) != len(ids):
        raise ValueError(f"token_mask has {len(mask)} values for {len(ids)} token ids; pass one per completion token")
    return [bool(m) for m in mask]


class PhaseMasks(NamedTuple):
    """Bool (T,) masks of one completion; no token is in two of think, close and answer, tool tokens are in
    none.
    """

    think: Tensor
    close: Tensor
    answer: Tensor
    open: Tensor  # the opening tags, whether or not think counts them
    closed: bool  # False: the completion ends in thinking


def phase_masks(
    ids: Sequence[int],
    tags: ThinkTags,
    token_mask: Sequence[bool] | Tensor | None = None,
    *,
    which: Which = "first",
    prompt_ids: Sequence[int] = (),
    count_open: bool = True,
    exclude_ids: Sequence[int] = (),
) -> PhaseMasks:
    """Masks of the phases, all turns together.

    count_open: whether an opening tag the model wrote counts as thinking (the paper's reading: yes).
    exclude_ids: tokens in neither phase wherever they stand, for instance EOS (default: EOS counts).
    """
    spans = phase_spans(ids, tags, token_mask, which=which, prompt_ids=prompt_ids)
    names = ("think", "close", "answer", "open")
    think, close, answer, opened = (_mask([getattr(s, n) for s in spans], len(ids)) for n in names)
    kept = ~torch.isin(torch.tensor(list(ids), dtype=torch.long), torch.tensor(list(exclude_ids), dtype=torch.long))
    counted = think if count_open else think & ~opened
    closed = bool(spans) and not spans[-1].ends_thinking
    return PhaseMasks(counted & kept, close, answer & kept, opened, closed)


def _mask(spans: Sequence[range], length: int) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    for span in spans:
        mask[span.start : span.stop] = True
    return mask


def phase_labels(
    ids: Sequence[int],
    tags: ThinkTags,
    token_mask: Sequence[bool] | Tensor | None = None,
    *,
    which: Which = "first",
    prompt_ids: Sequence[int] = (),
) -> list[str]:
    """One of "think", "open", "close", "answer", "tool" per token, for a person to look at."""
    labels = ["tool"] * len(ids)
    for spans in phase_spans(ids, tags, token_mask, which=which, prompt_ids=prompt_ids):
        for name in ("think", "open", "close", "answer"):  # open after think: it lies inside
            for i in getattr(spans, name):
                labels[i] = name
    return labels


def answer_text(
    ids: Sequence[int],
    tags: ThinkTags | None,
    tokenizer: Any,
    token_mask: Sequence[bool] | Tensor | None = None,
    *,
    prompt_ids: Sequence[int] = (),
) -> str:
    """The answer that is judged, as text without special tokens; "" where there is none.

    tags: None for a tokenizer that cannot spell them, so that no completion can hold one.
    """
    turns = turn_ranges(_as_bools(ids, token_mask))
    if not turns:
        return ""
    ids = list(ids)
    if tags is None:
        return _decoded(tokenizer, ids[turns[-1].start : turns[-1].stop])
    spans = phase_spans(ids, tags, token_mask, which="last", prompt_ids=prompt_ids)
    last = spans[-1]
    if last.close and tags.close_pieces:  # the tag's last token may hold the first characters of the answer
        found = tokenizer.decode(ids[last.close.start : last.answer.stop], skip_special_tokens=True)
        if tags.close_text in found:  # not of a tag with special tokens in it, which end where it ends
            return found.partition(tags.close_text)[2].strip()
    unmarked = not any(s.open or s.close or s.start for s in spans)
    answer = last.think if last.ends_thinking and unmarked else last.answer
    return _decoded(tokenizer, ids[answer.start : answer.stop])


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def closing_seen(ids: Sequence[int], tags: ThinkTags, *, prompt_ids: Sequence[int] = ()) -> bool:
    """Whether a closing tag stands in the completion, or closed the thinking in its prompt."""
    return len(tags.find_close(ids)) > 0 or prompt_start(prompt_ids, tags) == "answer"
