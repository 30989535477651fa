"""Forward passes per optimiser step, counted: who generates x where entropies come from x how a controller selects.

    python benchmarks/forward_passes.py [--url http://127.0.0.1:18301] [--out benchmarks/forward_passes.json]

Rows that go through the model (by a hook on it, and by the trainer's own counter, which must agree) over the rows of an
optimiser step; generation is not counted. The vLLM rows need a server that `entrl serve
recipes/tiny-reasoner/lora-replicas.yaml` started, with its key in ENTRL_VLLM_API_KEY; without --url they are left out.
A cell is "-" where the combination is refused, with the first words of the refusal in the JSON.
"""

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.controllers.clip_cov import ClipCov
from entrl.models.shipped import model_path
from entrl.tasks import load_task
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

STEPS, ROWS = 4, 16
SCHEDULES = {"1 update per rollout": 1, "2 updates per rollout": 2}
SOURCES = ("none", "scoring", "sampler")
SCOPES = ("none", "micro_batch", "step", "exact")


def engines(url: str | None) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {"transformers": {}}
    if url is not None:
        replicas = {"use_vllm": True, "vllm_mode": "server", "vllm_replicas": [url]}
        token = {"vllm_importance_sampling_mode": "token_truncate"}
        out["vLLM, corrected"] = replicas | token
        out["vLLM, uncorrected"] = replicas | {"vllm_importance_sampling_correction": False}
    return out


def calm(token_entropies: list, **_: Any) -> list[float]:
    return [-float(h.mean()) for h in token_entropies]


def short(completion_ids: list, **_: Any) -> list[float]:
    return [-float(len(ids)) for ids in completion_ids]


def count(folder: str, engine: dict[str, Any], updates: int, source: str, scope: str) -> float:
    """Passes per step; ValueError where the trainer refuses."""
    base = model_path("tiny-reasoner")
    args = EntropyGRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=ROWS,
        steps_per_generation=updates,
        num_generations=8,
        max_steps=STEPS,
        max_completion_length=16,
        learning_rate=1e-4,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        gradient_checkpointing=False,
        entropy_source="sampler" if source == "sampler" else "scoring",
        **engine,
    )
    trainer = EntropyGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        short if source == "none" else calm,
        args,
        train_dataset=load_task("sums", size=64, seed=0),
        processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        controllers=[] if scope == "none" else [ClipCov(scope=scope, fraction=0.05)],
    )
    rows, generating = 0, False

    def seen(module: Any, given: Any, named: dict[str, Any]) -> None:
        nonlocal rows
        if not generating:
            rows += (given[0] if given else named["input_ids"]).size(0)

    plain = trainer._generate

    def generate(prompts: list) -> Any:
        nonlocal generating
        generating = True
        try:
            return plain(prompts)
        finally:
            generating = False

    trainer._generate = generate  # pyright: ignore[reportAttributeAccessIssue]
    trainer.model.register_forward_pre_hook(seen, with_kwargs=True)
    trainer.train()
    counted = trainer.counters.forward_passes / STEPS
    if abs(counted - rows / ROWS / STEPS) > 1e-9:
        raise AssertionError(f"the trainer counted {counted} passes a step, the hook {rows / ROWS / STEPS}")
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server of lora-replicas.yaml")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    here = Path(__file__).parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    commit = asked.stdout.strip()
    cells = []
    for (engine, given), (schedule, updates), source, scope in itertools.product(
        engines(options.url).items(), SCHEDULES.items(), SOURCES, SCOPES
    ):
        cell: dict[str, Any] = {"engine": engine, "schedule": schedule, "source": source, "scope": scope}
        with tempfile.TemporaryDirectory() as folder:
            try:
                cell["passes"] = count(folder, given, updates, source, scope)
            except ValueError as error:
                cell |= {"passes": None, "refused": str(error)[:120]}
        cells.append(cell)
    options.out.write_text(
        json.dumps(
            {"date": date.today().isoformat(), "commit": commit, "rows": ROWS, "steps": STEPS, "cells": cells}, indent=1
        )
        + "\n"
    )
    print("| who generates | schedule | entropies for rewards |", " | ".join(f"scope {s}" for s in SCOPES), "|")
    print("|---|---|---|" + "---|" * len(SCOPES))
    for key, group in itertools.groupby(cells, key=lambda c: (c["engine"], c["schedule"], c["source"])):
        values = ["-" if c["passes"] is None else f"{c['passes']:g}" for c in group]
        print("|", " | ".join([*key, *values]), "|")


if __name__ == "__main__":
    main()
