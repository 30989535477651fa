"""Entropies and log-probs of the sampler against the trainer's, token by token, on the engine's own completions.

    python benchmarks/sampler_gap.py --model FOLDER --task reasoning_gym:chain_sum [--out result.json]

The engine draws at temperature 1; the trainer's side is TRL's scoring: one forward of the same weights, in float32 or
under bf16 autocast (what `bf16: true` does with float32 weights). For each pair of precisions, over all tokens of all
completions, in nats: |difference| of log-probs and of entropies (mean, median, 99th percentile, maximum) and the mean
signed difference (sampler less trainer).
"""

import argparse
import contextlib
import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrl.evaluation.engine import open_engine
from entrl.evaluation.writing import Answered, Asked, Sampling, encode
from entrl.maths.signals import entropy_from_logits
from entrl.models.load import load_policy
from entrl.settings.provenance import entrl_commit
from entrl.tasks import load_task

PAIRS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"))  # engine, trainer


@torch.no_grad()
def scored(model: Any, prompt: list[int], completion: list[int], dtype: str) -> tuple[Tensor, Tensor]:
    """(T,) log-probs and entropies of a completion, in nats."""
    cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    with cast:
        logits_TV = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    logp_T = logits_TV.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
    return logp_T, entropy_from_logits(logits_TV)


def told(difference_N: Tensor) -> dict[str, float]:
    size_N = difference_N.abs().double()
    return {
        "mean": size_N.mean().item(),
        "median": size_N.median().item(),
        "p99": size_N.quantile(0.99).item(),
        "max": size_N.max().item(),
        "signed_mean": difference_N.double().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-reasoner", help="a model or an adapter")
    parser.add_argument("--name", help="of the model in the result (default: --model)")
    parser.add_argument("--task", default="sums")
    parser.add_argument("--task-args", default="{}", help="JSON")
    parser.add_argument("--size", type=int, default=16, help="problems")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sampling = Sampling(
        samples=options.samples,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=options.max_new_tokens,
        seed=0,
        greedy=False,
    )
    model, tokenizer = load_policy(options.model, dtype="float32")
    model.eval()
    task: dict[str, Any] = {"task": options.task, **json.loads(options.task_args)}
    dataset = load_task(task, split="test", size=options.size, seed=0)  # type: ignore[arg-type]
    asked = [Asked(index=i, prompt_ids=encode(tokenizer, p, {})) for i, p in enumerate(dataset["prompt"])]
    prompts = {a.index: a.prompt_ids for a in asked}
    drawn: dict[str, list[Answered]] = {}
    seconds = {}
    for dtype in sorted({engine for engine, _ in PAIRS}):
        with open_engine(options.model, sampling=sampling, tokenizer=tokenizer, dtype=dtype) as writer:
            started = time.monotonic()
            drawn[dtype] = list(writer.write(asked))
            seconds[dtype] = time.monotonic() - started
    pairs = []
    for engine, trainer in PAIRS:
        gaps: list[Tensor] = []
        entropy_gaps: list[Tensor] = []
        entropies: list[Tensor] = []
        for answered in drawn[engine]:
            for c in answered.drawn:
                assert c.logprobs is not None
                assert c.entropies is not None
                logp_T, entropy_T = scored(model, prompts[answered.index], c.ids, trainer)
                gaps.append(c.logprobs - logp_T)
                entropy_gaps.append(c.entropies - entropy_T)
                entropies.append(entropy_T)
        pairs.append(
            {
                "engine": engine,
                "trainer": trainer,
                "tokens": sum(map(len, gaps)),
                "log_prob_gap": told(torch.cat(gaps)),
                "entropy_gap": told(torch.cat(entropy_gaps)),
                "mean_entropy_trainer": torch.cat(entropies).double().mean().item(),
            }
        )
        print(json.dumps(pairs[-1]), flush=True)
    result = {
        "what": "sampler against trainer, nats per token, completions drawn by the engine at temperature 1",
        "commit": entrl_commit(),
        "date": datetime.date.today().isoformat(),
        "model": options.name or options.model,
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "model", "name")},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "seconds_generating_with_start": seconds,
        "pairs": pairs,
    }
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
