"""One optimiser window cut in different ways: the same sixteen completions, any micro-batch size, one or two ranks.

As a script (`accelerate launch ... tests/window_runs.py OUT WORLD`) it runs every cut for its world size and writes
what each rank saw to OUT. The completions come from a rollout function keyed by the prompt, so no cut can change
them; `num_iterations=2` gives two optimiser steps over the same window, the second with a ratio other than 1.
"""

import hashlib
import sys
from collections import Counter
from pathlib import Path

import torch
from tiny_model import digits, tiny_model, trainer
from transformers import TrainerCallback

from entrl.controllers.ce_gppo import CEGPPO
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.steer import Steer
from entrl_lab.nursery.tokenizer import character_tokenizer

LOSSES = ("grpo", "dr_grpo", "dapo")
ROWS = 16
CUTS = {1: ((16, 1), (8, 2), (4, 4), (2, 8)), 2: ((8, 1), (4, 2), (2, 4))}  # rows a micro-batch, micro-batches


def completion(prompt: str, k: int) -> list[int]:
    """The k-th completion of a prompt: some random characters, fixed for good."""
    tokenizer = character_tokenizer()
    seed = int.from_bytes(hashlib.sha256(f"{prompt}|{k}".encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(3, 20, (1,), generator=generator))
    ids = torch.randint(5, len(tokenizer), (length,), generator=generator).tolist()
    return [*ids, tokenizer.eos_token_id]


def fixed_rollout(prompts: list, _run) -> dict:
    seen: Counter[str] = Counter()
    ids = []
    for prompt in prompts:
        ids.append(completion(prompt, seen[prompt]))
        seen[prompt] += 1
    tokenizer = character_tokenizer()
    return {"prompt_ids": [tokenizer.encode(p) for p in prompts], "completion_ids": ids, "logprobs": None}


class Gradients(TrainerCallback):
    """Keeps each optimiser step's gradient as one vector, then gives the optimiser another, the same in every cut.

    Otherwise the second step would compare two policies that already differ by round-off.
    """

    def __init__(self):
        self.vectors = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parts = [p.grad.flatten().double() for _, p in sorted(model.named_parameters()) if p.grad is not None]
        self.vectors.append(torch.cat(parts))
        generator = torch.Generator().manual_seed(len(self.vectors))
        for _, p in sorted(model.named_parameters()):
            if p.grad is not None:
                p.grad.copy_(torch.randn(p.shape, generator=generator))


def watched(base: type) -> type:
    """The controller, noting which tokens (row of the rollout, column) it acted on in each micro-batch."""

    class Watched(base):
        def on_loss(self, rows, selection, view):
            terms = super().on_loss(rows, selection, view)
            # smooth weights touch every token; those damped by more than a tenth are noted
            acted = terms.weight_BT < 0.9 if terms.weight_BT is not None else terms.penalty_BT.detach() != 0
            self.acted = getattr(self, "acted", []) + [
                (int(rows.row_id_B[b]), t) for b, t in (acted & rows.mask_BT).nonzero().tolist()
            ]
            return terms

    Watched.name = base.name
    return Watched


def controllers() -> dict[str, object]:
    return {
        "kl_cov": watched(KLCov)(fraction=0.05),
        "clip_cov": watched(ClipCov)(fraction=0.05, lower=0.05, upper=50.0, seed=3),
        "kl_cov_exact": watched(KLCov)(fraction=0.05, scope="exact"),
        "clip_cov_exact": watched(ClipCov)(fraction=0.05, lower=0.05, upper=50.0, seed=3, scope="exact"),
        "cw_grpo": watched(CWGRPO)(),
        "cw_grpo_exact": watched(CWGRPO)(scope="exact"),
        "steer": watched(Steer)(w_min=0.5),
        "steer_exact": watched(Steer)(w_min=0.5, scope="exact"),
        "ce_gppo": watched(CEGPPO)(),
        "kl_cov_micro_batch": watched(KLCov)(fraction=0.05, scope="micro_batch"),
    }


def pairs() -> list[tuple[str, str]]:
    """(loss, controller): every loss where tokens are selected, one where a loss changes nothing about the weights."""
    return [(loss, c) for c in controllers() for loss in LOSSES if loss == "dapo" or c in ("kl_cov", "clip_cov")]


def one_window(*, rows: int, slices: int, steps: int, world: int) -> dict:
    """Trainer options: `steps` optimiser steps of plain SGD, unclipped, all over one window of fixed completions."""
    return {
        "rollout_func": fixed_rollout,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": slices,
        "steps_per_generation": slices,
        "num_iterations": steps,
        "max_steps": steps,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "expected_world_size": world,
        "expected_backend": "gloo" if world > 1 else None,
        "ddp_find_unused_parameters": False,
    }


def window_run(folder: Path, *, rows: int, slices: int, loss_type: str, controller: str, world: int = 1) -> dict:
    """Two optimiser steps over one window; gradients of both, tokens acted on, the reported metrics."""
    gradients, acting = Gradients(), controllers()[controller]
    run = trainer(
        folder,
        digits,
        controllers=[acting],
        model=tiny_model(),
        loss_type=loss_type,
        **one_window(rows=rows, slices=slices, steps=2, world=world),
    )
    run.add_callback(gradients)
    run.train()
    kept = ("reward", "policy_entropy/token_mean", "policy_entropy/response_mean")
    metrics = [
        {k: v for k, v in e.items() if k in kept or k.startswith((acting.name, "dynamics/", "diversity/"))}
        for e in run.state.log_history
        if "loss" in e
    ]
    return {"gradients": gradients.vectors, "acted": acting.acted, "metrics": metrics}


if __name__ == "__main__":
    out, world = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    results = {}
    for cut_rows, cut_slices in CUTS[world]:
        for loss, kind in pairs():
            results[cut_rows, cut_slices, loss, kind] = window_run(
                out, rows=cut_rows, slices=cut_slices, loss_type=loss, controller=kind, world=world
            )
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(results, out / f"rank{rank}.pt")
