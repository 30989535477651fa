"""How much the gradient of a prompt varies with branched and with plain rollouts, at equal generated tokens.

The tiny reasoner, fixed prompts of its sums, accuracy as reward, no training: each repetition draws one rollout and
takes the gradient of the whole network (sum over tokens, no scaling of rewards). `variance` is the trace of its
covariance over repetitions, `tokens` what was sampled per prompt (rejected windows included). Plain rollouts with the
mean of the others as baseline vary by a/n + b/(n(n-1)); a and b come from n = 4 and n = 8 of the same completions, and
`ratio` is the branched variance over the plain one at the same number of tokens, with a jackknife 95 % interval.
`agreement` is |difference of the mean gradients|^2 over what the two variances explain: about 1 if both estimate the
same gradient.

    python benchmarks/branching.py [--repetitions 40] [--prompts 8] [--out branching.json]

CPU, one thread. The threshold is set on rollouts of its own first, as training does on earlier ones.
"""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from entrl_rewards.accuracy import Accuracy
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.maths.branching import BranchOptions, tree_advantages
from entrl.maths.signals import entropy_from_logits
from entrl.models.shipped import model_path
from entrl.tasks import load_task
from entrl.trainers.grpo.branching import Branching
from entrl.trainers.grpo.continuations import Drawn

G = 8
LONGEST = 96  # tokens
TOGETHER = 8  # repetitions drawn in one rollout
ARMS = {
    "start, R = 4": {"roots": 4, "at": "window_start"},
    "end, R = 4": {"roots": 4, "at": "window_end"},
    "end, R = 4, q = 0.5": {"roots": 4, "at": "window_end", "quantile": 0.5},
    "end, R = 6": {"roots": 6, "at": "window_end"},
}


class Policy:
    """The model with what a rollout asks of it."""

    def __init__(self, path: str, terms: list[int], prompts: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path(path), dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_path(path), padding_side="left")
        rows = load_task({"task": "sums", "terms": terms}, size=prompts, seed=7)
        self.answers = [row["answer"] for row in rows]
        self.prompts = [self.tokenizer(row["prompt"])["input_ids"] for row in rows]
        self.end = self.tokenizer.eos_token_id
        self.reward = Accuracy(kind="exact")

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        return ids, mask

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], limit: int) -> Drawn:
        ids, mask = self.padded(prompts)
        options: Any = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": limit}
        out = self.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=self.end, **options)
        rows = out[:, ids.size(1) :].tolist()
        return Drawn([r[: r.index(self.end) + 1] if self.end in r else r for r in rows])

    def log_probs_and_entropies(self, prompts: list[list[int]], texts: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
        ids, mask = self.padded([p + t for p, t in zip(prompts, texts, strict=True)])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        out = []
        for row, text in zip(logits, texts, strict=True):
            mine = row[-len(text) - 1 : -1]
            chosen = mine.log_softmax(-1).gather(-1, torch.tensor(text)[:, None])[:, 0]
            out.append((chosen, entropy_from_logits(mine.detach())))
        return out

    @torch.no_grad()
    def entropies(self, prompts: list[list[int]], texts: list[list[int]]) -> list[Tensor]:
        return [h for _, h in self.log_probs_and_entropies(prompts, texts)]

    def rewards(self, texts: list[list[int]], size: int) -> Tensor:
        golds = [a for a in self.answers for _ in range(size)]
        found = self.reward.score(self.tokenizer.batch_decode(texts, skip_special_tokens=True), golds)
        return torch.tensor([float(x or 0.0) for x in found])

    def gradient(self, texts: list[list[int]], coefficients: Tensor) -> Tensor:
        """Of sum_i c_i ln pi(text_i), flat."""
        size = len(texts) // len(self.prompts)
        used = [i for i, c in enumerate(coefficients.tolist()) if c != 0]
        self.model.zero_grad()
        if used:
            prompts = [self.prompts[i // size] for i in used]
            scored = self.log_probs_and_entropies(prompts, [texts[i] for i in used])
            total = torch.stack([log_p.sum() for log_p, _ in scored]) @ coefficients[used]
            total.backward()
        return torch.cat(
            [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self.model.parameters()]
        )


class Spread(NamedTuple):
    mean: Tensor
    variance: float
    variances: Tensor  # leaving out one repetition each, for the jackknife
    tokens: float


def spread(gradients: list[Tensor], tokens: list[float]) -> Spread:
    stacked = torch.stack(gradients)
    count, total = len(gradients), stacked.sum(0)
    squares = stacked.square().sum(1).double()
    along = (stacked @ total).double()

    def variance(number: int, square: Tensor, norm: Tensor) -> Tensor:
        return (square - norm / number) / (number - 1)

    whole = variance(count, squares.sum(), total.double().square().sum())
    left = variance(count - 1, squares.sum() - squares, total.double().square().sum() - 2 * along + squares)
    return Spread(total / count, float(whole), left, sum(tokens) / len(tokens))


def plain(policy: Policy, repetitions: int) -> dict[int, Spread]:
    """Rollouts of 8 completions; those of 4 are the first half of each."""
    found: dict[int, list[Tensor]] = {4: [], 8: []}
    tokens, prompts = [], len(policy.prompts)
    each = [p for p in policy.prompts for _ in range(G)]
    for _ in range(repetitions // TOGETHER):
        drawn = [list(t) for t in policy.generate(each * TOGETHER, LONGEST).completion_ids]
        for first in range(0, len(drawn), len(each)):
            texts = drawn[first : first + len(each)]
            rewards = policy.rewards(texts, G)
            tokens.append(sum(map(len, texts)) / prompts)
            for size in found:
                groups = rewards.view(prompts, G)[:, :size]
                own = (groups - (groups.sum(1, keepdim=True) - groups) / (size - 1)) / size
                coefficients = torch.zeros(prompts, G)
                coefficients[:, :size] = own
                found[size].append(policy.gradient(texts, coefficients.flatten() / prompts))
    return {size: spread(g, [t * size / G for t in tokens]) for size, g in found.items()}


def branched(policy: Policy, repetitions: int, options: BranchOptions) -> tuple[Spread, dict[str, float]]:
    branching = Branching(options)
    gradients, tokens = [], []
    sums: dict[str, float] = {}
    prompts, rounds = len(policy.prompts), repetitions // TOGETHER
    rows = prompts * G
    for number in range(rounds + 1):  # the first only sets the threshold
        out = branching.rollout(
            [p for p in policy.prompts for _ in range(G)] * TOGETHER,
            G,
            generate=policy.generate,
            entropies=policy.entropies,
            max_new_tokens=LONGEST,
            end_ids=[policy.end],
        )
        if number == 0:
            continue
        groups = torch.arange(prompts).repeat_interleave(G)
        for first in range(0, rows * TOGETHER, rows):
            mine = slice(first, first + rows)
            texts = out.completion_ids[mine]
            roots, weights = out.columns["branch_root"][mine], out.columns["branch_weight"][mine]
            advantages = tree_advantages(policy.rewards(texts, G), groups, roots, weights, scale="none")
            gradients.append(policy.gradient(texts, advantages / G / prompts))
        tokens.append(out.generated_tokens / prompts / TOGETHER)
        for name, value in out.metrics.items():
            sums[name] = sums.get(name, 0.0) + value / rounds
    return spread(gradients, tokens), sums


def plain_at(number: float, four: float | Tensor, eight: float | Tensor) -> Any:
    """a/n + b/(n(n-1)) through n = 4 and n = 8."""
    b = (4 * four - 8 * eight) / (1 / 3 - 1 / 7)
    a = 8 * eight - b / 7
    return a / number + b / (number * (number - 1))


def compared(name: str, found: Spread, rival: dict[int, Spread], metrics: dict[str, float]) -> dict[str, Any]:
    number = found.tokens / (rival[8].tokens / 8)
    expected = plain_at(number, rival[4].variance, rival[8].variance)
    ratio = found.variance / expected
    mine = found.variances.log()
    theirs = plain_at(number, rival[4].variances, rival[8].variances).log()
    errors = [float((len(x) - 1) / len(x) * (x - x.mean()).square().sum()) for x in (mine, theirs)]
    wide = math.exp(1.96 * math.sqrt(sum(errors)))
    explained = found.variance / len(mine) + rival[8].variance / len(theirs)
    return {
        "arm": name,
        "tokens": found.tokens,
        "plain_completions_at_these_tokens": number,
        "variance": found.variance,
        "ratio": ratio,
        "interval": [ratio / wide, ratio * wide],
        "agreement": float((found.mean - rival[8].mean).square().sum()) / explained,
        **metrics,
    }


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Gradient variance of branched and plain rollouts at equal tokens.")
    parser.add_argument("--model", default="tiny-reasoner")
    parser.add_argument("--terms", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.repetitions < 2 * TOGETHER or args.repetitions % TOGETHER:
        parser.error(f"--repetitions must be a multiple of {TOGETHER}, at least twice, got {args.repetitions}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = Policy(args.model, args.terms, args.prompts)
    rival = plain(policy, args.repetitions)
    rows: list[dict[str, Any]] = [
        {"arm": f"plain, {n}", "tokens": s.tokens, "variance": s.variance} for n, s in rival.items()
    ]
    print(rows, flush=True)
    for name in args.arms:
        options: Any = ARMS[name]
        found, metrics = branched(policy, args.repetitions, BranchOptions(**options))
        rows.append(compared(name, found, rival, metrics))
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        if args.out:  # arm by arm: a stopped run loses only the last
            args.out.write_text(json.dumps(about(args) | {"rows": rows}, indent=1) + "\n")


def about(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "commit": git("rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU; one torch thread",
        "torch": torch.__version__,
        "settings": {k: str(v) for k, v in vars(args).items() if k != "out"},
    }


if __name__ == "__main__":
    main()
