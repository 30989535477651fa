"""A vLLM engine of our own for work that reads a model from its files, such as an evaluation.

    with LocalEngine(model, dtype="float32", max_model_len=512) as engine:
        for item, completions in engine.stream(work): ...     items with a sampling each, as they finish

The engine runs in a process of its own (vLLM's engine core): it meets none of the caller's process groups, takes the
device it is told, and gives all its memory back when it is closed. It draws what a server started by `entrl serve`
draws from the same weights, seeds and sampling, and `ReplicaPool.stream` has the same form.

Needs:   vllm
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from entrl.engines.completions import Completion, WorkItem, checked_sampling
from entrl.engines.faults import RolloutError
from entrl.engines.recording import request_options
from entrl.engines.records import RecordError, match_all, unpack
from entrl.engines.servers import PROCESSED, prompts_in_parts

SHARE = 0.9  # of a GPU's memory that an engine takes, where nobody says another; `entrl plan` counts with it
AT_ONCE = 512  # items handed to the engine beyond which others wait here; it batches what its memory allows
CLOSING = 30.0  # seconds in which it may end by itself
RECORDER = "entrl.engines.sampler:EntropyRecorder"
# What a launcher tells a process about its ranks: the engine is one process, of no group of the caller's.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
DEFAULTS = {  # settings of vLLM's, where the caller's environment has none; the last three are read on a CPU alone
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class LocalEngine:
    """See the top of this file. adapter: folder of a LoRA adapter on `model`, of a kind that `check_servable` passes.

    max_model_len: tokens of the longest prompt and its completion. memory: share of the GPU's memory it may take.
    device: number among the visible GPUs; None: the first. revision: of the model on the hub.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        max_model_len: int,
        revision: str | None = None,
        adapter: str | None = None,
        adapter_rank: int = 0,
        memory: float = SHARE,
        device: int | None = None,
    ) -> None:
        if problem := missing():
            raise ValueError(problem)
        with _environment(device):
            from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
            from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
            from vllm.v1.engine.llm_engine import LLMEngine  # pyright: ignore[reportMissingImports]

            given: dict[str, Any] = {}
            if adapter is not None:
                given = {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter_rank}
            arguments = EngineArgs(
                model=model,
                revision=revision,
                skip_tokenizer_init=True,
                dtype=dtype,
                max_model_len=max_model_len,
                gpu_memory_utilization=memory,
                logprobs_mode=PROCESSED,
                logits_processors=[RECORDER],  # by name: where the engine schedules ahead, others see no token ids
                worker_extension_cls="entrl.engines.records.WorkerExtension",
                generation_config="vllm",  # requests say all of it
                enforce_eager=not torch.cuda.is_available(),  # compiling on a CPU costs minutes
                enable_chunked_prefill=None if prompts_in_parts() else False,
                disable_log_stats=True,
                **given,
            )
            try:
                self._engine = LLMEngine.from_engine_args(arguments, enable_multiprocessing=True)
            except RuntimeError as error:
                raise RolloutError(
                    f"vLLM could not start with {model}: {error} What it printed above says why; too little memory is "
                    "the usual reason (VLLM_CPU_KVCACHE_SPACE in GiB on a CPU)"
                ) from error
            self._engine.collective_rpc("entrl_end_with_parent")
        self._lora = None if adapter is None else LoRARequest("adapter", 1, adapter)

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's process."""
        self._engine.engine_core.shutdown(timeout=CLOSING)

    def stream(self, work: Sequence[tuple[WorkItem, Mapping[str, Any]]]) -> Iterator[tuple[WorkItem, list[Completion]]]:
        """Each item with its completions, as they finish. Sampling as `ReplicaPool.generate` takes it.

        Raises RolloutError where the engine ends, or records what cannot be told apart.
        """
        waiting = iter([(item, checked_sampling(sampling)) for item, sampling in work])
        under_way: dict[str, tuple[WorkItem, bool]] = {}
        try:
            while True:
                for item, sampling in islice(waiting, AT_ONCE - len(under_way)):
                    self._add(item, sampling)
                    under_way[item.key] = (item, bool((sampling.get("entrl") or {}).get("record")))
                if not under_way:
                    return
                done = [answer for answer in self._step() if answer.finished]
                records = self._take([a.request_id for a in done if under_way[a.request_id][1]])
                for answer in done:
                    item, _ = under_way.pop(answer.request_id)
                    yield item, _completions(answer, records.get(item.key))
        finally:
            if under_way:  # the reader has had enough
                with contextlib.suppress(Exception):  # an engine that has ended has nothing under way
                    self._engine.abort_request(list(under_way))

    def _add(self, item: WorkItem, sampling: Mapping[str, Any]) -> None:
        from vllm.inputs import tokens_input  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]

        own = sampling.get("entrl")
        params = SamplingParams(
            **{key: value for key, value in sampling.items() if key not in ("seed", "entrl")},
            n=item.samples,
            seed=item.seed,
            logprobs=0,  # the sampled token's alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=request_options(item.key) if own else None,
        )
        self._engine.add_request(item.key, tokens_input(list(item.token_ids)), params, lora_request=self._lora)

    def _step(self) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore[reportMissingImports]

        try:
            return self._engine.step()
        except EngineDeadError as error:
            raise RolloutError(
                "the engine's process ended; what it printed is above. Nothing at all there: it may have been killed "
                "for want of memory"
            ) from error

    def _take(self, keys: list[str]) -> dict[str, Any]:
        if not keys:
            return {}
        try:
            return unpack(self._engine.collective_rpc("entrl_take", args=(keys,)))
        except RecordError as error:
            raise RolloutError(f"the engine's records cannot be read: {error}") from error


def missing() -> str | None:
    """What to say where vLLM is not installed; None where it is."""
    if importlib.util.find_spec("vllm") is not None:
        return None
    return "vLLM is not installed for this Python; bash launch/install_vllm.sh does it (cpu or gpu)"


def _completions(answer: Any, records: Any) -> list[Completion]:
    outputs = sorted(answer.outputs, key=lambda output: output.index)
    ids = [list(output.token_ids) for output in outputs]
    found = [None] * len(ids) if records is None else match_all(records, ids)
    return [
        Completion(
            token_ids=tokens,
            logprobs=[step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)],
            entropies=None if record is None else record.entropies,
            kept_mass=None if record is None else record.kept_mass,
            version=None,
            finish_reason=output.finish_reason or "",
        )
        for tokens, output, record in zip(ids, outputs, found, strict=True)
    ]


@contextlib.contextmanager
def _environment(device: int | None) -> Iterator[None]:
    """What the engine's process inherits; the caller's own environment is as before afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name in RANKS or name.startswith(("TORCHELASTIC_", "ACCELERATE_")):
            del os.environ[name]
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork of a process that has threads may hang
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process below ours, not one more below that
    if device is not None and torch.cuda.is_available():
        visible = before.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[device]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
