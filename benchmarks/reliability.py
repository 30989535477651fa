"""Kill runs and damage their checkpoints, resume them, and compare with runs that were left alone, bit for bit.

    python benchmarks/reliability.py --out reliability.jsonl [--kills 40] [--damages 12] [--files] [--work DIR]
    python benchmarks/reliability.py --out reliability.jsonl --table

The recipes, the places and the comparison are those of tests/kills.py. Of every four kills three are at a place, one is
at a random time (every other one of these is killed again while it resumes). Places are taken in turn from all recipes
and from all that a run does, so that any number of kills covers as much as it can. --files: besides, every place of one
checkpoint and of the last save. Each outcome is one line of the file, written at once; a line that is there is not run
again, so the same command goes on where it was stopped.
Runs on one process are forks of this one, which has the libraries imported; two ranks come from `accelerate launch`.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kills import (  # noqa: E402
    DAMAGES,
    RECIPES,
    copied,
    entrl_train,
    kind_of,
    kinds_of_places,
    newest,
    places,
    resume,
    write_recipe,
)

from entrl.runs.folder import append_lines  # noqa: E402
from entrl.settings.provenance import git_state  # noqa: E402

SEED = 20261128


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run that was left alone, and the places it passed (of each rank)."""

    recipe: Path
    run_dir: Path
    seconds: float
    traces: list[list[str]]


def whole_run(name: str, work: Path) -> Whole:
    """Made once; traced on every rank, which takes one run for each."""
    recipe, run_dir, note = write_recipe(work, name), work / f"{name}-whole", work / f"{name}-whole.json"
    ranks = RECIPES[name].get("launch", {}).get("world_size", 1)
    traces = [work / f"{name}-{rank}.trace" for rank in range(ranks)]
    if not note.is_file():
        for rank in reversed(range(ranks)):
            shutil.rmtree(run_dir, ignore_errors=True)
            ended = entrl_train(recipe, run_dir, trace=traces[rank], rank=rank, forked=True)
            if ended.code:
                raise RuntimeError(f"{name} does not run: {ended.text[-2000:]}")
        note.write_text(json.dumps({"seconds": ended.seconds}))
    seconds = json.loads(note.read_text())["seconds"]
    return Whole(recipe=recipe, run_dir=run_dir, seconds=seconds, traces=[places(t) for t in traces])


def planned_places(whole: Whole) -> Iterator[tuple[int, int]]:
    """(rank, place), one of each kind in turn; recipes begin with different kinds."""
    queues = [
        [(rank, i) for i in found]
        for rank, trace in enumerate(whole.traces)
        for found in kinds_of_places(trace, seed=SEED).values()
    ]
    first = 2 * list(RECIPES).index(whole.recipe.stem) % len(queues)
    for turn in itertools.zip_longest(*queues[first:], *queues[:first]):
        yield from (place for place in turn if place is not None)


def file_places(whole: Whole) -> list[tuple[int, int]]:
    """(rank, place): everything that is written, renamed or deleted for the second checkpoint and for the model."""
    found = []
    for rank, trace in enumerate(whole.traces):
        saving = itertools.groupby(enumerate(trace), lambda one: one[1].startswith(("checkpoint:", "save:")))
        blocks = [[i for i, _ in block] for inside, block in saving if inside]
        model = [i for i, place in enumerate(trace) if " model/" in place]
        found += [(rank, i) for i in sorted({*blocks[1], *model})]
    return found


def file_jobs(work: Path) -> Iterator[dict[str, Any]]:
    """Of a run that keeps one checkpoint, of one with an adapter, and of one on two processes."""
    for name in ("evaluation", "lora", "two_ranks"):
        for number in range(len(file_places(whole_run(name, work)))):
            yield {"id": f"{name} file {number}", "recipe": name, "file": number}


def jobs(names: list[str], kills: int) -> Iterator[dict[str, Any]]:
    """What is to be killed, in order; the same for the same arguments. `place`: the how-manieth of its recipe."""
    draw = random.Random(SEED)
    for number in range(kills):
        name = names[number % len(names)]
        turn = number // len(names)
        if turn % 4 == 3:
            moments = [draw.random() for _ in range(1 + turn // 4 % 2)]
            yield {"id": f"{name} random {turn}", "recipe": name, "moments": moments}
        else:
            yield {"id": f"{name} place {turn - turn // 4}", "recipe": name, "place": turn - turn // 4}


def kill(job: dict[str, Any], whole: Whole, run_dir: Path) -> dict[str, Any]:
    """Run until the kill, resume, compare."""
    shutil.rmtree(run_dir, ignore_errors=True)
    row = {k: job[k] for k in ("id", "recipe")}
    if "moments" in job:
        codes = []
        for moment in job["moments"]:
            how = ("resume=true",) if codes else ()
            codes.append(entrl_train(whole.recipe, run_dir, *how, kill_after=moment * whole.seconds, forked=True).code)
        row |= {
            "kind": "random time",
            "where": [round(m * whole.seconds, 1) for m in job["moments"]],
            "killed": -9 in codes,
        }
    else:
        found = file_places(whole) if "file" in job else planned_places(whole)
        rank, at = next(itertools.islice(found, job.get("file", job.get("place")), None))
        ended = entrl_train(whole.recipe, run_dir, at=at, rank=rank, forked=True)
        where = whole.traces[rank][at]
        row |= {
            "kind": "a file" if "file" in job else kind_of(where),
            "where": where,
            "rank": rank,
            "killed": ended.code != 0,
        }
    return {**row, **resume(whole.recipe, whole.run_dir, run_dir, forked=True)}


def damage(name: str, what: str, whole: Whole, work: Path) -> dict[str, Any]:
    """A run killed while it saved its model, its newest checkpoint damaged, resumed."""
    cut = work / f"{name}-cut"
    if not cut.is_dir():
        last = max(i for i, place in enumerate(whole.traces[0]) if "rename model/" in place)
        entrl_train(whole.recipe, cut, at=last, forked=True)
    run_dir = copied(cut, work / f"{name}-damaged")
    folder = newest(run_dir)
    DAMAGES[what](folder)
    row = {"id": f"{name} damage {what}", "recipe": name, "kind": "damage", "where": what, "killed": True}
    row |= resume(whole.recipe, whole.run_dir, run_dir, forked=True)
    return {**row, "alike": row["alike"] and any(line.startswith(folder.name) for line in row["skipped"])}


def campaign(out: Path, work: Path, *, names: list[str], kills: int, damages: int, files: bool) -> None:
    rows = read(out)
    done = {row["id"] for row in rows}
    commit = git_state(ROOT)
    planned = [*jobs(names, kills), *damage_jobs(damages), *(file_jobs(work) if files else ())]
    for number, job in enumerate(planned, 1):
        if job["id"] in done:
            continue
        whole = whole_run(job["recipe"], work)
        run_dir = work / job["id"].replace(" ", "-")
        if "damage" in job:
            row = damage(job["recipe"], job["damage"], whole, work)
        else:
            row = kill(job, whole, run_dir)
        append_lines(out, [{**row, "commit": commit["commit"], "dirty": commit["dirty"]}])
        if row["alike"]:  # otherwise it is kept to be looked at
            shutil.rmtree(run_dir, ignore_errors=True)
        print(
            f"{number}/{len(planned)}  {'alike' if row['alike'] else 'DIFFERS'}  {row['id']}: {row['where']}",
            flush=True,
        )


def damage_jobs(count: int) -> Iterator[dict[str, Any]]:
    """Of a run on one process and of one on two."""
    for what in list(DAMAGES)[:count]:
        for name in ("lora", "two_ranks"):
            yield {"id": f"{name} damage {what}", "recipe": name, "damage": what}


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().split("\n") if line] if out.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: kind of kill by recipe, how many of how many came out alike."""
    names = [name for name in RECIPES if any(row["recipe"] == name for row in rows)]
    total, alike = (
        Counter((r["kind"], r["recipe"]) for r in rows if r["killed"] and (all_ or r["alike"])) for all_ in (1, 0)
    )
    kinds = sorted({row["kind"] for row in rows})
    lines = [f"| killed during | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for kind in kinds:
        cells = [f"{alike[kind, n]} of {total[kind, n]}" if total[kind, n] else "" for n in names]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines.append(f"| all | {' | '.join(_sum(alike, n) + ' of ' + _sum(total, n) for n in names)} |")
    return "\n".join(lines)


def _sum(counts: Counter, name: str) -> str:
    return str(sum(count for (_, recipe), count in counts.items() if recipe == name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each kill")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--damages", type=int, default=len(DAMAGES), help="kinds of damage, on one process and on two")
    parser.add_argument("--files", action="store_true", help="also at every place of a checkpoint and the last save")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--work", type=Path, help="where runs are written (default: beside --out)")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    options = parser.parse_args()
    if not options.table:
        work = options.work or options.out.parent / "reliability-runs"
        campaign(
            options.out, work, names=options.recipes, kills=options.kills, damages=options.damages, files=options.files
        )
    rows = read(options.out)
    print(table(rows))
    wrong = [row["id"] for row in rows if not row["alike"]]
    print(f"{len(rows)} rows; not alike: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
