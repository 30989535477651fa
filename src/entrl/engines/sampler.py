"""A vLLM sampler plugin: exact entropy and kept mass of every sampled token, and Top-H. Loaded by vLLM only.

vLLM loads it by itself wherever entrl is installed (entry point `vllm.logits_processors`); a request that asks for
nothing (`entrl.engines.recording.request_options`) is not touched. vLLM 0.31 has two samplers with two plugin
interfaces and refuses to start when an installed plugin does not know the one in use, so `EntropyRecorder` is both:

- the V1 model runner calls it after temperature and min-p, before top-k and top-p. Where the engine schedules ahead
  (`async_scheduling`, the default on GPUs) it shows plugins no token ids unless one was named explicitly; then take()
  refuses, and says how to switch.
- the V2 model runner (the default where Triton is installed) calls it before temperature and reports positions itself.

Both give the same records. Speculative decoding drops plugins; a key it should have written is then unknown.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    BatchUpdate,
    MoveDirectionality,
)
from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsProcessor as ProcessorV1,
)
from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsContext,
    LogitsProcRequestState,
)
from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsProcessor as ProcessorV2,
)

from entrl.engines.recording import TopHOptions, read_options
from entrl.engines.records import STORE, Trace
from entrl.maths.truncation import entropy_and_kept_mass, rows_at_once, top_h_keep, top_k_keep, top_p_keep

NO_IDS = (
    "this engine schedules ahead (async_scheduling) and shows an installed plugin no token ids, so records cannot be "
    "told apart; start it with async_scheduling=False (--no-async-scheduling), or name the plugin: "
    "logits_processors=['entrl.engines.sampler:EntropyRecorder'] (--logits-processors)"
)

# What changes the distribution before the plugin sees it: its entropy would not be the policy's. Name -> off.
MUST_BE_OFF: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "min_tokens": 0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "structured_outputs": None,
    "thinking_token_budget": None,
}


class Row:
    """What one running sequence asked for."""

    __slots__ = ("temperature", "top_h", "top_k", "top_p", "trace")

    def __init__(self, params: SamplingParams, top_h: TopHOptions | None, trace: Trace | None) -> None:
        self.temperature = float(params.temperature)
        self.top_k = int(params.top_k)  # < 1 = off
        self.top_p = float(params.top_p)  # 1 = off
        self.top_h = top_h
        self.trace = trace

    @property
    def cut(self) -> tuple[TopHOptions | None, int, float]:
        """Rows with the same cut are worked on together; top-k and top-p matter only to the recorded mass."""
        return (self.top_h, self.top_k, self.top_p) if self.trace is not None else (self.top_h, 0, 1.0)


def check_params(params: SamplingParams) -> None:
    """ValueError for a request whose values could not be recorded as what they are said to be."""
    options = read_options(params.extra_args)
    if options is None or not options.record:
        return
    if params.temperature == 0:
        raise ValueError(
            "entrl record with temperature 0: a greedy choice has no sampling distribution; sample, or do not record"
        )
    for name, off in MUST_BE_OFF.items():
        value = getattr(params, name, off)
        if value != off and value not in ([], {}, None):
            raise ValueError(
                f"entrl record with {name}={value!r}: the entropy recorded would be that of the distribution this "
                f"option has changed, not the policy's; leave {name} at {off!r} or do not record"
            )


class Writer:
    """Values from the device to the traces: at once on a CPU, without making the device wait on a GPU."""

    def __init__(self) -> None:
        self._underway: deque[tuple[Any, Tensor, list[tuple[Trace, int]]]] = deque()
        STORE.drain_from(self)

    def write(
        self, entropy_R: Tensor, kept_R: Tensor, places: list[tuple[Trace, int]], before_R: Tensor | None = None
    ) -> None:
        """One value per trace and position; before_R: the id before each, for traces that were not shown it."""
        values_KR = torch.stack([v.double() for v in (entropy_R, kept_R, before_R) if v is not None])  # ids stay exact
        if values_KR.device.type != "cuda":
            _put(values_KR, places)
            return
        host_KR = torch.empty(values_KR.shape, dtype=values_KR.dtype, pin_memory=True)
        host_KR.copy_(values_KR, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._underway.append((done, host_KR, places))
        while self._underway and self._underway[0][0].query():
            _, values, there = self._underway.popleft()
            _put(values, there)

    def drain(self) -> None:
        for done, values, places in self._underway:
            done.synchronize()
            _put(values, places)
        self._underway.clear()


def _put(values_KR: Tensor, places: list[tuple[Trace, int]]) -> None:
    for (entropy, kept, *before), (trace, position) in zip(values_KR.T.tolist(), places, strict=True):
        trace.write(position, entropy, kept)
        if before and len(trace.ids) == position - 1:
            trace.ids.append(int(before[0]))


def measure(logits_BV: Tensor, rows: Sequence[tuple[int, Row]], *, scaled: bool) -> tuple[Tensor, Tensor]:
    """Entropy and kept mass of the given rows, (R,) each, and Top-H's cut applied to them in place.

    logits_BV: float32; scaled: temperature is already in them. Rows without a trace get no entropy (0) and no mass.
    """
    entropy_R = torch.zeros(len(rows), dtype=torch.float32, device=logits_BV.device)
    kept_R = torch.ones_like(entropy_R)
    groups: dict[Any, list[int]] = {}
    for r, (_, row) in enumerate(rows):
        groups.setdefault((row.cut, row.trace is not None, 1.0 if scaled else row.temperature), []).append(r)
    for ((top_h, top_k, top_p), recorded, temperature), together in groups.items():
        for members in _parts(together, logits_BV):
            where = _index([rows[r][0] for r in members], logits_BV.device)
            z_BV = logits_BV[where]
            if temperature != 1.0:
                z_BV = z_BV / temperature
            keep_BV = None
            if top_h is not None:
                keep_BV = top_h_keep(z_BV, top_h.alpha, rule=top_h.rule, top_n=top_h.top_n)
            if recorded:
                final_BV = _then_top_k_top_p(z_BV, keep_BV, top_k, top_p)
                into = _index(members, logits_BV.device)
                entropy_R[into], kept_R[into] = entropy_and_kept_mass(z_BV, final_BV)
            if keep_BV is not None:
                logits_BV[where] = logits_BV[where].masked_fill(~keep_BV, -torch.inf)
    return entropy_R, kept_R


def _then_top_k_top_p(z_BV: Tensor, keep_BV: Tensor | None, top_k: int, top_p: float) -> Tensor | None:
    """What is left after the cuts vLLM makes next: top-k on what is left so far, top-p on what is left then."""
    if 0 < top_k < z_BV.shape[-1]:
        left_BV = z_BV if keep_BV is None else z_BV.masked_fill(~keep_BV, -torch.inf)
        keep_BV = top_k_keep(left_BV, top_k) & (left_BV > -torch.inf)
    if top_p < 1:
        left_BV = z_BV if keep_BV is None else z_BV.masked_fill(~keep_BV, -torch.inf)
        keep_BV = top_p_keep(left_BV, top_p) & (left_BV > -torch.inf)
    return keep_BV


def _parts(members: list[int], logits_BV: Tensor) -> list[list[int]]:
    """A few rows at a time: what is worked out beside the logits never becomes their size."""
    rows = rows_at_once(logits_BV)
    return [members[i : i + rows] for i in range(0, len(members), rows)]


def _index(rows: list[int], device: torch.device) -> slice | Tensor:
    """A slice where the rows are neighbours: indexing with it copies nothing."""
    if rows[-1] - rows[0] == len(rows) - 1 and rows == list(range(rows[0], rows[-1] + 1)):
        return slice(rows[0], rows[-1] + 1)
    index = torch.tensor(rows)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


class EntropyRecorder(ProcessorV1, ProcessorV2):
    """The plugin, in the shape the engine asks for: three arguments make it V1's, two make it V2's."""

    _first: ClassVar[WeakValueDictionary[int, "EntropyRecorder"]] = WeakValueDictionary()  # by id(configuration)

    def __new__(cls, vllm_config: Any, *args: Any) -> "EntropyRecorder":
        return object.__new__((RecorderV1 if len(args) == 2 else RecorderV2) if cls is EntropyRecorder else cls)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        check_params(sampling_params)

    def _is_second(self, vllm_config: Any) -> bool:
        """Whether the engine has one already: named explicitly beside the entry point."""
        self._config = vllm_config  # kept, so that its id is nobody else's
        return self._first.setdefault(id(vllm_config), self) is not self

    def is_argmax_invariant(self) -> bool:
        return True  # V1: runs after temperature; Top-H always keeps the likeliest token


class RecorderV1(EntropyRecorder):
    """Follows the rows of the persistent batch; see `Trace` for which of its values count."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._idle = self._is_second(vllm_config)
        self._rows: dict[int, Row] = {}
        self._writer = Writer()
        self._blind = bool(  # vLLM repairs the ids of earlier steps only for plugins that were named
            vllm_config.scheduler_config.async_scheduling and not vllm_config.model_config.logits_processors
        )

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None or self._idle:
            return
        for index in batch_update.removed:
            self._leave(self._rows.pop(index, None))
        for index, params, prompt_ids, output_ids in batch_update.added:
            self._leave(self._rows.pop(index, None))
            row = self._row(params, prompt_ids, output_ids)
            if row is not None:
                self._rows[index] = row
        for a, b, direction in batch_update.moved:
            row_a, row_b = self._rows.pop(a, None), self._rows.pop(b, None)
            if row_a is not None:
                self._rows[b] = row_a
            if direction != MoveDirectionality.SWAP:
                self._leave(row_b)  # a move into a gap is all that is said of the request that left it
            elif row_b is not None:
                self._rows[a] = row_b

    def _leave(self, row: Row | None) -> None:
        if row is not None and row.trace is not None:
            row.trace.freeze()

    def _row(self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> Row | None:
        options = read_options(params.extra_args)
        if options is None:
            return None
        trace = None
        if options.record and params.temperature > 0:
            trace = STORE.open(options.key, prompt_ids or (), output_ids)
            if self._blind:
                trace.problem = NO_IDS
            elif prompt_ids is None:
                trace.problem = "the prompt was given as embeddings, so equal completions cannot be told apart"
            if output_ids:  # back from preemption
                self._writer.drain()
                trace.adopt(output_ids)
        return Row(params, options.top_h, trace)

    def apply(self, logits: Tensor) -> Tensor:
        if not self._rows:
            return logits
        rows = sorted((item for item in self._rows.items() if item[0] < len(logits)), key=lambda item: item[0])
        entropy_R, kept_R = measure(logits, rows, scaled=True)
        recorded = [r for r, (_, row) in enumerate(rows) if row.trace is not None]
        if recorded:
            into = _index(recorded, logits.device)
            places = [(trace, _position(trace)) for _, row in rows if (trace := row.trace) is not None]
            self._writer.write(entropy_R[into], kept_R[into], places)
        return logits


def _position(trace: Trace) -> int:
    """How many tokens the sequence has; the ids before the value are taken from the engine's list on the way."""
    output = trace.output or []
    trace.follow(output)
    if output and output[-1] == -1:
        trace.problem = NO_IDS
    return len(output)


class RecorderV2(EntropyRecorder):
    """Follows request slots; a position is the sequence's length less its prompt's."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._idle = self._is_second(vllm_config)
        self._states = req_states
        self._slots: dict[int, Row] = {}
        self._new: dict[int, str] = {}  # slot -> key, until its prompt has been read
        self._writer = Writer()
        self._sharded = bool(getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False))

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        raise TypeError("a V2 model runner has no batch updates; this instance was built for it")

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._slots.pop(req_idx, None)
        self._new.pop(req_idx, None)
        options = read_options(sampling_params.extra_args)
        if options is None or self._idle:
            return False
        self._slots[req_idx] = Row(sampling_params, options.top_h, None)
        if options.record and sampling_params.temperature > 0:
            self._new[req_idx] = options.key
        return True

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        slots: Iterable[int] = np.asarray(ctx.idx_mapping_np).tolist()
        asked = [(b, slot, self._slots[slot]) for b, slot in enumerate(slots) if slot in self._slots]
        if not asked:
            return logits
        if len(logits) != len(ctx.idx_mapping_np):
            return self._refuse(logits, asked)
        prefill = self._states.prefill_len.np
        lengths = ctx.seq_lens_upper_bound_np
        sampled = [(b, slot, row) for b, slot, row in asked if lengths[b] >= prefill[slot]]  # others are mid-prompt
        for _, slot, row in sampled:
            if slot in self._new:
                row.trace = self._trace(slot, self._new.pop(slot))
        if not sampled:
            return logits
        entropy_R, kept_R = measure(logits, [(b, row) for b, _, row in sampled], scaled=False)
        recorded = [r for r, (_, _, row) in enumerate(sampled) if row.trace is not None]
        if recorded:
            into = _index(recorded, logits.device)
            batch = _index([sampled[r][0] for r in recorded], logits.device)
            prompt = self._states.prompt_len.np
            places = [(t, int(lengths[b] - prompt[slot])) for b, slot, row in sampled if (t := row.trace) is not None]
            self._writer.write(entropy_R[into], kept_R[into], places, ctx.input_ids[batch])
        return logits

    def _trace(self, slot: int, key: str) -> Trace:
        """A trace that knows its prompt, and its beginning when the request comes back from preemption."""
        prompt_len, prefill_len = int(self._states.prompt_len.np[slot]), int(self._states.prefill_len.np[slot])
        ids = self._states.all_token_ids.gpu[slot, :prefill_len].tolist()  # one wait per request, at its first token
        trace = STORE.open(key, ids[:prompt_len], None)
        if self._sharded:
            trace.problem = "batch-sharded sampling spreads rows over ranks; start the engine without it"
        if prefill_len > prompt_len:
            self._writer.drain()
            trace.adopt(ids[prompt_len:])
        return trace

    def _refuse(self, logits: Tensor, asked: list[tuple[int, int, Row]]) -> Tensor:
        """Several rows of logits per request: nothing is recorded, and a cut must not be left out."""
        if any(row.top_h is not None for _, _, row in asked):
            raise RuntimeError("top_h under speculative decoding: start the engine without a speculative model")
        for _, slot, row in asked:
            if slot in self._new:
                row.trace = self._trace(slot, self._new.pop(slot))
            if row.trace is not None:
                row.trace.problem = "the engine decodes speculatively; start it without a speculative model"
        return logits
