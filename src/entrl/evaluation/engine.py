"""Answers by vLLM, read from a model's files: by an engine of our own, or by servers that run already.

    with open_engine("runs/x/model", sampling=sampling, tokenizer=tokenizer) as writer:
        for answered in writer.write(asked): ...

A problem's seed follows from the evaluation's seed and the problem's index, so neither the rank nor the batch that asks
decides what is drawn; company moves logits in their last bits, and a near tie may then fall the other way. Greedy
answers are requests of their own, at temperature 0. An adapter is served on its base by vLLM's LoRA; where vLLM would
drop a part of it, it is folded into a temporary copy first, and that is said (servers: refused).

Entropies and log-probs come from our sampler plugin: of the full vocabulary after temperature, before top_p, as in
`entrl.evaluation.generation`. A server that runs without the plugin gives none: said once, and both stay None.

Refused by name: prompts longer than the context, what vLLM cannot load, servers of another model or key. Not here:
dialogues with an environment, and models in memory; both are transformers' (`entrl.evaluation.generation`).

Needs:   vllm (own engine), or servers started by `entrl serve`
"""

import contextlib
import copy
import hashlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from entrl.engines.adapters import WEIGHTS, adapter_rank, check_servable_config, server_rank
from entrl.engines.completions import Completion as Generated
from entrl.engines.completions import WorkItem, item_seed
from entrl.engines.local import SHARE, LocalEngine, missing
from entrl.engines.pool import ReplicaPool
from entrl.engines.servers import KEY_VARIABLE, PROCESSED, checked_urls
from entrl.evaluation.writing import Answered, Asked, Completion, Sampling
from entrl.models.load import Adapter, find_adapter
from entrl.models.merge import merge_adapter
from entrl.models.shipped import model_path

GREEDY = -1  # in the place of a sample's number
STEP = 256  # tokens; an engine's length is a multiple of it
Work = Sequence[tuple[WorkItem, Mapping[str, Any]]]


@contextlib.contextmanager
def open_engine(
    path: str,
    *,
    sampling: Sampling,
    tokenizer: Any,
    servers: Sequence[str] = (),
    api_key: str | None = None,
    dtype: str = "auto",
    memory: float = SHARE,
    device: int | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Iterator["EngineWriter"]:
    """A `Writer` for the model or adapter at `path`, which ends with the block.

    servers: their addresses; problems are spread over them. Without any an engine is started here, at the first
    problems; under several ranks each starts its own, on its own GPU.
    api_key: the servers' (None: that of ENTRL_VLLM_API_KEY). dtype: "auto" computes in what the weights are stored in.
    memory: share of a GPU's memory the engine takes. device: GPU (None: this rank's).
    """
    with contextlib.ExitStack() as until_done:
        files = until_done.enter_context(_files(path, dtype, say, fold=not servers))
        if servers:
            backend: Any = _Servers(files, servers, api_key or os.environ.get(KEY_VARIABLE), say)
        else:
            backend = _Own(files, memory, _rank_device() if device is None else device)
        until_done.callback(backend.close)
        yield EngineWriter(backend, files, sampling, tokenizer)


class EngineWriter:
    """A `Writer`; see the module docstring."""

    def __init__(self, backend: Any, files: "_Files", sampling: Sampling, tokenizer: Any) -> None:
        self.unit = None  # company is the engine's own affair
        self._backend, self._sampling, self._tokenizer = backend, sampling, tokenizer
        self._ends = files.ends | {i for i in [tokenizer.eos_token_id] if i is not None}
        self._context = min([n for n in (files.context, backend.context) if n is not None], default=None)

    def as_asked(self, sampling: Sampling) -> "EngineWriter":
        """The same engine for a task that is answered in another way."""
        other = copy.copy(self)
        other._sampling = sampling
        return other

    def write(self, asked: Sequence[Asked]) -> Iterator[Answered]:
        if not asked:
            return
        length = max(len(problem.prompt_ids) for problem in asked) + self._sampling.max_new_tokens
        if self._context is not None and length > self._context:
            raise ValueError(
                f"a prompt of {length - self._sampling.max_new_tokens} tokens and max_new_tokens="
                f"{self._sampling.max_new_tokens} are longer than the engine's context of {self._context} tokens; "
                "lower max_new_tokens or leave out the longest prompts"
            )
        found: dict[int, dict[int, list[Generated]]] = {problem.index: {} for problem in asked}
        parts = 1 + self._sampling.greedy
        for item, generated in self._backend.stream([work for p in asked for work in self._work(p)], length):
            mine = found[item.prompt]
            mine[item.first] = generated
            if len(mine) == parts:
                del found[item.prompt]
                greedy = self._completion(mine[GREEDY][0], greedy=True) if self._sampling.greedy else None
                drawn = [self._completion(one, greedy=False) for one in mine[0]]
                yield Answered(index=item.prompt, greedy=greedy, drawn=drawn)

    def _work(self, problem: Asked) -> Iterator[tuple[WorkItem, dict[str, Any]]]:
        how = self._sampling
        common = {"max_tokens": how.max_new_tokens, "stop_token_ids": sorted(self._ends)}
        for first in [*([GREEDY] if how.greedy else []), 0]:
            item = WorkItem(
                prompt=problem.index,
                first=first,
                samples=1 if first == GREEDY else how.samples,
                token_ids=problem.prompt_ids,
                seed=item_seed(how.seed, None, problem.index, first),
            )
            if first == GREEDY:
                yield item, {**common, "temperature": 0.0}
            else:
                recorded = {"entrl": {"record": True}} if self._backend.recorder else {}
                yield item, {**common, "temperature": how.temperature, "top_p": how.top_p, **recorded}

    def _completion(self, generated: Generated, *, greedy: bool) -> Completion:
        ids, kept = generated.token_ids, generated.kept_mass
        known = generated.entropies is not None and kept is not None and not greedy
        return Completion(
            ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            truncated=ids[-1] not in self._ends,
            entropies=torch.tensor(generated.entropies) if known else None,
            # An engine's log-probs are of the distribution it drew from, after top_p; the mass it kept undoes that.
            logprobs=torch.tensor([lp + math.log(g) for lp, g in zip(generated.logprobs, kept or (), strict=True)])
            if known
            else None,
        )


# ---- where answers come from


class _Own:
    """An engine of ours, started when it is known how long answers may become; anew where that was too short."""

    recorder = True
    context: int | None = None

    def __init__(self, files: "_Files", memory: float, device: int | None) -> None:
        if problem := missing():
            raise ValueError(problem)
        self._files, self._memory, self._device = files, memory, device
        self._engine: LocalEngine | None = None
        self._length = 0

    def stream(self, work: Work, length: int) -> Iterator[tuple[WorkItem, list[Generated]]]:
        if self._engine is None or length > self._length:
            self.close()
            files = self._files
            length = -(-length // STEP) * STEP  # the next task may be a little longer
            length = length if files.context is None else min(length, files.context)
            self._engine = LocalEngine(
                files.model,
                revision=files.revision,
                dtype=files.dtype,
                max_model_len=int(length),
                adapter=None if files.adapter is None else str(files.adapter),
                adapter_rank=server_rank(files.rank) if files.rank else 0,
                memory=self._memory,
                device=self._device,
            )
            self._length = int(length)
        return self._engine.stream(work)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class _Servers:
    """Servers that run already; an adapter is given to them under a name that follows from its content."""

    def __init__(self, files: "_Files", urls: Sequence[str], api_key: str | None, say: Callable[[str], None]) -> None:
        self._version = None if files.adapter is None else 0
        self._pool = ReplicaPool(
            checked_urls(urls, key="eval.servers (--server)"),
            api_key,
            base_model=files.model,
            lora_rank=files.rank or None,
            run_id=None if files.adapter is None else f"eval-{_digest(files.adapter)}",
            processed=False,
        )
        told = self._pool.check()
        without = [server["url"] for server in told if not _records(server)]
        self.recorder = not without
        if without:
            say(
                f"{', '.join(without)}: no sampler plugin of ours, so this evaluation has no entropies and no "
                "log-probs; servers started by `entrl serve` have it"
            )
        self.context = min([server["max_model_len"] for server in told if server.get("max_model_len")], default=None)
        other = {server["dtype"] for server in told if server.get("dtype")} - {files.dtype}
        if other:
            say(f"the servers compute in {', '.join(sorted(other))}, the weights are stored in {files.dtype}")
        if files.adapter is not None:
            self._pool.publish(0, files.adapter)

    def stream(self, work: Work, length: int) -> Iterator[tuple[WorkItem, list[Generated]]]:
        return self._pool.stream(work, self._version)

    def close(self) -> None:
        alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
        if alone:  # other ranks may still be asking under the same name
            self._pool.withdraw()


def _records(told: Mapping[str, Any]) -> bool:
    return bool(told.get("recorder")) and str(told.get("logprobs_mode")).startswith(PROCESSED)


def _digest(adapter: Path) -> str:
    digest = hashlib.sha256()
    for file in (adapter / "adapter_config.json", adapter / WEIGHTS):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()[:16]


def _rank_device() -> int | None:
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


# ---- what is served


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What an engine reads: a whole model, and an adapter's folder (None: none) of rank `rank`."""

    model: str
    revision: str | None
    dtype: str  # computed in
    adapter: Path | None = None
    rank: int = 0

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model, revision=self.revision)

    @property
    def context(self) -> int | None:
        """Tokens of prompt and completion; None where the model names no limit."""
        return getattr(self._config.get_text_config(), "max_position_embeddings", None)

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer, as transformers' `generate` would take them."""
        from transformers import GenerationConfig

        try:
            given = GenerationConfig.from_pretrained(self.model, revision=self.revision or "main").eos_token_id
        except OSError:  # no such file
            given = self._config.get_text_config().eos_token_id
        return {i for i in (given if isinstance(given, list) else [given]) if i is not None}


@contextlib.contextmanager
def _files(path: str, dtype: str, say: Callable[[str], None], *, fold: bool) -> Iterator[_Files]:
    found = find_adapter(path)
    if found is None:
        yield _whole(model_path(path), None, dtype)
        return
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(str(find_adapter_config_file(found.where))).parent
    problem = _unservable(found, folder)
    if problem is None:
        whole = _whole(found.base, found.settings.get("revision"), dtype)
        yield _Files(
            model=whole.model,
            revision=whole.revision,
            dtype=whole.dtype,
            adapter=folder,
            rank=adapter_rank(found.settings),
        )
        return
    if not fold:
        raise ValueError(f"servers cannot serve the adapter {path}: {problem} {found.merge}, or evaluate without them")
    say(f"{path} is folded into a copy of its base for vLLM: {problem}")
    with tempfile.TemporaryDirectory(prefix="entrl-eval-") as temporary:
        merged = merge_adapter(folder, Path(temporary) / "model")
        yield _whole(str(merged), None, dtype)


def _whole(model: str, revision: str | None, dtype: str) -> _Files:
    files = _Files(model=model, revision=revision, dtype=dtype)
    if dtype != "auto":
        return files
    # vLLM's own "auto" would serve 32-bit weights in 16 bits.
    stored = getattr(files._config, "dtype", None) or torch.float32
    return _Files(model=model, revision=revision, dtype=str(stored).removeprefix("torch."))


def _unservable(found: Adapter, folder: Path) -> str | None:
    """Why vLLM's LoRA would not be this adapter; None where it is."""
    from peft import PeftConfig

    if find_adapter(found.base) is not None:
        return f"its base {found.base} is an adapter itself."
    try:
        check_servable_config(PeftConfig.from_pretrained(str(folder)))
    except ValueError as error:
        return str(error)
    return None
