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

import inspect
import os
import uuid
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer
from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

from entrl.controllers.hooks import ROW_TENSORS, Controller, Scope, Window
from entrl.controllers.monitor import Monitor
from entrl.engines import cpu_tree_attention
from entrl.engines.async_client import AsyncClient
from entrl.engines.async_loop import PER_COMPLETION, EntropyRolloutLoop, TrailedMetrics, extras_named
from entrl.engines.faults import ReplicaMismatch, RolloutError
from entrl.engines.fingerprint import model_fingerprint
from entrl.errors import UnsupportedTRL
from entrl.maths.phases import phase_labels
from entrl.trainers.async_grpo.rows import (
    FlatBatch,
    TrailCollator,
    padded_rows,
    staleness_metrics,
    staleness_sums,
)
from entrl.trainers.ranks import AccelerateRanks
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.refusals.surroundings import check_surroundings, refuse_dropout
from entrl.trainers.seam import TESTED_TRL
from entrl.trainers.shared.controls import Controls
from entrl.trainers.shared.counters import Counters
from entrl.trainers.shared.first_look import FirstLook, think_tags_of
from entrl.trainers.shared.loss import LossPass
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.options import complete, refuse
from entrl.trainers.shared.probe import Probe
from entrl.trainers.shared.resumption import KeptEach, Resumable
from entrl.trainers.shared.rewards import ANSWERS, SCORED_SIGNALS, guarded, needed_signals, reward_name
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
PREFETCHED = 1  # micro-batches that accelerate's dispatcher holds beyond the one in hand, so samples age unseen


@dataclass
class EntropyAsyncGRPOConfig(AsyncGRPOConfig):
    """`AsyncGRPOConfig` plus our options.

    sampler_entropies: ask the server for the entropies of every sampled token; needed by rewards that read them, and
        by the sampler's side of the staleness metrics. Takes a server started by `entrl serve`.
    pin_group_version: with LoRA, all completions of a group come from one adapter version.
    gap_alarm: warn once when, on tokens of the newest version, the mean |log-prob of the trainer - log-prob of the
        sampler| of a step exceeds this, in nats. The two are then two different policies, whatever the version says.
    api_key_env: the environment variable that holds the server's key; unset or empty = the server asks for none.
    think_open, think_close, expected_world_size, expected_backend, sample_completions, log_dynamics,
    allow_truncated_sampling: as in `EntropyGRPOConfig`.
    """

    sampler_entropies: bool = field(default=True, metadata={"help": "Ask the server for exact entropies."})
    pin_group_version: bool = field(default=True, metadata={"help": "One adapter version per group."})
    gap_alarm: float = field(default=0.05, metadata={"help": "Mean log-prob gap that raises the alarm, nats."})
    api_key_env: str = field(default="ENTRL_VLLM_API_KEY", metadata={"help": "Variable with the server's key."})
    think_open: str = field(default="<think>", metadata={"help": "Opening tag of the thinking phase."})
    think_close: str = field(default="</think>", metadata={"help": "Closing tag of the thinking phase."})
    expected_world_size: int | None = field(default=None, metadata={"help": "Refuse any other world size."})
    expected_backend: str | None = field(default=None, metadata={"help": "Refuse any other process-group backend."})
    sample_completions: int = field(default=8, metadata={"help": "Completions kept per logged step."})
    log_dynamics: bool = field(default=True, metadata={"help": "Log covariances and entropy by phase."})
    allow_truncated_sampling: bool = field(default=False, metadata={"help": "Accept top_p, top_k, min_p."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gap_alarm > 0:
            raise ValueError(f"gap_alarm must be > 0 nats, got {self.gap_alarm}")
        if self.sample_completions < 0:
            raise ValueError(f"sample_completions must be >= 0, got {self.sample_completions}")


def check_seam() -> None:
    """Raise UnsupportedTRL unless the installed asynchronous trainer has the methods overridden here, as in 1.16."""
    advice = f"entrl is tested with TRL {TESTED_TRL}.x: pip install 'trl>=1.16,<1.17'"
    for name, expected in SEAM.items():
        method = getattr(AsyncGRPOTrainer, name, None)
        found = None if method is None else tuple(inspect.signature(method).parameters)[: len(expected)]
        if found != expected:
            raise UnsupportedTRL(
                f"AsyncGRPOTrainer.{name} of TRL {version('trl')} takes {found}, not {expected}; {advice}"
            )


def in_grpo_words(args: Any) -> Any:
    """These options as the synchronous trainer's checks read them: what asynchronous training is in GRPO's words."""
    fixed = {
        "loss_type": "bnpo",
        "importance_sampling_level": "token",
        "scale_rewards": "group, by the population's deviation",  # no controller is defined for it
        "delta": None,
        "generation_kwargs": None,
        "num_generations_eval": None,
        # Rewards see one whole group at a time, in one process, and rows are stale from the first update on.
        "per_device_train_batch_size": args.num_generations,
        "steps_per_generation": 2 * args.gradient_accumulation_steps,
        "num_iterations": 1,
        "use_vllm": False,
        "sampler_ratio": True,
        "allow_truncated_sampling": getattr(args, "allow_truncated_sampling", False),
    }
    return SimpleNamespace(**{**vars(args), "min_p": args.min_p or None, **fixed})


def check_async(args: Any, controllers: Sequence[Controller], reward_funcs: Sequence[Any]) -> list[str]:
    """What would be wrong or idle under these options; empty = all right. `in_grpo_words` brings the common rules."""
    problems = check_schedule(in_grpo_words(args), controllers, reward_funcs, 1)
    for reward in reward_funcs:
        if "difficulty" in getattr(reward, "published_columns", ()):
            problems.append(
                f"reward {reward_name(reward)!r} moves its thresholds and targets by whole batches of prompts, and the "
                "asynchronous trainer scores one prompt's group at a time; use EntropyGRPOTrainer"
            )
    for controller in controllers:
        if controller.needs_reference or controller.needs_columns:
            problems.append(
                f"{controller.name} acts on the KL to a reference model or on what rewards publish of a row, and the "
                "asynchronous trainer has neither; use EntropyGRPOTrainer"
            )
        if controller.scope == "exact":
            problems.append(
                f"{controller.name}: scope 'exact' scores a whole step again before its first backward, which the "
                "asynchronous trainer does not do; take scope 'step' (the sampler's log-probs) or 'micro_batch'"
            )
    wanted = {signal for reward in reward_funcs for signal in needed_signals(reward)}
    if "token_entropies" in wanted and not getattr(args, "sampler_entropies", True):
        names = [reward_name(r) for r in reward_funcs if "token_entropies" in needed_signals(r)]
        problems.append(
            f"reward {names[0]!r} reads token_entropies, which only the sampler knows here; set sampler_entropies=True"
        )
    return problems


class LateAdvantages:
    """Advantages as `compute_loss` asks for them, `inputs["advantages"][kept]`; what it got can still be weighted."""

    def __init__(self, advantages: Tensor) -> None:
        self.padded = advantages
        self.flat_M: Tensor | None = None

    def __getitem__(self, kept: Tensor) -> Tensor:
        self.flat_M = self.padded[kept]  # a boolean index copies, so the rows themselves stay as they are
        return self.flat_M


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
        check_seam()
        self.controllers = list(controllers or [])
        rewards = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        if args is not None:
            complete(args, EntropyAsyncGRPOConfig)
            refuse(check_async(args, self.controllers, rewards))
        if not torch.cuda.is_available():
            cpu_tree_attention.install()
        self._sampled_at = -1
        self._ages: list[Tensor] = []
        self._synced_at = 0
        self._latest_version = 0
        super().__init__(model, reward_funcs, args, *trl_args, **trl_kwargs)
        if args is None:
            complete(self.args, EntropyAsyncGRPOConfig)
            refuse(check_async(self.args, self.controllers, rewards))
        _check_prompts(self.train_dataset)
        check_surroundings(self.args, self.accelerator)
        self._ranks = AccelerateRanks(self.accelerator)
        self._controls = Controls(self.controllers)
        self._log = TrainingLog(self._metrics["train"], speaks=True)
        self._wanted: frozenset[str] = frozenset().union(*(needed_signals(r) for r in rewards))
        if self._controls.on_loss or self._wanted & set(SCORED_SIGNALS):
            refuse_dropout(self.model)
        self._controls.set_clip_range(self)
        needed, warn = "think_tags" in self._wanted, self._log.warn_once
        self.think_tags = think_tags_of(self.processing_class, self.args, needed=needed, warn=warn)
        self._first_look = FirstLook(self.think_tags, think_close=self.args.think_close)
        if self.accelerator.is_main_process:
            self._outfit_worker(rewards)
        self._start_observing()

    # Start-up

    def _outfit_worker(self, rewards: list[Any]) -> None:
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
            "signals": (self._wanted & set(PER_COMPLETION)).union(ANSWERS, *(extras_named(r) for r in rewards)),
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

    def _start_observing(self) -> None:
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.counters = Counters(rows)
        self.completion_samples: deque[dict[str, Any]] = deque(maxlen=1024)
        self.checkpoint_files = []
        self._rewards_kept = RewardsOfTheWorker(self.rollout_worker)
        self.kept = {
            "counters": self.counters,
            "controllers": KeptEach(self.controllers),
            "rewards": self._rewards_kept,
        }
        self._observation = Observation(
            controls=self._controls,
            log=self._log,
            counters=self.counters,
            ranks=self._ranks,
            score=_no_scoring,
            monitor=Monitor(device=self.accelerator.device) if self.args.log_dynamics else None,
            probe=Probe(every=0, rows=1),
            diversity=False,
        )

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
        inner.collate_fn = TrailCollator(inner.collate_fn, self._see, self.think_tags)
        return loader

    def _see(self, samples: list[dict[str, Any]]) -> None:
        """Main process, as micro-batches are put together: samples for the report, the rewards' latest state."""
        self.counters.start()
        trails = [m.trail if isinstance(m := s["metrics"], TrailedMetrics) else None for s in samples]
        for trail in trails:
            if trail is not None and trail.reward_state is not None:
                self._rewards_kept.latest = trail.reward_state
        self._look_at([(s, t) for s, t in zip(samples, trails, strict=True) if t is not None])
        step = self.state.global_step
        due = step % max(int(self.args.logging_steps), 1) == 0 and self._sampled_at != step
        count, self._sampled_at = (self.args.sample_completions if due else 0), step
        for sample, trail in list(zip(samples, trails, strict=True))[:count]:
            if trail is not None:
                self.completion_samples.append(self._as_read(sample, trail))
        self.counters.completion_tokens += sum(float(s["completion_mask"].sum()) for s in samples)

    def _look_at(self, rows: list[tuple[dict[str, Any], Any]]) -> None:
        rows = [] if self._first_look.done else rows
        every = [(s["input_ids"].tolist(), t.prompt_tokens) for s, t in rows]
        for text in self._first_look.see(
            [ids[:start] for ids, start in every],
            [ids[start:] for ids, start in every],
            rewards=[s["metrics"].get("reward", 0.0) for s, _ in rows],
            truncated=[t.truncated for _, t in rows],
        ):
            self._log.warn_once(text)

    def _as_read(self, sample: dict[str, Any], trail: Any) -> dict[str, Any]:
        """One training row as the report shows it; what came after the prompt, a tool's tokens included."""
        every = sample["input_ids"].tolist()
        prompt, ids = every[: trail.prompt_tokens], every[trail.prompt_tokens :]
        own = torch.tensor(sample["completion_mask"][trail.prompt_tokens :]).bool()
        metrics, tags = sample["metrics"], self.think_tags
        entropies = None if trail.entropies is None else trail.entropies[trail.prompt_tokens :]
        return {
            "step": self.state.global_step,
            "prompt": self.processing_class.decode(prompt),
            "tokens": [self.processing_class.decode([t]) for t in ids],
            "entropies": None if entropies is None else [round(float(h), 5) for h in entropies],
            "phases": phase_labels(ids, tags, own, prompt_ids=prompt) if tags is not None else ["answer"] * len(ids),
            "rewards": {k.removeprefix("rewards/"): v for k, v in metrics.items() if k.startswith("rewards/")},
            "reward": metrics.get("reward"),
            "advantage": sample["advantage"],
            "group": sample["group_id"],
            "truncated": trail.truncated,
        }

    # Optimiser step: selection, loss, metrics

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self._controls.on_loss:
            windows: dict[Scope, Window] = {"step": self._window_of(batches)} if self._controls.selecting else {}
            self._observation.window_metrics |= self._controls.select(windows)
        return batches, items

    def _window_of(self, batches: list[dict[str, Any]]) -> Window:
        """Every row this rank trains in the step, in one shape on all ranks; the scores are the sampler's."""
        parts = [FlatBatch.of(b) for b in batches]
        columns = self._ranks.max(max(p.layout.columns for p in parts))
        rows_of_all = self._ranks.max(sum(p.layout.rows for p in parts))
        recorded = not any(bool(p.entropies_M.isnan().any()) for p in parts)
        wide = []
        for p in parts:
            others = {"old": p.layout.spread(p.old_log_probs_M), "entropies": p.layout.spread(p.entropies_M)}
            wide.append(padded_rows(p.rows, others, shape=(p.layout.rows, columns)))
        joined = {name: torch.cat([o[name] for _, o in wide]) for name in ("old", "entropies")}
        rows = wide[0][0]
        rows = type(rows)(**{name: torch.cat([getattr(r, name) for r, _ in wide]) for name in ROW_TENSORS})
        rows, joined = padded_rows(rows, joined, shape=(rows_of_all, columns))
        return Window(
            rows=rows,
            log_probs_BT=joined["old"],
            old_log_probs_BT=joined["old"],
            entropies_BT=joined["entropies"] if self._ranks.max(int(not recorded)) == 0 else None,
            step=self.state.global_step,
            ranks=self._ranks,
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        batch = FlatBatch.of(inputs)
        inputs["advantages"] = late = LateAdvantages(inputs["advantages"])
        held: list[Tensor | None] = []

        def forward(**kwargs: Any) -> Any:
            outputs = model(**kwargs)
            held.append(self._meet_controllers(batch, outputs, late))
            return outputs

        loss = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)  # pyright: ignore[reportArgumentType]
        (penalty_M,) = held
        if penalty_M is not None:
            tokens_per_rank = (inputs["global_n_tokens"][0] / self.accelerator.num_processes).clamp(min=1.0)
            loss = loss + penalty_M.sum() / tokens_per_rank / self.current_gradient_accumulation_steps
        self.counters.rows["loss"] += batch.layout.rows
        if self.accelerator.sync_gradients:
            self._finish_step()
        return loss

    def _meet_controllers(self, batch: FlatBatch, outputs: Any, late: LateAdvantages) -> Tensor | None:
        """Between TRL's forward pass and its loss: weights go into the advantages; returns the (M,) penalty or None."""
        log_probs_M = outputs.log_probs.flatten()[batch.index_M]
        entropies_M = outputs.entropy.flatten()[batch.index_M].detach()
        layout, detached_M = batch.layout, log_probs_M.detach()
        # The newest version, and no step since it was sent: the policy is the one that sampled, and a ratio other
        # than 1 is the two engines' disagreement. Controllers are told 1.
        moved = self.state.global_step != self._synced_at
        fresh_M = (batch.versions_M == self._latest_version) & (not moved)
        old_M = torch.where(fresh_M, detached_M.float(), batch.old_log_probs_M)
        current = LossPass(
            rows=batch.rows,
            old_log_probs_BT=layout.spread(old_M),
            ref_log_probs_BT=None,
            controllers=self._controls.on_loss,
            selections=self._controls.selections,
            eps_low=self.epsilon_low,
            eps_high=self.epsilon_high,
            fresh=bool(fresh_M.all()),
        )
        log_probs_BT, entropies_BT = layout.spread(log_probs_M), layout.spread(entropies_M)
        weight_BT = current.run(log_probs_BT, entropies_BT)
        if weight_BT is not None:
            assert late.flat_M is not None  # TRL reads the advantages before it runs the model
            late.flat_M.mul_(layout.flat(weight_BT))
        if self._observation.monitor is not None:
            self._observation.monitor.observe(batch.rows, log_probs_BT.detach(), entropies_BT, batch.phase_BT)
        self._observation.tally.add(current.sums)
        self._ages.append(
            staleness_sums(
                batch,
                detached_M,
                entropies_M,
                version=self._latest_version,
                classes=self.args.max_staleness + PREFETCHED + 2,  # ages 0 .. max_staleness + 1, and one for the rest
            )
        )
        return None if current.penalty_BT is None else layout.flat(current.penalty_BT)

    def _finish_step(self) -> None:
        self._observation.finish_step(self.state.global_step)
        ages = self._ranks.sum(torch.stack(self._ages).sum(0)).tolist()
        self._ages = []
        found = staleness_metrics(ages)
        self._log.add({**found, "policy_version": float(self._latest_version)})
        self._alarm(found)

    def _alarm(self, found: dict[str, Any]) -> None:
        gap = found.get("staleness/0/abs_log_ratio")
        moved = self.state.global_step != self._synced_at
        if gap is None or moved or gap[0] / gap[1] <= self.args.gap_alarm:
            return
        self._log.warn_once(
            f"trainer and server disagree by {gap[0] / gap[1]:.3f} nats a token (mean, newest version, step "
            f"{self.state.global_step}; the alarm is at {self.args.gap_alarm}): serve in the trainer's dtype, "
            "and check that the server's base model is the trainer's"
        )

    def _sync_weight(self) -> None:
        super()._sync_weight()
        # TRL counts versions on the main process only.
        self._latest_version = broadcast_object_list([self.model_version], from_process=0)[0]
        self._synced_at = self.state.global_step

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


class RewardsOfTheWorker:
    """The state of rewards that run in the rollout process; it comes with the samples and goes out with the worker."""

    def __init__(self, worker: Any) -> None:
        self.worker, self.latest = worker, None

    def state_dict(self) -> Any:
        return self.latest

    def load_state_dict(self, state: Any) -> None:
        self.latest = state
        if isinstance(self.worker, AsyncRolloutWorker):  # it starts later, on train begin
            self.worker._loop_kwargs["reward_state"] = state


def _no_scoring(_: Any) -> Tensor:
    raise AssertionError("the asynchronous trainer has no scoring pass")


def _check_prompts(dataset: Any) -> None:
    if isinstance(dataset, Dataset) and "prompt" in dataset.column_names and isinstance(dataset[0]["prompt"], str):
        raise ValueError(
            "prompts are plain strings, and TRL's asynchronous loop reads conversations; map them to "
            '[{"role": "user", "content": prompt}]'
        )
