"""Token ids -> which tokens think, which answer, which came from a tool.

A completion is cut into turns (maximal runs of model tokens between tool tokens). Inside a turn

    y_1 .. y_{k-1} think | closing tag | answer        k = first token of the closing tag

and everything before the tag counts as thinking, the opening tag included when the model wrote it (PEAR,
arXiv 2510.08026, Eq. 6). A turn without a closing tag

    - that writes an opening tag is thinking from its first token on,
    - otherwise goes on with what the turn before it ended in: thinking that was interrupted by a tool call
      continues, an answer that was interrupted stays an answer. The first turn starts in thinking.

A completion has no closing tag (`closed` is False) when its last turn ends in thinking. Closing tags after
the one that counts, and tags opened again behind it in the same turn, are ordinary answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Which = Literal["first", "last"]

# A tag without a token of its own is merged with its neighbours by BPE: "</think>\n\n" ends in ">\n\n", one
# token.
CONTEXTS_BEFORE = ("", "\n", "\n\n", " ", ".", ".\n", "a")
CONTEXTS_AFTER = ("", "\n", "\n\n", " ", ".", "a", "1", "<")


@dataclass(frozen=True, kw_only=True)
class ThinkTags:
    """The tags as token ids: one token where the vocabulary has it, several otherwise.

    The variants are the other spellings a tokenizer gives a tag of several tokens, depending on what stands
    around it; a neighbour merged into the tag's last token belongs to the tag.
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    open_variants: tuple[tuple[int, ...], ...] = ()
    close_variants: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("open_ids", "close_ids"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"{name} is empty; a tag needs at least one token id")

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, open: str = "<think>", close: str = "</think>") -> "ThinkTags":
        """Encode both tags without special tokens added; ValueError when the tokenizer cannot spell one."""
        open_ids, close_ids = _encode_tag(tokenizer, open), _encode_tag(tokenizer, close)
        return cls(
            open_ids=open_ids,
            close_ids=close_ids,
            open_variants=_variants(tokenizer, open, open_ids),
            close_variants=_variants(tokenizer, close, close_ids),
        )

    def find_open(self, ids: Sequence[int], *, which: Which = "first") -> range:
        """Where the opening tag stands, an empty range when it does not."""
        return _find_tag(ids, (self.open_ids, *self.open_variants), which)

    def find_close(self, ids: Sequence[int], *, which: Which = "first") -> range:
        """Where the closing tag stands, an empty range when it does not."""
        return _find_tag(ids, (self.close_ids, *self.close_variants), which)


def _encode_tag(tokenizer: Any, tag: str) -> tuple[int, ...]:
    ids = tuple(tokenizer.encode(tag, add_special_tokens=False)) if tag else ()
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or (unknown is not None and unknown in ids):
        raise ValueError(f"the tokenizer cannot encode the tag {tag!r}; set think_open / think_close to tags it knows")
    return ids


def _variants(tokenizer: Any, tag: str, ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if len(ids) == 1:
        return ()
    found = {_covering_ids(tokenizer, a, tag, b) for a in CONTEXTS_BEFORE for b in CONTEXTS_AFTER}
    return tuple(sorted(v for v in found if v and v != ids))


def _covering_ids(tokenizer: Any, before: str, tag: str, after: str) -> tuple[int, ...]:
    """The tokens of `before + tag + after` that overlap the tag; () when decoding token by token loses text."""
    ids = list(tokenizer.encode(before + tag + after, add_special_tokens=False))
    pieces = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    if "".join(pieces) != before + tag + after:
        return ()
    covering, position = [], 0
    for token, piece in zip(ids, pieces, strict=True):
        if position < len(before) + len(tag) and position + len(piece) > len(before):
            covering.append(token)
        position += len(piece)
    return tuple(covering)


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


def _find_tag(ids: Sequence[int], spellings: Sequence[tuple[int, ...]], which: Which) -> range:
    found = [(locate_close(ids, s, which=which), len(s)) for s in spellings]
    spans = [range(i, i + n) for i, n in found if i is not None]
    if not spans:
        return range(0)
    return min(spans, key=lambda s: (s.start, -len(s))) if which == "first" else max(spans, key=lambda s: s.start)


@dataclass(frozen=True, kw_only=True)
class TurnSpans:
    """One turn, as ranges of positions in the completion; `open` lies inside `think`."""

    think: range
    open: range
    close: range
    answer: range

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
) -> tuple[TurnSpans, ...]:
    """One `TurnSpans` per turn, by the rules at the top of this file; () for a completion without model
    tokens.
    """
    spans: list[TurnSpans] = []
    for turn in turn_ranges(_as_bools(ids, token_mask)):
        thinking = not spans or spans[-1].ends_thinking
        spans.append(_cut_turn(list(ids), turn, tags, which=which, thinking=thinking))
    return tuple(spans)


def _cut_turn(ids: list[int], turn: range, tags: ThinkTags, *, which: Which, thinking: bool) -> TurnSpans:
    words = ids[turn.start : turn.stop]
    close = _shift(tags.find_close(words, which=which), turn.start)
    head = words[: close.start - turn.start] if close else words
    opened = _shift(tags.find_open(head), turn.start)
    nothing = range(turn.stop, turn.stop)
    if close:
        think, answer = range(turn.start, close.start), range(close.stop, turn.stop)
        return TurnSpans(think=think, open=opened, close=close, answer=answer)
    if opened or thinking:
        return TurnSpans(think=turn, open=opened, close=nothing, answer=nothing)
    return TurnSpans(think=nothing, open=nothing, close=nothing, answer=turn)


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
    count_open: bool = True,
    exclude_ids: Sequence[int] = (),
) -> PhaseMasks:
    """Masks of the phases, all turns together.

    count_open: whether an opening tag the model wrote counts as thinking (the paper's reading: yes).
    exclude_ids: tokens in neither phase wherever they stand, for instance EOS (default: EOS counts).
    """
    spans = phase_spans(ids, tags, token_mask, which=which)
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
) -> list[str]:
    """One of "think", "open", "close", "answer", "tool" per token, for a person to look at."""
    labels = ["tool"] * len(ids)
    for spans in phase_spans(ids, tags, token_mask, which=which):
        for name in ("think", "open", "close", "answer"):  # open after think: it lies inside
            for i in getattr(spans, name):
                labels[i] = name
    return labels


def opened_in_prompt(prompt_ids: Sequence[int], tags: ThinkTags) -> bool:
    """Whether the prompt leaves a thinking phase open: its last opening tag stands after its last closing
    tag.
    """
    opened, closed = tags.find_open(prompt_ids, which="last"), tags.find_close(prompt_ids, which="last")
    return len(opened) > 0 and (len(closed) == 0 or opened.start >= closed.stop)
