"""Completions of a model in memory: batches, sampled or greedy, with the entropy of every sampled token."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from entrl.maths.signals import entropy_from_logits


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One generated answer; ids up to and with the first end token."""

    ids: list[int]
    text: str
    truncated: bool
    entropies: Tensor | None  # (T,) nats, None for greedy


class _Entropies(LogitsProcessor):
    """Writes down each decode step's entropy and changes nothing; generate calls it before temperature and top_p."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.steps: list[Tensor] = []  # (B,) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(entropy_from_logits(scores, temperature=self.temperature))
        return scores


@dataclass
class Writer:
    """Batched generation: rows sorted by a length hint, answers in the order they were asked for."""

    model: Any
    tokenizer: Any
    max_new_tokens: int
    batch_size: int
    bar: Progress

    def write(
        self, title: str, prompts: list[list[int]], hints: list[int], *, temperature: float = 0.0, top_p: float = 1.0
    ) -> list[Completion]:
        """temperature 0 is greedy."""
        found: list[Completion | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: (hints[i], i))
        task = self.bar.add_task(title, total=len(prompts))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, completion in zip(batch, self._batch([prompts[i] for i in batch], temperature, top_p), strict=True):
                found[i] = completion
            self.bar.advance(task, len(batch))
        return [c for c in found if c is not None]

    def _batch(self, prompts: list[list[int]], temperature: float, top_p: float) -> list[Completion]:
        ids_BT, mask_BT = _left_pad(prompts, self.tokenizer.pad_token_id, self.model.device)
        recorder = _Entropies(temperature) if temperature > 0 else None
        how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=self.max_new_tokens,
            logits_processor=LogitsProcessorList([recorder] if recorder else []),
            **(how if recorder else {"do_sample": False}),
        )
        rows = out_BT[:, ids_BT.shape[1] :].tolist()
        entropy_BT = torch.stack(recorder.steps, dim=1).float().cpu() if recorder else [None] * len(rows)
        return [self._cut(row, entropy_T) for row, entropy_T in zip(rows, entropy_BT, strict=True)]

    def _cut(self, row: list[int], entropy_T: Tensor | None) -> Completion:
        ends = _end_ids(self.model, self.tokenizer)
        length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        ids = row[:length]
        return Completion(
            ids=ids,
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            truncated=length is None,
            entropies=None if entropy_T is None else entropy_T[: len(ids)],
        )


@contextlib.contextmanager
def as_sampler(model: Any, tokenizer: Any, seed: int) -> Iterator[None]:
    """Evaluation mode, a seeded random state of our own, and none of the model's own sampling defaults."""
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token; set tokenizer.pad_token, for instance to its eos_token")
    devices = [model.device] if model.device.type == "cuda" else []
    # A peft model copies its own generation config onto its base in `generate`.
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs, training = [owner.generation_config for owner in owners], model.training
    ends = sorted(_end_ids(model, tokenizer))
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            # Its top_k, repetition penalty and the like would be filled in where we stay silent.
            model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
            yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config
        model.train(training)


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = set(given if isinstance(given, list) else [given]) | {tokenizer.eos_token_id}
    return {i for i in ids if i is not None}


def encode(tokenizer: Any, prompt: Any, chat_template_kwargs: Mapping[str, Any]) -> list[int]:
    """As TRL does: a string as it is, messages through the chat template with the generation prompt."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return list(
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
        )["input_ids"]
    )


def _left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT
