"""What the first completions of a run say about its settings, told once: tags that never occur, rewards all 0."""

from collections.abc import Callable, Sequence
from typing import Any

from entrl.maths.phases import ThinkTags, closing_seen
from entrl.trainers.shared.options import SharedOptions

SPELLINGS = ("think_open", "think_close")
LOOKED_AT = 64  # completions of the main process, our choice


def think_tags_of(tokenizer: Any, args: Any, *, needed: bool, warn: Callable[[str], None]) -> ThinkTags | None:
    """The tags of `args.think_open` and `args.think_close`; None, with a warning, where the tokenizer lacks them.

    Raises ValueError where some reward needs them.
    """
    try:
        return ThinkTags.from_tokenizer(tokenizer, open=args.think_open, close=args.think_close)
    except ValueError as error:
        if needed:
            raise
        warn(f"{error}; as it is, no phases are told apart and everything a completion says counts as its answer")
        return None


def tags_to_look_for(
    tokenizer: Any, args: Any, tags: ThinkTags | None, *, needed: bool, speaks: bool = False
) -> ThinkTags | None:
    """`tags` where somebody counts on them: a reward, a spelling of the user's own, a token of the tokenizer's, or the
    chat template. A model of any other kind may well mark no thinking, and its silence says nothing; nor does that of
    one that speaks with tools or an environment, whatever its tokenizer knows."""
    if tags is None:
        return None
    spelled = any(getattr(args, name) != SharedOptions.__dataclass_fields__[name].default for name in SPELLINGS)
    own = len(tags.close_ids) == 1 or args.think_close in str(getattr(tokenizer, "chat_template", None) or "")
    return tags if needed or spelled or (own and not speaks) else None


def closed_share(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], tags: ThinkTags
) -> float:
    """Share of the first `LOOKED_AT` completions whose thinking ends, or was ended by the prompt."""
    rows = list(zip(prompt_ids, completion_ids, strict=True))[:LOOKED_AT]
    return sum(closing_seen(ids, tags, prompt_ids=prompt) for prompt, ids in rows) / len(rows)


class FirstLook:
    """Counts over the first `LOOKED_AT` completions or a little more, then speaks, once."""

    def __init__(self, tags: ThinkTags | None, *, think_close: str) -> None:
        self.tags, self.think_close = tags, think_close
        self.seen = self.closed = self.truncated = self.paid = 0
        self.done = False

    def see(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        rewards: Sequence[float],
        truncated: Sequence[bool],
    ) -> list[str]:
        """Warnings out of some more completions, mostly none. rewards: weighted sums; NaN, where none applied."""
        if self.done:
            return []
        rows = zip(prompt_ids, completion_ids, strict=True)
        self.seen += len(completion_ids)
        if self.tags is not None:
            self.closed += sum(closing_seen(ids, self.tags, prompt_ids=prompt) for prompt, ids in rows)
        self.truncated += sum(truncated)
        self.paid += sum(r == r and r != 0 for r in rewards)
        self.done = self.seen >= LOOKED_AT
        return self._warnings() if self.done else []

    def _warnings(self) -> list[str]:
        found = []
        if self.tags is not None and not self.closed:
            found.append(
                f"trainer.think_close: the tag {self.think_close!r} stands in none of the first {self.seen} "
                f"completions ({self.truncated} of them truncated); set trainer.think_open and trainer.think_close to "
                "the tags that the model writes, or leave it where the model marks no thinking"
            )
        if not self.paid:
            found.append(
                f"every reward of the first {self.seen} completions is 0; look at some in completions.jsonl: "
                f"{self.closed} close their thinking with {self.think_close!r} (trainer.think_close), {self.truncated} "
                "are truncated (trainer.max_completion_length), and the answers may be judged against other golds than "
                "you mean (column answer)"
            )
        return found
