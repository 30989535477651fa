"""The same rollouts from the same server, trained on by one process or two.

As a script: `[accelerate launch ...] tests/replica_runs.py OUT WORLD URL MODEL`, with the server's key in
ENTRL_VLLM_API_KEY. Every rank writes what its rows of the first rollout were and what became of them. A request's seed
follows from the run's seed and the prompt's place among all ranks' prompts, so both worlds get the same completions.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tiny_model import prompts
from transformers import AutoModelForCausalLM, AutoTokenizer
from window_runs import watched

from entrl.controllers.kl_cov import KLCov
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

ROWS = 32  # a rollout's, over all ranks


class Certain:
    """Pays for certainty, by the entropies the servers' sampler recorded."""

    __name__ = "certain"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __call__(self, completion_ids, prompt_ids, token_entropies, group_index, **_):
        rewards = [-float(h.mean()) - 0.01 * len(h) for h in token_entropies]
        self.rows += [
            {"prompt": p, "ids": i, "entropies": h.tolist(), "group": g, "reward": r}
            for p, i, h, g, r in zip(prompt_ids, completion_ids, token_entropies, group_index, rewards, strict=True)
        ]
        return rewards


class Watched(EntropyGRPOTrainer):
    """Keeps the advantages of the first rollout, before TRL shuffles its rows."""

    first: Any = None

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        if self.first is None:
            self.first = {k: out[k].clone() for k in ("advantages", "entrl_row_id", "importance_sampling_ratio")}
        return out


def run(out: Path, world: int, url: str, model: str) -> dict[str, Any]:
    reward, controller = Certain(), watched(KLCov)(fraction=0.05)
    args = EntropyGRPOConfig(
        output_dir=str(out / f"world{world}"),
        per_device_train_batch_size=ROWS // world,  # one window holds the rollout: TRL shuffles rows within a rank
        num_iterations=2,
        num_generations=8,
        max_steps=2,
        max_completion_length=24,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_vllm=True,
        vllm_mode="server",
        vllm_replicas=[url],
        vllm_importance_sampling_mode="token_truncate",
        entropy_source="sampler",
        expected_world_size=world,
        expected_backend="gloo" if world > 1 else None,
        ddp_find_unused_parameters=False,
    )
    trainer = Watched(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward,
        args,
        train_dataset=prompts(),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        controllers=[controller],
    )
    trainer.train()
    return {
        "rows": reward.rows[: ROWS // world],
        "acted": controller.acted,
        "passes": dict(trainer.counters.rows),
        "version": trainer.vllm_generation.version,
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
        "world": trainer.accelerator.num_processes,
        **trainer.first,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    found = run(folder, size, sys.argv[3], sys.argv[4])
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(found, folder / f"world{size}-rank{rank}.pt")
