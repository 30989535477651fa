"""Which engine generates: TRL's colocated vLLM with the sampler's own numbers, or replicas fed with adapters.

Beside the trainers the only module that knows private names of TRL's: VLLMGeneration of
`trl.generation.vllm_generation`, its `llm`, and the name under which the GRPO trainer finds it. Both backends answer
to the same calls as TRL's class (`sync_weights`, `generate`), so everything after generation is TRL's unchanged.
"""

import contextlib
import functools
import gc
import itertools
import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import trl.generation.vllm_generation as trl_vllm
import trl.trainer.grpo_trainer as trl_grpo
from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

from entrl.engines import records as engine_records
from entrl.engines.adapters import SavedAdapter, adapter_rank, check_servable, remove_versions, save_version
from entrl.engines.completions import Completion
from entrl.engines.cpu_weights import prepare_cpu_engine, unpacked_linear_weights
from entrl.engines.faults import RolloutError
from entrl.engines.pool import ReplicaPool
from entrl.trainers.seam import GENERATION, check_trl
from entrl.trainers.shared.rollout import Sampled
from entrl.trainers.shared.waiting import alone_on_main

check_trl(version("trl"), VLLMGeneration, GENERATION)


@dataclass(frozen=True, kw_only=True)
class SamplerRequest:
    """What is asked of the engine's sampler.

    record: full-vocabulary entropy and kept mass of every sampled token
    top_h: Top-H options {"alpha", "rule"} or None
    restore: add the log kept mass to the returned log-probs
    """

    record: bool = False
    top_h: dict[str, Any] | None = None
    restore: bool = False

    @property
    def asks(self) -> bool:
        return self.record or self.top_h is not None

    def options(self, key: str) -> dict[str, Any]:
        """The request's entry under `entrl` in vLLM's `extra_args`."""
        out: dict[str, Any] = {"record": True, "key": key} if self.record else {}
        return out | ({} if self.top_h is None else {"top_h": dict(self.top_h)})


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """What the sampler said about one completion, one value per token: nats, kept mass in (0, 1].

    version: the policy version that generated it, where servers were asked; None in process.
    """

    token_ids: list[int]
    entropies: list[float]
    kept_mass: list[float]
    version: int | None = None


def sampler_request(args: Any) -> SamplerRequest:
    """What a trainer's options ask of the sampler."""
    if not args.use_vllm:
        return SamplerRequest()
    top_h = getattr(args, "top_h", None)
    restore = getattr(args, "truncation_correction", None) == "restore"
    return SamplerRequest(
        record=getattr(args, "entropy_source", "scoring") == "sampler" or restore,
        top_h=None if top_h is None else {"alpha": top_h, "rule": args.top_h_rule},
        restore=restore,
    )


@contextlib.contextmanager
def generating_with(args: Any) -> Iterator[None]:
    """While TRL's constructor runs, the class it builds its vLLM generation from is ours where ours is needed.

    On a GPU, with no recording and no replicas, it stays TRL's own.
    """
    backend: Any = None
    if args is None or not args.use_vllm:
        yield
        return
    request = sampler_request(args)
    cpu = args.device.type == "cpu"
    if getattr(args, "vllm_replicas", None):
        backend = lambda **given: ReplicaGeneration(args=args, request=request, **given)  # noqa: E731
    elif args.vllm_mode == "colocate" and (cpu or request.asks or getattr(args, "vllm_engine_dtype", None)):
        dtype = getattr(args, "vllm_engine_dtype", None)
        backend = lambda **given: ColocatedGeneration(request=request, dtype=dtype, **given)  # noqa: E731
    if backend is None:
        yield
        return
    with _in_place_of(trl_grpo, "VLLMGeneration", backend):
        yield


@contextlib.contextmanager
def _in_place_of(module: Any, name: str, value: Any) -> Iterator[None]:
    """While this lasts, TRL finds `value` under a name of one of its modules."""
    plain = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, plain)


class ColocatedGeneration(VLLMGeneration):
    """TRL's colocated vLLM; each row is asked under its own key, and the sampler's record is taken by that key."""

    def __init__(self, *, request: SamplerRequest, dtype: str | None = None, **given: Any) -> None:
        self.request = request
        self.dtype: Any = dtype
        self.rows: list[SampledRow] | None = None
        self._keys: list[str] = []
        self._calls = itertools.count()
        self._run = secrets.token_hex(4)
        super().__init__(**given)

    def _init_vllm(self) -> None:
        with contextlib.ExitStack() as while_built:
            if self.accelerator.device.type == "cpu":
                prepare_cpu_engine()
                while_built.enter_context(unpacked_linear_weights())
            if self.dtype is not None:  # an option TRL has no name for
                engine = functools.partial(trl_vllm.LLM, dtype=self.dtype)
                while_built.enter_context(_in_place_of(trl_vllm, "LLM", engine))
            super()._init_vllm()
        detach_shutdown(self.llm)
        if self.request.asks:
            self._generate_plain = self.llm.generate
            self.llm.generate = self._generate_keyed  # pyright: ignore[reportAttributeAccessIssue]

    def _generate_keyed(self, prompts: Sequence[Any], sampling_params: Any, **given: Any) -> Any:
        """`LLM.generate` with one request key per prompt."""
        call = next(self._calls)
        self._keys = [f"{self._run}-{call}-{row}" for row in range(len(prompts))]
        each = []
        for key in self._keys:
            params = sampling_params.clone()
            params.extra_args = {**(params.extra_args or {}), "entrl": self.request.options(key)}
            each.append(params)
        return self._generate_plain(prompts, sampling_params=each, **given)

    def generate(self, prompts: list[list[int]], *given: Any, **options: Any) -> tuple:
        out = super().generate(prompts, *given, **options)
        self.rows = None
        if self.request.record:
            # With tensor parallelism every rank of a group generated all rows and keeps its share.
            parallel: Any = self.tp_group if self.tensor_parallel_size > 1 else None
            group = 0 if parallel is None else torch.distributed.get_rank(group=parallel)
            first = group * len(prompts)
            taken = [engine_records.take(key) for key in self._keys][first : first + len(prompts)]
            self.rows = [_row(engine_records.match(r, ids)) for r, ids in zip(taken, out[1], strict=True)]
        if self.request.restore and self.rows is not None:
            out = (*out[:2], restored(out[2], self.rows), *out[3:])
        return out


def detach_shutdown(llm: Any) -> None:
    """No shutdown of vLLM's own when an engine in this process is collected.

    It destroys torch's process group, which is the trainer's as well, and vLLM's, which by then is that of the next
    engine: an earlier trainer that is collected late would take the engine away from the one at work.
    """
    if (finalizer := getattr(llm.llm_engine.engine_core, "_finalizer", None)) is not None:
        finalizer.detach()


def end_engine(generation: Any) -> None:
    """End a colocated engine, so that it and what trained beside it can be freed; servers are left alone.

    vLLM hides all objects from the garbage collector when an engine starts (gc.freeze), and the trainer is one of
    them.
    """
    llm = getattr(generation, "llm", None)
    if llm is None:
        return
    detach_shutdown(llm)
    llm.llm_engine.engine_core.engine_core.model_executor.shutdown()
    del generation.llm
    gc.unfreeze()


def _row(record: Any) -> SampledRow:
    return SampledRow(token_ids=record.token_ids, entropies=record.entropies, kept_mass=record.kept_mass)


def restored(logprobs: list[list[list[float]]], rows: Sequence[SampledRow]) -> list[list[list[float]]]:
    """log q + log G of each token: what the engine's whole distribution gives it."""
    return [
        [[lp + math.log(mass) for lp in entries] for entries, mass in zip(row, sampled.kept_mass, strict=True)]
        for row, sampled in zip(logprobs, rows, strict=True)
    ]


class _ServerFacts:
    """The one question TRL's constructor asks its client; the pool has checked the answer."""

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}


class ReplicaGeneration:
    """vLLM servers that hold the base model and are sent each policy as a LoRA adapter under a new name.

    Rank 0 talks to the servers; every rank takes part in gathering the adapter, and every rank raises what rank 0
    raised, so that a dead server stops a run instead of hanging it.
    """

    def __init__(self, *, args: Any, request: SamplerRequest, model: Any, accelerator: Any, **given: Any) -> None:
        if not is_peft_model(model):
            raise ValueError(
                "vllm_replicas are sent LoRA adapters, and this model has none; add a `lora:` group to the recipe (or "
                "peft_config=), or use vllm_mode: colocate, or TRL's own server mode for full weights"
            )
        self.args, self.request, self.model, self.accelerator = args, request, model, accelerator
        self.options = given
        self.vllm_client = _ServerFacts()
        self.mode = "server"
        self.version = 0
        self.rows: list[SampledRow] | None = None
        self.seconds_syncing = 0.0
        self.bytes_synced = 0
        self._told: dict[str, float] = {}
        self._run = secrets.token_hex(4)
        self.calls = 0
        self._folder = args.vllm_adapter_dir or os.path.join(args.output_dir, "adapters")
        config = model.peft_config[model.active_adapters[0]]
        self.pool: ReplicaPool | None = None
        check_servable(model)
        self._on_main(lambda: self._connect(config))

    def _connect(self, config: Any) -> None:
        self.pool = ReplicaPool(
            self.args.vllm_replicas,
            os.environ.get(self.args.vllm_api_key_env),
            base_model=self.model.get_base_model().name_or_path,
            lora_rank=adapter_rank(config),
            request_timeout=self.args.vllm_request_timeout,
            retries=self.args.vllm_retries,
            adapter_folder=self.args.vllm_adapter_dir,
            run_id=self._run,
        )
        for told in self.pool.check(wait=self.options["server_timeout"]):
            if self.request.asks and not told.get("recorder"):
                raise ValueError(
                    f"replica {told['url']} runs without entrl's sampler plugin, so it would neither record entropies "
                    "nor truncate by Top-H; start it with `entrl serve`, or set entropy_source: scoring and no top_h"
                )

    def _on_main(self, action: Any) -> Any:
        """On rank 0, which may wait long for servers; its result, or its error, is every rank's."""

        def asked() -> Any:
            try:
                return action()
            except (RolloutError, ValueError, OSError):
                raise
            except Exception as error:  # all ranks must end alike: by this kind, training is saved first
                if self.accelerator.num_processes == 1:
                    raise
                raise RolloutError(f"{type(error).__name__}: {error}") from error

        return alone_on_main(asked, "replicas")

    def sync_weights(self) -> None:
        """Publish the adapter as the next version on every replica."""
        started = time.perf_counter()
        version = self.version + 1
        saved: SavedAdapter | Exception
        try:
            saved = save_version(self.model, self.accelerator, self._folder, self._run, version)
        except Exception as error:  # a full disk is the first process's alone to meet
            if not self.accelerator.is_main_process:
                raise
            saved = error
        sent = self._on_main(lambda: self._publish(version, saved))
        self.version = version
        self.bytes_synced += sent
        self.seconds_syncing += time.perf_counter() - started

    def _publish(self, version: int, saved: SavedAdapter | Exception) -> int:
        if isinstance(saved, Exception):
            raise saved
        report = self._pool.publish(version, saved.folder)
        remove_versions(self._folder, self._run, below=version - 1)  # servers read lazily: one more is kept
        return report.bytes_sent

    @property
    def _pool(self) -> ReplicaPool:
        assert self.pool is not None
        return self.pool

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[list, list, list, list]:
        """As TRL's: (prompt_ids, completion_ids, logprobs, logprob_token_ids) of this rank's rows."""
        if images is not None and any(image is not None for image in images):
            raise ValueError("prompts with images cannot be generated by vllm_replicas; use vllm_mode: colocate")
        by_rank = gather_object([prompts])
        everybody = [prompt for mine in by_rank for prompt in mine]
        with profiler or contextlib.nullcontext():
            found = self._on_main(lambda: self._ask(everybody[::num_generations], num_generations, self.calls))
        self.calls += 1  # only now: a rollout that failed is asked for again with the same seeds
        flat: list[Completion] = [completion for group in found for completion in group]
        # With tools ranks ask for different numbers of rows.
        first = sum(len(theirs) for theirs in by_rank[: self.accelerator.process_index])
        mine = flat[first : first + len(prompts)]
        self.rows = self._sampled(mine) if self.request.record else None
        ids = [c.token_ids for c in mine]
        logprobs = [[[lp] for lp in c.logprobs] for c in mine]
        if self.request.restore and self.rows is not None:
            logprobs = restored(logprobs, self.rows)
        return prompts, ids, logprobs, [[[token] for token in row] for row in ids]

    def _ask(self, prompts: list[list[int]], n: int, call: int) -> list[list[Completion]]:
        options = self.options
        sampling = {
            "temperature": options["temperature"],
            "top_p": options["top_p"],
            "top_k": options["top_k"],
            "min_p": options["min_p"] or 0.0,
            "repetition_penalty": options["repetition_penalty"],
            "max_tokens": options["max_completion_length"],
            # One draw per rollout, the same when the run is resumed there; the pool derives each request's seed.
            "seed": self.args.seed * 1_000_003 + call,
            **(options.get("generation_kwargs") or {}),
        }
        if self.request.asks:
            sampling["entrl"] = self.request.options("")
        return self._pool.generate(prompts, n, sampling, self.version)

    @staticmethod
    def _sampled(completions: Sequence[Completion]) -> list[SampledRow]:
        rows = []
        for completion in completions:
            if completion.entropies is None or completion.kept_mass is None:
                raise RolloutError(
                    "a server answered without the sampler's entropies; start it with `entrl serve`, which adds the "
                    "plugin, or set entropy_source: scoring"
                )
            rows.append(
                SampledRow(
                    token_ids=completion.token_ids,
                    entropies=completion.entropies,
                    kept_mass=completion.kept_mass,
                    version=completion.version,
                )
            )
        return rows

    def metrics(self) -> dict[str, float]:
        """Since the last call: seconds and bytes of syncing, and what went wrong at the servers."""
        out = {"vllm/sync_seconds": self.seconds_syncing, "vllm/sync_bytes": float(self.bytes_synced)}
        self.seconds_syncing, self.bytes_synced = 0.0, 0
        if self.pool is not None:
            told = {name: float(getattr(self.pool.counters, name)) for name in ("failures", "repeated", "returns")}
            out |= {f"vllm/{name}": value - self._told.get(name, 0.0) for name, value in told.items()}
            self._told = told
        return out

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.version, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Versions and seeds go on counting. Names carry this process's run id, so none is published twice."""
        self.version, self.calls = state["version"], state["calls"]


def sampled_scores(rows: Sequence[Sampled], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(entropies, log kept mass), both (B, width) float32, 0 beyond a row's length."""
    entropies, log_mass = (torch.zeros(len(rows), width) for _ in range(2))
    for i, row in enumerate(rows):
        count = len(row.token_ids)
        entropies[i, :count] = torch.tensor(row.entropies)
        log_mass[i, :count] = torch.tensor(row.kept_mass).log()
    return entropies.to(device), log_mass.to(device)
