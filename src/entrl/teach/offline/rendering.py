"""Prefixes and turns as token ids: those the tool loop of the RL trainer would have in front of it.

Source:  TRL 1.16, GRPOTrainer._tokenize_prompts and _get_tool_suffix_ids, through `entrl.environments.model_policy`
Needs:   transformers, trl
"""

from collections.abc import Mapping, Sequence
from typing import Any

from entrl.environments.model_policy import Ids, ModelPolicy
from entrl.environments.play import Message
from entrl.teach.offline.candidates import plain


class Rendering:
    """One tokenizer with its template: the training variant where the tokenizer's own does not keep prefixes.

    Raises ValueError where the template cannot call tools or responses cannot be parsed.
    """

    def __init__(self, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.policy = ModelPolicy(model=None, tokenizer=tokenizer, chat_template_kwargs=chat_template_kwargs or {})
        self.tokenizer = tokenizer

    @property
    def template(self) -> str | None:
        """What replaces the tokenizer's own template; None where nothing does."""
        return self.policy._template

    def prefix(self, messages: Sequence[Message], tools: Sequence[Any]) -> Ids:
        """Everything up to the place where the model writes."""
        return self.policy._render(plain(list(messages)), list(tools))

    def turn(self, messages: Sequence[Message], message: Message, tools: Sequence[Any]) -> Ids:
        """What the model would have to write after the messages to say `message`, with its end token."""
        before = self.prefix(messages, tools)
        full = self.policy._render(plain([*messages, message]), list(tools), reply=False)
        if full[: len(before)] != before:
            raise ValueError(
                "the chat template renders the dialogue differently once the model has answered, so the answer's "
                "tokens cannot be told; use a template that keeps prefixes, or other data.chat_template_kwargs"
            )
        ids = full[len(before) :]
        ends = [at for at, token in enumerate(ids) if token == self.tokenizer.eos_token_id]
        if not ends:
            raise ValueError("the chat template ends a turn without the tokenizer's end token; set the right eos_token")
        return ids[: ends[-1] + 1]  # a template may go on with a newline, which no model writes
