"""Answers of a model in memory, by transformers' `generate`: greedy and drawn ones of several problems in one batch.

Drawn tokens come by inversion, each row from uniform numbers of its own: u of (seed, problem, sample, position) picks
the first token whose cumulated probability exceeds it. So neither the other rows of a batch, nor its size, nor the
number of processes decides what is drawn, beyond the rounding of the logits. Greedy rows keep their argmax.

A batch is generated in stretches: when half of its rows have ended the others go on alone, on their part of the cache.
A batch that does not fit in memory is halved, and so are those after it.

Needs:   torch, transformers
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)

from entrl.evaluation.writing import Answered, Asked, Completion, Sampling
from entrl.maths.signals import entropy_from_log_probs

GREEDY = -1  # in the place of a sample's number
FEW_ROWS = 8  # a batch is not worth shrinking below this, our choice


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer to be written. sample: from 0 on, or GREEDY."""

    index: int
    sample: int
    prompt_ids: list[int]


@dataclass(kw_only=True)
class TransformersWriter:
    """A `Writer`; see the module docstring. rows: most answers in a batch; halved where they do not fit."""

    model: Any
    tokenizer: Any
    sampling: Sampling
    rows: int
    say: Callable[[str], None] = print
    unit: int = field(init=False)  # problems

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a batch needs at least 1 row, got {self.rows}")
        self.unit = max(1, self.rows // self.sampling.rows)

    def write(self, asked: Sequence[Asked]) -> Iterator[Answered]:
        with as_sampler(self.model, self.tokenizer):
            for start in range(0, len(asked), self.unit):
                yield from self._unit(asked[start : start + self.unit])

    def _unit(self, asked: Sequence[Asked]) -> Iterator[Answered]:
        samples = [*([GREEDY] if self.sampling.greedy else []), *range(self.sampling.samples)]
        found: dict[int, dict[int, Completion]] = {a.index: {} for a in asked}
        rows = [Row(index=a.index, sample=j, prompt_ids=a.prompt_ids) for a in asked for j in samples]
        for row, completion in self._written(rows):
            mine = found[row.index]
            mine[row.sample] = completion
            if len(mine) == len(samples):
                drawn = [mine[j] for j in range(self.sampling.samples)]
                yield Answered(index=row.index, greedy=mine.get(GREEDY), drawn=drawn)

    def _written(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Completion]]:
        left = {(row.index, row.sample): row for row in rows}
        while left:
            tight = False
            try:
                for row, completion in self._batch(list(left.values())[: self.rows]):
                    del left[row.index, row.sample]
                    yield row, completion
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or self.rows == 1:
                    raise
                tight = True
            if tight:  # out here, where the error no longer holds the tensors of the attempt
                self.rows = min(self.rows, len(rows)) // 2 or 1
                self.say(f"out of memory: batches of {self.rows} answers from here on")
                gc.collect()
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _batch(self, rows: list[Row]) -> Iterator[tuple[Row, Completion]]:
        """Each row as it ends; those that end in one stretch in their order."""
        model, limit = self.model, self.sampling.max_new_tokens
        ends = end_ids(model, self.tokenizer)
        ids_BT, mask_BT = left_pad([row.prompt_ids for row in rows], self.tokenizer.pad_token_id, model.device)
        ends_E = torch.tensor(sorted(ends), device=model.device)
        width, draw, cache = ids_BT.shape[1], _Draw(rows, self.sampling, model.device), None
        told: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in rows]
        while rows:
            out = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=limit - (ids_BT.shape[1] - width),
                do_sample=False,  # `draw` leaves one token to choose
                logits_processor=LogitsProcessorList([draw]),
                stopping_criteria=StoppingCriteriaList([_HalfEnded(ends_E, len(rows))]),
                return_dict_in_generate=True,
                synced_gpus=False,  # under ZeRO-3 transformers would wait for the other ranks after each token
                **({} if cache is None else {"past_key_values": cache}),
            )
            for (entropies, logprobs), entropy_T, logprob_T in zip(told, *draw.taken(), strict=True):
                entropies.append(entropy_T)
                logprobs.append(logprob_T)
            written = out.sequences[:, width:].tolist()
            lengths = [next((i + 1 for i, token in enumerate(w) if token in ends), None) for w in written]
            ended = [n is not None or len(w) >= limit for w, n in zip(written, lengths, strict=True)]
            for row, ids, length, signals, over in zip(rows, written, lengths, told, ended, strict=True):
                if over:
                    yield row, self._completion(row, ids[:length], length is None, signals)
            live = [i for i, over in enumerate(ended) if not over]
            rows, told = [rows[i] for i in live], [told[i] for i in live]
            if rows:
                live_B = torch.tensor(live, device=model.device)
                ids_BT = out.sequences[live_B]
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), ids_BT.shape[1] - mask_BT.shape[1])], 1)
                mask_BT, cache = mask_BT[live_B], _part_of(out.past_key_values, live_B)
                draw.keep(live_B)

    def _completion(
        self, row: Row, ids: list[int], truncated: bool, signals: tuple[list[Tensor], list[Tensor]]
    ) -> Completion:
        entropy_T, logprob_T = (torch.cat(parts)[: len(ids)] for parts in signals)
        greedy = row.sample == GREEDY
        return Completion(
            ids=ids,
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            truncated=truncated,
            entropies=None if greedy else entropy_T,
            logprobs=None if greedy else logprob_T,
        )


class _Draw(LogitsProcessor):
    """Leaves one token of each drawn row to choose, and writes down the entropy of its distribution and its log-prob;
    says nothing to greedy rows."""

    def __init__(self, rows: Sequence[Row], sampling: Sampling, device: Any) -> None:
        self.sampling = sampling
        self.wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        streams = [uniforms(sampling, row) for row in rows]
        self.uniform_BT = torch.tensor(np.stack(streams), device=device, dtype=self.wide)
        self.drawn_B = torch.tensor([row.sample != GREEDY for row in rows], device=device)
        self.top_p: Any = None if sampling.top_p == 1 else TopPLogitsWarper(sampling.top_p)
        self.step = 0
        self.told: list[tuple[Tensor, Tensor]] = []  # (B,) entropies and log-probs of each step of the stretch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        log_p_BV = torch.log_softmax(scores / self.sampling.temperature, -1)
        kept_BV = log_p_BV if self.top_p is None else torch.log_softmax(self.top_p(input_ids, log_p_BV), -1)
        cumulated_BV = kept_BV.exp().cumsum(-1, dtype=self.wide)
        aim_B1 = self.uniform_BT[:, self.step, None] * cumulated_BV[:, -1:]  # the sum is 1 but for rounding
        token_B1 = torch.searchsorted(cumulated_BV, aim_B1, right=True).clamp_(max=scores.shape[-1] - 1)
        self.step += 1
        self.told.append((entropy_from_log_probs(log_p_BV), log_p_BV.gather(-1, token_B1)[:, 0]))
        raised_B1 = torch.where(self.drawn_B[:, None], torch.inf, scores.gather(-1, token_B1))
        return scores.scatter_(-1, token_B1, raised_B1)  # a copy of generate's own

    def taken(self) -> tuple[Tensor, Tensor]:
        """(B, t) entropies and log-probs since the last call, on the CPU."""
        entropies, logprobs = zip(*self.told, strict=True)
        self.told = []
        return torch.stack(entropies, 1).float().cpu(), torch.stack(logprobs, 1).float().cpu()

    def keep(self, live_B: Tensor) -> None:
        self.uniform_BT, self.drawn_B = self.uniform_BT[live_B], self.drawn_B[live_B]


class _HalfEnded(StoppingCriteria):
    """Ends a stretch when half of its rows have ended; small batches run to their end."""

    def __init__(self, ends: Tensor, rows: int) -> None:
        self.ends, self.enough = ends, rows if rows <= FEW_ROWS else -(-rows // 2)
        self.ended_B = torch.zeros(rows, dtype=torch.bool, device=ends.device)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.ended_B |= torch.isin(input_ids[:, -1], self.ends)
        return (self.ended_B.sum() >= self.enough).expand(len(self.ended_B))


def uniforms(sampling: Sampling, row: Row) -> np.ndarray:
    """(max_new_tokens,) in [0, 1), of this answer alone."""
    stream = np.random.default_rng([sampling.seed % 2**64, row.index, row.sample + 1])
    return stream.random(sampling.max_new_tokens)


def _part_of(cache: Any, live_B: Tensor) -> Any:
    """The cache of some rows; None, so that their tokens are read again, where its kind cannot be divided."""
    if not isinstance(cache, DynamicCache):
        return None
    cache.batch_select_indices(live_B)
    return cache


@contextlib.contextmanager
def as_sampler(model: Any, tokenizer: Any) -> Iterator[None]:
    """Evaluation mode, and none of the model's own sampling defaults."""
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token; set tokenizer.pad_token, for instance to its eos_token")
    # A peft model copies its own generation config onto its base in `generate`.
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs, training = [owner.generation_config for owner in owners], model.training
    ends = sorted(end_ids(model, tokenizer))
    model.eval()
    try:
        # Its top_k, repetition penalty and the like would be filled in where we stay silent.
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config
        model.train(training)


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the model's own and the tokenizer's."""
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = set(given if isinstance(given, list) else [given]) | {tokenizer.eos_token_id}
    return {i for i in ids if i is not None}


def left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT
