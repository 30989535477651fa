"""Think format: 1 for a completion that thinks once, closes the tag and then answers, 0 for any other.

    r(y) = 1  if every turn opens at most one thinking phase, at its very start and only while none is open,
              closes it at most once, and the last turn ends in an answer;  0 otherwise

Templates differ in who writes the opening tag. Where the prompt already ends in it, the completion must not repeat it;
where it does not, the completion must start with it; where it closed the thinking (a template with thinking off), an
answer without tags is well formed. Who did is read from the prompt's token ids under EntropyGRPOTrainer, and otherwise
from the end of a text prompt. A list of messages does not show what the template adds: there both forms pass, unless
`prompt_opened` says which.

Source:  the format reward of DeepSeek-R1 (arXiv 2501.12948, section 2.2.2); TRL's `think_format_reward`
Differs: TRL's wants the opening tag in the completion and so pays 0 to every completion of a template that pre-fills it
Needs:   nothing; with EntropyGRPOTrainer prompt_ids, think_tags and token_mask make it exact (tags that are special
    tokens are missing from the text, tool turns are told apart). In stock TRL a completion of several messages is
    judged by its last one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from entrl.maths.phases import ThinkTags, opened_in_prompt, prompt_start, turn_ranges
from entrl.verify.answers import prompt_end


def well_formed_tokens(
    ids: Sequence[int],
    tags: ThinkTags,
    token_mask: Tensor | None = None,
    *,
    prompt_opened: bool,
    prompt_closed: bool = False,
    min_answer_tokens: int = 2,
) -> bool:
    """The rule on token ids. A tool's tokens may open a phase for the next turn (the template's part of it)."""
    ids = list(ids)
    mask = [True] * len(ids) if token_mask is None else torch.as_tensor(token_mask).tolist()
    thinking, thought, answered, end = prompt_opened, prompt_closed, 0, 0
    for turn in turn_ranges(mask):
        thinking = thinking or opened_in_prompt(ids[end : turn.start], tags)
        words, end = ids[turn.start : turn.stop], turn.stop
        opened, closed = _single(words, tags, "open"), _single(words, tags, "close")
        if opened is None or closed is None or (opened and (thinking or opened.start != 0)):
            return False
        thinking = thinking or len(opened) > 0
        if closed and (not thinking or closed.start < opened.stop):
            return False
        answered = 0 if thinking and not closed else len(words) - closed.stop
        thinking, thought = thinking and not closed, thought or len(closed) > 0
    return thought and not thinking and answered >= min_answer_tokens


def _single(words: list[int], tags: ThinkTags, name: str) -> range | None:
    """Where the tag stands, empty when absent, None when it is there more than once."""
    find = tags.find_open if name == "open" else tags.find_close
    first, last = find(words, which="first"), find(words, which="last")
    return first if first.start == last.start else None


def well_formed_text(text: str, *, open_tag: str, close_tag: str, prompt_opened: bool | None) -> bool:
    """The rule on the text of one turn; `prompt_opened` None: an opening tag at the start is allowed, not required."""
    head, closed, answer = text.partition(close_tag)
    starts = head.lstrip().startswith(open_tag)
    if not closed or not answer.strip() or close_tag in answer or text.count(open_tag) != int(starts):
        return False
    return prompt_opened is None or starts != prompt_opened


@dataclass(frozen=True, kw_only=True)
class ThinkFormat:
    """`well_formed_tokens` where the trainer says what the tags are, `well_formed_text` elsewhere."""

    __name__: ClassVar[str] = "think_format"
    needs: ClassVar[tuple[str, ...]] = ("prompt_ids", "think_tags", "token_mask")
    text_options: ClassVar[dict[str, str | None]] = {"open_tag": "think_open", "close_tag": "think_close"}

    prompt_opened: bool | None = None  # whether the prompt leaves the thinking phase open; None: look
    min_answer_tokens: int = 2  # tokens after the closing tag, EOS among them; counted on token ids only
    open_tag: str | None = None  # both tags: where only texts are known; None: <think>
    close_tag: str | None = None  # None: </think>

    def __post_init__(self) -> None:
        if self.min_answer_tokens < 0:
            raise ValueError(f"min_answer_tokens must be >= 0 tokens, got {self.min_answer_tokens}")
        if not all(self.tags) or self.tags[0] == self.tags[1]:
            raise ValueError(f"the tags must be two different texts, got {self.tags[0]!r} and {self.tags[1]!r}")

    @property
    def tags(self) -> tuple[str, str]:
        """Opening and closing tag where only texts are known."""
        opening = "<think>" if self.open_tag is None else self.open_tag
        return opening, "</think>" if self.close_tag is None else self.close_tag

    def __call__(
        self,
        *,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        prompt_ids: list[list[int]] | None = None,
        think_tags: ThinkTags | None = None,
        token_mask: list[Tensor] | None = None,
        **_: object,
    ) -> list[float]:
        if think_tags is None or prompt_ids is None:
            return [float(self._text(p, c)) for p, c in zip(prompts, completions, strict=True)]
        masks = [None] * len(completion_ids) if token_mask is None else token_mask
        rows = zip(prompt_ids, completion_ids, masks, strict=True)
        return [float(self._tokens(prompt, ids, mask, think_tags)) for prompt, ids, mask in rows]

    def _tokens(self, prompt: list[int], ids: list[int], mask: Tensor | None, tags: ThinkTags) -> bool:
        start = prompt_start(prompt, tags)
        if self.prompt_opened is not None and self.prompt_opened != (start == "think"):
            start = "think" if self.prompt_opened else None
        front = {"prompt_opened": start == "think", "prompt_closed": start == "answer"}
        return well_formed_tokens(ids, tags, mask, **front, min_answer_tokens=self.min_answer_tokens)

    def _text(self, prompt: Any, completion: Any) -> bool:
        opened = self.prompt_opened
        if opened is None and (end := prompt_end(prompt)) is not None:
            opened = end.rstrip().endswith(self.tags[0])
        text = completion if isinstance(completion, str) else completion[-1].get("content") or ""
        return well_formed_text(text, open_tag=self.tags[0], close_tag=self.tags[1], prompt_opened=opened)


reward = ThinkFormat()
