"""A causal language model that plays: the tool loop of TRL's GRPOTrainer, without a trainer.

The same chat template (its training variant where the original does not keep prefixes), the same tool schemas, response
parser, error messages, budget and rollback of over-long results, so what is measured is what was trained. Differs from
TRL 1.16: text only, tools that are plain functions, greedy by default, and the model's own mode is restored.

Source:  TRL 1.16, GRPOTrainer._tokenize_prompts, _generate_single_turn, _get_tool_suffix_ids, _tool_call_loop
Needs:   torch, transformers and trl, imported when a model is asked
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entrl.environments.play import Message

Ids = list[int]


@dataclass(kw_only=True)
class ModelPolicy:
    """Plays environments in batches, one conversation each.

    temperature 0 is greedy. Sampling is reproducible for the same seed, rows and batch size; other batches draw other
    samples. Raises ValueError where the tokenizer's template cannot call tools or its responses cannot be parsed.
    """

    model: Any
    tokenizer: Any
    name: str = "model"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_completion_length: int = 2048  # tokens of a whole conversation after its prompt, tool results included
    max_tool_calling_iterations: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from trl.chat_template_utils import (
            add_response_schema,
            get_training_chat_template,
            is_chat_template_prefix_preserving,
            supports_tool_calling,
        )

        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ValueError(f"temperature must be >= 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}")
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length must be >= 1 token, got {self.max_completion_length}")
        if not supports_tool_calling(self.tokenizer):
            raise ValueError("the tokenizer's chat template cannot render tool calls; use a model that was given tools")
        known = (getattr(self.tokenizer, n, None) for n in ("response_template", "response_schema"))
        if all(value is None for value in known):
            add_response_schema(self.tokenizer)
        keeps = is_chat_template_prefix_preserving(self.tokenizer)
        self._template = None if keeps else get_training_chat_template(self.tokenizer)
        self.restart()

    def restart(self) -> None:
        """Draw the same samples again."""
        self._batches = 0
        self.lengths: list[int] = []  # of every dialogue since, in order: tokens that the model wrote
        self.finished: list[bool] = []  # and whether its last message ended by itself

    def play(self, environments: Sequence[Any], prompts: Sequence[list[Message]]) -> list[list[Message]]:
        """The messages that followed each prompt; environments were reset for them."""
        tools = [tools_of(environment) for environment in environments]
        prompt_ids = [self._render(p, list(t.values())) for p, t in zip(prompts, tools, strict=True)]
        written: list[Ids] = [[] for _ in prompts]
        messages: list[list[Message]] = [[] for _ in prompts]
        lengths, finished, ends = [0] * len(prompts), [False] * len(prompts), self._end_ids()
        live = list(range(len(prompts)))
        rounds = 0
        with self._as_sampler():
            while live:
                texts = self.generate([prompt_ids[i] + written[i] for i in live], self._room(written, live))
                calling = []
                for i, ids in zip(live, texts, strict=True):
                    ids = ids[: self.max_completion_length - len(written[i])]
                    if ids:  # nothing is left of a text that had no room
                        reply = self._parsed(ids, prompt_ids[i] + written[i], list(tools[i].values()))
                        written[i] += ids
                        lengths[i] += len(ids)
                        finished[i] = ids[-1] in ends
                        messages[i].append(reply)
                        calling += [i] if reply.get("tool_calls") else []
                if self.max_tool_calling_iterations is not None and rounds >= self.max_tool_calling_iterations:
                    break
                rounds += 1
                live = [i for i in calling if self._answered(messages[i], written[i], prompt_ids[i], tools[i])]
        self.lengths += lengths
        self.finished += finished
        return messages

    def generate(self, prefixes: list[Ids], max_new_tokens: int) -> list[Ids]:
        """The model's next turn after each prefix, up to and with its end token."""
        import torch

        longest, pad = max(map(len, prefixes)), self.tokenizer.pad_token_id
        device = self.model.device
        ids_BT = torch.tensor([[pad] * (longest - len(p)) + p for p in prefixes], device=device)
        mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prefixes], device=device)
        ends = self._end_ids()
        sampled = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
            synced_gpus=False,  # under ZeRO-3 transformers would wait for the other ranks after each token
            **(sampled if self.temperature > 0 else {"do_sample": False}),
        )
        return [_up_to(row, ends) for row in out_BT[:, longest:].tolist()]

    def _room(self, written: Sequence[Ids], live: Sequence[int]) -> int:
        return max(self.max_completion_length - min(len(written[i]) for i in live), 1)

    def _end_ids(self) -> set[int]:
        own = getattr(self.model.generation_config, "eos_token_id", None)
        own = own if isinstance(own, list) else [own]
        return {i for i in (*own, self.tokenizer.eos_token_id) if i is not None}

    def _render(self, messages: list[Message], tools: list[Callable] | None, *, reply: bool = True) -> Ids:
        return list(
            self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self._template,
                add_generation_prompt=reply,
                tokenize=True,
                return_dict=False,
                **self.chat_template_kwargs,
            )
        )

    def _parsed(self, ids: Ids, prefix: Ids, tools: list[Any]) -> Message:
        from trl.chat_template_utils import parse_response

        return parse_response(self.tokenizer, ids, prefix=prefix, tools=tools)

    def _answered(self, messages: list[Message], written: Ids, prompt: Ids, tools: Mapping[str, Callable]) -> bool:
        """Run the last message's calls and append their results; False where they did not fit and were taken back."""
        results = [call_tool(call, tools) for call in messages[-1]["tool_calls"]]
        suffix = self._suffix(results)
        total = len(written) + len(suffix)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if total > self.max_completion_length or (limit is not None and len(prompt) + total >= limit):
            return False
        messages += results
        written += suffix
        return True

    def _suffix(self, results: list[Message]) -> Ids:
        """What the template writes between the end of a call and the start of the next turn."""
        call = {"type": "function", "function": {"name": results[0]["name"], "arguments": {}}}
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        prefix, full = self._render(before, None, reply=False), self._render(before + results, None)
        ends = [at for at, token in enumerate(prefix) if token == self.tokenizer.eos_token_id]
        if ends:  # a template may write a newline after the end token, which the model did not
            prefix = prefix[: ends[-1] + 1]
        if full[: len(prefix)] != prefix:
            raise ValueError("the chat template renders a call differently once its result follows; use a training one")
        return full[len(prefix) :]

    @contextlib.contextmanager
    def _as_sampler(self) -> Iterator[None]:
        """Evaluation mode, no gradient, random numbers and sampler settings of our own; as it was afterwards."""
        import torch
        from transformers import GenerationConfig

        was_training = bool(self.model.training)
        # A peft model copies its own generation config onto its base in `generate`.
        owners = [self.model, self.model.get_base_model()] if hasattr(self.model, "get_base_model") else [self.model]
        configs = [owner.generation_config for owner in owners]
        # Its repetition penalty, min_p and the like would be filled in where we stay silent.
        own = GenerationConfig(eos_token_id=sorted(self._end_ids()), pad_token_id=self.tokenizer.pad_token_id)
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.seed + 1_000_003 * self._batches)
                self.model.generation_config = own
                yield
        finally:
            for owner, config in zip(owners, configs, strict=True):
                owner.generation_config = config
            self._batches += 1
            self.model.train(was_training)


def tools_of(environment: Any) -> dict[str, Callable]:
    """What TRL offers to the model: the public functions of the class, without reset and get_reward."""
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    return {n: getattr(environment, n) for n in names if n not in ("reset", "get_reward") and not n.startswith("_")}


def call_tool(call: Message, tools: Mapping[str, Callable]) -> Message:
    """The tool message of one call, with TRL's words for an unknown tool, wrong arguments or a tool that raised."""
    if call["type"] != "function":
        return _result(call.get("name", "unknown"), {"error": f"Unsupported tool call type: {call['type']}"})
    name = call["function"]["name"]
    if name not in tools:
        return _result(name, {"error": f"Tool {name} not found."})
    try:
        return _result(name, tools[name](**call["function"]["arguments"]))
    except Exception as error:  # as TRL does: whatever a tool raises is told to the model
        return _result(name, {"error": str(error)})


def _result(name: str, content: Any) -> Message:
    return {"role": "tool", "name": name, "content": str(content)}


def _up_to(ids: Ids, ends: set[int]) -> Ids:
    end = next((at for at, token in enumerate(ids) if token in ends), None)
    return ids if end is None else ids[: end + 1]
