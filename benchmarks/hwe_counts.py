"""Counting high-entropy windows: tokens per second, ours over whole batches against a Python loop over dictionaries.

    loop        per token: the entropy of its listed log-probs with the tail as one outcome, the same without the tail,
                the most likely token as a word, the mean of the following window; per completion: the 95th percentile
                of its window means, counts and soft cost. Positions are as vLLM hands them over: a dictionary from
                token id to an object with `logprob` and `decoded_token`.
    loop, given entropies    the same without the entropies
    exact       ours from (B, T) float32 entropies and token ids: trigger mask, threshold statistic, counts
    count       ours, counts alone, given entropies, triggers and threshold
    top-k       ours from (B, T, K) float32 log-probs and ids of the K most likely tokens: entropies, and `exact`

The loop is written here from a description of the ARES authors' program, leaner than it (one pass with `math.exp`, no
tensors), and runs on a slice, whose counts, thresholds and soft costs must be those of `top-k`. Included on both sides:
everything from the tokens' numbers to counts and statistic. Not included: getting those numbers (a forward pass, or a
server's answer), the mapping of words to ids (once per run for us), filling the dictionaries or padding the tensors.

    python benchmarks/hwe_counts.py [--rows 4096] [--tokens 4096] [--threads 1 2] [--rounds 5] [--out result.json]

Arms alternate in one process; speed-up = exp(mean log(ours / loop)) over rounds, Student's t interval. Clock time and
processor time of all threads are both kept: on a shared machine only the second means much, and for several threads it
understates us. CPU only; log-probs are synthetic, every completion has its full length.
"""

import argparse
import datetime
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from entrl_rewards.triggers import normalise_token
from torch import Tensor

from entrl.maths import signals, windows
from entrl.maths.signals import TopKEntropy, entropy_from_topk
from entrl.maths.windows import high_entropy_windows, row_quantiles, running_tail_means, trigger_mask
from entrl.stats.pairing import seed_ratio

VOCABULARY = 151_936
K, WINDOW, PERCENTILE = 10, 4, 0.95
THRESHOLD = 1.6  # nats; about one window in twenty of these synthetic tokens
WORDS = frozenset(f"word{i}" for i in range(20))
WORD_IDS = range(0, VOCABULARY, VOCABULARY // 400)  # their spellings
TRIGGER_SHARE = 0.05  # of positions whose most likely token is a trigger word
BLOCK = 16  # rows whose log-probs are taken at once: 64 thousand tokens


@dataclass
class Logprob:
    """What a serving engine hands over for one listed token."""

    logprob: float
    decoded_token: str


def text_of(token: int) -> str:
    return f" Word{token % 20}" if token in WORD_IDS else f" x{token % 977}"


class Batch(NamedTuple):
    log_p_BTK: Tensor  # float32, most likely first
    ids_BT: Tensor  # the most likely token
    entropy_BT: Tensor  # float32, of the listed tokens and the tail as one outcome
    mask_BT: Tensor


def batch_of(rows: int, tokens: int, *, seed: int = 0) -> Batch:
    """Peaked and flat positions mixed: the deviation of a position's logits is uniform between 1 and 9."""
    g = torch.Generator().manual_seed(seed)
    log_p_BTK = torch.empty(rows, tokens, K)
    for part_bTK in log_p_BTK.split(BLOCK):
        spread = 1 + 8 * torch.rand(len(part_bTK), tokens, 1, generator=g)
        logits = spread * torch.randn(len(part_bTK), tokens, 2 * K, generator=g)
        part_bTK.copy_(torch.log_softmax(logits, -1).topk(K, -1).values)
    ids_BT = torch.randint(0, VOCABULARY, (rows, tokens), generator=g)
    words = torch.tensor(WORD_IDS)
    is_word = torch.rand(rows, tokens, generator=g) < TRIGGER_SHARE
    ids_BT = torch.where(is_word, words[ids_BT % len(words)], ids_BT)
    entropy_BT = torch.cat([estimate(p).bucket for p in log_p_BTK.split(BLOCK)])
    return Batch(log_p_BTK, ids_BT, entropy_BT, torch.ones(rows, tokens, dtype=torch.bool))


def estimate(log_p_BTK: Tensor) -> TopKEntropy:
    return entropy_from_topk(log_p_BTK, vocab_size=VOCABULARY, k=K)


# The loop


def dictionaries(batch: Batch) -> list[list[dict[int, Logprob]]]:
    """Ids behind the most likely one are of no effect, so they are counted on from it."""
    return [
        [
            {(i + k) % VOCABULARY: Logprob(p, text_of(i + k)) for k, p in enumerate(log_ps)}
            for i, log_ps in zip(ids, row_log_ps, strict=True)
        ]
        for ids, row_log_ps in zip(batch.ids_BT.tolist(), batch.log_p_BTK.tolist(), strict=True)
    ]


def entropy_of(position: dict[int, Logprob], *, tail: bool) -> float:
    total, mass = 0.0, 0.0
    for entry in position.values():
        p = math.exp(entry.logprob)
        total -= p * entry.logprob
        mass += p
    rest = max(0.0, 1.0 - mass)
    return total - rest * math.log(max(rest, 1e-12)) if tail and rest > 0 else total


class Counted(NamedTuple):
    count: list[int]
    low: list[int]
    soft_cost: list[float]
    percentile: list[float]


def loop(sequences: list[list[dict[int, Logprob]]], given: list[list[float]] | None = None) -> Counted:
    """given: entropies that need not be computed, used for both the statistic and the counts."""
    out = Counted([], [], [], [])
    for b, sequence in enumerate(sequences):
        entropies = [entropy_of(p, tail=True) for p in sequence] if given is None else given[b]
        plain = [entropy_of(p, tail=False) for p in sequence] if given is None else given[b]
        means: list[float] = []
        for i in range(len(sequence)):
            following = plain[i + 1 : i + 1 + WINDOW]
            if len(following) == WINDOW:
                means.append(sum(following) / WINDOW)
            else:
                means.append(sum(means) / len(means) if means else plain[i])
        count, low, soft_cost = 0, 0, 0.0
        for i, position in enumerate(sequence):
            best = max(position.values(), key=lambda entry: entry.logprob)
            if normalise_token(best.decoded_token) in WORDS and i + WINDOW < len(sequence):
                mean = sum(entropies[i + 1 : i + 1 + WINDOW]) / WINDOW
                count, low = count + (mean >= THRESHOLD), low + (mean < THRESHOLD)
                soft_cost += max(0.0, mean - THRESHOLD)
        out.count.append(count)
        out.low.append(low)
        out.soft_cost.append(soft_cost)
        out.percentile.append(float(numpy.percentile(means, 100 * PERCENTILE)))
    return out


# Ours


def counted(entropy_BT: Tensor, mask_BT: Tensor, trigger_BT: Tensor, statistic_BT: Tensor) -> Counted:
    quantile_B = row_quantiles(running_tail_means(statistic_BT, mask_BT, WINDOW), mask_BT, PERCENTILE)
    got = high_entropy_windows(entropy_BT, mask_BT, threshold=THRESHOLD, window=WINDOW, trigger_BT=trigger_BT)
    return Counted(got.count_B.tolist(), got.low_B.tolist(), got.soft_cost_B.tolist(), quantile_B.tolist())


def from_entropies(batch: Batch, words: frozenset[int] | None) -> Counted:
    """words None: every window is counted."""
    trigger_BT = trigger_mask(batch.ids_BT, words)
    return counted(batch.entropy_BT, batch.mask_BT, trigger_BT, batch.entropy_BT)


def from_topk(batch: Batch, words: frozenset[int]) -> Counted:
    parts = [estimate(log_p_bTK) for log_p_bTK in batch.log_p_BTK.split(BLOCK)]
    bucket_BT, dropped_BT = torch.cat([p.bucket for p in parts]), torch.cat([p.dropped for p in parts])
    return counted(bucket_BT, batch.mask_BT, trigger_mask(batch.ids_BT, words), dropped_BT)


# Measuring


class Rate(NamedTuple):
    wall: float  # tokens per second
    cpu: float  # tokens per second of processor time, all threads


def rate(job: Callable[[], Any], tokens: int) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return Rate(tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu))


def speed_up(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    ratio, *ci = seed_ratio(theirs, ours) if len(ours) > 1 else (ours[0] / theirs[0], math.nan, math.nan)
    return {"ratio": ratio, "ci": ci}


def agree(ours: Counted, theirs: Counted) -> None:
    if ours.count != theirs.count or ours.low != theirs.low:
        raise AssertionError(f"counts differ: {ours.count} and {theirs.count}, {ours.low} and {theirs.low}")
    for name in ("soft_cost", "percentile"):
        if not numpy.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5):
            raise AssertionError(f"{name} differs: {getattr(ours, name)} and {getattr(theirs, name)}")


def measure(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    batch = batch_of(args.rows, args.tokens)
    few = Batch(*(part[: args.slice] for part in batch))
    sequences, given = dictionaries(few), few.entropy_BT.double().tolist()
    words = frozenset(WORD_IDS)
    agree(from_topk(few, words), loop(sequences))
    agree(from_entropies(few, words), loop(sequences, given))
    trigger_BT = trigger_mask(batch.ids_BT, words)
    gc.collect()
    gc.freeze()  # or the collector walks the dictionaries in the loop's time
    arms: dict[str, tuple[Callable[[], Any], int]] = {
        "loop": (lambda: loop(sequences), few.mask_BT.numel()),
        "loop, given entropies": (lambda: loop(sequences, given), few.mask_BT.numel()),
        "exact": (lambda: from_entropies(batch, words), batch.mask_BT.numel()),
        "exact, every window": (lambda: from_entropies(batch, None), batch.mask_BT.numel()),
        "count": (
            lambda: high_entropy_windows(
                batch.entropy_BT, batch.mask_BT, threshold=THRESHOLD, window=WINDOW, trigger_BT=trigger_BT
            ),
            batch.mask_BT.numel(),
        ),
        "top-k": (lambda: from_topk(batch, words), batch.mask_BT.numel()),
    }
    for threads in args.threads:
        yield str(threads), _compare(arms, threads, args.rounds)


def _compare(arms: dict[str, tuple[Callable[[], Any], int]], threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    found: dict[str, list[Rate]] = {name: [] for name in arms}
    for done in range(rounds + 1):
        for name, (job, tokens) in arms.items():
            one = rate(job, tokens)
            if done:  # the first round warms caches up
                found[name].append(one)
    out: dict[str, Any] = {}
    for name, rates in found.items():
        out[name] = {clock: statistics.median(getattr(r, clock) for r in rates) for clock in Rate._fields}
        out[name]["rounds"] = [r._asdict() for r in rates]
        for base in ("loop", "loop, given entropies"):
            if name not in ("loop", "loop, given entropies"):
                out[name][f"times {base}"] = {
                    clock: speed_up([getattr(r, clock) for r in rates], [getattr(r, clock) for r in found[base]])
                    for clock in Rate._fields
                }
        print(f"{threads} threads  {name}: {_told(out[name])}", flush=True)
    return out


def _told(row: dict[str, Any]) -> str:
    text = f"{row['wall'] / 1e6:.3g} million tokens/s, {row['cpu'] / 1e6:.3g} per processor second"
    for base in ("loop", "loop, given entropies"):
        if f"times {base}" in row:
            found = row[f"times {base}"]["cpu"]
            text += f"; {found['ratio']:.0f} [{found['ci'][0]:.0f}, {found['ci'][1]:.0f}] times {base}"
    return text


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second of counting high-entropy windows.")
    parser.add_argument("--rows", type=int, default=4096, help="completions of ours")
    parser.add_argument("--tokens", type=int, default=4096, help="of each completion")
    parser.add_argument("--slice", type=int, default=16, help="completions of the loop")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds must be >= 2 for an interval, got {args.rounds}")
    if not 1 <= args.slice <= args.rows:
        parser.error(f"--slice must lie in [1, --rows], got {args.slice}")
    result = {
        "commit": git("rev-parse", "HEAD"),
        "sha256": {
            f"src/entrl/{Path(str(module.__file__)).name}": sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
            for module in (signals, windows)
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "load_average_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "settings": {"rows": args.rows, "tokens": args.tokens, "slice": args.slice, "rounds": args.rounds},
        "threads": {},
    }
    for threads, found in measure(args):
        result["threads"][threads] = found
        if args.out:  # each as it is done, so that a stopped run keeps what it has
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
