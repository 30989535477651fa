"""What choosing tokens costs: by size, over gloo processes, against the published way, and `step` against `exact`.

    cost        one optimiser step of Clip-Cov and KL-Cov at 1e4 to 1e7 tokens: `select`, then `on_loss` of every
                micro-batch of 8 rows
    ranks       `select` of 64 x 4096 tokens in all, over 1, 2, 4 and 8 real gloo processes; collectives and bytes
    published   ours against the published way at 64 x 4096 and 64 x 8192 tokens, micro-batches of 1, 4 and 8 rows,
                alternating in one process; speed-up = exp(mean log(theirs / ours)), Student's t interval over rounds
    before      `cost` beside the same controllers as they stood at the commit of --before, in turn in one process
    overlap     the tiny reasoner trained with 4 updates per rollout: Jaccard index of the tokens that `step` and
                `exact` take in the same window, by update within the rollout

The published way is written here from its description: per micro-batch, valid tokens gathered by a boolean mask,
log-probs and advantages moved to the CPU, top-k (KL-Cov) or nonzero + random permutation + reading a number (Clip-Cov),
then written back by row and column. Both sides select and apply: a penalty for KL-Cov, a weight for Clip-Cov.

    python benchmarks/selection_cost.py [--parts cost ranks published overlap] [--rounds 21] [--out result.json]
    python benchmarks/selection_cost.py --parts before --before COMMIT [--rounds 21] [--out result.json]

Log-probs are -exp(z), z normal around -3 with deviation 2, advantages normal per row, lengths uniform from a quarter
of the width to all of it. Clock time and processor time are both kept: on a shared machine only the second means much.
No weights are needed but the shipped tiny reasoner's. CPU only.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from scipy.stats import binom
from torch import Tensor, distributed, multiprocessing

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.hooks import LossView, OneRank, Ranks, Rows, Window
from entrl.controllers.kl_cov import KLCov, log_ratio_penalty
from entrl.stats.pairing import seed_ratio

Job = Callable[[], Any]
SIZES = {10_000: (16, 625), 100_000: (64, 1563), 1_000_000: (256, 3907), 10_000_000: (2560, 3907)}
SHAPES = ((64, 4096), (64, 8192))
MICRO_BATCHES = (1, 4, 8)
UPDATES = 4  # per rollout, in the overlap part


def window_of(rows: int, columns: int, *, ranks: Ranks | None = None, seed: int = 0) -> Window:
    g = torch.Generator().manual_seed(seed)
    old = -torch.exp(2 * torch.randn(rows, columns, generator=g) - 3)
    current = old + 0.02 * torch.randn(rows, columns, generator=g)
    length = torch.randint(columns // 4, columns + 1, (rows,), generator=g)
    held = Rows(
        advantages_BT=torch.randn(rows, generator=g)[:, None].expand(rows, columns),
        mask_BT=torch.arange(columns) < length[:, None],
        row_id_B=torch.arange(rows),
        informative_B=torch.ones(rows, dtype=torch.bool),
    )
    return Window(rows=held, log_probs_BT=current, old_log_probs_BT=old, step=0, ranks=ranks or OneRank())


def part(window: Window, start: int, stop: int) -> Window:
    r = window.rows
    rows = Rows(
        advantages_BT=r.advantages_BT[start:stop],
        mask_BT=r.mask_BT[start:stop],
        row_id_B=r.row_id_B[start:stop],
        informative_B=r.informative_B[start:stop],
    )
    return Window(
        rows=rows,
        log_probs_BT=window.log_probs_BT[start:stop],
        old_log_probs_BT=window.old_log_probs_BT[start:stop],
        step=window.step,
        ranks=window.ranks,
    )


def micro_batches(window: Window, size: int) -> list[Window]:
    return [part(window, i, i + size) for i in range(0, len(window.log_probs_BT), size)]


# Ours


def view_of(controller: Any, s: Window) -> LossView:
    low, high = controller.clip_range
    return LossView(
        log_probs_BT=s.log_probs_BT,
        old_log_probs_BT=s.old_log_probs_BT,
        entropies_BT=s.log_probs_BT,
        eps_low=low,
        eps_high=high,
    )


def hooks(controller: Any, window: Window, slices: list[Window]) -> Job:
    """`select` and every `on_loss`, with the metrics both collect."""

    def job() -> None:
        selection = controller.select(window)
        for s in slices:
            controller.on_loss(s.rows, selection, view_of(controller, s))

    return job


def selection_alone(controller: KLCov | ClipCov, window: Window, slices: list[Window]) -> Job:
    """Selecting and applying as the hooks do, without the sums that `on_loss` reports."""

    def job() -> None:
        selection: Any = controller.select(window)
        for s in slices:
            if isinstance(controller, KLCov):
                chosen = controller.members(s.rows, selection, log_probs_BT=s.log_probs_BT)
                log_ratio_penalty(s.log_probs_BT, s.old_log_probs_BT, chosen, coef=controller.coef)
            else:
                chosen, _ = controller.members(s.rows, selection, view_of(controller, s))
                _ = 1 - chosen.to(torch.float32)

    return job


# The published way


def published_kl_cov(s: Window, *, fraction: float, coef: float) -> Tensor:
    """(B, T) penalty: coef |log ratio| at the k largest covariances of this micro-batch."""
    rows, columns = s.rows, s.log_probs_BT.shape[1]
    held = coef * (s.log_probs_BT - s.old_log_probs_BT).abs()
    place_N = rows.mask_BT.flatten().nonzero().squeeze(1)
    advantage_N = rows.advantages_BT[rows.mask_BT].cpu()
    log_prob_N = s.log_probs_BT[rows.mask_BT].cpu()
    cov_N = (advantage_N - advantage_N.mean()) * (log_prob_N - log_prob_N.mean())
    top = cov_N.topk(max(1, int(len(cov_N) * fraction))).indices
    chosen = place_N[top.to(place_N.device)]
    penalty = torch.zeros_like(held)
    penalty[chosen // columns, chosen % columns] = held[chosen // columns, chosen % columns]
    return penalty


def published_clip_cov(s: Window, *, fraction: float, low: float, high: float, eps: float) -> Tensor:
    """(B, T) weight: 0 at a random few of this micro-batch's tokens inside the band."""
    rows, mask = s.rows, s.rows.mask_BT
    n = mask.sum()
    ratio = torch.exp(s.log_probs_BT - s.old_log_probs_BT)
    plain, clipped = -rows.advantages_BT * ratio, -rows.advantages_BT * ratio.clamp(1 - eps, 1 + eps)
    advantage = torch.where(mask, rows.advantages_BT, 0.0).sum() / n
    log_prob = torch.where(mask, s.log_probs_BT, 0.0).sum() / n
    cov = (rows.advantages_BT - advantage) * (s.log_probs_BT - log_prob)
    cov[~mask] = -torch.inf
    cov[(clipped > plain) & mask] = -torch.inf
    m = max(int(fraction * n.item()), 1)
    candidates = ((cov > low) & (cov < high)).nonzero()
    weight = torch.ones_like(cov)
    if len(candidates):
        taken = candidates[torch.randperm(len(candidates))[: min(m, len(candidates))]]
        weight[taken[:, 0], taken[:, 1]] = 0.0
    return weight


def published(controller: KLCov | ClipCov, slices: list[Window]) -> Job:
    def job() -> None:
        for s in slices:
            if isinstance(controller, KLCov):
                published_kl_cov(s, fraction=controller.fraction, coef=controller.coef)
            else:
                published_clip_cov(
                    s,
                    fraction=controller.fraction,
                    low=controller.lower,
                    high=controller.upper,
                    eps=controller.clip_high,
                )

    return job


# Measuring


class Timed(NamedTuple):
    """Seconds of every round: on the clock, and of processor time over all threads of this process."""

    wall: list[float]
    cpu: list[float]


def median_ci(values: list[float]) -> dict[str, Any]:
    """Median with the order statistics that enclose it at 95 % or a little more, in milliseconds."""
    ordered, n = sorted(values), len(values)
    k = max(int(binom.ppf(0.025, n, 0.5)) - 1, 0)  # the largest with 2 P(Binomial(n, 1/2) <= k) <= 0.05
    return {"median_ms": 1e3 * statistics.median(ordered), "ci_ms": [1e3 * ordered[k], 1e3 * ordered[n - 1 - k]]}


def summary(timed: Timed) -> dict[str, Any]:
    return {"rounds": len(timed.wall), "wall": median_ci(timed.wall), "cpu": median_ci(timed.cpu)}


def alternate(jobs: dict[str, Job], rounds: int) -> dict[str, Timed]:
    """Times each job once a round; the order turns from round to round, so a drift of the machine hits all alike."""
    timed = {name: Timed([], []) for name in jobs}
    for job in jobs.values():
        job()
    names = list(jobs)
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = time.perf_counter(), time.process_time()
            jobs[name]()
            timed[name].cpu.append(time.process_time() - cpu)
            timed[name].wall.append(time.perf_counter() - wall)
    return timed


def speedup(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    found = seed_ratio(ours, theirs)
    return {"speedup": found.mean, "speedup_ci": [found.lo, found.hi]}


def measure_cost(args: argparse.Namespace) -> list[dict[str, Any]]:
    return cost_rows(args.rounds, {"": (KLCov, ClipCov)})


def measure_before(args: argparse.Namespace) -> list[dict[str, Any]]:
    return cost_rows(args.rounds, {"before: ": controllers_at(args.before), "now: ": (KLCov, ClipCov)})


def cost_rows(rounds: int, versions: dict[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
    table = []
    for tokens, shape in SIZES.items():
        window = window_of(*shape)
        slices = micro_batches(window, 8)
        jobs: dict[str, Job] = {}
        for version, kinds in versions.items():
            for kind in kinds:
                name, plain, shares = version + kind.name, kind(log_shares=False), kind()
                jobs[f"{name} select"] = partial(plain.select, window)
                jobs[f"{name} select, with top shares"] = partial(shares.select, window)
                jobs[f"{name} select and every on_loss"] = hooks(plain, window, slices)
        for name, timed in alternate(jobs, rounds if tokens <= 1_000_000 else max(rounds // 3, 5)).items():
            table.append({"tokens": shape[0] * shape[1], "shape": shape, "what": name} | summary(timed))
            print_row(table[-1])
    return table


def controllers_at(commit: str) -> tuple[Any, Any]:
    """KLCov and ClipCov as they stood at a commit, on today's hooks so that both versions take the same windows."""
    package = f"controllers_{commit[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / package).mkdir()
        names = git("ls-tree", "--full-tree", "--name-only", f"{commit}:src/entrl/controllers").split()
        for name in names:
            text = git("show", f"{commit}:src/entrl/controllers/{name}")
            (Path(folder) / package / name).write_text(
                re.sub(r"entrl\.controllers\.(?!hooks\b)", f"{package}.", text) + "\n"
            )
        sys.path.insert(0, folder)
        try:
            kinds = (importlib.import_module(f"{package}.{name}").controller for name in ("kl_cov", "clip_cov"))
            return next(kinds), next(kinds)
        finally:
            sys.path.remove(folder)


def measure_published(args: argparse.Namespace) -> list[dict[str, Any]]:
    table = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            window = window_of(*shape)
            for size in MICRO_BATCHES:
                slices = micro_batches(window, size)
                for kind in (KLCov, ClipCov):
                    controller = kind(log_shares=False)
                    jobs = {
                        "published": published(controller, slices),
                        "ours": selection_alone(controller, window, slices),
                        "ours, with its sums": hooks(controller, window, slices),
                    }
                    timed = alternate(jobs, args.rounds)
                    row: dict[str, Any] = {
                        "threads": threads,
                        "shape": shape,
                        "rows_per_micro_batch": size,
                        "controller": kind.name,
                    }
                    for name, ours in timed.items():
                        row[name] = summary(ours)
                        if name != "published":
                            row[name]["wall"] |= speedup(timed["published"].wall, ours.wall)
                            row[name]["cpu"] |= speedup(timed["published"].cpu, ours.cpu)
                    table.append(row)
                    print_row(row)
    torch.set_num_threads(1)
    return table


# Processes


class GlooRanks:
    """`Ranks` over the default process group; notes every collective and the bytes this rank brings to it."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.calls: Counter[str] = Counter()
        self.bytes: list[int] = []

    def _note(self, kind: str, x: Tensor) -> None:
        self.calls[kind] += 1
        self.bytes.append(x.numel() * x.element_size())

    def sum(self, x: Tensor) -> Tensor:
        self._note("all_reduce", x)
        x = x.clone()
        distributed.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> Tensor:
        self._note("all_gather", x)
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def max(self, x: int) -> int:
        raise AssertionError("the bound on the width is known, so nobody asks")


def one_rank(rank: int, world: int, meeting: str, rounds: int, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    rows, columns = SHAPES[0]
    ranks = GlooRanks(columns)
    whole, mine = window_of(rows, columns, ranks=ranks), rows // world
    window = part(whole, rank * mine, (rank + 1) * mine)
    table = []
    for kind in (KLCov, ClipCov):
        for shares in (False, True):
            controller = kind(log_shares=shares)
            ranks.calls.clear()
            ranks.bytes.clear()
            controller.select(window)
            calls, sizes = dict(ranks.calls), list(ranks.bytes)
            timed = Timed([], [])
            for _ in range(rounds):
                distributed.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                controller.select(window)
                took = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu])
                distributed.all_reduce(took, op=distributed.ReduceOp.MAX)  # a step waits for the slowest
                timed.wall.append(float(took[0]))
                timed.cpu.append(float(took[1]))
            table.append(
                {
                    "processes": world,
                    "controller": kind.name,
                    "top_shares": shares,
                    "collectives": calls,
                    "bytes_each_rank_brings": sizes,
                }
                | summary(timed)
            )
    if rank == 0:
        Path(out).write_text(json.dumps(table))
    distributed.destroy_process_group()


def measure_ranks(args: argparse.Namespace) -> list[dict[str, Any]]:
    table = []
    for world in (1, 2, 4, 8):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "out.json")
            words = (world, str(Path(folder) / "meeting"), args.rounds, out)
            multiprocessing.spawn(one_rank, args=words, nprocs=world)  # pyright: ignore[reportPrivateImportUsage]
            table += json.loads(Path(out).read_text())
        for row in table[-4:]:
            print_row(row)
    return table


# Overlap of `step` and `exact`


class BothScopes(KLCov):
    """KL-Cov that, in each window, also asks what other settings would take under `step` and under `exact`.

    others: settings to ask, by name; seen: (setting, update) -> (Jaccard index, tokens of exact, tokens of step)
    """

    others: ClassVar[dict[str, Any]] = {}
    seen: ClassVar[dict[tuple[str, int], list[tuple[float, int, int]]]] = defaultdict(list)

    def select(self, window: Window) -> Any:
        old = Window(
            rows=window.rows,
            log_probs_BT=window.old_log_probs_BT,
            old_log_probs_BT=window.old_log_probs_BT,
            step=window.step,
        )
        for name, other in self.others.items():
            exact, step = (self.taken(other, window, other.select(w)) for w in (window, old))
            either = int((exact | step).sum())
            if either:
                overlap = int((exact & step).sum()) / either
                self.seen[name, window.step % UPDATES].append((overlap, int(exact.sum()), int(step.sum())))
        return super().select(window)

    @staticmethod
    def taken(controller: Any, window: Window, selection: Any) -> Tensor:
        """What the loss pass of this update would act on."""
        if isinstance(controller, KLCov):
            return controller.members(window.rows, selection, log_probs_BT=window.log_probs_BT)
        return controller.members(window.rows, selection, view_of(controller, window))[0]


def measure_overlap(args: argparse.Namespace) -> list[dict[str, Any]]:
    from entrl_rewards.accuracy import Accuracy
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from entrl.models.shipped import model_path
    from entrl.tasks import load_task
    from entrl.trainers.config import EntropyGRPOConfig
    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

    controller = BothScopes(fraction=0.02, scope="exact", log_shares=False)
    BothScopes.others = {
        f"{kind.name}, fraction {fraction}": kind(fraction=fraction, log_shares=False, **options)
        for fraction in (0.002, 0.02)
        for kind, options in ((KLCov, {}), (ClipCov, {"bounds": "std", "lower": 1.0, "upper": 5.0}))
    }
    BothScopes.seen.clear()
    source = model_path("tiny-reasoner")
    with tempfile.TemporaryDirectory() as folder:
        trainer = EntropyGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(source),
            Accuracy(),
            EntropyGRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=64,
                steps_per_generation=UPDATES,
                num_generations=8,
                max_completion_length=96,
                max_steps=args.updates,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                loss_type="dapo",
                scale_rewards="batch",
                beta=0.0,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=load_task("sums", split="train", size=2048, seed=0),
            processing_class=AutoTokenizer.from_pretrained(source, padding_side="left"),
            controllers=[controller],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    table = []
    for (name, update), found in sorted(controller.seen.items()):
        overlap, exact, step = zip(*found, strict=True)
        table.append(
            {
                "controller": name,
                "update_of_rollout": update,
                "windows": len(found),
                "jaccard_mean": statistics.mean(overlap),
                "jaccard_range": [min(overlap), max(overlap)],
                "tokens_exact_mean": statistics.mean(exact),
                "tokens_step_mean": statistics.mean(step),
            }
        )
        print_row(table[-1])
    return table


def print_row(row: dict[str, Any]) -> None:
    print("  ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(map(_short, value)) + "]" if isinstance(value, list | tuple) else str(value)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


PARTS = {
    "cost": measure_cost,
    "ranks": measure_ranks,
    "published": measure_published,
    "overlap": measure_overlap,
    "before": measure_before,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What choosing tokens costs.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "before"])
    parser.add_argument("--before", help="commit whose controllers the part `before` measures beside today's")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--updates", type=int, default=48, help="optimiser steps of the overlap part")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds must be >= 2 for an interval, got {args.rounds}")
    if ("before" in args.parts) != bool(args.before):
        parser.error("--before and the part `before` need each other: --parts before --before COMMIT")
    torch.set_num_threads(1)
    for name in args.parts:
        print(f"--- {name}")
        result = about(args) | {"rows": PARTS[name](args)}
        if args.out:  # part by part: each says what it ran on, and a stopped run loses only the last
            kept = json.loads(args.out.read_text()) if args.out.exists() else {}
            args.out.write_text(json.dumps(kept | {name: result}, indent=1) + "\n")


def about(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "commit": git("rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU; one torch thread unless a row says more",
        "load_average_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "settings": {"rounds": args.rounds, "updates": args.updates, "before": args.before},
    }


if __name__ == "__main__":
    main()
