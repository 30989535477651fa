"""An asynchronous trainer without a server: a queue that is already full stands where TRL allows any rollout worker.

What comes out of the queue is what the real loop puts in, rows with their trails; the engine is met in
test_async_grpo_server.py.
"""

import queue
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tiny_model import saved_model
from transformers import AutoModelForCausalLM
from trl.experimental.async_grpo import AsyncGRPOTrainer
from trl.experimental.async_grpo.async_grpo_trainer import DataCollatorForRollout
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
from trl.experimental.async_grpo.packing import TreeRow

from entrl.controllers.kl_cov import KLCov
from entrl.engines.trails import ROWS_PER_GROUP, Trail, TrailedMetrics
from entrl.trainers.async_grpo.config import EntropyAsyncGRPOConfig
from entrl.trainers.async_grpo.rows import TrailCollator
from entrl.trainers.async_grpo.sample_report import SampleReport
from entrl.trainers.async_grpo.trainer import EntropyAsyncGRPOTrainer
from entrl_lab.nursery.tokenizer import character_tokenizer

GROUP = 4


class FilledQueue:
    """A rollout worker whose samples were all made before training began."""

    def __init__(self, samples: list[RolloutSample]) -> None:
        self.rollout_buffer: queue.Queue = queue.Queue()
        self.metrics_queue: queue.Queue = queue.Queue()
        for sample in samples:
            self.rollout_buffer.put(sample)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def update_model_version(self, model_version: int) -> None: ...

    def check_health(self, stale_after_s: float) -> None:
        raise RuntimeError("the queue is empty: the test asks for more samples than it made")


class NoTransfer:
    """Weights go nowhere; the version still counts."""

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Any) -> None:
        for _ in iterator:
            pass

    def resume(self) -> None: ...

    def destroy(self) -> None: ...


def scored(folder: str, rows: list[tuple[list[int], int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(log-probs, entropies) of each row's completion under the saved model, one plain forward per row."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = []
    for ids, prompt in rows:
        with torch.no_grad():
            log_pi = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1], -1)
        picked = log_pi[torch.arange(len(ids) - prompt), torch.tensor(ids[prompt:])]
        out.append((picked, -(log_pi.exp() * log_pi).sum(-1)))
    return out


def make_samples(
    folder: str,
    groups: int,
    *,
    seed: int = 0,
    noise: float = 0.0,
    versions: Any = lambda group, i: 1,
    trails: bool = True,
) -> list[RolloutSample]:
    """Random completions of random prompts, with the scores of the saved model.

    noise: standard deviation added to the sampler's log-probs, as a policy some steps older would have them.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, advantages = [], []
    for group in range(groups):
        prompt = torch.randint(5, 90, (3 + group % 3,), generator=generator).tolist()
        advantage_G = torch.randn(GROUP, generator=generator)
        for i in range(GROUP):
            length = 2 + int(torch.randint(0, 7, (1,), generator=generator))
            rows.append((prompt + torch.randint(5, 90, (length,), generator=generator).tolist(), len(prompt)))
            advantages.append(float(advantage_G[i]))
    samples = []
    for n, ((ids, context), (log_probs, entropies)) in enumerate(zip(rows, scored(folder, rows), strict=True)):
        group, i = divmod(n, GROUP)
        noisy = log_probs + noise * torch.randn(len(log_probs), generator=generator)
        metrics: dict = {"reward": advantages[n], "reward_std": 1.0}
        if trails:
            trail = Trail(
                versions=np.full(len(ids), versions(group, i), dtype=np.int64),
                entropies=_column(entropies, context),
                kept_mass=_column(torch.ones_like(entropies), context),
                row_id=group * ROWS_PER_GROUP + i,
                informative=True,
                prompt_tokens=context,
                index=i,
                truncated=True,
            )
            metrics = TrailedMetrics(metrics, trail)
        sample = RolloutSample(
            prompt=[{"role": "user", "content": "?"}],
            completion=[{"role": "assistant", "content": "!"}],
            input_ids=np.asarray(ids, dtype=np.int64),
            completion_mask=np.asarray([0] * context + [1] * (len(ids) - context), dtype=np.int64),
            old_log_probs=_column(noisy, context),
            advantage=advantages[n],
            model_version=versions(group, i),
            group_id=group,
            metrics=metrics,
        )
        samples.append(sample)
    return samples


def _column(x: torch.Tensor, context: int) -> np.ndarray:
    return np.concatenate([np.zeros(context, dtype=np.float32), x.numpy().astype(np.float32)])


def any_reward(completions: list, **_: object) -> list[float]:
    """Nobody calls it: the samples bring their advantages."""
    return [0.0] * len(completions)


def conversations(count: int = 64) -> Dataset:
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": f"{i}+{i}="}] for i in range(count)]})


def async_options(folder: Path, *, cls: Any = EntropyAsyncGRPOConfig, **kwargs: Any) -> Any:
    defaults = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": GROUP,
        "max_completion_length": 12,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "max_staleness": 4,
        "token_budget": 0,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return cls(**(defaults | kwargs))


def async_trainer(
    folder: Path, samples: list[RolloutSample], *, model: str, cls: Any = EntropyAsyncGRPOTrainer, **kwargs: Any
) -> Any:
    """A trainer of `cls` fed from a filled queue; keywords beside the named ones are options."""
    passed = {k: kwargs.pop(k) for k in ("controllers", "peft_config", "callbacks") if k in kwargs}
    options = kwargs.pop("options", None)
    stock = cls is AsyncGRPOTrainer
    return cls(
        model,
        any_reward,
        options or async_options(folder, **kwargs),
        train_dataset=conversations(),
        processing_class=character_tokenizer(),
        rollout_worker=FilledQueue(samples),
        weight_transfer=NoTransfer(),
        **({} if stock else passed),
    )


def packed(samples, *, rows=1):
    """A micro-batch as the collator hands it over, for `rows` ranks."""
    trees = [TreeRow() for _ in range(rows)]
    for i, s in enumerate(samples):
        keys = ("input_ids", "completion_mask", "old_log_probs", "advantage", "group_id", "metrics")
        trees[i * rows // len(samples)].add({k: getattr(s, k) for k in keys})
    seen = []
    collator = TrailCollator(DataCollatorForRollout(pad_token_id=1, num_processes=rows), seen.extend)
    return collator([trees]), seen


def large(**kwargs):
    return KLCov(fraction=0.1, penalty="k2", allow_large_fraction=True, **kwargs)


class Watched:
    """While this lasts, trainers keep a copy of every adapter they publish, and `samples` are those they trained."""

    def __init__(self, kept: Path) -> None:
        self.kept, self.samples = kept, []
        self._see, self._sync = SampleReport.see, EntropyAsyncGRPOTrainer._sync_weight

    def __enter__(self) -> "Watched":
        watched = self

        def see(report: SampleReport, samples: list[dict[str, Any]]) -> None:
            watched.samples += samples
            watched._see(report, samples)

        def sync(trainer: Any) -> None:
            watched._sync(trainer)
            name = f"{trainer._lora_name}-v{trainer.model_version}"
            shutil.copytree(Path(trainer._lora_dir) / name, watched.kept / name)

        SampleReport.see, EntropyAsyncGRPOTrainer._sync_weight = see, sync
        return self

    def __exit__(self, *_: object) -> None:
        SampleReport.see, EntropyAsyncGRPOTrainer._sync_weight = self._see, self._sync


__all__ = [
    "GROUP",
    "FilledQueue",
    "NoTransfer",
    "Watched",
    "async_options",
    "async_trainer",
    "large",
    "make_samples",
    "packed",
    "saved_model",
    "scored",
]
