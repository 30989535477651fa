"""`EntropyAsyncGRPOTrainer`: TRL's experimental asynchronous GRPO with token signals and entropy controllers.

Generation runs beside training, against a vLLM server, so no scoring pass exists whose entropies could ride along. The
sampler itself records them (`entrl.engines.sampler`), and the rollout loop brings them here
(`entrl.engines.async_loop`). No method body of TRL's is copied; what is met in it:

    the worker         `_loop_cls` and `_loop_kwargs` of the default worker: our loop in the child process
    the collator       wrapped, so that every trained token brings its sampler's entropy, its version and its row
    get_batch_samples  transformers collects the micro-batches of a step before the first backward: here the step's
                       window exists as a whole, so controllers select over it as in the synchronous trainer
    compute_loss       called with a forward function that shows controllers the log-probs, and with advantages that
                       can still be weighted after that forward; the penalty is added under TRL's own normaliser
    _sync_weight       every rank learns which version is out

The loss is -min(r A, clip(r) A) with r = exp(log pi - log pi_sampler), summed over the tokens of a micro-batch on all
ranks and divided by their number: GRPOConfig would call it `bnpo`. There is no importance-sampling weight beside r.

Source:  trl/experimental/async_grpo, TRL 1.16; what its present state leaves unsound is in docs/async.md
"""

import os
import uuid
import warnings
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import httpx
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from trl.experimental.async_grpo import AsyncGRPOTrainer
from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

from entrl.controllers.hooks import Controller
from entrl.controllers.monitor import Monitor
from entrl.engines import cpu_tree_attention
from entrl.engines.async_client import AsyncClient
from entrl.engines.async_loop import PER_COMPLETION, EntropyRolloutLoop, extras_named
from entrl.engines.faults import ReplicaMismatch, RolloutError
from entrl.engines.fingerprint import model_fingerprint
from entrl.trainers.async_grpo.checks import check_async, check_prompts
from entrl.trainers.async_grpo.config import EntropyAsyncGRPOConfig
from entrl.trainers.async_grpo.controlled_loss import ControlledLoss
from entrl.trainers.async_grpo.rows import TrailCollator
from entrl.trainers.async_grpo.sample_report import RewardsOfTheWorker, SampleReport
from entrl.trainers.async_grpo.staleness import Staleness
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.surroundings import check_surroundings, refuse_dropout
from entrl.trainers.seam import check_trl
from entrl.trainers.shared.controls import Controls
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.first_look import think_tags_of
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.options import complete, refuse
from entrl.trainers.shared.probe import Probe
from entrl.trainers.shared.resumption import KeptEach, Resumable
from entrl.trainers.shared.rewards import ANSWERS, SCORED_SIGNALS, guarded, needed_signals
from entrl.trainers.shared.training_log import TrainingLog

SEAM = {
    "get_train_dataloader": ("self",),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "_sync_weight": ("self",),
    "_inner_training_loop": ("self",),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_run_epoch": ("self", "model", "epoch"),
    "log": ("self", "logs", "start_time"),
}
check_trl(version("trl"), AsyncGRPOTrainer, SEAM)


class EntropyAsyncGRPOTrainer(Resumable, AsyncGRPOTrainer):
    """`AsyncGRPOTrainer` whose rewards may read the sampler's entropies and whose loss takes entropy controllers.

    Arguments are TRL's, plus
        controllers: `entrl.controllers.hooks.Controller` objects; scopes `step` and `micro_batch`

    A reward gets what it names, as in `EntropyGRPOTrainer`: `token_entropies` (nats, full vocabulary, at the sampling
    temperature, recorded by the engine as it drew each token), `token_logprobs` (of the sampler), `token_mask`,
    `group_index`, `truncated`, `prompt_ids`, `think_tags`, `training`, and `gather`, which is the group's own list:
    groups are scored one at a time, in one process, so there are no other rows to gather from. Rewards run in the
    rollout process and must pickle; their state is saved with checkpoints and comes back in a resumed run.

    Prompts are conversations (lists of messages), as TRL's loop needs them.
    """

    args: Any
    model: Any
    processing_class: Any

    def __init__(
        self,
        model: str,
        reward_funcs: Any = None,
        args: Any = None,
        *trl_args: Any,
        controllers: Sequence[Controller] | None = None,
        **trl_kwargs: Any,
    ) -> None:
        self.controllers = list(controllers or [])
        rewards = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        if args is None:
            args = EntropyAsyncGRPOConfig(f"{model.split('/')[-1]}-AsyncGRPO")  # the folder TRL would take
        complete(args, EntropyAsyncGRPOConfig)
        refuse(check_async(args, self.controllers, rewards))
        if not torch.cuda.is_available():
            cpu_tree_attention.install()
        super().__init__(model, reward_funcs, args, *trl_args, **trl_kwargs)
        check_prompts(self.train_dataset)
        check_surroundings(self.args, self.accelerator)
        wanted = frozenset[str]().union(*(needed_signals(r) for r in rewards))
        controls, ranks = Controls(self.controllers), AccelerateRanks(self.accelerator)
        if controls.on_loss or wanted & set(SCORED_SIGNALS):
            refuse_dropout(self.model)
        controls.set_clip_range(self)
        log = TrainingLog(self._metrics["train"], speaks=True)
        self.think_tags = think_tags_of(
            self.processing_class, self.args, needed="think_tags" in wanted, warn=log.warn_once
        )
        if self.accelerator.is_main_process:
            self._set_up_worker(rewards, wanted)
        self.counters = Counters(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)
        self.completion_samples: deque[dict[str, Any]] = deque(maxlen=1024)
        self.checkpoint_files = []
        kept_rewards = RewardsOfTheWorker(self.rollout_worker)
        self.kept = {"counters": self.counters, "controllers": KeptEach(self.controllers), "rewards": kept_rewards}
        observation = self._observation = Observation(
            controls=controls,
            log=log,
            counters=self.counters,
            ranks=ranks,
            score=_no_scoring,
            monitor=Monitor(device=self.accelerator.device) if self.args.log_dynamics else None,
            probe=Probe(every=0, rows=1),
            diversity=False,
        )
        self._staleness = Staleness(self, log=log, ranks=ranks, gap_alarm=self.args.gap_alarm)
        self._loss = ControlledLoss(
            self, controls=controls, observation=observation, staleness=self._staleness, ranks=ranks
        )
        self._report = SampleReport(
            self,
            log=log,
            counters=self.counters,
            rewards=kept_rewards,
            tags=self.think_tags,
            kept=self.completion_samples,
        )

    # Start-up

    def _set_up_worker(self, rewards: list[Any], wanted: frozenset[str]) -> None:
        """Our loop, our rewards and the key, in the worker TRL built; one that was handed in is left alone."""
        self.vllm_client.adapters_only = self._lora_sync
        if self._lora_sync:
            # TRL calls every run's adapters alike, and a server that outlives a run keeps prefix-cache blocks by name.
            self._lora_name = f"entrl-{uuid.uuid4().hex[:12]}"
        worker = self.rollout_worker
        if not isinstance(worker, AsyncRolloutWorker):
            return
        worker._loop_cls = EntropyRolloutLoop
        worker._loop_kwargs |= {
            "lora_name": self._lora_name if self._lora_sync else None,
            "reward_funcs": guarded(rewards, think_tags=self.think_tags, gather=list, training=True),
            "signals": (wanted & set(PER_COMPLETION)).union(ANSWERS, *(extras_named(r) for r in rewards)),
            "think_tags": self.think_tags,
            "record": self.args.sampler_entropies,
            "pin_versions": self.args.pin_group_version,
            "sync_steps": self.args.weight_sync_steps,
            "advantage_hooks": [c for c in self.controllers if type(c).on_rollout is not Controller.on_rollout],
            "api_key": self._api_key,
        }

    @property
    def _api_key(self) -> str | None:
        return os.environ.get(self.args.api_key_env) or None

    @property
    def vllm_client(self) -> Any:
        return self._client

    @vllm_client.setter
    def vllm_client(self, client: Any) -> None:
        """TRL builds its client and asks it about adapters before `__init__` is over; ours is there from the start."""
        self._client = client and AsyncClient(client.server_url, client.server_timeout, api_key=self._api_key)

    def _check_server(self) -> None:
        """Refuse a server whose completions must not be trained on. Main process, with TRL's own worker."""
        if not self.accelerator.is_main_process or not isinstance(self.rollout_worker, AsyncRolloutWorker):
            return
        self.vllm_client.wait_for_server_ready()
        problems = self.vllm_client.problems(
            temperature=self.args.temperature,
            fingerprint=model_fingerprint(self.rollout_worker._loop_kwargs["model_name"]) or None,
            record=self.args.sampler_entropies,
        )
        if problems:
            raise ReplicaMismatch("; and ".join(problems))

    # Rows on their way to the loss

    def get_train_dataloader(self) -> Any:
        self._check_server()
        loader: Any = super().get_train_dataloader()
        # Accelerate iterates an inner loader and dispatches; the collator is the inner one's.
        inner = getattr(loader, "base_dataloader", loader)
        inner.collate_fn = TrailCollator(inner.collate_fn, self._report.see, self.think_tags)
        return loader

    # Optimiser step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._loss.prepare(batches)
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        plain = super().compute_loss
        return self._loss.of(model, inputs, lambda run, rows: plain(run, rows, return_outputs, num_items_in_batch))

    def _sync_weight(self) -> None:
        super()._sync_weight()
        # TRL counts versions on the main process only.
        self._staleness.published(broadcast_object_list([self.model_version], from_process=0)[0])

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            if self._lora_sync and self.accelerator.is_main_process:
                self._unload_adapters()

    def _unload_adapters(self) -> None:
        """Leave the server as it was found; TRL leaves the last versions there, in slots the next run counts on."""
        newest = self.model_version
        for number in range(max(1, newest - self.args.max_staleness - 1), newest + 1):
            try:
                self.vllm_client.unload_lora_adapter(f"{self._lora_name}-v{number}", timeout=10)
            except (httpx.HTTPError, RolloutError) as error:  # a server that is gone holds no adapters
                warnings.warn(f"adapters were left on {self.args.vllm_server_base_url}: {error}", stacklevel=2)
                return


def _no_scoring(_: Any) -> Tensor:
    raise AssertionError("the asynchronous trainer has no scoring pass")
