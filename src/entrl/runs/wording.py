"""Text from outside (data, rewards, models, files) as a terminal may show it."""

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entrl.settings.secrets import mask_text

if TYPE_CHECKING:
    from rich.console import Console

# C0 but for tab and newline, DEL, C1 (U+009B starts an escape sequence too), marks that turn the reading direction,
# separators that end a line, and lone surrogates, which no terminal's encoding can write.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with control characters written out, such as \x1b: a terminal shows them and obeys none."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """A finding as it is printed: with line ends in it, what others wrote could look like another finding."""
    return " ".join(text.split())


def shown(text: str) -> str:
    """What may go to a console: no control characters, no tokens and keys."""
    return printable(mask_text(text))


def say(console: "Console", text: Any) -> None:
    """One plain line on the console."""
    console.print(shown(str(text)), highlight=False, markup=False)


def escape_completion_tables() -> None:
    """TRL's table of completions (`log_completions`) prints what a model wrote as it is: here without control codes."""
    from trl.trainer import grpo_trainer

    print_table = grpo_trainer.print_prompt_completions_sample
    if getattr(print_table, "escapes", False):
        return

    @functools.wraps(print_table)
    def escaped(prompts: Sequence[Any], completions: Sequence[Any], *rest: Any, **more: Any) -> None:
        print_table([_printable(p) for p in prompts], [_printable(c) for c in completions], *rest, **more)

    escaped.escapes = True  # pyright: ignore[reportAttributeAccessIssue]
    grpo_trainer.print_prompt_completions_sample = escaped


def _printable(value: Any) -> Any:
    """Texts at any depth of messages."""
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value
